"""Who waits for pressure, and who waits for room: triggers and headroom."""

import errno
import random
from contextlib import asynccontextmanager

import anyio
import pytest
from anyio.lowlevel import checkpoint

import reclaimactors as ra
from reclaimactors.backends.memory import MemoryBackend
from reclaimactors.testing import FaultyBackend, Gate

PAGE = 4096
BUDGET = 4 << 20
EVERYTHING = 1 << 30
TURN_S = 0.001
OFTEN = {"stall_us": 150_000, "window_us": 1_000_000}
virtual = pytest.mark.asyncio(loop_factories=["virtual"])


def noise(i, size=PAGE):
    return random.Random(i).randbytes(size)


def text(i, size=PAGE):
    return (b"value %d that compresses, " % i * (size // 16 + 1))[:size]


def opened(**spec):
    spec = {"budget": BUDGET, "swap": [], "compress": {"offload": "inline"}} | spec
    return ra.open_memory("kcompressd", **spec)


async def away(memory, *keys):
    """Put values that only the store has."""
    for key in keys:
        await memory.put(key, noise(key))
    await memory.reclaim(EVERYTHING)
    await memory.drain()


def store():
    return FaultyBackend(MemoryBackend())


def over(store):
    return opened(swap=[{"backend": store, "size": "16MiB", "timeout": 100}])


@asynccontextmanager
async def watched(*keys):
    """A memory over a store that alone has these keys, and a trigger on it."""
    slow = store()
    async with over(slow) as memory:
        await away(memory, *keys)
        async with memory.pressure_trigger("some", **OFTEN) as trigger:
            yield slow, memory, trigger


@virtual
async def test_a_trigger_fires_when_so_much_of_a_window_was_stalled():
    async with watched(1) as (slow, memory, trigger), anyio.create_task_group() as tasks:
        slow.load_gate = Gate()
        await anyio.sleep(5)
        began = anyio.current_time()
        tasks.start_soon(memory.get, 1)
        with anyio.fail_after(1):
            await trigger.wait()
        assert 0.15 <= anyio.current_time() - began <= 0.15 + TURN_S
        with anyio.fail_after(2):
            await trigger.wait()  # it goes on, and counts once a window
        assert 1.15 <= anyio.current_time() - began <= 1.15 + 2 * TURN_S
        slow.load_gate.open()


@virtual
async def test_a_trigger_does_not_fire_for_less():
    async with watched(1, 2, 3) as (slow, memory, trigger):
        for key in (1, 2, 3):
            slow.load_gate = Gate()
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(memory.get, key)
                await anyio.sleep(0.1)
                slow.load_gate.open()
            await anyio.sleep(0.96)
        with anyio.move_on_after(60) as scope:
            await trigger.wait()
        assert scope.cancelled_caught


@virtual
async def test_two_stalls_within_a_window_add_up():
    async with watched(1, 2) as (slow, memory, trigger), anyio.create_task_group() as tasks:
        slow.load_gate = Gate()
        tasks.start_soon(memory.get, 1)
        await anyio.sleep(0.1)
        slow.load_gate.open()
        await anyio.sleep(0.5)
        slow.load_gate = Gate()
        began = anyio.current_time()
        tasks.start_soon(memory.get, 2)
        with anyio.fail_after(1):
            await trigger.wait()
        assert anyio.current_time() - began == pytest.approx(0.05, abs=2 * TURN_S)
        slow.load_gate.open()


@virtual
async def test_what_happens_between_two_waits_is_not_lost():
    async with watched(1) as (slow, memory, trigger), anyio.create_task_group() as tasks:
        slow.load_gate = Gate()
        tasks.start_soon(memory.get, 1)
        await anyio.sleep(0.3)
        slow.load_gate.open()
        await anyio.sleep(30)
        began = anyio.current_time()
        await trigger.wait()
        assert anyio.current_time() == began


@virtual
async def test_who_waits_for_a_store_is_not_full():
    slow = store()
    async with over(slow) as memory, anyio.create_task_group() as tasks:
        await away(memory, 1)
        slow.load_gate = Gate()
        async with memory.pressure_trigger("full", stall_us=1000, window_us=1_000_000) as trigger:
            tasks.start_soon(memory.get, 1)
            with anyio.move_on_after(60) as scope:
                await trigger.wait()
            assert scope.cancelled_caught
        slow.load_gate.open()


async def test_the_loop_that_compresses_is_full():
    async with ra.open_memory("kswapd_only_inline", budget=BUDGET, swap=[]) as memory:
        async with memory.pressure_trigger("full", stall_us=1, window_us=10_000_000) as trigger:
            for i in range(1500):
                await memory.put(i, text(i))
            await trigger.wait()
        assert not memory._machine.cpu.psi.watches


async def test_who_waits_for_a_trigger_is_told_that_the_memory_closes():
    told = []

    async def wait(trigger):
        with pytest.raises(anyio.ClosedResourceError):
            await trigger.wait()
        told.append(True)

    async with anyio.create_task_group() as tasks:
        memory = await opened()
        async with memory.pressure_trigger("some", stall_us=1000, window_us=10_000) as trigger:
            tasks.start_soon(wait, trigger)
            await checkpoint()
            await memory.aclose()
    assert told == [True]


@pytest.mark.parametrize(
    ("kind", "spec", "message"),
    [
        ("part", {"stall_us": 1, "window_us": 1000}, "kind is 'part'; allowed: .*some.*full"),
        ("some", {"stall_us": 0, "window_us": 1000}, "stall_us is 0; allowed: .* 1 to 1000 "),
        ("some", {"stall_us": 1001, "window_us": 1000}, "stall_us is 1001; allowed: .* 1 to 1000"),
        (
            "some",
            {"stall_us": 1, "window_us": 999},
            "window_us is 999; allowed: .* 1000 to",
        ),
        ("some", {"stall_us": 1, "window_us": 1e6}, "window_us is 1000000.0; allowed: a whole"),
        ("some", {"stall_us": True, "window_us": 1000}, "stall_us is True; allowed"),
    ],
)
async def test_a_wrong_trigger_names_the_key_and_what_is_allowed(kind, spec, message):
    async with opened() as memory:
        with pytest.raises(ra.TopologyError, match=message):
            await memory.pressure_trigger(kind, **spec).__aenter__()
        assert not memory._machine.cpu.psi.watches


# -- headroom


async def filled(memory, make):
    nr = 0
    while memory.usage().free > memory._node.marks.low + 2 * PAGE:
        await memory.put(nr, make(nr))
        nr += 1
    return nr


async def test_headroom_that_is_there_is_not_waited_for():
    async with opened() as memory:
        await memory.wait_for_headroom(1 << 20)
        await memory.wait_for_headroom(0)


@pytest.mark.parametrize("topology", ["kcompressd", "kswapd_only", "kswapd_only_inline", "padata"])
async def test_headroom_is_made(topology):
    async with ra.open_memory(topology, budget=BUDGET, swap=[]) as memory:
        nr = await filled(memory, text)
        with anyio.fail_after(20):
            await memory.wait_for_headroom(2 << 20)
        assert memory.usage().free >= memory._node.marks.low + (2 << 20)
        stalls = memory.vmstat["allocstall_normal"]
        for i in range(500):
            memory.put_nowait(("more", i), noise(i))
        assert memory.vmstat["allocstall_normal"] == stalls
        for i in range(nr):
            assert await memory.get(i) == text(i)


async def test_many_who_wait_for_headroom_do_not_reclaim_for_each():
    async with opened() as memory:
        await filled(memory, text)
        async with anyio.create_task_group() as tasks:
            for _ in range(20):
                tasks.start_soon(memory.wait_for_headroom, 1 << 20)
        low = memory._node.marks.low
        assert (1 << 20) <= memory.usage().free - low < (2 << 20)


async def test_who_wants_little_does_not_wait_for_who_wants_much():
    async with opened() as memory, anyio.create_task_group() as tasks:
        await filled(memory, noise)
        tasks.start_soon(memory.wait_for_headroom, 2 << 20)
        for _ in range(50):
            await checkpoint()
        await memory.delete(0)
        await memory.delete(1)
        with anyio.fail_after(20):
            await memory.wait_for_headroom(PAGE)
        tasks.cancel_scope.cancel()


async def test_where_who_reclaims_is_cancelled_another_one_goes_on():
    async with ra.open_memory("kcompressd", budget=BUDGET, swap=[]) as memory:
        await filled(memory, text)
        async with anyio.create_task_group() as tasks:
            with anyio.CancelScope() as first:

                async def second():
                    with anyio.fail_after(20):
                        await memory.wait_for_headroom(2 << 20)

                tasks.start_soon(second)
                tasks.start_soon(cancel_later, first)
                await memory.wait_for_headroom(2 << 20)


async def cancel_later(scope):
    for _ in range(3):
        await checkpoint()
    scope.cancel()


@virtual
async def test_short_stalls_wake_nobody():
    keys = range(200)
    async with watched(*keys) as (slow, memory, trigger), anyio.create_task_group() as tasks:
        tasks.start_soon(trigger.wait)
        await anyio.sleep(1)
        told, psi = [], memory._machine.cpu.psi
        notify = psi.on_pressure
        psi.on_pressure = lambda: (told.append(True), notify())
        for key in keys:
            slow.load_gate = Gate()
            async with anyio.create_task_group() as readers:
                readers.start_soon(memory.get, key)
                await anyio.sleep(0.0001)
                slow.load_gate.open()
            await anyio.sleep(0.001)
        assert len(told) <= 2
        tasks.cancel_scope.cancel()


async def test_where_nothing_can_be_reclaimed_it_waits_for_a_delete():
    async with opened() as memory:
        nr = await filled(memory, noise)
        done = []

        async def wait():
            await memory.wait_for_headroom(1 << 20)
            done.append(True)

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(wait)
            for _ in range(200):
                await checkpoint()
            assert not done
            for i in range(nr // 2):
                await memory.delete(i)
        assert done


async def test_headroom_that_can_never_be_had_is_refused_at_once():
    async with opened() as memory:
        with pytest.raises(ra.OutOfMemory, match=r"headroom of 4MiB can never be had.*ask for"):
            await memory.wait_for_headroom(BUDGET)
        with pytest.raises(ra.TopologyError, match="nbytes is -1; allowed"):
            await memory.wait_for_headroom(-1)


async def test_who_waits_for_headroom_is_told_that_the_memory_closes():
    async with anyio.create_task_group() as tasks:
        memory = await opened()
        await filled(memory, noise)

        async def wait():
            with pytest.raises(anyio.ClosedResourceError):
                await memory.wait_for_headroom(2 << 20)

        tasks.start_soon(wait)
        for _ in range(50):
            await checkpoint()
        await memory.aclose()


class Sick(MemoryBackend):
    """A store outside the budget, which takes nothing until it is well."""

    well = False
    slots_stored = 0

    def footprint(self, slots):
        return 0

    async def store_many(self, items):
        if not self.well:
            raise OSError(errno.EIO, "it is ill")
        self.slots_stored += len(items)
        await super().store_many(items)


@pytest.mark.parametrize("waiters", [1, 3])
@virtual
async def test_headroom_is_made_once_a_store_that_has_failed_takes_writes_again(waiters):
    sick = Sick()
    async with opened(swap=[{"backend": sick, "size": "16MiB"}]) as memory:
        nr = await filled(memory, noise)
        with anyio.fail_after(300):
            async with anyio.create_task_group() as tasks:
                for _ in range(waiters):  # who also must not keep each other awake
                    tasks.start_soon(memory.wait_for_headroom, 1 << 20)
                await anyio.sleep(100)
                assert not sick.slots_stored
                sick.well = True
        for i in range(nr):
            assert await memory.get(i) == noise(i)
