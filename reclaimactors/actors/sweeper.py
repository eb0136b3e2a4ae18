"""The sweeper: ends values whose time is over, a slice at a time; nobody waits for it.

It sleeps until the first slot of the wheels (`mm.expiry`) is over. Whoever reads a value earlier
has it ended then (`look`), so that a read is exact by the loop's clock.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import anyio

from reclaimactors.actors.base import Signal
from reclaimactors.cpu.breath import Breath
from reclaimactors.mm.expiry import terms_of

if TYPE_CHECKING:
    from collections.abc import Hashable

    from reclaimactors.actors.machine import Machine
    from reclaimactors.mm.expiry import Terms
    from reclaimactors.mm.values import Values

__all__ = ["Sweeper"]


class Sweeper:
    """When values of one machine end. It starts with the first of these."""

    def __init__(self, machine: Machine) -> None:
        self._m = machine
        self._now = machine.loop.now
        self._started = False
        self._sleeps_until = -math.inf
        self._look = Signal()

    def terms(self, seconds: float, *, discardable: bool) -> Terms:
        """Return the terms of a value that is put now, and ends so many seconds later."""
        terms = terms_of(self._now(), seconds, discardable=discardable)
        if not self._started:
            self._started = True
            self._m.starter.start_one("sweeper", self.run)
        return terms

    def noted(self, slot: float) -> None:
        """A value was put that is to be swept at a time."""
        if slot < self._sleeps_until:
            self._look.notify()

    def is_over(self, values: Values, key: Hashable) -> bool:
        """Return whether the time of a key's value is over; any thread may ask."""
        return key in values.ends and values.expiry.ends_at(key) <= self._now()

    def look(self, values: Values, key: Hashable) -> None:
        """End the value of a key if its time is over: whoever is about to read it finds none."""
        if values.ends and self.is_over(values, key):
            values.expire(key)

    async def run(self) -> None:
        """Sweep what is over, for ever."""
        while True:
            first = self._first()
            wait = first - self._now()
            if wait > 0:
                self._sleeps_until = first
                with anyio.move_on_after(wait):
                    await self._look.wait()
            self._sleeps_until = -math.inf
            await self._sweep()

    def _first(self) -> float:
        groups = self._m.node.groups
        return min([group.values.expiry.next for group in groups.values()])

    async def _sweep(self) -> None:
        now, breath = self._now(), Breath()
        for group in list(self._m.node.groups.values()):
            values = group.values
            while values.expiry.next <= now:
                values.expire(values.expiry.first())
                await breath.take()
