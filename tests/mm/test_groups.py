"""Groups in the mm core, driven by hand: whose bytes they are, who is reclaimed, what limits leave.

After each step the invariants of the node are checked, those of each group among them.
"""

import zlib

import pytest

from reclaimactors import ProtocolViolation
from reclaimactors.compressors.lz4 import Lz4
from reclaimactors.mm.batch import Reclaimer
from reclaimactors.mm.folio import DEVICE, RESIDENT, UNEVICTABLE, ZSWAP
from reclaimactors.mm.limits import Limits
from reclaimactors.mm.memcg import FOLIO_OVERHEAD, KEY_OVERHEAD, ChildMemcg, Memcg
from reclaimactors.mm.node import Node
from reclaimactors.mm.offline import offline
from reclaimactors.mm.page_io import squeeze
from reclaimactors.mm.swap import SwapDevices
from reclaimactors.mm.swap_device import SwapDevice
from reclaimactors.mm.swapin import Swapin
from reclaimactors.mm.swapout import Swapout
from reclaimactors.mm.watermark import Watermarks
from reclaimactors.mm.zswap import Zswap
from reclaimactors.policies.active_inactive import ActiveInactive

PAGE = 4096
BUDGET = 1 << 20
OVERHEAD = KEY_OVERHEAD + FOLIO_OVERHEAD


def text(seed=0):
    """A value that compresses to a few bytes, another one for each seed."""
    return (b"value %d of a group, " % seed * PAGE)[:PAGE]


def noise(seed=0):
    """A value that does not compress."""
    return b"".join(zlib.crc32(b"%d/%d" % (seed, i)).to_bytes(4, "big") for i in range(PAGE // 4))


class Core:
    """A node with groups."""

    def __init__(self, devices=()):
        self.node = Node(
            page_size=PAGE,
            memcg=Memcg(BUDGET),
            marks=Watermarks(BUDGET // 50, BUDGET // 16, BUDGET // 8),
            policy=ActiveInactive(pages=BUDGET // PAGE),
            zswap=Zswap(BUDGET, enabled=True, max_pool_percent=20, accept_threshold_percent=90),
            swap=SwapDevices(
                tuple(SwapDevice(i, f"store{i}", -i, nr) for i, nr in enumerate(devices))
            ),
            compressor=Lz4(),
        )
        self.out = Swapout(self.node)
        self.back = Swapin(self.node, self.out.ledger)
        self.slots = [{} for _ in devices]

    def group(self, name, parent=None, **limits):
        limits = Limits(**limits)
        top = limits.max or BUDGET
        marks = Watermarks(top // 50, top // 16, top // 8) if limits.max else Watermarks(1, 2, 3)
        parent = parent or self.node.root
        policy = ActiveInactive(pages=BUDGET // PAGE)
        group = self.node.add_group(name, parent, policy, limits, marks)
        self.node.check()
        return group

    def put(self, group, key, value):
        group.values.commit(key, [value], 0)
        self.node.check()

    def fill(self, group, nr, value=text):
        for i in range(nr):
            self.put(group, (value.__name__, i), value(i))

    def reclaim(self, within=None, nr=32, who=Reclaimer.KSWAPD):
        """Reclaim a batch, its writes included; return the group that it was of."""
        batch = self.out.isolate(nr, 1 << 30, who, within=within)
        if batch is None:
            return None
        pages, writes = self.out.begin(batch, hold=False)
        self.node.check()
        writes += self.out.complete(batch, squeeze(self.node.compressor, pages))
        self.node.check()
        self.write(writes)
        return batch.group

    def write(self, writes):
        for write in writes:
            self.slots[write.device].update(self.out.pageout.items(write))
            self.out.pageout.stored(write)
            self.node.check()

    def write_back(self, device=0):
        """Write back what is asked for; return the groups that it was of."""
        groups = []
        while True:
            spared = self.node.vmstat["zswap_second_chance"]
            write = self.out.shrinker.writeback(self.node.swap[device])
            self.node.check()
            if write is not None:
                groups.append(write.group)
                self.write([write])
            elif self.node.vmstat["zswap_second_chance"] == spared:
                return groups

    def get(self, group, key):
        data = b""
        for pfn in group.values.pfns(key):
            part = self.back.fault(pfn, promote=True)
            if part is None:
                (load,) = self.back.begin_loads((pfn,), promote=True)
                part = self.back.finish(load, [self.slots[load.device][s] for s in load.slots])
            data += part
            self.node.check()
        return data

    def states(self, group):
        return {self.node.mm.state[pfn] for pfn in group.values.small.values()}


# -- whose bytes they are


def test_what_a_group_holds_all_groups_hold_that_it_is_in():
    core = Core()
    outer = core.group("outer")
    inner = core.group("inner", outer)
    core.put(inner, "key", text())
    charged = PAGE + OVERHEAD
    for group in (core.node.root, outer, inner):
        assert group.memcg.budget - group.memcg.free == charged
    inner.values.delete("key")
    for group in (core.node.root, outer, inner):
        assert group.memcg.free == group.memcg.budget
    assert inner.name == "outer/inner"


def test_a_charge_that_one_of_them_has_no_room_for_changes_none():
    core = Core()
    outer = core.group("outer", max=3 * PAGE)
    inner = core.group("inner", outer, max=64 * PAGE)
    core.put(inner, "first", text())
    before = [group.memcg.free for group in inner.lineage]
    with pytest.raises(ProtocolViolation):
        inner.values.commit("large", [text(), text(), text()], 0)
    assert core.node.check()
    assert [group.memcg.free for group in inner.lineage] == before


def test_a_reservation_counts_everywhere_until_it_is_given_back_or_spent():
    root = Memcg(1000)
    outer = ChildMemcg(500, root)
    inner = ChildMemcg(1000, outer)
    inner.reserve(100)
    assert [memcg.reserved for memcg in (root, outer, inner)] == [100] * 3
    inner.spend(60, resident=50)
    inner.unreserve(40)
    assert [memcg.reserved for memcg in (root, outer, inner)] == [0] * 3
    assert [memcg.resident for memcg in (root, outer, inner)] == [50] * 3
    for memcg in (root, outer, inner):
        memcg.check()


def test_the_same_key_is_another_value_in_each_group():
    core = Core()
    one, other = core.group("one"), core.group("other")
    core.put(one, "key", text(1))
    core.put(other, "key", text(2))
    assert core.get(one, "key") == text(1)
    assert core.get(other, "key") == text(2)
    assert "key" not in core.node.values


# -- who is reclaimed


def test_reclaim_of_a_group_takes_nothing_of_another():
    core = Core()
    hog, other = core.group("hog"), core.group("other")
    core.fill(hog, 40)
    core.fill(other, 40)
    while core.reclaim(within=hog) is not None:
        assert core.states(other) == {RESIDENT}
    assert core.states(hog) == {ZSWAP}
    assert hog.scan.exhausted
    assert not core.node.scan.exhausted, "there is more to look at in the whole memory"


def test_reclaim_of_a_group_takes_of_those_in_it():
    core = Core()
    outer = core.group("outer")
    inner = core.group("inner", outer)
    core.fill(inner, 10)
    assert core.reclaim(within=outer) is inner
    assert core.states(inner) == {ZSWAP}


def test_who_is_above_his_high_by_most_goes_first():
    core = Core()
    small = core.group("small", max=BUDGET, high=10 * PAGE)
    large = core.group("large", max=BUDGET, high=10 * PAGE)
    none = core.group("none")
    core.fill(small, 20)
    core.fill(large, 60)
    core.fill(none, 100)
    assert core.reclaim(nr=16) is large
    turns = [core.reclaim(nr=16) for _ in range(3)]
    assert turns[:2] == [large, large]
    while large.above_high or small.above_high:
        assert core.reclaim(nr=8) is not none


def test_without_limits_each_has_as_many_turns_as_he_has_folios():
    core = Core()
    groups = [core.group(f"tenant{i}") for i in range(3)]
    for group, nr in zip(groups, (20, 40, 100), strict=True):
        core.fill(group, nr, noise)  # which stay: there is no store
    turns = [core.reclaim(nr=4) for _ in range(80)]
    shares = [turns.count(group) for group in groups]
    assert shares[0] < shares[1] < shares[2]
    assert core.node.root not in turns


def test_a_folio_in_flight_is_of_its_group_whatever_happens():
    core = Core()
    group = core.group("group")
    core.fill(group, 8)
    batch = core.out.isolate(8, 1 << 30, Reclaimer.KSWAPD)
    assert (group.nr_in_flight, core.node.root.nr_in_flight) == (8, 0)
    assert group.memcg.in_flight == core.node.memcg.in_flight == 8 * PAGE
    assert core.get(group, ("text", 3)) == text(3)
    group.values.delete(("text", 4))
    core.node.check()
    core.out.hand_back(batch)
    assert core.node.check()
    assert group.memcg.in_flight == 0


# -- the pool and the devices


def test_a_group_above_its_share_of_the_pool_goes_to_the_device_and_its_blobs_after_it():
    core = Core(devices=[None])
    group = core.group("group", zswap_max=600)
    other = core.group("other")
    core.fill(other, 32)
    core.reclaim(within=other)
    core.fill(group, 64)
    while core.reclaim(within=group) is not None:
        pass
    assert DEVICE in core.states(group)
    assert group.wanted > 0
    assert set(core.write_back()) == {group}
    assert group.pool_bytes <= 600
    assert group.pool_accepts
    assert core.states(other) == {ZSWAP}
    assert [core.get(group, ("text", i)) for i in range(64)] == [text(i) for i in range(64)]


def test_a_group_without_writeback_keeps_what_does_not_compress():
    core = Core(devices=[None])
    group = core.group("group", zswap_writeback=False)
    core.fill(group, 4, noise)
    core.fill(group, 4, text)
    core.reclaim(within=group)
    assert core.states(group) == {UNEVICTABLE, ZSWAP}
    assert core.slots == [{}]
    assert core.node.vmstat["reclaim_activate"] == 4
    assert group.scan.exhausted
    core.node.zswap.wanted = 1 << 20
    assert core.write_back() == []


def test_writeback_is_looked_at_again_when_a_batch_is_compressed():
    core = Core(devices=[None])
    group = core.group("group")
    core.fill(group, 4, noise)
    batch = core.out.isolate(32, 1 << 30, Reclaimer.KSWAPD)
    group.limits = Limits(zswap_writeback=False)
    group.swap_restricted = True
    pages, writes = core.out.begin(batch, hold=False)
    writes += core.out.complete(batch, squeeze(core.node.compressor, pages))
    assert (writes, core.slots) == ([], [{}])
    assert core.node.check()


def test_no_more_of_a_group_goes_to_devices_than_its_swap_max():
    core = Core(devices=[None])
    outer = core.group("outer", swap_max=6 * PAGE)
    inner = core.group("inner", outer)
    core.fill(outer, 4, noise)
    core.fill(inner, 8, noise)
    while core.reclaim(within=outer) is not None:
        pass
    assert outer.swapped + inner.swapped == 6 * PAGE
    assert len(core.slots[0]) == 6


def test_a_group_uses_none_but_the_devices_that_it_may():
    core = Core(devices=[None, None])
    group = core.group("group", swap=frozenset({"store1"}))
    inner = core.group("inner", group)
    other = core.group("other")
    for each in (group, inner, other):
        core.fill(each, 4, noise)
        core.reclaim(within=each)
    assert [len(slots) for slots in core.slots] == [4, 8]


def test_what_a_group_lacks_goes_to_a_device_from_its_own_blobs():
    core = Core(devices=[None])
    group = core.group("group", max=32 * PAGE)
    other = core.group("other")
    for each in (group, other):
        core.fill(each, 24)
        core.reclaim(within=each)
    core.node.writeback.want_of(group, 10 * PAGE)
    assert core.node.writeback.awaits_of(group, of_late=False)
    assert not core.node.writeback.awaits_of(other, of_late=False)
    core.write_back()
    assert core.states(other) == {ZSWAP}
    assert DEVICE in core.states(group)


def test_what_the_whole_memory_wants_written_each_group_gives_in_turn():
    core = Core(devices=[None])
    groups = [core.group(f"tenant{i}") for i in range(3)]
    for group in groups:
        core.fill(group, 40)
        core.reclaim(within=group, nr=40)
    core.node.zswap.wanted = core.node.zswap.total
    gave = core.write_back()
    assert set(gave[:3]) == set(groups)


# -- the end of a group


def end(core, group, *, reparent):
    for _ in offline(group, core.out.ledger, reparent=reparent):
        core.node.check()
    core.node.check()


def test_what_a_group_holds_is_its_parents_wherever_it_is():
    core = Core(devices=[None])
    outer = core.group("outer", max=BUDGET)
    inner = core.group("inner", outer, zswap_max=BUDGET)
    core.fill(inner, 6, noise)
    core.reclaim(within=inner)
    core.fill(inner, 6, text)
    core.reclaim(within=inner)
    inner.values.commit("large", [noise(9), text(9)], 0)
    for i in (20, 21):
        core.put(inner, ("text", i), text(i))
    batch = core.out.isolate(1, 1 << 30, Reclaimer.KSWAPD, within=inner)
    pages, _ = core.out.begin(batch, hold=True)
    values = {key: core.back.fault(pfn, promote=False) for key, pfn in inner.values.small.items()}
    end(core, inner, reparent=True)
    assert inner.values.small == inner.values.large == {}
    assert core.node.groups.keys() == {0, outer.index}
    core.out.complete(batch, squeeze(core.node.compressor, pages))
    assert core.node.check()
    assert core.get(outer, "large") == noise(9) + text(9)
    for key, value in values.items():
        assert core.get(outer, key) == value or (value is None and key[0] == "noise")
    assert inner.memcg.free == inner.memcg.budget


def test_a_key_that_the_parent_has_stays_the_parents():
    core = Core()
    group = core.group("group")
    core.put(core.node.root, "key", text(1))
    core.put(group, "key", text(2))
    end(core, group, reparent=True)
    assert core.get(core.node.root, "key") == text(1)
    assert core.node.memcg.budget - core.node.memcg.free == PAGE + OVERHEAD


def test_what_is_forgotten_while_a_worker_has_it_is_the_parents_until_that_lets_go():
    core = Core(devices=[None])
    group = core.group("group")
    core.fill(group, 4, noise)
    batch = core.out.isolate(4, 1 << 30, Reclaimer.KSWAPD)
    pages, _ = core.out.begin(batch, hold=True)
    end(core, group, reparent=False)
    assert core.node.memcg.budget - core.node.memcg.free == 4 * (PAGE + FOLIO_OVERHEAD)
    core.out.complete(batch, squeeze(core.node.compressor, pages))
    assert core.node.memcg.free == core.node.memcg.budget
    assert core.node.check()


def test_what_is_reserved_in_a_group_is_given_back_to_its_parent():
    core = Core(devices=[None])
    group = core.group("group")
    core.fill(group, 2, noise)
    core.reclaim()
    loads = [core.back.begin_loads((pfn,), promote=True)[0] for pfn in group.values.small.values()]
    end(core, group, reparent=True)
    stored = [[core.slots[0][slot] for slot in load.slots] for load in loads]
    assert core.back.finish(loads[0], stored[0]) == noise(0)
    core.back.fail(loads[1])
    assert core.node.check()
    assert core.node.memcg.reserved == 0


def test_an_index_is_used_again():
    core = Core()
    first = core.group("first")
    core.fill(first, 4)
    end(core, first, reparent=False)
    assert core.group("second").index == first.index


# -- a put, without waiting


def test_a_put_waits_where_its_group_is_below_low_though_the_memory_is_not():
    core = Core()
    group = core.group("group", max=32 * PAGE)
    woken = []
    group.on_wake = lambda: woken.append(group)
    nr = 0
    while group.values.put_fast(nr, text(nr)):
        nr += 1
    assert 0 < group.memcg.free - group.marks.low < PAGE + OVERHEAD
    assert core.node.memcg.free > core.node.marks.high
    assert not group.values.put_fast("one more", text())
    assert group.values.put_fast("one more", text(), may_wait=False), "down to min"
    assert woken == [group]
    assert core.node.values.put_fast("another's", text())
