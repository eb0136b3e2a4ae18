"""Plugins that break their contract: a typed error for the reader, nothing lost, nothing hangs."""

from __future__ import annotations

import asyncio
import random

import anyio
import pytest

import reclaimactors as ra
from reclaimactors.backends.zram import ZramBackend
from reclaimactors.compressors.lz4 import Lz4
from reclaimactors.policies.mglru import Mglru
from reclaimactors.topology import builtin_names

FAULTS = 4


class Shelf(ra.Backend):
    """A store in a dict that gives what `wrong` makes of the bytes."""

    def __init__(self) -> None:
        self.slots: dict[int, bytes] = {}
        self.wrong = None

    async def store_many(self, items):
        self.slots.update(items)

    async def load_many(self, slots):
        right = [self.slots[slot] for slot in slots]
        return right if self.wrong is None else self.wrong(right)

    async def invalidate_many(self, slots):
        for slot in slots:
            self.slots.pop(slot, None)


def noise(key: int, size: int = 4096) -> bytes:
    return random.Random(key).randbytes(size)


def cancelled(_right):
    raise asyncio.CancelledError


@pytest.mark.parametrize(
    ("wrong", "error"),
    [
        pytest.param(cancelled, ra.BackendError, id="cancelled inside"),
        pytest.param(lambda right: [None] * len(right), ra.CorruptData, id="None"),
        pytest.param(lambda right: ["x" * 4096] * len(right), ra.CorruptData, id="str"),
        pytest.param(lambda right: [4096] * len(right), ra.CorruptData, id="int"),
        pytest.param(lambda _right: None, ra.BackendError, id="no list"),
        pytest.param(iter, ra.BackendError, id="an iterator"),
        pytest.param(lambda right: right[:-1], ra.BackendError, id="too few"),
    ],
)
@pytest.mark.parametrize("topology", builtin_names())
async def test_what_a_store_gives_back_wrongly_is_an_error_that_names_it(wrong, error, topology):
    shelf = Shelf()
    async with ra.open_memory(
        topology, budget="1MiB", swap=[{"backend": shelf}], compress={"offload": "inline"}
    ) as memory:
        for key in range(8):
            await memory.put(key, noise(key))
        await memory.reclaim(1 << 30)
        shelf.wrong = wrong
        with anyio.fail_after(20), pytest.raises(error, match="swap"):
            await memory.get(0)
        shelf.wrong = None
        with anyio.fail_after(20):
            assert [await memory.get(key) for key in range(8)] == [noise(key) for key in range(8)]
        for key in range(8):
            await memory.delete(key)
        await memory.drain()
        assert memory._node.check()
        assert memory.usage().resident == memory._node.memcg.reserved == 0
        assert memory.vmstat["actor_restarts"] == 0


async def test_a_store_may_give_its_own_buffers_and_change_them_later():
    shelf = Shelf()
    given: list[bytearray] = []

    def buffers(right):
        given.extend(map(bytearray, right))
        return [memoryview(data) for data in given[-len(right) :]]

    shelf.wrong = buffers
    async with ra.open_memory(budget="1MiB", swap=[{"backend": shelf}]) as memory:
        await memory.put("key", noise(1))
        await memory.reclaim(1 << 30)
        got = await memory.get("key")
        given[0][:] = bytes(4096)
        assert type(got) is bytes
        assert got == await memory.get("key") == noise(1)


class Faulty:
    """Mglru that breaks the contract `FAULTS` times, in one way, once `on`."""

    def __init__(self, how: str) -> None:
        self._policy = Mglru(pages=256)
        self._how = how
        self._left = FAULTS
        self.on = False

    def _fault(self, how: str) -> bool:
        if self.on and how == self._how and self._left:
            self._left -= 1
            return True
        return False

    def __getattr__(self, name: str):
        method = getattr(self._policy, name)

        def call(*args, **kwargs):
            if self._fault(f"{name} raises"):
                raise RuntimeError(name)
            return method(*args, **kwargs)

        return call

    def isolate(self, nr: int) -> list[object]:
        if self._fault("isolate raises"):
            raise RuntimeError("isolate")
        pfns = self._policy.isolate(nr)
        for how, junk in (("unknown", 10**6), ("negative", -1), ("str", "x"), ("twice", pfns[:1])):
            if pfns and self._fault(how):
                return [*pfns, *(junk if isinstance(junk, list) else [junk])]
        return pfns

    def shadow(self, pfn: int) -> int:
        if self._fault("shadow raises"):
            raise RuntimeError("shadow")
        shadow = self._policy.shadow(pfn)
        return 1 << 70 if self._fault("shadow too large") else shadow


@pytest.mark.parametrize(
    "how",
    ["unknown", "negative", "str", "twice", "shadow raises", "shadow too large", "insert raises",
     "remove raises", "access raises", "age raises", "isolate raises", "putback raises"],
)  # fmt: skip
@pytest.mark.parametrize("topology", builtin_names())
async def test_a_policy_that_breaks_its_contract_loses_nothing(how, topology):
    budget = "1280KiB" if topology == "zram" else "1MiB"
    policy = Faulty(how)
    model: dict[int, bytes] = {}
    rng = random.Random(1)
    async with ra.open_memory(
        topology, budget=budget, policy=policy, compress={"offload": "inline"}
    ) as memory:
        for step in range(1200):
            policy.on = step > 100
            key = rng.randrange(400)
            value = noise(step, 2048) + bytes([step % 256]) * 2048
            with anyio.fail_after(20):
                try:
                    if rng.random() < 0.2 and key in model:
                        await memory.delete(key)
                        del model[key]
                    else:
                        await memory.put(key, value)
                        model[key] = value
                except (RuntimeError, ra.ReclaimError):
                    assert policy._left < FAULTS  # the fault reaches who asked, or an actor
        assert policy._left < FAULTS
        with anyio.fail_after(20):
            await memory.drain()
            assert memory._node.check()
            assert {key: await memory.get(key) for key in model} == model


class Odd:
    """A compressor that does one odd thing now and then, around lz4."""

    name = "odd"

    def __init__(self, how: str) -> None:
        self._how = how
        self._lz4 = Lz4()
        self._buffer = bytearray(1 << 16)
        self._calls = 0

    def compress(self, data):
        self._calls += 1
        blob = self._lz4.compress(data)
        if self._calls % 3:
            return blob
        if self._how == "its own buffer":
            self._buffer[: len(blob)] = blob
            return memoryview(self._buffer)[: len(blob)]
        return {"int": 7, "str": "x", "none": None, "empty": b""}.get(self._how, blob)

    def decompress(self, blob, size):
        data = self._lz4.decompress(blob, size)
        return bytearray(data) if self._how == "a bytearray" else data


@pytest.mark.parametrize("how", ["int", "str", "none", "empty", "its own buffer", "a bytearray"])
@pytest.mark.parametrize(
    ("topology", "offload"),
    [*[(name, "thread") for name in builtin_names()], ("kcompressd", "inline")],
)
async def test_a_compressor_that_gives_odd_things_loses_nothing(how, topology, offload):
    odd = Odd(how)
    spec = {"budget": "1MiB", "compress": {"compressor": odd, "offload": offload}}
    if topology == "zram":  # what it fails on has no other place there than memory
        spec |= {"budget": "1280KiB", "swap": [{"backend": ZramBackend(odd)}]}
    values = {key: noise(key, 2048) + bytes([key % 256]) * 2048 for key in range(350)}
    async with ra.open_memory(topology, **spec) as memory:
        with anyio.fail_after(50):
            for key, value in values.items():
                await memory.put(key, value)
            for key, value in values.items():
                got = await memory.get(key)
                assert type(got) is bytes
                assert got == value
            await memory.drain()
        assert memory._node.check()
        assert memory.vmstat["pgsteal_anon"] > 50
        assert memory.vmstat["actor_restarts"] == 0


class Wasteful(Shelf):
    """A store in this process that holds a page for each slot."""

    def footprint(self, slots):
        return 4096 * len(slots)


async def test_a_store_that_holds_more_than_it_frees_does_not_break_the_budget():
    zswap = {"enabled": False}
    async with ra.open_memory("kswapd_only_inline", budget="1MiB", swap=[{"backend": Wasteful()}],
                              zswap=zswap) as memory:  # fmt: skip
        stored: list[int] = []

        async def fill() -> None:
            for key in range(3000):
                await memory.put(key, noise(key, 600))
                stored.append(key)

        with anyio.fail_after(50), pytest.raises(ra.OutOfMemory):
            await fill()
        assert [await memory.get(key) for key in stored] == [noise(key, 600) for key in stored]
        assert memory._node.check()
        assert memory.vmstat["actor_restarts"] == 0


async def test_a_store_that_cannot_be_opened_is_named():
    class Absent(Shelf):
        async def open(self, page_size):
            raise FileNotFoundError("no such device")

    with pytest.raises(ra.BackendError, match=r"swap .* cannot be opened: .*no such device"):
        async with ra.open_memory(swap=[{"backend": Absent()}]):
            pytest.fail("it was opened")
