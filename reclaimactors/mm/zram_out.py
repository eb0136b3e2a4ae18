"""The way out to a device that compresses its slots: workers compress its pages in front of it.

Where the pool takes nothing and the device next in line names the machine's own compressor, a batch
is compressed page by page, as zram would do in zram_write_page(). `rows_of` cuts folios into those
pages; `complete` puts each folio's rows together again and asks for slots. The store takes the rows
in the same step (SWP_SYNCHRONOUS_IO), so nothing waits between a worker and such a device.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from reclaimactors.mm.ending import end_all, undo
from reclaimactors.mm.page_io import BLOB, FAIL, NOMEM, POOR, SAME_FILLED, outcome, same_filled
from reclaimactors.units import nr_pages

if TYPE_CHECKING:
    from collections.abc import Sequence

    from reclaimactors.mm.batch import FolioBatch, StoreBatch
    from reclaimactors.mm.ledger import Ledger
    from reclaimactors.mm.node import Node
    from reclaimactors.mm.page_io import Squeezed
    from reclaimactors.mm.pageout import Pageout

__all__ = ["ZramOut"]


class ZramOut:
    """From the workers to devices that compress."""

    def __init__(self, node: Node, ledger: Ledger, pageout: Pageout) -> None:
        self._node = node
        self._ledger = ledger
        self._pageout = pageout

    @property
    def next_in_line(self) -> bool:
        """Whether the device that would be written to next takes what workers compress."""
        demotion = self._node.demotion
        for device in self._node.swap:
            if device.takes_writes and device.free_slots and not demotion.passes_over(device):
                return device.takes_squeezed
        return False

    def rows_of(self, batch: FolioBatch) -> list[bytes]:
        """Return the pages of the folios of a batch; it notes how many each of them has."""
        page, data = self._node.page_size, self._node.mm.data
        pages: list[bytes] = []
        rows: list[int] = []
        for pfn in batch.pfns:
            source = data[pfn]
            size = len(source)
            if size <= page:
                pages.append(source)
                rows.append(1)
            else:
                pages += [source[at : at + page] for at in range(0, size, page)]
                rows.append(nr_pages(size, page))
        batch.rows = rows
        return pages

    def complete(self, batch: FolioBatch, out: Squeezed) -> list[StoreBatch]:
        """Give same-filled folios their verdict, the others slots; return the writes.

        A folio that the batch no longer owns is skipped: its verdict was CANCELLED. One that keeps
        more than 15/16 of its bytes frees next to nothing here, so it goes to a device elsewhere if
        there is one with room, and is kept as it is only where there is none.
        """
        owner, crc = self._node.mm.owner, self._node.mm.crc
        same: list[tuple[int, int]] = []
        kept: dict[int, Sequence[bytes | int]] = {}
        placed: dict[int, list[int]] = {}
        start = 0
        for pfn, nr in zip(batch.pfns, batch.rows or (), strict=True):
            rows = range(start, start + nr)
            start += nr
            if owner[pfn] != batch.id:
                continue
            word = self._word(pfn, rows, out)
            if word is not None:
                same.append((pfn, word))
                continue
            kept[pfn], kind = self._kept(pfn, rows, out)
            crc[pfn] = out.values[rows[0]] if out.of_sources and nr == 1 else 0
            placed.setdefault(kind, []).append(pfn)
        if same:
            self._ledger.drop_same(same, batch)
        vm = self._node.vmstat
        vm["reject_compress_fail"] += len(placed.get(FAIL, ()))  # said where memory runs out
        vm["reject_alloc_fail"] += len(placed.get(NOMEM, ()))
        if self._node.zswap.enabled:
            vm["pool_limit_hit"] += len(kept)
            self._node.on_pool_full()
        writes: list[StoreBatch] = []
        try:
            for kind, pfns in placed.items():
                otherwise = outcome(kind, pool_accepts=False, swap_has_room=False)
                failed = frozenset[int]() if kind == BLOB else self.elsewhere()
                writes += self._pageout.to_devices(
                    pfns, batch, otherwise, failed=failed, kept=kept, poor=kind == POOR
                )
        except BaseException as exc:
            undo(exc, end_all, writes, self._pageout.refuse)
            raise
        return writes

    def _word(self, pfn: int, rows: range, out: Squeezed) -> int | None:
        """Return the word that a whole folio repeats, None where it does not."""
        if out.kinds[rows[0]] != SAME_FILLED:
            return None
        if len(rows) == 1:
            return out.values[rows[0]]
        return same_filled(self._node.mm.data[pfn])

    def _kept(self, pfn: int, rows: range, out: Squeezed) -> tuple[Sequence[bytes | int], int]:
        """Return what a device keeps of each page of a folio, and BLOB or why it is no gain."""
        source, page = self._node.mm.data[pfn], self._node.page_size
        if len(rows) == 1:
            blob = out.blobs[rows[0]]
            return (blob or source,), out.kinds[rows[0]]
        kept: list[bytes | int] = []
        nr_bytes = 0
        kind = BLOB
        for i, row in enumerate(rows):
            what = out.blobs[row]
            if out.kinds[row] == SAME_FILLED:
                kept.append(out.values[row])
                continue
            if what is None:
                what = source[i * page : (i + 1) * page]
                kind = max(kind, out.kinds[row])
            kept.append(what)
            nr_bytes += len(what)
        return kept, kind if nr_bytes * 16 > len(source) * 15 else BLOB

    def elsewhere(self) -> frozenset[int]:
        """Return the devices that compress, if there is another one that has room."""
        swap = self._node.swap
        if any(d.takes_writes and d.free_slots and not d.takes_squeezed for d in swap):
            return frozenset(device.index for device in swap if device.takes_squeezed)
        return frozenset()
