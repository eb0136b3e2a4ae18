"""Compress in worker threads, a whole batch per hop.

The thread packs its blobs into one buffer and the event loop cuts them out of it: what stays is
allocated in the loop's thread, and the worker's buffer goes as one piece. (Blobs that stay in the
arenas of pool threads cost more memory than compression saves.)

Where this process may not start a thread now, the event loop compresses, and a thread is tried
again later.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import anyio
from anyio import CapacityLimiter, to_thread

from reclaimactors.log import log
from reclaimactors.mm.page_io import Squeezed, squeeze
from reclaimactors.offload.backoff import Backoff
from reclaimactors.offload.inline import InlineOffload
from reclaimactors.offload.pace import Pace

if TYPE_CHECKING:
    from collections.abc import Container

    from reclaimactors.abc import Compressor
    from reclaimactors.log import Log

__all__ = ["ThreadOffload"]


class ThreadOffload:
    """At most `workers` batches at a time, in anyio's threads under a limiter of our own.

    Args:
        compressor: what compresses.
        workers: threads at most.
        log: of the memory.
        never: pages that the compressor does not get.
        why: threads were not asked for, but stand in for processes; "" where they were.
    """

    holds = True
    staging = 0

    def __init__(
        self, compressor: Compressor, *, workers: int, log: Log = log,
        never: Container[bytes] = (), why: str = "",
    ) -> None:  # fmt: skip
        self.workers = workers
        self._log = log
        self._never = never
        self._why = why
        self._why_inline = ""
        self._compressor = compressor
        self._limiter = CapacityLimiter(workers)
        self._instead = InlineOffload(compressor, never=never)
        self._backoff = Backoff()
        self._pace = Pace()
        self._again_at = 0.0  # when a thread is tried again
        self._out = 0  # batches that threads have, or wait for one
        self._heard = 0.0  # when the last one was done, or the first one was given

    @property
    def inline(self) -> bool:
        """Whether the event loop compresses, because there was no thread."""
        return self._why_inline != ""

    @property
    def degraded(self) -> str:
        """Why batches are not compressed as configured, "" where they are."""
        return self._why_inline or self._why

    @property
    def late(self) -> bool:
        """Whether no batch was done for longer than is usual, although there are some."""
        return self._out > 0 and self._pace.late(anyio.current_time() - self._heard)

    async def squeeze(self, pages: list[bytes], *, of_sources: bool = False) -> Squeezed:
        """Compress a batch in a thread.

        On cancellation the thread goes on with its own references and its result is dropped.
        """
        if self.inline and anyio.current_time() < self._again_at:
            return await self._instead.squeeze(pages, of_sources=of_sources)
        try:
            out, packed, lengths = await self._in_thread(pages, of_sources)
        except RuntimeError as exc:  # this process may not start another thread
            self._refused(str(exc))
            return await self._instead.squeeze(pages, of_sources=of_sources)
        self._worked()
        view = memoryview(packed)
        start = 0
        for i, length in enumerate(lengths):
            if length >= 0:
                out.blobs[i] = view[start : start + length].tobytes()
                start += length
        return out

    async def _in_thread(
        self, pages: list[bytes], of_sources: bool
    ) -> tuple[Squeezed, bytes, list[int]]:
        if not self._out:
            self._heard = anyio.current_time()
        self._out += 1
        try:
            done = await to_thread.run_sync(
                self._work, pages, of_sources, abandon_on_cancel=True, limiter=self._limiter
            )
            self._pace.answered(anyio.current_time() - self._heard)
            return done
        finally:
            self._out -= 1
            self._heard = anyio.current_time()

    def _refused(self, why: str) -> None:
        wait = self._backoff.failed()
        if not self.inline:
            self._log.error("offload.degraded", reason=why, instead="inline", again_s=wait)
        self._why_inline = f"no thread can be started, the event loop compresses: {why}"
        self._again_at = anyio.current_time() + wait

    def _worked(self) -> None:
        if self.inline:
            self._why_inline = ""
            self._backoff.worked()
            self._log.warning("offload.recovered", workers=self.workers)

    def _work(self, pages: list[bytes], of_sources: bool) -> tuple[Squeezed, bytes, list[int]]:
        out = squeeze(
            self._compressor, pages, checksum=of_sources, of_sources=of_sources, never=self._never
        )
        lengths = [-1 if blob is None else len(blob) for blob in out.blobs]
        packed = b"".join([blob for blob in out.blobs if blob is not None])
        out.blobs = [None] * len(pages)
        return out, packed, lengths
