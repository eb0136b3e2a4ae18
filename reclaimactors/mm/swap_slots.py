"""The slots of folios: which they are, and which a store must forget before they are reused.

Mirrors mm/swap_slots.c, and what mm/swapfile.c keeps of a swap entry.
"""

from __future__ import annotations

import sys
from array import array
from collections import deque
from typing import TYPE_CHECKING

from reclaimactors.mm.swap_device import runs
from reclaimactors.units import nr_pages

if TYPE_CHECKING:
    from collections.abc import Sequence

    from reclaimactors.mm.group import Group
    from reclaimactors.mm.node import Node

__all__ = ["SwapSlots"]


class SwapSlots:
    """What swap devices hold for the folios of one node."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self.swapped = 0  #: bytes that swap devices hold for live folios
        self.scattered: dict[int, array[int]] = {}  #: pfn -> slots of one that found no run of them
        self.stale: dict[int, deque[tuple[int, int]]] = {}
        """device -> (first slot, slots) that its store must still forget before they are reused"""

    def of(self, pfn: int) -> Sequence[int]:
        """Return the slots of a folio that a device holds, in the order of its bytes."""
        scattered = self.scattered.get(pfn)
        if scattered is not None:
            return scattered
        first = self._node.mm.entry[pfn]
        return range(first, first + nr_pages(self._node.mm.length[pfn], self._node.page_size))

    def at(self, device: int, pfn: int) -> Sequence[int]:
        """Return the slots that a device holds for a folio, () where that has none or has left."""
        mm = self._node.mm
        return self.of(pfn) if mm.device[pfn] == device and mm.keeps_slots(pfn) else ()

    def give(self, group: Group, pfn: int, device: int, slots: Sequence[int], length: int) -> None:
        """Note that slots of a device hold a folio of a group from now on, in so many bytes."""
        mm = self._node.mm
        mm.device[pfn] = device
        mm.entry[pfn] = slots[0]
        if not isinstance(slots, range):
            self.scattered[pfn] = array("Q", slots)
        mm.length[pfn] = length
        self.swapped += length
        group.swapped += length

    def release(self, pfn: int) -> None:
        """Let the device forget a folio's slots; they are reused after that."""
        mm = self._node.mm
        self.swapped -= mm.length[pfn]
        self._node.group_of(pfn).swapped -= mm.length[pfn]
        self.forget(mm.device[pfn], self.of(pfn))
        self.scattered.pop(pfn, None)

    def recharge(self, pfn: int, nr_bytes: int) -> int:
        """A device has come to hold only so many bytes for a folio; return what that gave back."""
        less = max(0, self._node.mm.charge[pfn] - nr_bytes)
        if less:
            self._node.mm.charge[pfn] -= less
            if not self._node.mm.charge[pfn]:
                self._node.demotion.forget(pfn)
            self._node.group_of(pfn).memcg.adjust(compressed=-less)
        return less

    def forget(self, device: int, slots: Sequence[int]) -> None:
        """Queue slots for their store to forget."""
        self.stale.setdefault(device, deque()).extend(runs(slots))
        self._node.swap[device].stale += len(slots)
        self._node.on_stale(device)

    def take_stale(self, device: int, nr: int = sys.maxsize) -> list[tuple[int, int]]:
        """Return runs that a device must forget now, of about `nr` slots; `forgotten` follows."""
        stale, taken = self.stale.get(device), list[tuple[int, int]]()
        total = 0
        while stale and total < nr:
            first, slots = stale.popleft()
            total += slots
            if taken and sum(taken[-1]) == first:  # neighbours are freed in one go
                first, before = taken.pop()
                slots += before
            taken.append((first, slots))
        self._node.swap[device].forgetting += bool(taken)
        self._node.swap[device].stale -= total
        return taken

    def forgotten(self, device: int, runs: list[tuple[int, int]]) -> None:
        """The store has forgotten these runs: they may be used again."""
        store = self._node.swap[device]
        store.forgetting -= bool(runs)
        for slot, nr in runs:
            store.free(slot, nr)

    def not_forgotten(self, device: int, runs: list[tuple[int, int]]) -> None:
        """Nobody knows when the store will forget these runs: they are set aside."""
        store = self._node.swap[device]
        store.forgetting -= bool(runs)
        for slot, nr in runs:
            store.set_aside(slot, nr)
