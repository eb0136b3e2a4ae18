"""`expires_in` and `discardable`: values that end at a time, and values that reclaim may drop."""

from __future__ import annotations

import itertools
import math

import anyio
import pytest
from anyio.lowlevel import checkpoint

import reclaimactors as ra
from reclaimactors.cpu import breath as breath_module
from reclaimactors.policies.active_inactive import ActiveInactive

virtual = pytest.mark.asyncio(loop_factories=["virtual"])
SPEC = {"budget": "1MiB", "swap": [], "compress": {"offload": "inline"}}
READS = {
    "get": lambda memory: memory.get("key"),
    "get_writable": lambda memory: memory.get_writable("key"),
    "pop": lambda memory: memory.pop("key"),
    "delete": lambda memory: memory.delete("key"),
    "pin": lambda memory: memory.pin("key").__aenter__(),
}


def now():
    return anyio.current_time()


async def sleep_until(when):
    await anyio.sleep(when - now())


@virtual
@pytest.mark.parametrize("size", [0, 9, 600_000])
@pytest.mark.parametrize("read", READS)
async def test_a_read_is_exact_by_the_loops_clock(read, size):
    async with ra.open_memory(**SPEC) as memory:
        begun = now()
        await memory.put("key", bytes(size), expires_in=7.25)
        await sleep_until(begun + 7.24)
        assert "key" in memory
        assert memory.keys() == ["key"]
        assert await memory.get("key") == memory.get_nowait("key") == bytes(size)
        assert await memory.get_many(["key"]) == {"key": bytes(size)}
        assert memory.expires_in("key") == pytest.approx(0.01)
        memory._machine.sweeper.noted = memory._values.expiry.next = math.inf  # nobody sweeps
        await sleep_until(begun + 7.25)
        assert "key" not in memory
        assert memory.keys() == []
        assert len(memory) == 1  # until somebody comes by
        with pytest.raises(KeyError):
            await READS[read](memory)
        assert len(memory) == 0
        assert memory.vmstat["expired_keys"] == memory.stats().expired_keys == 1
        assert memory.usage().overhead == 0


@virtual
async def test_those_that_do_not_raise_do_not_find_it_either():
    async with ra.open_memory(**SPEC) as memory:
        for key in "abcdef":
            await memory.put(key, b"value", expires_in=1.5)
        await memory.put("stays", b"value")
        await anyio.sleep(1.5)
        assert await memory.get("a", None) is None
        assert await memory.pop("b", None) is None
        assert await memory.get_many(["c", "stays"]) == {"stays": b"value"}
        assert await memory.delete_many(["d", "stays"]) == 1
        with pytest.raises(KeyError):
            memory.get_nowait("e")
        with pytest.raises(KeyError):
            memory.advise("f", ra.Advice.COLD)
        with pytest.raises(KeyError):
            memory.expires_in("f")
        assert memory.keys() == []


@virtual
async def test_what_nobody_reads_is_swept_within_a_second_or_an_eighth():
    async with ra.open_memory(**SPEC) as memory:
        for seconds in (0.5, 3, 100, 4000):
            await memory.put(seconds, b"value", expires_in=seconds)
        await anyio.sleep(1.1)
        assert len(memory) == 3
        await anyio.sleep(2)
        assert len(memory) == 2
        await sleep_until(112)
        assert len(memory) == 1
        await sleep_until(4500)
        assert len(memory) == 0
        assert memory.vmstat["expired_keys"] == 4
        assert memory.usage().free == memory.usage().budget


@virtual
async def test_a_shorter_time_that_comes_later_is_swept_first():
    async with ra.open_memory(**SPEC) as memory:
        await memory.put("long", b"value", expires_in=1000)
        await anyio.sleep(1)  # the sweeper sleeps by now
        await memory.put("short", b"value", expires_in=1)
        await anyio.sleep(2)
        assert len(memory) == 1


@virtual
async def test_many_are_swept_a_slice_at_a_time(monkeypatch):
    monkeypatch.setattr(breath_module, "TURN_S", 0.0)  # each breath is a turn
    async with ra.open_memory(**SPEC) as memory:
        await memory.put_many({i: b"%d" % i for i in range(300)}, expires_in=5)
        left = [len(memory)]
        await sleep_until(5)
        while left[-1]:
            await checkpoint()
            left.append(len(memory))
        assert max(before - after for before, after in itertools.pairwise(left)) <= 2


@virtual
async def test_nothing_runs_for_it_before_the_first_one():
    async with ra.open_memory(**SPEC) as memory:
        starter = memory._machine.starter
        await memory.put("key", b"value")
        assert "sweeper" not in starter.actors
        await memory.put("key", b"value", expires_in=1)
        await memory.put("other", b"value", expires_in=1)
        assert "sweeper" in starter.actors
        assert not starter.started  # the others wait for pressure


@virtual
async def test_the_last_put_says_how_long():
    async with ra.open_memory(**SPEC) as memory:
        await memory.put("key", b"1", expires_in=1)
        await memory.put("key", b"2", expires_in=10)
        assert memory.expires_in("key") == 10
        await anyio.sleep(5)
        assert await memory.get("key") == b"2"
        await memory.put("key", b"3")
        assert memory.expires_in("key") is None
        await anyio.sleep(100)
        assert await memory.get("key") == b"3"
        await memory.put("key", b"4", expires_in=0)
        assert "key" not in memory


@virtual
async def test_put_if_finds_a_value_whose_time_is_over_absent():
    async with ra.open_memory(**SPEC) as memory:
        assert await memory.put_if("key", b"1", None, expires_in=2)
        assert not await memory.put_if("key", b"2", None)
        assert await memory.put_if("key", b"3", b"1", expires_in=2)
        await anyio.sleep(2)
        assert not await memory.put_if("key", b"4", b"3")
        assert await memory.put_if("key", b"5", None)
        await anyio.sleep(60)
        assert await memory.get("key") == b"5"


@virtual
async def test_put_if_that_waits_for_room_while_the_time_runs_out_is_refused(monkeypatch):
    async with ra.open_memory(**SPEC) as memory:
        await memory.put("key", b"old", expires_in=10)
        reserve = memory._admission.reserve

        async def after_a_while(*args):
            await anyio.sleep(10)
            return await reserve(*args)

        monkeypatch.setattr(memory._admission, "reserve", after_a_while)
        memory._machine.sweeper.noted = memory._values.expiry.next = math.inf  # nobody sweeps
        assert not await memory.put_if("key", b"new" * 1000, b"old")
        assert "key" not in memory


@virtual
async def test_values_that_end_are_reclaimed_as_others_are():
    async with ra.open_memory(**SPEC) as memory:
        values = {i: b"value %d " % i * 500 for i in range(400)}
        await memory.put_many(values, expires_in=60)
        await memory.drain()
        assert memory.usage().compressed > 0
        assert {i: await memory.get(i) for i in values} == values
        await anyio.sleep(70)
        assert len(memory) == 0
        await memory.drain()
        assert memory.usage().free == memory.usage().budget
        assert memory._node.check()


@virtual
async def test_of_a_group_as_well():
    async with ra.open_memory(**SPEC) as memory:
        group = memory.group("g", max="256KiB")
        await group.put("key", b"value", expires_in=3)
        await memory.put("key", b"other")
        await anyio.sleep(4)
        assert (len(group), len(memory)) == (0, 1)
        assert group.vmstat["expired_keys"] == group.stats().expired_keys == 1


class Refuses(ActiveInactive):
    """A policy that raises at its first `remove`."""

    refuses = True

    def remove(self, pfn):
        super().remove(pfn)
        if self.refuses:
            self.refuses = False
            raise RuntimeError("a bug in my policy")


@virtual
async def test_a_sweep_that_fails_is_done_again():
    async with ra.open_memory(**SPEC, policy=Refuses(pages=256)) as memory:
        await memory.put("key", b"value", expires_in=2)
        await anyio.sleep(10)
        assert len(memory) == 0
        assert memory.vmstat["actor_restarts"] == 1


@pytest.mark.parametrize("bad", [-1, math.nan, math.inf, "60", True])
async def test_a_time_that_is_none_is_refused(bad):
    async with ra.open_memory(**SPEC) as memory:
        with pytest.raises(ra.TopologyError, match=r"expires_in is .*; allowed: a number from 0"):
            await memory.put("key", b"value", expires_in=bad)
        assert len(memory) == 0


# -- discardable ----------------------------------------------------------------------------------


async def test_nothing_but_discardable_values_is_a_cache_without_out_of_memory():
    async with ra.open_memory(**SPEC) as memory:
        for i in range(2000):
            await memory.put(i, b"%d " % i * 1000, discardable=True)
        await memory.drain()  # kswapd is done
        stats = memory.stats()
        assert stats.pglazyfreed_pages == memory.vmstat["pglazyfreed"] > 0
        assert stats.zswpout_pages == stats.pswpout_pages == 0
        kept = memory.keys()
        assert kept
        assert len(kept) == len(memory) < 2000
        assert 1999 in memory
        for i in kept:
            assert await memory.get(i) == b"%d " % i * 1000
        with pytest.raises(KeyError):
            await memory.get(next(i for i in range(2000) if i not in memory))
        assert memory._node.check()


@pytest.mark.parametrize("size", [0, 10, 200_000, 700_000])
async def test_of_any_size_as_well(size):
    async with ra.open_memory(**SPEC) as memory:
        for i in range(4000 if size <= 10 else 40):
            await memory.put(i, bytes(size), discardable=True)
        assert i in memory
        await memory.put("large", b"x" * 800_000)  # what they cost beside their bytes goes as well
        assert await memory.get("large") == b"x" * 800_000
        assert memory._node.check()


async def test_those_beside_others_go_and_the_others_stay():
    async with ra.open_memory(**SPEC) as memory:
        values = {i: b"kept %d " % i * 300 for i in range(200)}
        for i, value in values.items():
            await memory.put(i, value)
            await memory.put(("cache", i), bytes(3000), discardable=True)
        await memory.reclaim(1 << 30)
        assert len(memory) == 200
        assert {i: await memory.get(i) for i in values} == values


async def test_a_put_makes_it_normal_and_a_discardable_put_of_a_normal_one_does_the_reverse():
    async with ra.open_memory(**SPEC) as memory:
        await memory.put("key", b"1" * 3000, discardable=True)
        await memory.put("key", b"2" * 3000)
        await memory.put("other", b"1" * 3000)
        assert await memory.put_if("other", b"2" * 3000, b"1" * 3000, discardable=True)
        await memory.reclaim(1 << 30)
        assert memory.keys() == ["key"]
        assert await memory.get("key") == b"2" * 3000


async def test_one_that_is_pinned_stays_as_long():
    async with ra.open_memory(**SPEC) as memory:
        await memory.put("key", b"v" * 3000, discardable=True)
        async with memory.pin("key") as view:
            await memory.reclaim(1 << 30)
            assert view == b"v" * 3000
            assert "key" in memory
        assert await memory.reclaim(1 << 30) >= 3000
        assert "key" not in memory


async def test_a_hit_of_one_is_the_object_that_is_held():
    async with ra.open_memory(**SPEC) as memory:
        value = b"v" * 3000
        await memory.put("key", value, discardable=True)
        assert await memory.get("key") is value


async def test_objects_have_terms_too():
    async with ra.open_memory(**SPEC) as memory:
        objects = ra.Objects(memory)
        await objects.put("key", {"any": "thing"}, expires_in=60, discardable=True)
        assert await objects.get("key") == {"any": "thing"}
        assert 50 < (memory.expires_in("key") or 0) <= 60
        await memory.reclaim(1 << 30)
        assert "key" not in objects


@pytest.mark.parametrize("writable", [False, True])
async def test_a_recorded_memory_takes_terms_and_notes_one_request_for_each(tmp_path, writable):
    trace = tmp_path / "requests.csv"
    async with ra.open_memory(**SPEC, record=trace) as memory:
        await memory.put("key", b"value", expires_in=60)
        await memory.put_many({"key": b"value"}, discardable=True, expires_in=60)
        assert await memory.put_if("key", b"other", b"value", expires_in=60)
        read = memory.get_writable if writable else memory.get
        assert await read("key") == b"other"
    assert [line.count("SET") for line in trace.read_text().splitlines()].count(1) == 3
    assert sum("GET" in line for line in trace.read_text().splitlines()) == 1


def test_threads_find_the_same():
    with ra.open_blocking(**SPEC) as store:
        store.run(ra.Memory.put, "key", b"value", expires_in=3600)
        assert store["key"] == b"value"
        store.run(ra.Memory.put, "key", b"other", expires_in=0)
        assert "key" not in store
        assert store.get("key") is None
        assert list(store) == []
