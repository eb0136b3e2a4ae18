"""WILLNEED: values come back ahead of need, a slice's worth at once, the rest by an actor.

Nobody waits for it, so nothing is raised: a blob that is damaged is counted (`decompress_fail`), a
store that cannot read is too (`swapin_error`), and whoever reads the value is told. Where room is
short kswapd is woken, and what is left of that value stays where it is.
"""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

from reclaimactors.actors.base import Signal
from reclaimactors.cpu import clock
from reclaimactors.cpu.breath import SLICE_S
from reclaimactors.errors import BackendError, CorruptData
from reclaimactors.offload.job import COPY_BYTES

if TYPE_CHECKING:
    from collections.abc import Hashable, Sequence

    from reclaimactors.actors.loads import Ticket
    from reclaimactors.actors.machine import Machine
    from reclaimactors.callers.faults import Faults
    from reclaimactors.mm.values import Values

__all__ = ["Prefetch"]


class Prefetch:
    """What is to come back ahead of need."""

    def __init__(self, machine: Machine, faults: Faults) -> None:
        self._machine = machine
        self._node = machine.node
        self._faults = faults
        self._keys: dict[
            tuple[Values, Hashable], None
        ] = {}  # in the order in which they were asked
        self._asked = Signal()
        machine.starter.add("prefetch", self.run)

    @property
    def pending(self) -> bool:
        """Whether a value is still on its way."""
        return bool(self._keys)

    def will_need(self, values: Values, key: Hashable) -> None:
        """Bring a value back, as much as fits a slice at once; the rest follows.

        Raises:
            KeyError: if the key is absent.
        """
        pfns = values.pfns(key)
        if self._machine.swapin.may_promote(pfns) and not self._now(pfns):
            self._keys[values, key] = None
            self._machine.starter.start()
            self._asked.notify()

    def _now(self, pfns: Sequence[int]) -> bool:
        """Bring back, or ask stores for, what fits a slice; return whether all of it is here."""
        mm, machine = self._node.mm, self._machine
        ends = clock.perf_counter() + SLICE_S
        here = True
        for pfn in pfns:
            if mm.in_memory(pfn):
                continue
            if clock.perf_counter() > ends or self._faults.expander.takes_long((pfn,)):
                return False
            if mm.is_away(pfn):
                here = False  # the actor waits for it
                if self._faults.request((pfn,), promote=True) is None:
                    break
                continue
            with suppress(CorruptData):  # counted; it stays as it is
                machine.swapin.fault(pfn, promote=True)
        return here

    async def run(self) -> None:
        """Bring back what is asked for, for ever."""
        while True:
            while self._keys:
                values, key = next(iter(self._keys))
                try:
                    await self._bring_back(values, key)
                except KeyError:
                    pass  # it was deleted meanwhile
                finally:
                    self._keys.pop((values, key), None)
                    self._machine.verdicts.notify()
            await self._asked.wait()

    async def _bring_back(self, values: Values, key: Hashable) -> None:
        """Bring a value back, COPY_BYTES at a time, for as long as there is room.

        Raises:
            KeyError: if the key is gone.
        """
        at = 0
        while at < len(pfns := values.pfns(key)):
            some, after = self._away(pfns, at)
            if not self._machine.swapin.may_promote(some):
                return
            tickets = self._faults.request(some, promote=True)
            if tickets is None:
                await self._faults.room(some)
                continue
            at = after
            try:
                await self._bring_in(some, tickets)
            except (CorruptData, BackendError):
                continue  # counted; its reader will be told

    def _away(self, pfns: Sequence[int], at: int) -> tuple[list[int], int]:
        """Return folios from `at` on that are not resident, and where to go on after them."""
        mm = self._node.mm
        some: list[int] = []
        nr_bytes = 0
        while at < len(pfns) and nr_bytes < COPY_BYTES:
            pfn = pfns[at]
            if not mm.in_memory(pfn):
                some.append(pfn)
                nr_bytes += mm.bytes_of((pfn,))
            at += 1
        return some, at

    async def _bring_in(self, pfns: Sequence[int], tickets: Sequence[Ticket]) -> None:
        """Bring folios in that the pool holds, and wait for those that are being read."""
        machine = self._machine
        held = [machine.swapin.held(pfn) for pfn in self._node.mm.pooled(pfns)]
        expanded = await self._faults.expander.expand(held)
        machine.check_open()
        await self._faults.settle(held, expanded)
        for ticket in tickets:
            await ticket.wait()
