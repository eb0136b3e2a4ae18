"""Pressure stall information: the share of time lost to reclaim. Mirrors kernel/sched/psi.c.

*some*: a caller waits (in the brake, in direct reclaim, for a refault). *full*: the event loop's own
thread is spent in reclaim or (de)compression, so that nobody can run; full implies some. Averages
decay over 10, 60 and 300 s and are sampled every 2 s, as in the kernel.
"""

from __future__ import annotations

import math

import attrs

__all__ = ["Pressure", "PressureLine", "Psi"]

PERIOD_S = 2.0
_WINDOWS = (10.0, 60.0, 300.0)


@attrs.frozen
class PressureLine:
    """One line of /proc/pressure/memory."""

    avg10: float  #: percent of the last 10 s, decaying
    avg60: float
    avg300: float
    total: int  #: microseconds since the start


@attrs.frozen
class Pressure:
    """Both lines."""

    some: PressureLine
    full: PressureLine


class _Average:
    """The decaying averages of one line."""

    def __init__(self) -> None:
        self.total = 0.0
        self._sampled = 0.0
        self._averages = [0.0, 0.0, 0.0]

    def sample(self, periods: int) -> None:
        """Take the stall since the last sample as spread evenly over so many periods."""
        share = min(1.0, (self.total - self._sampled) / (periods * PERIOD_S))
        self._sampled = self.total
        for i, window in enumerate(_WINDOWS):
            decay = math.exp(-PERIOD_S * periods / window)
            self._averages[i] = self._averages[i] * decay + share * (1 - decay)

    def line(self) -> PressureLine:
        avg10, avg60, avg300 = (100 * average for average in self._averages)
        return PressureLine(avg10, avg60, avg300, int(self.total * 1e6))


class Psi:
    """Stall clocks. Times are seconds of any monotonic clock, the same for all calls."""

    def __init__(self) -> None:
        self._some, self._full = _Average(), _Average()
        self._waiting = 0
        self._some_until = 0.0  # up to when `some` is accounted
        self._sampled_at: float | None = None

    def enter_some(self, now: float) -> None:
        """One more caller waits from now on."""
        self._advance(now)
        self._waiting += 1

    def leave_some(self, now: float) -> None:
        """One caller less waits."""
        self._advance(now)
        self._waiting -= 1

    def stall_full(self, start: float, end: float) -> None:
        """The loop's thread was spent in reclaim or (de)compression from `start` to `end`."""
        self._full.total += end - start
        self._advance(start)
        if not self._waiting:
            self._some.total += max(0.0, end - max(start, self._some_until))
            self._some_until = max(end, self._some_until)

    def snapshot(self, now: float) -> Pressure:
        """Return both lines as of now."""
        self._advance(now)
        return Pressure(some=self._some.line(), full=self._full.line())

    def _advance(self, now: float) -> None:
        if self._sampled_at is None:
            self._sampled_at = self._some_until = now
        if self._waiting:
            self._some.total += max(0.0, now - self._some_until)
        self._some_until = max(now, self._some_until)
        periods = int((now - self._sampled_at) / PERIOD_S)
        if periods > 0:
            self._sampled_at += periods * PERIOD_S
            self._some.sample(periods)
            self._full.sample(periods)
