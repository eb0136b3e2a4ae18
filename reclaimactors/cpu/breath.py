"""How long work on end may hold the event loop, and how it gives way."""

from __future__ import annotations

import threading
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

import anyio
from anyio.lowlevel import checkpoint, checkpoint_if_cancelled

from reclaimactors.cpu import clock

if TYPE_CHECKING:
    from collections.abc import Callable, Generator
    from mmap import mmap

__all__ = ["FAIR_S", "MOST", "SLICE_S", "TURN_S", "Away", "Breath", "Share", "anew", "let_go"]

SLICE_S = 0.001  #: how long one step may hold the event loop
TURN_S = 0.15 * SLICE_S  #: how long all tasks with a Breath work in one turn of the loop
FAIR_S = SLICE_S / 4  #: once other tasks keep the loop for longer than this, slices grow
MOST = 4  #: times TURN_S, at most
LEAST = 2  #: times TURN_S: the most of a `Share` whose weight is 4 or less
_AT_ONCE = 1 << 20  #: bytes of a map that are freed in one go


class _Breathing(threading.local):
    """Of the event loop of this thread."""

    waiting = 0  #: tasks that yield now, and wait to be resumed
    worked_s = 0.0  #: seconds that tasks with a Breath have worked, since the start
    share = 1.0  #: the factor of the last `Away.share`


_breathing = _Breathing()


@contextmanager
def anew() -> Generator[None]:
    """Within the block, an event loop of this thread begins without what others have measured."""
    before = vars(_breathing).copy()
    vars(_breathing).clear()
    try:
        yield
    finally:
        vars(_breathing).clear()
        vars(_breathing).update(before)


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


def _as_much() -> float:
    """Reclaim may work as long as all others do."""
    return 1.0


class Share:
    """What the reclaim of one memory may work in a turn of the event loop, all its tasks together.

    Where others leave something of TURN_S, it is that. Where they are busier, it is `weight` times
    what they worked in the last turn, and no more than LEAST to MOST times TURN_S, as the weight
    says: until it is heavy, every request in line waits less for each turn of reclaim, and reclaim
    has more of them. The tasks go one after the other, first come first served; a
    step that takes longer than what is left is paid for in the turns that follow. After a rest, in
    which reclaim waited for its workers, say, TURN_S is there at once.
    """

    __slots__ = ("_next", "_rested_at", "left_s", "waiting", "weight")

    def __init__(self) -> None:
        self.weight: Callable[[], float] = _as_much  #: asked in each turn
        self.left_s = TURN_S  #: seconds that may still be worked in this turn; below 0 a debt
        self.waiting = 0  #: tasks that want to work, and may not yet
        self._next = anyio.Lock(fast_acquire=True)
        self._rested_at = 0.0

    def begin(self, now: float) -> float:
        """A task has something to do from `now` on; return the seconds that it may work."""
        if now > self._rested_at:
            self.left_s = max(self.left_s, TURN_S)
        return self.left_s

    def worked(self, now: float, seconds: float) -> bool:
        """Take so many seconds of work, up to `now`, off; return whether any are left."""
        self._rested_at = now + TURN_S
        self.left_s -= seconds
        return self.left_s > 0

    async def turn(self) -> None:
        """Wait until something may be worked."""
        self.waiting += 1
        try:
            async with self._next:
                if self.left_s <= 0:
                    self._add(await _turn_of_others())
                while self.left_s < 0:
                    self._add(await _turn_of_others())
        finally:
            self.waiting -= 1
        await checkpoint_if_cancelled()  # in line behind others, too, one may be cancelled

    def _add(self, by_others: float) -> None:
        weight = self.weight()
        more = max(TURN_S - by_others, by_others * weight)
        most = TURN_S * min(MOST, max(LEAST, weight / 2))
        self.left_s = min(most, self.left_s + more)


async def _turn_of_others() -> float:
    """Let the event loop turn; return for how many seconds others kept it."""
    left, worked = clock.perf_counter(), _breathing.worked_s
    _breathing.waiting += 1
    try:
        await checkpoint()
    finally:
        _breathing.waiting -= 1
    return max(0.0, clock.perf_counter() - left - (_breathing.worked_s - worked))


class Breath:
    """A cooperative time slice: call `take` between units of work.

    Reclaim has a `Share` of each turn. Anybody else yields once this task has used its part of
    TURN_S: that is divided by the tasks that currently yield, so a turn of the loop stays about
    TURN_S long however many are busy. It is multiplied by what `Away.share` measured last, also for
    a task that has waited for something else meanwhile.

    Args:
        share: of reclaim, for a task that is part of it.
    """

    __slots__ = ("_counted", "_ends", "_share")

    def __init__(self, share: Share | None = None) -> None:
        self._share = share
        self.begin()

    def begin(self) -> None:
        """Start a new slice: this task has just been resumed."""
        self._counted = now = clock.perf_counter()
        self._ends = now + (self._on_end() if self._share is None else self._share.begin(now))

    def _on_end(self) -> float:
        return TURN_S * _breathing.share / (_breathing.waiting + 1)

    @property
    def due(self) -> bool:
        """Whether the slice is used up."""
        return clock.perf_counter() > self._ends

    async def take(self) -> None:
        """Yield to the event loop if the slice is used up, then start a new one."""
        left = clock.perf_counter()
        # All work counts, or who looks how long others kept the loop takes ours for theirs. But
        # this task may have waited for something else since `begin`: that was no work.
        worked = min(left - self._counted, MOST * TURN_S)
        _breathing.worked_s += worked
        self._counted = left
        if self._share is not None:
            if not self._share.worked(left, worked):
                await self._share.turn()
                self._counted = left = clock.perf_counter()
            self._ends = left + self._share.left_s
        elif left > self._ends:
            away = Away(left)
            _breathing.waiting += 1
            try:
                await checkpoint()
            finally:
                _breathing.waiting -= 1
            _breathing.share = away.share(clock.perf_counter())
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
