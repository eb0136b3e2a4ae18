"""How long work on end may hold the event loop, and how it gives way."""

from __future__ import annotations

import threading
from contextlib import suppress
from time import perf_counter

from anyio.lowlevel import checkpoint

__all__ = ["FAIR_S", "MOST", "SLICE_S", "TURN_S", "Away", "Breath", "let_go"]

SLICE_S = 0.001  #: how long one step may hold the event loop
TURN_S = 0.15 * SLICE_S  #: how long all who breathe work in one turn of the loop
FAIR_S = SLICE_S / 4  #: others who keep the loop for longer are met with more work on end
MOST = 4  #: times as much, at most
_AT_ONCE = 1 << 20  #: bytes of a buffer that are freed in one go


class _Breathing(threading.local):
    """Of the event loop of this thread."""

    waiting = 0  #: have given way, and wait for their turn
    worked_s = 0.0  #: by all who breathe, since the start
    share = 1.0  #: times TURN_S that they may work in a turn, as the last of them measured it


_breathing = _Breathing()


class Away:
    """Measures how long others keep the loop while one gives way."""

    __slots__ = ("_left", "_worked")

    def __init__(self, left: float) -> None:
        self._left = left
        self._worked = _breathing.worked_s

    def share(self, back: float) -> float:
        """Return how many times the usual work may follow, 1 to MOST.

        Beside a program that is busy itself, small steps would only wait for each other: what is
        worked in a turn of the loop grows with what others do in it, and so do the rates.
        """
        by_others = back - self._left - (_breathing.worked_s - self._worked)
        return min(MOST, max(1.0, by_others / FAIR_S))


class Breath:
    """Lets the event loop go on each time that its owner has worked for long enough on end.

    That is `TURN_S` over those who work in the same turn of the loop: however many actors have
    something to do, a turn takes as long as if there were one. Beside others who keep the loop for
    long it is more (see `Away`), for whoever has waited for an answer as well.

    Args:
        seconds: instead of TURN_S, and not shared with others.
    """

    __slots__ = ("_began", "_ends", "_seconds")

    def __init__(self, seconds: float = 0.0) -> None:
        self._seconds = seconds
        self.begin()

    def begin(self) -> None:
        """Work begins now: the owner has just been given its turn."""
        self._began = perf_counter()
        self._ends = self._began + self._on_end()

    def _on_end(self) -> float:
        return self._seconds or TURN_S * _breathing.share / (_breathing.waiting + 1)

    @property
    def due(self) -> bool:
        """Whether it has worked for long enough."""
        return perf_counter() > self._ends

    async def take(self) -> None:
        """Give way to the others if that is due."""
        left = perf_counter()
        if left > self._ends:
            # Its owner may have waited for something else since: that was no work.
            _breathing.worked_s += min(left - self._began, self._ends - self._began + 2 * TURN_S)
            away = Away(left)
            _breathing.waiting += 1
            try:
                await checkpoint()
            finally:
                _breathing.waiting -= 1
            _breathing.share = away.share(perf_counter())
            self.begin()


async def let_go(held: list[bytes] | bytearray) -> None:
    """Free a large value in slices: at once it would take milliseconds.

    Args:
        held: the last references to its parts, or a buffer; it is empty, or nearly, afterwards.
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
            del held[len(held) // 2 - 1 :]  # a bytearray that is more than half empty is cut
            await checkpoint()
