"""The quick start on every event loop: asyncio, uvloop, trio."""

from __future__ import annotations

import gc
from random import Random

import anyio
import pytest

import reclaimactors as ra
from reclaimactors import registry
from reclaimactors.backends.memory import MemoryBackend
from reclaimactors.mm.batch import Reclaimer

LOOPS = [
    pytest.param("asyncio", {}, id="asyncio"),
    pytest.param("asyncio", {"use_uvloop": True}, id="uvloop"),
    pytest.param("trio", {}, id="trio"),
]


def report(i: int) -> bytes:
    """A third of them do not compress, and go to the swap file as they are."""
    return Random(i).randbytes(3500) if i % 3 == 0 else f"line {i:04}\n".encode() * 350


async def quick_start(topology: str, offload: str) -> None:
    compress = {"offload": offload}
    async with ra.open_memory(topology, budget="1MiB", compress=compress) as memory:
        for i in range(600):
            await memory.put(i, report(i))
        await memory.reclaim(100_000)
        await memory.drain()
        for i in range(600):
            assert await memory.get(i) == report(i)
        async with memory.pin(7) as view:
            assert view == report(7)
        assert memory.vmstat["pgsteal_anon"]
        assert memory.vmstat["pswpout"]
        assert memory.vmstat["pswpin"]
        await memory.drain()
        assert memory.usage().in_flight == 0


@pytest.mark.parametrize("offload", ["inline", "thread"])
@pytest.mark.parametrize("topology", ["kcompressd", "padata_ordered", "kswapd_only"])
@pytest.mark.parametrize(("backend", "options"), LOOPS)
def test_quick_start(backend: str, options: dict[str, bool], topology: str, offload: str):
    anyio.run(quick_start, topology, offload, backend=backend, backend_options=options)


@pytest.mark.parametrize(("backend", "options"), LOOPS)
def test_clients_beside_each_other(backend: str, options: dict[str, bool]):
    async def client(memory: ra.Memory, number: int) -> None:
        for i in range(150):
            await memory.put((number, i), report(i))
        for i in range(150):
            assert await memory.get((number, i)) == report(i)

    async def main() -> None:
        async with ra.open_memory(budget="1MiB") as memory, anyio.create_task_group() as clients:
            for number in range(4):
                clients.start_soon(client, memory, number)

    anyio.run(main, backend=backend, backend_options=options)


@pytest.mark.parametrize(("backend", "options"), LOOPS)
def test_an_error_of_the_body_goes_on_as_it_is(backend: str, options: dict[str, bool]):
    async def main() -> None:
        async with ra.open_memory(budget="1MiB") as memory:
            for i in range(300):
                await memory.put(i, report(i))
            raise LookupError("mine")

    with pytest.raises(LookupError, match="mine"):
        anyio.run(main, backend=backend, backend_options=options)


@pytest.mark.parametrize(("backend", "options"), LOOPS)
def test_a_cancelled_body_closes(backend: str, options: dict[str, bool]):
    async def main() -> None:
        with anyio.move_on_after(0.05) as scope:
            async with ra.open_memory(budget="1MiB") as memory:
                for i in range(10**9):
                    await memory.put(i % 600, report(i % 600))
        assert scope.cancelled_caught

    anyio.run(main, backend=backend, backend_options=options)


@pytest.mark.parametrize(("backend", "options"), LOOPS)
def test_pressure_and_headroom_are_waited_for(backend: str, options: dict[str, bool]):
    async def main() -> None:
        async with ra.open_memory("kswapd_only_inline", budget="1MiB", swap=[]) as memory:
            watching = memory.pressure_trigger("full", stall_us=1, window_us=10_000_000)
            async with watching as trigger:
                for number in range(400):
                    await memory.put(number, report(number))
                await memory.wait_for_headroom(1 << 18)
                with anyio.fail_after(20):
                    await trigger.wait()
            assert memory.pressure().full.total > 0

    anyio.run(main, backend=backend, backend_options=options)


@pytest.mark.parametrize(("backend", "options"), LOOPS)
def test_another_thread_looks_while_something_is_queued(backend: str, options: dict[str, bool]):
    def look(memory: ra.Memory) -> float:
        memory.pressure(), memory.health(), memory.swaps(), dict(memory.vmstat)
        return memory.usage().oldest_queued_s

    async def main() -> None:
        async with ra.open_memory(budget="1MiB", swap=[]) as memory:
            await memory.put(1, report(1))
            machine = memory._machine
            batch = machine.swapout.isolate(1, 1 << 20, Reclaimer.KSWAPD, machine.background.stream)
            assert batch is not None
            batch.since = machine.loop.now() - 5
            machine.fifo.send_nowait(batch)
            assert 5 <= await anyio.to_thread.run_sync(look, memory) < 60

    anyio.run(main, backend=backend, backend_options=options)


def test_on_trio_a_memory_is_not_awaited_and_nothing_is_opened_in_vain():
    async def main() -> None:
        opening = ra.open_memory(budget="1MiB", swap=[{"backend": Unopened()}])
        with pytest.raises(RuntimeError, match="`async with`"):
            await opening

    anyio.run(main, backend="trio")


class Unopened(MemoryBackend):
    async def open(self, page_size: int) -> None:
        raise AssertionError("it was opened")


class Exited(BaseException):
    """As SystemExit, which pytest would take as its own."""


class Exits:
    """A log whose every line ends the program."""

    def __getattr__(self, name: str) -> None:
        raise Exited


@pytest.mark.parametrize(("backend", "options"), LOOPS)
def test_whatever_ends_a_program_as_it_logs_the_stores_are_closed(
    backend: str, options: dict[str, bool]
):
    store = MemoryBackend()

    async def main() -> None:
        async with ra.open_memory(budget="1MiB", swap=[{"backend": store}]) as memory:
            memory._machine.log = Exits()
            memory._machine.crashed(ra.ReclaimError("crashed as told"))
            await anyio.sleep(0)

    with pytest.raises((Exited, ra.ReclaimError)):
        anyio.run(main, backend=backend, backend_options=options)
    registry.take(store, "another memory")  # nobody has it any more
    registry.let_go(store)
    gc.collect()  # asyncio tells of its task's error now, not at the end of the tests
