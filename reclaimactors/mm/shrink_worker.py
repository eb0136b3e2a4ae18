"""What goes to devices though it is not resident: blobs, and what stores in the budget hold.

Mirrors shrink_worker() of mm/zswap.c.

A group that is over a limit of its own asks for what it holds itself; after those comes what the
whole memory asks for, which each group gives in turn. What goes is not resident, so that nobody is
owed a verdict: what a store does not take stays where it is.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from reclaimactors.mm.batch import SWAP_CLUSTER_MAX, Reclaimer, StoreBatch
from reclaimactors.mm.limits import closed_devices
from reclaimactors.mm.pageout import MAX_WRITE_BYTES

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from reclaimactors.mm.group import Group
    from reclaimactors.mm.node import Node
    from reclaimactors.mm.pageout import Pageout
    from reclaimactors.mm.swap_device import SwapDevice

__all__ = ["ShrinkWorker"]

MAX_VISITS = 4 * SWAP_CLUSTER_MAX  #: blobs looked at for one write


class ShrinkWorker:
    """What leaves the budget for the devices of one node."""

    def __init__(self, node: Node, pageout: Pageout) -> None:
        self._node = node
        self._pageout = pageout
        self._last = 0  # the group that gave last: the next one is asked first

    def writeback(self, device: SwapDevice, nr: int = SWAP_CLUSTER_MAX) -> StoreBatch | None:
        """Return a write of the coldest blobs to `device`, as they are; None if it took none.

        One pass of shrink_worker(): up to `nr` blobs of one group, MAX_VISITS looked at. Those that
        had a second chance coming are counted in `zswap_second_chance`: after None the next pass
        may find what this one did not, if that has grown. A store in the budget takes none while
        one outside has room: nothing would be freed.
        """
        node = self._node
        pool = node.zswap
        if device.in_budget and node.demotion.outside_has_room:
            return None
        visits = MAX_VISITS
        for group, excess in self._who_gives(device, pool.excess() - pool.leaving, blobs=True):
            pfns, lengths, visits = self._coldest_blobs(group, excess, nr, visits)
            write = self._write_of(device, group, pfns, lengths) if pfns else None
            if write is not None:
                for pfn in write.pfns:
                    pool.rotate(pfn, group.index)
                self._leaves(write, write.nr_bytes)
                pool.leaving += write.leaving
                return write
            if visits <= 0:
                break
        return None

    def _coldest_blobs(
        self, group: Group, excess: int, nr: int, visits: int
    ) -> tuple[list[int], list[int], int]:
        """Return blobs of a group that may go, the length of each, and how many visits are left."""
        node = self._node
        mm, pool, vm = node.mm, node.zswap, node.vmstat
        pfns: list[int] = []
        lengths: list[int] = []
        nr_bytes = 0
        for pfn in pool.coldest(visits, group.index):
            if nr_bytes >= excess or len(pfns) >= nr or nr_bytes >= MAX_WRITE_BYTES:
                break
            visits -= 1
            length = len(mm.data.get(pfn, b""))
            if not length or mm.owner[pfn] or mm.refs[pfn]:
                continue
            if pool.second_chance(pfn, group.index):
                vm["zswap_second_chance"] += 1
                continue
            pfns.append(pfn)
            lengths.append(length)
            nr_bytes += length
        return pfns, lengths, visits

    def demote(self, device: SwapDevice, nr: int = SWAP_CLUSTER_MAX) -> StoreBatch | None:
        """Return a write to `device` of the coldest folios that stores hold within the budget.

        None where none is wanted, or the device is in the budget itself. The caller reads what the
        folios hold into `moved`, and gives up those that cannot be read with `cannot_move`.
        """
        node = self._node
        mm, demotion = node.mm, node.demotion
        if device.in_budget:
            return None
        for group, excess in self._who_gives(device, demotion.excess(), blobs=False):
            pfns: list[int] = []
            lengths: list[int] = []
            nr_bytes = charged = 0
            for pfn in demotion.coldest(MAX_VISITS, group.index):
                if charged >= excess or len(pfns) >= nr or nr_bytes >= MAX_WRITE_BYTES:
                    break
                if mm.owner[pfn] or mm.refs[pfn]:
                    continue
                pfns.append(pfn)
                lengths.append(mm.length[pfn])
                nr_bytes += mm.length[pfn]
                charged += mm.charge[pfn]
            write = self._write_of(device, group, pfns, lengths) if pfns else None
            if write is not None:
                write.blobs, write.moved = False, {}
                for pfn in write.pfns:
                    demotion.rotate(pfn)
                self._leaves(write, sum([mm.charge[pfn] for pfn in write.pfns]))
                demotion.leaving += write.leaving
                return write
        return None

    def cannot_move(self, pfn: int, write: StoreBatch) -> None:
        """A folio that was to move cannot be read, or is wanted where it is: it stays there."""
        if self._node.mm.owner[pfn] == write.id:
            self._node.mm.owner[pfn] = 0

    def _who_gives(
        self, device: SwapDevice, excess: int, *, blobs: bool
    ) -> Iterator[tuple[Group, int]]:
        """Yield the groups to take from, and the bytes: who is over a limit of his own, then all.

        Args:
            device: which is written to; who may not use it gives nothing.
            excess: bytes that the whole memory asks for.
            blobs: whether it is about blobs of the pool.
        """
        node = self._node
        asking: list[tuple[Group, int]] = []
        for group in node.groups.values():
            some = group.wanted + (group.pool_wanted if blobs else 0) - group.leaving
            if some > 0:
                asking.append((group, some))
        if excess > 0:
            asking.append((node.root, excess))
        for top, some in asking:
            for group in self._in_turn(top):
                if not group.swap_restricted or device.index not in closed_devices(group):
                    self._last = group.index
                    yield group, some

    def _in_turn(self, top: Group) -> list[Group]:
        """Return the groups of a tree, those behind the one that gave last first."""
        groups = sorted(top.subtree(), key=lambda group: group.index)
        return sorted(groups, key=lambda group: group.index <= self._last)

    def _leaves(self, write: StoreBatch, nr_bytes: int) -> None:
        write.leaving = nr_bytes
        for over in write.group.lineage:
            over.leaving += nr_bytes

    def _write_of(
        self, device: SwapDevice, group: Group, pfns: list[int], lengths: list[int]
    ) -> StoreBatch | None:
        """Return a write of as many of these folios as the device has slots for, None for none.

        The caller makes them the hottest, as in shrink_memcg_cb(): who looks next does not meet
        them first, and one that the store refuses is not tried again before the others.
        """
        node, pageout = self._node, self._pageout
        first = device.alloc(sum(map(pageout.nr_slots, lengths)))
        slots: list[Sequence[int]] = []
        if first is not None:
            slots += pageout.cut(first, lengths)
        else:
            for length in lengths:
                own = device.alloc_slots(pageout.nr_slots(length))
                if own is None:
                    node.swapcache.shed(device, pageout.nr_slots(length))
                    break
                slots.append(own)
        if not slots:
            return None
        node.writeback.write_begun(device.index)
        write = StoreBatch(node.new_id(), group, device.index, Reclaimer.KSWAPD, blobs=True)
        pageout.assign(write, pfns[: len(slots)], slots, lengths[: len(slots)])
        return write
