"""Random life of a zram against a dict, over a backing store that fails, fills up and hangs back.

After each rule the table agrees with itself, and every slot is read and compared; a slot is never
in two places. Passes run as tasks of their own, held at a gate, so that stores and frees come in
between.
"""

import asyncio
import random

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from reclaimactors import Backend, BackendError, BackendFull
from reclaimactors.backends.memory import MemoryBackend
from reclaimactors.backends.zram import ZramBackend
from reclaimactors.compressors.lz4 import Lz4
from reclaimactors.mm.page_io import SAME_FILLED, squeeze
from reclaimactors.testing import FaultyBackend, Gate

PAGE = 4096
SLOTS = st.integers(0, 60)


def page(seed, size, kind):
    if kind == "same":
        return bytes([seed % 3]) * size
    noise = random.Random(seed).randbytes(size)
    text = (b"slot %d of the state machine, " % seed * (size // 8 + 1))[:size]
    letters = bytes(b"abcdefgh"[byte % 8] for byte in noise)
    return {"noise": noise, "text": text, "letters": letters[: size // 2] + text[size // 2 :]}[kind]


PAGES = st.builds(
    page,
    st.integers(0, 500),
    st.sampled_from([1, 15, 16, 700, PAGE]),
    st.sampled_from(["same", "noise", "text", "letters", "letters"]),
)
ITEMS = st.dictionaries(SLOTS, PAGES, min_size=1, max_size=12)


class Elsewhere(MemoryBackend):
    footprint = Backend.footprint


class ZramMachine(RuleBasedStateMachine):
    @initialize(limit=st.sampled_from([0, 20 * PAGE, 60 * PAGE]), batch=st.integers(1, 32))
    def open(self, limit, batch):
        self.runner = asyncio.Runner()
        self.inner = Elsewhere()
        self.backing = FaultyBackend(self.inner)
        self.zram = ZramBackend(
            "lz4", recompressor="zlib", mem_limit=limit, backing=self.backing, writeback_batch=batch
        )
        self.values = {}
        self.weight = {}  # slot -> its footprint when it was stored, less what it told us
        self.zram.on_shrunk = self.shrunk
        self.task = None
        self.trouble = False  # since the pass under way has begun
        self.run(self.zram.open(PAGE))

    def shrunk(self, slot):
        before, self.weight[slot] = self.weight[slot], self.zram.footprint([slot])
        assert self.weight[slot] < before

    def run(self, coroutine):
        return self.runner.run(coroutine)

    def stored(self, items):
        self.values.update(items)
        for slot in items:
            self.weight[slot] = self.zram.footprint([slot])

    @rule(items=ITEMS)
    def store(self, items):
        try:
            self.run(self.zram.store_many(list(items.items())))
        except BackendFull:
            assert self.zram.mem_limit
        else:
            self.stored(items)

    @rule(items=ITEMS)
    def store_squeezed(self, items):
        out = squeeze(Lz4(), list(items.values()))
        rows = zip(items.values(), out.kinds, out.blobs, out.values, strict=True)
        kept = [value if kind == SAME_FILLED else blob or data for data, kind, blob, value in rows]
        sizes = [len(data) for data in items.values()]
        done = self.zram.store_squeezed(list(items), sizes, kept)
        assert done == len(items) or self.zram.mem_limit
        self.stored(dict(list(items.items())[:done]))

    @rule(slots=st.sets(SLOTS, max_size=8))
    def free(self, slots):
        self.run(self.zram.invalidate_many(slots))
        for slot in slots:
            self.values.pop(slot, None)
            self.weight.pop(slot, None)

    @rule(slots=st.none() | st.sets(SLOTS))
    def mark_idle(self, slots):
        self.zram.mark_idle(slots)

    @rule(slot=SLOTS)
    def access(self, slot):
        try:
            assert self.run(self.zram.load(slot)) == self.values[slot]
        except KeyError:
            pytest.fail(f"slot {slot} was given back though it is not stored")
        except BackendError:
            assert slot not in self.values or self.backing.error

    @rule(error=st.sampled_from([None, OSError(5, "gone")]), room=st.none() | st.integers(0, 30))
    def fate(self, error, room):
        self.backing.error, self.backing.full_after = error, room
        self.trouble = self.trouble or bool(error) or room is not None

    @precondition(lambda self: self.task is None)
    @rule(
        kind=st.sampled_from(["idle", "huge", "huge_idle", "incompressible", "recompress"]),
        gated=st.booleans(),
        most=st.none() | st.integers(1, 20),
        limit=st.none() | st.integers(0, 20 * PAGE),
    )
    def begin_pass(self, kind, gated, most, limit):
        self.backing.store_gate = Gate() if gated else None
        self.zram.writeback_left = limit
        self.trouble = bool(self.backing.error) or self.backing.full_after is not None

        async def begin():
            if kind == "recompress":
                self.task = asyncio.ensure_future(self.zram.recompress("idle", max_slots=most))
            else:
                self.task = asyncio.ensure_future(self.zram.writeback(kind, max_slots=most))
            for _ in range(5):
                await asyncio.sleep(0)

        self.run(begin())

    @precondition(lambda self: self.task is not None)
    @rule(cancel=st.booleans())
    def end_pass(self, cancel):
        async def end():
            if cancel:
                self.task.cancel()
                await asyncio.sleep(0)
            if self.backing.store_gate is not None:
                self.backing.store_gate.open()
            try:
                assert await self.task >= 0
            except BackendError:
                assert self.trouble
            except asyncio.CancelledError:
                assert cancel

        self.run(end())
        self.task = self.backing.store_gate = None
        left = self.zram.writeback_left
        assert left is None or left >= 0
        table = self.zram.table
        assert not any(flags & 128 for flags in table.flags)  # nothing is in flight any more

    @invariant()
    def the_table_agrees(self):
        if not hasattr(self, "zram"):
            return
        table, zram = self.zram.table, self.zram
        table.check()
        zram.backing.blocks.check()
        assert {slot for slot, flags in enumerate(table.flags) if flags} == set(self.values)
        assert not zram.mem_limit or table.held_bytes <= zram.mem_limit
        assert {slot: zram.footprint([slot]) for slot in self.values} == self.weight
        assert sum(self.weight.values()) == zram.mm_stat["mem_used_total"]
        if self.task is None:
            used = len(table.block) + len(table.dropped)
            assert zram.backing.blocks.used == used
        for slot, value in self.values.items():
            if slot not in table.block:
                flags = table.flags[slot]
                assert zram.load_now([slot]) == [value]
                table.flags[slot] = flags  # looking is no access

    def teardown(self):
        if not hasattr(self, "zram"):
            return
        if self.task is not None:
            self.end_pass(cancel=False)
        self.backing.error = None
        slots = list(self.values)
        assert self.run(self.zram.load_many(slots)) == [self.values[slot] for slot in slots]
        self.run(self.zram.invalidate_many(slots))
        assert self.zram.mm_stat["orig_data_size"] == self.zram.mm_stat["mem_used_total"] == 0
        self.run(self.zram.backing.forget_aside())  # of passes that were cancelled
        assert self.zram.backing.blocks.aside == 0
        assert not self.inner._slots
        self.run(self.zram.aclose())
        self.runner.close()


TestZramMachine = ZramMachine.TestCase
