"""S3-FIFO: a small queue on trial, a main one, and a queue of ghosts (Yang et al., SOSP 2023).

Theory. Most values are read once, or not again for long. New folios join the small queue, a tenth
of what is resident. At its end, one that was read twice or more moves to the main queue, and the
others go; their pfns stay in the ghost queue for as long as nine tenths of what is resident takes
to go. One that comes back within that time joins the main queue at once. There, a folio that was
read makes another round, and each round uses up one of at most three reads. A folio goes from the
main queue where that is more than nine tenths, and else from the small one.

What is given back with KEEP, and what is deactivated, waits on a list of its own, which is looked
at before both queues.

Cost. A hit writes one byte. A folio that is met and does not go uses up a read, so the walk is paid
for by hits; one `isolate` passes over at most `SCAN_MAX` folios, and then takes read ones too.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from reclaimactors.abc import Verdict
from reclaimactors.errors import ProtocolViolation
from reclaimactors.mm.links import Links

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["SCAN_MAX", "S3Fifo"]

SCAN_MAX = 2048
"""Folios that one `isolate` passes over at most."""

_NEXT, _SMALL, _MAIN, _GHOST = range(4)  # lists; a ghost is on one too
_FROM_SMALL, _FROM_MAIN, _GONE = range(4, 7)  # isolated, or forgotten
_MOST_READS = 3
_READS_OF_MAIN = 2  # that a folio of the small queue needs, to move to the main one
_SMALL_PART = 10  # one in so many folios is on trial


class S3Fifo:
    """Three queues, and a list of what goes before them."""

    __slots__ = ("_lists", "_reads", "_some_went", "_spared", "_where")

    def __init__(self) -> None:
        self._lists = Links(4)
        self._some_went = False
        self._spared = 0  # folios given back to the main queue since one has gone
        self._where = bytearray()  # by pfn: the list it is on, or what else became of it
        self._reads = bytearray()  # by pfn: 0 to _MOST_READS

    def insert(self, pfn: int, *, refault: int | None) -> bool:  # noqa: ARG002 - ghosts are by pfn
        """Put a folio on the small queue, or on the main one if its ghost is there."""
        if pfn >= len(self._where):
            extra = pfn + 1 + pfn // 8 - len(self._where)
            self._where.extend(bytes([_GONE]) * extra)
            self._reads.extend(bytes(extra))
        where = self._where[pfn]
        if where not in (_GHOST, _GONE):
            raise ProtocolViolation(f"insert of pfn {pfn}, which is resident already")
        if where == _GHOST:
            self._lists.remove(_GHOST, pfn)
        self._put(_MAIN if where == _GHOST or self._filling() else _SMALL, pfn)
        return where == _GHOST

    def access(self, pfn: int) -> None:
        """Count a read."""
        if self._reads[pfn] < _MOST_READS:
            self._reads[pfn] += 1

    def remove(self, pfn: int) -> None:
        """Forget a folio wherever it is, and its ghost."""
        if self._where[pfn] <= _GHOST:
            self._lists.remove(self._where[pfn], pfn)
        self._where[pfn] = _GONE

    def isolate(self, nr: int) -> list[int]:
        """Take up to `nr` folios off the queues."""
        taken: list[int] = []
        passed = 0
        self._some_went = True
        while len(taken) < nr:
            head = self._goes_next()
            pfn = self._lists.pop_head(head)
            if pfn is None:
                break
            reads = self._reads[pfn]
            if reads >= (_READS_OF_MAIN if head == _SMALL else 1) and passed < SCAN_MAX:
                passed += 1
                self._put(_MAIN, pfn, reads - 1 if head == _MAIN else 0)
                continue
            self._where[pfn] = _FROM_MAIN if head == _MAIN else _FROM_SMALL
            self._reads[pfn] = 0
            taken.append(pfn)
        return taken

    def putback(self, pfns: Sequence[int], verdict: Verdict) -> None:
        """Return isolated folios: with KEEP they are next, else they go round the main queue.

        Those of the main queue do not count as more than its nine tenths until something goes:
        else one full of what cannot be reclaimed would keep reclaim from the small queue.
        """
        for pfn in pfns:
            self._expect_isolated(pfn)
        if verdict is not Verdict.KEEP:
            for pfn in pfns:
                self._put(_MAIN, pfn)
            self._spared += len(pfns)
            return
        for pfn in pfns:
            self._where[pfn] = _NEXT
        self._lists.extend_head(_NEXT, pfns)

    def shadow(self, pfn: int) -> int:
        """Let an isolated folio go; if it was on trial, its ghost stays."""
        self._expect_isolated(pfn)
        self._spared = 0
        if self._where[pfn] == _FROM_MAIN:
            self._where[pfn] = _GONE
            return 0
        self._put(_GHOST, pfn)
        most = self._resident() + 1
        most -= most // _SMALL_PART
        while self._lists.sizes[_GHOST] > most:
            self._where[self._lists.pop_many(_GHOST, 1)[0]] = _GONE
        return 0

    def age(self, now: float) -> None:
        """Do nothing: its clock is what comes in."""

    def deactivate(self, pfn: int) -> None:
        """Make a folio on the lists the next to go, its reads forgotten (MADV_COLD)."""
        if self._where[pfn] <= _MAIN:
            self._lists.remove(self._where[pfn], pfn)
            self._reads[pfn] = 0
            self._where[pfn] = _NEXT
            self._lists.add_head(_NEXT, pfn)

    def check(self) -> None:
        """Assert that lists and columns say the same."""
        self._lists.check()
        for head, size in enumerate(self._lists.sizes):
            assert all(self._where[pfn] == head for pfn in self._lists.walk(head))
            assert self._where.count(head) == size, f"list {head} has lost a folio"

    def _filling(self) -> bool:
        """Return whether there is room yet, and as many are on trial as should be."""
        return not self._some_went and self._lists.sizes[_SMALL] > self._resident() // _SMALL_PART

    def _resident(self) -> int:
        sizes = self._lists.sizes
        return sizes[_NEXT] + sizes[_SMALL] + sizes[_MAIN]

    def _goes_next(self) -> int:
        """Return the list whose cold end is looked at now."""
        sizes = self._lists.sizes
        if sizes[_NEXT]:
            return _NEXT
        both = sizes[_SMALL] + sizes[_MAIN]
        full = sizes[_MAIN] - self._spared > both - both // _SMALL_PART
        return _MAIN if full or not sizes[_SMALL] else _SMALL

    def _put(self, head: int, pfn: int, reads: int = 0) -> None:
        self._reads[pfn] = reads
        self._where[pfn] = head
        self._lists.add_tail(head, pfn)

    def _expect_isolated(self, pfn: int) -> None:
        if self._where[pfn] not in (_FROM_SMALL, _FROM_MAIN):
            raise ProtocolViolation(f"verdict for pfn {pfn}, which is not isolated")
