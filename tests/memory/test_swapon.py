"""swapon and swapoff at run time: everything comes back, or the store stays on; nothing is lost."""

import asyncio
import errno
import random

import anyio
import pytest
from anyio.lowlevel import checkpoint

import reclaimactors as ra
from reclaimactors.backends.memory import MemoryBackend
from reclaimactors.backends.zram import ZramBackend
from reclaimactors.mm.folio import DEVICE
from reclaimactors.testing import FaultyBackend, Gate

PAGE = 512
BUDGET = 1 << 18
EVERYTHING = 1 << 30
EIO = OSError(errno.EIO, "I/O error")
BARE = {
    "budget": BUDGET,
    "page_size": PAGE,
    "max_folio": 64 * PAGE,
    "compress": {"mode": "inline", "offload": "inline"},
}


class Elsewhere(MemoryBackend):
    """A memory store that counts as one outside this process."""

    def __init__(self, capacity=None):
        super().__init__(capacity)
        self.closed = 0

    def footprint(self, slots):
        return 0

    async def aclose(self):
        self.closed += 1
        await super().aclose()


def noise(seed, size=PAGE):
    return random.Random(seed).randbytes(size)


def over(*stores):
    swap = [{"backend": store, "size": "1MiB", "priority": -i} for i, store in enumerate(stores)]
    return ra.open_memory(**BARE, swap=swap)


async def fill(memory, nr, size=PAGE):
    values = {i: noise(i, size) for i in range(nr)}
    for key, value in values.items():
        await memory.put(key, value)
    await memory.reclaim(EVERYTHING)
    await memory.drain()
    return values


def on_devices(memory):
    return sum(state == DEVICE for state in memory._node.mm.state)


async def same(memory, values):
    assert {key: await memory.get(key) for key in values} == values
    assert memory._node.check()


async def test_a_store_that_is_swapped_on_takes_what_memory_cannot_hold():
    async with over() as memory:
        with pytest.raises(ra.OutOfMemory):
            await fill(memory, 2000)
        left = memory.keys()
        for key in left:
            await memory.delete(key)
        name = await memory.swapon({"backend": Elsewhere(), "size": "2MiB", "priority": 3})
        values = await fill(memory, 700)
        (info,) = memory.swaps()
        assert (info.name, info.size, info.priority, info.takes_writes) == (name, 2 << 20, 3, True)
        assert 0 < info.used <= info.size
        await same(memory, values)


async def test_swapon_of_a_higher_priority_is_filled_first():
    first, second = Elsewhere(), Elsewhere()
    async with over(first) as memory:
        await memory.swapon({"backend": second, "priority": 100})
        values = await fill(memory, 20)
        assert [info.used for info in memory.swaps()] == [20 * PAGE, 0]
        assert memory.swaps()[0].backend is second
        await same(memory, values)


async def test_swapoff_brings_everything_back_and_closes_the_store():
    store = Elsewhere()
    async with over(store) as memory:
        values = await fill(memory, 200)
        assert on_devices(memory) == 200
        (info,) = memory.swaps()
        await memory.swapoff(info.name)
        assert memory.swaps() == []
        assert on_devices(memory) == 0
        assert store.closed == 1
        assert memory.usage().swapped == 0
        await same(memory, values)
    assert store.closed == 1


async def test_swapoff_moves_to_another_store_what_memory_cannot_hold():
    first, second = Elsewhere(), Elsewhere()
    async with over(first, second) as memory:
        values = await fill(memory, 500)
        await memory.swapoff(memory.swaps()[0].name)
        assert memory.swaps()[0].backend is second
        assert memory.swaps()[0].used > 0
        await same(memory, values)


async def test_swapoff_of_values_of_several_folios():
    async with over(Elsewhere(), Elsewhere()) as memory:
        values = await fill(memory, 6, size=200 * PAGE - 7)
        await memory.swapoff(memory.swaps()[0].name)
        await same(memory, values)


async def test_swapoff_without_room_is_refused_and_nothing_is_lost():
    store = Elsewhere()
    async with over(store) as memory:
        values = await fill(memory, 800)
        with pytest.raises(ra.OutOfMemory, match="stays on"):
            await memory.swapoff(memory.swaps()[0].name)
        (info,) = memory.swaps()
        assert info.takes_writes
        await same(memory, values)
        for key in list(values)[100:]:
            await memory.delete(key)
            del values[key]
        await memory.swapoff(info.name)
        assert memory.swaps() == []
        await same(memory, values)


async def test_swapoff_of_a_store_that_cannot_read_is_refused_with_the_reason():
    store = FaultyBackend(Elsewhere())
    async with over(store) as memory:
        values = await fill(memory, 50)
        store.error = EIO
        with pytest.raises(ra.BackendError, match="failed to load"):
            await memory.swapoff(memory.swaps()[0].name)
        assert memory.swaps()[0].takes_writes
        store.error = None
        await same(memory, values)
        await memory.swapoff(memory.swaps()[0].name)
        await same(memory, values)


async def test_a_cancelled_swapoff_leaves_the_store_on():
    store = FaultyBackend(Elsewhere())
    async with over(store) as memory:
        values = await fill(memory, 50)
        store.load_gate = Gate()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(memory.swapoff, memory.swaps()[0].name)
            await store.load_gate.entered.wait()
            tasks.cancel_scope.cancel()
        store.load_gate.open()
        (info,) = memory.swaps()
        assert info.takes_writes
        await same(memory, values)


async def test_a_swapoff_cancelled_at_any_await_leaves_the_store_on_or_is_done():
    for steps in range(200):
        store = Elsewhere()
        async with over(store) as memory:
            values = await fill(memory, 20)
            task = asyncio.ensure_future(memory.swapoff(memory.swaps()[0].name))
            for _ in range(steps):
                await asyncio.sleep(0)
            done = task.done()
            task.cancel()
            await asyncio.wait([task])
            if memory.swaps():
                assert memory.swaps()[0].takes_writes
                assert store.closed == 0
                await same(memory, values)
                await memory.swapoff(memory.swaps()[0].name)
            assert store.closed == 1
            assert memory.vmstat["actor_restarts"] == 0
            await same(memory, values)
        if done:
            return
    pytest.fail("swapoff has no end")


async def test_values_are_read_written_and_deleted_during_a_swapoff():
    rng = random.Random(7)
    async with over(Elsewhere(), Elsewhere()) as memory:
        values = await fill(memory, 600)
        done = anyio.Event()

        async def client():
            while not done.is_set():
                key = rng.randrange(600)
                if key not in values or rng.random() < 0.3:
                    values[key] = noise(rng.random())
                    await memory.put(key, values[key])
                elif rng.random() < 0.2:
                    del values[key]
                    await memory.delete(key)
                else:
                    assert await memory.get(key) == values[key]
                await checkpoint()

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(client)
            await memory.swapoff(memory.swaps()[0].name)
            done.set()
        assert len(memory.swaps()) == 1
        await same(memory, values)


async def test_closing_ends_a_swapoff_that_waits():
    store = FaultyBackend(Elsewhere())
    ended = []

    async with anyio.create_task_group() as tasks, over(store) as memory:
        await fill(memory, 50)
        store.load_gate = Gate()

        async def off():
            with pytest.raises(anyio.ClosedResourceError):
                await memory.swapoff(memory.swaps()[0].name)
            ended.append(True)

        tasks.start_soon(off)
        await store.load_gate.entered.wait()
    assert ended


@pytest.mark.parametrize("turned_into", [None, EIO, ra.BackendError("cut off")])
async def test_closing_ends_a_swapon_that_waits_and_closes_its_store(turned_into):
    class Slow(Elsewhere):
        async def open(self, page_size):
            opening.set()
            try:
                await anyio.sleep_forever()
            except anyio.get_cancelled_exc_class():
                if turned_into is not None:
                    raise turned_into from None
                raise

    opening = anyio.Event()
    first, second = Slow(), Slow()
    ended = []

    async def on(memory, store):
        with pytest.raises(anyio.ClosedResourceError):
            await memory.swapon({"backend": store, "timeout": 1e6})
        ended.append(store)

    with anyio.fail_after(10):
        async with anyio.create_task_group() as tasks, over() as memory:
            tasks.start_soon(on, memory, first)
            await opening.wait()
            tasks.start_soon(on, memory, second)  # waits in line
            await checkpoint()
    assert ended == [first, second]
    assert (first.closed, second.closed) == (1, 0)
    assert memory.swaps() == []


async def test_a_store_that_cannot_be_opened_is_not_on():
    class Shut(Elsewhere):
        async def open(self, page_size):
            raise EIO

    store = Shut()
    async with over() as memory:
        with pytest.raises(ra.BackendError, match="cannot be opened"):
            await memory.swapon({"backend": store})
        assert store.closed == 1
        assert memory.swaps() == []
        with pytest.raises(ra.TopologyError, match=r"prority.*did you mean 'priority'"):
            await memory.swapon({"prority": 3})


async def test_swapoff_of_an_unknown_name_says_which_there_are():
    async with over(Elsewhere()) as memory:
        (info,) = memory.swaps()
        with pytest.raises(ra.TopologyError, match=info.name):
            await memory.swapoff("nothing")


async def test_names_are_used_again_only_after_swapoff():
    async with over() as memory:
        names = [await memory.swapon({"backend": Elsewhere()}) for _ in range(3)]
        assert len(set(names)) == 3
        await memory.swapoff(names[1])
        assert await memory.swapon({"backend": Elsewhere()}) == names[1]


async def test_no_two_stores_have_one_name_whatever_their_backends_are_called():
    class Named(Elsewhere):
        def __init__(self, name):
            super().__init__()
            self.name = name

    async with over() as memory:
        first = await memory.swapon({"backend": Named("x1")})
        names = [await memory.swapon({"backend": Named("x")}) for _ in range(11)]
        assert [first, *names[:9]] == ["x10", *(f"x{number}" for number in range(1, 10))]
        assert len({first, *names}) == 12
        await memory.swapoff(first)
        assert sorted(info.name for info in memory.swaps()) == sorted(names)


async def test_swapoff_of_the_only_store_gives_up_the_writeback_that_was_asked_of_it():
    async with over(Elsewhere()) as memory:
        await memory.put("a", b"a page " * 70)
        await memory.reclaim(EVERYTHING)
        memory._node.zswap.wanted = 1
        memory._machine.wake_shrinkers()
        await memory.swapoff(memory.swaps()[0].name)  # before its lanes have had a turn
        with anyio.fail_after(5):
            await memory.drain()
        assert await memory.get("a") == b"a page " * 70
        assert memory._node.check()


async def test_one_store_cannot_be_swapped_on_twice():
    store = Elsewhere()
    async with over(store) as memory:
        values = await fill(memory, 20)
        with pytest.raises(
            ra.BackendError, match=r"'Elsewhere0' of memory .* already; swap that off"
        ):
            await memory.swapon({"backend": store})
        assert len(memory.swaps()) == 1
        assert store.closed == 0
        await same(memory, values)
    with pytest.raises(ra.BackendError, match="already"):
        await over(store, store).__aenter__()
    assert store.closed == 2


async def test_one_store_cannot_serve_two_memories_at_once():
    store = Elsewhere()
    async with over(store) as memory:
        values = await fill(memory, 20)
        with pytest.raises(ra.BackendError, match=r"'Elsewhere0' of memory .* already") as refused:
            await over(store).__aenter__()
        assert refused.value.errno == errno.EBUSY
        async with over() as other:
            with pytest.raises(ra.BackendError, match="already"):
                await other.swapon({"backend": store})
            assert other.swaps() == []
        assert store.closed == 0
        await same(memory, values)
        await memory.swapoff("Elsewhere0")
        async with over(store) as other:
            await same(other, await fill(other, 20))
    async with over(store) as memory:
        await same(memory, await fill(memory, 20))


@pytest.mark.parametrize("fault", ["open", "aclose"])
async def test_a_store_that_failed_to_open_or_to_close_may_be_used_again(fault):
    class Faulty(Elsewhere):
        faulty = True

        async def open(self, page_size):
            if self.faulty and fault == "open":
                raise EIO

        async def aclose(self):
            await super().aclose()
            if self.faulty and fault == "aclose":
                raise EIO

    store = Faulty()
    async with over() as memory:
        if fault == "open":
            with pytest.raises(ra.BackendError, match="cannot be opened"):
                await memory.swapon({"backend": store})
        else:
            await memory.swapoff(await memory.swapon({"backend": store}))
        store.faulty = False
        assert await memory.swapon({"backend": store}) == "Faulty0"
        await same(memory, await fill(memory, 20))


async def test_a_store_cannot_be_swap_and_the_backing_of_zram_at_once():
    store = Elsewhere()
    first, second = ZramBackend(backing=store), ZramBackend(backing=store)
    with pytest.raises(ra.BackendError, match=r"'Elsewhere0' .* of zram .*'Elsewhere'.* already"):
        await over(store, first).__aenter__()
    assert store.closed == 1
    with pytest.raises(ra.BackendError, match=r"zram .*'Elsewhere'.* of swap 'Elsewhere1'"):
        await over(first, store).__aenter__()
    assert store.closed == 2
    async with over(first) as memory:
        values = await fill(memory, 20)
        assert await first.writeback("huge") == 20
        with pytest.raises(ra.BackendError, match="already; swap that off"):
            await memory.swapon({"backend": second})
        assert store.closed == 2
        await same(memory, values)
    assert store.closed == 3
    for _ in range(2):
        async with over(first) as memory:  # closed before, its blocks are free again
            assert first.backing.blocks.used == 0
            values = await fill(memory, 20)
            assert await first.writeback("huge") == 20
            await same(memory, values)
