"""Admission: how a caller gets room. The brake between *low* and *min*, direct reclaim below.

Callers are admitted first come first served, and only callers wait for room. What is reserved here
counts as resident until it is spent or given back.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import anyio
from anyio.lowlevel import checkpoint

from reclaimactors.actors.machine import LATE_S, PATIENCE_S
from reclaimactors.callers.brake_line import BrakeLine
from reclaimactors.callers.stall import Stall
from reclaimactors.errors import OutOfMemory
from reclaimactors.mm.brake import Brake
from reclaimactors.units import format_size

if TYPE_CHECKING:
    from collections.abc import Callable

    from reclaimactors.actors.machine import Machine

__all__ = ["Admission"]


class Admission:
    """The way in of one machine.

    Args:
        machine: whose it is.
        brake: False where nobody is to wait above *min*.
    """

    def __init__(self, machine: Machine, *, brake: bool = True) -> None:
        self._m = machine
        self._turn = anyio.Lock(fast_acquire=True)
        owed = Brake(machine.node, machine.ledger, batch=machine.pipeline.batch_bytes, on=brake)
        machine.node.root.lets = owed.lets
        self.brake = BrakeLine(machine, owed).wait
        self.queued = 0  #: callers who wait for room, the one whose turn it is included

    async def reserve(self, need_of: Callable[[], int], stall: Stall | None = None) -> int:
        """Reserve what `need_of` says once it is the caller's turn; return how much that was.

        Args:
            need_of: bytes that are needed now; asked again after each wait.
            stall: the caller's, where it reserves more than once.

        Raises:
            OutOfMemory: if everything was looked at since the last byte was freed (`mm.scan`),
                nothing is in flight, and no store is expected to come back (`mm.swap_service`).
            ClosedResourceError: if the memory closes.
        """
        if not self.queued:  # nobody is before us: the lock alone would cost more than all of this
            self._m.check_open()
            need = self._reserve_nowait(need_of)
            if need is not None:
                return need
        stall = stall or Stall(self._m)
        self.queued += 1
        try:
            with stall:
                async with self._turn:
                    return await self._reserve(need_of, stall)
        finally:
            self.queued -= 1

    async def _reserve(self, need_of: Callable[[], int], stall: Stall) -> int:
        """Reclaim until the reservation can be had."""
        patient = True
        while True:
            self._m.check_open()
            need = self._reserve_nowait(need_of)
            if need is not None:
                return need
            patient = await self._direct_reclaim(need_of(), stall, patient=patient)

    def _reserve_nowait(self, need_of: Callable[[], int]) -> int | None:
        memcg, marks = self._m.node.memcg, self._m.node.marks
        need = max(0, need_of())
        if need and memcg.free - need < marks.min:
            return None
        memcg.reserve(need)
        return need

    async def _direct_reclaim(self, need: int, stall: Stall, *, patient: bool) -> bool:
        """One round below *min*: wait for what covers the need, or compress a slice here.

        Args:
            need: bytes to be reserved.
            stall: of the caller who reclaims.
            patient: whether what is at a store is worth waiting for: it has answered lately.

        Returns:
            The same for the next round.
        """
        machine, node = self._m, self._m.node
        machine.revive()
        machine.wake_kswapd()
        missing = need - (node.memcg.free - node.marks.min)
        if missing <= 0:  # there is room now: what had been read ahead was let go of
            return patient
        covered = node.memcg.compressing * machine.ledger.gain >= missing and not machine.late
        if covered and await machine.progress_within(LATE_S, or_room=True):
            return True
        if stall.reclaim():
            await checkpoint()
            return patient
        if node.scan.exhausted:
            if node.writeback.awaits(of_late=True) or node.writeback.awaits_slots:
                await machine.progress_within(LATE_S, or_room=True)  # then: is a store late by now?
            elif not await self._store_returns():
                raise self.out_of_memory(need)
            return True
        pending = node.writeback.awaits(of_late=False) or node.writeback.awaits_slots
        if pending and (patient or node.scan.seen_all):
            return await machine.progress_within(PATIENCE_S, or_room=True)
        await checkpoint()
        return patient

    async def _store_returns(self) -> bool:
        """Wait until a store that has failed may be tried again; return False if none is expected.

        Nothing else is left to reclaim, so that is no time to give up yet.
        """
        wait = self._m.retry_in_s
        if wait is None:
            return False
        with anyio.move_on_after(wait):
            await self._m.verdicts.wait()
        return True

    def reserve_now(self, need_of: Callable[[], int]) -> int:
        """Reserve without waiting: below *min*, compress here and now, into RAM tiers only.

        Raises:
            WouldBlock: if somebody waits already, work is in flight, or a store could take it, or
                is expected to take it soon.
            OutOfMemory: if nothing can be reclaimed at all.
        """
        if self.queued:
            raise anyio.WouldBlock
        machine, node = self._m, self._m.node
        stall: Stall | None = None
        while (need := self._reserve_nowait(need_of)) is None:
            if stall is None:
                stall = Stall(machine)
                machine.revive()
                machine.wake_kswapd()
            freed = stall.reclaim(ram_only=True)
            pending = node.writeback.awaits(of_late=True) or node.writeback.awaits_slots
            may_wait = pending or node.swap.has_room or node.swap.may_return
            if not freed and (node.scan.seen_all or (may_wait and not machine.ram_takes)):
                if may_wait:
                    raise anyio.WouldBlock
                raise self.out_of_memory(need_of())
        return need

    def must_fit(self, size: int, overhead: int) -> None:
        """Raise OutOfMemory at once for what could not fit with everything else reclaimed.

        Args:
            size: bytes that are to be resident.
            overhead: bytes of overhead beside it: its own, and that of all other keys.
        """
        node = self._m.node
        most = node.memcg.budget - node.marks.min
        if size > most:
            budget = format_size(node.memcg.budget)
            msg = f"a value of {format_size(size)} never fits a budget of {budget}, of which "
            msg += f"{format_size(node.marks.min)} stays free; raise the budget, or put it in parts"
            raise OutOfMemory(msg)
        if size + overhead + node.memcg.pinned > most:
            own = max(0, overhead - node.memcg.overhead)  # above all where the key is long
            raise self.out_of_memory(size + own)

    def out_of_memory(self, need: int) -> OutOfMemory:
        """Return the error, with what is in the way."""
        node = self._m.node
        memcg = node.memcg
        keys = len(node.values.small) + len(node.values.large)
        msg = (
            f"no room for {format_size(need)} more: {format_size(memcg.free)} of the budget of "
            f"{format_size(memcg.budget)} is free, {format_size(node.marks.min)} of it stays free, "
            f"{format_size(memcg.pinned)} is pinned, {format_size(memcg.overhead)} is overhead of "
            f"{keys} keys; delete keys, raise the budget or add swap{self._in_the_way()}"
        )
        return OutOfMemory(msg)

    def _in_the_way(self) -> str:
        """Return what has kept reclaim from freeing something, if anything has."""
        vm = self._m.node.vmstat
        failed = vm["reject_compress_fail"] + vm["reject_alloc_fail"]
        reasons = [f"the compressor failed on {failed} folios"] if failed else []
        reasons += [
            swapd.backing.last_error
            for swapd in self._m.swapds.values()
            if swapd.backing.last_error
        ]
        return f" ({'; '.join(reasons)})" if reasons else ""
