"""Which rate is served in time: requests at one rate after another, and what becomes of each.

*STABLE*: 99 of 100 are served within `WITHIN_S` of when they were due. *BACKLOGGED*: they are
served later, and yet nearly all of them while the rate lasts. *OVERLOADED*: less than `SERVED` of
them are; the line grows as long as the rate lasts.
"""

from __future__ import annotations

from itertools import takewhile
from typing import TYPE_CHECKING

import attrs

from reclaimactors.lab.histogram import Histogram

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["WITHIN_S", "Rate", "Step", "in_time"]

WITHIN_S = 0.02
SERVED = 0.95


@attrs.define(eq=False)
class Step:
    """One rate of a round, or, merged, of several: requests that were due, and those served."""

    share: float  #: of the limit
    due: float = 0.0
    seconds: float = 0.0
    late: Histogram = attrs.field(factory=Histogram)

    def merge(self, other: Step) -> None:
        """Add the same rate of another round."""
        self.due += other.due
        self.seconds += other.seconds
        self.late.merge(other.late)


@attrs.frozen
class Rate:
    """What became of requests at one rate; `state` is STABLE, BACKLOGGED or OVERLOADED."""

    share: float
    due_per_s: float
    served_per_s: float
    late_p99_ms: float
    state: str

    @classmethod
    def of(cls, step: Step) -> Rate:
        """Return what a step amounts to."""
        late_s, seconds = step.late.quantile(0.99), step.seconds or 1.0
        if step.late.count < SERVED * step.due:
            state = "OVERLOADED"
        else:
            state = "STABLE" if late_s <= WITHIN_S else "BACKLOGGED"
        return cls(
            share=step.share,
            due_per_s=round(step.due / seconds, 1),
            served_per_s=round(step.late.count / seconds, 1),
            late_p99_ms=round(late_s * 1e3, 3),
            state=state,
        )


def in_time(rates: Iterable[Rate]) -> float:
    """Return how many requests a second are served at the last of the stable rates, 0.0 of none."""
    stable = takewhile(lambda rate: rate.state == "STABLE", rates)
    return max((rate.served_per_s for rate in stable), default=0.0)
