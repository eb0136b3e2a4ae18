"""The compressed pool: an LRU of blobs under a limit with hysteresis. Mirrors mm/zswap.c.

At `max_pool_percent` of the budget the pool is full and takes nothing more until it is back at
`accept_threshold_percent` of that limit, so that it does not swing from accept to reject with every
folio. Blobs leave by a fault (exclusive: the pool keeps no second copy), by delete, or from the
cold end by writeback to a backing store (`pageout` moves them, this module says which).

Writeback gives each blob a *second chance*: it is stored with a bit set, and the first visit only
clears the bit and makes it the hottest. So a blob is visited at most twice, however long the pool
stays at its limit: the shrinker's work is bounded by what was stored. Two things start it. A pool
that has *reached full* goes down to its threshold. And under pressure, with nothing resident left
to reclaim, the *dynamic shrinker* offers `freeable` bytes although the pool is not full: the LRU
less the pages that had to be read from a disk since it was last asked, for had that many been kept
here, nobody would have waited for the disk.
"""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING, Final

from reclaimactors.mm.batch import SWAP_CLUSTER_MAX
from reclaimactors.mm.links import Links

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

__all__ = ["MAX_GROUPS", "Zswap"]

MAX_GROUPS: Final = 1024  #: each with an LRU of its own; a head of one is 16 B


class Zswap:
    """Which blobs are in the pool, coldest first, and whether it takes another.

    Each group has an LRU of its own; where a method asks for a `group`, that is its index.
    """

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
        self.leaving = 0  #: bytes of blobs that are being written back
        self.wanted = 0  #: bytes that reclaim wants written back though the pool is not full
        self.reached_full = False
        self.disk_swapins = 0  #: pages read from devices since `freeable` was last asked
        self._nr_blobs = 0
        self._lru = Links(MAX_GROUPS)
        self.held = [0] * MAX_GROUPS  #: bytes of the blobs of each group
        self._referenced = bytearray()  # by pfn; of one that is not in the pool it means nothing

    def __len__(self) -> int:
        return self._nr_blobs

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

    def extend(self, pfns: Sequence[int], nr_bytes: int, pages: int, group: int = 0) -> None:
        """Take the blobs of folios in, `nr_bytes` for so many pages, as the hottest."""
        self.total += nr_bytes
        self.held[group] += nr_bytes
        self.pages += pages
        self._nr_blobs += len(pfns)
        self._lru.extend_tail(group, pfns)
        referenced = self._referenced
        try:
            for pfn in pfns:
                referenced[pfn] = 1
        except IndexError:
            missing = max(pfns) + 1 - len(referenced)
            referenced.extend(bytes(missing + missing // 8))
            for pfn in pfns:
                referenced[pfn] = 1

    def remove(self, pfn: int, nr_bytes: int, pages: int, group: int = 0) -> None:
        """Let a blob go."""
        self.total -= nr_bytes
        self.held[group] -= nr_bytes
        self.pages -= pages
        self._nr_blobs -= 1
        self._lru.remove(group, pfn)

    def rotate(self, pfn: int, group: int = 0) -> None:
        """Make a blob the hottest: it was read where it lies, or a store is given it."""
        self._lru.remove(group, pfn)
        self._lru.add_tail(group, pfn)

    def second_chance(self, pfn: int, group: int = 0) -> bool:
        """Return whether a blob stays once more: the first visit makes it the hottest again."""
        if not self._referenced[pfn]:
            return False
        self._referenced[pfn] = 0
        self.rotate(pfn, group)
        return True

    def coldest(self, nr: int, group: int = 0) -> Iterator[int]:
        """Yield up to `nr` pfns, coldest first, each once: the one just yielded may be moved."""
        return islice(self._lru.walk(group), min(nr, self._lru.sizes[group]))

    def excess(self) -> int:
        """Return the bytes to write back: down to the threshold once full, or what is wanted."""
        if not self.shrinker:
            return 0
        full = self.total - self.accept_below if self.reached_full else 0
        return max(0, full, min(self.wanted, self.total))

    def swapped_in(self, pages: int) -> None:
        """Note pages that a device had to give back: so many more are worth keeping here."""
        self.disk_swapins = min(self.disk_swapins + pages, self.pages)

    def freeable(self) -> int:
        """Return the bytes that pressure may have written back though the pool is not full.

        Mirrors zswap_shrinker_count(): the LRU less the recent swap-ins from disk, at the size that
        it is compressed to. As there, asking uses the protection up. A cluster is always offered,
        so that readers of a device never keep a put from the room that it has.
        """
        protected = min(self.disk_swapins, self.pages)
        self.disk_swapins -= protected
        pages = max(self.pages - protected, min(SWAP_CLUSTER_MAX, self.pages))
        return -(-self.total * pages // self.pages) if pages else 0

    def check(self) -> None:
        """Assert that the LRU is well linked."""
        self._lru.check()
        assert self.total == sum(self.held)
        assert self._nr_blobs == sum(self._lru.sizes)
        assert min(self.held) >= 0
        assert self.pages >= len(self)
