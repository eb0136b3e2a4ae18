"""kswapd as a state machine: how much, how hard, and when it gives up."""

import zlib
from itertools import pairwise
from typing import NamedTuple

import pytest

from reclaimactors.compressors.lz4 import Lz4
from reclaimactors.mm.batch import SWAP_CLUSTER_MAX, Reclaimer
from reclaimactors.mm.lru import ActiveInactive
from reclaimactors.mm.memcg import Memcg
from reclaimactors.mm.node import Node
from reclaimactors.mm.page_io import squeeze
from reclaimactors.mm.swap import SwapDevice, SwapDevices
from reclaimactors.mm.swapout import Swapout
from reclaimactors.mm.vmscan import DEF_PRIORITY, MAX_RECLAIM_RETRIES, Kswapd, Step
from reclaimactors.mm.watermark import Watermarks
from reclaimactors.mm.zswap import Zswap

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

    def __init__(self, *, max_in_flight=BUDGET // 8, devices=0):
        self.node = Node(
            page_size=PAGE,
            memcg=Memcg(BUDGET),
            marks=Watermarks(100 * PAGE, 200 * PAGE, HIGH),
            policy=ActiveInactive(pages=1000),
            zswap=Zswap(BUDGET, enabled=True, max_pool_percent=50, accept_threshold_percent=90),
            swap=SwapDevices(tuple(SwapDevice(i, f"store{i}", 0, None) for i in range(devices))),
            compressor=Lz4(),
        )
        self.out = Swapout(self.node)
        self.kswapd = Kswapd(self.node, self.out.ledger, max_in_flight=max_in_flight)
        self.batches = []  # in flight
        self.calls = 0
        self.calls_to_check = 50

    def fill(self, make=text, nr=700, size=PAGE):
        """Put values until free memory is below *low*; return self."""
        for i in range(nr):
            self.node.commit(("fill", i), [make(i, size)], 0)
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


def trace(machine, steps=2000):
    """Return the priorities of one fruitless run, in order, each once."""
    seen = []
    for _ in range(steps):
        if machine.kswapd.failures:
            break
        machine.step()
        while machine.batches:
            machine.land()
        if not seen or seen[-1] != machine.kswapd.priority:
            seen.append(machine.kswapd.priority)
    return seen


def test_fruitless_passes_go_from_twelve_down_to_one():
    machine = Machine().fill(noise)
    assert trace(machine)[:DEF_PRIORITY] == list(range(DEF_PRIORITY, 0, -1))


def test_a_lower_priority_scans_more():
    machine = Machine().fill(noise)
    scanned = {}
    while not machine.kswapd.failures:
        machine.step()
        while machine.batches:
            priority = machine.kswapd.priority
            scanned[priority] = scanned.get(priority, 0) + len(machine.batches[0].pfns)
            machine.land()
    assert scanned[11] == SWAP_CLUSTER_MAX
    assert [scanned[priority] for priority in (3, 2, 1)] == [700 >> 3, 700 >> 2, 700 >> 1]


def test_what_is_in_flight_is_pending_progress_and_does_not_escalate():
    machine = Machine().fill()
    for _ in range(500):
        machine.step()
    assert machine.batches
    assert machine.kswapd.priority == DEF_PRIORITY
    assert machine.kswapd.failures == 0


def test_kswapd_waits_rather_than_escalate_while_a_store_writes():
    machine = Machine(devices=1).fill(noise)
    machine.step()
    (batch,) = machine.batches
    pages, writes = machine.out.begin(batch, hold=False)
    writes += machine.out.complete(batch, squeeze(Lz4(), pages))
    machine.batches.clear()
    steps = [machine.step() for _ in range(300)]
    assert steps[-1] is Step.WAIT
    assert (machine.kswapd.priority, machine.kswapd.failures) == (DEF_PRIORITY, 0)


# -- the trace of a slow worker


class Row(NamedTuple):
    """What a step of kswapd found and left; `failures` and what precedes it as it left them."""

    step: Step
    passes: int
    priority: int
    failures: int
    freed: int  #: bytes so far
    returned: int  #: verdicts so far
    pending: int  #: folios in flight before the step
    quota: int  #: folios that a pass of the priority before the step may isolate


def slow_trace(machine, *, every, newest_first=False, held=(), steps=200_000) -> list[Row]:
    """Step kswapd until it sleeps, while a worker takes what is there every so many steps.

    It takes a cluster, and never a batch that has a folio that is `held`. All steps are returned.
    """
    machine.calls_to_check = 2000
    kswapd, node, ledger = machine.kswapd, machine.node, machine.out.ledger
    rows: list[Row] = []
    while len(rows) < steps:
        pending = node.nr_in_flight
        quota = max(SWAP_CLUSTER_MAX, node.nr_resident - pending >> kswapd.priority)
        step = machine.step()
        rows.append(
            Row(step, kswapd.passes, kswapd.priority, kswapd.failures, ledger.freed_total,
                ledger.returned_total, pending, quota)
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
    """Each fall of the priority, and each failure, has the verdicts that say so."""
    run, start = rows[0], rows[0]
    for before, row in pairwise(rows):
        known = row.returned - start.returned >= row.quota or not row.pending
        if row.step is Step.SLEEP:
            assert row.failures == before.failures + 1 == MAX_RECLAIM_RETRIES
            assert known
            assert before.priority == 1
            return
        if row.passes == before.passes:
            assert row.priority == before.priority
            assert row.failures == (before.failures if row.freed == before.freed else 0)
            continue
        if row.freed != start.freed:
            assert row.priority == before.priority, "a pass that freed something made it harder"
        elif before.priority > 1:
            assert row.priority == before.priority - 1
            assert known, "the priority fell while progress was pending"
        else:
            assert row.priority == DEF_PRIORITY
            assert known, "a run was given up while progress was pending"
            assert row.failures == (before.failures + 1 if row.freed == run.freed else 0)
            run = row
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
    assert {row.failures for row in rows} == {0}
    assert machine.node.memcg.free >= HIGH


@SLOW
def test_a_slow_worker_that_frees_nothing_is_judged_by_its_verdicts_alone(every, newest_first):
    machine = Machine().fill(noise)
    rows = slow_trace(machine, every=every, newest_first=newest_first)
    assert_justified(rows)
    falls = [row.priority for before, row in pairwise(rows) if row.priority != before.priority]
    assert [DEF_PRIORITY, *falls] == [*range(DEF_PRIORITY, 0, -1)] * MAX_RECLAIM_RETRIES + (
        [DEF_PRIORITY]
    )
    assert machine.kswapd.hopeless


@SLOW
def test_hopeless_is_reached_sixteen_runs_after_the_last_that_freed_something(every, newest_first):
    machine = Machine().fill(one_in(60))
    rows = slow_trace(machine, every=every, newest_first=newest_first)
    assert_justified(rows)
    assert machine.kswapd.hopeless
    last = max(i for i, (before, row) in enumerate(pairwise(rows)) if row.freed != before.freed)
    assert rows[-1].freed > 0
    assert rows[last + 1].failures == 0
    assert [row.failures for row in rows[last + 1 :]] == sorted(
        row.failures for row in rows[last + 1 :]
    )


def few(make=noise, nr=11, size=64 * PAGE) -> Machine:
    return Machine().fill(make, nr, size)


@SLOW
def test_a_pass_that_has_seen_the_few_there_are_is_not_repeated_at_lower_priorities(
    every, newest_first
):
    machine = few()
    rows = slow_trace(machine, every=every, newest_first=newest_first)
    assert machine.kswapd.hopeless
    assert {row.priority for row in rows} == {DEF_PRIORITY}
    assert machine.kswapd.passes == machine.node.vmstat["pageoutrun"] == MAX_RECLAIM_RETRIES
    failed = [row for before, row in pairwise(rows) if row.failures != before.failures]
    seen = [0, *(row.returned for row in failed)]
    assert all(after - before >= SWAP_CLUSTER_MAX for before, after in pairwise(seen))


def test_one_of_the_few_that_can_be_freed_is_found_and_ends_the_failures():
    machine = few(one_in(11))
    slow_trace(machine, every=3)
    assert machine.out.ledger.freed_total > 60 * PAGE
    assert machine.kswapd.hopeless  # all the others


def test_the_few_that_are_all_in_flight_are_waited_for():
    machine = few()
    steps = [machine.step() for _ in range(200)]
    assert steps[-1] is Step.WAIT
    assert (machine.kswapd.priority, machine.kswapd.failures) == (DEF_PRIORITY, 0)


def test_more_than_a_pass_sees_is_looked_at_with_every_priority():
    machine = few(nr=SWAP_CLUSTER_MAX + 1, size=20 * PAGE)
    assert trace(machine)[:DEF_PRIORITY] == list(range(DEF_PRIORITY, 0, -1))


def test_a_store_that_may_yet_free_something_is_given_every_priority():
    machine = few()
    machine.node.zswap.wanted = PAGE
    assert trace(machine)[:DEF_PRIORITY] == list(range(DEF_PRIORITY, 0, -1))


def test_a_worker_that_is_stuck_is_waited_for_and_nothing_else_happens():
    machine = Machine().fill(noise)
    steps = [machine.step() for _ in range(1000)]
    assert set(steps[100:]) == {Step.WAIT}
    assert (machine.kswapd.priority, machine.kswapd.failures) == (DEF_PRIORITY, 0)


def test_a_late_verdict_that_frees_something_ends_hopelessness():
    machine = Machine().fill(one_in(700))  # the first value alone can be compressed, and is held
    pfn = machine.node.small["fill", 0]
    slow_trace(machine, every=3, held={pfn})
    assert machine.kswapd.hopeless
    assert not machine.kswapd.wants_to_run()
    machine.batches = [batch for batch in machine.batches if pfn in batch.pfns]
    machine.land()
    assert machine.kswapd.wants_to_run()
    assert not machine.kswapd.hopeless


# -- hopeless, and the way back


def hopeless() -> Machine:
    machine = Machine().fill(noise)
    assert machine.run() is Step.SLEEP
    return machine


def test_sixteen_fruitless_runs_are_hopeless():
    machine = hopeless()
    assert machine.kswapd.hopeless
    assert machine.node.vmstat["pageoutrun"] == MAX_RECLAIM_RETRIES


def test_a_hopeless_kswapd_is_not_woken():
    assert not hopeless().kswapd.wants_to_run()


def test_a_direct_reclaim_that_frees_something_is_the_way_back():
    machine = hopeless()
    machine.node.commit("new", [text(0)], 0)
    while not machine.kswapd.wants_to_run():
        machine.batches.append(machine.out.isolate(32, 1 << 30, Reclaimer.DIRECT))
        machine.land()
    assert machine.kswapd.failures == 0


def test_deletes_that_bring_free_memory_back_to_high_are_the_way_back():
    machine = hopeless()
    machine.node.memcg.on_freed = lambda _: machine.kswapd.relieved()
    for i in range(200):
        machine.node.delete(("fill", i))
    assert machine.node.memcg.free >= HIGH
    machine.fill(text)
    assert machine.kswapd.wants_to_run()


def test_a_delete_that_leaves_memory_short_is_not_enough():
    machine = hopeless()
    machine.node.memcg.on_freed = lambda _: machine.kswapd.relieved()
    machine.node.delete(("fill", 0))
    assert machine.kswapd.hopeless


def test_one_run_that_frees_something_forgives_the_failures_before():
    machine = Machine().fill(noise)
    while machine.kswapd.failures < MAX_RECLAIM_RETRIES - 1:
        machine.step()
        while machine.batches:
            machine.land()
    for i in range(250):
        machine.node.commit(("fill", i), [text(i)], 0)
    machine.run()
    assert machine.kswapd.failures == 0
    assert machine.node.memcg.free >= HIGH


# -- what may be in flight


def test_an_eighth_of_the_budget_may_be_in_flight():
    machine = Machine().fill(nr=900)
    while machine.step() is Step.ISOLATE:
        pass
    assert BUDGET // 8 - PAGE < machine.node.memcg.in_flight <= BUDGET // 8


def test_kswapd_waits_once_what_is_in_flight_will_reach_high():
    machine = Machine().fill(nr=580)
    machine.out.ledger.gain = 1.0
    missing = HIGH - machine.node.memcg.free
    steps = [machine.step() for _ in range(50)]
    assert steps[-1] is Step.WAIT
    assert missing <= machine.node.memcg.in_flight < missing + SWAP_CLUSTER_MAX * PAGE


def test_a_low_gain_lets_more_into_flight():
    in_flight = []
    for gain in (1.0, 0.5):
        machine = Machine().fill(nr=580)
        machine.out.ledger.gain = gain
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


def test_kswapd_throttles_while_a_store_that_refused_still_writes():
    machine = Machine(devices=1).fill(noise)
    machine.step()
    batch = machine.batches.pop()
    pages, writes = machine.out.begin(batch, hold=False)
    writes += machine.out.complete(batch, squeeze(Lz4(), pages))
    machine.kswapd.throttled = True
    assert machine.step() is Step.THROTTLE


def test_a_throttle_ends_when_nothing_is_being_written():
    machine = Machine(devices=1).fill(noise)
    machine.kswapd.throttled = True
    assert machine.step() is Step.ISOLATE


# -- what is asked for


def some(machine, nr=20):
    for i in range(nr):
        machine.node.commit(i, [text(i)], 0)


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
    machine.node.commit("a", [noise(0)], 0)
    machine.kswapd.request(PAGE)
    machine.run()
    assert machine.kswapd.requested == 0
    machine.fill(nr=650)
    assert machine.kswapd.wants_to_run()


# -- when nothing resident is left


def only_blobs(devices=1) -> Machine:
    """Everything that is held is compressed, and *high* is not reached."""
    machine = Machine(devices=devices)
    for i in range(800):
        machine.node.commit(i, [noise(i, 2000) + bytes(2096)], 0)
        if i % 32 == 31:
            machine.batches.append(machine.out.isolate(32, 1 << 30, Reclaimer.DIRECT))
            machine.land()
    machine.node.marks = Watermarks(100 * PAGE, 200 * PAGE, 900 * PAGE)
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
    machine.node.marks = Watermarks(PAGE, 2 * PAGE, 3 * PAGE)
    machine.node.want_writeback()
    assert machine.node.zswap.wanted == 0


def test_each_pass_is_counted_for_the_aging_of_the_policy():
    machine = Machine().fill(noise)
    machine.run()
    assert machine.kswapd.passes >= DEF_PRIORITY * MAX_RECLAIM_RETRIES
