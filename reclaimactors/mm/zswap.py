"""The compressed pool: an LRU of blobs under a limit with hysteresis. Mirrors mm/zswap.c.

At `max_pool_percent` of the budget the pool is full and takes nothing more until it is back at
`accept_threshold_percent` of that limit, so that it does not swing from accept to reject with every
folio. Blobs leave by a fault (exclusive: the pool keeps no second copy), by delete, or from the
cold end by writeback to a backing store (`pageout` moves them, this module says which).
"""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING

from reclaimactors.mm.links import Links

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["Zswap"]


class Zswap:
    """Which blobs are in the pool, coldest first, and whether it takes another."""

    def __init__(
        self,
        budget: int,
        *,
        enabled: bool,
        max_pool_percent: float,
        accept_threshold_percent: float,
        shrinker: bool = True,
    ) -> None:
        self.enabled = enabled
        self.shrinker = shrinker
        self.limit = int(budget * max_pool_percent / 100)
        self.accept_below = int(self.limit * accept_threshold_percent / 100)
        self.total = 0  #: bytes of blobs in the pool
        self.pages = 0  #: base pages that those blobs stand for
        self.wanted = 0  #: bytes that reclaim wants written back though the pool is not full
        self.reached_full = False
        self._lru = Links(1)

    def __len__(self) -> int:
        return self._lru.sizes[0]

    def accepts(self) -> bool:
        """Return whether the pool takes a blob now, and remember having been full."""
        if self.total >= self.limit:
            self.reached_full = True
        elif self.reached_full and self.total <= self.accept_below:
            self.reached_full = False
        return self.enabled and not self.reached_full

    def room_for(self, lengths: Sequence[int]) -> int:
        """Return how many blobs of these sizes it takes now, one after the other.

        The one that reaches the limit is still taken, the next is not.
        """
        if not self.accepts():
            return 0
        room = self.limit - self.total
        if sum(lengths) <= room:
            return len(lengths)
        nr = 0
        while room > 0:
            room -= lengths[nr]
            nr += 1
        self.reached_full = True
        return nr

    def extend(self, pfns: Sequence[int], nr_bytes: int, pages: int) -> None:
        """Take the blobs of folios in, `nr_bytes` for so many pages, as the hottest."""
        self.total += nr_bytes
        self.pages += pages
        self._lru.extend_tail(0, pfns)

    def remove(self, pfn: int, nr_bytes: int, pages: int) -> None:
        """Let a blob go."""
        self.total -= nr_bytes
        self.pages -= pages
        self._lru.remove(0, pfn)

    def rotate(self, pfn: int) -> None:
        """Make a blob the hottest: it was read where it lies, or a store refused it."""
        self._lru.remove(0, pfn)
        self._lru.add_tail(0, pfn)

    def coldest(self, nr: int) -> list[int]:
        """Return up to `nr` of the coldest pfns, leaving them where they are."""
        return list(islice(self._lru.walk(0), nr))

    def excess(self) -> int:
        """Return the bytes to write back: down to the threshold once full, or what is wanted."""
        if not self.shrinker:
            return 0
        full = self.total - self.accept_below if self.reached_full else 0
        return max(0, full, min(self.wanted, self.total))

    def check(self) -> None:
        """Assert that the LRU is well linked."""
        self._lru.check()
        assert self.total >= 0
