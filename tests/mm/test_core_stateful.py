"""Random life of the mm core: node, way out, way in and kswapd against a dict of values.

Batches and writes are kept in flight for as long as hypothesis likes, and end in any order. After
each step the invariants of the node hold, among them conservation (I1): every folio that was
isolated has had one verdict or is in flight.
"""

import zlib
from functools import partial
from itertools import count

import hypothesis.strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)

from reclaimactors import CorruptData, ProtocolViolation
from reclaimactors.compressors.lz4 import Lz4
from reclaimactors.mm.batch import Reclaimer
from reclaimactors.mm.expiry import Terms, terms_of
from reclaimactors.mm.folio import DEVICE
from reclaimactors.mm.limits import Limits
from reclaimactors.mm.memcg import Memcg
from reclaimactors.mm.node import Node
from reclaimactors.mm.offline import offline
from reclaimactors.mm.page_io import squeeze
from reclaimactors.mm.swap import SwapDevices
from reclaimactors.mm.swap_device import SwapDevice
from reclaimactors.mm.swapin import Swapin
from reclaimactors.mm.swapout import Swapout
from reclaimactors.mm.vmscan import Kswapd, Step
from reclaimactors.mm.watermark import Watermarks
from reclaimactors.mm.zswap import Zswap
from reclaimactors.policies.active_inactive import ActiveInactive
from reclaimactors.policies.mglru import Mglru
from reclaimactors.policies.s3fifo import S3Fifo
from reclaimactors.policies.sieve import Sieve
from reclaimactors.testing import FaultyCompressor

PAGE = 512
BUDGET = 256 * PAGE
KEYS = st.one_of(
    st.integers(0, 25), st.sampled_from(["long" * 50, ("tuple", "long" * 99), b"b" * 300])
)
GROUPS = st.integers(0, 9)
POLICIES = (
    partial(ActiveInactive, pages=BUDGET // PAGE), partial(Mglru, pages=BUDGET // PAGE),
    S3Fifo, Sieve,
)  # fmt: skip
VERDICTS = ("stored", "zero", "device", "activate", "keep", "cancelled", "error")


def value_of(kind: str, seed: int, size: int) -> bytes:
    if kind == "same":
        return bytes([seed]) * size
    if kind == "noise":
        words = (zlib.crc32(b"%d/%d" % (seed, i)).to_bytes(4, "big") for i in range(size // 4 + 1))
        return b"".join(words)[:size]
    return (b"value %d of the core, " % seed * (size // 8 + 1))[:size]


VALUES = st.builds(
    value_of,
    st.sampled_from(["text", "text", "noise", "same"]),
    st.integers(0, 255),
    st.sampled_from([0, 1, 15, 100, PAGE, PAGE + 1, 3 * PAGE, 9 * PAGE]),
)


class CoreMachine(RuleBasedStateMachine):
    """Keys, kswapd, workers and stores, each step of them a rule."""

    @initialize(
        policy=st.sampled_from(POLICIES),
        pool=st.sampled_from([1, 5, 20]),
        enabled=st.sampled_from([True, True, True, False]),
        capacities=st.lists(st.sampled_from([None, 6, 40]), max_size=2),
        charged=st.sets(st.integers(0, 1)),
    )
    def build(self, policy, pool, enabled, capacities, charged):
        devices = (SwapDevice(i, f"store{i}", -i, nr) for i, nr in enumerate(capacities))
        self.compressor = FaultyCompressor(Lz4())
        self.policy = policy
        self.node = Node(
            page_size=PAGE,
            memcg=Memcg(BUDGET),
            marks=Watermarks(BUDGET // 20, BUDGET // 8, BUDGET // 4),
            policy=policy(),
            zswap=Zswap(
                BUDGET, enabled=enabled, max_pool_percent=pool, accept_threshold_percent=80
            ),
            swap=SwapDevices(tuple(devices)),
            compressor=self.compressor,
        )
        self.out = Swapout(self.node)
        self.back = Swapin(self.node, self.out.ledger)
        self.kswapd = Kswapd(self.node.root, max_in_flight=BUDGET // 8)
        self.charged = charged  # stores that are in this process
        self.stores = [{} for _ in capacities]
        self.forgetting = []  # (device, runs)
        self.batches = []  # isolated
        self.begun = []  # (batch, rows): a worker has its bytes
        self.writes = []
        self.writing = []  # (write, items): a store has them
        self.loads = []  # (load, expected)
        self.pins = []  # (pfn, value)
        self.names = count()
        self.model = {self.node.root: {}}  # group -> its values
        self.freed_total = 0
        self.now = 0.0
        self.discardable = {}  # group -> keys that may be dropped from now on

    def pick(self, things, index):
        return things.pop(index % len(things))

    def group(self, index):
        """Return one of the groups, the root as often as all others."""
        groups = list(self.model)
        return groups[(index >> 1) % len(groups)] if index & 1 else groups[0]

    # -- groups

    @precondition(lambda self: len(self.model) < 5)
    @rule(
        parent=GROUPS,
        top=st.sampled_from([None, BUDGET // 2, BUDGET // 4]),
        high=st.sampled_from([None, None, BUDGET // 8]),
        zswap_max=st.sampled_from([None, None, 500]),
        swap_max=st.sampled_from([None, None, 10 * PAGE]),
        writeback=st.sampled_from([True, True, False]),
        swap=st.sampled_from([None, None, frozenset({"store1"})]),
    )
    def add_group(self, *, parent, top, high, zswap_max, swap_max, writeback, swap):
        limits = Limits(
            max=top, high=high, zswap_max=zswap_max, swap_max=swap_max,
            zswap_writeback=writeback, swap=swap,
        )  # fmt: skip
        marks = Watermarks(top // 20, top // 8, top // 4) if top else Watermarks(1, 2, 3)
        policy = self.policy()
        name = f"group{next(self.names)}"
        group = self.node.add_group(name, self.group(parent), policy, limits, marks)
        self.model[group] = {}

    @precondition(lambda self: len(self.model) > 1)
    @rule(index=st.integers(0), reparent=st.booleans())
    def end_group(self, index, reparent):
        group = self.group(2 * index + 1)
        if group.parent is None or group.children:
            return
        for _ in offline(group, self.out.ledger, reparent=reparent):
            assert self.node.check()
        values = self.model.pop(group)
        if reparent:
            self.model[group.parent] = {**values, **self.model[group.parent]}

    # -- keys

    @rule(at=GROUPS, key=KEYS, value=VALUES, parts=st.sampled_from([1, 1, 3]))
    def put(self, at, key, value, parts):
        group = self.group(at)
        size = -(-len(value) // parts) or 1
        cut = [value[i : i + size] for i in range(0, len(value), size)] or [b""]
        before = group.memcg.room
        if group.values.need(key, len(value), len(cut)) > before:
            try:
                group.values.commit(key, cut, 0)
            except ProtocolViolation:
                assert group.memcg.room == before
                return
            raise AssertionError("a put passed the budget")
        group.values.commit(key, cut, 0)
        self.model[group][key] = value

    @rule(at=GROUPS, key=KEYS, value=VALUES, may_wait=st.booleans())
    def put_fast(self, at, key, value, may_wait):
        group = self.group(at)
        if group.values.put_fast(key, value, may_wait=may_wait):
            self.model[group][key] = value

    @rule(
        at=GROUPS,
        key=KEYS,
        value=VALUES,
        seconds=st.none() | st.sampled_from([0.5, 20, 900]),
        discardable=st.booleans(),
    )
    def put_on_terms(self, *, at, key, value, seconds, discardable):
        """One that ends, or may be dropped, or both; in two folios where it is not small."""
        group = self.group(at)
        half = -(-len(value) // 2)
        cut = [value] if len(value) < PAGE else [value[:half], value[half:]]
        terms = Terms(discardable=discardable)
        if seconds is not None:
            terms = terms_of(self.now, seconds, discardable=discardable)
        if group.values.need(key, len(value), len(cut), terms) <= group.memcg.room:
            group.values.commit(key, cut, 0, terms)
            self.model[group][key] = value

    @rule(seconds=st.sampled_from([0.3, 5, 1000]))
    def time_passes(self, seconds):
        """What has ended, and nothing else, is swept, later by an eighth of its time at most."""
        self.now += seconds
        for group, values in self.model.items():
            expiry = group.values.expiry
            ended = expiry.ended(self.now)
            while expiry.next <= self.now:
                key = expiry.first()
                assert key in ended
                group.values.expire(key)
                del values[key]

    @invariant()
    def only_what_is_discardable_is_dropped(self):
        if not hasattr(self, "node"):
            return
        for group, values in self.model.items():
            for key in [key for key in values if key not in group.values]:
                assert key in self.discardable.get(group, ()), key
                del values[key]
            self.discardable[group] = set(group.values.lazy.keys.values())

    @rule(at=GROUPS, key=KEYS)
    def delete(self, at, key):
        group = self.group(at)
        if self.model[group].pop(key, None) is not None:
            group.values.delete(key)

    @rule(at=GROUPS, key=KEYS, force=st.booleans())
    def get(self, at, key, force):
        """Read all of a value that is in memory; what only a store has is asked for."""
        group = self.group(at)
        if key not in self.model[group]:
            assert key not in group.values
            return
        value = self.model[group][key]
        pfns = group.values.pfns(key)
        promote = self.back.may_promote(pfns) or (
            force and self.back.shortfall(pfns) <= group.memcg.room
        )
        offset = 0
        for pfn in pfns:
            end = offset + self.node.mm.size[pfn]
            expected = value[offset:end]
            data = self.back.fault(pfn, promote=promote)
            if data is None:
                self.loads.append((self.back.begin_loads((pfn,), promote=promote)[0], expected))
            else:
                assert data == expected
            offset = end
        assert offset == len(value)

    @rule(at=GROUPS, key=KEYS)
    def pin(self, at, key):
        group = self.group(at)
        pfn = group.values.small.get(key)
        if pfn is not None and len(self.pins) < 3 and self.node.mm.state[pfn] < 2:
            self.node.pin(pfn)
            self.pins.append((pfn, self.model[group][key]))

    @precondition(lambda self: self.pins)
    @rule(index=st.integers(0))
    def unpin(self, index):
        pfn, value = self.pick(self.pins, index)
        assert self.node.mm.data[pfn] == value
        self.node.unpin(pfn)

    # -- kswapd and the workers

    @rule(age=st.booleans())
    def kswapd_steps(self, age):
        if age:
            self.node.root.policy.age(0.0)
        step = self.kswapd.next()
        if step is not Step.ISOLATE:
            return
        batch = self.out.isolate(self.kswapd.nr, self.kswapd.max_bytes, Reclaimer.KSWAPD)
        self.kswapd.isolated(batch)
        if batch:
            self.batches.append(batch)

    @rule(at=GROUPS, nr=st.integers(1, 40), who=st.sampled_from(Reclaimer))
    def isolate(self, at, nr, who):
        batch = self.out.isolate(nr, BUDGET // 8, who, within=self.group(at))
        if batch:
            self.batches.append(batch)

    @precondition(lambda self: self.batches)
    @rule(index=st.integers(0), nr=st.integers(1, 5))
    def split(self, index, nr):
        batch = self.batches[index % len(self.batches)]
        if nr < len(batch.pfns):
            self.batches.append(self.out.split(batch, nr))

    @precondition(lambda self: self.batches)
    @rule(index=st.integers(0), hold=st.booleans(), fails=st.sampled_from([None, None, 1, 2]))
    def begin(self, index, hold, fails):
        batch = self.pick(self.batches, index)
        pages, writes = self.out.begin(batch, hold=hold)
        self.writes += writes
        self.compressor.every = fails
        self.begun.append((batch, squeeze(self.compressor, pages)))
        self.compressor.every = None

    @precondition(lambda self: self.begun)
    @rule(index=st.integers(0))
    def complete(self, index):
        self.writes += self.out.complete(*self.pick(self.begun, index))

    @precondition(lambda self: self.begun or self.batches)
    @rule(index=st.integers(0))
    def hand_back(self, index):
        batches = self.batches + [batch for batch, _ in self.begun]
        batch = batches[index % len(batches)]
        self.batches = [other for other in self.batches if other is not batch]
        self.begun = [other for other in self.begun if other[0] is not batch]
        self.out.hand_back(batch)

    # -- stores

    @precondition(lambda self: self.stores)
    @rule(device=st.integers(0), wanted=st.sampled_from([0, 1, 5000]))
    def write_back(self, device, wanted):
        self.node.zswap.wanted = max(self.node.zswap.wanted, wanted)
        write = self.out.shrinker.writeback(self.node.swap[device % len(self.stores)])
        if write is not None:
            self.writes.append(write)

    @precondition(lambda self: self.stores)
    @rule(device=st.integers(0), wanted=st.sampled_from([0, 1, 5000]))
    def demote(self, device, wanted):
        demotion = self.node.demotion
        demotion.wanted = max(demotion.wanted, wanted)
        write = self.out.shrinker.demote(self.node.swap[device % len(self.stores)])
        if write is not None:
            self.writes.append(write)

    @precondition(lambda self: self.node.slots.swapped)
    @rule(at=GROUPS, at_least=st.sampled_from([0, 1000, BUDGET]))
    def nothing_resident_is_left(self, at, at_least):
        self.node.writeback.want_of(self.group(at), at_least)

    @precondition(lambda self: self.writes)
    @rule(index=st.integers(0))
    def store_begins(self, index):
        write = self.pick(self.writes, index)
        if write.moved is not None:
            self.read_moved(write)
        items = self.out.pageout.items(write)
        assert all(data for _, data in items), "an item of no bytes"
        self.writing.append((write, items))

    def read_moved(self, write):
        mm = self.node.mm
        for pfn in write.pfns:
            if mm.owner[pfn] == write.id:
                device, slots = mm.device[pfn], self.node.slots.of(pfn)
                stored = [self.stores[device][slot] for slot in slots]
                write.moved[pfn] = self.back.as_stored(pfn, device, slots, stored)

    @precondition(lambda self: self.writing)
    @rule(index=st.integers(0))
    def store_acknowledges(self, index):
        write, items = self.pick(self.writing, index)
        assert not self.stores[write.device].keys() & dict(items).keys(), "a slot in use"
        self.stores[write.device].update(items)
        self.out.pageout.stored(
            write,
            [length // 2 for length in write.lengths] if write.device in self.charged else None,
        )

    @precondition(lambda self: self.writing)
    @rule(index=st.integers(0), late=st.booleans())
    def store_raises(self, index, late):
        write, items = self.pick(self.writing, index)
        if late:  # it timed out, and happens all the same
            self.stores[write.device].update(items)
        self.writes += self.out.pageout.store_failed(write, aside=late)

    @precondition(lambda self: self.writes)
    @rule(index=st.integers(0))
    def mailbox_is_full(self, index):
        self.out.pageout.refuse(self.pick(self.writes, index))

    @precondition(lambda self: self.stores)
    @rule(device=st.integers(0))
    def forget_begins(self, device):
        device %= len(self.stores)
        runs = self.node.slots.take_stale(device)
        if runs:
            self.forgetting.append((device, runs))

    @precondition(lambda self: self.forgetting)
    @rule(index=st.integers(0), answered=st.sampled_from([True, True, True, False]))
    def forget_ends(self, index, answered):
        device, runs = self.pick(self.forgetting, index)
        for first, nr in runs:
            for slot in range(first, first + nr):
                self.stores[device].pop(slot, None)
        (self.node.slots.forgotten if answered else self.node.slots.not_forgotten)(device, runs)

    @precondition(lambda self: self.node.swap.aside)
    @rule(device=st.integers(0), nr=st.integers(1, 8), answered=st.booleans())
    def asked_for_what_is_aside(self, device, nr, answered):
        swap = self.node.swap[device % len(self.stores)]
        slots = swap.first_aside(nr)
        for slot in slots if answered else ():
            self.stores[swap.index].pop(slot, None)
        (swap.take_back if answered else swap.aside_last)(len(slots))

    @precondition(lambda self: self.loads)
    @rule(index=st.integers(0), kind=st.sampled_from(["good", "good", "flip", "fail"]))
    def load_ends(self, index, kind):
        load, expected = self.pick(self.loads, index)
        stored = [self.stores[load.device][slot] for slot in load.slots]
        if kind == "fail":
            self.back.fail(load)
        elif kind == "flip":
            stored[0] = bytes([stored[0][0] ^ 1]) + stored[0][1:]
            try:
                self.back.finish(load, stored)
            except CorruptData:
                return
            raise AssertionError("flipped bytes were handed out")
        else:
            assert self.back.finish(load, stored) == expected

    # -- what always holds

    @invariant()
    def check(self):
        if not hasattr(self, "node"):
            return
        assert self.node.check()
        for group in self.model:
            group.policy.check()
        for pfn, value in self.pins:
            assert self.node.mm.data[pfn] == value
        assert self.node.memcg.freed_total >= self.freed_total
        self.freed_total = self.node.memcg.freed_total

    @invariant()
    def conserved(self):
        if hasattr(self, "node"):
            vm = self.node.vmstat
            ended = sum(vm[f"reclaim_{verdict}"] for verdict in VERDICTS)
            assert vm["reclaim_isolated"] == ended + self.node.nr_in_flight

    def teardown(self):
        if not hasattr(self, "node"):
            return
        self.land_everything()
        for group, values in self.model.items():
            for key, value in values.items():
                assert b"".join(map(self.read, group.values.pfns(key))) == value
        self.delete_everything()

    def land_everything(self):
        while self.loads:
            self.load_ends(0, "good")
        while self.batches:
            self.hand_back(0)
        while self.begun:
            self.complete(0)
        while self.writes or self.writing:
            if self.writes:
                self.store_begins(0)
            self.store_acknowledges(0)
        while self.pins:
            self.unpin(0)
        self.check()
        assert self.node.nr_in_flight == self.node.writeback.nr_writes == 0

    def delete_everything(self):
        for group, values in self.model.items():
            for key in values:
                group.values.delete(key)
        for device in range(len(self.stores)):
            self.node.slots.forgotten(device, self.node.slots.take_stale(device))
        while self.forgetting:
            self.forget_ends(0, answered=True)
        self.check()
        assert all(group.memcg.free == group.memcg.budget for group in self.model)
        assert self.node.swap.used == 0
        assert self.node.idle or self.node.writeback.wanted

    def read(self, pfn):
        data = self.back.fault(pfn, promote=False)
        if data is None:
            assert self.node.mm.state[pfn] == DEVICE
            load = self.back.begin_loads((pfn,), promote=False)[0]
            data = self.back.finish(load, [self.stores[load.device][slot] for slot in load.slots])
        return data


TestCore = CoreMachine.TestCase
