"""Triggers: they fire where so much of a window was stalled, then, and nowhere else."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reclaimactors.cpu.psi import Psi
from reclaimactors.cpu.watch import FINE, Watch

MS = 0.001


def fires_at(stretches, stall_s, window_s):
    """The ends of the stretches at which a watch fires."""
    watch = Watch("some", stall_s, window_s)
    fires = []
    for start, end in stretches:
        watch.fired = False
        if watch.add(start, end):
            fires.append(end)
    return fires


def stalled(stretches, begin, end):
    return sum(max(0.0, min(stop, end) - max(start, begin)) for start, stop in stretches)


def test_it_fires_where_enough_of_a_window_was_stalled():
    assert fires_at([(0, 0.1), (0.5, 0.55)], 0.15, 1.0) == [0.55]


def test_what_has_slid_out_of_the_window_does_not_count():
    assert fires_at([(0, 0.1), (1.05, 1.14)], 0.15, 1.0) == []


def test_a_part_of_a_stretch_that_has_slid_out_does_not_count():
    assert fires_at([(0, 0.1), (1.05, 1.101)], 0.1, 1.0) == [0.1]
    assert fires_at([(0, 0.09), (1.04, 1.08)], 0.1, 1.0) == []


def test_it_fires_once_a_window():
    stretches = [(t / 10, t / 10 + 0.09) for t in range(40)]
    fires = fires_at(stretches, 0.15, 1.0)
    assert fires[0] == pytest.approx(0.19)
    assert all(b - a >= 1.0 for a, b in itertools.pairwise(fires))
    assert len(fires) == 4


def test_a_window_that_is_all_stalled_can_be_asked_for():
    assert fires_at([(0, 0.5), (0.5, 1.0)], 1.0, 1.0) == [1.0]


def test_many_short_stalls_cost_no_memory():
    watch = Watch("some", 0.5, 1.0)
    for i in range(200_000):
        watch.add(i * 1e-5, i * 1e-5 + 2e-6)
    assert len(watch._stretches) <= 2 * FINE


def test_it_is_due_after_what_is_missing():
    watch = Watch("some", 0.15, 1.0)
    watch.add(0.0, 0.1)
    assert watch.due_in(0.2, stalling=True) == pytest.approx(0.05)
    watch.add(0.2, 0.249)
    assert watch.due_in(0.3, stalling=True) == pytest.approx(0.001)
    assert watch.due_in(0.3, stalling=False) == pytest.approx(0.015)
    watch.add(0.3, 0.302)
    assert watch.fired
    assert watch.due_in(0.4, stalling=True) == pytest.approx(0.902)


def test_where_nothing_was_stalled_lately_nobody_looks():
    watch = Watch("some", 0.15, 1.0)
    assert watch.due_in(0.0, stalling=False) is None
    assert watch.due_in(0.0, stalling=True) == pytest.approx(0.15)
    watch.add(0.0, 0.1)
    assert watch.due_in(1.05, stalling=False) is not None
    assert watch.due_in(1.2, stalling=False) is None


@given(
    st.lists(st.tuples(st.integers(0, 400), st.integers(1, 300)), min_size=1, max_size=40),
    st.integers(1, 1000),
)
def test_it_fires_where_a_window_that_really_slides_has_so_much_and_only_there(gaps, stall_ms):
    stretches, now = [], 0.0
    for gap, length in gaps:
        start = now + gap * MS
        now = start + length * MS
        stretches.append((start, now))
    fires = fires_at(stretches, stall_ms * MS, 1.0)
    last = None
    for i, (_, end) in enumerate(stretches):
        known = stretches[: i + 1]
        if end in fires:
            assert stalled(known, end - 1.0, end) >= stall_ms * MS - 1e-6
            last = end
        elif last is None or end >= last + 1.0 + 1e-6:
            short = len(known) / FINE + 1e-6  # what a gap that is not kept may cost
            assert stalled(known, end - 1.0, end) <= stall_ms * MS + short


def psi_with(kind, stall_s=0.15, window_s=1.0):
    psi, watch = Psi(), Watch(kind, stall_s, window_s)
    psi.account(100.0)
    psi.watches.append(watch)
    return psi, watch


def test_who_waits_is_seen_as_some_and_the_loop_itself_as_both():
    psi, watch = psi_with("some")
    psi.enter_some(100.1)
    psi.leave_some(100.2)
    psi.stall_full(100.3, 100.34)
    assert not watch.fired
    psi.stall_full(100.4, 100.42)
    assert watch.fired


def test_who_waits_is_not_seen_as_full():
    psi, watch = psi_with("full")
    psi.enter_some(100.1)
    psi.leave_some(100.9)
    assert not watch.fired
    psi.stall_full(101.0, 101.2)
    assert watch.fired


def test_a_stall_that_began_before_the_watch_does_not_count():
    psi = Psi()
    psi.enter_some(0.0)
    psi.account(10.0)
    watch = Watch("some", 0.15, 1.0)
    psi.watches.append(watch)
    psi.account(10.1)
    assert not watch.fired
    psi.account(10.2)
    assert watch.fired


def test_a_stall_across_samples_is_seen_whole():
    psi, watch = psi_with("some", stall_s=5.0, window_s=10.0)
    psi.enter_some(101.0)
    psi.account(105.9)
    assert not watch.fired
    psi.account(106.0)
    assert watch.fired


def test_it_tells_of_the_begin_of_a_stall_and_of_what_fires():
    psi, watch = psi_with("some")
    watch.idle = True
    told = []
    psi.on_pressure = lambda: told.append(psi._now)
    psi.enter_some(100.1)
    psi.enter_some(100.15)
    psi.leave_some(100.3)
    assert told == [100.1, 100.3]
    watch.idle = False
    psi.enter_some(100.4)
    assert told == [100.1, 100.3]
