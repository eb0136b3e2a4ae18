"""The line in the brake: who owes more than is allowed waits here until his share is paid."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

import anyio
from anyio.lowlevel import checkpoint

from reclaimactors.actors.machine import LATE_S

if TYPE_CHECKING:
    from reclaimactors.actors.background import Background
    from reclaimactors.actors.machine import Machine
    from reclaimactors.callers.stall import Stall
    from reclaimactors.mm.brake import Brake

__all__ = ["BrakeLine"]


class _Waiter:
    """One caller in the line."""

    __slots__ = ("goes", "mark")

    def __init__(self, mark: int) -> None:
        self.mark = mark
        self.goes = anyio.Event()


class BrakeLine:
    """First come first served: a verdict wakes those whose share it has paid, and nobody else.

    All go on where nobody is at work who could pay: kswapd sleeps or has looked at everything, and
    nothing is in flight but at a late store; or where a store holds kswapd up.
    """

    def __init__(self, machine: Machine, brake: Brake, background: Background) -> None:
        self._m = machine
        self._brake = brake
        self._b = background
        self._group = background.group
        self._line: deque[_Waiter] = deque()
        machine.verdicts.listeners.append(self._look)

    def close(self) -> None:
        """Nobody is to wait here any more."""
        self._m.verdicts.listeners.remove(self._look)
        self._let_all_go()

    async def wait(self, size: int, stall: Stall) -> None:
        """Owe for a put of `size` bytes, whose room is reserved, and wait while that is too much.

        While the workers are late, or nothing was paid for `LATE_S`, the first in line reclaims a
        slice for himself.

        Raises:
            ClosedResourceError: if the memory closes.
        """
        machine, brake = self._m, self._brake
        mark = brake.owe(size)
        if self._group.memcg.free < self._group.marks.low:
            self._group.on_wake()
        if brake.paid(mark) and not self._line:
            return
        waiter = _Waiter(mark)
        self._line.append(waiter)
        brake.waiting += 1
        try:
            with stall:
                self._look()
                while not waiter.goes.is_set():
                    await self._wait(waiter, stall)
        finally:
            brake.waiting -= 1
            if waiter in self._line:  # cancelled
                self._line.remove(waiter)
        machine.check_open()

    async def _wait(self, waiter: _Waiter, stall: Stall) -> None:
        machine = self._m
        if not (machine.late and self._is_first(waiter)):
            with anyio.move_on_after(LATE_S):
                await waiter.goes.wait()
        if self._is_first(waiter):
            if not stall.reclaim(within=self._group) and self._group.scan.seen_all:
                self._let_all_go()  # none but a store could pay, and that may take its time
            await checkpoint()

    def _is_first(self, waiter: _Waiter) -> bool:
        return len(self._line) > 0 and self._line[0] is waiter

    def _look(self) -> None:
        """A verdict was given, or there is room, or kswapd has changed its state: who may go?"""
        line = self._line
        if line and self._nobody_pays():
            self._let_all_go()
        while line and self._brake.paid(line[0].mark):
            line.popleft().goes.set()

    def _nobody_pays(self) -> bool:
        machine = self._m
        if machine.closing or self._b.kswapd.throttled:
            return True
        if self._b.awake and not self._group.scan.seen_all:
            return False
        return not machine.node.writeback.awaits_of(self._group, of_late=False)

    def _let_all_go(self) -> None:
        self._brake.forgive()
        while self._line:
            self._line.popleft().goes.set()
