"""Compress in the event loop's own thread, in slices that the loop can bear."""

from __future__ import annotations

from typing import TYPE_CHECKING

from reclaimactors.mm.page_io import Squeezed, squeeze
from reclaimactors.offload.breath import SLICE_S, Breath

if TYPE_CHECKING:
    from reclaimactors.abc import Compressor

__all__ = ["InlineOffload"]


class InlineOffload:
    """No worker: one folio after the other, a checkpoint after each slice."""

    workers = 1
    holds = True
    staging = 0
    inline = True
    late = False
    degraded = ""

    def __init__(self, compressor: Compressor) -> None:
        self._compressor = compressor

    async def squeeze(self, pages: list[bytes], *, of_sources: bool = False) -> Squeezed:
        """Compress a batch in slices of about a millisecond (one folio at least in each)."""
        out = Squeezed(bytearray(), [], [], of_sources)
        breath = Breath(SLICE_S)
        for page in pages:
            row = squeeze(self._compressor, (page,), checksum=of_sources, of_sources=of_sources)
            out.extend(row)
            await breath.take()
        return out
