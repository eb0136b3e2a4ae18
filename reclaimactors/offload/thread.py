"""Compress in worker threads, a whole batch per hop.

The thread packs its blobs into one buffer and the event loop cuts them out of it: what stays is
allocated in the loop's thread, and the worker's buffer goes as one piece. (Blobs that stay in the
arenas of pool threads cost more memory than compression saves.)
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from anyio import CapacityLimiter, to_thread

from reclaimactors.log import log
from reclaimactors.mm.page_io import Squeezed, squeeze
from reclaimactors.offload.inline import InlineOffload

if TYPE_CHECKING:
    from reclaimactors.abc import Compressor

__all__ = ["ThreadOffload"]


class ThreadOffload:
    """At most `workers` batches at a time, in anyio's threads under a limiter of our own."""

    holds = True
    staging = 0
    inline = False

    def __init__(self, compressor: Compressor, *, workers: int) -> None:
        self.workers = workers
        self._compressor = compressor
        self._limiter = CapacityLimiter(workers)
        self._instead = InlineOffload(compressor)

    async def squeeze(self, pages: list[bytes], *, of_sources: bool = False) -> Squeezed:
        """Compress a batch in a thread.

        On cancellation the thread goes on with its own references and its result is dropped.
        """
        try:
            out, packed, lengths = await to_thread.run_sync(
                self._work, pages, of_sources, abandon_on_cancel=True, limiter=self._limiter
            )
        except RuntimeError as exc:  # this process may not start another thread
            if not self.inline:
                self.inline = True
                log.warning("offload.refused", reason=str(exc), instead="inline")
            return await self._instead.squeeze(pages, of_sources=of_sources)
        view = memoryview(packed)
        start = 0
        for i, length in enumerate(lengths):
            if length >= 0:
                out.blobs[i] = view[start : start + length].tobytes()
                start += length
        return out

    def _work(self, pages: list[bytes], of_sources: bool) -> tuple[Squeezed, bytes, list[int]]:
        out = squeeze(self._compressor, pages, checksum=of_sources, of_sources=of_sources)
        lengths = [-1 if blob is None else len(blob) for blob in out.blobs]
        packed = b"".join([blob for blob in out.blobs if blob is not None])
        out.blobs = [None] * len(pages)
        return out, packed, lengths
