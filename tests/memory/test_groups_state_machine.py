"""Random life of groups in groups: limits change, groups end while they are busy, stores fail.

Each group is compared with a dict of its own. After each step the core's invariants hold, those of
each group among them. Short in an ordinary run; ``HYPOTHESIS_PROFILE=nightly`` makes it long.
"""

from __future__ import annotations

import asyncio
import errno
import random

import anyio
import hypothesis.strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

import reclaimactors as ra
from reclaimactors.backends.memory import MemoryBackend
from reclaimactors.testing import FaultyBackend, VirtualClockLoop
from reclaimactors.topology import builtin_names

PAGE = 1 << 10
BUDGET = 256 << 10
KEYS = st.integers(0, 40)
AT = st.integers(0, 9)
LIMITS = st.fixed_dictionaries(
    {
        "max": st.sampled_from([None, 64 << 10, 128 << 10]),
        "high": st.sampled_from([None, None, 48 << 10]),
        "zswap_max": st.sampled_from([None, None, 4 << 10]),
        "swap_max": st.sampled_from([None, None, 32 << 10]),
        "zswap_writeback": st.sampled_from([True, True, True, False]),
    }
)
EIO = OSError(errno.EIO, "I/O error")


def value_of(seed: int, size: int, kind: str) -> bytes:
    if kind == "same":
        return bytes([seed % 256]) * size
    if kind == "random":
        return random.Random(seed).randbytes(size)
    return (b"value %d of a group, " % seed * (size // 8 + 1))[:size]


VALUES = st.builds(
    value_of,
    st.integers(0, 1000),
    st.sampled_from([0, 1, 100, 4096, 5000, 20_000]),
    st.sampled_from(["text", "text", "same", "random"]),
)


class Elsewhere(MemoryBackend):
    """A store that holds nothing in this process, as far as it says."""

    def footprint(self, slots):
        return 0


class GroupsMachine(RuleBasedStateMachine):
    """group, set_limits, put, get, delete, pin, reclaim; a group ends; a store fails."""

    @initialize(
        topology=st.sampled_from(builtin_names()),
        offload=st.sampled_from(["inline", "inline", "thread"]),
        inside=st.booleans(),
    )
    def open(self, topology, offload, inside):
        self.runner = asyncio.Runner(loop_factory=VirtualClockLoop)
        self.store = FaultyBackend(MemoryBackend() if inside else Elsewhere())
        self.opening = ra.open_memory(
            topology,
            budget=BUDGET,
            page_size=PAGE,
            max_folio="16KiB",
            swap=[{"backend": self.store, "size": "1MiB"}],
            compress={"offload": offload},
        )
        self.memory = self.run(self.enter())
        self.model = {self.memory: {}}
        self.names = 0

    async def enter(self):
        return await self.opening

    def run(self, coroutine):
        async def bounded():
            return await asyncio.wait_for(coroutine, 200)

        return self.runner.run(bounded())

    def group(self, at):
        groups = list(self.model)
        return groups[(at >> 1) % len(groups)] if at & 1 else groups[-1]

    # -- groups

    @precondition(lambda self: len(self.model) < 6)
    @rule(at=AT, limits=LIMITS)
    def add(self, at, limits):
        self.names += 1
        try:
            group = self.group(at).group(f"group{self.names}", **limits)
        except ra.TopologyError:
            assert limits["high"] is not None
            assert limits["max"] is not None
            return
        self.model[group] = {}

    @precondition(lambda self: len(self.model) > 1)
    @rule(at=AT, top=st.sampled_from([None, 32 << 10, 64 << 10, 128 << 10]))
    def limit(self, at, top):
        group = self.group(2 * at + 1)
        if group is not self.memory:
            before = group.usage().budget
            try:
                self.run(group.set_limits(max=top, high=None))
            except ra.OutOfMemory:
                assert group.usage().budget == before

    @precondition(lambda self: len(self.model) > 1)
    @rule(at=AT, reparent=st.booleans(), puts=st.integers(0, 12), value=VALUES)
    def end(self, at, reparent, puts, value):
        group = self.group(2 * at + 1)
        if group is self.memory or group.groups:
            return
        inside = group._inside
        done = self.run(self.end_while_busy(group, reparent, puts, value))
        if done is None:
            return
        values = self.model.pop(group)
        if reparent:
            values |= {f"busy{i}": value for i in done}
            self.model[inside] = values | self.model[inside]

    async def end_while_busy(self, group, reparent, puts, value):
        """End a group beside puts into it; return which of these were in time, None if it stays."""
        in_time = set()

        async def put(i):
            try:
                await group.put(f"busy{i}", value)
            except (anyio.ClosedResourceError, ra.OutOfMemory):
                return
            in_time.add(i)

        ended = True
        tasks = [asyncio.ensure_future(put(i)) for i in range(puts)]
        await asyncio.sleep(0)
        try:
            await group.delete(reparent=reparent)
        except ra.TopologyError:
            assert reparent
            ended = False
        await asyncio.gather(*tasks)
        if not ended:
            self.model[group] |= {f"busy{i}": value for i in in_time}
            return None
        inside = self.model[group._inside]
        return {i for i in in_time if f"busy{i}" not in inside}

    # -- values

    @rule(at=AT, key=KEYS, value=VALUES)
    def put(self, at, key, value):
        group = self.group(at)
        try:
            self.run(group.put(key, value))
        except ra.OutOfMemory:
            return
        self.model[group][key] = value

    @rule(at=AT, key=KEYS, value=VALUES)
    def put_nowait(self, at, key, value):
        group = self.group(at)

        async def call():
            group.put_nowait(key, value)

        try:
            self.run(call())
        except (ra.OutOfMemory, anyio.WouldBlock):
            return
        self.model[group][key] = value

    @rule(at=AT, key=KEYS)
    def get(self, at, key):
        group = self.group(at)
        assert self.run(group.get(key, None)) == self.model[group].get(key)

    @rule(at=AT, key=KEYS)
    def delete(self, at, key):
        group = self.group(at)
        if self.model[group].pop(key, None) is not None:
            self.run(group.delete(key))

    @rule(at=AT, key=KEYS)
    def pin(self, at, key):
        group = self.group(at)

        async def look():
            async with group.pin(key) as view:
                assert view == self.model[group][key]

        if key in self.model[group]:
            try:
                self.run(look())
            except ra.OutOfMemory:
                return

    @rule(at=AT, nbytes=st.sampled_from([PAGE, BUDGET]), blobs=st.booleans())
    def reclaim(self, at, nbytes, blobs):
        self.run(self.group(at).reclaim(nbytes, zswap_writeback_only=blobs))

    # -- the store

    @rule(fails=st.booleans())
    def store(self, fails):
        self.store.store_errors = dict.fromkeys(range(self.store.nr_stores + 1, 9999), EIO)
        if not fails:
            self.store.store_errors = {}

    @rule(seconds=st.sampled_from([0.01, 1.0]))
    def time_passes(self, seconds):
        self.run(asyncio.sleep(seconds))

    # -- what always holds

    @invariant()
    def check(self):
        if hasattr(self, "memory"):
            assert self.memory._node.check()
            for group in self.model:
                assert group.usage().free >= 0

    def teardown(self):
        if not hasattr(self, "memory"):
            return
        self.store.store_errors = {}
        for group, values in self.model.items():
            assert set(self.run(self.keys(group))) == set(values)
            for key, value in values.items():
                assert self.run(group.get(key)) == value
        self.run(self.memory.aclose())
        self.runner.close()

    async def keys(self, group):
        return group.keys()


TestGroups = GroupsMachine.TestCase
