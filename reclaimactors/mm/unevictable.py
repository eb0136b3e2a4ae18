"""The unevictable list: folios that do not compress, while no store can take them.

Mirrors the kernel's list of that name, in its use rather than in its causes (mlock): what is on it
is not scanned. A folio enters where compressing it freed too little and no store could take it, and
leaves when it is written, deleted, or when a store has room: then it goes there as it is, without
being compressed again. To the policy it is isolated as long as it is here.
"""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING

from reclaimactors.mm.folio import UNEVICTABLE

if TYPE_CHECKING:
    from collections.abc import Sequence

    from reclaimactors.mm.group import Group

__all__ = ["Unevictable"]

_VISITS = 4  #: times as many are looked at as are wanted: some may be pinned


class Unevictable:
    """Which folios they are, oldest first."""

    def __init__(self, group: Group) -> None:
        self._node = group.node
        self._group = group
        self._pfns: dict[int, None] = {}
        self.pages = 0  #: the gauge nr_unevictable

    def __len__(self) -> int:
        return len(self._pfns)

    def cull(self, pfns: Sequence[int]) -> None:
        """Take folios in whose reclaim has just ended; their owner is nobody."""
        node = self._node
        for pfn in pfns:
            node.mm.state[pfn] = UNEVICTABLE
            self._pfns[pfn] = None
            self._group.looked.discard(pfn)
        pages = node.pages(pfns)
        self.pages += pages
        node.vmstat["unevictable_pgs_culled"] += pages

    def first(self, nr: int) -> list[int]:
        """Return up to `nr` folios that nobody looks at, oldest first."""
        refs = self._node.mm.refs
        return [pfn for pfn in islice(self._pfns, _VISITS * nr) if not refs[pfn]][:nr]

    def rescue(self, pfns: Sequence[int]) -> None:
        """A store can take these: they leave the list, still isolated; the caller has them."""
        for pfn in pfns:
            self.forget(pfn)
        self._node.vmstat["unevictable_pgs_rescued"] += self._node.pages(pfns)

    def forget(self, pfn: int) -> None:
        """A folio leaves: it is deleted, or has a new owner."""
        del self._pfns[pfn]
        self.pages -= self._node.pages((pfn,))

    def check(self) -> None:
        """Assert that list and states say the same."""
        mm, index = self._node.mm, self._group.index
        rows = enumerate(zip(mm.state, mm.group, strict=True))
        here = {pfn for pfn, row in rows if row == (UNEVICTABLE, index)}
        assert here == set(self._pfns), "the unevictable list drifted"
        assert self.pages == self._node.pages(here), "unevictable pages drifted"
