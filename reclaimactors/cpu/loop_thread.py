"""What the event loop's own thread works for one memory: how fast, and for how long."""

from __future__ import annotations

from typing import Any

from reclaimactors.cpu.breath import Share
from reclaimactors.cpu.clock import stall_clock
from reclaimactors.cpu.psi import Psi
from reclaimactors.cpu.rates import Rates

__all__ = ["Cpu", "cpu_of"]


def cpu_of(page_size: int, loop: Any) -> Cpu:
    """Return what accounts the work of one memory: its own, or what a modelled loop brings.

    Args:
        page_size: in bytes.
        loop: asyncio's loop; None on trio.
    """
    of_its_own: type[Cpu] = getattr(loop, "cpu", Cpu)
    return of_its_own(page_size, loop)


class Cpu:
    """Clock, rates, pressure and the time slices of one memory.

    Args:
        page_size: in bytes.
        loop: asyncio's loop; None on trio.
    """

    def __init__(self, page_size: int, loop: Any = None) -> None:
        self.now = stall_clock(loop)
        self.rates = Rates(page_size)
        self.psi = Psi()
        self.share = Share()  #: of a turn of the loop, for what reclaim does in it

    def worked(self, started: float) -> float:
        """Account work of the loop's thread, from `started` to now; return its seconds."""
        ended = self.now()
        self.psi.stall_full(started, ended)
        return ended - started
