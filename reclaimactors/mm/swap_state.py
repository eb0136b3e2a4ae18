"""The swap cache: resident folios whose copy on a device is still good. Mirrors mm/swap_state.c.

A folio that was read back keeps its slots until it is overwritten or deleted. It is *clean*: to
reclaim it again costs nothing, no compressing and no writing, so clean folios go first.

The slots are lent, never owed. Only a device of which at most half is used lends them (the kernel's
vm_swap_full), and only one whose copy holds no memory of this process. Once more than half is used,
each write to it makes the cache give back twice as many slots as it took, oldest first; so the
cache is empty by the time that the device is full.
"""

from __future__ import annotations

from typing import TYPE_CHECKING
from zlib import crc32

from reclaimactors.abc import Verdict
from reclaimactors.mm.folio import CACHED, DEVICE, RESIDENT

if TYPE_CHECKING:
    from reclaimactors.mm.batch import FolioBatch
    from reclaimactors.mm.ledger import Ledger
    from reclaimactors.mm.node import Node
    from reclaimactors.mm.swap_device import SwapDevice

__all__ = ["SwapCache", "drop_clean"]


class SwapCache:
    """The clean folios of each device, oldest first. `MemMap.clean` says the same by pfn."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._clean: dict[int, dict[int, None]] = {}  # device -> pfns
        self.pages = 0  #: slots that clean folios keep: the gauge nr_swapcached

    def keeps(self, pfn: int) -> bool:
        """Return whether a DEVICE folio may keep its slots once it is resident."""
        node = self._node
        device = node.swap[node.mm.device[pfn]]
        return not (node.mm.charge[pfn] or device.more_than_half_used or not device.takes_writes)

    def add(self, pfn: int) -> None:
        """A folio becomes resident and keeps its slots."""
        mm = self._node.mm
        mm.clean[pfn] = CACHED
        self._clean.setdefault(mm.device[pfn], {})[pfn] = None
        self.pages += len(self._node.slots.of(pfn))

    def forget(self, pfn: int) -> None:
        """A clean folio is read from nowhere else any more: it leaves the cache with its slots."""
        mm = self._node.mm
        mm.clean[pfn] = 0
        del self._clean[mm.device[pfn]][pfn]
        self.pages -= len(self._node.slots.of(pfn))

    def drop(self, pfn: int) -> None:
        """A clean folio is overwritten or deleted: its slots go back to the device."""
        self.forget(pfn)
        self._node.slots.release(pfn)

    def shed(self, device: SwapDevice, slots: int) -> int:
        """Give back at least so many slots of a device, oldest first; return how many it were."""
        clean = self._clean.get(device.index)
        before = self.pages
        while clean and before - self.pages < slots:
            self.drop(next(iter(clean)))
        return before - self.pages

    def taken(self, device: SwapDevice, slots: int) -> None:
        """Folios took so many slots of a device: above the half, the cache gives twice as many."""
        if self.pages and device.more_than_half_used:
            self.shed(device, 2 * slots)

    def check(self) -> None:
        """Assert that both sides say the same, and that clean folios are resident and unchanged."""
        mm = self._node.mm
        clean = {pfn for pfns in self._clean.values() for pfn in pfns}
        cached = {pfn for pfn, why in enumerate(mm.clean) if why == CACHED}
        assert clean == cached, "swap cache drifted"
        assert all(mm.state[pfn] == RESIDENT for pfn in clean), "a clean folio is not resident"
        assert self.pages == sum(len(self._node.slots.of(pfn)) for pfn in clean), "slots drifted"
        as_it_is = [pfn for pfn in clean if not mm.codec[pfn] and pfn in mm.data]  # see MemMap.gone
        assert all(crc32(mm.data[pfn]) == mm.crc[pfn] for pfn in as_it_is), "clean, but changed"


def drop_clean(node: Node, ledger: Ledger, batch: FolioBatch) -> None:
    """Verdict DEVICE at once for the clean folios of a batch that was just isolated."""
    mm = node.mm
    clean = [pfn for pfn in batch.pfns if mm.clean[pfn] == CACHED]
    if not clean:
        return
    shadows = ledger.shadows(batch.group, clean)
    pages, source = node.pages(clean), 0
    for pfn, shadow in zip(clean, shadows, strict=True):
        node.swapcache.forget(pfn)
        del mm.data[pfn]
        mm.state[pfn] = DEVICE
        mm.owner[pfn] = 0
        mm.shadow[pfn] = shadow
        source += mm.size[pfn]
    gone = set(clean)
    batch.pfns = [pfn for pfn in batch.pfns if pfn not in gone]
    batch.nr_bytes -= source
    batch.nr_pages -= pages
    batch.nr_clean += len(clean)
    batch.clean_bytes += source
    node.vmstat[f"reclaim_{Verdict.DEVICE.value}"] += len(clean)
    ledger.stolen(len(clean), pages, source, 0, batch, compressed=False)
