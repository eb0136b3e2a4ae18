"""Multithreaded jobs, and large values that are read back by them."""

from __future__ import annotations

import threading

import anyio
import pytest

import reclaimactors as ra
from reclaimactors.compressors.lz4 import Lz4
from reclaimactors.offload.job import multithreaded

PART = 256 * 1024
threads = anyio.CapacityLimiter


@pytest.mark.parametrize("nr", [0, 1, 2, 7, 100])
@pytest.mark.parametrize("workers", [1, 2, 5])
async def test_results_come_in_order(nr, workers):
    squares = await multithreaded(lambda x: x * x, range(nr), limiter=threads(workers), min_chunk=2)
    assert squares == [x * x for x in range(nr)]


async def test_what_is_not_worth_a_hop_runs_in_the_caller():
    def where(_item: int) -> int:
        return threading.get_ident()

    here = threading.get_ident()
    assert await multithreaded(where, [1, 2], limiter=threads(4), min_chunk=3) == [here] * 2
    assert here not in await multithreaded(where, [1, 2, 3], limiter=threads(4), min_chunk=3)


async def test_where_no_thread_can_be_started_the_caller_does_it(monkeypatch):
    async def refuse(*_args, **_options):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(anyio.to_thread, "run_sync", refuse)
    assert await multithreaded(str, range(9), limiter=threads(2), min_chunk=1) == list("012345678")


async def test_several_threads_take_part():
    both = threading.Barrier(2, timeout=20)

    def meet(_item: int) -> int:
        return both.wait()

    assert sorted(await multithreaded(meet, [1, 2], limiter=threads(2), min_chunk=1)) == [0, 1]


class Told:
    """lz4 that says which threads decompressed."""

    name = "told"

    def __init__(self) -> None:
        self.lz4 = Lz4()
        self.threads: set[int] = set()
        self.broken = False
        self.on_decompress = lambda: None

    def compress(self, data: ra.Buffer) -> bytes:
        return self.lz4.compress(data)

    def decompress(self, blob: ra.Buffer, size: int) -> bytes:
        self.threads.add(threading.get_ident())
        self.on_decompress()
        if self.broken:
            raise ra.CorruptData("broken")
        return self.lz4.decompress(blob, size)


def value(version: int, folios: int) -> bytes:
    return b"".join(b"%d of version %d " % (i, version) * (PART // 16) for i in range(folios))


async def reclaimed(memory: ra.Memory, folios: int) -> bytes:
    """Put a value, reclaim it, and have the machine learn that reading back takes long."""
    await memory.put("long", value(1, folios))
    await memory.reclaim(1 << 30)
    assert not memory.usage().resident
    memory._machine.cpu.rates.expand = 1e6
    return value(1, folios)


@pytest.mark.parametrize("folios", [1, 6])
async def test_a_value_that_takes_long_is_read_back_off_the_loop(folios):
    told = Told()
    compress = {"compressor": told, "offload": "thread"}
    async with ra.open_memory("padata", budget="64MiB", compress=compress) as memory:
        expected = await reclaimed(memory, folios)
        told.threads.clear()
        assert await memory.get("long") == expected
        assert threading.get_ident() not in told.threads
        assert memory._node.check()


async def test_without_workers_others_get_their_turn():
    turns = 0

    async def other() -> None:
        nonlocal turns
        while True:
            turns += 1
            await anyio.lowlevel.checkpoint()

    compress = {"compressor": Told(), "offload": "inline"}
    async with ra.open_memory("kcompressd", budget="64MiB", compress=compress) as memory:
        expected = await reclaimed(memory, 6)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(other)
            await anyio.lowlevel.checkpoint()
            before = turns
            assert await memory.get("long") == expected
            assert turns - before >= 6
            tasks.cancel_scope.cancel()


@pytest.mark.parametrize("fate", ["overwrite", "delete", "fault", "broken"])
async def test_what_happens_meanwhile_is_seen(fate):
    told = Told()
    compress = {"compressor": told, "offload": "thread"}
    async with ra.open_memory("padata", budget="64MiB", compress=compress) as memory:
        expected = await reclaimed(memory, 6)
        told.broken = fate == "broken"
        meanwhile = anyio.Event()
        told.on_decompress = lambda: anyio.from_thread.run_sync(meanwhile.set)
        got: list[object] = []

        async def get() -> None:
            try:
                got.append(await memory.get("long"))
            except (KeyError, ra.CorruptData) as exc:
                got.append(type(exc))

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(get)
            await meanwhile.wait()
            told.on_decompress = lambda: None
            if fate == "overwrite":
                await memory.put("long", value(2, 3))
            elif fate == "delete":
                await memory.delete("long")
            elif fate == "fault":
                memory.get_nowait("long")
        assert got == [
            {"overwrite": value(2, 3), "delete": KeyError, "broken": ra.CorruptData}.get(
                fate, expected
            )
        ]
        assert memory._node.check()
