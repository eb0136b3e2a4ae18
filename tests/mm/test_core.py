"""The mm core driven by hand, without a loop: what becomes of folios, and how they come back.

`Core` is a node with its way out and its way in, and a dict of slots for each store. Whatever a
test does through it, the invariants of the node are checked after it.
"""

import zlib
from collections import deque

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reclaimactors import BackendError, CorruptData, PluginError, ProtocolViolation, Verdict
from reclaimactors.compressors.lz4 import Lz4
from reclaimactors.mm.batch import SWAP_CLUSTER_MAX, Reclaimer
from reclaimactors.mm.brake import Brake
from reclaimactors.mm.demotion import PASSED_OVER
from reclaimactors.mm.folio import DEAD, DEVICE, FREE, RESIDENT, SAME, UNEVICTABLE, WRITEBACK, ZSWAP
from reclaimactors.mm.keys import key_extra
from reclaimactors.mm.memcg import FOLIO_OVERHEAD, KEY_OVERHEAD, Memcg
from reclaimactors.mm.node import Node
from reclaimactors.mm.page_io import squeeze
from reclaimactors.mm.shrink_worker import MAX_VISITS
from reclaimactors.mm.swap import SwapDevices
from reclaimactors.mm.swap_device import SwapDevice
from reclaimactors.mm.swapin import Swapin
from reclaimactors.mm.swapout import Swapout
from reclaimactors.mm.watermark import Watermarks
from reclaimactors.mm.zswap import Zswap
from reclaimactors.policies.active_inactive import ActiveInactive
from reclaimactors.policies.mglru import Mglru
from reclaimactors.testing import FaultyCompressor

PAGE = 4096
OVERHEAD = KEY_OVERHEAD + FOLIO_OVERHEAD


def text(seed: int = 0, size: int = PAGE) -> bytes:
    """A value that compresses to a few bytes, another one for each seed."""
    return (b"value %d of the core, " % seed * (size // 8 + 1))[:size]


def noise(seed: int = 0, size: int = PAGE) -> bytes:
    """A value that does not compress."""
    words = (zlib.crc32(b"%d/%d" % (seed, i)).to_bytes(4, "big") for i in range(-(-size // 4)))
    return b"".join(words)[:size]


class Core:
    """A node, driven by hand."""

    def __init__(self, *, budget=1 << 20, pool=20, accept=90, zswap=True, devices=(), **other):
        self.node = Node(
            page_size=PAGE,
            memcg=Memcg(budget),
            marks=Watermarks(budget // 50, budget // 16, budget // 8),
            policy=other.pop("policy", ActiveInactive)(pages=budget // PAGE),
            zswap=Zswap(
                budget, enabled=zswap, max_pool_percent=pool, accept_threshold_percent=accept
            ),
            swap=SwapDevices(
                tuple(
                    SwapDevice(i, f"store{i}", -i, capacity) for i, capacity in enumerate(devices)
                )
            ),
            compressor=other.pop("compressor", Lz4()),
        )
        assert not other
        self.out = Swapout(self.node)
        self.back = Swapin(self.node, self.out.ledger)
        self.slots = [{} for _ in devices]
        self.near = {}  #: devices in the budget: what share of a page they hold
        self.broken = set()  #: devices whose stores raise

    # -- what keys do

    def put(self, key, *parts):
        self.node.values.commit(key, list(parts), 0)
        self.check()
        return self.node.values.pfns(key)[0]

    def delete(self, key):
        self.node.values.delete(key)
        self.check()

    def get(self, key, *, promote=True):
        """Return a value, from its store if need be."""
        parts = [self.fault(pfn, promote=promote) for pfn in self.node.values.pfns(key)]
        return b"".join(parts)

    def fault(self, pfn, *, promote=True):
        data = self.back.fault(pfn, promote=promote)
        if data is None:
            load = self.back.begin_loads((pfn,), promote=promote)[0]
            stored = [self.slots[load.device][slot] for slot in load.slots]
            data = self.back.finish(load, stored)
        self.check()
        return data

    # -- what actors do

    def isolate(self, nr=32, max_bytes=1 << 30):
        batch = self.out.isolate(nr, max_bytes, Reclaimer.KSWAPD)
        self.check()
        return batch

    def begin(self, batch, *, hold=False):
        pages, writes = self.out.begin(batch, hold=hold)
        self.check()
        return pages, writes

    def complete(self, batch, pages):
        writes = self.out.complete(batch, squeeze(self.node.compressor, pages))
        self.check()
        return writes

    def compress(self, batch):
        """Compress a batch; return the writes that follow."""
        pages, writes = self.begin(batch)
        return writes + self.complete(batch, pages)

    def write(self, writes):
        """Carry out writes, and those that follow where a store raises."""
        writes = list(writes)
        while writes:
            write = writes.pop(0)
            items = self.out.pageout.items(write)
            if write.device in self.broken:
                writes += self.out.pageout.store_failed(write)
            else:
                self.slots[write.device].update(items)
                share = self.near.get(write.device)
                lengths = write.lengths
                self.out.pageout.stored(write, share and [int(nr * share) for nr in lengths])
            self.check()

    def forget(self):
        """Let every store forget what it should."""
        for index, slots in enumerate(self.slots):
            runs = self.node.slots.take_stale(index)
            for first, nr in runs:
                for slot in range(first, first + nr):
                    slots.pop(slot, None)
            self.node.slots.forgotten(index, runs)
        self.check()

    def reclaim(self, nr=32):
        """Reclaim one batch, its writes included; return how many folios it had."""
        batch = self.isolate(nr)
        if batch is None:
            return 0
        isolated = len(batch.pfns)
        self.write(self.compress(batch))
        return isolated

    def writeback(self, device=0):
        """Return the next write of the shrinker, None once there is none."""
        vm, spared = self.node.vmstat, -1
        write = None
        while write is None and vm["zswap_second_chance"] > spared:
            spared = vm["zswap_second_chance"]
            write = self.out.shrinker.writeback(self.node.swap[device])
            self.check()
        return write

    def write_back(self, device=0):
        """Write the coldest blobs back, as long as there are some to be."""
        while (write := self.writeback(device)) is not None:
            self.write([write])

    def demote(self, device=1, *, read=True):
        """Return the next write of what leaves the stores in the budget, read from them."""
        write = self.out.shrinker.demote(self.node.swap[device])
        for pfn in write.pfns if write and read else ():
            source, slots = self.node.mm.device[pfn], self.node.slots.of(pfn)
            stored = [self.slots[source][slot] for slot in slots]
            write.moved[pfn] = self.back.as_stored(pfn, source, slots, stored)
        self.check()
        return write

    # -- what tests ask

    def state(self, key):
        return self.node.mm.state[self.node.values.pfns(key)[0]]

    def verdicts(self):
        """Return the verdicts so far, those that were given at all."""
        vm = self.node.vmstat
        return {v: vm[f"reclaim_{v.value}"] for v in Verdict if vm[f"reclaim_{v.value}"]}

    def fill_pool(self, share=1.0):
        """Fill the pool with values of a twelfth of their size, up to this share of its limit."""
        i = 0
        while self.node.zswap.total < self.node.zswap.limit * share:
            self.put(("fill", i), noise(i, 2000) + bytes(2096))
            self.reclaim()
            i += 1
        self.node.zswap.accepts()  # whoever asks next sees that it is full

    def check(self):
        assert self.node.check()
        self.node.root.policy.check()


# -- the table of outcomes, end to end


def test_a_compressible_folio_is_stored_where_the_pool_accepts():
    core = Core()
    core.put("a", text())
    core.reclaim()
    assert core.state("a") == ZSWAP
    assert core.verdicts() == {Verdict.STORED: 1}


def test_a_compressible_folio_is_stored_though_a_device_has_room():
    core = Core(devices=[None])
    core.put("a", text())
    core.reclaim()
    assert core.state("a") == ZSWAP
    assert core.slots == [{}]


def test_a_compressible_folio_goes_to_the_device_as_it_is_where_the_pool_is_over_its_limit():
    core = Core(devices=[None])
    core.fill_pool()
    core.put("a", text())
    core.reclaim()
    assert core.state("a") == DEVICE
    assert text() in core.slots[0].values()


def test_a_full_pool_wakes_the_shrinker():
    core = Core(devices=[None])
    core.fill_pool()
    woken = []
    core.node.on_pool_full = lambda: woken.append(True)
    core.put("a", text())
    core.reclaim()
    assert woken


def test_a_compressible_folio_is_activated_where_the_pool_is_over_its_limit_without_swap():
    core = Core()
    core.fill_pool()
    core.put("a", text())
    hits = core.node.vmstat["pool_limit_hit"]
    core.reclaim()
    assert core.state("a") == RESIDENT
    assert core.verdicts()[Verdict.ACTIVATE] == 1
    assert core.node.vmstat["pool_limit_hit"] == hits + 1


def test_a_compressible_folio_is_activated_where_pool_and_swap_are_full():
    core = Core(devices=[0])
    core.fill_pool()
    core.put("a", text())
    core.reclaim()
    assert core.verdicts()[Verdict.ACTIVATE] == 1


def test_an_incompressible_folio_goes_to_the_device_as_it_is():
    core = Core(devices=[None])
    core.put("a", noise())
    core.reclaim()
    assert core.state("a") == DEVICE
    assert core.slots == [{0: noise()}]


def test_an_incompressible_folio_is_activated_without_swap():
    core = Core()
    core.put("a", noise())
    core.reclaim()
    assert core.state("a") == UNEVICTABLE
    assert core.verdicts() == {Verdict.ACTIVATE: 1}
    assert core.node.vmstat["reject_compress_poor"] == 1


def test_an_incompressible_folio_is_never_in_the_pool():
    core = Core(devices=[None])
    for i in range(8):
        core.put(i, noise(i))
    core.reclaim()
    assert core.node.zswap.total == 0


def test_a_folio_whose_compressor_raises_goes_to_the_device_as_it_is():
    core = Core(devices=[None], compressor=FaultyCompressor(Lz4(), every=1))
    core.put("a", text())
    core.reclaim()
    assert core.slots == [{0: text()}]
    assert core.node.vmstat["reject_compress_fail"] == 1


def test_a_folio_whose_compressor_raises_is_kept_without_swap():
    core = Core(compressor=FaultyCompressor(Lz4(), every=1))
    core.put("a", text())
    core.reclaim()
    assert core.state("a") == RESIDENT
    assert core.verdicts() == {Verdict.ERROR: 1}


def test_a_store_that_raises_passes_its_folios_to_the_next_device():
    core = Core(devices=[None, None])
    core.broken = {0}
    core.put("a", noise())
    core.reclaim()
    assert core.slots == [{}, {0: noise()}]
    assert core.node.vmstat["swapout_error"] == 1


def test_a_store_that_raises_leaves_its_folios_resident_where_no_other_device_is():
    core = Core(devices=[None])
    core.broken = {0}
    core.put("a", noise())
    core.reclaim()
    assert core.state("a") == RESIDENT
    assert core.verdicts() == {Verdict.ERROR: 1}


@pytest.mark.parametrize("word", [b"\0" * 8, b"kcompres"])
def test_a_same_filled_folio_keeps_nothing_but_its_word(word):
    core = Core(devices=[None])
    core.put("a", word * 512)
    core.reclaim()
    assert core.state("a") == SAME
    assert (core.node.memcg.resident, core.node.memcg.compressed, core.slots) == (0, 0, [{}])
    assert core.get("a") == word * 512


def test_a_same_filled_folio_needs_no_pool():
    core = Core(zswap=False)
    core.put("a", bytes(PAGE))
    core.reclaim()
    assert core.verdicts() == {Verdict.ZERO: 1}


def test_without_zswap_a_compressible_folio_goes_to_the_device_and_is_no_pool_limit_hit():
    core = Core(zswap=False, devices=[None])
    core.put("a", text())
    core.reclaim()
    assert core.slots == [{0: text()}]
    assert core.node.vmstat["pool_limit_hit"] == 0


def test_each_folio_of_a_mixed_batch_has_its_own_outcome():
    core = Core(devices=[None])
    for key, value in {"text": text(), "zero": bytes(PAGE), "noise": noise()}.items():
        core.put(key, value)
    core.reclaim()
    assert core.verdicts() == {Verdict.STORED: 1, Verdict.ZERO: 1, Verdict.DEVICE: 1}


# -- stolen is not freed


def test_stolen_counts_pages_and_freed_counts_bytes_less_the_blob():
    core = Core()
    core.put("a", text(0, 3 * PAGE))
    core.reclaim()
    assert core.node.vmstat["pgsteal_kswapd"] == core.node.vmstat["pgsteal_anon"] == 3
    assert core.node.root.freed_total == 3 * PAGE - core.node.zswap.total


def test_nothing_is_stolen_before_the_device_has_acknowledged():
    core = Core(devices=[None])
    core.put("a", noise())
    writes = core.compress(core.isolate())
    assert core.node.vmstat["pgsteal_anon"] == core.node.root.freed_total == 0
    core.write(writes)
    assert (core.node.vmstat["pgsteal_anon"], core.node.root.freed_total) == (1, PAGE)


def test_an_activated_folio_is_neither_stolen_nor_freed():
    core = Core()
    core.put("a", noise())
    core.reclaim()
    assert core.node.vmstat["pgscan_anon"] == 1
    assert core.node.vmstat["pgsteal_anon"] == core.node.root.freed_total == 0


def test_a_store_in_this_process_is_charged_for_what_it_holds():
    core = Core(devices=[None])
    core.put("a", noise())
    (write,) = core.compress(core.isolate())
    core.slots[0].update(core.out.pageout.items(write))
    core.out.pageout.stored(write, [PAGE])
    core.check()
    assert core.node.memcg.compressed == PAGE
    assert core.node.root.freed_total == 0
    core.delete("a")
    assert core.node.memcg.compressed == 0


# -- the pool


def test_a_pool_that_was_full_accepts_again_only_below_its_threshold():
    core = Core(pool=10, accept=50, devices=[None])
    core.fill_pool()
    core.put("above", text(1))
    core.delete(("fill", 0))
    core.reclaim()
    assert core.state("above") == DEVICE
    while core.node.zswap.total > core.node.zswap.limit // 2:
        core.delete(next(key for key in core.node.values.small if core.state(key) == ZSWAP))
    core.put("below", text(2))
    core.reclaim()
    assert core.state("below") == ZSWAP


def test_a_load_from_the_pool_is_exclusive():
    core = Core()
    core.put("a", text())
    core.reclaim()
    assert core.get("a") == text()
    assert (core.state("a"), core.node.zswap.total, len(core.node.zswap)) == (RESIDENT, 0, 0)


def test_a_load_that_may_not_promote_leaves_the_blob_as_the_hottest():
    core = Core()
    first = core.put("a", text(1))
    core.put("b", text(2))
    core.reclaim()
    assert core.get("a", promote=False) == text(1)
    assert core.state("a") == ZSWAP
    assert [*core.node.zswap.coldest(2)][-1] == first


def test_a_damaged_blob_names_the_pool_and_stays():
    core = Core()
    pfn = core.put("a", text())
    core.reclaim()
    core.node.mm.data[pfn] = b"\xff" * len(core.node.mm.data[pfn])
    with pytest.raises(CorruptData, match="the zswap pool"):
        core.back.fault(pfn, promote=True)
    core.check()
    assert core.state("a") == ZSWAP


@pytest.mark.parametrize("error", [ValueError("broken"), MemoryError()])
def test_a_decompressor_that_raises_anything_is_corrupt_data(error):
    faulty = FaultyCompressor(Lz4())
    core = Core(compressor=faulty)
    core.put("a", text())
    core.reclaim()
    faulty.decompress_error = error
    with pytest.raises(CorruptData):
        core.get("a")
    faulty.decompress_error = None
    assert core.get("a") == text()


def test_writeback_takes_the_coldest_blobs_down_to_the_threshold():
    core = Core(pool=10, accept=50, devices=[None])
    core.fill_pool()
    cold = next(core.node.zswap.coldest(1))
    core.write_back()
    assert core.node.mm.state[cold] == DEVICE
    assert 0 < core.node.zswap.total <= core.node.zswap.accept_below
    assert core.node.zswap.accepts()


def wrote_back(**other) -> Core:
    """Return a core whose key "a" is a blob on its device."""
    core = Core(devices=[None], **other)
    core.put("a", text(7, 3 * PAGE))
    core.reclaim()
    core.node.zswap.wanted = 1
    core.write_back()
    assert core.state("a") == DEVICE
    return core


def test_writeback_writes_the_blob_as_it_is():
    core = wrote_back()
    assert list(core.slots[0].values()) == [Lz4().compress(text(7, 3 * PAGE))]
    assert core.node.vmstat["zswpwb"] == core.node.vmstat["written_back_pages"] == 3


def test_a_blob_on_a_device_is_decompressed_at_load():
    core = wrote_back()
    assert core.get("a") == text(7, 3 * PAGE)


def test_writeback_frees_the_blob():
    core = wrote_back()
    assert (core.node.zswap.total, core.node.memcg.compressed) == (0, 0)


def test_a_store_that_refuses_a_blob_leaves_it_in_the_pool_as_the_hottest():
    core = Core(devices=[None])
    for i in range(3):
        core.put(i, text(i))
    core.reclaim()
    core.broken = {0}
    core.node.zswap.wanted = 1
    cold = next(core.node.zswap.coldest(1))
    core.write([core.writeback()])
    assert core.node.mm.state[cold] == ZSWAP
    assert [*core.node.zswap.coldest(3)][-1] == cold
    assert core.node.vmstat["reject_reclaim_fail"] == 1


def test_without_a_shrinker_nothing_is_written_back():
    core = Core(devices=[None])
    core.put("a", text())
    core.reclaim()
    core.node.zswap.shrinker = False
    core.node.zswap.wanted = 1
    assert core.writeback() is None


def test_a_fresh_blob_is_passed_over_once_before_it_is_written_back():
    core = Core(devices=[None])
    for i in range(3):
        core.put(i, text(i))
        core.reclaim()
    core.node.zswap.wanted = 1 << 20
    assert core.out.shrinker.writeback(core.node.swap[0]) is None
    assert core.node.vmstat["zswap_second_chance"] == 3
    write = core.out.shrinker.writeback(core.node.swap[0])
    assert write.pfns == [core.node.values.pfns(i)[0] for i in range(3)]
    core.write([write])


def test_one_pass_looks_at_a_bounded_number_of_blobs_and_writes_a_cluster():
    core = Core(devices=[None])
    for i in range(200):
        core.put(i, text(i))
    while core.reclaim():
        pass
    core.node.zswap.wanted = 1 << 20
    seen = core.node.vmstat
    assert core.out.shrinker.writeback(core.node.swap[0]) is None
    assert seen["zswap_second_chance"] == MAX_VISITS
    write = core.out.shrinker.writeback(core.node.swap[0])
    assert seen["zswap_second_chance"] == 200
    assert len(write.pfns) == SWAP_CLUSTER_MAX
    core.write([write])


def test_blobs_on_their_way_out_count_as_written_and_are_not_met_again():
    core = Core(devices=[None])
    for i in range(100):
        core.put(i, text(i))
    while core.reclaim():
        pass
    node, pool = core.node, core.node.zswap
    sizes = [len(node.mm.data[pfn]) for pfn in pool.coldest(100)]
    pool.wanted = sum(sizes[: SWAP_CLUSTER_MAX + 1])  # one more than fits a write
    first = core.writeback()
    assert len(first.pfns) == SWAP_CLUSTER_MAX
    assert not set(pool.coldest(100 - SWAP_CLUSTER_MAX)) & set(first.pfns)
    second = core.writeback()
    assert 1 <= len(second.pfns) <= 2  # what is left of what is wanted
    assert not set(second.pfns) & set(first.pfns)
    assert pool.leaving == first.nr_bytes + second.nr_bytes
    assert core.writeback() is None
    core.broken = {0}
    core.write([first])
    assert pool.leaving == second.nr_bytes
    core.broken = set()
    core.write([second])
    assert pool.leaving == 0
    core.check()


@pytest.mark.parametrize("every", [1, 7, 40])
def test_the_shrinkers_work_is_bounded_by_what_was_stored_however_long_the_pool_is_full(every):
    """A steady stream of puts; the shrinker has a turn of one pass every so many of them."""
    core = Core(budget=1 << 21, devices=[None])
    node, pool, vm = core.node, core.node.zswap, core.node.vmstat
    flips, full, stored_bytes = 0, False, 0
    check, core.check = core.check, lambda: None  # a look at all after each step takes 6 ms
    for i in range(1500):
        if i % 30 == 0:
            check()
        core.put(("stream", i), noise(i, 2000) + bytes(2096))
        before = pool.total
        core.write(core.compress(core.isolate()))
        stored_bytes += pool.total - before
        flips += pool.reached_full and not full
        full = pool.reached_full
        if i % every == 0 and (write := core.out.shrinker.writeback(node.swap[0])):
            assert len(write.pfns) <= SWAP_CLUSTER_MAX
            core.write([write])
        core.forget()
        assert pool.total < pool.limit + PAGE
        core.delete(("stream", i - 600)) if i >= 600 else None
    check()
    stored, out = vm["reclaim_stored"], vm["written_back_pages"]
    assert vm["pool_limit_hit"] > 0
    assert out > 0
    assert vm["zswap_second_chance"] <= stored
    assert out <= stored
    assert flips <= 1 + stored_bytes / (pool.limit - pool.accept_below)
    assert vm["reclaim_device"] == vm["pool_limit_hit"]


def test_reading_from_a_device_protects_the_pool_from_pressure():
    core = Core(devices=[None])
    for i in range(100):
        core.put(i, noise(i, 2000) + bytes(2096))
    while core.reclaim():
        pass
    core.node.zswap.wanted = 1 << 20
    core.write([core.writeback()])
    core.node.zswap.wanted = 0
    away = [i for i in range(100) if core.state(i) == DEVICE]
    assert len(away) == SWAP_CLUSTER_MAX
    for i in away:
        core.get(i)
    core.node.root.marks = Watermarks(1 << 18, 1 << 19, 1 << 20)
    pool = core.node.zswap
    expected = pool.total * (pool.pages - len(away)) // pool.pages
    core.node.writeback.want()
    assert pool.wanted == pytest.approx(expected, abs=1)
    core.node.writeback.want()
    assert pool.wanted == pytest.approx(expected, abs=1), "what is asked for already stays"


def test_a_zswap_load_protects_nothing():
    core = Core()
    core.put("a", text())
    core.put("b", text(1))
    core.reclaim()
    core.get("a")
    assert core.node.zswap.disk_swapins == 0


# -- a store that fails leaves no stale copy, and each reason has its counter


class NoMemory(Lz4):
    """A compressor for whose blobs there is no memory."""

    def compress(self, data):
        raise MemoryError


FAILING = {  # the counter of a failing store, and how it comes to that
    "pool_limit_hit": lambda core: core.fill_pool(),
    "reject_compress_poor": lambda core: None,
    "reject_compress_fail": lambda core: setattr(
        core.node, "compressor", FaultyCompressor(Lz4(), every=1)
    ),
    "reject_alloc_fail": lambda core: setattr(core.node, "compressor", NoMemory()),
    "swapout_error": lambda core: core.broken.add(0),
    None: lambda core: setattr(core.node.zswap, "enabled", False),
}


@pytest.mark.parametrize("old", ["pool", "blob on a device", "device"])
@pytest.mark.parametrize("counter", FAILING)
def test_a_store_that_fails_leaves_no_stale_copy_and_is_counted_once(counter, old):
    core = Core(devices=[None])
    core.put("a", noise(1) if old == "device" else text(1))
    core.reclaim()
    if old == "blob on a device":
        core.node.zswap.wanted = 1
        core.write_back()
    assert core.state("a") == (ZSWAP if old == "pool" else DEVICE)
    before = dict(core.node.vmstat)

    def new(seed):
        poor = counter in {"reject_compress_poor", "swapout_error"}
        return noise(seed) if poor else text(seed)

    core.get("a")
    FAILING[counter](core)
    core.put("a", new(2))
    before = dict(core.node.vmstat)
    core.reclaim()
    core.forget()
    expected = {counter} | ({"reject_compress_poor"} if counter == "swapout_error" else set())
    reasons = [*FAILING, "reject_reclaim_fail", "reject_kmemcache_fail", "decompress_fail"]
    vm = core.node.vmstat
    grown = {name: vm[name] - before[name] for name in reasons if name and vm[name] != before[name]}
    assert grown == dict.fromkeys(expected - {None}, 1)
    assert core.node.values.pfns("a")[0] not in core.node.zswap.coldest(1 << 20)
    copies = [data for data in core.slots[0].values() if data in {new(2), noise(1), text(1)}]
    assert copies == ([] if counter == "swapout_error" else [new(2)])
    assert core.get("a") == new(2)


def test_what_cannot_be_counted_here_stays_zero():
    core = Core(devices=[None])
    for i in range(40):
        core.put(i, noise(i) if i % 2 else text(i))
    while core.reclaim():
        pass
    core.node.zswap.wanted = 1 << 20
    core.write_back()
    for i in range(40):
        core.get(i)
    vm = core.node.gauges()
    for name in ("pgrotated", "reject_kmemcache_fail", "stored_incompressible_pages"):
        assert vm[name] == 0
    assert vm["zswpwb"] == vm["written_back_pages"] == 20


def test_the_pools_gauges_follow_it():
    core = Core(devices=[None])
    core.put("a", text(1, 3 * PAGE))
    core.put("b", text(2))
    core.reclaim()
    vm = core.node.gauges()
    assert (vm["stored_pages"], vm["pool_total_size"]) == (4, core.node.memcg.compressed)
    core.get("a")
    vm = core.node.gauges()
    blob = len(Lz4().compress(text(2)))
    assert (vm["stored_pages"], vm["pool_total_size"]) == (1, blob)


def test_a_blob_that_was_overwritten_while_its_store_failed_is_no_reclaim_failure():
    core = Core(devices=[None])
    core.put("a", text(1))
    core.put("b", text(2))
    core.reclaim()
    core.node.zswap.wanted = 1 << 20
    write = core.writeback()
    core.get("a")
    core.out.pageout.store_failed(write)
    assert core.node.vmstat["reject_reclaim_fail"] == 1


def test_a_damaged_blob_is_counted_wherever_it_is_read():
    core = wrote_back()
    flip(core.slots[0])
    with pytest.raises(CorruptData):
        core.get("a")
    assert core.node.vmstat["decompress_fail"] == 0  # the checksum was first
    core.put("b", text(3))
    core.reclaim()
    core.node.mm.data[core.node.values.pfns("b")[0]] = b"\xff" * len(Lz4().compress(text(3)))
    with pytest.raises(CorruptData):
        core.get("b")
    assert core.node.vmstat["decompress_fail"] == 1


# -- what a device gives back


def on_device() -> Core:
    """Return a core whose key "a", of three slots, is on its device as it is."""
    core = Core(devices=[None])
    core.put("a", noise(7, 2 * PAGE + 100))
    core.reclaim()
    assert core.state("a") == DEVICE
    return core


def flip(slots):
    slots[0] = bytes([slots[0][0] ^ 1]) + slots[0][1:]


def shorten(slots):
    slots[max(slots)] = slots[max(slots)][:-1]


def make_stale(slots):
    slots[0] = noise(8)[: len(slots[0])]


def empty(slots):
    slots[0] = bytes(len(slots[0]))


DAMAGES = [flip, shorten, make_stale, empty]


@pytest.mark.parametrize("stored", [on_device, wrote_back])
@pytest.mark.parametrize("damage", DAMAGES)
def test_bytes_that_were_not_stored_are_corrupt_data_that_names_the_store(stored, damage):
    core = stored()
    damage(core.slots[0])
    with pytest.raises(CorruptData, match="'store0'"):
        core.get("a")
    core.check()


def test_misplaced_slots_are_corrupt_data():
    core = on_device()
    core.slots[0][0], core.slots[0][1] = core.slots[0][1], core.slots[0][0]
    with pytest.raises(CorruptData, match="'store0'"):
        core.get("a")


@pytest.mark.parametrize("nr", [0, 1, 2, 4])
def test_another_number_of_slots_is_corrupt_data(nr):
    core = on_device()
    pfn = core.node.values.pfns("a")[0]
    load = core.back.begin_loads((pfn,), promote=True)[0]
    with pytest.raises(CorruptData, match="'store0'"):
        core.back.finish(load, [noise()] * nr)
    core.check()


def test_a_damaged_entry_stays_and_is_tried_again():
    core = on_device()
    whole = dict(core.slots[0])
    flip(core.slots[0])
    with pytest.raises(CorruptData):
        core.get("a")
    core.slots[0].update(whole)
    assert core.get("a") == noise(7, 2 * PAGE + 100)


def test_padding_up_to_the_page_is_cut():
    core = on_device()
    last = max(core.slots[0])
    core.slots[0][last] = core.slots[0][last].ljust(PAGE, b"\0")
    assert core.get("a") == noise(7, 2 * PAGE + 100)


def test_a_failed_load_leaves_the_folio_and_gives_its_reservation_back():
    core = on_device()
    core.back.fail(core.back.begin_loads((core.node.values.pfns("a")[0],), promote=True)[0])
    core.check()
    assert (core.state("a"), core.node.memcg.reserved) == (DEVICE, 0)


def test_slots_are_reused_only_after_the_store_has_forgotten_them():
    core = on_device()
    core.delete("a")
    core.put("b", noise(1))
    core.reclaim()
    assert core.node.swap[0].used == 4
    core.forget()
    assert core.node.swap[0].used == 1


def test_an_old_copy_on_a_device_is_never_read_again():
    core = on_device()
    core.put("a", noise(9, 2 * PAGE + 100))
    core.forget()
    core.reclaim()
    assert core.get("a") == noise(9, 2 * PAGE + 100)


def test_a_folio_that_is_reclaimed_to_a_device_a_second_time_has_a_fresh_checksum():
    core = on_device()
    core.get("a")
    assert core.node.values.put_fast("a", noise(9, 2 * PAGE + 100))
    core.reclaim()
    assert core.get("a") == noise(9, 2 * PAGE + 100)


# -- cancellation: fault, overwrite and delete in each state


def queued(core):
    """In a batch that nobody has begun."""
    batch = core.isolate()
    return lambda: core.write(core.compress(batch))


def held_by_a_worker(core):
    """In a batch whose bytes a thread looks at."""
    batch = core.isolate()
    pages, writes = core.begin(batch, hold=True)
    return lambda: core.write(writes + core.complete(batch, pages))


def being_written(core):
    """On its way to a store as it is."""
    core.node.zswap.enabled = False
    (write,) = core.compress(core.isolate())
    core.node.zswap.enabled = True
    items = core.out.pageout.items(write)
    return lambda: acknowledge(core, write, items)


def blob_being_written_back(core):
    """Its blob on its way from the pool to a store."""
    core.reclaim()
    core.node.zswap.wanted = 1 << 20
    write = core.writeback()
    items = core.out.pageout.items(write)
    return lambda: acknowledge(core, write, items)


def acknowledge(core, write, items):
    core.slots[write.device].update(items)
    core.out.pageout.stored(write)
    core.check()


FLIGHTS = [queued, held_by_a_worker, being_written, blob_being_written_back]


@pytest.fixture(params=FLIGHTS, ids=lambda flight: flight.__name__)
def flight(request):
    """A core whose key "a" is on its way out, and what ends that."""
    core = Core(devices=[None])
    core.put("a", text(1))
    return core, request.param(core)


def test_a_fault_on_a_folio_in_flight_gives_its_bytes_at_once(flight):
    core, _ = flight
    assert core.get("a") == text(1)
    assert core.state("a") == RESIDENT


def test_the_late_verdict_of_a_faulted_folio_is_thrown_away(flight):
    core, land = flight
    core.get("a")
    land()
    assert core.state("a") == RESIDENT
    assert core.get("a") == text(1)


def test_a_fault_that_may_not_promote_reads_a_folio_in_flight_too(flight):
    core, land = flight
    assert core.get("a", promote=False) == text(1)
    land()
    assert core.get("a") == text(1)


def test_the_late_verdict_of_an_overwritten_folio_is_thrown_away(flight):
    core, land = flight
    core.put("a", text(2))
    land()
    assert core.get("a") == text(2)


def test_the_late_verdict_of_a_deleted_folio_is_thrown_away(flight):
    core, land = flight
    core.delete("a")
    land()
    core.forget()
    memcg = core.node.memcg
    assert (memcg.resident, memcg.compressed, memcg.overhead, memcg.in_flight) == (0, 0, 0, 0)
    assert core.node.swap[0].used == 0


def test_a_fast_overwrite_never_touches_a_folio_in_flight(flight):
    core, land = flight
    assert not core.node.values.put_fast("a", text(2))
    land()
    assert core.get("a") == text(1)


def test_an_undisturbed_folio_leaves_memory(flight):
    core, land = flight
    land()
    assert core.state("a") in {ZSWAP, DEVICE}
    assert core.get("a") == text(1)


def test_nothing_is_in_flight_after_the_landing(flight):
    core, land = flight
    land()
    core.node.zswap.wanted = 0
    core.forget()
    assert core.node.idle


def test_a_folio_in_flight_counts_as_resident_at_its_full_size():
    core = Core()
    core.put("a", text())
    core.isolate()
    assert core.state("a") == WRITEBACK
    assert core.node.memcg.resident == core.node.memcg.in_flight == PAGE


@pytest.mark.parametrize("flight", FLIGHTS[1:], ids=lambda flight: flight.__name__)
def test_a_deleted_folio_is_charged_until_its_last_holder_lets_go(flight):
    core = Core(devices=[None])
    pfn = core.put("a", text(1))
    land = flight(core)
    held = len(core.node.mm.data[pfn])
    core.delete("a")
    memcg = core.node.memcg
    assert core.node.mm.state[pfn] == DEAD
    assert (memcg.resident, memcg.overhead) == (held, FOLIO_OVERHEAD)
    land()
    assert core.node.mm.state[pfn] == FREE


def test_a_folio_deleted_while_it_is_loaded_keeps_its_slots_until_the_load_ends():
    core = on_device()
    pfn = core.node.values.pfns("a")[0]
    load = core.back.begin_loads((pfn,), promote=True)[0]
    stored = [core.slots[0][slot] for slot in load.slots]
    core.delete("a")
    core.forget()
    assert core.node.swap[0].used == 3
    assert core.back.finish(load, stored) == noise(7, 2 * PAGE + 100)
    core.forget()
    assert (core.node.swap[0].used, core.node.memcg.free) == (0, core.node.memcg.budget)


def test_a_pinned_folio_is_not_isolated():
    core = Core()
    core.node.pin(core.put("a", text()))
    assert core.isolate() is None


def test_a_pinned_folio_that_is_deleted_is_charged_until_it_is_unpinned():
    core = Core()
    pfn = core.put("a", text())
    core.node.pin(pfn)
    core.delete("a")
    assert core.node.memcg.resident == PAGE
    core.node.unpin(pfn)
    core.check()
    assert core.node.memcg.free == core.node.memcg.budget


def test_a_batch_that_is_handed_back_leaves_its_folios_next_in_line():
    core = Core()
    for i in range(3):
        core.put(i, text(i))
    batch = core.isolate(2)
    taken = list(batch.pfns)
    core.out.hand_back(batch)
    core.check()
    assert core.verdicts() == {Verdict.KEEP: 2}
    assert core.isolate(2).pfns == taken


def test_a_batch_may_be_split_and_each_half_ends_on_its_own():
    core = Core()
    for i in range(5):
        core.put(i, text(i))
    batch = core.isolate()
    rest = core.out.split(batch, 2)
    core.check()
    assert (len(batch.pfns), len(rest.pfns)) == (2, 3)
    core.compress(rest)
    core.out.hand_back(batch)
    core.check()
    assert core.verdicts() == {Verdict.STORED: 3, Verdict.KEEP: 2}


def test_a_write_that_is_refused_keeps_its_folios_and_gives_its_slots_back():
    core = Core(devices=[None])
    core.put("a", noise())
    (write,) = core.compress(core.isolate())
    core.out.pageout.refuse(write)
    core.forget()
    assert core.verdicts() == {Verdict.KEEP: 1}
    assert core.node.swap[0].used == 0


class Steps(deque):
    """Runs of slots that count how many of them are moved or looked at when some are taken."""

    steps = 0

    def popleft(self):
        self.steps += 1
        return super().popleft()

    def __getitem__(self, at):
        taken = list(self)[at]
        self.steps += len(taken) if isinstance(at, slice) else 1
        return taken

    def __delitem__(self, at):
        left = list(self)
        del left[at]
        self.steps += len(left)  # each moves to the front
        self.clear()
        self.extend(left)


def test_taking_slots_to_forget_costs_no_more_for_each_the_more_there_are():
    node = Core(devices=[None]).node
    node.slots.stale[0] = stale = Steps((2 * i, 1) for i in range(5000))
    taken = []
    while some := node.slots.take_stale(0, 64):
        taken += some
    assert taken == [(2 * i, 1) for i in range(5000)]
    assert stale.steps <= 2 * 5000


def test_slots_of_a_write_that_may_still_happen_are_never_used_again():
    core = Core(devices=[None])
    core.put("a", noise())
    (write,) = core.compress(core.isolate())
    core.out.pageout.store_failed(write, aside=True)
    core.check()
    assert (core.node.swap[0].used, core.node.swap[0].aside) == (0, 1)
    core.reclaim()
    assert list(core.slots[0]) == [1]


def test_a_large_write_is_cut_into_writes_of_a_mebibyte():
    core = Core(budget=64 << 20, zswap=False, devices=[None])
    for i in range(10):
        core.put(i, noise(i, 1 << 18))
    writes = core.compress(core.isolate())
    assert [write.nr_bytes >> 18 for write in writes] == [4, 4, 2]


# -- the budget


def test_a_charge_that_passes_the_budget_is_refused_and_changes_nothing():
    memcg = Memcg(1000, resident=900)
    with pytest.raises(ProtocolViolation, match="only 100 B are free"):
        memcg.adjust(resident=50, compressed=51)
    assert (memcg.resident, memcg.compressed, memcg.overhead, memcg.free) == (900, 0, 0, 100)


def test_a_charge_up_to_the_last_byte_of_the_budget_is_accepted():
    memcg = Memcg(1000)
    memcg.adjust(resident=500, compressed=300, overhead=200)
    assert memcg.free == 0


def test_a_put_that_passes_the_budget_is_refused_and_changes_nothing():
    core = Core(budget=1 << 16)
    core.put("a", text())
    with pytest.raises(ProtocolViolation):
        core.put("a", text(1, 1 << 16))
    core.check()
    assert core.get("a") == text()


def test_an_overwrite_needs_only_the_difference():
    core = Core(budget=1 << 16)
    core.put("a", noise(0, (1 << 16) - OVERHEAD))
    core.put("a", noise(1, (1 << 16) - OVERHEAD))
    assert core.node.memcg.free == 0


def test_an_overwrite_of_a_value_in_flight_needs_all_of_its_size_while_it_is_held():
    core = Core()
    core.put("a", text())
    core.begin(core.isolate(), hold=True)
    assert core.node.values.need("a", PAGE, 1) == PAGE + FOLIO_OVERHEAD


@given(st.lists(st.tuples(st.integers(-300, 300), st.integers(-300, 300)), max_size=30))
def test_free_bytes_never_become_negative(charges):
    memcg = Memcg(1000)
    for resident, compressed in charges:
        if memcg.resident + resident < 0 or memcg.compressed + compressed < 0:
            continue
        try:
            memcg.adjust(resident, compressed)
        except ProtocolViolation:
            assert resident + compressed > memcg.free
        memcg.check()


def test_a_reservation_counts_as_resident_until_it_is_spent():
    core = Core()
    core.node.memcg.reserve(10_000)
    core.check()
    assert core.node.memcg.resident == 10_000
    core.node.values.commit("a", [text()], 10_000)
    core.check()
    assert (core.node.memcg.resident, core.node.memcg.reserved) == (PAGE, 0)


# -- values of many sizes, and the policies


@pytest.mark.parametrize("policy", [ActiveInactive, Mglru])
@pytest.mark.parametrize("size", [0, 1, 15, 16, 4095, 4096, 4097, 40_000])
@pytest.mark.parametrize("make", [text, noise, lambda _, size: bytes(size)])
def test_a_value_of_any_size_comes_back_from_wherever_it_went(policy, make, size):
    core = Core(devices=[None], policy=policy)
    core.put("a", make(1, size))
    for _ in range(3):
        core.reclaim()
        assert core.state("a") != RESIDENT
        assert core.get("a") == make(1, size)
        core.forget()


def test_a_store_is_never_given_an_item_of_no_bytes():
    core = Core(zswap=False, devices=[None])
    core.put("a", b"")
    core.put("b", b"x")
    core.reclaim()
    assert sorted(core.slots[0].values()) == [b"x"]


def test_a_value_of_several_folios_may_be_partly_resident():
    core = Core(devices=[None])
    core.put("a", text(1), noise(2), text(3))
    core.reclaim(2)
    states = [core.node.mm.state[pfn] for pfn in core.node.values.pfns("a")]
    assert states == [ZSWAP, DEVICE, RESIDENT]
    assert core.get("a") == text(1) + noise(2) + text(3)


def test_zswpout_is_counted_by_order():
    core = Core(budget=1 << 22)
    for i, pages in enumerate([1, 1, 2, 3, 4, 5, 64]):
        core.put(i, text(i, pages * PAGE))
    core.reclaim()
    counts = {n: core.node.vmstat[f"zswpout_order_{n}"] for n in range(7)}
    assert counts == {0: 2, 1: 1, 2: 2, 3: 1, 4: 0, 5: 0, 6: 1}


def test_a_refault_tells_the_policy_what_it_said_at_eviction():
    seen = []

    class Spy(ActiveInactive):
        def insert(self, pfn, *, refault):
            seen.append(refault)
            return super().insert(pfn, refault=refault)

        def shadow(self, pfn):
            super().shadow(pfn)
            return 4711

    core = Core(policy=Spy)
    core.put("a", text())
    core.reclaim()
    core.get("a")
    assert seen == [None, 4711]


def test_a_policy_that_isolates_a_folio_twice_is_a_plugin_error_and_changes_nothing():
    class Twice(ActiveInactive):
        def isolate(self, nr):
            return super().isolate(nr) * 2

    core = Core(policy=Twice)
    core.put("a", text())
    with pytest.raises(PluginError, match="Twice"):
        core.out.isolate(32, 1 << 20, Reclaimer.KSWAPD)
    core.check()
    assert core.get("a") == text()


def test_isolate_takes_at_least_one_folio_whatever_its_size():
    core = Core()
    core.put("a", text(0, 5 * PAGE))
    core.put("b", text(1, 5 * PAGE))
    assert len(core.isolate(32, max_bytes=1).pfns) == 1


def test_the_error_of_a_store_is_an_oserror():
    assert issubclass(BackendError, OSError)


# the swap cache: clean folios that still have their slots


def read_back(core, keys):
    return {key: core.get(key) for key in keys}


def test_a_folio_that_was_read_back_is_reclaimed_again_without_a_write():
    core = Core(zswap=False, devices=[64])
    values = {i: noise(i) for i in range(8)}
    for key, value in values.items():
        core.put(key, value)
    core.reclaim()
    assert read_back(core, values) == values
    assert core.node.gauges()["nr_swapcached"] == 8
    written = core.node.vmstat["pswpout"]
    batch = core.isolate()
    assert (batch.pfns, batch.nr_clean, batch.clean_bytes) == ([], 8, 8 * PAGE)
    assert {core.state(key) for key in values} == {DEVICE}
    assert core.node.vmstat["pswpout"] == written
    assert core.node.vmstat["pgsteal_anon"] == 16
    assert core.node.gauges()["nr_swapcached"] == 0
    assert read_back(core, values) == values


@pytest.mark.parametrize("fast", [False, True])
def test_an_overwritten_clean_folio_gives_its_slots_back_and_is_written_again(fast):
    core = Core(zswap=False, devices=[64])
    core.put("key", noise(1))
    core.reclaim()
    core.get("key")
    if fast:
        assert core.node.values.put_fast("key", noise(2))
        core.check()
    else:
        core.put("key", noise(2))
    assert core.node.gauges()["nr_swapcached"] == 0
    core.forget()
    assert core.node.swap.used == 0
    core.reclaim()
    assert core.node.vmstat["pswpout"] == 2
    assert core.get("key") == noise(2)


def test_a_deleted_clean_folio_gives_its_slots_back():
    core = Core(zswap=False, devices=[64])
    core.put("key", noise(1, 3 * PAGE))
    core.reclaim()
    core.get("key")
    core.delete("key")
    core.forget()
    assert (core.node.swap.used, core.node.slots.swapped) == (0, 0)


def test_a_device_more_than_half_used_lends_no_slots():
    core = Core(zswap=False, devices=[8])
    for key in range(5):
        core.put(key, noise(key))
    core.reclaim()
    core.get(0)
    assert core.node.gauges()["nr_swapcached"] == 0
    core.forget()
    core.get(1)
    assert core.node.gauges()["nr_swapcached"] == 1


def test_a_device_in_this_process_lends_no_slots():
    core = Core(zswap=False, devices=[8])
    core.put("key", noise(1))
    (write,) = core.compress(core.isolate())
    core.slots[0].update(core.out.pageout.items(write))
    core.out.pageout.stored(write, [PAGE])
    core.get("key")
    assert core.node.gauges()["nr_swapcached"] == 0


def test_the_cache_has_given_all_slots_back_when_the_device_is_full():
    core = Core(zswap=False, devices=[16])
    for key in range(8):
        core.put(key, noise(key))
    core.reclaim()
    values = read_back(core, range(8))
    assert core.node.gauges()["nr_swapcached"] == 8
    for pfn in map(core.node.values.pfns, range(8)):
        core.node.hold(pfn[0])  # they stay resident
    left = []
    for key in range(8, 16):
        core.put(key, noise(key))
        core.reclaim()
        left.append(core.node.gauges()["nr_swapcached"])
        core.forget()
    assert left == [6, 6, 4, 4, 2, 2, 0, 0]
    assert core.node.swap.used == 8
    for pfn in map(core.node.values.pfns, range(8)):
        core.node.release(pfn[0])
    assert read_back(core, range(8)) == values


def test_a_pinned_clean_folio_stays_and_stays_clean():
    core = Core(zswap=False, devices=[8])
    core.put("key", noise(1))
    core.reclaim()
    core.get("key")
    (pfn,) = core.node.values.pfns("key")
    core.node.pin(pfn)
    assert core.isolate() is None
    core.node.unpin(pfn)
    assert core.isolate().nr_clean == 1


def test_a_policy_that_gives_junk_for_a_clean_folio_keeps_it_resident():
    core = Core(zswap=False, devices=[8])
    core.put("key", noise(1))
    core.reclaim()
    core.get("key")
    shadow, core.node.root.policy = core.node.root.policy.shadow, _Junk(core.node.root.policy)
    with pytest.raises(PluginError, match="shadow"):
        core.out.isolate(32, 1 << 30, Reclaimer.KSWAPD)
    assert shadow
    core.node.root.policy = core.node.root.policy.inner
    core.check()
    assert core.state("key") == RESIDENT
    assert core.get("key") == noise(1)


class _Junk:
    """A policy whose shadows are no ints."""

    def __init__(self, inner):
        self.inner = inner

    def __getattr__(self, name):
        return getattr(self.inner, name)

    def shadow(self, pfn):
        return "junk"


# clusters of slots, and folios that find no run of them


def test_what_is_reclaimed_together_is_written_in_one_run():
    core = Core(zswap=False, devices=[200])
    for key in range(60):
        core.put(key, noise(key, PAGE * (1 + key % 3)))
    core.reclaim(60)
    for key in range(0, 60, 2):  # holes of one to three slots
        core.delete(key)
    core.forget()
    for key in range(100, 132):
        core.put(key, noise(key))
    writes = core.compress(core.isolate(32))
    (write,) = writes
    slots = [slot for part in write.slots for slot in part]
    assert slots == list(range(slots[0], slots[0] + 32))
    core.write(writes)
    assert read_back(core, range(100, 132)) == {key: noise(key) for key in range(100, 132)}


def test_a_folio_that_finds_no_run_is_stored_in_scattered_slots():
    core = Core(zswap=False, devices=[16])
    for key in range(16):
        core.put(key, noise(key))
    core.reclaim()
    for key in range(0, 16, 2):
        core.delete(key)
    core.forget()
    large = core.put("large", noise(99, 5 * PAGE - 3))
    core.reclaim()
    assert core.state("large") == DEVICE
    assert core.node.vmstat["thp_swpout_fallback"] == 1
    assert list(core.node.slots.of(large)) == [0, 2, 4, 6, 8]
    assert core.get("large") == noise(99, 5 * PAGE - 3)
    core.delete("large")
    core.forget()
    assert (core.node.swap.used, core.node.slots.scattered) == (8, {})


def test_scattered_slots_of_a_write_that_fails_are_given_back():
    core = Core(zswap=False, devices=[8])
    for key in range(8):
        core.put(key, noise(key))
    core.reclaim()
    for key in range(0, 8, 2):
        core.delete(key)
    core.forget()
    core.put("large", noise(99, 3 * PAGE))
    core.broken = {0}
    core.reclaim()
    core.forget()
    assert core.state("large") == RESIDENT
    assert core.node.swap.used == 4


def test_devices_of_one_priority_take_batches_in_turn():
    core = Core(zswap=False)
    for index in range(3):
        core.node.swap.add(SwapDevice(index, f"store{index}", 5, 100))
        core.slots.append({})
    used = []
    for batch in range(6):
        for key in range(8):
            core.put((batch, key), noise(8 * batch + key))
        before = [len(slots) for slots in core.slots]
        core.reclaim(8)
        used.append([len(slots) - was for slots, was in zip(core.slots, before, strict=True)])
    assert used == [[8, 0, 0], [0, 8, 0], [0, 0, 8]] * 2


# -- stores in the budget give way to those outside


def near_core(share=0.25, *, nr=8, budget=1 << 20):
    """A store in the budget, before one outside; it holds `nr` folios, the first the coldest."""
    core = Core(devices=[None, None], zswap=False, budget=budget)
    core.near = {0: share}
    for i in range(nr):
        core.put(i, noise(i))
        core.reclaim(1)
    return core


def test_what_a_store_in_the_budget_holds_longest_moves_outside_as_it_is():
    core = near_core()
    core.node.demotion.wanted = 2 * PAGE // 4
    free = core.node.memcg.free
    core.write([core.demote()])
    core.forget()
    assert [core.node.mm.device[core.node.values.pfns(i)[0]] for i in range(8)] == [1, 1, *[0] * 6]
    assert core.node.memcg.free - free == 2 * PAGE // 4
    assert core.node.demotion.wanted == 0
    assert core.node.vmstat["swap_demoted"] == 2
    assert (len(core.slots[0]), len(core.slots[1])) == (6, 2)
    assert [core.get(i) for i in range(8)] == [noise(i) for i in range(8)]


def test_a_blob_moves_as_a_blob():
    core = near_core(nr=0)
    core.node.zswap.enabled = True
    core.put("a", text())
    core.reclaim()
    core.node.zswap.wanted = 1
    core.near = {0: 1.0}  # a store that has the blob as it is
    core.write_back(0)
    core.node.zswap.wanted, core.node.demotion.wanted = 0, 1
    core.write([core.demote()])
    assert core.state("a") == DEVICE
    assert [len(blob) < 200 for blob in core.slots[1].values()] == [True]
    assert core.get("a") == text()


def test_nothing_moves_to_a_store_that_is_in_the_budget_itself():
    core = near_core()
    core.near = {0: 0.25, 1: 0.25}
    core.node.demotion.wanted = 1
    core.write([core.demote()])  # whether it is was not known before
    core.node.demotion.wanted = 1
    assert core.demote() is None


@pytest.mark.parametrize("what", ["delete", "overwrite", "fault", "read"])
def test_a_folio_that_moves_may_be_used_meanwhile(what):
    core = near_core(nr=1)
    core.node.demotion.wanted = 1
    write = core.demote()
    load = None
    match what:
        case "delete":
            core.delete(0)
        case "overwrite":
            core.put(0, text(1))
        case "fault":
            assert core.fault(core.node.values.pfns(0)[0]) == noise(0)
        case _:  # it began, and the store that has it takes its time
            load = core.back.begin_loads((core.node.values.pfns(0)[0],), promote=False)[0]
    core.write([write])
    if load is not None:
        stored = [core.slots[load.device][slot] for slot in load.slots]
        assert core.back.finish(load, stored) == noise(0)
    core.forget()
    assert core.slots[1] == {}
    assert core.node.demotion.leaving == 0
    if what != "delete":
        assert core.get(0) == (text(1) if what == "overwrite" else noise(0))


def test_a_folio_that_cannot_be_moved_stays_and_is_looked_at_last():
    core = near_core(nr=2)
    core.node.demotion.wanted = 1
    write = core.demote(read=False)
    core.out.shrinker.cannot_move(write.pfns[0], write)
    core.write([write])
    core.node.demotion.wanted = 1
    assert core.demote().pfns == list(core.node.values.pfns(1))


@pytest.mark.parametrize("ends", ["store_failed", "refuse"])
def test_a_store_outside_that_does_not_take_a_folio_leaves_it_where_it_is(ends):
    core = near_core(nr=1)
    core.node.demotion.wanted = 1
    write = core.demote()
    assert not getattr(core.out.pageout, ends)(write)
    core.check()
    core.forget()
    assert core.node.demotion.leaving == 0
    assert core.get(0) == noise(0)


def test_a_store_in_the_budget_takes_no_more_than_its_share_while_one_outside_has_room():
    core = near_core(share=0.9, nr=0)
    for i in range(200):
        core.put(i, noise(i))
        core.reclaim(1)
    held = core.node.demotion.held
    assert 0 < held - core.node.memcg.budget // 2 <= PAGE
    core.node.swap[1].full = True
    core.put("more", noise())
    core.reclaim(1)
    assert core.node.demotion.held > held, "there is no other place left"


def test_a_store_in_the_budget_that_freed_nothing_is_passed_over_and_tried_again():
    core = near_core(share=1.0, nr=0)
    where = []
    for i in range(PASSED_OVER + 2):
        core.put(i, noise(i))
        core.reclaim(1)
        where.append(core.node.mm.device[core.node.values.pfns(i)[0]])
    assert where == [0, *[1] * PASSED_OVER, 0]


@pytest.mark.parametrize("size", [PAGE, 0])
def test_a_folio_that_leaves_without_freeing_anything_was_not_looked_at_any_more(size):
    core = near_core(share=1.0, nr=0)
    pfn = core.put("a", noise(0, size))
    core.out.hand_back(core.isolate())
    core.node.scan.gave_back([pfn], Verdict.ACTIVATE)
    assert core.node.root.looked == {pfn}
    core.reclaim()  # which checks
    assert core.state("a") == (DEVICE if size else SAME)
    assert core.node.root.looked == set()


def test_what_is_wanted_comes_from_stores_in_the_budget_first_and_the_pool_gives_the_rest():
    core = near_core()
    core.node.zswap.enabled = True
    core.put("a", text())
    core.reclaim()
    held, pool = core.node.demotion.held, core.node.zswap.total
    core.node.writeback.want(held // 2)
    assert (core.node.demotion.wanted, core.node.zswap.wanted) == (held // 2, 0)
    assert not core.node.idle
    core.node.writeback.want(held + pool)
    assert (core.node.demotion.wanted, core.node.zswap.wanted) == (held, pool)
    for device in core.node.swap:
        core.node.writeback.cannot(device.index)
    assert core.node.idle


def test_without_a_store_outside_nothing_is_wanted_of_those_in_the_budget():
    core = near_core()
    core.node.swap[1].full = True
    core.node.writeback.want(PAGE)
    assert core.node.demotion.wanted == 0
    assert core.node.idle


# -- what keys cost


def url(nr, size=700):
    return f"https://example/{nr:08}?" + "q" * size


KEYS = [url(1), (url(1), 2), url(1).encode(), frozenset([url(1)]), 10**3000]


@pytest.mark.parametrize("key", KEYS, ids=["str", "tuple", "bytes", "frozenset", "int"])
@pytest.mark.parametrize("fast", [True, False])
@pytest.mark.parametrize("size", [100, 3 * PAGE])
def test_a_long_key_is_charged_from_put_to_delete(key, fast, size):
    core = Core()
    node, free, extra = core.node, core.node.memcg.free, key_extra(key)
    value = text(size=size)
    parts = [value] if fast or size < PAGE else [value[:PAGE], value[PAGE:]]
    overhead = KEY_OVERHEAD + len(parts) * FOLIO_OVERHEAD + extra
    assert extra > 600
    assert node.values.need(key, size, len(parts)) == size + overhead
    assert node.memcg.overhead + node.values.more_overhead(key, len(parts)) == overhead

    def put():
        if fast:
            assert node.values.put_fast(key, value)
        else:
            core.put(key, *parts)
        core.check()
        assert node.memcg.overhead == overhead
        assert node.memcg.free == free - size - overhead
        assert node.values.frees_now(key) == size + overhead
        assert node.memcg.overhead + node.values.more_overhead(key, len(parts)) == overhead

    put()
    put()  # over it
    core.reclaim()
    core.check()
    put()  # over what is compressed
    core.delete(key)
    assert (node.memcg.free, node.memcg.overhead) == (free, 0)
    core.put("short", value)
    assert node.memcg.overhead == OVERHEAD, "a pfn that is used again owes nothing for its last key"


def below_low(core, *, above_min):
    """Put until free memory is so many bytes above *min*."""
    node = core.node
    core.put("filler", bytes(node.memcg.free - node.marks.min - OVERHEAD - above_min))


@pytest.mark.parametrize("may_wait", [True, False])
def test_below_low_a_put_that_needs_not_wait_takes_the_short_way(may_wait):
    core = Core()
    node, woken = core.node, []
    node.root.on_wake = lambda: woken.append(True)
    node.root.lets = Brake(node.root, batch=64 * PAGE).lets
    below_low(core, above_min=node.marks.low - node.marks.min - PAGE)
    assert not woken
    assert node.values.put_fast("a", text(1), may_wait=may_wait)
    assert node.values.put_fast("a", text(2), may_wait=may_wait)  # over it
    assert woken == [True, True]
    core.check()
    assert core.get("a") == text(2)


@pytest.mark.parametrize("may_wait", [True, False])
def test_nobody_goes_below_min_on_the_short_way(may_wait):
    core = Core()
    node = core.node
    node.root.lets = Brake(node.root, batch=64 * PAGE).lets
    below_low(core, above_min=OVERHEAD + 99)
    free = node.memcg.free
    assert not node.values.put_fast("a", text(1, size=100), may_wait=may_wait)
    assert node.memcg.free == free
    assert node.values.put_fast("a", text(1, size=99), may_wait=False)
    assert node.memcg.free == node.marks.min
    core.check()


def test_a_put_without_room_for_its_key_changes_nothing():
    core = Core()
    key = url(1, core.node.memcg.free)
    assert not core.node.values.put_fast(key, b"a")
    with pytest.raises(ProtocolViolation):
        core.put(key, b"a")
    core.check()
    assert core.node.memcg.overhead == 0


def test_an_equal_key_that_is_longer_is_charged_as_the_one_that_is_kept():
    """The dict keeps the first of them, unless the value is put anew."""
    core = Core()

    class Long(str):
        __slots__ = ("tail",)

        def __sizeof__(self):
            return super().__sizeof__() + 1000

    core.put("short", b"a")
    assert core.node.values.put_fast(Long("short"), b"b")
    core.check()
    assert core.node.memcg.overhead == OVERHEAD
    core.put(Long("short"), b"c")
    assert core.node.memcg.overhead == OVERHEAD + key_extra(Long("short"))
    core.delete("short")
    assert core.node.memcg.overhead == 0


def test_a_long_key_of_a_deleted_value_is_given_back_while_somebody_still_reads_it():
    core = Core()
    pfn = core.put(url(1), text())
    core.node.pin(pfn)
    core.delete(url(1))
    assert core.node.memcg.overhead == FOLIO_OVERHEAD
    core.node.unpin(pfn)
    assert core.node.memcg.overhead == 0
    core.check()
