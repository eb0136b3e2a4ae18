"""Staging memory: what this process and its workers share, in slots of one batch each."""

from __future__ import annotations

import errno
import mmap
import os
import sys
from array import array
from typing import TYPE_CHECKING

from reclaimactors.mm.page_io import FAIL, SAME_FILLED, Squeezed

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

__all__ = ["PIECE", "Slots", "anonymous_memory"]

PIECE = 32  #: folios that are copied at a time: some 50 us for pages
PIECE_BYTES = PIECE * 4096  #: of them, unless one alone is larger
OF_SOURCES = 1 << 32  #: above any number of folios
_NOT_HERE = {errno.EPERM, errno.EACCES, errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP}


def anonymous_memory() -> int:
    """Return a descriptor of memory that has no name, and so cannot be left behind."""
    if hasattr(os, "memfd_create"):
        try:
            return os.memfd_create("reclaimactors", os.MFD_CLOEXEC)
        except OSError as exc:
            if exc.errno not in _NOT_HERE:  # a sandbox has it not, or does not allow it
                raise
    import tempfile  # noqa: PLC0415 - a worker does not need it

    fd, path = tempfile.mkstemp()
    os.unlink(path)  # noqa: PTH108 - a descriptor's file, not a Path
    return fd


class Slots:
    """Staging memory: `nr` slots, each for one batch of `area` bytes in at most `rows` folios.

    A slot begins with its table: the number of folios (with OF_SOURCES added, where the checksums
    are to be of these) and their sizes from the parent, then a length and a value of each from the
    worker, and the nanoseconds of CPU that all of it took. Bytes follow; a blob lies where its
    folio lay, for it is smaller. So do the words of the first row that is a FAIL, cut to that;
    their length is its value.
    """

    def __init__(self, fd: int, *, nr: int, area: int, rows: int) -> None:
        self.area = area
        self.rows = rows
        self._cpu = 8 * (1 + 3 * rows)
        self._table = self._cpu + 8
        self._stride = -(-(self._table + area) // mmap.PAGESIZE) * mmap.PAGESIZE
        self.nr_bytes = nr * self._stride
        if os.fstat(fd).st_size < self.nr_bytes:
            os.ftruncate(fd, self.nr_bytes)
        self._map = mmap.mmap(fd, self.nr_bytes)

    def put(self, slot: int, pages: Sequence[bytes], *, of_sources: bool = False) -> Iterator[None]:
        """Copy a batch in, a piece at each step: the event loop may go on between them."""
        sizes = list(map(len, pages))
        head = array("q", [len(pages) + OF_SOURCES * of_sources, *sizes])
        base = slot * self._stride
        self._map[base : base + 8 * len(head)] = head.tobytes()
        at = base + self._table
        for start, stop in _pieces(sizes):
            for page in pages[start:stop]:
                end = at + len(page)
                self._map[at:end] = page
                at = end
            yield

    def pages(self, slot: int) -> list[bytes]:
        """Return a batch's source bytes (the worker's side)."""
        at = slot * self._stride + self._table
        out: list[bytes] = []
        for size in self._sizes(slot):
            out.append(self._map[at : at + size])
            at += size
        return out

    def answer(self, slot: int, out: Squeezed) -> None:
        """Put the rows and the blobs in (the worker's side). A length under 0 is minus the kind."""
        base = slot * self._stride
        at = base + self._table
        lengths = array("q", [0]) * len(out.kinds)
        values = array("q", map(_signed, out.values))
        why = out.why.encode(errors="replace")
        for i, (kind, blob, size) in enumerate(
            zip(out.kinds, out.blobs, self._sizes(slot), strict=True)
        ):
            lengths[i] = -kind
            if blob is not None:
                lengths[i] = len(blob)
                self._map[at : at + len(blob)] = blob
            elif why and kind == FAIL:
                values[i] = min(len(why), size)
                self._map[at : at + values[i]] = why[:size]
                why = b""
            at += size
        rows = base + 8 * (1 + self.rows)
        answer = lengths.tobytes() + values.tobytes()
        self._map[rows : rows + len(answer)] = answer
        cpu = base + self._cpu
        self._map[cpu : cpu + 8] = int(out.cpu_s * 1e9).to_bytes(8, sys.byteorder)

    def rows_of(self, slot: int) -> Iterator[Squeezed]:
        """Yield the answer, a piece at a time, each blob a bytes object of its own."""
        base = slot * self._stride
        sizes = self._sizes(slot)
        nr = len(sizes)
        rows = base + 8 * (1 + self.rows)
        answer = array("q", self._map[rows : rows + 16 * nr]).tolist()
        of_sources = self.of_sources(slot)
        memory = self._map
        at = base + self._cpu
        cpu_s = int.from_bytes(memory[at : at + 8], sys.byteorder) / 1e9
        at = base + self._table
        for start, stop in _pieces(sizes):
            lengths, values = answer[start:stop], answer[nr + start : nr + stop]
            blobs: list[bytes | None] = []
            why = ""
            for i, (size, length) in enumerate(zip(sizes[start:stop], lengths, strict=True)):
                blobs.append(memory[at : at + length] if length > 0 else None)
                if length == -FAIL and values[i]:
                    why = memory[at : at + values[i]].decode(errors="replace")
                    values[i] = 0
                at += size
            kinds = bytearray(stop - start)
            if None in blobs:
                for i, length in enumerate(lengths):
                    kinds[i] = max(0, -length)
                    if kinds[i] == SAME_FILLED:
                        values[i] &= 0xFFFF_FFFF_FFFF_FFFF
            yield Squeezed(kinds, blobs, values, of_sources, why, cpu_s)
            cpu_s = 0.0

    def of_sources(self, slot: int) -> bool:
        """Whether the checksums are to be of the sources."""
        return self._head(slot) >= OF_SOURCES

    def _head(self, slot: int) -> int:
        base = slot * self._stride
        return int.from_bytes(self._map[base : base + 8], sys.byteorder)

    def _sizes(self, slot: int) -> array[int]:
        base = slot * self._stride
        nr = self._head(slot) % OF_SOURCES
        return array("q", self._map[base + 8 : base + 8 * (1 + nr)])

    def close(self) -> None:
        """Let go of the mapping."""
        self._map.close()


def _pieces(sizes: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Cut the folios of a batch into runs of PIECE folios and PIECE_BYTES at most."""
    start = nr_bytes = 0
    for at, size in enumerate(sizes):
        nr_bytes += size
        if at > start and (nr_bytes > PIECE_BYTES or at - start == PIECE):
            yield start, at
            start, nr_bytes = at, size
    if start < len(sizes):
        yield start, len(sizes)


def _signed(value: int) -> int:
    return value - (1 << 64) if value >> 63 else value
