"""How long work on end may hold the event loop, and how it gives way."""

from __future__ import annotations

import threading
from time import perf_counter

from anyio.lowlevel import checkpoint

__all__ = ["FAIR_S", "MOST", "SLICE_S", "TURN_S", "Breath", "share"]

SLICE_S = 0.001  #: how long one step may hold the event loop
TURN_S = 0.15 * SLICE_S  #: how long all who breathe work in one turn of the loop
FAIR_S = SLICE_S / 2  #: others who keep the loop for longer are met with more work on end
MOST = 4  #: times as much, at most


def share(away_s: float) -> float:
    """Return how many times the usual work may follow a turn in which others took so long.

    Beside a program that is busy itself, small steps would only wait for each other: what is worked
    in a turn of the loop grows with the turn, and so do the rates.
    """
    return min(MOST, max(1.0, away_s / FAIR_S))


class _Breathing(threading.local):
    """Of the event loop of this thread: how many have given way, and wait for their turn."""

    waiting = 0


_breathing = _Breathing()


class Breath:
    """Lets the event loop go on each time that its owner has worked for long enough on end.

    That is `TURN_S` over those who work in the same turn of the loop: however many actors have
    something to do, a turn takes as long as if there were one.

    Args:
        seconds: instead of TURN_S, and not shared with others.
    """

    __slots__ = ("_ends", "_seconds")

    def __init__(self, seconds: float = 0.0) -> None:
        self._seconds = seconds
        self.begin()

    def begin(self) -> None:
        """Work begins now: the owner has just been given its turn."""
        self._ends = perf_counter() + self._on_end()

    def _on_end(self) -> float:
        return self._seconds or TURN_S / (_breathing.waiting + 1)

    @property
    def due(self) -> bool:
        """Whether it has worked for long enough."""
        return perf_counter() > self._ends

    async def take(self) -> None:
        """Give way to the others if that is due."""
        left = perf_counter()
        if left > self._ends:
            _breathing.waiting += 1
            try:
                await checkpoint()
            finally:
                _breathing.waiting -= 1
            back = perf_counter()
            self._ends = back + self._on_end() * share(back - left)
