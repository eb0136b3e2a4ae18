"""Pins: a value made resident with a reservation of its own, and kept so while somebody looks."""

from __future__ import annotations

from contextlib import asynccontextmanager, suppress
from mmap import mmap
from typing import TYPE_CHECKING

from reclaimactors.callers.stall import Stall
from reclaimactors.offload.job import join_in_map

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Hashable

    from reclaimactors.actors.machine import Machine
    from reclaimactors.callers.admission import Admission
    from reclaimactors.callers.faults import Faults
    from reclaimactors.mm.group import Group
    from reclaimactors.mm.swapin import Expanded

__all__ = ["Pins"]


class Pins:
    """How values of one group are pinned."""

    def __init__(
        self, machine: Machine, group: Group, admission: Admission, faults: Faults
    ) -> None:
        self._machine = machine
        self._group = group
        self._values = group.values
        self._memcg = group.memcg
        self._admission = admission
        self._faults = faults
        self._node = machine.node
        self._mm = machine.node.mm

    async def folio(self, key: Hashable) -> int | None:
        """Make a value of one folio resident, and pin it; return its pfn, None if it has more."""
        node = self._node
        while len(pfns := self._values.pfns(key)) == 1:
            pfn = pfns[0]
            if not node.pins.get(pfn):
                self._admission.must_fit(self._mm.bytes_of(pfns))
            node.pin(pfn)
            try:
                await self._bring_in(pfn)
            except BaseException:  # cancelled too: nobody else unpins it
                node.unpin(pfn)
                raise
            if not self._mm.is_dead(pfn):
                return pfn
            node.unpin(pfn)  # overwritten or deleted while we waited
            self._admission.check_open()
        return None

    async def _bring_in(self, pfn: int) -> None:
        """Make a pinned folio resident with a reservation of its own, unless it dies meanwhile."""
        swapin = self._machine.swapin
        reserved = 0
        ready: Expanded | None = None

        def short() -> int:
            return swapin.shortfall((pfn,)) - reserved

        try:
            while not self._mm.is_dead(pfn):
                if short() > 0:  # again if its blob went to a store while we waited
                    reserved += await self._admission.reserve(short)
                elif self._mm.is_away(pfn):
                    self._memcg.unreserve(reserved)  # the load reserves the same at once
                    reserved = 0
                    await self._load_folio(pfn)
                elif ready is None and self._faults.expander.takes_long((pfn,)):
                    ready = await self._faults.expand_one(pfn)
                else:
                    spent, reserved = reserved, 0
                    swapin.fault(pfn, promote=True, reserved=spent, ready=ready)
                    return
        finally:
            self._memcg.unreserve(reserved)

    async def _load_folio(self, pfn: int) -> None:
        swapd = self._machine.swapds[self._node.device_of(pfn)]
        tickets = swapd.loads.request((pfn,), promote=True)
        if tickets is None:
            await swapd.loads.room()
            self._machine.check_open()
        else:
            with Stall(self._machine, self._group):
                await tickets[0].wait()

    @asynccontextmanager
    async def copy(self, key: Hashable) -> AsyncGenerator[memoryview]:
        """Pin a joined copy of a value of several folios, charged to the budget."""
        memcg = self._memcg
        reserved = 0
        value: mmap | bytes | None = None

        def short() -> int:
            return self._mm.bytes_of(self._values.pfns(key)) - reserved

        try:
            while value is None or len(value) > reserved:  # again if it grew while we waited
                self._admission.must_fit(short())
                more = await self._admission.reserve(short)
                reserved += more
                memcg.pin(more)
                value = await self._faults.joined(key, join_in_map)
            view = memoryview(value).toreadonly()
            try:
                yield view
            finally:
                with suppress(BufferError):  # an array was made of it: that keeps the copy alive
                    view.release()
                if isinstance(value, mmap):
                    self._machine.starter.let_go(value)
        finally:
            memcg.unpin(reserved)
            memcg.unreserve(reserved)
