"""The classic two lists: a clock over inactive and active, with refault distance.

Mirrors the anon half of the kernel's mm/vmscan.c (shrink_active_list, shrink_folio_list's
reference check, inactive_is_low) and of mm/workingset.c. It holds order only: bytes, states and
verdicts are the core's.

Theory. New folios enter the hot end of the inactive list and are isolated at its cold end; the
trip between the two is their trial. One that was read on the way is activated when the scan meets
it, so a scan of values that are read once runs through the inactive list and leaves the active one
alone. Where the inactive list is low, the cold end of the active list is deactivated: its reference
is forgotten and it makes one more trip. A folio that refaults soon enough (`workingset`) is
activated at once.

How low is low: the kernel wants ``inactive * ratio >= active`` with ratio = sqrt(10 * GB), and 1
below a gigabyte, as a small list must be half of memory to give a folio time to be read again.
The same rule holds here, with a page taken as 4 KiB.

Cost. A hit writes one byte. A reference is consumed by the scan that meets it, so the work of
`isolate` is paid for by hits; one call walks at most `SCAN_MAX` folios of each list (about a
millisecond), and where all of those were referenced, it takes the coldest all the same.
"""

from __future__ import annotations

from math import isqrt
from typing import TYPE_CHECKING

from reclaimactors.abc import Verdict
from reclaimactors.errors import ProtocolViolation
from reclaimactors.mm.links import Links
from reclaimactors.mm.workingset import Workingset

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["SCAN_MAX", "ActiveInactive"]

SCAN_MAX = 2048
"""Folios of one list that one `isolate` looks at, whatever it finds."""

_INACTIVE, _ACTIVE, _ISOLATED, _GONE = range(4)
_SWAP_CLUSTER_MAX = 32


class ActiveInactive:
    """Two-list clock with workingset detection.

    Args:
        pages: base pages of the budget; sets how large the inactive list should be.
    """

    __slots__ = ("_lists", "_ratio", "_referenced", "_where", "_workingset")

    def __init__(self, *, pages: int) -> None:
        self._ratio = max(1, isqrt(10 * (pages >> 18)))
        self._lists = Links(2)
        self._workingset = Workingset()
        self._where = bytearray()  # by pfn: the list it is on, _ISOLATED or _GONE
        self._referenced = bytearray()  # by pfn: read since the scan last met it

    def insert(self, pfn: int, *, refault: int | None) -> bool:
        """Put a folio on the inactive list, or on the active one after a short refault."""
        if pfn >= len(self._where):
            extra = pfn + 1 + pfn // 8 - len(self._where)
            self._where.extend(bytes([_GONE]) * extra)
            self._referenced.extend(bytes(extra))
        elif self._where[pfn] != _GONE:
            msg = f"insert of pfn {pfn}, which is resident already"
            raise ProtocolViolation(msg)
        active = refault is not None and self._workingset.refault(refault, self._lists.sizes[1])
        self._referenced[pfn] = 0
        self._where[pfn] = active
        self._lists.add_tail(active, pfn)
        return active

    def access(self, pfn: int) -> None:
        """Note a read; the scan acts on it."""
        self._referenced[pfn] = 1

    def remove(self, pfn: int) -> None:
        """Forget a folio wherever it is."""
        where = self._where[pfn]
        if where <= _ACTIVE:
            self._lists.remove(where, pfn)
        self._where[pfn] = _GONE

    def isolate(self, nr: int) -> list[int]:
        """Take up to `nr` folios off the cold end of the inactive list, activating read ones."""
        self._shrink_active(SCAN_MAX)
        cold, referenced = self._lists.split(_INACTIVE, nr, self._referenced, 0, SCAN_MAX)
        if referenced:
            self._activate(referenced)
        if not cold:
            self._shrink_active(nr)
            cold = self._lists.pop_many(_INACTIVE, nr)
        where = self._where
        for pfn in cold:
            where[pfn] = _ISOLATED
        return cold

    def putback(self, pfns: Sequence[int], verdict: Verdict) -> None:
        """Return isolated folios: read or unreclaimable ones to the active list.

        KEEP goes back to the cold end, in order, and is next again: a folio in flight has neither
        aged nor been promoted. ERROR goes to the hot end of the inactive list, so that folios
        which fail each time cannot fill the cold end and hide the others.
        """
        self._expect_isolated(pfns)
        if verdict in (Verdict.ACTIVATE, Verdict.CANCELLED):
            self._activate(pfns)
            return
        for pfn in pfns:
            self._where[pfn] = _INACTIVE
        extend = self._lists.extend_tail if verdict is Verdict.ERROR else self._lists.extend_head
        extend(_INACTIVE, pfns)

    def shadow(self, pfn: int) -> int:
        """Let an isolated folio go and return the snapshot for its refault."""
        if self._where[pfn] != _ISOLATED:
            raise _not_isolated(pfn)
        self._where[pfn] = _GONE
        return self._workingset.eviction()

    def age(self, now: float) -> None:  # noqa: ARG002 - its clock is the scan, not the time
        """Deactivate a cluster where the inactive list is low, as kswapd_age_node() does."""
        self._shrink_active(_SWAP_CLUSTER_MAX)

    def deactivate(self, pfn: int) -> None:
        """Move a folio on the lists to the cold end, its reference forgotten (MADV_COLD)."""
        if self._where[pfn] <= _ACTIVE:
            self._lists.remove(self._where[pfn], pfn)
            self._where[pfn] = _INACTIVE
            self._referenced[pfn] = 0
            self._lists.add_head(_INACTIVE, pfn)

    def check(self) -> None:
        """Assert that lists and columns say the same."""
        self._lists.check()
        for head, size in enumerate(self._lists.sizes):
            assert all(self._where[pfn] == head for pfn in self._lists.walk(head))
            assert self._where.count(head) == size, f"list {head} has lost a folio"

    def _activate(self, pfns: Sequence[int]) -> None:
        self._workingset.activation(len(pfns))
        self._move(_ACTIVE, pfns)

    def _shrink_active(self, nr: int) -> None:
        """Deactivate up to `nr` folios where the inactive list is low."""
        inactive, active = self._lists.sizes
        missing = (active - inactive * self._ratio + self._ratio) // (self._ratio + 1)
        if missing > 0:
            self._move(_INACTIVE, self._lists.pop_many(_ACTIVE, min(nr, missing)))

    def _move(self, head: int, pfns: Sequence[int]) -> None:
        where, referenced = self._where, self._referenced
        for pfn in pfns:
            where[pfn] = head
            referenced[pfn] = 0
        self._lists.extend_tail(head, pfns)

    def _expect_isolated(self, pfns: Sequence[int]) -> None:
        for pfn in pfns:
            if self._where[pfn] != _ISOLATED:
                raise _not_isolated(pfn)


def _not_isolated(pfn: int) -> ProtocolViolation:
    return ProtocolViolation(f"verdict for pfn {pfn}, which is not isolated")
