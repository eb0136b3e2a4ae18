"""Groups: memories within a memory, each with limits of its own, none at another's cost."""

import random
import sys
from contextlib import asynccontextmanager
from types import SimpleNamespace

import anyio
import pytest
from anyio.lowlevel import checkpoint

import reclaimactors as ra
from reclaimactors.backends.memory import MemoryBackend
from reclaimactors.policies.active_inactive import ActiveInactive
from reclaimactors.testing import FaultyBackend, Gate
from reclaimactors.topology import builtin_names

PAGE = 4096
BUDGET = 4 << 20
MAX = 1 << 20
EVERYTHING = 1 << 30


def noise(i, size=PAGE):
    return random.Random(i).randbytes(size)


def text(i, size=PAGE):
    return (b"value %d that compresses, " % i * (size // 16 + 1))[:size]


def half(i, size=PAGE):
    return noise(i, size // 2) + bytes(size - size // 2)


class Elsewhere(MemoryBackend):
    """A store that holds nothing in this process, as far as it says."""

    def footprint(self, slots):
        return 0


class Far(Elsewhere):
    """One that has nothing at hand: what it holds is loaded several folios at a time."""

    async def load_many(self, slots):
        await checkpoint()
        return super().load_now(slots)

    def load_now(self, slots):
        return None


def opened(topology="kcompressd", **spec):
    spec = {"budget": BUDGET, "swap": [], "compress": {"offload": "inline"}} | spec
    return ra.open_memory(topology, **spec)


def over(backend, **spec):
    return opened(swap=[{"backend": backend, "size": "64MiB", "timeout": 100}], **spec)


async def fill(group, nr, value=half):
    for i in range(nr):
        await group.put(i, value(i))


async def all_there(group, nr, value=half):
    for i in range(nr):
        assert await group.get(i) == value(i)


async def settle():
    for _ in range(20):
        await checkpoint()


# -- whose values and whose bytes they are


async def test_a_group_is_a_memory_of_its_own_within_its_memory():
    async with opened() as memory:
        tenants = memory.group("tenants")
        one, other = tenants.group("one", max=MAX), tenants.group("other")
        await one.put("key", b"one's")
        await other.put("key", b"the other's")
        assert (await one.get("key"), await other.get("key")) == (b"one's", b"the other's")
        assert "key" not in memory
        assert len(one) == 1
        assert len(memory) == 0
        assert one.usage().budget == MAX
        assert tenants.usage().resident == memory.usage().resident == len(b"one'sthe other's")
        assert set(memory.groups) == {"tenants"}
        assert tenants.groups["one"] is one
        assert "group 'tenants/one'" in repr(one)
        assert memory._node.check()


@pytest.mark.parametrize("topology", builtin_names())
async def test_a_group_of_many_times_its_max_keeps_to_it_and_loses_nothing(topology):
    async with opened(topology, swap=[{"backend": "file", "size": "64MiB"}]) as memory:
        hog, other = memory.group("hog", max=MAX), memory.group("other")
        await fill(other, 64, noise)
        for i in range(2000):
            await hog.put(i, half(i))
            assert hog.usage().free >= 0
        await all_there(hog, 2000)
        stat = other.vmstat
        assert (stat["pgscan"], stat["pgsteal"]) == (0, 0), "taken of one for another"
        assert hog.vmstat["pgsteal"] > 1000
        await memory.drain()
        assert memory._node.check()


async def test_a_hog_gets_no_room_that_it_does_not_have_though_its_memory_has():
    async with opened() as memory:
        hog = memory.group("hog", max=MAX)
        with pytest.raises(ra.OutOfMemory, match=r"max of 1MiB of group 'hog'"):
            await fill(hog, 1000, noise)
        assert memory.usage().free > BUDGET // 2
        await memory.put("another's", noise(1))
        with pytest.raises(ra.OutOfMemory, match=r"never fits the max .* of group 'hog'"):
            await hog.put("large", noise(1, 2 * MAX))


async def test_who_waits_below_his_max_holds_up_nobody_else():
    gate = Gate()
    backend = FaultyBackend(Elsewhere())
    async with over(backend) as memory:
        hog, other = memory.group("hog", max=MAX), memory.group("other")
        backend.store_gate = gate
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(fill, hog, 600, noise)
            await gate.entered.wait()
            while not hog._admission.queued:
                await checkpoint()
            for i in range(100):
                await other.put(i, noise(i))  # nothing that it waits for can come
            assert hog._admission.queued
            backend.store_gate = None
            gate.open()
        await all_there(hog, 600, noise)


async def test_puts_without_waiting_say_which_limit_is_in_the_way():
    async with opened() as memory:
        group = memory.group("group", max=MAX)
        inner = group.group("inner")
        for i in range(230):
            inner.put_nowait(i, noise(i))
        with pytest.raises(ra.OutOfMemory, match="group 'group'"):
            inner.put_nowait("large", noise(1, 30 * PAGE))
        memory.put_nowait("another's", noise(1))


async def test_many_puts_have_one_admission_in_a_group_too():
    async with over(Elsewhere()) as memory:
        group = memory.group("group", max=MAX)
        await group.put_many({i: half(i) for i in range(1000)})
        assert await group.get_many(range(1000)) == {i: half(i) for i in range(1000)}


async def test_a_group_above_its_high_is_reclaimed_in_the_background():
    async with opened() as memory:
        group = memory.group("group", high=MAX)
        await fill(group, 512, text)
        await memory.drain()
        usage = group.usage()
        assert usage.budget - usage.free <= MAX
        assert group.vmstat["high"] > 0
        await all_there(group, 512, text)


# -- what is counted


async def test_what_happens_to_a_group_is_counted_in_it_and_in_those_that_it_is_in():
    async with over(Elsewhere()) as memory:
        outer = memory.group("outer")
        inner, other = outer.group("inner"), outer.group("other")
        await fill(inner, 20, text)
        assert await inner.reclaim(EVERYTHING) > 0
        await all_there(inner, 20, text)
        stat = inner.vmstat
        assert stat["pgsteal"] == stat["pgscan"] == 20
        assert stat["zswpout"] == stat["zswpin"] == stat["pgfault"] == 20
        assert outer.vmstat == stat
        assert not any(other.vmstat.values())
        assert memory.vmstat["zswpin"] == 20


@asynccontextmanager
async def held_up():
    """A group whose values are on a store that reads nothing until the gate is opened."""
    gate, backend = Gate(), FaultyBackend(Elsewhere())
    async with over(backend) as memory:
        group = memory.group("group")
        await fill(group, 8, noise)
        await memory.reclaim(EVERYTHING)
        await memory.drain()
        backend.load_gate = gate
        yield memory, group, gate


async def test_who_waits_in_a_group_is_pressure_of_it_and_of_what_it_is_in():
    async with held_up() as (memory, group, gate):
        other = memory.group("other")
        async with (
            group.pressure_trigger("some", stall_us=1000, window_us=1_000_000) as trigger,
            anyio.create_task_group() as tasks,
        ):
            tasks.start_soon(group.get, 1)
            await trigger.wait()
            gate.open()
        assert group.pressure().some.total > 0
        assert memory.pressure().some.total > 0
        assert other.pressure().some.total == 0


async def test_a_trigger_of_a_group_that_waits_already_is_woken_by_a_stall_in_it():
    fired = anyio.Event()
    async with (
        held_up() as (_, group, gate),
        group.pressure_trigger("some", stall_us=1000, window_us=1_000_000) as trigger,
        anyio.create_task_group() as tasks,
    ):

        async def watch():
            await trigger.wait()
            fired.set()

        tasks.start_soon(watch)
        await settle()
        tasks.start_soon(group.get, 1)
        with anyio.fail_after(10):
            await fired.wait()
        gate.open()


async def test_headroom_of_a_group_is_made_of_it():
    async with opened() as memory:
        group, other = memory.group("group", max=MAX), memory.group("other")
        await fill(other, 100)
        await fill(group, 200)
        await group.wait_for_headroom(MAX // 4)
        assert group.usage().free >= MAX // 4
        assert other.vmstat["pgscan"] == 0
        with pytest.raises(ra.OutOfMemory, match="max of group 'group'"):
            await group.wait_for_headroom(MAX)


@pytest.mark.parametrize("offload", ["inline", "thread", "process"])
async def test_the_cpu_of_workers_is_charged_to_the_group_that_caused_it(offload):
    async with opened(compress={"offload": offload}) as memory:
        much, little, none = (memory.group(name) for name in ("much", "little", "none"))
        await fill(much, 300)
        await fill(little, 30)
        await memory.reclaim(EVERYTHING)
        await memory.drain()
        usec = {group: group.vmstat["compress_usec"] for group in (much, little, none)}
        assert usec[none] == 0
        assert min(usec[much], usec[little]) > 0
        assert sum(usec.values()) == memory.vmstat["compress_usec"]


# -- proactive writeback


async def test_blobs_of_a_group_go_to_a_device_where_just_that_is_asked():
    async with over(Elsewhere()) as memory:
        group, other = memory.group("group"), memory.group("other")
        for each in (group, other):
            await fill(each, 100)
            await each.reclaim(EVERYTHING)
        pool = memory.vmstat["pool_total_size"]
        assert await group.reclaim(20_000, zswap_writeback_only=True) >= 20_000
        assert group.vmstat["zswpwb_proactive"] == memory.vmstat["zswpwb_proactive"] >= 9
        assert other.vmstat["zswpwb"] == 0
        assert memory.vmstat["pool_total_size"] <= pool - 20_000
        assert await memory.reclaim(EVERYTHING, zswap_writeback_only=True) > 100_000
        assert memory.vmstat["pool_total_size"] == 0
        assert await memory.reclaim(EVERYTHING, zswap_writeback_only=True) == 0
        await all_there(group, 100)
        await all_there(other, 100)


async def test_writeback_that_nobody_can_do_ends():
    async with opened() as memory:
        await fill(memory, 100)
        await memory.reclaim(EVERYTHING)
        assert await memory.reclaim(EVERYTHING, zswap_writeback_only=True) == 0
    async with over(Elsewhere()) as memory:
        group = memory.group("group", zswap_writeback=False)
        await fill(group, 100)
        await group.reclaim(EVERYTHING)
        assert await group.reclaim(EVERYTHING, zswap_writeback_only=True) == 0
        assert await memory.reclaim(EVERYTHING, zswap_writeback_only=True) == 0
        assert not memory._node.writeback.asked


# -- limits


BAD = [
    ({"max": -1}, "max is -1"),
    ({"max": "1KiB"}, "max is '1KiB'"),
    ({"max": "much"}, "max is 'much'"),
    ({"high": "2MiB", "max": "1MiB"}, "high is '2MiB'; allowed: up to max, which is 1MiB"),
    ({"swap_max": 1.5}, "swap_max is 1.5"),
    ({"zswap_writeback": "no"}, "zswap_writeback is 'no'"),
    ({"swap": ["file7"]}, "swap is 'file7'; allowed: names of swap devices: Elsewhere0"),
    ({"swap": "Elsewhere0"}, "swap is 'Elsewhere0'; allowed: a list of"),
]


@pytest.mark.parametrize(("limits", "says"), BAD)
async def test_a_limit_that_is_none_is_named(limits, says):
    async with over(Elsewhere()) as memory:
        with pytest.raises(ra.TopologyError, match=says):
            memory.group("group", **limits)
        assert not memory.groups


async def test_a_group_may_have_nothing_of_the_pool_or_of_swap():
    async with over(Elsewhere()) as memory:
        spilled = memory.group("spilled", zswap_max=0)
        kept = memory.group("kept", swap_max=0)
        for group in (spilled, kept):
            await fill(group, 50)
            await group.reclaim(EVERYTHING)
        await memory.drain()
        assert (spilled.usage().compressed, kept.usage().swapped) == (0, 0)
        assert spilled.usage().swapped > 0
        await all_there(spilled, 50)
        await all_there(kept, 50)


async def test_a_name_is_of_one_group():
    async with opened() as memory:
        memory.group("group")
        with pytest.raises(ra.TopologyError, match="name is 'group'; allowed: one that no other"):
            memory.group("group")
        for name in ("", "a/b", 1):
            with pytest.raises(ra.TopologyError, match="name is"):
                memory.group(name)


async def test_a_policy_that_is_an_object_is_of_one_list():
    async with opened(policy=ActiveInactive(pages=1024)) as memory:
        with pytest.raises(ra.TopologyError, match=r"name the policy .* 'reclaimactors\.policies"):
            memory.group("group")
        assert not memory.groups


async def test_a_lower_max_is_reclaimed_first_and_refused_where_that_cannot_be():
    async with opened() as memory:
        group = memory.group("group", max=2 * MAX)
        await fill(group, 400, text)
        await group.set_limits(max=MAX)
        assert group.usage().budget == MAX
        assert group.usage().free >= 0
        await all_there(group, 400, text)
        async with group.pin(1):
            with pytest.raises(ra.OutOfMemory, match="is pinned"):
                await group.set_limits(max="64KiB")
        assert group.usage().budget == MAX
        await group.set_limits(max=None)
        assert group.usage().budget == BUDGET
        with pytest.raises(ra.TopologyError, match="high is '2MiB'; allowed: up to max"):
            await group.set_limits(max=MAX, high="2MiB")
        with pytest.raises(ra.TopologyError, match="budget"):
            await memory.set_limits(max=MAX)


async def test_a_lower_max_writes_back_what_is_compressed_already():
    async with over(Elsewhere()) as memory:
        group = memory.group("group", max=2 * MAX)
        await fill(group, 500)
        await group.reclaim(EVERYTHING)
        await group.set_limits(max=MAX // 4)
        assert group.usage().budget == MAX // 4
        assert memory.vmstat["zswpwb"] > 0
        await all_there(group, 500)


async def test_a_group_without_writeback_goes_to_no_store():
    backend = Elsewhere()
    async with over(backend) as memory:
        group = memory.group("group", max=MAX, zswap_writeback=False)
        with pytest.raises(ra.OutOfMemory, match="group 'group' may not use swap"):
            await fill(group, 1000, noise)
        assert group.usage().swapped == 0
        assert memory.vmstat["pswpout"] == 0
        await group.set_limits(zswap_writeback=True)
        await fill(group, 1000, noise)
        assert group.usage().swapped > 0


# -- swapoff


@pytest.mark.parametrize("store", [Elsewhere, Far])
async def test_what_a_store_holds_of_several_groups_comes_back_to_each(store):
    async with over(store()) as memory:
        groups = [memory, memory.group("one", max=MAX), memory.group("other", max=MAX)]
        for i in range(60):  # their rows are mixed
            for group in groups:
                await group.put(i, noise(i))
        await memory.reclaim(EVERYTHING)
        await memory.drain()
        assert all(group.usage().swapped for group in groups)
        await memory.swapoff(memory.swaps()[0].name)
        assert [group.usage().swapped for group in groups] == [0, 0, 0]
        for group in groups:
            await all_there(group, 60, noise)
        assert memory._node.memcg.reserved == 0
        assert memory._node.check()


@pytest.mark.parametrize("store", [Elsewhere, Far])
async def test_a_store_stays_on_where_a_group_has_no_room_for_what_it_holds(store):
    async with over(store()) as memory:
        group = memory.group("group", max=MAX)
        await fill(group, 600, noise)
        name = memory.swaps()[0].name
        with pytest.raises(ra.OutOfMemory, match=f"swap '{name}' stays on, .* of group 'group'"):
            await memory.swapoff(name)
        await all_there(group, 600, noise)
        assert memory._node.check()


async def test_a_group_that_ends_in_the_middle_of_a_swapoff_does_not_end_that():
    async with over(Elsewhere()) as memory:
        group = memory.group("group", max=2 * MAX)
        await fill(group, 300, noise)
        await memory.reclaim(EVERYTHING)
        await memory.drain()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(memory.swapoff, memory.swaps()[0].name)
            await settle()
            await group.delete(reparent=True)
        assert not memory.swaps()
        await all_there(memory, 300, noise)
        assert memory._node.check()


# -- the end


@asynccontextmanager
async def busy(**spec):
    """A group whose values are everywhere, a store that holds a load, and a put that waits."""
    backend, gate = FaultyBackend(Elsewhere()), Gate()
    async with over(backend, **spec) as memory:
        group = memory.group("group", max=MAX)
        await fill(group, 100, noise)
        await group.reclaim(EVERYTHING)
        await fill(group, 100, text)
        await group.reclaim(EVERYTHING)
        await memory.drain()
        for i in range(100, 120):
            await group.put(i, noise(i))
        await group.put("large", noise(7, 20 * PAGE))
        backend.store_gate = gate
        try:
            yield memory, group
        finally:
            backend.store_gate = None
            gate.open()


async def test_values_of_a_group_that_ends_become_those_of_the_one_that_it_is_in():
    async with busy() as (memory, group):
        await group.delete(reparent=True)
        assert not memory.groups
        assert len(memory) == 121
        assert memory._node.check()
        # its store answers again
        memory._machine.swapds[0].backend.store_gate = None
        await all_there(memory, 100, text)
        assert await memory.get("large") == noise(7, 20 * PAGE)
        assert memory._node.check()


async def test_values_of_a_group_that_ends_are_forgotten_where_that_is_asked():
    async with busy() as (memory, group):
        await group.delete(reparent=False)
        assert len(memory) == 0
    async with opened() as memory:
        group = memory.group("group")
        await fill(group, 100)
        await group.delete(reparent=False)
        await memory.drain()
        assert memory.usage().free == BUDGET
        with pytest.raises(anyio.ClosedResourceError, match="group 'group' was deleted"):
            await group.get(1)
        again = memory.group("group")
        assert len(again) == 0


async def test_another_thread_may_look_while_groups_come_and_go():
    async with opened() as memory:
        first = memory.group("first")
        going_through = memory._group.subtree()
        assert [next(going_through), next(going_through)] == [memory._group, first._group]
        memory.group("second")
        await first.delete(reparent=False)
        assert [*going_through] == [], "as they were when it began"
        assert memory.usage().free == BUDGET


async def test_who_is_in_a_call_of_a_group_that_ends_is_told():
    gate = Gate()
    backend = FaultyBackend(Elsewhere())
    async with over(backend) as memory:
        group = memory.group("group", max=MAX)
        backend.store_gate = gate
        told = []

        async def puts():
            with pytest.raises(anyio.ClosedResourceError, match="'group' was deleted"):
                await fill(group, 600, noise)
            told.append(True)

        async with anyio.create_task_group() as tasks:
            for _ in range(3):
                tasks.start_soon(puts)
            await gate.entered.wait()
            while group._admission.queued < 3:
                await checkpoint()
            await group.delete(reparent=False)
            backend.store_gate = None
            gate.open()
        assert told == [True] * 3
        await memory.drain()
        assert memory._node.check()
        assert memory.usage().free == BUDGET


async def test_who_waits_for_pressure_or_for_writeback_of_a_group_that_ends_goes_on():
    gate, backend = Gate(), FaultyBackend(Elsewhere())
    async with over(backend) as memory:
        group = memory.group("group")
        await fill(group, 50)
        await group.reclaim(EVERYTHING)
        backend.store_gate = gate
        freed, told = [], []

        async def write_back():
            freed.append(await group.reclaim(EVERYTHING, zswap_writeback_only=True))

        async def watch():
            async with group.pressure_trigger("some", stall_us=1, window_us=1000) as trigger:
                with pytest.raises(anyio.ClosedResourceError, match="'group' was deleted"):
                    await trigger.wait()
                told.append(True)

        with anyio.fail_after(10):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(write_back)
                tasks.start_soon(watch)
                await gate.entered.wait()
                await group.delete(reparent=True)
        assert (freed, told) == ([0], [True])
        gate.open()
        await all_there(memory, 50)


CALLS = {
    "get": lambda group: group.get(1),
    "get with a default": lambda group: group.get(1, None),
    "get_many": lambda group: group.get_many([1, 2, 3]),
    "pop": lambda group: group.pop(1),
    "put_if": lambda group: group.put_if(1, b"new", noise(1)),
    "pin": lambda group: group.pin(1).__aenter__(),
}


@pytest.mark.parametrize("call", CALLS)
async def test_who_reads_from_a_store_for_a_group_that_is_forgotten_meanwhile_is_told(call):
    async with held_up() as (memory, group, gate):
        told = []

        async def reads():
            try:
                told.append(await CALLS[call](group))
            except anyio.ClosedResourceError as exc:
                told.append(str(exc))

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(reads)
            await settle()
            await group.delete(reparent=False)
            gate.open()
        was = {"get": noise(1), "get with a default": noise(1)}  # it was there as it was asked for
        assert told[0] in {"group 'group' was deleted", was.get(call)}
        assert len(memory) == 0
        await memory.drain()
        assert memory.usage().free == BUDGET
        assert memory._node.check()


async def test_a_group_that_holds_others_or_a_key_of_its_parents_does_not_end():
    async with opened() as memory:
        outer = memory.group("outer")
        inner = outer.group("inner")
        with pytest.raises(ra.TopologyError, match="holds groups 'inner'"):
            await outer.delete(reparent=True)
        await inner.put("key", b"1")
        await outer.put("key", b"2")
        with pytest.raises(ra.TopologyError, match="key 'key' of group 'outer/inner'"):
            await inner.delete(reparent=True)
        assert await inner.get("key") == b"1"
        await inner.delete(reparent=False)
        assert await outer.get("key") == b"2"


async def test_a_delete_says_what_it_deletes():
    async with opened() as memory:
        group = memory.group("group")
        for args, kwargs in (((), {}), (("key",), {"reparent": True})):
            with pytest.raises(TypeError, match="a key, or reparent"):
                await group.delete(*args, **kwargs)
        with pytest.raises(TypeError, match="aclose"):
            await memory.delete(reparent=True)
        with pytest.raises(TypeError, match="delete"):
            await group.aclose()


class Refuses(ActiveInactive):
    """A policy that raises once it is told to, at each `remove`."""

    told = False

    def remove(self, pfn):
        if Refuses.told:
            raise RuntimeError("told")
        super().remove(pfn)


async def test_an_end_that_a_policy_fails_may_be_tried_again(monkeypatch):
    monkeypatch.setitem(sys.modules, "test_groups_policy", SimpleNamespace(Refuses=Refuses))
    async with opened(policy="test_groups_policy:Refuses") as memory:
        group = memory.group("group")
        await fill(group, 100)
        Refuses.told = True
        with pytest.raises(RuntimeError, match="told"):
            await group.delete(reparent=True)
        Refuses.told = False
        with pytest.raises(anyio.ClosedResourceError):
            await group.get(1)
        await group.delete(reparent=True)
        await all_there(memory, 100)
        assert memory._node.check()
        with pytest.raises(anyio.ClosedResourceError, match="'group' was deleted"):
            await group.delete(reparent=True)


async def test_a_pin_outlives_its_group():
    async with opened() as memory:
        group = memory.group("group")
        await group.put("key", noise(1))
        async with group.pin("key") as view:
            await group.delete(reparent=True)
            assert view == noise(1)
            assert await memory.reclaim(EVERYTHING) == 0
        assert memory._node.memcg.pinned == 0
        assert memory._node.check()


async def test_a_group_ends_with_its_memory():
    async with opened() as memory:
        group = memory.group("group")
        await group.put("key", b"value")
    with pytest.raises(anyio.ClosedResourceError):
        await group.get("key")
    assert "key" in group
