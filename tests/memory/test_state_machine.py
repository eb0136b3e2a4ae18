"""Random life of a Memory against a dict: no lost or wrong value, whatever goes wrong.

One rule is one thing that an application or fate can do. After each of them the core's invariants
hold. Values are compared whenever they can be read, and all of them once the faults are over. Short
in an ordinary run; ``HYPOTHESIS_PROFILE=nightly`` makes it ten minutes.
"""

from __future__ import annotations

import asyncio
import errno
from contextlib import suppress

import anyio
import pytest
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)

import reclaimactors as ra

BUDGET = 1 << 20
KEYS = st.integers(0, 40)
ABSENT = None


def value_of(seed: int, size: int, kind: str) -> bytes:
    """A value that compresses well, or not at all, or is one word repeated."""
    if kind == "same":
        return bytes([seed % 256]) * size
    if kind == "random":
        return (b"%d" % seed + seed.to_bytes(8, "big")) * 1 + _noise(seed, size)
    return (b"value %d of the state machine, " % seed * (size // 8 + 1))[:size]


def _noise(seed: int, size: int) -> bytes:
    import random

    return random.Random(seed).randbytes(size)


VALUES = st.builds(
    value_of,
    st.integers(0, 1000),
    st.sampled_from([0, 1, 100, 4096, 5000, 20_000, 70_000]),
    st.sampled_from(["text", "text", "same", "random"]),
)
TOPOLOGIES = st.fixed_dictionaries(
    {
        "mode": st.sampled_from(["inline", "kcompressd", "padata"]),
        "offload": st.sampled_from(["inline", "thread"]),
        "on_full": st.sampled_from(["inline", "steal_oldest", "wait"]),
        "ordered": st.booleans(),
        "policy": st.sampled_from(["mglru", "active_inactive"]),
        "pool": st.sampled_from([5, 20, 60]),
    }
)


class DictBackend(ra.Backend):
    """A store outside of everything, so that a second memory could find the old slots."""

    def __init__(self) -> None:
        self.slots: dict[int, bytes] = {}

    async def store_many(self, items):
        await anyio.lowlevel.checkpoint()
        for slot, data in items:
            self.slots[slot] = bytes(data)

    async def load_many(self, slots):
        await anyio.lowlevel.checkpoint()
        try:
            return [self.slots[slot] for slot in slots]
        except KeyError as exc:
            raise ra.BackendError(errno.EIO, f"slot {exc} was never stored") from None

    async def invalidate_many(self, slots):
        await anyio.lowlevel.checkpoint()
        for slot in slots:
            self.slots.pop(slot, None)


class Fault(DictBackend):
    """What may go wrong with a store, switched by the test."""

    def __init__(self) -> None:
        super().__init__()
        self.store_error: Exception | None = None
        self.load_error: Exception | None = None
        self.gate: anyio.Event | None = None

    async def store_many(self, items):
        if self.gate is not None:
            await self.gate.wait()
        if self.store_error is not None:
            raise self.store_error
        await super().store_many(items)

    async def load_many(self, slots):
        if self.load_error is not None:
            raise self.load_error
        return await super().load_many(slots)


class MemoryMachine(RuleBasedStateMachine):
    """put, overwrite, delete, get, pin, reclaim, advise, cancel, crash, full, EIO, hang, close."""

    @initialize(shape=TOPOLOGIES)
    def open(self, shape) -> None:
        self.runner = asyncio.Runner()
        self.model: dict[int, bytes] = {}
        self.crashes = 0
        self.store = Fault()
        self.pinned: list[tuple] = []
        mode = shape["mode"]
        self.spec = {
            "budget": BUDGET,
            "max_folio": "16KiB",
            "policy": shape["policy"],
            "compress": {
                "mode": mode,
                "offload": shape["offload"],
                "on_full": "inline" if shape["ordered"] and mode == "padata" else shape["on_full"],
                "ordered": shape["ordered"] and mode == "padata",
                "fifo": 16,
            }
            | ({"workers": 2} if mode == "padata" else {}),
            "zswap": {"max_pool_percent": shape["pool"]},
            "close_timeout": 1.0,
        }
        self.opening = ra.open_memory(
            "kcompressd", swap=[{"backend": self.store, "size": "2MiB"}], **self.spec
        )
        self.memory = self.run(self.enter())

    def run(self, coroutine):
        async def bounded():
            return await asyncio.wait_for(coroutine, 20)

        return self.runner.run(bounded())

    async def enter(self):
        """Keep the memory's task group in one task of its own."""
        opened = asyncio.get_running_loop().create_future()
        self.leave = asyncio.Event()

        async def hold():
            async with self.opening as memory:
                opened.set_result(memory)
                await self.leave.wait()

        self.holder = asyncio.ensure_future(hold())
        return await opened

    # -- what applications do

    @rule(key=KEYS, value=VALUES)
    def put(self, key, value) -> None:
        self.heal_hang_if_full()
        with suppress(ra.OutOfMemory):
            self.run(self.memory.put(key, value))
            self.model[key] = value

    @rule(key=KEYS, value=VALUES)
    def put_nowait(self, key, value) -> None:
        async def call():
            self.memory.put_nowait(key, value)

        with suppress(ra.OutOfMemory, anyio.WouldBlock):
            self.run(call())
            self.model[key] = value

    @rule(key=KEYS, value=VALUES, steps=st.integers(0, 12))
    def put_cancelled(self, key, value, steps) -> None:
        with suppress(ra.OutOfMemory):
            if self.run(self.cancel_after(self.memory.put(key, value), steps)):
                self.model[key] = value

    @rule(key=KEYS, steps=st.integers(0, 8))
    def get_cancelled(self, key, steps) -> None:
        with suppress(KeyError, ra.BackendError):
            self.run(self.cancel_after(self.memory.get(key), steps))

    async def cancel_after(self, coroutine, steps) -> bool:
        """Cancel at any await; return whether it had ended before."""
        task = asyncio.ensure_future(coroutine)
        for _ in range(steps):
            await asyncio.sleep(0)
        task.cancel()
        try:
            await task
        except asyncio.CancelledError:
            return False
        return True

    @rule(keys=st.lists(KEYS, min_size=1, max_size=8), value=VALUES)
    def put_many_at_once(self, keys, value) -> None:
        self.heal_hang_if_full()

        async def one(key):
            try:
                await self.memory.put(key, value + b"%d" % key)
            except ra.OutOfMemory:
                return
            self.model[key] = value + b"%d" % key

        async def call():
            await asyncio.gather(*[one(key) for key in set(keys)])

        self.run(call())

    @rule(key=KEYS)
    def get(self, key) -> None:
        self.run(self.compare(key))

    @rule(key=KEYS)
    def get_by_eight(self, key) -> None:
        async def call():
            await asyncio.gather(*[self.compare(key) for _ in range(8)])

        self.run(call())

    async def compare(self, key) -> None:
        if key not in self.model:
            with pytest.raises(KeyError):
                await self.memory.get(key)
            return
        try:
            assert await self.memory.get(key) == self.model[key]
        except ra.BackendError:
            assert self.store.load_error is not None

    @rule(key=KEYS)
    def get_nowait(self, key) -> None:
        async def call():
            if key in self.model:
                with suppress(anyio.WouldBlock):
                    assert self.memory.get_nowait(key) == self.model[key]

        self.run(call())

    @rule(key=KEYS)
    def delete(self, key) -> None:
        async def call():
            if key in self.model:
                await self.memory.delete(key)
                del self.model[key]
            else:
                with pytest.raises(KeyError):
                    await self.memory.delete(key)

        self.run(call())

    @rule(key=KEYS)
    def pin(self, key) -> None:
        self.heal_hang_if_full()
        if key not in self.model or len(self.pinned) > 2:
            return

        async def call():
            pin = self.memory.pin(key)
            view = await pin.__aenter__()
            self.pinned.append((pin, view, self.model[key]))

        with suppress(ra.OutOfMemory, ra.BackendError):
            self.run(call())

    @precondition(lambda self: self.pinned)
    @rule()
    def unpin(self) -> None:
        pin, view, value = self.pinned.pop()
        assert view == value
        self.run(pin.__aexit__(None, None, None))

    @rule(key=KEYS, advice=st.sampled_from(ra.Advice))
    def advise(self, key, advice) -> None:
        async def call():
            if key in self.model:
                self.memory.advise(key, advice)
            await asyncio.sleep(0)

        self.run(call())

    @rule(nr_bytes=st.sampled_from([1, 10_000, 1_000_000]))
    def reclaim(self, nr_bytes) -> None:
        self.open_gate()
        assert self.run(self.memory.reclaim(nr_bytes)) >= 0

    @rule()
    def drain(self) -> None:
        self.open_gate()
        self.run(self.memory.drain())
        assert self.memory.usage().in_flight == 0

    @rule(steps=st.integers(1, 20))
    def let_actors_run(self, steps) -> None:
        async def call():
            for _ in range(steps):
                await asyncio.sleep(0)

        self.run(call())

    # -- what fate does

    @rule(kind=st.sampled_from(["full", "eio", "loads", "hang", "none", "none"]))
    def fault(self, kind) -> None:
        self.open_gate()
        self.store.store_error = {
            "full": ra.BackendFull(),
            "eio": OSError(errno.EIO, "I/O error"),
        }.get(kind)
        self.store.load_error = OSError(errno.EIO, "I/O error") if kind == "loads" else None
        if kind == "hang":
            self.store.gate = anyio.Event()

    def open_gate(self) -> None:
        if self.store.gate is not None:
            gate, self.store.gate = self.store.gate, None

            async def call():
                gate.set()

            self.run(call())

    def heal_hang_if_full(self) -> None:
        """A put may wait for a hanging store as long as its timeout: not in this test."""
        if self.store.gate is not None and self.memory.usage().free < BUDGET // 3:
            self.open_gate()

    @precondition(lambda self: self.crashes < 4)
    @rule()
    def worker_crashes(self) -> None:
        """The next batch that is compressed kills its actor."""
        self.crashes += 1
        offload = self.memory._machine.offload
        squeeze = offload.squeeze

        async def crash(pages, **_):
            offload.squeeze = squeeze
            await asyncio.sleep(0)
            msg = "a worker died"
            raise RuntimeError(msg)

        offload.squeeze = crash

    @invariant()
    def check(self) -> None:
        if hasattr(self, "memory"):
            assert self.memory._node.check()
            assert set(self.memory.keys()) == set(self.model)
            for _, view, value in self.pinned:
                assert view == value

    def teardown(self) -> None:
        if not hasattr(self, "memory"):
            return
        try:
            while self.pinned:
                self.unpin()
            self.fault("none")
            for key in list(self.model):
                self.run(self.compare(key))
            self.check()
            self.run(self.close())
        finally:
            self.runner.close()

    async def close(self) -> None:
        self.leave.set()
        await self.holder
        node = self.memory._node
        assert node.check()
        assert node.nr_in_flight == 0
        with pytest.raises(anyio.ClosedResourceError):
            await self.memory.get(0)
        # A new memory over the same store sees none of the old slots.
        async with ra.open_memory(
            "kcompressd", swap=[{"backend": self.store, "size": "2MiB"}], **self.spec
        ) as fresh:
            assert len(fresh) == 0
            await fresh.put("new", b"x" * 5000)
            await fresh.reclaim(1_000_000)
            assert await fresh.get("new") == b"x" * 5000


TestMemory = MemoryMachine.TestCase
TestMemory.pytestmark = [pytest.mark.timeout(3000)]  # the nightly profile takes ten minutes
