"""Stores in the budget give way to stores outside it. Mirrors the demotion of mm/memory-tiers.c.

What a store in this process holds (memory, zram) is charged to the budget, so it can fill the
budget beside an empty file. Two rules keep that from refusing a put:

- *Placing.* While a store outside has room, stores in the budget take no folio once they hold
  NEAR_SHARE of the budget, and one whose last write freed next to nothing is passed over for
  PASSED_OVER batches.
- *Giving way.* Where reclaim finds nothing resident (`Node.want_writeback`), the folios that have
  been in such a store for longest move to a store outside, as they are stored.

A store is in the budget if a write to it was charged. Without a store outside nothing moves.
"""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING

from reclaimactors.mm.folio import DEVICE
from reclaimactors.mm.links import Links
from reclaimactors.mm.zswap import MAX_GROUPS

if TYPE_CHECKING:
    from collections.abc import Iterator

    from reclaimactors.mm.node import Node
    from reclaimactors.mm.swap_device import SwapDevice

__all__ = ["NEAR_SHARE", "Demotion"]

NEAR_SHARE = 0.5  #: of the budget: as much again stays for what is resident, the pool and keys
PASSED_OVER = 64  #: batches placed elsewhere until a store that freed nothing is tried again


class Demotion:
    """The folios that stores hold within the budget, and how many of their bytes must leave."""

    def __init__(self, node: Node) -> None:
        self._node = node
        # a list for each group, coldest first: in the order in which they were stored
        self._lru = Links(MAX_GROUPS)
        self.wanted = 0  #: charged bytes that reclaim wants moved to a store outside
        self.leaving = 0  #: those of folios that are on their way there

    @property
    def held(self) -> int:
        """Bytes of the budget that stores hold."""
        return self._node.memcg.compressed - self._node.zswap.total

    @property
    def outside_has_room(self) -> bool:
        """Whether a store outside the budget takes another slot."""
        return any(
            device.takes_writes and device.free_slots > 0 and not device.in_budget
            for device in self._node.swap
        )

    def add(self, pfn: int) -> None:
        """A store has acknowledged a folio, and is charged for it."""
        self._lru.add_tail(self._node.mm.group[pfn], pfn)

    def forget(self, pfn: int) -> None:
        """A DEVICE folio leaves its store, or costs nothing there any more."""
        if self._lru.on_list(pfn):
            self._lru.remove(self._node.mm.group[pfn], pfn)

    def rotate(self, pfn: int) -> None:
        """Look at a folio last: it is on its way, or could not be read."""
        head = self._node.mm.group[pfn]
        self._lru.remove(head, pfn)
        self._lru.add_tail(head, pfn)

    def coldest(self, nr: int, group: int = 0) -> Iterator[int]:
        """Yield up to `nr` pfns of a group, coldest first, each once.

        The one just yielded may be moved.
        """
        return islice(self._lru.walk(group), min(nr, self._lru.sizes[group]))

    def excess(self) -> int:
        """Return the bytes that are yet to be sent to a store outside."""
        return min(self.wanted, self.held) - self.leaving

    # -- placing ----------------------------------------------------------------------------------

    def passes_over(self, device: SwapDevice) -> bool:
        """Return whether folios go to a store outside rather than to this one."""
        return (
            device.in_budget
            and (device.passed_over > 0 or self.held > NEAR_SHARE * self._node.memcg.budget)
            and self.outside_has_room
        )

    def place(self) -> frozenset[int]:
        """Return the devices that are not to be given the batch that is placed now."""
        over = [device for device in self._node.swap if self.passes_over(device)]
        for device in over:
            device.passed_over = max(0, device.passed_over - 1)
        return frozenset(device.index for device in over)

    def stored(self, device: SwapDevice, source: int, kept: int) -> None:
        """Learn from a write of `source` bytes, `kept` of which the store is charged for."""
        if kept:
            device.in_budget = True
            device.passed_over = PASSED_OVER if (source - kept) * 16 < source else 0

    def check(self) -> None:
        """Assert that the list is well linked, and holds just the folios that are charged."""
        mm = self._node.mm
        self._lru.check()
        charged = {pfn for pfn, state in enumerate(mm.state) if state == DEVICE and mm.charge[pfn]}
        listed = {pfn for index in self._node.groups for pfn in self._lru.walk(index)}
        assert listed == charged, "folios of stores in the budget drifted"
        assert self.held >= 0
        assert self.wanted >= 0
        assert self.leaving == 0 or self._node.writeback.nr_writes, "nobody moves what is leaving"
