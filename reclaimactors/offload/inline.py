"""Compress in the event loop's own thread, in slices that the loop can bear."""

from __future__ import annotations

from time import perf_counter
from typing import TYPE_CHECKING

from reclaimactors.mm.page_io import Squeezed, squeeze
from reclaimactors.offload.breath import SLICE_S, Breath

if TYPE_CHECKING:
    from collections.abc import Container, Sequence

    from reclaimactors.abc import Compressor

__all__ = ["InlineOffload"]


class InlineOffload:
    """No worker: one folio after the other, and the loop has its turn from time to time.

    Args:
        compressor: what compresses.
        seconds: on end; 0 = what all have who breathe (`Breath`).
        never: pages that the compressor does not get.
    """

    workers = 1
    holds = True
    staging = 0
    inline = True
    late = False
    degraded = ""

    def __init__(
        self, compressor: Compressor, *, seconds: float = SLICE_S, never: Container[bytes] = ()
    ) -> None:
        self._compressor = compressor
        self._seconds = seconds
        self._never = never
        self._cost = 0.0  # seconds a byte, lately; 0 = not known yet

    def quick(self, pages: Sequence[bytes]) -> bool:
        """Whether each of these is compressed within a slice, as far as is known."""
        return self._cost * max(map(len, pages), default=0) < SLICE_S

    async def squeeze(self, pages: list[bytes], *, of_sources: bool = False) -> Squeezed:
        """Compress a batch in slices (one folio at least in each)."""
        out = Squeezed(bytearray(), [], [], of_sources)
        breath = Breath(self._seconds)
        started = perf_counter()
        for page in pages:
            row = squeeze(
                self._compressor,
                (page,),
                checksum=of_sources,
                of_sources=of_sources,
                never=self._never,
            )
            if not out.kinds:  # the first one says it for all
                self._learn((perf_counter() - started) / max(1, len(page)))
            out.extend(row)
            await breath.take()
        return out

    def _learn(self, cost: float) -> None:
        self._cost += (cost - self._cost) * (0.1 if self._cost else 1.0)
