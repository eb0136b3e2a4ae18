"""Who waits for pressure, or for the end of it: PSI triggers, and headroom."""

from __future__ import annotations

from typing import TYPE_CHECKING

import anyio
from anyio.lowlevel import checkpoint

from reclaimactors.actors.machine import RETRY_S
from reclaimactors.callers.reclaim import Proactive
from reclaimactors.errors import OutOfMemory
from reclaimactors.units import format_size

if TYPE_CHECKING:
    from reclaimactors.actors.machine import Machine
    from reclaimactors.callers.admission import Admission
    from reclaimactors.cpu.psi import Psi
    from reclaimactors.cpu.watch import Watch
    from reclaimactors.mm.group import Group

__all__ = ["Headroom", "PressureTrigger"]

SOON_S = 0.0001  #: the shortest sleep towards an instant that rounding may have missed


class PressureTrigger:
    """Fires while so much of a window is stalled: see `Memory.pressure_trigger`."""

    def __init__(self, machine: Machine, psi: Psi, watch: Watch, admission: Admission) -> None:
        self._m = machine
        self._admission = admission
        self._psi = psi
        self._watch = watch

    async def wait(self) -> None:
        """Wait until it fires, or return at once where it has fired since the last wait.

        Raises:
            ClosedResourceError: if the memory closes, or its group ends.
        """
        machine, watch = self._m, self._watch
        await checkpoint()
        while True:
            self._admission.check_open()
            now = machine.cpu.now()
            stalling = self._psi.account(now)
            if watch.fired:
                watch.fired = False
                return
            # What keeps the loop itself is told of at its end: that needs no timer.
            wait_s = watch.due_in(now, stalling=stalling) if watch.kind == "some" else None
            watch.idle = wait_s is None and watch.kind == "some"
            with anyio.move_on_after(None if wait_s is None else max(SOON_S, wait_s)):
                await machine.pressure.wait()


class Headroom:
    """Who waits until so much can be put without waiting; one of them reclaims at a time."""

    def __init__(self, machine: Machine, admission: Admission) -> None:
        self._m = machine
        self._admission = admission
        self._reclaiming = False

    async def wait(self, nbytes: int) -> None:
        """Wait until `nbytes` can be put with free memory at *low* or above.

        Raises:
            OutOfMemory: if that can never be.
            ClosedResourceError: if the memory closes.
        """
        machine = self._m
        await checkpoint()
        while (short := self._short(nbytes)) > 0:
            self._must_fit(nbytes)
            freed = 0 if self._reclaiming else await self._reclaim(short, self._lowest(nbytes))
            if not freed and self._short(nbytes) > 0:
                # Nobody tells of a store or a compressor that would work again by now.
                with anyio.move_on_after(RETRY_S):
                    await machine.verdicts.wait()
            self._admission.check_open()

    async def _reclaim(self, nbytes: int, group: Group) -> int:
        self._reclaiming = True
        try:
            return await Proactive(self._m, nbytes, group).run()
        except BaseException:  # cancelled: another one goes on
            self._m.verdicts.notify()
            raise
        finally:
            self._reclaiming = False

    def _short(self, nbytes: int) -> int:
        return nbytes - min([_above_low(level.group) for level in self._admission.levels])

    def _lowest(self, nbytes: int) -> Group:
        """Return the group, the innermost one, that is below its *low* with so much more."""
        groups = [level.group for level in self._admission.levels]
        return next(group for group in groups if _above_low(group) < nbytes)

    def _must_fit(self, nbytes: int) -> None:
        for level in self._admission.levels:
            _must_fit(level.group, nbytes)


def _above_low(group: Group) -> int:
    return group.memcg.free - group.marks.low


def _must_fit(group: Group, nbytes: int) -> None:
    memcg, low = group.memcg, group.marks.low
    most = memcg.budget - low - memcg.overhead - memcg.pinned
    if nbytes > most:
        limit = f"the max of group {group.name!r}" if group.name else "the budget"
        msg = (
            f"headroom of {format_size(nbytes)} can never be had: of {limit} of "
            f"{format_size(memcg.budget)}, {format_size(low)} (low) stays free, "
            f"{format_size(memcg.overhead)} is overhead of keys and "
            f"{format_size(memcg.pinned)} is pinned; ask for "
            f"{format_size(max(0, most))} at most"
        )
        raise OutOfMemory(msg)
