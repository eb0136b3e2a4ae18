"""How long work on end may hold the event loop, and how it gives way."""

from __future__ import annotations

import threading
from contextlib import suppress
from typing import TYPE_CHECKING

from anyio.lowlevel import checkpoint

from reclaimactors.cpu.clock import perf_counter

if TYPE_CHECKING:
    from mmap import mmap

__all__ = ["FAIR_S", "MOST", "SLICE_S", "TURN_S", "Away", "Breath", "let_go"]

SLICE_S = 0.001  #: how long one step may hold the event loop
TURN_S = 0.15 * SLICE_S  #: how long all tasks with a Breath work in one turn of the loop
FAIR_S = SLICE_S / 4  #: once other tasks keep the loop for longer than this, slices grow
MOST = 4  #: times TURN_S, at most
_AT_ONCE = 1 << 20  #: bytes of a map that are freed in one go


class _Breathing(threading.local):
    """Of the event loop of this thread."""

    waiting = 0  #: tasks that yield now, and wait to be resumed
    worked_s = 0.0  #: seconds that tasks with a Breath have worked, since the start
    share = 1.0  #: the factor of the last `Away.share`


_breathing = _Breathing()


class Away:
    """Measures for how long other tasks keep the event loop while one task gives way."""

    __slots__ = ("_left", "_worked")

    def __init__(self, left: float) -> None:
        self._left = left
        self._worked = _breathing.worked_s

    def share(self, back: float) -> float:
        """Return the factor, 1 to MOST, for the next slice.

        If other tasks kept the loop for 1 ms a turn, a slice of 0.15 ms would waste most of each
        turn waiting; so the slice grows with the time that others took.
        """
        by_others = back - self._left - (_breathing.worked_s - self._worked)
        return min(MOST, max(1.0, by_others / FAIR_S))


class Breath:
    """A cooperative time slice: call `take` between units of work.

    `take` yields once this task has used its share of TURN_S. The share is TURN_S divided by the
    tasks that currently yield, so a turn of the loop stays about TURN_S long however many actors
    are busy. It is multiplied by what `Away.share` measured last, also for a task that has waited
    for something else meanwhile.

    Args:
        seconds: the slice, in place of the share of TURN_S.
    """

    __slots__ = ("_counted", "_ends", "_seconds")

    def __init__(self, seconds: float = 0.0) -> None:
        self._seconds = seconds
        self.begin()

    def begin(self) -> None:
        """Start a new slice: this task has just been resumed."""
        self._counted = perf_counter()
        self._ends = self._counted + self._on_end()

    def _on_end(self) -> float:
        return self._seconds or TURN_S * _breathing.share / (_breathing.waiting + 1)

    @property
    def due(self) -> bool:
        """Whether the slice is used up."""
        return perf_counter() > self._ends

    async def take(self) -> None:
        """Yield to the event loop if the slice is used up, then start a new one."""
        left = perf_counter()
        # All work counts, or who looks how long others kept the loop takes ours for theirs. But
        # this task may have waited for something else since `begin`: that was no work.
        _breathing.worked_s += min(left - self._counted, MOST * TURN_S)
        self._counted = left
        if left > self._ends:
            away = Away(left)
            _breathing.waiting += 1
            try:
                await checkpoint()
            finally:
                _breathing.waiting -= 1
            _breathing.share = away.share(perf_counter())
            self.begin()


async def let_go(held: list[bytes] | mmap) -> None:
    """Free a large value in slices: at once it would take milliseconds.

    Args:
        held: the last references to its parts, which is empty afterwards; or a map of its own,
            which is closed, unless somebody has a view of it still: that keeps all of it.
    """
    breath = Breath()
    if isinstance(held, list):
        held.sort(key=id)  # malloc gives the end of its heap back as it grows
        while held:
            del held[-4:]
            await breath.take()
        return
    with suppress(BufferError):  # somebody has a view of it still
        while len(held) > _AT_ONCE:
            held.resize(len(held) - _AT_ONCE)
            await breath.take()
        held.close()
