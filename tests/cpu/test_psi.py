import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reclaimactors.cpu.psi import Psi, _Line
from reclaimactors.errors import ProtocolViolation


def percent(window, stalled_s, idle_s=0.0):
    """The average after a stall of whole samples, then as many idle ones."""
    return 100 * (1 - math.exp(-stalled_s / window)) * math.exp(-idle_s / window)


def averages(line):
    return line.avg10, line.avg60, line.avg300


def test_nothing_stalls_at_first():
    pressure = Psi().snapshot(1e6)
    assert averages(pressure.some) == averages(pressure.full) == (0, 0, 0)
    assert pressure.some.total == pressure.full.total == 0


def test_one_waiting_caller_is_some_not_full():
    psi = Psi()
    psi.enter_some(100.0)
    pressure = psi.snapshot(110.0)
    expected = (percent(10, 10), percent(60, 10), percent(300, 10))
    assert averages(pressure.some) == pytest.approx(expected)
    assert pressure.some.total == 10_000_000
    assert averages(pressure.full) == (0, 0, 0)
    assert pressure.full.total == 0


def test_averages_decay_once_nobody_waits():
    psi = Psi()
    psi.enter_some(0.0)
    psi.leave_some(4.0)
    some = psi.snapshot(24.0).some
    assert averages(some) == pytest.approx([percent(w, 4, idle_s=20) for w in (10, 60, 300)])
    assert some.total == 4_000_000


def test_a_sample_is_the_stalled_share_of_its_two_seconds():
    psi = Psi()
    psi.snapshot(0.0)
    psi.stall_full(0.5, 1.0)
    assert psi.snapshot(1.9).full.avg10 == 0
    full = psi.snapshot(2.0).full
    assert full.avg10 == pytest.approx(25 * (1 - math.exp(-0.2)))
    assert full.total == 500_000


def test_a_stall_across_a_sample_is_split_there():
    psi = Psi()
    psi.snapshot(0.0)
    psi.enter_some(1.0)
    psi.leave_some(3.5)
    decay = math.exp(-0.2)
    first, second = 50.0, 75.0
    expected = first * (1 - decay) * decay + second * (1 - decay)
    assert psi.snapshot(4.0).some.avg10 == pytest.approx(expected)


def test_waiting_callers_nest():
    psi = Psi()
    psi.enter_some(0.0)
    psi.enter_some(1.0)
    psi.leave_some(2.0)
    psi.leave_some(5.0)
    assert psi.snapshot(9.0).some.total == 5_000_000


def test_full_is_some_as_well_but_once():
    psi = Psi()
    psi.stall_full(0.0, 1.0)
    psi.enter_some(2.0)
    psi.stall_full(3.0, 4.0)
    psi.leave_some(5.0)
    pressure = psi.snapshot(5.0)
    assert pressure.full.total == 2_000_000
    assert pressure.some.total == 4_000_000


def test_time_is_accounted_once():
    psi = Psi()
    psi.stall_full(0.0, 1.0)
    psi.stall_full(0.5, 1.5)
    psi.stall_full(0.5, 1.5)
    assert psi.snapshot(1.5).full.total == 1_500_000


def test_equal_times_are_fine():
    psi = Psi()
    psi.enter_some(7.0)
    psi.leave_some(7.0)
    psi.stall_full(7.0, 7.0)
    assert psi.snapshot(7.0).some.total == 0


def test_leaving_without_entering_is_refused():
    psi = Psi()
    with pytest.raises(ProtocolViolation):
        psi.leave_some(1.0)
    psi.check()


def test_a_copy_is_never_of_the_middle_of_a_change(monkeypatch):
    psi, copies = Psi(), []
    psi.snapshot(0.0)
    add, sample = _Line.add, _Line.sample

    def spied_add(line, stalled):
        copies.append(psi.copied())  # as another thread, to which this one had to give way
        add(line, stalled)
        copies.append(psi.copied())

    def spied_sample(line, *arguments, **more):
        copies.append(psi.copied())
        sample(line, *arguments, **more)
        copies.append(psi.copied())

    monkeypatch.setattr(_Line, "add", spied_add)
    monkeypatch.setattr(_Line, "sample", spied_sample)
    psi.stall_full(0.5, 1.0)
    psi.stall_full(1.5, 9.0)
    assert len(copies) > 8
    assert set(copies) == {None}
    copy = psi.copied()
    assert copy.snapshot(10.0) == psi.snapshot(10.0)
    psi.stall_full(11.0, 12.0)
    assert copy.snapshot(12.0) != psi.snapshot(12.0)


def test_a_stall_for_ever_is_a_hundred_percent():
    psi = Psi()
    psi.enter_some(0.0)
    assert averages(psi.snapshot(1e7).some) == (100, 100, 100)


steps = st.lists(
    st.tuples(
        st.sampled_from(["enter", "leave", "full", "look"]),
        st.one_of(st.floats(0, 3), st.floats(0, 1e4), st.just(2.0), st.just(0.0)),
    ),
    max_size=40,
)


def drive(psi, events, *, looks):
    now, waiting, seen = 5.0, 0, []
    psi.snapshot(now)
    for what, gap in events:
        start, now = now, now + gap
        if what == "enter":
            psi.enter_some(now)
            waiting += 1
        elif what == "leave" and waiting:
            psi.leave_some(now)
            waiting -= 1
        elif what == "full":
            psi.stall_full(start + gap / 2, now)
        if looks:
            seen.append(psi.snapshot(now))
            psi.check()
    return psi.snapshot(now), seen


@given(steps)
def test_full_is_at_most_some_and_totals_only_grow(events):
    _, seen = drive(Psi(), events, looks=True)
    for pressure in seen:
        pairs = zip(averages(pressure.full), averages(pressure.some), strict=True)
        assert all(0 <= full <= some <= 100 for full, some in pairs)
        assert 0 <= pressure.full.total <= pressure.some.total
    for before, after in itertools.pairwise(seen):
        assert before.some.total <= after.some.total
        assert before.full.total <= after.full.total


@given(steps)
def test_looking_changes_nothing(events):
    looked, _ = drive(Psi(), events, looks=True)
    alone, _ = drive(Psi(), events, looks=False)
    for line in ("some", "full"):
        ours, theirs = getattr(looked, line), getattr(alone, line)
        assert abs(ours.total - theirs.total) <= 1
        assert averages(ours) == pytest.approx(averages(theirs), abs=1e-3)
