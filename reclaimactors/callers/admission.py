"""Admission: how a caller of one group gets room, below each limit that holds for it.

What is reserved here counts as resident until it is spent or given back. A group has room where all
groups do that it is in: who waits for room in one of them holds up those in it, and nobody else.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import anyio

from reclaimactors.callers.stall import Stall

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from reclaimactors.actors.machine import Machine
    from reclaimactors.callers.level import Level
    from reclaimactors.mm.group import Group

__all__ = ["Admission"]


class Admission:
    """The way in of one group.

    Args:
        machine: whose it is.
        group: whose callers are let in.
        levels: the limits that hold for it, the innermost first, that of the budget last.
    """

    def __init__(self, machine: Machine, group: Group, levels: Sequence[Level]) -> None:
        self._m = machine
        self._memcg = group.memcg
        self.group = group
        self.levels = tuple(levels)
        self.queued = sum([level.waiting for level in levels])
        """callers who wait for room below one of them, those whose turn it is included"""
        for level in levels:
            level.within.append(self)
        self.ended = False  #: the group has ended, or is ending
        self.half_ended = False  #: a policy has raised as it ended: it is to be ended again

    def end(self) -> None:
        """The group ends: nobody is let in any more, and who waits is told."""
        self.ended = True
        for level in self.levels:
            level.within.remove(self)
            if level.group is self.group:
                level.close()
        self._m.verdicts.notify()
        self._m.pressure.notify()

    def of(self, group: Group) -> Admission | None:
        """Return the way in of a group of the same memory, None where that group ends."""
        within = self.levels[-1].within
        return next((admission for admission in within if admission.group is group), None)

    def check_open(self) -> None:
        """Raise ClosedResourceError once the memory closes, or the group has ended."""
        self._m.check_open()
        if self.ended:
            raise self.closed()

    def closed(self) -> anyio.ClosedResourceError:
        """Return what calls get once the group has ended."""
        return anyio.ClosedResourceError(f"group {self.group.name!r} was deleted")

    async def reserve(self, need_of: Callable[[], int], stall: Stall | None = None) -> int:
        """Reserve what `need_of` says once it is the caller's turn; return how much that was.

        Args:
            need_of: bytes that are needed now; asked again after each wait.
            stall: the caller's, where it reserves more than once.

        Raises:
            OutOfMemory: as `Level.direct_reclaim`.
            ClosedResourceError: if the memory closes, or the group ends.
        """
        if not self.queued:  # nobody is before us: the lock alone would cost more than all of this
            self.check_open()
            need = self._reserve_nowait(need_of)
            if need is not None:
                return need
        stall = stall or Stall(self._m, self.group)
        with stall:
            while True:
                need = await self._in_turn(0, need_of, stall)
                if need is not None:
                    return need

    async def _in_turn(self, at: int, need_of: Callable[[], int], stall: Stall) -> int | None:
        """Wait for the caller's turn below a limit, and reserve once there is room below all.

        Returns:
            None where room is missing further in by now, whose turn the caller has already.
        """
        level = self.levels[at]
        level.queue(1)
        patient = True
        try:
            async with level.turn:
                while True:
                    self.check_open()
                    need = self._reserve_nowait(need_of)
                    if need is not None:
                        return need
                    short = self._short(need_of())
                    if short < at:
                        return None
                    if short == at:
                        patient = await level.direct_reclaim(need_of(), stall, patient=patient)
                        continue
                    need = await self._in_turn(short, need_of, stall)
                    if need is not None:
                        return need
        finally:
            level.queue(-1)

    def _short(self, need: int) -> int:
        """Return the innermost limit below which room is missing for a need."""
        return next(at for at, level in enumerate(self.levels) if level.lacks(need) > 0)

    def _reserve_nowait(self, need_of: Callable[[], int]) -> int | None:
        need = max(0, need_of())
        if need:
            for level in self.levels:
                if level.group.memcg.free - need < level.group.marks.min:
                    return None
        self._memcg.reserve(need)
        return need

    def reserve_now(self, need_of: Callable[[], int]) -> int:
        """Reserve without waiting: below *min*, compress here and now, into RAM tiers only.

        Raises:
            WouldBlock: if somebody waits already, work is in flight, or a store could take it, or
                is expected to take it soon.
            OutOfMemory: if nothing can be reclaimed at all.
        """
        if self.queued:
            raise anyio.WouldBlock
        stall: Stall | None = None
        woken: set[int] = set()
        while (need := self._reserve_nowait(need_of)) is None:
            stall = stall or Stall(self._m, self.group)
            at = self._short(need_of())
            if at not in woken:
                woken.add(at)
                self.levels[at].wake()
            self.levels[at].reclaim_now(need_of(), stall)
        return need

    async def brake(self, size: int, stall: Stall) -> None:
        """Wait while too much is owed below a limit: see `BrakeLine.wait`."""
        for level in self.levels:
            await level.brake(size, stall)
        self.check_open()

    def below_low(self, need: int) -> bool:
        """Return whether free memory would be below *low* with so many bytes more."""
        groups = [level.group for level in self.levels]
        return any(group.memcg.free - need < group.marks.low for group in groups)

    def wake_below_low(self) -> None:
        """Have reclaimed in the background what is below *low* by now."""
        for level in self.levels:
            if level.group.memcg.free < level.group.marks.low:
                level.wake()

    def must_fit(self, size: int, more_overhead: int = 0) -> None:
        """Raise OutOfMemory at once for what could not fit with everything else reclaimed.

        Args:
            size: bytes that are to be resident.
            more_overhead: bytes of overhead that it adds to that of the group.
        """
        for level in self.levels:
            level.must_fit(size, more_overhead)
