"""Stores that hang, fail for a while or for good: who waits for them, and for how long."""

import errno
import random

import anyio
import pytest

import reclaimactors as ra
from reclaimactors.actors.backing import LATE_S
from reclaimactors.backends.memory import MemoryBackend
from reclaimactors.testing import FaultyBackend, Gate

virtual = pytest.mark.asyncio(loop_factories=["virtual"])
PAGE = 4096
BUDGET = 4 << 20
TIMEOUT = 4.0
EIO = OSError(errno.EIO, "I/O error")
TOPOLOGIES = pytest.mark.parametrize(
    "topology", ["kcompressd", "kswapd_only", "kswapd_only_inline", "padata", "padata_ordered"]
)


class Elsewhere(MemoryBackend):
    """A store whose bytes are outside the budget."""

    def footprint(self, slots):
        return 0


def noise(i, size=PAGE):
    return random.Random(i).randbytes(size)


def text(i, size=PAGE):
    return (b"value %d that compresses, " % i * (size // 16 + 1))[:size]


def over(store, topology="kcompressd", **spec):
    swap = [{"backend": store, "timeout": TIMEOUT, "size": "64MiB"}]
    spec = {"budget": BUDGET, "swap": swap, "compress": {"offload": "inline"}} | spec
    return ra.open_memory(topology, **spec)


async def waits(call):
    """Return how many seconds a call took in the loop's clock."""
    started = anyio.current_time()
    await call
    return anyio.current_time() - started


async def until_refused(memory, key):
    """Put what does not compress until a put is refused; return the puts, and its seconds."""
    for nr in range(5000):
        started = anyio.current_time()
        try:
            await memory.put((key, nr), noise(nr))
        except ra.OutOfMemory:
            return nr, anyio.current_time() - started
    raise AssertionError("nothing was refused")


@virtual
@TOPOLOGIES
async def test_nobody_waits_for_a_hung_store_who_can_free_memory_himself(topology):
    async with over(FaultyBackend(Elsewhere(), store_gate=Gate()), topology) as memory:
        for i in range(200):
            await memory.put(("noise", i), noise(i))
        waited = [await waits(memory.put(("text", i), text(i))) for i in range(3000)]
        assert max(waited) < 0.05
        assert sum(waited) < 0.5
        assert await waits(memory.reclaim(1 << 16)) < 0.05
        assert memory._node.check()


@virtual
async def test_a_store_is_late_to_everybody_once_its_write_has_no_answer():
    store = FaultyBackend(Elsewhere())
    async with over(store) as memory:
        for i in range(800):
            await memory.put(i, noise(i))
        store.store_gate = Gate()
        nr = 0
        with anyio.move_on_after(1.5):
            while True:
                await memory.put(("more", nr), noise(nr))
                nr += 1
        (swapd,) = memory._machine.swapds.values()
        memory._machine.revive()
        assert swapd.device.late
        assert not memory.swaps()[0].takes_writes
        assert "has not answered for a while" in memory.health().reason
        assert await waits(memory.reclaim(1 << 20)) < 0.05  # nothing but the store could free it
        store.store_gate.open()
        await memory.drain()
        assert memory.swaps()[0].takes_writes
        assert memory.health().state == "open"


@virtual
@TOPOLOGIES
async def test_a_hung_store_keeps_nothing_from_the_next_one(topology):
    stores = FaultyBackend(Elsewhere(), store_gate=Gate()), FaultyBackend(Elsewhere())
    swap = [
        {"backend": store, "timeout": 30.0, "size": "64MiB", "priority": -i}
        for i, store in enumerate(stores)
    ]
    async with over(None, topology, swap=swap) as memory:
        waited = [await waits(memory.put(i, noise(i))) for i in range(4000)]
        assert max(waited) < 2 * LATE_S + 0.1
        assert sum(waited) < 3 * LATE_S
        assert stores[1].nr_stores > 0
        assert memory._node.check()


@virtual
async def test_what_waits_for_a_store_that_was_too_slow_does_not_wait_for_it_again():
    store = FaultyBackend(Elsewhere(), store_gate=Gate())
    async with over(store, budget="64MiB") as memory:
        for i in range(4000):
            memory.put_nowait(i, noise(i))
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(memory.reclaim, 8 << 20)
            await anyio.sleep(1.0)
            assert memory._node.writeback.nr_writes > 8
            await anyio.sleep(TIMEOUT)
            assert memory._node.writeback.nr_writes == 0
        assert memory._node.check()


@virtual
async def test_who_can_do_nothing_but_wait_for_a_store_does_not_spin(monkeypatch):
    stores = FaultyBackend(Elsewhere(), full_after=0), FaultyBackend(Elsewhere(), store_gate=Gate())
    swap = [{"backend": store, "timeout": TIMEOUT, "size": "64MiB"} for store in stores]
    async with over(None, swap=swap) as memory:
        for i in range(3000):
            memory.put_nowait(i, text(i))
        await memory.reclaim(BUDGET)
        rounds, reclaim = 0, memory._machine.reclaim_inline

        def counting(*args, **options):
            nonlocal rounds
            rounds += 1
            assert rounds < 10_000
            return reclaim(*args, **options)

        monkeypatch.setattr(memory._machine, "reclaim_inline", counting)
        await until_refused(memory, "noise")


@virtual
@TOPOLOGIES
async def test_a_store_that_fails_for_two_seconds_refuses_no_put_and_is_back(topology):
    store = FaultyBackend(Elsewhere())
    async with over(store, topology) as memory:
        async with anyio.create_task_group() as tasks:

            async def hiccup():
                await anyio.sleep(0.01)
                store.error = EIO
                await anyio.sleep(2.0)
                store.error = None

            tasks.start_soon(hiccup)
            for i in range(400):
                await memory.put(i, noise(i))
            await anyio.sleep(0.1)
            waited = [await waits(memory.put(i, noise(i))) for i in range(400, 3000)]
        assert 1.0 < sum(waited) < 4.0
        assert memory.vmstat["swap_out_of_service"] == 1
        for i in range(3000):
            assert await memory.get(i) == noise(i)
        await memory.drain()
        assert memory.health().state == "open"
        assert memory._node.check()


@virtual
async def test_put_nowait_says_to_wait_while_a_store_may_come_back():
    store = FaultyBackend(Elsewhere(), error=EIO)
    async with over(store) as memory:
        await put_while_it_fits(memory)
        with anyio.move_on_after(0.01):
            await memory.put("more", noise(0, 1 << 20))
        assert not memory.swaps()[0].takes_writes
        with pytest.raises(anyio.WouldBlock):
            memory.put_nowait("more", noise(0, 1 << 20))


@virtual
async def test_a_store_that_is_dead_is_waited_for_once_for_as_long_as_a_call_may_take():
    store = FaultyBackend(Elsewhere())
    async with over(store) as memory:
        for i in range(800):
            await memory.put(i, noise(i))
        store.error = EIO
        _, waited = await until_refused(memory, "first")
        assert waited <= TIMEOUT + 3.0
        for again in range(5):
            nr, waited = await until_refused(memory, again)
            assert (nr, waited) == (0, 0.0)
        with pytest.raises(ra.OutOfMemory, match="failed to store: OSError"):
            await memory.put("one more", noise(0))
        assert await memory.get(0) == noise(0)
        store.error = None
        await anyio.sleep(60.0)
        for i in range(1000):
            await memory.put(("back", i), noise(i))


@virtual
async def test_a_store_that_hangs_for_good_is_waited_for_once():
    store = FaultyBackend(Elsewhere())
    async with over(store) as memory:
        for i in range(800):
            await memory.put(i, noise(i))
        store.store_gate = Gate()
        _, waited = await until_refused(memory, "first")
        assert waited <= 2 * TIMEOUT + 1.0
        total = 0.0
        for again in range(20):
            nr, waited = await until_refused(memory, again)
            assert nr == 0
            assert waited <= LATE_S + 0.2  # where it is just tried again
            total += waited
            await anyio.sleep(1.0)
        assert total <= 5 * (LATE_S + 0.2)
        assert memory._node.check()


@virtual
async def test_a_stop_of_the_process_takes_nothing_of_a_store_s_time_to_come_back():
    store = FaultyBackend(Elsewhere())
    async with over(store) as memory:
        for i in range(800):
            await memory.put(i, noise(i))
        store.error = EIO
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(put_all, memory)
            await anyio.sleep(0.5)
            assert not memory.swaps()[0].takes_writes
            loop = memory._machine.loop.native
            loop._clock.now += 1000.0  # as if it had been stopped for so long
            await anyio.sleep(0.5)
            store.error = None


async def put_while_it_fits(memory):
    for i in range(2000):
        try:
            memory.put_nowait(i, noise(i))
        except anyio.WouldBlock:
            return


async def put_all(memory):
    for i in range(800, 1600):
        await memory.put(i, noise(i))


@virtual
async def test_a_swapd_that_crashed_is_waited_for(monkeypatch):
    store = FaultyBackend(Elsewhere())
    async with over(store) as memory:
        for i in range(800):
            await memory.put(i, noise(i))
        await memory.drain()
        (swapd,) = memory._machine.swapds.values()
        left = 3
        real = swapd.stores._store

        async def broken(*given):
            nonlocal left
            if left:
                left -= 1
                raise RuntimeError("a bug in a lane")
            return await real(*given)

        monkeypatch.setattr(swapd.stores, "_store", broken)
        for i in range(800, 2000):
            await memory.put(i, noise(i))
        assert left == 0
        assert memory.vmstat["actor_restarts"] > 0
        for i in range(2000):
            assert await memory.get(i) == noise(i)
        assert memory._node.check()
