"""get_many, put_many, delete_many, pop, put_if, and a get with a default."""

import random

import anyio
import pytest

import reclaimactors as ra
from reclaimactors.callers import batches
from reclaimactors.mm.folio import DEVICE
from reclaimactors.policies.mglru import Mglru
from reclaimactors.testing import FaultyBackend, Gate

PAGE = 4096
EVERYTHING = 1 << 30


class Elsewhere(ra.Backend):
    """A store that is asked in a lane, and says that it holds nothing in this process."""

    def __init__(self):
        self.slots = {}

    async def store_many(self, items):
        self.slots.update(items)

    async def load_many(self, slots):
        return [self.slots[slot] for slot in slots]

    async def invalidate_many(self, slots):
        for slot in slots:
            self.slots.pop(slot, None)


def noise(seed=0, size=PAGE):
    return random.Random(seed).randbytes(size)


def open_memory(*stores, **overrides):
    spec = {
        "budget": 1 << 20,
        "max_folio": 4 * PAGE,
        "watermarks": {"min": 100_000, "low": 300_000, "high": 500_000},
        "compress": {"offload": "inline", "fifo": 16, "batch": 32},
        "zswap": {"enabled": False},
        "swap": [{"backend": store, "size": "8MiB"} for store in stores],
    }
    return ra.open_memory("kcompressd", **spec | overrides)


async def away(memory, *keys):
    """Have everything go to the store."""
    await memory.reclaim(EVERYTHING)
    await memory.drain()
    node = memory._node
    assert {node.mm.state[node.values.pfns(key)[0]] for key in keys} == {DEVICE}


async def test_a_get_with_a_default():
    async with open_memory() as memory:
        await memory.put("a", b"value")
        assert await memory.get("a", None) == b"value"
        assert await memory.get("b", None) is None
        assert await memory.get("b", 7) == 7


async def test_a_key_error_of_the_store_is_no_absent_key():
    class Forgetful(Elsewhere):
        async def load_many(self, slots):
            raise KeyError("its own")

    async with open_memory(Forgetful()) as memory:
        await memory.put("a", noise())
        await away(memory, "a")
        with pytest.raises(ra.BackendError, match="its own"):
            await memory.get("a", None)
        with pytest.raises(ra.BackendError, match="its own"):
            await memory.get_many(["a"])
        with pytest.raises(ra.BackendError, match="its own"):
            await memory.pop("a", None)
        assert "a" in memory


@pytest.mark.parametrize("keys", [[], ["a"], ["x"], ["c", "x", "a", "b", "a"]])
async def test_get_many_gives_what_is_there_in_the_order_asked(keys):
    held = {"a": noise(1), "b": noise(2, 50_000), "c": bytes(PAGE)}
    async with open_memory(Elsewhere()) as memory:
        await memory.put_many(held)
        for _ in range(2):
            got = await memory.get_many(iter(keys))
            assert got == {key: held[key] for key in keys if key in held}
            assert list(got) == list(dict.fromkeys(key for key in keys if key in held))
            await memory.reclaim(EVERYTHING)


async def test_get_many_asks_a_store_once_for_many():
    calls = []

    class Counting(Elsewhere):
        async def load_many(self, slots):
            calls.append(len(slots))
            return await super().load_many(slots)

    held = {i: noise(i) for i in range(batches.MOST_LOADS + 10)}
    async with open_memory(Counting()) as memory:
        await memory.put_many(held)
        await away(memory, *held)
        assert await memory.get_many(held) == held
        assert sum(calls) == len(held)
        assert len(calls) <= 4
        assert memory._node.check()


async def test_a_key_that_is_deleted_while_its_store_is_asked_comes_back_as_it_was():
    gate = Gate()
    async with open_memory(FaultyBackend(Elsewhere(), load_gate=gate)) as memory:
        await memory.put_many({"a": noise(1), "b": noise(2)})
        await away(memory, "a", "b")
        got = {}

        async def read():
            got.update(await memory.get_many(["a", "b"]))

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(read)
            await gate.entered.wait()
            await memory.delete("a")
            gate.open()
        assert got == {"a": noise(1), "b": noise(2)}
        await memory.drain()
        assert memory._node.check()


@pytest.mark.parametrize("kind", ["bytes", "buffers", "large"])
@pytest.mark.parametrize("nr", [1, 3, 150, 400])
async def test_put_many_puts_all_of_them_whatever_the_pressure(nr, kind):
    make = {
        "bytes": lambda i: noise(i, 2000),
        "buffers": lambda i: memoryview(noise(i, 2000))[::2] if i % 2 else bytearray(noise(i, 99)),
        "large": lambda i: noise(i, 5 * PAGE if i % 10 == 0 else 300),
    }[kind]
    async with open_memory(Elsewhere()) as memory:
        await memory.put(0, b"old")
        await memory.put_many((i, make(i)) for i in range(nr))
        assert len(memory) == nr
        for i in range(nr):
            assert await memory.get(i) == bytes(make(i))
        await memory.drain()
        assert memory._node.check()


async def test_a_batch_waits_once_in_the_brake():
    async with open_memory(Elsewhere()) as memory:
        await memory.put_many({i: noise(i) for i in range(170)})
        entered = []
        brake = memory._admission.brake

        async def counted(size, stall):
            entered.append(size)
            await brake(size, stall)

        memory._admission.brake = counted
        await memory.put_many({i: noise(i) for i in range(200, 230)})
        assert len(entered) <= 3  # a sixteenth of the budget each
        assert memory._node.check()


async def test_a_value_that_is_none_leaves_all_as_it_was():
    async with open_memory() as memory:
        await memory.put("a", b"old")
        with pytest.raises(TypeError, match="not str"):
            await memory.put_many({"a": b"new", "b": "text"})
        with pytest.raises(ra.OutOfMemory, match="never fits"):
            await memory.put_many({"a": b"new", "b": bytes(2 << 20)})
        assert await memory.get_many(["a", "b"]) == {"a": b"old"}


async def test_where_nothing_can_be_freed_the_first_keys_are_put():
    held = {i: noise(i, 30_000) for i in range(60)}
    async with open_memory() as memory:
        with pytest.raises(ra.OutOfMemory):
            await memory.put_many(held)
        there = await memory.get_many(held)
        assert 0 < len(there) < 60
        assert there == {i: held[i] for i in range(len(there))}
        assert memory._node.check()
        assert not memory._node.memcg.reserved


async def test_a_cancelled_batch_leaves_every_key_old_or_new():
    gate = Gate()
    old = {i: noise(i) for i in range(170)}
    new = {i: noise(-i, 5000) for i in range(170)}
    async with open_memory(FaultyBackend(Elsewhere(), store_gate=gate)) as memory:
        await memory.put_many(old)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(memory.put_many, new)
            await gate.entered.wait()
            tasks.cancel_scope.cancel()
        gate.open()
        for key, value in (await memory.get_many(old)).items():
            assert value in {old[key], new[key]}
        assert len(memory) == 170
        await memory.drain()
        assert not memory._node.memcg.reserved
        assert memory._node.check()


@pytest.mark.parametrize("at", [0, 3, 7])
async def test_a_policy_that_raises_in_a_batch_of_new_keys_leaves_none(at):
    class Raises(Mglru):
        insert_many = None
        left = at

        def insert(self, pfn, *, refault):
            if not self.left:
                raise RuntimeError("told")
            self.left -= 1
            return super().insert(pfn, refault=refault)

    async with open_memory(policy=Raises(pages=256)) as memory:
        with pytest.raises(RuntimeError, match="told"):
            await memory.put_many(dict.fromkeys(range(8), b"x" * 300))
        assert len(memory) == 0
        assert memory.usage().free == 1 << 20
        memory._node.root.policy.left = 100
        await memory.put_many(dict.fromkeys(range(8), b"y"))
        assert memory._node.check()


async def test_delete_many_counts_those_that_were_there():
    async with open_memory() as memory:
        await memory.put_many({"a": b"1", "b": noise(2, 50_000), "c": b"3"})
        assert await memory.delete_many(["a", "x", "b", "a"]) == 2
        assert memory.keys() == ["c"]
        assert memory._node.check()


@pytest.mark.parametrize("where", ["here", "away"])
@pytest.mark.parametrize("size", [0, 100, 50_000])
async def test_pop_returns_the_value_and_forgets_it(size, where):
    async with open_memory(Elsewhere()) as memory:
        await memory.put("a", noise(1, size))
        if where == "away" and size:
            await away(memory, "a")
        assert await memory.pop("a") == noise(1, size)
        assert "a" not in memory
        with pytest.raises(KeyError, match="a"):
            await memory.pop("a")
        assert await memory.pop("a", None) is None
        await memory.drain()
        assert memory.usage().free == 1 << 20


@pytest.mark.parametrize("size", [100, 50_000])
async def test_what_is_put_while_pop_waits_is_what_it_returns(size):
    gate = Gate()
    async with open_memory(FaultyBackend(Elsewhere(), load_gate=gate)) as memory:
        await memory.put("a", noise(1, size))
        await away(memory, "a")
        got = []

        async def pop():
            got.append(await memory.pop("a"))

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(pop)
            await gate.entered.wait()
            await memory.put("a", noise(2, size))
            gate.open()
        assert got == [noise(2, size)]
        assert "a" not in memory
        await memory.drain()
        assert memory._node.check()


async def test_a_cancelled_pop_takes_nothing():
    gate = Gate()
    async with open_memory(FaultyBackend(Elsewhere(), load_gate=gate)) as memory:
        await memory.put("a", noise(1))
        await away(memory, "a")
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(memory.pop, "a")
            await gate.entered.wait()
            tasks.cancel_scope.cancel()
        gate.open()
        assert await memory.get("a") == noise(1)
        await memory.drain()
        assert memory._node.check()


@pytest.mark.parametrize("where", ["here", "away"])
@pytest.mark.parametrize("size", [0, 100, 50_000])
async def test_put_if_swaps_only_what_it_was_told_to_expect(size, where):
    old, other = noise(1, size), noise(2, size)
    async with open_memory(Elsewhere()) as memory:
        assert not await memory.put_if("a", b"new", old)
        assert "a" not in memory
        assert await memory.put_if("a", old, None)
        if where == "away" and size:
            await away(memory, "a")
        assert not await memory.put_if("a", b"new", None)
        assert await memory.put_if("a", b"new", other) is (size == 0)
        assert not await memory.put_if("a", b"newer", old + b"x")
        assert await memory.get("a") == (b"new" if size == 0 else old)
        assert await memory.put_if("a", bytearray(b"newest"), await memory.get("a"))
        assert await memory.get("a") == b"newest"
        await memory.drain()
        assert not memory._node.memcg.reserved
        assert memory._node.check()


async def test_of_many_who_swap_at_once_each_counts_once():
    async with open_memory(Elsewhere()) as memory:
        await memory.put("n", b"0")

        async def add():
            while True:
                seen = await memory.get("n")
                if await memory.put_if("n", b"%d" % (int(seen) + 1), seen):
                    return
                await anyio.lowlevel.checkpoint()

        async with anyio.create_task_group() as tasks:
            for _ in range(20):
                tasks.start_soon(add)
        assert await memory.get("n") == b"20"
