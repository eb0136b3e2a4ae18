"""Who watches pressure: the triggers of kernel/sched/psi.c, over a window that really slides.

The kernel looks ten times a window, and takes a share of the window before for what has slid out.
Here the stalled stretches of the last window are known, so a trigger fires where so much of some
window was stalled, at the instant at which that becomes true, and nowhere else.
"""

from __future__ import annotations

import math
from collections import deque
from typing import Literal

__all__ = ["Kind", "Watch"]

Kind = Literal["some", "full"]
FINE = 1000  #: parts of a window; a gap shorter than that between two stretches is not kept


class Watch:
    """One trigger.

    Args:
        kind: the line that it watches.
        stall_s: seconds that must be stalled of any `window_s`, in which it fires once at most.
        window_s: seconds of the window.
    """

    def __init__(self, kind: Kind, stall_s: float, window_s: float) -> None:
        self.kind = kind
        self.fired = False  #: since somebody last asked
        self.idle = False  #: somebody waits for it without a timer, and is told of the next stall
        self._stall_s = stall_s
        self._window_s = window_s
        self._stretches: deque[tuple[float, float]] = deque()
        self._stalled = 0.0  # seconds, of all of these
        self._again_at = -math.inf

    def add(self, start: float, end: float) -> bool:
        """Account a stretch that was stalled, later than all before; return whether it fires now.

        Where the gap before it is short, it counts as that much earlier: never as later.
        """
        self._stalled += end - start
        if self._stretches:
            first, last = self._stretches[-1]
            if start - last <= self._window_s / FINE:
                self._stretches.pop()
                start, end = first, last + end - start
        self._stretches.append((start, end))
        return self._look(end)

    def _look(self, now: float) -> bool:
        if now < self._again_at or self.stalled(now) < self._stall_s - 1e-9:
            return False
        self._again_at = now + self._window_s
        fires, self.fired = not self.fired, True
        return fires

    def stalled(self, now: float) -> float:
        """Return the seconds of the window up to `now` that were stalled."""
        begin = now - self._window_s
        while self._stretches and self._stretches[0][1] <= begin:
            start, end = self._stretches.popleft()
            self._stalled -= end - start
        if not self._stretches:
            self._stalled = 0.0  # so that errors of rounding do not add up
            return 0.0
        return self._stalled - max(0.0, begin - self._stretches[0][0])

    def due_in(self, now: float, *, stalling: bool) -> float | None:
        """Return after how many seconds to look again, None where nothing was stalled lately.

        During a stall that is when it would fire. Between stalls it is no less than a tenth of what
        must be stalled: short stalls, which end before that, wake nobody.
        """
        stalled = self.stalled(now)
        if not (stalling or stalled):
            return None
        due = max(self._again_at - now, self._stall_s - stalled)
        return due if stalling else max(due, self._stall_s / 10)
