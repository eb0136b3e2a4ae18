"""How long work on end may hold the event loop, and how it gives way."""

from __future__ import annotations

from time import perf_counter

from anyio.lowlevel import checkpoint

__all__ = ["BREATH_S", "FAIR_S", "MOST", "SLICE_S", "Breath", "share"]

SLICE_S = 0.001  #: how long one step may hold the event loop
BREATH_S = SLICE_S / 10  #: how long an actor works on end: several do something in the same turn
FAIR_S = SLICE_S / 2  #: others who keep the loop for longer are met with more work on end
MOST = 2.5  #: times as much, at most


def share(away_s: float) -> float:
    """Return how many times the usual work may follow a turn in which others took so long.

    Beside a program that is busy itself, small steps would only wait for each other: what is worked
    in a turn of the loop grows with the turn, and so do the rates.
    """
    return min(MOST, max(1.0, away_s / FAIR_S))


class Breath:
    """Lets the event loop go on each time that its owner has worked for `seconds` on end."""

    __slots__ = ("_ends", "_seconds")

    def __init__(self, seconds: float = BREATH_S) -> None:
        self._seconds = seconds
        self.begin()

    def begin(self) -> None:
        """Work begins now: the owner has just been given its turn."""
        self._ends = perf_counter() + self._seconds

    @property
    def due(self) -> bool:
        """Whether it has worked for long enough."""
        return perf_counter() > self._ends

    async def take(self) -> None:
        """Give way to the others if that is due."""
        left = perf_counter()
        if left > self._ends:
            await checkpoint()
            back = perf_counter()
            self._ends = back + self._seconds * share(back - left)
