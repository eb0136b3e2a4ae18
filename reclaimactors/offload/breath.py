"""How long work on end may hold the event loop, and how it gives way."""

from __future__ import annotations

from time import perf_counter

from anyio.lowlevel import checkpoint

__all__ = ["BREATH_S", "SLICE_S", "Breath"]

SLICE_S = 0.001  #: how long one step may hold the event loop
BREATH_S = SLICE_S / 10  #: how long an actor works on end: several do something in the same turn


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
        if perf_counter() > self._ends:
            await checkpoint()
            self.begin()
