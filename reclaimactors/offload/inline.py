"""Compress in the event loop's own thread, in slices that the loop can bear."""

from __future__ import annotations

from typing import TYPE_CHECKING

from reclaimactors.cpu import clock
from reclaimactors.cpu.breath import SLICE_S, TURN_S, Breath
from reclaimactors.cpu.loop_thread import Cpu
from reclaimactors.mm.page_io import Squeezed, squeeze

if TYPE_CHECKING:
    from collections.abc import Container, Sequence

    from reclaimactors.abc import Compressor

__all__ = ["InlineOffload"]

MOST_AT_ONCE = 8  #: pages, however cheap the last ones were: they may have been zeros


class InlineOffload:
    """No worker: one folio after the other, and the loop has its turn from time to time.

    Args:
        compressor: what compresses.
        never: pages that the compressor does not get.
        cpu: of the memory: all of this is pressure.
    """

    workers = 1
    holds = True
    staging = 0
    inline = True
    late = False
    degraded = ""

    def __init__(
        self, compressor: Compressor, *, never: Container[bytes] = (), cpu: Cpu | None = None
    ) -> None:
        self._compressor = compressor
        self._never = never
        self._cpu = cpu or Cpu(1)
        self._cost = 0.0  # seconds a byte, lately; 0 = not known yet

    def quick(self, pages: Sequence[bytes]) -> bool:
        """Whether each of these is compressed within a slice, as far as is known."""
        return self._cost * max(map(len, pages), default=0) < SLICE_S

    async def squeeze(self, pages: list[bytes], *, of_sources: bool = False) -> Squeezed:
        """Compress a batch in slices (one folio at least in each)."""
        out = Squeezed(bytearray(), [], [], of_sources)
        breath = Breath(self._cpu.share)
        start = 0
        while start < len(pages):
            stop = self._piece(pages, start)
            piece = pages[start:stop]
            began, started, cpu = self._cpu.now(), clock.perf_counter(), clock.thread_time()
            rows = squeeze(
                self._compressor,
                piece,
                checksum=of_sources,
                of_sources=of_sources,
                never=self._never,
            )
            self._learn((clock.perf_counter() - started) / max(1, sum(map(len, piece))))
            rows.cpu_s = clock.thread_time() - cpu
            self._cpu.worked(began)
            out.extend(rows)
            await breath.take()
            start = stop
        return out

    def _piece(self, pages: Sequence[bytes], start: int) -> int:
        """Return the end of what is compressed at a time: a page costs a few us less in a batch."""
        left = TURN_S / 2 / self._cost if self._cost else 0.0
        stop, most = start, min(len(pages), start + MOST_AT_ONCE)
        while stop < most:
            left -= len(pages[stop])
            if left < 0 and stop > start:
                break
            stop += 1
        return stop

    def _learn(self, cost: float) -> None:
        self._cost += (cost - self._cost) * (0.1 if self._cost else 1.0)
