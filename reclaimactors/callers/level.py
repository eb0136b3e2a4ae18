"""One limit, and who waits for room below it: the whole memory's, or that of a group.

Callers are admitted first come first served, and only callers wait for room. Below *min* a caller
reclaims for himself, of the group whose limit it is and of nobody else.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import anyio
from anyio.lowlevel import checkpoint

from reclaimactors.actors.machine import LATE_S, PATIENCE_S
from reclaimactors.callers.brake_line import BrakeLine
from reclaimactors.errors import OutOfMemory
from reclaimactors.mm.brake import Brake
from reclaimactors.units import format_size

if TYPE_CHECKING:
    from reclaimactors.actors.background import Background
    from reclaimactors.actors.machine import Machine
    from reclaimactors.callers.admission import Admission
    from reclaimactors.callers.stall import Stall

__all__ = ["Level"]


class Level:
    """The way in below one limit.

    Args:
        machine: whose it is.
        background: what reclaims in the background for it.
        brake: False where nobody is to wait above *min*.
    """

    def __init__(self, machine: Machine, background: Background, *, brake: bool) -> None:
        self._m = machine
        self._background = background
        self.group = group = background.group
        self.turn = anyio.Lock(fast_acquire=True)
        owed = Brake(group, batch=machine.pipeline.batch_bytes, on=brake)
        group.lets = owed.lets
        self._line = BrakeLine(machine, owed, background)
        self.brake = self._line.wait
        self.waiting = 0  #: callers who wait for room, the one whose turn it is included
        self.within: list[Admission] = []  #: of the group, and of those in it

    def queue(self, nr: int) -> None:
        """So many callers more wait here: nobody may overtake them."""
        self.waiting += nr
        if nr > 0:
            self.group.count("max")
        for admission in self.within:
            admission.queued += nr

    def lacks(self, need: int) -> int:
        """Return the bytes that are missing here for a need of so many."""
        return need - (self.group.memcg.free - self.group.marks.min) if need else 0

    def wake(self) -> None:
        """Have it reclaimed in the background; note who is late, and what may be tried again."""
        self._m.revive()
        if self.group.parent is None:
            self._m.wake_kswapd()
        else:
            self._background.wake()

    def close(self) -> None:
        """Its group has ended: who waits goes on, and is told."""
        self._line.close()

    async def direct_reclaim(self, need: int, stall: Stall, *, patient: bool) -> bool:
        """One round below *min*: wait for what covers the need, or compress a slice here.

        Args:
            need: bytes to be reserved.
            stall: of the caller who reclaims.
            patient: whether what is at a store is worth waiting for: it has answered lately.

        Returns:
            The same for the next round.

        Raises:
            OutOfMemory: if everything was looked at since the last byte was freed (`mm.scan`),
                nothing is in flight, and no store is expected to come back (`mm.swap_service`).
        """
        machine, group = self._m, self.group
        writeback = machine.node.writeback
        self.wake()
        missing = self.lacks(need)
        if missing <= 0:  # there is room now: what had been read ahead was let go of
            return patient
        covered = group.memcg.compressing * group.gain >= missing and not machine.late
        if covered and await machine.progress_within(LATE_S, or_room=True, group=group):
            return True
        if stall.reclaim(within=group):
            await checkpoint()
            return patient
        if group.scan.exhausted:
            if writeback.awaits_of(group, of_late=True) or writeback.awaits_slots:
                # then: is a store late by now?
                await machine.progress_within(LATE_S, or_room=True, group=group)
            elif not await self._store_returns():
                raise self.out_of_memory(need)
            return True
        pending = writeback.awaits_of(group, of_late=False) or writeback.awaits_slots
        if pending and (patient or group.scan.seen_all):
            return await machine.progress_within(PATIENCE_S, or_room=True, group=group)
        await checkpoint()
        return patient

    async def _store_returns(self) -> bool:
        """Wait until a store that has failed may be tried again; return False if none is expected.

        Nothing else is left to reclaim, so that is no time to give up yet.
        """
        wait = self._m.retry_in_s
        if wait is None or not self.group.may_swap:
            return False
        with anyio.move_on_after(wait):
            await self._m.verdicts.wait()
        return True

    def reclaim_now(self, need: int, stall: Stall) -> None:
        """Compress a slice here and now, into RAM tiers only, for who may not wait.

        Raises:
            WouldBlock: if work is in flight, or a store could take it, or is expected to soon.
            OutOfMemory: if nothing can be reclaimed at all.
        """
        node, group = self._m.node, self.group
        freed = stall.reclaim(ram_only=True, within=group)
        pending = node.writeback.awaits_of(group, of_late=True) or node.writeback.awaits_slots
        may_return = group.may_swap and node.swap.may_return
        may_wait = pending or group.swap_has_room or may_return
        if not freed and (group.scan.seen_all or (may_wait and not self._m.ram_takes)):
            if may_wait:
                raise anyio.WouldBlock
            raise self.out_of_memory(need)

    def must_fit(self, size: int, more_overhead: int) -> None:
        """Raise OutOfMemory at once for what could not fit with everything else reclaimed.

        Args:
            size: bytes that are to be resident.
            more_overhead: bytes of overhead that it adds.
        """
        memcg, least = self.group.memcg, self.group.marks.min
        most = memcg.budget - least
        if size > most:
            msg = f"a value of {format_size(size)} never fits {self._limit()}, of which "
            msg += f"{format_size(least)} stays free; raise {self._what()}, or put it in parts"
            raise OutOfMemory(msg)
        kept = memcg.overhead - self.group.lazy_overhead
        if size + kept + more_overhead + memcg.pinned > most:
            # above all where the key is long
            raise self.out_of_memory(size + max(0, more_overhead))

    def _what(self) -> str:
        return f"max of group {self.group.name!r}" if self._of_group else "the budget"

    @property
    def _of_group(self) -> bool:
        return self.group.limits.max is not None

    def _limit(self) -> str:
        limit = format_size(self.group.memcg.budget)
        if self._of_group:
            return f"the max of {limit} of group {self.group.name!r}"
        return f"a budget of {limit}"

    def out_of_memory(self, need: int) -> OutOfMemory:
        """Return the error, with what is in the way."""
        self.group.count("oom")
        memcg, least = self.group.memcg, self.group.marks.min
        limit = self._limit() if self._of_group else f"the budget of {format_size(memcg.budget)}"
        keys = sum([len(group.values) for group in self.group.subtree()])
        msg = (
            f"no room for {format_size(need)} more: {format_size(memcg.free)} of {limit} "
            f"is free, {format_size(least)} of it stays free, "
            f"{format_size(memcg.pinned)} is pinned, {format_size(memcg.overhead)} is overhead of "
            f"{keys} keys; delete keys, raise {self._what()} or add swap{self._in_the_way()}"
        )
        return OutOfMemory(msg)

    def _in_the_way(self) -> str:
        """Return what has kept reclaim from freeing something, if anything has."""
        vm = self._m.node.vmstat
        failed = vm["reject_compress_fail"] + vm["reject_alloc_fail"]
        reasons = [f"the compressor failed on {failed} folios"] if failed else []
        if not self.group.may_swap:
            reasons.append(f"group {self.group.name!r} may not use swap")
        reasons += [
            swapd.backing.last_error
            for swapd in self._m.swapds.values()
            if swapd.backing.last_error
        ]
        return f" ({'; '.join(reasons)})" if reasons else ""
