"""Random life of a Memory against a dict: no lost or wrong value, whatever goes wrong.

One rule is one thing that an application, an administrator or fate can do. After each of them the
core's invariants hold: above all, each folio has exactly one authoritative copy. Values are
compared whenever they can be read, and all of them once the faults are over. Waiting takes no
time: the clock is virtual. Short in an ordinary run; ``HYPOTHESIS_PROFILE=nightly`` makes it half
an hour, without ``--hypothesis-seed``, which would have each part do the same.
"""

from __future__ import annotations

import asyncio
import errno
import os
import sys
from contextlib import suppress
from typing import get_args

import anyio
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
    run_state_machine_as_test,
)

import reclaimactors as ra
from reclaimactors.backends.memory import MemoryBackend
from reclaimactors.backends.zram import ZramBackend
from reclaimactors.mm.folio import CACHED, DEVICE, RESIDENT, SAME, UNEVICTABLE, WRITEBACK, ZSWAP
from reclaimactors.mm.page_io import expand
from reclaimactors.policies.active_inactive import ActiveInactive
from reclaimactors.policies.mglru import Mglru
from reclaimactors.policies.s3fifo import S3Fifo
from reclaimactors.policies.sieve import Sieve
from reclaimactors.testing import FaultyBackend, Gate, VirtualClockLoop
from reclaimactors.testing.faults import Damage
from reclaimactors.topology import builtin_names, resolve

# In parts, since hypothesis remembers all examples of a run: a MiB for each.
PARTS = 8 if os.environ.get("HYPOTHESIS_PROFILE") == "nightly" else 1
BUDGET = 256 << 10  # a third of what the keys may hold
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
PAGE = 1 << 10
POLICIES = {
    "mglru": Mglru,
    "active_inactive": ActiveInactive,
    "s3fifo": lambda **_: S3Fifo(),
    "sieve": lambda **_: Sieve(),
}
ISOLATED, GONE = {"_ISOLATED", "_FROM_SMALL", "_FROM_MAIN"}, {"_GHOST", "_GONE"}
CALLS = ["insert", "access", "remove", "isolate", "putback", "shadow", "age", "deactivate"]
CALLS += ["insert_many"]
TIMEOUT_S = 2.0  # of a store
TOPOLOGIES = st.fixed_dictionaries(
    {
        "topology": st.sampled_from(["any", *builtin_names()]),  # any: as the next four say
        "mode": st.sampled_from(["inline", "kcompressd", "padata"]),
        "offload": st.sampled_from(["inline", "thread"]),
        "on_full": st.sampled_from(["inline", "steal_oldest", "wait"]),
        "ordered": st.booleans(),
        "policy": st.sampled_from([*POLICIES]),
        "pool": st.sampled_from([0, 5, 20, 60]),  # percent of the budget; 0 = zswap is off
    }
)
STORES = st.tuples(
    st.sampled_from(["quick", "slow", "small", "inside", "zram", "zram with a store"]),
    st.integers(0, 2),  # priority
)
MAX_STORES = 4
MAX_CRASHES = 4  # fewer than end the memory
EIO = OSError(errno.EIO, "I/O error")
DAMAGES = get_args(Damage)


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


class Told(Exception):  # noqa: N818 - it does as it is told
    """A policy raises."""


class Moody:
    """A policy that raises once where it is told to, before or after it has done its work."""

    def __init__(self, policy) -> None:
        self.policy = policy
        self.raises: tuple[str, bool] | None = None
        self.has_lost = False  # what it isolated as it raised is known to nobody

    def __getattr__(self, name: str):
        method = getattr(self.policy, name)

        def call(*args, **kwargs):
            if self.raises is None or self.raises[0] != name:
                return method(*args, **kwargs)
            before, self.raises = self.raises[1], None
            if not before:
                self.has_lost = self.has_lost or bool(method(*args, **kwargs) and name == "isolate")
            raise Told(name)

        return call


class Slow(DictBackend):
    """The same, at any speed.

    Args:
        turns: of the event loop that each call takes.
        rotational: whether it is read ahead.
    """

    def __init__(self, turns: int = 1, *, rotational: bool = False) -> None:
        super().__init__()
        self.turns = turns
        self.rotational = rotational

    async def store_many(self, items):
        await self.take()
        await super().store_many(items)

    async def load_many(self, slots):
        await self.take()
        return await super().load_many(slots)

    async def take(self) -> None:
        for _ in range(self.turns):
            await anyio.lowlevel.checkpoint()


class Fault(FaultyBackend):
    """A store that fails from now on, in one way or another, until it is mended."""

    inner: Slow

    def __init__(self, turns: int = 1, *, rotational: bool = False) -> None:
        super().__init__(Slow(turns, rotational=rotational))

    @property
    def unreadable(self) -> bool:
        failing = self.damage is not None or bool(self.load_errors)
        return failing or self.load_gate is not None

    def fail_stores(self, error: Exception) -> None:
        self.store_errors = dict.fromkeys(range(self.nr_stores + 1, self.nr_stores + 9999), error)

    def fail_loads(self, error: Exception) -> None:
        self.load_errors = dict.fromkeys(range(self.nr_loads + 1, self.nr_loads + 9999), error)

    def mend(self) -> None:
        self.store_errors, self.load_errors, self.damage = {}, {}, None
        for gate in (self.store_gate, self.load_gate):
            if gate is not None:
                gate.open()
        self.store_gate = self.load_gate = None


def table_of(kind: str, priority: int) -> dict:
    """A ``[[swap]]`` table of one of STORES."""
    match kind:
        case "quick":
            spec = {"backend": Fault(), "size": "2MiB"}
        case "slow":
            spec = {"backend": Fault(30, rotational=True), "size": "2MiB"}
        case "small":
            spec = {"backend": Fault(3), "size": "64KiB"}
        case "inside":
            spec = {"backend": MemoryBackend(capacity=40), "size": "1MiB"}
        case "zram":
            spec = {"backend": ZramBackend(mem_limit="200KiB", recompressor="zlib")}
        case _:
            spec = {"backend": ZramBackend(recompressor="zlib", backing=Fault()), "size": "1MiB"}
    return spec | {"priority": priority, "timeout": TIMEOUT_S}


def fault_of(backend) -> Fault | None:
    """The store that may fail, itself or behind a zram."""
    if isinstance(backend, ZramBackend):
        return backend.backing and backend.backing.backend
    return backend if isinstance(backend, Fault) else None


def spec_of(shape) -> tuple[str, dict]:
    """The topology of a shape, and what it is opened with."""
    name = shape["topology"]
    compress = {"offload": shape["offload"]}
    spec = {"budget": BUDGET, "page_size": PAGE, "max_folio": "16KiB", "close_timeout": 1.0,
            "compress": compress}  # fmt: skip
    if name == "any":
        name, mode = "kcompressd", shape["mode"]
        ordered = shape["ordered"] and mode == "padata"
        compress |= {"mode": mode, "ordered": ordered}
        compress |= {"on_full": "inline" if ordered else shape["on_full"]}
        pool = shape["pool"]
        spec["zswap"] = {"max_pool_percent": pool} if pool else {"enabled": False}
    else:
        mode = resolve(name).compress.mode
    if mode != "inline":
        compress["fifo"] = 16
    if mode == "padata":
        compress["workers"] = 2
    return name, spec


# What nobody may call but the loop that opened the memory; all of them say so before they wait.
STRANGE = {
    "put": lambda memory: memory.put(0, b"strange"),
    "get": lambda memory: memory.get(0),
    "delete": lambda memory: memory.delete(0),
    "pin": lambda memory: memory.pin(0).__aenter__(),
    "reclaim": lambda memory: memory.reclaim(BUDGET),
    "drain": lambda memory: memory.drain(),
    "swapon": lambda memory: memory.swapon({"backend": "memory", "size": "1MiB"}),
    "swapoff": lambda memory: memory.swapoff("none"),
    "put_nowait": lambda memory: memory.put_nowait(0, b"strange"),
    "get_nowait": lambda memory: memory.get_nowait(0),
    "advise": lambda memory: memory.advise(0, ra.Advice.PAGEOUT),
    "tune": lambda memory: memory.tune(fifo=9),
    "aclose": lambda memory: memory.aclose(),
}


async def refused(memory: ra.Memory, call: str, why: str) -> None:
    """Assert that a call is refused, before it waits for anything."""
    with pytest.raises(RuntimeError, match=why):
        await STRANGE[call](memory)


FIRST_FLEETING = 100
FLEETING = st.integers(FIRST_FLEETING, FIRST_FLEETING + 9)  # keys of values that may end

OPS = ["put", "put", "get", "get", "delete", "advise", "pin", "reclaim", "tune", "pop", "put_if"]


class MemoryMachine(RuleBasedStateMachine):
    """put, overwrite, delete, get, pin, reclaim, advise, cancel, swapon, swapoff, tune; crash,
    full, EIO, slow, hang, a policy that raises, a process that is stopped, a fork, another loop;
    close.

    What is possible depends on threads and clocks, so rules have no preconditions: hypothesis wants
    those to be the same when it tries again.
    """

    @initialize(shape=TOPOLOGIES, stores=st.lists(STORES, min_size=1, max_size=3))
    def open(self, shape, stores) -> None:
        self.runner = asyncio.Runner(loop_factory=VirtualClockLoop)
        self.model: dict[int, bytes] = {}
        self.fleeting: dict[int, tuple[bytes, float, bool]] = {}  # value, when it ends, may go
        self.crashes = 0
        self.faults: list[Fault] = []
        self.pinned: list[tuple] = []
        self.leaving: asyncio.Task | None = None
        self.mended: set[str] = set()  # stores of which a read that began earlier may still fail
        self.policy = Moody(POLICIES[shape["policy"]](pages=BUDGET // PAGE))
        self.topology, self.spec = spec_of(shape)
        self.opening = ra.open_memory(
            self.topology,
            policy=self.policy,
            swap=[self.table(*store) for store in stores],
            **self.spec,
        )
        self.memory = self.run(self.enter())

    def table(self, kind: str, priority: int) -> dict:
        table = table_of(kind, priority)
        fault = fault_of(table["backend"])
        if fault is not None:
            self.faults.append(fault)
        return table

    def run(self, coroutine):
        async def bounded():
            return await asyncio.wait_for(coroutine, 200)

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
        with suppress(ra.OutOfMemory, Told):
            self.run(self.memory.put(key, value))
            self.model[key] = value

    @rule(key=KEYS, value=VALUES)
    def overwrite_what_was_read_back(self, key, value) -> None:
        """Of a folio that is clean then, if a store has kept its slots."""
        self.put(key, value)
        self.reclaim(BUDGET)
        self.run(self.compare(key))
        self.check()
        self.put(key, value[::-1])

    @rule(
        key=FLEETING,
        value=VALUES,
        expires_in=st.none() | st.sampled_from([0.1, 3, 1000]),
        discardable=st.booleans(),
    )
    def put_on_terms(self, key, value, expires_in, discardable) -> None:
        async def call():
            until = asyncio.get_running_loop().time() + (expires_in or 1e9)
            with suppress(ra.OutOfMemory, Told):
                await self.memory.put(key, value, expires_in=expires_in, discardable=discardable)
                self.fleeting[key] = value, until, discardable

        self.run(call())

    @rule(key=FLEETING, op=st.sampled_from(["get", "get", "pop", "put_if", "delete"]))
    def what_may_have_ended(self, key, op) -> None:
        async def call():
            time = asyncio.get_running_loop().time
            value, until, discardable = self.fleeting.get(key, (None, 0.0, False))
            begun = time()
            try:
                got = await self.fleet(op, key, value)
            except Told:
                return
            except (ra.BackendError, ra.CorruptData) as exc:
                self.explain(exc)
                return
            assert got in (None, value)
            if got is not None:
                assert begun < until
            elif not discardable:
                assert until <= time(), "it went before its time"
            if got is None or op != "get":
                self.fleeting.pop(key, None)

        self.run(call())

    async def fleet(self, op: str, key: int, value: bytes | None) -> bytes | None:
        """Do it; return the value that the key had, None if it had none."""
        match op:
            case "get":
                return await self.memory.get(key, None)
            case "pop":
                return await self.memory.pop(key, None)
            case "put_if":
                new = b"" if value is None else value[:100]
                done = value is not None and await self.memory.put_if(key, new, value, expires_in=0)
                return value if done else None
            case _:
                return value if await self.memory.delete_many([key]) else None

    @rule(seconds=st.sampled_from([0.5, 5, 2000]))
    def time_passes(self, seconds) -> None:
        self.runner.run(asyncio.sleep(seconds))

    @rule(key=KEYS, value=VALUES)
    def put_nowait(self, key, value) -> None:
        async def call():
            self.memory.put_nowait(key, value)

        with suppress(ra.OutOfMemory, anyio.WouldBlock, Told):
            self.run(call())
            self.model[key] = value

    @rule(key=KEYS, value=VALUES, steps=st.integers(0, 12))
    def put_cancelled(self, key, value, steps) -> None:
        with suppress(ra.OutOfMemory, Told):
            if self.run(self.cancel_after(self.memory.put(key, value), steps)):
                self.model[key] = value

    @rule(key=KEYS, steps=st.integers(0, 8))
    def get_cancelled(self, key, steps) -> None:
        with suppress(KeyError, ra.BackendError, ra.CorruptData, Told):
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
        async def one(key):
            try:
                await self.memory.put(key, value + b"%d" % key)
            except (ra.OutOfMemory, Told):
                return
            self.model[key] = value + b"%d" % key

        async def call():
            await asyncio.gather(*[one(key) for key in set(keys)])

        self.run(call())

    @rule(keys=st.lists(KEYS, min_size=1, max_size=8, unique=True), value=VALUES)
    def put_many(self, keys, value) -> None:
        """Of a batch that fails each key has its old value or its new one."""
        items = {key: value + b"%d" % key for key in keys}

        async def call():
            try:
                await self.memory.put_many(items)
            except (ra.OutOfMemory, Told):
                sizes = self.memory._node.mm.bytes_of
                for key, new in items.items():
                    pfns = self.memory._node.values.pfns
                    if key in self.memory and sizes(pfns(key)) == len(new):
                        with suppress(ra.BackendError, ra.CorruptData, Told):
                            if await self.memory.get(key) == new:
                                self.model[key] = new
                return
            self.model.update(items)

        self.run(call())

    @rule(keys=st.lists(KEYS, min_size=1, max_size=8, unique=True), steps=st.integers(0, 12))
    def get_many(self, keys, steps) -> None:
        async def call():
            try:
                got = await self.memory.get_many(keys)
            except Told:
                return
            except (ra.BackendError, ra.CorruptData) as exc:
                self.explain(exc)
                return
            assert got == {key: self.model[key] for key in keys if key in self.model}

        self.run(call())
        with suppress(ra.BackendError, ra.CorruptData, Told):
            self.run(self.cancel_after(self.memory.get_many(keys), steps))

    @rule(key=KEYS, steps=st.integers(0, 12))
    def pop_cancelled(self, key, steps) -> None:
        with suppress(KeyError, ra.BackendError, ra.CorruptData, Told):
            if self.run(self.cancel_after(self.memory.pop(key), steps)):
                del self.model[key]

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
        except Told:
            pass
        except (ra.BackendError, ra.CorruptData) as exc:
            self.explain(exc)

    def explain(self, exc: Exception) -> None:
        """A value cannot be read: only while its store cannot, and the error names that one."""
        assert any(name in str(exc) for name in self.unreadable() | self.mended), exc

    def unreadable(self) -> set[str]:
        """The names of the stores that give errors, or other bytes."""
        swaps = [(info.name, fault_of(info.backend)) for info in self.memory.swaps()]
        return {name for name, fault in swaps if fault is not None and fault.unreadable}

    def mend(self, store: Fault) -> None:
        """What is being read meanwhile may still be bad."""
        before = self.unreadable()
        store.mend()
        self.mended |= before - self.unreadable()

    def reads(self) -> bool:
        """Whether somebody reads from a store."""
        swapds = self.memory._machine.swapds.values()
        swaps_off = self.leaving is not None and not self.leaving.done()
        return swaps_off or any(swapd.loads.tickets for swapd in swapds)

    @property
    def names(self) -> list[str]:
        return [info.name for info in self.memory.swaps()]

    @rule(key=KEYS)
    def get_nowait(self, key) -> None:
        async def call():
            if key in self.model:
                with suppress(anyio.WouldBlock, Told):
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

        with suppress(Told):  # it is still there then
            self.run(call())

    @rule(key=KEYS)
    def pin(self, key) -> None:
        if key not in self.model or len(self.pinned) > 2:
            return

        async def call():
            pin = self.memory.pin(key)
            view = await pin.__aenter__()
            self.pinned.append((pin, view, self.model[key]))

        with suppress(ra.OutOfMemory, ra.BackendError, ra.CorruptData, Told):
            self.run(call())

    @rule()
    def unpin(self) -> None:
        if not self.pinned:
            return
        pin, view, value = self.pinned.pop()
        assert view == value
        self.run(pin.__aexit__(None, None, None))

    @rule(key=KEYS, advice=st.sampled_from(ra.Advice))
    def advise(self, key, advice) -> None:
        async def call():
            if key in self.model:
                with suppress(Told):
                    self.memory.advise(key, advice)
            await asyncio.sleep(0)

        self.run(call())

    @rule(nr_bytes=st.sampled_from([1, 10_000, 1_000_000]))
    def reclaim(self, nr_bytes) -> None:
        with suppress(Told):
            assert self.run(self.memory.reclaim(nr_bytes)) >= 0

    @rule()
    def drain(self) -> None:
        async def call():
            await self.memory.drain()
            # As it returns: a swapoff goes on, and wakes kswapd again.
            return self.memory._node.memcg.in_flight

        assert self.run(call()) == 0

    @rule(steps=st.integers(1, 20))
    def let_actors_run(self, steps) -> None:
        async def call():
            for _ in range(steps):
                await asyncio.sleep(0)

        self.run(call())

    @rule(ops=st.dictionaries(KEYS, st.sampled_from(OPS), min_size=2, max_size=8), value=VALUES)
    def everything_at_once(self, ops, value) -> None:
        async def call():
            await asyncio.gather(*[self.one(op, key, value) for key, op in ops.items()])

        self.run(call())

    async def one(  # noqa: C901 - a case for each of them
        self, op: str, key: int, value: bytes
    ) -> None:
        """One of OPS, on a key that no other one of them is about."""
        memory = self.memory
        try:
            match op:
                case "put":
                    await memory.put(key, value)
                    self.model[key] = value
                case "get":
                    await self.compare(key)
                case "delete" if key in self.model:
                    await memory.delete(key)
                    del self.model[key]
                case "pop" | "put_if":
                    await self.swap(op, key, value)
                case "advise" if key in self.model:
                    memory.advise(key, ra.Advice.PAGEOUT)
                case "pin" if key in self.model:
                    async with memory.pin(key) as view:
                        await asyncio.sleep(0)
                        assert view == self.model[key]
                case "reclaim":
                    await memory.reclaim(50_000)
                case "tune":
                    self.switch(kcompressd=key % 2 == 0, fifo=None)
        except (ra.OutOfMemory, Told):
            pass
        except (ra.BackendError, ra.CorruptData) as exc:
            self.explain(exc)

    async def swap(self, op: str, key: int, value: bytes) -> None:
        if op == "pop":
            assert await self.memory.pop(key, None) == self.model.get(key)
            self.model.pop(key, None)
            return
        assert not await self.memory.put_if(key, value, b"what was never put")
        assert await self.memory.put_if(key, value, self.model.get(key))
        self.model[key] = value

    # -- what an administrator does

    @rule(store=STORES)
    def swapon(self, store) -> None:
        if len(self.names) == MAX_STORES or self.leaving is not None:
            return
        name = self.run(self.memory.swapon(self.table(*store)))
        assert name in self.names

    def store_to_leave(self, nr: int) -> str | None:
        """A store for swapoff, the last one of all only now and then."""
        names = self.names
        if self.leaving is not None or (len(names) < 2 and nr):
            return None
        return names[nr % len(names)] if names else None

    @rule(nr=st.integers(0, MAX_STORES), steps=st.none() | st.integers(0, 40))
    def swapoff(self, nr, steps) -> None:
        """To its end, or to any await."""
        name = self.store_to_leave(nr)
        if name is None:
            return
        self.run(self.leave_store(name, steps))

    async def leave_store(self, name: str, steps: int | None = None) -> None:
        off = self.memory.swapoff(name)
        try:
            done = await (off if steps is None else self.cancel_after(off, steps))
        except (ra.OutOfMemory, Told):
            done = False
        except (ra.BackendError, ra.CorruptData) as exc:
            self.explain(exc)
            done = False
        if done is not False:  # a cancelled one may have come to its end
            assert name not in self.names

    @rule(nr=st.integers(0, MAX_STORES))
    def swapoff_begins(self, nr) -> None:
        """It goes on while other rules have their turn."""
        name = self.store_to_leave(nr)
        if name is None:
            return

        async def call():
            self.leaving = asyncio.ensure_future(self.leave_store(name))
            await asyncio.sleep(0)

        self.run(call())

    @rule(cancelled=st.booleans())
    def swapoff_ends(self, cancelled) -> None:
        if self.leaving is None:
            return
        task, self.leaving = self.leaving, None

        async def call():
            if cancelled:
                task.cancel()
            with suppress(asyncio.CancelledError):
                await task

        self.run(call())

    @rule(kcompressd=st.none() | st.booleans(), fifo=st.none() | st.integers(1, 40))
    def tune(self, kcompressd, fifo) -> None:
        async def call():
            self.switch(kcompressd=kcompressd, fifo=fifo)

        self.run(call())

    def switch(self, *, kcompressd: bool | None, fifo: int | None) -> None:
        try:
            self.memory.tune(kcompressd=kcompressd, fifo=fifo)
        except ra.TopologyError:
            machine = self.memory._machine
            assert machine.mode == "inline" or (fifo or 0) > machine.fifo.most

    @rule(what=st.sampled_from(["mark", "recompress", "writeback", "huge"]))
    def zram_pass(self, what) -> None:
        self.open_gates()  # a pass has no deadline

        async def call():
            for zram in self.zrams():
                with suppress(ra.BackendError, ra.CorruptData):  # no backing, or a faulty one
                    match what:
                        case "mark":
                            zram.mark_idle()
                        case "recompress":
                            zram.mark_idle()
                            await zram.recompress("idle")
                        case "writeback":
                            zram.mark_idle()
                            await zram.writeback("idle")
                        case "huge":
                            await zram.writeback("huge")

        self.run(call())

    def zrams(self) -> list[ZramBackend]:
        backends = [info.backend for info in self.memory.swaps()]
        return [backend for backend in backends if isinstance(backend, ZramBackend)]

    # -- what fate does

    @rule(
        nr=st.integers(0, MAX_STORES),
        kind=st.sampled_from(["full", "eio", "loads", "hang", "hang loads", *DAMAGES]),
    )
    def fault(self, nr, kind) -> None:
        """A store fails from now on; one that hangs is not mended before others wait for it."""
        if not self.faults:
            return
        store = self.faults[nr % len(self.faults)]
        self.mend(store)
        match kind:
            case "full":
                store.fail_stores(ra.BackendFull())
            case "eio":
                store.fail_stores(EIO)
            case "loads":
                store.fail_loads(EIO)
            case "hang":
                store.store_gate = Gate()
            case "hang loads":
                store.load_gate = Gate()
            case damage:
                store.damage = damage

    @rule()
    def all_is_mended(self) -> None:
        for store in self.faults:
            self.mend(store)

    def open_gates(self) -> None:
        for store in self.faults:
            if store.store_gate or store.load_gate:
                self.mend(store)

    @rule(call=st.sampled_from(CALLS), before=st.booleans())
    def policy_raises(self, call, before) -> None:
        """At its next such call, to whoever asked: a caller, or an actor, which crashes."""
        if self.crashes < MAX_CRASHES and self.policy.raises is None:
            self.crashes += 1
            self.policy.raises = (call, before)

    @rule(seconds=st.sampled_from([1, 60, 3600]), steps=st.integers(0, 20))
    def stopped_and_continued(self, seconds, steps) -> None:
        """Ctrl-Z, or a frozen container: that makes no store late which is not."""
        before = self.run(self.late_stores())
        self.runner.get_loop()._clock.now += seconds
        self.let_actors_run(steps)
        hung = {fault for fault in self.faults if fault.store_gate or fault.load_gate}
        assert self.run(self.late_stores()) - before <= hung

    async def late_stores(self) -> set[Fault | None]:
        swapds = self.memory._machine.swapds.values()
        return {fault_of(swapd.backend) for swapd in swapds if swapd.backing.late}

    @rule(call=st.sampled_from(sorted({*STRANGE} - {"aclose"})))
    def fork(self, call) -> None:
        """A child that tries to use what is its parent's, and ends."""
        if not hasattr(os, "fork"):
            return

        async def in_child():
            pid = os.fork()
            if pid:
                return pid
            status = 1
            try:
                await refused(self.memory, call, "before the fork")
                await self.memory.aclose()  # does nothing
                keys = [*self.memory._values.small, *self.memory._values.large]
                status = int({key for key in keys if key < FIRST_FLEETING} != set(self.model))
            finally:
                os._exit(status)

        _, status = os.waitpid(self.run(in_child()), 0)
        assert status == 0, "a child was served"

    @rule(call=st.sampled_from(sorted(STRANGE)))
    def second_loop(self, call) -> None:
        """A resident value is served, which costs less than to ask which loop runs."""
        pfn = self.memory._node.values.small.get(0)
        if call.startswith("get") and pfn is not None and self.is_held(pfn):
            return

        with asyncio.Runner() as runner:
            strange = refused(self.memory, call, "another one runs now")
            runner.run(asyncio.wait_for(strange, 5))

    @rule()
    def worker_crashes(self) -> None:
        """The next batch that is compressed kills its actor."""
        if self.crashes == MAX_CRASHES:
            return
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
            if not self.reads():
                self.mended.clear()
            assert self.memory._node.check()
            for zram in self.zrams():
                zram.table.check()
            keys = self.memory.keys()
            assert {key for key in keys if key < FIRST_FLEETING} == set(self.model)
            self.check_copies()
            self.check_lists()
            assert self.memory.vmstat["actor_restarts"] <= self.crashes, "nobody made it crash"
            if self.leaving is None:
                devices = list(self.memory._node.swap)
                assert not any(device.leaving for device in devices), "neither on nor off"
            for _, view, value in self.pinned:
                assert view == value

    def check_copies(self) -> None:
        """The one copy of each folio is its part of the value, wherever that is; read by no one."""
        node = self.memory._node
        for key, value in self.model.items():
            at = 0
            for pfn in node.values.pfns(key):
                size = node.mm.size[pfn]
                copy = self.copy_of(pfn)
                assert copy is None or copy == value[at : at + size], f"{key!r}: pfn {pfn}"
                at += size
            assert at == len(value)

    def check_lists(self) -> None:
        """To the policy, a folio is listed, isolated or gone, as its state says."""
        policy, state = self.policy.policy, self.memory._node.mm.state
        policy.check()
        if self.policy.has_lost:
            return
        known = vars(sys.modules[type(policy).__module__])
        isolated = {known[name] for name in ISOLATED & known.keys()}
        gone = {known[name] for name in GONE & known.keys()}
        for pfn, was in enumerate(state):
            where = policy._where[pfn] if pfn < len(policy._where) else known["_GONE"]
            listed = where not in isolated | gone
            assert listed == (was == RESIDENT), f"pfn {pfn}: {where} in state {was}"
            in_hand = was in {WRITEBACK, UNEVICTABLE}
            assert (where in isolated) == in_hand, f"pfn {pfn}: {where} in state {was}"

    def is_held(self, pfn: int) -> bool:
        return self.memory._node.mm.state[pfn] in {RESIDENT, UNEVICTABLE}

    def copy_of(self, pfn: int) -> bytes | None:
        """What a read of a folio would give if no store failed; None where only zram can say."""
        node = self.memory._node
        mm = node.mm
        data = mm.data.get(pfn)
        if mm.state[pfn] == ZSWAP:
            return node.compressor.decompress(data, mm.size[pfn])
        if mm.state[pfn] == SAME:
            return expand(mm.entry[pfn], mm.size[pfn])
        if mm.state[pfn] == DEVICE or mm.clean[pfn] == CACHED:
            stored = self.stored(pfn)
            assert data is None or stored in (None, data), f"pfn {pfn}: clean, but not the same"
            return stored if data is None else data
        return data

    def stored(self, pfn: int) -> bytes | None:
        """What the slots of a folio hold, behind the back of the store."""
        node = self.memory._node
        mm = node.mm
        backend = self.memory._machine.swapds[mm.device[pfn]].backend
        if isinstance(backend, ZramBackend):
            return None
        slots = backend.inner.slots if isinstance(backend, Fault) else backend._slots
        held = b"".join(slots[slot] for slot in node.slots.of(pfn))[: mm.length[pfn]]
        return node.compressor.decompress(held, mm.size[pfn]) if mm.codec[pfn] else held

    def teardown(self) -> None:
        if not hasattr(self, "memory"):
            return
        self.policy.raises = None
        try:
            while self.pinned:
                self.unpin()
            self.all_is_mended()
            self.swapoff_ends(cancelled=False)
            self.run(self.nobody_reads())
            self.mended.clear()
            for key in list(self.model):
                self.run(self.compare(key))
            self.check()
            self.run(self.close())
        finally:
            self.runner.close()

    async def nobody_reads(self) -> None:
        while self.reads():
            await asyncio.sleep(0.01)  # so that deadlines come

    async def close(self) -> None:
        self.leave.set()
        await self.holder
        node = self.memory._node
        assert node.check()
        assert node.nr_in_flight == 0
        with pytest.raises(anyio.ClosedResourceError):
            await self.memory.get(0)
        # A new memory over the same store sees none of the old slots.
        swap = [{"backend": store, "size": "2MiB"} for store in self.faults[:1]]
        async with ra.open_memory(self.topology, swap=swap, **self.spec) as fresh:
            assert len(fresh) == 0
            await fresh.put("new", b"x" * 5000)
            await fresh.reclaim(1_000_000)
            assert await fresh.get("new") == b"x" * 5000


@pytest.mark.timeout(7200)
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")  # 3.12
@pytest.mark.parametrize("part", range(PARTS))
def test_nothing_is_lost_whatever_happens(part):
    run_state_machine_as_test(
        MemoryMachine, settings=settings(suppress_health_check=list(HealthCheck))
    )
