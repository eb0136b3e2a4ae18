from __future__ import annotations

import pytest

from reclaimactors.lab.measure import Measurement
from reclaimactors.lab.ramp import SERVED, WITHIN_S, Rate, Step, in_time


def step(share: float, served: int, late_s: float, due: float = 100.0) -> Step:
    made = Step(share, due=due, seconds=0.5)
    for _ in range(served):
        made.late.add(late_s)
    return made


@pytest.mark.parametrize(
    ("served", "late_s", "state"),
    [
        (100, WITHIN_S / 2, "STABLE"),
        (int(100 * SERVED), WITHIN_S / 2, "STABLE"),
        (100, WITHIN_S * 2, "BACKLOGGED"),
        (int(100 * SERVED) - 1, WITHIN_S * 2, "OVERLOADED"),
        (0, 0.0, "OVERLOADED"),
    ],
)
def test_a_rate_is_judged_by_how_many_are_served_and_how_late(served, late_s, state):
    rate = Rate.of(step(1.0, served, late_s))
    assert (rate.state, rate.due_per_s, rate.served_per_s) == (state, 200.0, 2 * served)


def test_in_time_is_the_last_rate_before_one_that_is_not_stable():
    rates = [
        Rate.of(step(0.5, 50, 0.001, due=50)),
        Rate.of(step(1.0, 100, 0.001)),
        Rate.of(step(1.5, 150, 1.0, due=150)),
        Rate.of(step(2.0, 200, 0.001, due=200)),
    ]
    assert in_time(rates) == 200.0
    assert in_time(rates[2:]) == in_time([]) == 0.0


def test_the_same_rates_of_several_rounds_are_merged():
    total = Measurement()
    for late_s in (0.001, 1.0):
        total.merge(Measurement(steps=[step(0.5, 50, 0.001), step(1.0, 100, late_s)]))
    assert [(one.share, one.due, one.seconds, one.late.count) for one in total.steps] == [
        (0.5, 200.0, 1.0, 100),
        (1.0, 200.0, 1.0, 200),
    ]
    assert total.steps[1].late.max == 1.0
