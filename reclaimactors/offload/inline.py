"""Compress in the event loop's own thread, in slices that the loop can bear."""

from __future__ import annotations

from time import perf_counter
from typing import TYPE_CHECKING

from anyio.lowlevel import checkpoint

from reclaimactors.mm.page_io import Squeezed, squeeze

if TYPE_CHECKING:
    from reclaimactors.abc import Compressor

__all__ = ["SLICE_S", "InlineOffload"]

SLICE_S = 0.001  #: how long one slice of compression may hold the event loop


class InlineOffload:
    """No worker: one folio after the other, a checkpoint after each slice."""

    workers = 1
    holds = True
    staging = 0
    inline = True

    def __init__(self, compressor: Compressor) -> None:
        self._compressor = compressor

    async def squeeze(self, pages: list[bytes], *, of_sources: bool = False) -> Squeezed:
        """Compress a batch in slices of about a millisecond (one folio at least in each)."""
        out = Squeezed(bytearray(), [], [], of_sources)
        started = perf_counter()
        for page in pages:
            row = squeeze(self._compressor, (page,), checksum=of_sources, of_sources=of_sources)
            out.kinds += row.kinds
            out.blobs += row.blobs
            out.values += row.values
            if perf_counter() - started > SLICE_S:
                await checkpoint()
                started = perf_counter()
        return out
