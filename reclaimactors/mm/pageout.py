"""The device half of reclaim: slots for folios, what their store writes. Mirrors pageout().

A folio that goes to a device gets its slots in `to_devices`; `items` is what the store is to write,
and `stored`, `store_failed` or `refuse` ends the write. What goes to devices although it is not
resident is chosen in `shrink_worker`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING
from zlib import crc32

import attrs

from reclaimactors.abc import Verdict
from reclaimactors.mm.batch import FolioBatch, StoreBatch
from reclaimactors.mm.ending import end_all, undo
from reclaimactors.mm.folio import DEVICE
from reclaimactors.mm.limits import closed_devices, swap_left
from reclaimactors.mm.swap_device import runs
from reclaimactors.units import nr_pages

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from reclaimactors.mm.group import Group
    from reclaimactors.mm.ledger import Ledger
    from reclaimactors.mm.node import Node
    from reclaimactors.mm.swap_device import SwapDevice

    _Found = tuple[SwapDevice, list[int], Sequence[Sequence[int]], list[int]]
    """a device, folios, and the slots and the length of each"""

__all__ = ["MAX_WRITE_BYTES", "Pageout"]

MAX_WRITE_BYTES = 1 << 20  #: of one write, so that its checksums hold the event loop under 1 ms

_RAW, _BLOB = 0, 1  #: MemMap.codec


class Pageout:
    """The way from memory, or from the pool, to the devices."""

    def __init__(self, node: Node, ledger: Ledger) -> None:
        self._node = node
        self._ledger = ledger

    def to_devices(
        self,
        pfns: Sequence[int],
        batch: FolioBatch | StoreBatch,
        otherwise: Verdict,
        *,
        failed: frozenset[int] = frozenset(),
        kept: Mapping[int, Sequence[bytes | int]] | None = None,
        poor: bool = False,
    ) -> list[StoreBatch]:
        """Give folios slots on the best device that has room; `otherwise` where none has.

        What fits one write gets one run of slots if there is one (the kernel's clusters), so that
        it is written in one go; else each folio has a run of its own, or scattered slots.

        On failure, which is the policy's: each folio is resident as before, in no write.

        Args:
            pfns: folios of the batch.
            batch: who owns them.
            otherwise: their verdict where there are no slots.
            failed: devices that are not asked.
            kept: what workers made of the pages, for devices that take that.
            poor: whether they are known not to compress: without a store that takes them now they
                go to the unevictable list.
        """
        ram_only = isinstance(batch, FolioBatch) and batch.ram_only and kept is None
        group = batch.group
        if ram_only or (poor and not group.swap_ready):
            verdict = Verdict.KEEP if ram_only else otherwise
            self._ledger.give_back(group, pfns, verdict, cull=poor)
            return []
        out: list[StoreBatch] = []
        homeless: list[int] = []
        tried = failed
        if group.swap_restricted:
            failed |= closed_devices(group)
            pfns, homeless = self._within_limit(group, pfns)
        over = failed | self._node.demotion.place()
        for some in self._by_write(pfns):
            found, without = self._find(some, failed, over)
            homeless += without
            for device, placed, slots, nr_bytes in found:
                write = _with_room(out, device, sum(nr_bytes))
                if write is None:
                    write = self._new_write(device, batch, tried)
                    write.kept = kept if device.takes_squeezed else None
                    write.poor = poor
                    out.append(write)
                self.assign(write, placed, slots, nr_bytes)
        try:
            self._no_room(group, homeless, otherwise, poor=poor and not tried)
        except BaseException as exc:
            undo(exc, end_all, out, self.refuse)
            raise
        return out

    def _within_limit(self, group: Group, pfns: Sequence[int]) -> tuple[list[int], list[int]]:
        """Return the folios that the group's limits let go to devices, and the others."""
        left, size = swap_left(group), self._node.mm.size
        fit: list[int] = []
        others: list[int] = []
        for pfn in pfns:
            left -= size[pfn]
            (fit if left >= 0 else others).append(pfn)
        return fit, others

    def _find(
        self, pfns: list[int], failed: frozenset[int], over: frozenset[int]
    ) -> tuple[list[_Found], list[int]]:
        """Find slots for folios: one run, or a place for each; return who found none besides.

        Devices that are passed over (`over`, the failed ones among them) are asked last.
        """
        size = self._node.mm.size
        lengths = [size[pfn] for pfn in pfns]
        run = self._node.swap.alloc_best(sum(map(self.nr_slots, lengths)), over)
        if run is not None:
            device, first = run
            return [(device, pfns, self.cut(first, lengths), lengths)], []
        found: list[_Found] = []
        homeless: list[int] = []
        for pfn, length in zip(pfns, lengths, strict=True):
            place = self._place(length, over)
            if place is None and over != failed:
                place = self._place(length, failed)
            if place is None:
                homeless.append(pfn)
            else:
                found.append((place[0], [pfn], [place[1]], [length]))
        return found, homeless

    def nr_slots(self, length: int) -> int:
        """Return how many slots so many bytes take."""
        page = self._node.page_size
        return 1 if length <= page else nr_pages(length, page)

    def _by_write(self, pfns: Sequence[int]) -> Iterator[list[int]]:
        """Cut folios into parts, each of which fits one write."""
        size = self._node.mm.size
        part: list[int] = []
        nr_bytes = 0
        for pfn in pfns:
            if part and nr_bytes + size[pfn] > MAX_WRITE_BYTES:
                yield part
                part, nr_bytes = [], 0
            part.append(pfn)
            nr_bytes += size[pfn]
        if part:
            yield part

    def cut(self, first: int, lengths: Sequence[int]) -> list[range]:
        """Cut a run of slots that begins at `first` into a part for each of so many bytes."""
        parts: list[range] = []
        for length in lengths:
            stop = first + self.nr_slots(length)
            parts.append(range(first, stop))
            first = stop
        return parts

    def _place(
        self, length: int, failed: frozenset[int]
    ) -> tuple[SwapDevice, Sequence[int]] | None:
        """Find slots for one folio."""
        swap, nr = self._node.swap, self.nr_slots(length)
        found = swap.alloc(nr, failed)
        if found is not None:
            device, first = found
            return device, range(first, first + nr)
        if nr == 1:
            return None
        self._node.vmstat["thp_swpout_fallback"] += 1
        return swap.alloc_scattered(nr, failed)

    def _no_room(self, group: Group, pfns: list[int], otherwise: Verdict, *, poor: bool) -> None:
        """No device has room for these folios: try them again if the swap cache can make some."""
        if pfns and self._node.swapcache.pages:
            slots = sum([self.nr_slots(self._node.mm.size[pfn]) for pfn in pfns])
            if sum([self._node.swapcache.shed(device, slots) for device in self._node.swap]):
                otherwise, poor = Verdict.KEEP, False
        self._ledger.give_back(group, pfns, otherwise, cull=poor)

    def _new_write(
        self, device: SwapDevice, batch: FolioBatch | StoreBatch, failed: frozenset[int]
    ) -> StoreBatch:
        """Return an empty write for folios of a batch."""
        node = self._node
        node.writeback.write_begun(device.index)
        return StoreBatch(node.new_id(), batch.group, device.index, batch.who, False,
                          batch.producer, failed=failed)  # fmt: skip

    def assign(
        self,
        write: StoreBatch,
        pfns: Sequence[int],
        slots: Sequence[Sequence[int]],
        lengths: Sequence[int],
    ) -> None:
        """Make folios, each with its slots, part of a write, which holds them from then on."""
        write.pfns += pfns
        write.slots += slots
        write.lengths += lengths
        write.nr_bytes += sum(lengths)
        mm = self._node.mm
        owner, refs = mm.owner, mm.refs
        for pfn in pfns:
            owner[pfn] = write.id
            refs[pfn] += 1
        if write.reclaims:
            self._node.swap[write.device].at_store += sum(lengths)
            at_store = mm.at_store
            new = [pfn for pfn in pfns if not at_store[pfn]]  # another store may have failed on it
            for pfn in new:
                at_store[pfn] = 1
            write.group.memcg.to_store(sum([mm.size[pfn] for pfn in new]))
        self._node.swapcache.taken(self._node.swap[write.device], sum(map(len, slots)))

    def items(self, write: StoreBatch) -> list[tuple[int, bytes]]:
        """Return what the store is to write; the checksum of each folio is taken here."""
        node = self._node
        mm, page = node.mm, node.page_size
        out: list[tuple[int, bytes]] = []
        for pfn, slots, length in zip(write.pfns, write.slots, write.lengths, strict=True):
            data = (mm.data if write.moved is None else write.moved).get(pfn)
            if mm.owner[pfn] != write.id or data is None:
                continue
            if not mm.crc[pfn]:  # a worker process has taken it already
                mm.crc[pfn] = crc32(data)
            if length <= page:
                out.append((slots[0], data))
            else:
                starts = range(0, length, page)
                out += [
                    (slot, data[at : at + page]) for slot, at in zip(slots, starts, strict=True)
                ]
        return out

    def squeezed_items(self, write: StoreBatch) -> tuple[list[int], list[int], list[bytes | int]]:
        """Return slots, sizes and what is kept of each page, for a store that takes it compressed.

        The checksums are those of the sources, which is what the store will give back.
        """
        mm, page = self._node.mm, self._node.page_size
        assert write.kept is not None
        slots: list[int] = []
        sizes: list[int] = []
        kept: list[bytes | int] = []
        for pfn, own, length in zip(write.pfns, write.slots, write.lengths, strict=True):
            if not mm.crc[pfn]:
                mm.crc[pfn] = crc32(mm.data[pfn])
            slots += own
            kept += write.kept[pfn]
            if length <= page:
                sizes.append(length)
            else:
                sizes += [min(page, length - at) for at in range(0, length, page)]
        return slots, sizes, kept

    def split(self, write: StoreBatch, nr_slots: int) -> StoreBatch:
        """Move all but the folios in the first `nr_slots` to a new write, and return that."""
        node = self._node
        nr = 0
        for slots in write.slots:
            nr_slots -= len(slots)
            if nr_slots < 0:
                break
            nr += 1
        rest = attrs.evolve(write, id=node.new_id(), pfns=write.pfns[nr:], slots=write.slots[nr:],
                            lengths=write.lengths[nr:])  # fmt: skip
        node.writeback.write_begun(write.device)
        del write.pfns[nr:], write.slots[nr:], write.lengths[nr:]
        for pfn in rest.pfns:
            node.mm.owner[pfn] = rest.id
        for part in (write, rest):
            part.nr_bytes = sum(part.lengths)
        return rest

    def stored(self, write: StoreBatch, charges: Sequence[int] | None = None) -> None:
        """The store has acknowledged: verdict DEVICE for what the write still owns.

        On failure, which is the policy's: the write has ended, and its folios are resident as
        before.

        Args:
            write: the acknowledged write.
            charges: bytes of this process that the store holds for each folio, None = nothing.
        """
        node = self._node
        mm, vm = node.mm, node.vmstat
        shadows = self._shadows(write)
        self._ended(write)
        page = node.page_size
        done = pages = source = kept = nr_slots = 0
        for i, (pfn, slots, length) in enumerate(
            zip(write.pfns, write.slots, write.lengths, strict=True)
        ):
            if mm.owner[pfn] != write.id or not self._may_move(pfn, write):
                node.slots.forget(write.device, slots)
                node.release(pfn)
                continue
            nr = 1 if mm.size[pfn] <= page else nr_pages(mm.size[pfn], page)
            charged = length
            if write.blobs:
                node.zswap.remove(pfn, length, nr, write.group.index)
                mm.codec[pfn] = _BLOB
            elif write.moved is not None:  # its codec and checksum go with it
                charged = mm.charge[pfn]
                node.demotion.forget(pfn)
                node.slots.release(pfn)
            else:
                mm.shadow[pfn] = next(shadows)
                mm.codec[pfn] = _RAW
            mm.data.pop(pfn, None)
            mm.state[pfn] = DEVICE
            mm.owner[pfn] = mm.at_store[pfn] = 0
            node.slots.give(write.group, pfn, write.device, slots, length)
            mm.charge[pfn] = min(charged, charges[i]) if charges else 0
            if mm.charge[pfn]:
                node.demotion.add(pfn)
            done += 1
            nr_slots += len(slots)
            pages += nr
            source += charged
            kept += mm.charge[pfn]
            mm.refs[pfn] -= 1  # it is no dead one that `release` would have to free
        vm["pswpout"] += nr_slots
        write.group.count("pswpout", nr_slots)
        vm["nr_vmscan_write"] += nr_slots
        node.demotion.stored(node.swap[write.device], source, kept)
        if not write.reclaims:
            self._wrote_back(write, pages, source, kept)
        elif done:
            vm["reclaim_device"] += done
            write.group.scan.gone(write.pfns)
            self._ledger.stolen(done, pages, source, kept, write)

    def _shadows(self, write: StoreBatch) -> Iterator[int]:
        """Return what the policy says of each folio that leaves memory with a write."""
        owner, owned = self._node.mm.owner, list[int]()
        if write.reclaims:
            owned += [pfn for pfn in write.pfns if owner[pfn] == write.id]
        try:
            return iter(self._ledger.shadows(write.group, owned))
        except BaseException as exc:
            undo(exc, self.refuse, write)
            raise

    def _may_move(self, pfn: int, write: StoreBatch) -> bool:
        """Return whether nobody but the write itself looks at the slots of a folio that moves."""
        mm = self._node.mm
        if write.moved is None or mm.refs[pfn] == 1:
            return True
        mm.owner[pfn] = 0
        return False

    def _wrote_back(self, write: StoreBatch, pages: int, source: int, kept: int) -> None:
        """Account folios that were not resident: `kept` of their `source` bytes are still held."""
        node, vm = self._node, self._node.vmstat
        freed = source - kept
        self._ledger.freed(write.group, freed)
        if write.blobs:
            vm["zswpwb"] += pages
            write.group.count("zswpwb", pages)
            self._asked_for(write, pages, source)
            vm["written_back_pages"] += pages
            node.zswap.wanted = max(0, node.zswap.wanted - source)
        else:
            vm["swap_demoted"] += pages
            node.demotion.wanted = max(0, node.demotion.wanted - max(0, freed))
        for over in write.group.lineage:
            over.wanted = max(0, over.wanted - max(0, freed))
        write.group.memcg.adjust(compressed=-freed)

    def _asked_for(self, write: StoreBatch, pages: int, nr_bytes: int) -> None:
        """Note blobs that have left, where somebody asked for them: that is proactive."""
        asked = False
        for over in write.group.lineage:
            asked = asked or over.pool_wanted > 0
            over.pool_wanted = max(0, over.pool_wanted - nr_bytes)
            over.written_back += nr_bytes
        if asked:
            self._node.vmstat["zswpwb_proactive"] += pages
            write.group.count("zswpwb_proactive", pages)

    def store_failed(
        self, write: StoreBatch, otherwise: Verdict = Verdict.ERROR, *, aside: bool = False
    ) -> list[StoreBatch]:
        """The store raised: the folios stay, dirty and counted; the next device is tried.

        Args:
            write: the write that failed.
            otherwise: the verdict where there is no next device: ERROR, or ACTIVATE if it is full.
            aside: True where the write may still happen later (it timed out): its slots are set
                aside until the store has forgotten them.

        Returns:
            Writes to another device, for the folios that found one.
        """
        node = self._node
        mm = node.mm
        self._ended(write)
        node.vmstat["swapout_error"] += 1
        left: list[int] = []
        for pfn, slots in zip(write.pfns, write.slots, strict=True):
            self._give_back_slots(write.device, slots, aside=aside)
            if mm.owner[pfn] == write.id:
                if not write.reclaims:
                    mm.owner[pfn] = 0
                    node.vmstat["reject_reclaim_fail"] += write.blobs
                else:
                    left.append(pfn)
            node.release(pfn)
        failed = write.failed | {write.device}
        return self.to_devices(
            left, write, otherwise, failed=failed, kept=write.kept, poor=write.poor
        )

    def refuse(self, write: StoreBatch, *, aside: bool = False) -> None:
        """End a write without its store's answer: mailbox full, closing, or a crash (`aside`)."""
        node = self._node
        mm = node.mm
        self._ended(write)
        left: list[int] = []
        for pfn, slots in zip(write.pfns, write.slots, strict=True):
            self._give_back_slots(write.device, slots, aside=aside)
            if mm.owner[pfn] == write.id:
                if not write.reclaims:
                    mm.owner[pfn] = 0
                else:
                    left.append(pfn)
            node.release(pfn)
        self._ledger.give_back(write.group, left, Verdict.KEEP, cull=write.poor)

    def _give_back_slots(self, device: int, slots: Sequence[int], *, aside: bool) -> None:
        if aside:
            for first, nr in runs(slots):
                self._node.swap[device].set_aside(first, nr)
        else:
            self._node.slots.forget(device, slots)

    def _ended(self, write: StoreBatch) -> None:
        """A write has its verdict, whichever."""
        if write.blobs:
            self._node.zswap.leaving -= write.leaving
        else:
            self._node.demotion.leaving -= write.leaving
        if write.leaving:
            for over in write.group.lineage:
                over.leaving -= write.leaving
        if write.reclaims:
            self._node.swap[write.device].at_store -= write.nr_bytes
        self._node.writeback.write_ended(write.device)


def _with_room(writes: Sequence[StoreBatch], device: SwapDevice, length: int) -> StoreBatch | None:
    """Return the write to a device that takes so many bytes more, None where there is none."""
    for write in writes:
        if write.device == device.index and write.nr_bytes + length <= MAX_WRITE_BYTES:
            return write
    return None
