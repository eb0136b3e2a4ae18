"""A batch that a thread compresses, and the event loop with it where the thread starves.

A thread needs the interpreter's lock after each page. Beside a busy event loop it waits 5 ms for
that, where lz4 takes 10 us. So the event loop, once it has waited long enough, compresses the batch
from the other end, in slices, until they meet.

The thread packs its blobs into buffers and the event loop cuts them out of these: what stays is
allocated in the loop's thread, and a thread's buffer goes as one piece. (Blobs that stay in the
arenas of pool threads cost more memory than compression saves.)
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from reclaimactors.cpu.breath import Breath
from reclaimactors.cpu.clock import thread_time
from reclaimactors.mm.page_io import BLOB, POOR, Squeezed, many_of, squeeze

if TYPE_CHECKING:
    from collections.abc import Callable, Container

    from reclaimactors.abc import Compressor
    from reclaimactors.cpu.loop_thread import Cpu

__all__ = ["PIECE", "Patience", "Race"]

PIECE = 8  #: pages that a thread compresses before it looks how far the event loop has come
MOST, LEAST = 4.0, 1 / 16  #: times the work of a batch that the event loop waits with its help
LOST = 16  #: batches after which a thread that keeps losing is waited for again


class Patience:
    """How long the event loop waits for a thread, in times the work of the batch.

    Doubled where the thread kept up, halved where it starved. At its least a thread that would keep
    up loses all the same, since it takes longer than that to wake: so it is tried again at times.
    """

    def __init__(self) -> None:
        self.times = MOST
        self._lost = 0  # batches in a row

    def learn(self, *, kept_up: bool) -> None:
        """Learn from a batch whether its thread kept up."""
        self._lost = 0 if kept_up else self._lost + 1
        if self._lost >= LOST:
            self.times, self._lost = MOST, 0
        else:
            self.times = min(MOST, max(LEAST, self.times * (2 if kept_up else 0.5)))


class Race:
    """One batch: a thread compresses it from the front, the event loop from the back.

    Neither waits for the other. As they meet, the thread is in the middle of a piece, whose pages
    the event loop has done too: the bytes are the same.

    Args:
        compressor: of the topology, used by both at the same time.
        pages: the batch.
        never: pages that the compressor does not get.
        cpu: of the memory: what the event loop does is pressure.
        of_sources: as for `page_io.squeeze`.
    """

    def __init__(
        self, compressor: Compressor, pages: list[bytes], never: Container[bytes], cpu: Cpu, *,
        of_sources: bool,
    ) -> None:  # fmt: skip
        self.pages = pages
        self._compressor = compressor
        self._never = never
        self._cpu = cpu
        self._of_sources = of_sources
        self._piece = PIECE if many_of(compressor) is None else len(pages)
        self._by_thread: list[tuple[Squeezed, bytes, list[int]]] = []
        self._front = 0  # pages in those
        self._by_loop: list[Squeezed] = []  # one page each, the last page first
        self.left = False  #: nobody waits for it any more

    @property
    def met(self) -> bool:
        """Whether each page is done."""
        return self._front + len(self._by_loop) >= len(self.pages)

    @property
    def kept_up(self) -> bool:
        """Whether the thread has done a third of it, or all of it: it does not starve."""
        return 3 * self._front >= len(self.pages)

    def _squeeze(self, pages: list[bytes]) -> Squeezed:
        return squeeze(
            self._compressor,
            pages,
            checksum=self._of_sources,
            of_sources=self._of_sources,
            never=self._never,
        )

    def run(self, learn: Callable[[float], None]) -> None:
        """Compress from the front: in a thread.

        Args:
            learn: is told the seconds of CPU that a byte took, after each piece of which the
                compressor made something.
        """
        while not self.met and not self.left:
            pages = self.pages[self._front : self._front + self._piece]
            started = thread_time()
            out = self._squeeze(pages)
            out.cpu_s = thread_time() - started
            lengths = [-1 if blob is None else len(blob) for blob in out.blobs]
            packed = b"".join([blob for blob in out.blobs if blob is not None])
            out.blobs = [None] * len(pages)
            self._by_thread.append((out, packed, lengths))
            self._front += len(pages)
            rows = zip(pages, out.kinds, strict=True)
            worked_on = sum([len(page) for page, kind in rows if kind in {BLOB, POOR}])
            if worked_on:
                learn(out.cpu_s / worked_on)

    async def help(self) -> None:
        """Compress from the back, in slices, until both meet."""
        breath, started = Breath(self._cpu.share), self._cpu.now()
        while not self.met:
            page = self.pages[len(self.pages) - 1 - len(self._by_loop)]
            began = thread_time()
            row = self._squeeze([page])
            row.cpu_s = thread_time() - began
            self._by_loop.append(row)
            if breath.due or self.met:
                self._cpu.worked(started)
                await breath.take()
                started = self._cpu.now()

    def rows(self) -> Squeezed:
        """Return the rows of all pages, which are done; their blobs are allocated here."""
        rows = Squeezed(bytearray(), [], [], self._of_sources)
        for out, packed, lengths in self._by_thread:
            view = memoryview(packed)
            start = 0
            for i, length in enumerate(lengths):
                if length >= 0:
                    out.blobs[i] = view[start : start + length].tobytes()
                    start += length
            rows.extend(out)
        missing = len(self.pages) - len(rows.kinds)
        for out in reversed(self._by_loop[:missing]):
            rows.extend(out)
        return rows
