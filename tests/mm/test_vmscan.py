"""kswapd as a state machine: how much, how hard, and when it gives up."""

import zlib
from itertools import pairwise
from typing import NamedTuple

import pytest

from reclaimactors.compressors.lz4 import Lz4
from reclaimactors.mm.batch import SWAP_CLUSTER_MAX, Reclaimer
from reclaimactors.mm.memcg import Memcg
from reclaimactors.mm.node import Node
from reclaimactors.mm.page_io import squeeze
from reclaimactors.mm.swap import SwapDevices
from reclaimactors.mm.swap_device import SwapDevice
from reclaimactors.mm.swapout import Swapout
from reclaimactors.mm.vmscan import DEF_PRIORITY, Kswapd, Step
from reclaimactors.mm.watermark import Watermarks
from reclaimactors.mm.zswap import Zswap
from reclaimactors.policies.active_inactive import ActiveInactive

PAGE = 4096
BUDGET = 1000 * PAGE
HIGH = 400 * PAGE


def text(seed, size=PAGE):
    return (b"value %d of vmscan, " % seed * (size // 8 + 1))[:size]


def noise(seed, size=PAGE):
    words = (zlib.crc32(b"%d/%d" % (seed, i)).to_bytes(4, "big") for i in range(size // 4))
    return b"".join(words)


class Machine:
    """A node and its kswapd, and who carries out its steps."""

    def __init__(self, *, max_in_flight=BUDGET // 8, devices=0, pool=True):
        self.node = Node(
            page_size=PAGE,
            memcg=Memcg(BUDGET),
            marks=Watermarks(100 * PAGE, 200 * PAGE, HIGH),
            policy=ActiveInactive(pages=1000),
            zswap=Zswap(BUDGET, enabled=pool, max_pool_percent=50, accept_threshold_percent=90),
            swap=SwapDevices(tuple(SwapDevice(i, f"store{i}", 0, None) for i in range(devices))),
            compressor=Lz4(),
        )
        self.out = Swapout(self.node)
        self.kswapd = Kswapd(self.node.root, max_in_flight=max_in_flight)
        self.batches = []  # in flight
        self.calls = 0
        self.calls_to_check = 50

    def fill(self, make=text, nr=700, size=PAGE):
        """Put values until free memory is below *low*; return self."""
        for i in range(nr):
            self.node.values.commit(("fill", i), [make(i, size)], 0)
        assert self.node.memcg.free < self.node.marks.high
        return self

    def step(self):
        """Ask, and isolate what kswapd says; the batch stays in flight."""
        step = self.kswapd.next()
        if step is Step.ISOLATE:
            batch = self.out.isolate(
                self.kswapd.nr, max(0, self.kswapd.max_bytes), Reclaimer.KSWAPD
            )
            self.kswapd.isolated(batch)
            if batch:
                self.batches.append(batch)
        self.check()
        return step

    def check(self):
        """Look at every row of the node, now and then in a long run."""
        self.calls += 1
        if self.calls < 50 or self.calls % self.calls_to_check == 0:
            assert self.node.check()

    def land(self):
        """Compress the oldest batch in flight."""
        batch = self.batches.pop(0)
        pages, writes = self.out.begin(batch, hold=False)
        writes += self.out.complete(batch, squeeze(Lz4(), pages))
        for write in writes:
            self.out.pageout.items(write)
            self.out.pageout.stored(write)
        self.check()

    def run(self, steps=100_000):
        """Do what kswapd says until it waits for nobody or sleeps; return the last step."""
        for _ in range(steps):
            step = self.step()
            if step is Step.SLEEP:
                return step
            while self.batches:
                self.land()
        raise AssertionError("kswapd does not come to rest")


# -- waking and sleeping


def test_a_balanced_node_sleeps():
    machine = Machine()
    assert machine.step() is Step.SLEEP
    assert not machine.kswapd.wants_to_run()


def test_a_node_below_high_is_reclaimed():
    machine = Machine().fill()
    assert machine.kswapd.wants_to_run()
    assert machine.step() is Step.ISOLATE


def test_kswapd_goes_on_until_free_memory_is_at_high():
    machine = Machine().fill()
    assert machine.run() is Step.SLEEP
    assert machine.node.memcg.free >= HIGH
    assert machine.node.memcg.free < HIGH + SWAP_CLUSTER_MAX * PAGE


def test_a_stay_awake_is_one_run_where_reclaim_gets_on():
    machine = Machine().fill()
    machine.run()
    assert machine.node.vmstat["pageoutrun"] == 1


def test_a_wake_up_while_it_runs_is_a_no_op():
    machine = Machine().fill()
    machine.step()
    assert not machine.kswapd.wants_to_run()


def test_one_step_isolates_a_cluster_at_most():
    machine = Machine().fill()
    machine.step()
    assert len(machine.batches[0].pfns) == SWAP_CLUSTER_MAX


# -- priority


def test_passes_that_free_something_stay_at_the_default_priority():
    machine = Machine().fill()
    priorities = set()
    while machine.step() is Step.ISOLATE:
        priorities.add(machine.kswapd.priority)
        machine.land()
    assert priorities == {DEF_PRIORITY}


def fruitless(nr=700, size=PAGE) -> "Machine":
    """Nothing of it can be freed: without a pool and a store, all of it stays on the lists."""
    return Machine(pool=False).fill(text, nr, size)


def trace(machine, steps=2000):
    """Return the priorities up to the sleep, in order, each once."""
    seen = []
    for _ in range(steps):
        if machine.step() is Step.SLEEP:
            break
        if not seen or seen[-1] != machine.kswapd.priority:
            seen.append(machine.kswapd.priority)
        while machine.batches:
            machine.land()
    return seen


def test_fruitless_passes_go_from_twelve_down_to_one():
    assert trace(fruitless()) == list(range(DEF_PRIORITY, 0, -1))


def test_a_lower_priority_scans_more():
    machine = fruitless()
    scanned = {}
    while machine.step() is not Step.SLEEP:
        while machine.batches:
            priority = machine.kswapd.priority
            scanned[priority] = scanned.get(priority, 0) + len(machine.batches[0].pfns)
            machine.land()
    assert scanned[11] == SWAP_CLUSTER_MAX
    assert [scanned[priority] for priority in (3, 2)] == [700 >> 3, 700 >> 2]


def test_what_is_in_flight_is_pending_progress_and_does_not_escalate():
    machine = Machine().fill()
    for _ in range(500):
        machine.step()
    assert machine.batches
    assert machine.kswapd.priority == DEF_PRIORITY


def test_a_store_that_writes_stops_nothing_and_nothing_becomes_harder():
    machine = Machine(devices=1).fill(noise)
    writes = send_to_store(machine)
    assert machine.step() is Step.ISOLATE
    assert machine.kswapd.priority == DEF_PRIORITY
    for write in writes:
        machine.out.pageout.stored(write)
    assert machine.node.memcg.at_store == 0


def send_to_store(machine):
    """Isolate and compress one batch that does not compress; return the writes, not yet done."""
    machine.step()
    batch = machine.batches.pop()
    pages, writes = machine.out.begin(batch, hold=False)
    return writes + machine.out.complete(batch, squeeze(Lz4(), pages))


def test_what_is_at_a_store_covers_nothing_and_is_not_being_compressed():
    machine = Machine(devices=1).fill(noise)
    send_to_store(machine)
    memcg = machine.node.memcg
    assert memcg.at_store == memcg.in_flight == SWAP_CLUSTER_MAX * PAGE
    assert memcg.compressing == 0


def test_once_all_was_looked_at_kswapd_waits_for_the_store():
    machine = Machine(devices=1).fill(noise)
    send_to_store(machine)
    machine.node.swap[0].congested = True  # no other write will do
    steps = []
    while not steps or steps[-1] is Step.ISOLATE:
        steps.append(machine.step())
        while machine.batches:
            machine.land()
    assert steps[-1] is Step.WAIT
    assert len(machine.node.root.unevictable) == 700 - SWAP_CLUSTER_MAX


# -- the trace of a slow worker


class Row(NamedTuple):
    """What a step of kswapd found and left; `priority` and what precedes it as it left them."""

    step: Step
    passes: int
    priority: int
    freed: int  #: bytes so far
    returned: int  #: verdicts so far
    pending: int  #: folios in flight before the step
    quota: int  #: folios that a pass of the priority before the step may isolate


def slow_trace(machine, *, every, newest_first=False, held=(), steps=200_000) -> list[Row]:
    """Step kswapd until it sleeps, while a worker takes what is there every so many steps.

    It takes a cluster, and never a batch that has a folio that is `held`. All steps are returned.
    """
    machine.calls_to_check = 2000
    kswapd, node, root = machine.kswapd, machine.node, machine.node.root
    rows: list[Row] = []
    while len(rows) < steps:
        pending = node.nr_in_flight
        on_lists = node.nr_resident - pending - len(node.root.unevictable)
        quota = max(SWAP_CLUSTER_MAX, on_lists >> kswapd.priority)
        step = machine.step()
        rows.append(
            Row(step, kswapd.passes, kswapd.priority, root.freed_total, root.returned_total,
                pending, quota)
        )  # fmt: skip
        if step is Step.SLEEP:
            return rows
        if len(rows) % every == 0:
            land_cluster(machine, newest_first=newest_first, held=set(held))
    raise AssertionError("kswapd does not come to rest")


def land_cluster(machine, *, newest_first, held) -> None:
    """Compress up to SWAP_CLUSTER_MAX folios of the batches in flight, at least one batch."""
    ready = [batch for batch in machine.batches if not held.intersection(batch.pfns)]
    nr = 0
    for batch in ready[::-1] if newest_first else ready:
        nr += len(batch.pfns)
        if nr > SWAP_CLUSTER_MAX and nr > len(batch.pfns):
            return
        machine.batches.remove(batch)
        machine.batches.insert(0, batch)
        machine.land()


def assert_justified(rows: list[Row]) -> None:
    """Each fall of the priority has the verdicts that say so."""
    start = rows[0]
    for before, row in pairwise(rows):
        known = row.returned - start.returned >= row.quota or not row.pending
        if row.step is Step.SLEEP:
            return
        if row.passes == before.passes:
            assert row.priority == before.priority
            continue
        if row.freed != start.freed:
            assert row.priority == before.priority, "a pass that freed something made it harder"
        elif before.priority > 1:
            assert row.priority == before.priority - 1
            assert known, "the priority fell while progress was pending"
        else:
            assert row.priority == DEF_PRIORITY
            assert known, "a run was given up while progress was pending"
        start = row


def one_in(nr):
    """Values of which one in so many can be compressed."""
    return lambda seed, size: noise(seed, size) if seed % nr else text(seed, size)


SLOW = pytest.mark.parametrize(
    ("every", "newest_first"), [(1, False), (7, False), (7, True), (30, False), (30, True)]
)


@SLOW
def test_a_slow_worker_that_gets_on_never_makes_it_harder(every, newest_first):
    machine = Machine().fill()
    rows = slow_trace(machine, every=every, newest_first=newest_first)
    assert {row.priority for row in rows} == {DEF_PRIORITY}
    assert machine.node.memcg.free >= HIGH


@SLOW
def test_a_slow_worker_that_frees_nothing_is_judged_by_its_verdicts_alone(every, newest_first):
    machine = fruitless()
    rows = slow_trace(machine, every=every, newest_first=newest_first)
    assert_justified(rows)
    assert rows[-1].returned >= 700
    assert machine.kswapd.hopeless


@SLOW
def test_everything_is_looked_at_after_the_last_byte_was_freed(every, newest_first):
    machine = Machine().fill(one_in(60))
    rows = slow_trace(machine, every=every, newest_first=newest_first)
    assert_justified(rows)
    assert machine.kswapd.hopeless
    assert machine.node.vmstat["pgsteal_anon"] == 12
    assert len(machine.node.root.unevictable) == 700 - 12
    assert machine.node.vmstat["reject_compress_poor"] == 700 - 12  # each once


def few(make=noise, nr=11, size=64 * PAGE) -> Machine:
    return Machine().fill(make, nr, size)


@SLOW
def test_a_pass_that_has_seen_the_few_there_are_is_not_repeated(every, newest_first):
    machine = fruitless(11, 64 * PAGE)
    rows = slow_trace(machine, every=every, newest_first=newest_first)
    assert machine.kswapd.hopeless
    assert {row.priority for row in rows} == {DEF_PRIORITY}
    assert machine.kswapd.passes == machine.node.vmstat["pageoutrun"] == 1


def test_one_of_the_few_that_can_be_freed_is_found():
    machine = few(one_in(11))
    slow_trace(machine, every=3)
    assert machine.node.root.freed_total > 60 * PAGE
    assert machine.kswapd.hopeless  # all the others


def test_the_few_that_are_all_in_flight_are_waited_for():
    machine = few()
    steps = [machine.step() for _ in range(200)]
    assert steps[-1] is Step.WAIT
    assert machine.kswapd.priority == DEF_PRIORITY


def test_a_writeback_that_may_yet_free_something_is_waited_for():
    machine = few()
    machine.node.zswap.wanted = PAGE
    for _ in range(200):
        step = machine.step()
        while machine.batches:
            machine.land()
    assert step is Step.WAIT
    assert not machine.kswapd.hopeless


def test_a_worker_that_is_stuck_is_waited_for_and_nothing_else_happens():
    machine = Machine().fill(noise)
    steps = [machine.step() for _ in range(1000)]
    assert set(steps[100:]) == {Step.WAIT}
    assert machine.kswapd.priority == DEF_PRIORITY


def test_what_a_late_worker_has_covers_nothing():
    machine = Machine().fill(nr=580)
    machine.node.root.gain = 1.0
    while machine.step() is Step.ISOLATE:
        pass
    machine.kswapd.late = True
    assert machine.step() is Step.ISOLATE


def test_a_late_verdict_that_frees_something_is_the_way_back():
    machine = Machine().fill(one_in(700))  # the first value alone can be compressed, and is held
    pfn = machine.node.values.small["fill", 0]
    machine.calls_to_check = 2000
    for i in range(5000):
        machine.step()
        if i % 3 == 0:
            land_cluster(machine, newest_first=False, held={pfn})
    assert not machine.kswapd.hopeless  # it may yet free something
    machine.batches = [batch for batch in machine.batches if pfn in batch.pfns]
    machine.land()
    assert machine.node.root.freed_total > 0


# -- hopeless, and the way back


def hopeless(make=noise, *, pool=True) -> Machine:
    machine = Machine(pool=pool).fill(make)
    assert machine.run() is Step.SLEEP
    return machine


def test_a_node_is_hopeless_once_everything_was_looked_at():
    machine = hopeless()
    assert machine.kswapd.hopeless
    assert machine.node.vmstat["pgscan_kswapd"] == 700  # each once: it is known not to compress


def test_a_hopeless_kswapd_is_not_woken():
    assert not hopeless().kswapd.wants_to_run()
    assert not hopeless(text, pool=False).kswapd.wants_to_run()


def test_a_new_folio_is_worth_a_look():
    machine = hopeless()
    machine.node.values.commit("new", [text(0)], 0)
    assert machine.kswapd.wants_to_run()
    machine.run()
    assert machine.node.vmstat["pgsteal_anon"] == 1


@pytest.mark.parametrize("pool", [True, False])
def test_a_folio_that_was_overwritten_is_worth_a_look(pool):
    machine = hopeless(noise, pool=pool)
    node = machine.node
    assert (
        node.values.put_fast(("fill", 3), text(0)) is not pool
    )  # what is unevictable takes the long way
    if pool:
        node.values.commit(("fill", 3), [text(0)], 0)
    assert machine.kswapd.wants_to_run()


def test_a_direct_reclaim_that_frees_something_is_the_way_back():
    machine = hopeless(noise, pool=False)
    machine.node.zswap.enabled = True
    assert machine.kswapd.wants_to_run()  # the pool takes what it did not take before


def test_a_delete_that_leaves_memory_short_is_not_enough():
    machine = hopeless()
    machine.node.values.delete(("fill", 0))
    assert machine.kswapd.hopeless


def test_swap_that_appears_is_the_way_back():
    machine = hopeless()
    machine.node.swap.add(SwapDevice(0, "store0", 0, None))
    assert machine.kswapd.wants_to_run()
    machine.run()
    assert machine.node.memcg.free >= HIGH
    vm = machine.node.vmstat
    assert vm["reject_compress_poor"] == 700  # none was compressed again
    assert vm["unevictable_pgs_culled"] == 700
    assert vm["unevictable_pgs_rescued"] == vm["pgsteal_anon"] > 0


# -- what may be in flight


def test_an_eighth_of_the_budget_may_be_in_flight():
    machine = Machine().fill(nr=900)
    while machine.step() is Step.ISOLATE:
        pass
    cluster = SWAP_CLUSTER_MAX * PAGE
    assert BUDGET // 8 - cluster < machine.node.memcg.in_flight <= BUDGET // 8


def test_room_that_opens_by_a_page_is_not_filled_by_a_page():
    machine = Machine().fill(nr=900)
    while machine.step() is Step.ISOLATE:
        pass
    last = machine.batches[-1]
    machine.batches[-1] = machine.out.split(last, len(last.pfns) - 1)
    machine.batches.insert(0, last)
    machine.batches.insert(0, machine.batches.pop())
    machine.land()  # one folio
    assert machine.step() is Step.WAIT
    machine.land()
    assert machine.step() is Step.ISOLATE
    assert len(machine.batches[-1].pfns) == SWAP_CLUSTER_MAX


def test_kswapd_waits_once_what_is_in_flight_will_reach_high():
    machine = Machine().fill(nr=580)
    machine.node.root.gain = 1.0
    missing = HIGH - machine.node.memcg.free
    steps = [machine.step() for _ in range(50)]
    assert steps[-1] is Step.WAIT
    assert missing <= machine.node.memcg.in_flight < missing + SWAP_CLUSTER_MAX * PAGE


def test_a_low_gain_lets_more_into_flight():
    in_flight = []
    for gain in (1.0, 0.5):
        machine = Machine().fill(nr=580)
        machine.node.root.gain = gain
        while machine.step() is Step.ISOLATE:
            pass
        in_flight.append(machine.node.memcg.in_flight)
    assert in_flight[0] < in_flight[1]


def test_one_folio_may_always_be_in_flight_whatever_its_size():
    machine = Machine(max_in_flight=10 * PAGE).fill(nr=10, size=64 * PAGE)
    assert machine.step() is Step.ISOLATE
    assert machine.node.memcg.in_flight == 64 * PAGE
    assert machine.step() is Step.WAIT


def test_the_next_large_folio_goes_when_the_first_has_landed():
    machine = Machine(max_in_flight=10 * PAGE).fill(nr=14, size=64 * PAGE)
    machine.step()
    machine.step()
    machine.land()
    assert machine.step() is Step.ISOLATE


@pytest.mark.parametrize("nr", [1, 5, 31])
def test_a_cluster_is_cut_to_what_may_still_go(nr):
    machine = Machine(max_in_flight=nr * PAGE).fill()
    machine.step()
    assert len(machine.batches[0].pfns) == nr


# -- a store that is busy


def test_kswapd_throttles_while_a_store_refuses_what_the_pool_does_not_take():
    machine = Machine(devices=1, pool=False).fill(noise)
    send_to_store(machine)
    machine.kswapd.throttled = True
    assert machine.step() is Step.THROTTLE


def test_a_store_that_refuses_does_not_stop_what_goes_to_the_pool():
    machine = Machine(devices=1).fill(noise)
    send_to_store(machine)
    machine.kswapd.throttled = True
    assert machine.step() is Step.ISOLATE


def test_a_throttle_ends_when_nothing_is_being_written():
    machine = Machine(devices=1).fill(noise)
    machine.kswapd.throttled = True
    assert machine.step() is Step.ISOLATE


# -- what is asked for


def some(machine, nr=20):
    for i in range(nr):
        machine.node.values.commit(i, [text(i)], 0)


def test_a_request_is_reclaimed_although_the_node_is_balanced():
    machine = Machine()
    some(machine)
    machine.kswapd.request(3 * PAGE)
    assert machine.kswapd.wants_to_run()
    machine.run()
    assert machine.node.vmstat["pgsteal_anon"] == 3
    assert not machine.kswapd.wants_to_run()


def test_requests_add_up():
    machine = Machine()
    some(machine, 100)
    machine.kswapd.request(40 * PAGE)
    machine.kswapd.request(40 * PAGE)
    machine.run()
    assert machine.node.vmstat["pgsteal_anon"] == 80


def test_a_request_that_cannot_be_met_is_dropped_and_the_node_is_not_hopeless():
    machine = Machine()
    machine.node.values.commit("a", [noise(0)], 0)
    machine.kswapd.request(PAGE)
    machine.run()
    assert machine.kswapd.requested == 0
    machine.kswapd.request(PAGE)  # it is hopeless now: nothing is remembered
    assert machine.kswapd.requested == 0
    machine.fill(nr=650)
    assert machine.kswapd.wants_to_run()


# -- when nothing resident is left


def only_blobs(devices=1) -> Machine:
    """Everything that is held is compressed, and *high* is not reached."""
    machine = Machine(devices=devices)
    for i in range(800):
        machine.node.values.commit(i, [noise(i, 2000) + bytes(2096)], 0)
        if i % 32 == 31:
            machine.batches.append(machine.out.isolate(32, 1 << 30, Reclaimer.DIRECT))
            machine.land()
    machine.node.root.marks = Watermarks(100 * PAGE, 200 * PAGE, 900 * PAGE)
    return machine


def test_with_nothing_resident_left_cold_blobs_are_wanted_on_the_device():
    machine = only_blobs()
    woken = []
    machine.node.on_pool_full = lambda: woken.append(True)
    machine.step()
    assert woken
    short = machine.node.marks.high - machine.node.memcg.free
    assert machine.node.zswap.wanted == min(short, machine.node.zswap.total) > 0


def test_a_wanted_writeback_is_pending_progress():
    machine = only_blobs()
    assert [machine.step() for _ in range(100)][-1] is Step.WAIT
    assert machine.kswapd.priority == DEF_PRIORITY


def test_without_a_device_no_writeback_is_wanted_and_it_becomes_hopeless():
    machine = only_blobs(devices=0)
    machine.run()
    assert machine.node.zswap.wanted == 0
    assert machine.kswapd.hopeless


def test_a_balanced_node_wants_no_writeback():
    machine = only_blobs()
    machine.node.root.marks = Watermarks(PAGE, 2 * PAGE, 3 * PAGE)
    machine.node.writeback.want()
    assert machine.node.zswap.wanted == 0


def test_each_pass_is_counted_for_the_aging_of_the_policy():
    machine = fruitless()
    machine.run()
    assert machine.kswapd.passes == DEF_PRIORITY
