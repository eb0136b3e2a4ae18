"""Doubly linked lists of pfns in two columns of ints, like the kernel's ``folio->lru``.

A pfn is on at most one list of a `Links` at a time. Each list is a head: an index below
`nr_lists`; folio `pfn` is index `pfn + nr_lists`, hidden from callers. The cyclic garbage
collector sees two arrays, however many folios there are, and every operation is O(1) a folio.
"""

from __future__ import annotations

from array import array
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

__all__ = ["Links"]


class Links:
    """`nr_lists` lists over one set of pfns; the cold end is the head, the hot end the tail."""

    __slots__ = ("_next", "_prev", "_shift", "sizes")

    def __init__(self, nr_lists: int) -> None:
        self._shift = nr_lists
        self._next = array("i", range(nr_lists))
        self._prev = array("i", range(nr_lists))
        self.sizes = [0] * nr_lists

    def grow(self, nr_pfns: int) -> None:
        """Make room for pfns below `nr_pfns`."""
        missing = nr_pfns + self._shift - len(self._next)
        if missing > 0:
            extra = array("i", [-1]) * (missing + nr_pfns // 8)
            self._next.extend(extra)
            self._prev.extend(extra)

    def add_tail(self, head: int, pfn: int) -> None:
        """Put a pfn that is on no list at the hot end of list `head`."""
        node = pfn + self._shift
        if node >= len(self._next):
            self.grow(pfn + 1)
        nxt, prv = self._next, self._prev
        last = prv[head]
        nxt[last] = node
        prv[node] = last
        nxt[node] = head
        prv[head] = node
        self.sizes[head] += 1

    def add_head(self, head: int, pfn: int) -> None:
        """Put a pfn that is on no list at the cold end of list `head`."""
        node = pfn + self._shift
        if node >= len(self._next):
            self.grow(pfn + 1)
        nxt, prv = self._next, self._prev
        first = nxt[head]
        prv[first] = node
        nxt[node] = first
        prv[node] = head
        nxt[head] = node
        self.sizes[head] += 1

    def extend_head(self, head: int, pfns: Sequence[int]) -> None:
        """Put pfns that are on no list at the cold end of list `head`, in their order."""
        for pfn in reversed(pfns):
            self.add_head(head, pfn)

    def remove(self, head: int, pfn: int) -> None:
        """Take a pfn off list `head`, which must be the one it is on."""
        node = pfn + self._shift
        nxt, prv = self._next, self._prev
        before, after = prv[node], nxt[node]
        nxt[before] = after
        prv[after] = before
        nxt[node] = -1
        self.sizes[head] -= 1

    def on_list(self, pfn: int) -> bool:
        """Return whether the pfn is on any list."""
        node = pfn + self._shift
        return node < len(self._next) and self._next[node] >= 0

    def pop_head(self, head: int) -> int | None:
        """Take the coldest pfn off list `head`; None where it is empty."""
        node = self._next[head]
        if node == head:
            return None
        pfn = node - self._shift
        self.remove(head, pfn)
        return pfn

    def pop_many(self, head: int, nr: int) -> list[int]:
        """Take up to `nr` pfns off the cold end of list `head`, coldest first."""
        nxt, shift = self._next, self._shift
        pfns: list[int] = []
        node = nxt[head]
        for _ in range(min(nr, self.sizes[head])):
            pfns.append(node - shift)
            after = nxt[node]
            nxt[node] = -1
            node = after
        nxt[head] = node
        self._prev[node] = head
        self.sizes[head] -= len(pfns)
        return pfns

    def split(
        self, head: int, nr: int, column: Sequence[int], cold: int, limit: int
    ) -> tuple[list[int], list[int]]:
        """Take pfns off the cold end until `nr` with ``column[pfn] == cold`` were met.

        At most `limit` are walked. Returns those `nr` or fewer, and the others that were met;
        both are off the list, coldest first.
        """
        matching: list[int] = []
        others: list[int] = []
        while (missing := min(nr - len(matching), limit)) > 0:
            met = self.pop_many(head, missing)
            if not met:
                break
            limit -= len(met)
            fit = [pfn for pfn in met if column[pfn] == cold]
            if len(fit) < len(met):
                others += [pfn for pfn in met if column[pfn] != cold]
            matching += fit
        return matching, others

    def extend_tail(self, head: int, pfns: Sequence[int]) -> None:
        """Put pfns that are on no list at the hot end of list `head`."""
        if not pfns:
            return
        shift = self._shift
        if max(pfns) + shift >= len(self._next):
            self.grow(max(pfns) + 1)
        nxt, prv = self._next, self._prev
        last = prv[head]
        for pfn in pfns:
            node = pfn + shift
            nxt[last] = node
            prv[node] = last
            last = node
        nxt[last] = head
        prv[head] = last
        self.sizes[head] += len(pfns)

    def walk(self, head: int) -> Iterator[int]:
        """Yield list `head` from cold to hot; the pfn just yielded may be removed."""
        node = self._next[head]
        while node != head:
            after = self._next[node]
            yield node - self._shift
            node = after

    def check(self) -> None:
        """Assert that every list is well linked and as long as it says."""
        seen: set[int] = set()
        for head, size in enumerate(self.sizes):
            if not size and self._next[head] == head == self._prev[head]:
                continue
            pfns = list(self.walk(head))
            assert len(pfns) == size, f"list {head}: {len(pfns)} linked, {size} counted"
            assert seen.isdisjoint(pfns), f"list {head} shares pfns with another"
            seen.update(pfns)
            node = head
            for _ in range(size + 1):
                after = self._next[node]
                assert self._prev[after] == node, f"list {head}: broken back link at {after}"
                node = after
