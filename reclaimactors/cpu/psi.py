"""Pressure stall information: the share of time lost to reclaim. Mirrors kernel/sched/psi.c.

*some*: a caller waits (in the brake, in direct reclaim, for its turn in either, or for a store:
what a store has was evicted, so its return is a refault). *full*: the event loop's own thread is
spent in reclaim or (de)compression, so that nobody can run; full implies some.

Theory. Time is accounted once and in order: each call closes the stretch since the last one. Every
2 s a sample is taken, the stalled share of just these 2 s, and folded into averages that decay
over 10, 60 and 300 s. A gap that spans several samples was in one state throughout, so they are
folded in at once, and the averages do not depend on how often anybody looks. Between two samples
they stand still, as in the kernel; `total` is always current. Times are seconds of any monotonic
clock, the same for all calls.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import attrs

from reclaimactors.errors import ProtocolViolation

if TYPE_CHECKING:
    from collections.abc import Callable

    from reclaimactors.cpu.watch import Watch

__all__ = ["Pressure", "PressureLine", "Psi"]

PERIOD_S = 2.0
_DECAYS = tuple(math.exp(-PERIOD_S / window) for window in (10.0, 60.0, 300.0))


@attrs.frozen
class PressureLine:
    """One line of /proc/pressure/memory.

    Attributes:
        avg10: percent of the last 10 s that was stalled, 0 to 100; decaying, every 2 s.
        avg60: of the last 60 s.
        avg300: of the last 300 s.
        total: microseconds since the start.
    """

    avg10: float
    avg60: float
    avg300: float
    total: int


@attrs.frozen
class Pressure:
    """Both lines of /proc/pressure/memory.

    Attributes:
        some: the time in which a caller, or the loop, was stalled.
        full: the part of it in which the loop's thread was, so that nobody could run.
    """

    some: PressureLine
    full: PressureLine


class _Line:
    """One line in the making; seconds, and shares of 1."""

    __slots__ = ("averages", "in_period", "total")

    def __init__(self) -> None:
        self.total = 0.0
        self.in_period = 0.0  # stalled since the last sample
        self.averages = [0.0, 0.0, 0.0]

    def copied(self) -> _Line:
        copy = _Line()
        copy.total, copy.in_period = self.total, self.in_period
        copy.averages = self.averages.copy()
        return copy

    def add(self, stalled: float) -> None:
        """Account a stall that ends before the next sample."""
        self.total += stalled
        self.in_period += stalled

    def sample(self, left: float, periods: float, rest: float, *, stalled: bool) -> None:
        """Account the end of this period, whole ones after it, and the begin of the last."""
        if stalled:
            self.add(left)
            self.total += periods * PERIOD_S + rest
        share = min(1.0, self.in_period / PERIOD_S)
        self.in_period = rest if stalled else 0.0
        for i, decay in enumerate(_DECAYS):
            first = self.averages[i] * decay + share * (1 - decay)
            gap = decay**periods
            self.averages[i] = first * gap + (1 - gap if stalled else 0.0)

    def line(self) -> PressureLine:
        avg10, avg60, avg300 = (min(100.0, 100 * average) for average in self.averages)
        return PressureLine(avg10, avg60, avg300, round(self.total * 1e6))


def _ignore() -> None:
    """Nobody watches."""


class Psi:
    """Stall clocks of one memory."""

    __slots__ = (
        "_accounted", "_full", "_now", "_sample_at", "_some", "_waiting", "on_pressure", "watches",
    )  # fmt: skip

    def __init__(self) -> None:
        self.watches: list[Watch] = []  #: triggers; where there are none, they cost nothing
        self.on_pressure: Callable[[], None] = _ignore  #: one fires, or may, as a stall begins
        self._some, self._full = _Line(), _Line()
        self._waiting = 0
        self._now = self._accounted = -math.inf  # all is accounted up to here, but in the middle
        self._sample_at = math.inf

    def enter_some(self, now: float) -> None:
        """One more caller waits from `now` on."""
        self._advance(now)
        self._waiting += 1
        if self._waiting == 1 and any(watch.idle for watch in self.watches):
            self.on_pressure()

    def leave_some(self, now: float) -> None:
        """One caller less waits from `now` on.

        Raises:
            ProtocolViolation: if none waits.
        """
        if not self._waiting:
            raise ProtocolViolation("leave_some without enter_some")
        self._advance(now)
        self._waiting -= 1

    def stall_full(self, start: float, end: float) -> None:
        """The loop's thread was spent in reclaim or (de)compression from `start` to `end`.

        Report each stretch when it ends and report no stretch inside another: what is accounted
        already is not accounted again.
        """
        self._advance(start)
        self._advance(end, full=True)

    def account(self, now: float) -> bool:
        """Account the time up to `now`; return whether somebody waits."""
        self._advance(now)
        return self._waiting > 0

    def copied(self) -> Psi | None:
        """Return a copy that another thread may ask for a snapshot, while this one goes on.

        None where the copy would be of the middle of a change: ask again.
        """
        before = self._accounted
        copy = Psi()
        copy._waiting, copy._now, copy._sample_at = self._waiting, self._now, self._sample_at
        copy._some, copy._full = self._some.copied(), self._full.copied()
        return copy if self._accounted == before == self._now else None

    def snapshot(self, now: float) -> Pressure:
        """Return both lines as of `now`."""
        self._advance(now)
        return Pressure(some=self._some.line(), full=self._full.line())

    def check(self) -> None:
        """Assert that full implies some, and that no period is longer than it is."""
        some, full = self._some, self._full
        assert 0 <= full.total <= some.total, f"full {full.total} s, some {some.total} s"
        assert 0 <= full.in_period <= some.in_period < PERIOD_S + 1e-6, "a period is too full"
        assert all(0 <= f <= s for f, s in zip(full.averages, some.averages, strict=True))

    def _advance(self, now: float, *, full: bool = False) -> None:
        """Account the time up to `now`: `full`, or else as many wait as `_waiting` says."""
        since = self._now
        if now <= since:
            return
        self._now = now
        some = full or self._waiting > 0
        if now < self._sample_at:
            if since == -math.inf:  # time begins
                self._sample_at = now + PERIOD_S
            elif some:
                self._some.add(now - since)
                if full:
                    self._full.add(now - since)
            self._accounted = now
            if some and self.watches:
                self._tell(since, now, full=full)
            return
        periods, rest = divmod(now - self._sample_at, PERIOD_S)
        left = self._sample_at - since
        self._some.sample(left, periods, rest, stalled=some)
        self._full.sample(left, periods, rest, stalled=full)
        self._sample_at = now - rest + PERIOD_S
        self._accounted = now
        if some and self.watches:
            self._tell(since, now, full=full)

    def _tell(self, since: float, now: float, *, full: bool) -> None:
        """Tell the triggers of a stretch that was stalled."""
        if since == -math.inf:  # time began with it
            return
        fires = False
        for watch in self.watches:
            if full or watch.kind == "some":
                fires = watch.add(since, now) or fires
        if fires:
            self.on_pressure()
