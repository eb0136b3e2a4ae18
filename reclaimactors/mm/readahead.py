"""Readahead: neighbours of a slot are read with it where seeking is dear. Mirrors swap_state.c.

What lies beside a slot on its device was reclaimed with it, and is likely to be wanted with it. The
window grows with the hits of the last one and shrinks without (swapin_nr_pages()): readers in no
order soon read no more than what they ask for. What is read ahead stays here as the store gave it,
charged to the budget, until it is asked for or room is short. So it only ever takes what is free
above *high*, and at most `MAX_PAGES` of two windows.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from reclaimactors.mm.folio import DEVICE

if TYPE_CHECKING:
    from collections.abc import Sequence

    from reclaimactors.mm.node import Node
    from reclaimactors.mm.rmap import Rmap

__all__ = ["MAX_PAGES", "Readahead"]

MAX_PAGES = 8  #: of one window: 1 << page_cluster of the kernel


class _Ahead(NamedTuple):
    first: int  #: its first slot when it was read
    crc: int
    stored: Sequence[bytes]
    nr_bytes: int


class Readahead:
    """What was read ahead from one device."""

    def __init__(self, node: Node, device: int, rmap: Rmap) -> None:
        self._node = node
        self._device = device
        self._rmap = rmap
        self._ahead: dict[int, _Ahead] = {}  # pfn -> what was read, oldest first
        self._hits = 0
        self._last_pages = 0
        self._last_slot = -1

    def neighbours(self, slot: int, wanted: Sequence[int]) -> list[int]:
        """Return the folios to read along with the one at `slot`, those wanted anyway left out."""
        mm = self._node.mm
        pages = self._window(slot)
        start = slot - slot % pages
        room = self._node.memcg.free - self._node.marks.high
        found: list[int] = []
        for near in range(start, start + pages):
            pfn = self._rmap.folio(near)
            if pfn is None or pfn in wanted or pfn in self._ahead or not self._at(pfn, near):
                continue
            room -= mm.length[pfn]
            if room < 0:
                break
            found.append(pfn)
        return found

    def keep(self, pfn: int, stored: Sequence[bytes]) -> None:
        """Keep what was read ahead for a folio that is still on the device, if there is room."""
        node = self._node
        if not all(isinstance(part, (bytes, bytearray, memoryview)) for part in stored):  # pyright: ignore[reportUnnecessaryIsInstance] # it is a plugin's word
            return  # the load that wants it will say so
        nr_bytes = sum(map(len, stored))
        if node.mm.state[pfn] != DEVICE or node.memcg.free - nr_bytes < node.marks.high:
            return
        self._take(pfn)
        while len(self._ahead) >= 2 * MAX_PAGES:
            self._take(next(iter(self._ahead)))
        node.memcg.reserve(nr_bytes)
        first, crc = node.mm.entry[pfn], node.mm.crc[pfn]
        self._ahead[pfn] = _Ahead(first, crc, stored, nr_bytes)
        node.vmstat["swap_ra"] += len(stored)

    def hit(self, pfn: int) -> Sequence[bytes] | None:
        """Return what was read ahead for a folio, if it is still what its slots hold."""
        ahead = self._take(pfn)
        if ahead is None or not self._at(pfn, ahead.first) or self._node.mm.crc[pfn] != ahead.crc:
            return None
        self._hits += 1
        self._node.vmstat["swap_ra_hit"] += len(ahead.stored)
        return ahead.stored

    def drop(self) -> None:
        """Let everything go: room is short, or the device leaves."""
        while self._ahead:
            self._take(next(iter(self._ahead)))

    def _take(self, pfn: int) -> _Ahead | None:
        ahead = self._ahead.pop(pfn, None)
        if ahead is not None:
            self._node.memcg.unreserve(ahead.nr_bytes)
        return ahead

    def _at(self, pfn: int, slot: int) -> bool:
        mm = self._node.mm
        return (mm.state[pfn], mm.device[pfn], mm.entry[pfn]) == (DEVICE, self._device, slot)

    def _window(self, slot: int) -> int:
        """Return how many slots to look at, a power of two: by the hits since the last window."""
        pages, self._hits = self._hits + 2, 0
        if pages == 2 and abs(slot - self._last_slot) != 1:
            pages = 1
        pages = min(MAX_PAGES, 1 << (pages - 1).bit_length()) if pages > 1 else 1
        pages = max(pages, self._last_pages // 2)  # not too fast down
        self._last_pages, self._last_slot = pages, slot
        return pages
