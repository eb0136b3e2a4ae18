"""One node: the mem_map, the keys, the budget, the pool, the devices. Mirrors struct pglist_data.

This module holds the state that the others share. What keys do is in `values`, slots of folios in
`swap_slots`, reclaim in `swapout`, writes to devices in `pageout` and what is awaited of them in
`writeback`, faults in `swapin`, how much and when in `vmscan`.

The budget holds; each folio is in exactly one place (the policy's lists, a batch, the pool, a
device, dead); what is charged is what is there; every folio that was isolated has had one verdict
or is in flight (I1): `invariants` asserts it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from reclaimactors.errors import OutOfMemory
from reclaimactors.mm import invariants
from reclaimactors.mm.demotion import Demotion
from reclaimactors.mm.ending import end_all, undo
from reclaimactors.mm.folio import (
    DEAD,
    RESIDENT,
    WRITEBACK,
    MemMap,
)
from reclaimactors.mm.group import Group
from reclaimactors.mm.lethal import Lethal
from reclaimactors.mm.memcg import FOLIO_OVERHEAD, ChildMemcg, Memcg
from reclaimactors.mm.swap_slots import SwapSlots
from reclaimactors.mm.swap_state import SwapCache
from reclaimactors.mm.vmstat import Vmstat
from reclaimactors.mm.writeback import Writeback
from reclaimactors.mm.zswap import MAX_GROUPS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from reclaimactors.abc import Compressor, Policy
    from reclaimactors.mm.limits import Limits
    from reclaimactors.mm.scan import Scan
    from reclaimactors.mm.swap import SwapDevices
    from reclaimactors.mm.values import Values
    from reclaimactors.mm.watermark import Watermarks
    from reclaimactors.mm.zswap import Zswap

__all__ = ["Node"]


def _ignore(*_: object) -> None:
    """Nobody listens."""


class Node:
    """Shared state of the mm core; not for use from more than one thread.

    Args:
        page_size: bytes.
        memcg: the counters of the whole memory.
        marks: where reclaim of it begins and ends.
        policy: of the root group.
        zswap: the pool.
        swap: the devices.
        compressor: expands what the pool and the devices hold.
        vmstat: counts what happens.
    """

    def __init__(
        self,
        *,
        page_size: int,
        memcg: Memcg,
        marks: Watermarks,
        policy: Policy,
        zswap: Zswap,
        swap: SwapDevices,
        compressor: Compressor,
        vmstat: Vmstat | None = None,
    ) -> None:
        self.page_size = page_size
        self.memcg = memcg
        self.zswap = zswap
        self.swap = swap
        self.compressor = compressor
        self.vmstat = Vmstat() if vmstat is None else vmstat
        self.mm = MemMap()
        self.pins: dict[int, int] = {}
        """pfn -> how many views are open on it"""
        self.nr_dead = 0
        """folios whose key is gone, and that somebody still holds"""
        self.slots = SwapSlots(self)
        """what swap devices hold for folios"""
        self.writeback = Writeback(self)
        """what is to go to devices although it is not resident"""
        self.swapcache = SwapCache(self)
        """resident folios that still have their slots"""
        self.lethal = Lethal(page_size)
        """pages that killed workers"""
        self.demotion = Demotion(self)
        """folios that stores hold within the budget"""
        self.on_stale: Callable[[int], None] = _ignore
        """a device has slots to forget"""
        self.let_go: Callable[[list[bytes]], None] = _ignore
        """the bytes of a large value are to be freed in slices"""
        self.on_pool_full: Callable[[], None] = _ignore
        """the pool wants its coldest blobs written back"""
        self._next_id = 1
        self.root = Group(self, memcg, marks, policy)
        self.groups: dict[int, Group] = {0: self.root}
        """by what `MemMap.group` says"""

    # -- groups -----------------------------------------------------------------------------------

    def group_of(self, pfn: int) -> Group:
        """Return the group that a folio is charged to."""
        return self.groups[self.mm.group[pfn]]

    def add_group(
        self, name: str, parent: Group, policy: Policy, limits: Limits, marks: Watermarks
    ) -> Group:
        """Return a new group in `parent`, and give it a place in the tree.

        Raises:
            OutOfMemory: if there are as many groups as there may be.
        """
        index = next((nr for nr in range(1, MAX_GROUPS) if nr not in self.groups), None)
        if index is None:
            raise OutOfMemory(f"{MAX_GROUPS - 1} groups are as many as there may be; delete some")
        budget = self.memcg.budget if limits.max is None else limits.max
        memcg = ChildMemcg(budget, parent.memcg)
        path = f"{parent.name}/{name}" if parent.name else name
        group = Group(self, memcg, marks, policy, limits=limits, parent=parent, index=index,
                      name=path)  # fmt: skip
        # A change makes new ones: another thread may be going through the old ones.
        parent.children = {**parent.children, name: group}
        self.groups = {**self.groups, index: group}
        return group

    @property
    def values(self) -> Values:
        """The keys of the root."""
        return self.root.values

    @property
    def scan(self) -> Scan:
        """What reclaim of the whole memory has looked at since it last freed a byte."""
        return self.root.scan

    @property
    def marks(self) -> Watermarks:
        """The watermarks of the whole memory."""
        return self.root.marks

    @property
    def nr_resident(self) -> int:
        """Folios whose source bytes are in memory, those in flight included."""
        return sum([group.nr_resident for group in self.groups.values()])

    @property
    def nr_in_flight(self) -> int:
        """Folios in WRITEBACK."""
        return sum([group.nr_in_flight for group in self.groups.values()])

    # -- folios -----------------------------------------------------------------------------------

    def new_id(self) -> int:
        """Return an id for a batch, never used before."""
        self._next_id += 1
        return self._next_id - 1

    def refaulted(self, pfn: int, group: Group) -> bool | None:
        """Tell the policy that a reclaimed folio becomes resident, before anything is changed.

        On failure it stays reclaimed, and comes back as a new one later.
        """
        shadow = self.mm.shadow[pfn]
        try:
            return group.policy.insert(pfn, refault=None if shadow < 0 else shadow)
        except BaseException as exc:
            undo(exc, self.relist, (pfn,))
            raise

    def relist(self, pfns: Sequence[int]) -> None:
        """After the policy raised, nobody knows how far it came: these folios are new to it.

        It forgets each, wherever it has it, and gets those back whose bytes are in memory.
        """
        end_all(pfns, self._relist)

    def _relist(self, pfn: int) -> None:
        self.mm.shadow[pfn] = -1
        policy = self.group_of(pfn).policy
        try:
            policy.remove(pfn)
        finally:
            if self.mm.state[pfn] in {RESIDENT, WRITEBACK}:
                policy.insert(pfn, refault=None)

    def disown(self, pfn: int) -> None:
        """Take a folio away from the batch that reclaims it: that is its verdict, CANCELLED."""
        mm = self.mm
        mm.owner[pfn] = 0
        mm.state[pfn] = RESIDENT
        self.left_flight(pfn)
        self.group_of(pfn).nr_in_flight -= 1
        self.vmstat["reclaim_cancelled"] += 1

    def left_flight(self, pfn: int) -> None:
        """A folio is not on its way out any more: take its bytes off the accounts of flight."""
        mm, size = self.mm, self.mm.size[pfn]
        self.group_of(pfn).memcg.landed(size, at_store=mm.at_store[pfn] > 0)
        mm.at_store[pfn] = 0

    def pages(self, pfns: Iterable[int]) -> int:
        """Return the base pages of these folios."""
        size, page = self.mm.size, self.page_size
        return sum([1 if size[pfn] <= page else -(-size[pfn] // page) for pfn in pfns])

    def hold(self, pfn: int) -> None:
        """Take a ref: the bytes, or the slot, stay as they are until `release`."""
        self.mm.refs[pfn] += 1

    def release(self, pfn: int) -> None:
        """Give a ref back; the last one frees a folio whose key is gone."""
        mm = self.mm
        mm.refs[pfn] -= 1
        if mm.refs[pfn] or mm.state[pfn] != DEAD:
            return
        data = mm.data.get(pfn)
        held = len(data) if data is not None else 0
        compressed = 0
        if data is None:
            self.slots.release(pfn)
            compressed = mm.charge[pfn]
        memcg = self.group_of(pfn).memcg
        mm.free(pfn)
        self.nr_dead -= 1
        memcg.adjust(-held, -compressed, -FOLIO_OVERHEAD)

    @property
    def nr_leaving(self) -> int:
        """Folios whose key is gone, and that a worker or a store still has: not those of pins."""
        mm, pins = self.mm, self.pins.items() if self.nr_dead else ()
        pinned = [pfn for pfn, views in pins if mm.state[pfn] == DEAD and mm.refs[pfn] == views]
        return self.nr_dead - len(pinned)

    def device_of(self, pfn: int) -> int:
        """Return the index of the swap device that has, or last had, a folio."""
        return self.mm.device[pfn]

    def pin(self, pfn: int) -> None:
        """Keep a resident folio where it is, and its bytes even after its key is gone."""
        if self.pins.get(pfn, 0) == 0:
            self.group_of(pfn).memcg.pin(self.mm.size[pfn])
        self.pins[pfn] = self.pins.get(pfn, 0) + 1
        self.hold(pfn)

    def unpin(self, pfn: int) -> None:
        """Undo one `pin`."""
        self.pins[pfn] -= 1
        if not self.pins[pfn]:
            del self.pins[pfn]
            self.group_of(pfn).memcg.unpin(self.mm.size[pfn])
        self.release(pfn)

    def levels(self) -> dict[str, int]:
        """Return those counters that are levels, as of now."""
        return {
            "pool_total_size": self.zswap.total,
            "stored_pages": self.zswap.pages,
            "nr_swapcached": self.swapcache.pages,
            "nr_unevictable": sum([group.unevictable.pages for group in self.groups.values()]),
            "nr_writeback": -(-self.memcg.in_flight // self.page_size),
        }

    def gauges(self) -> Vmstat:
        """Return the counters, with those that are levels brought up to date."""
        self.vmstat.update(self.levels())
        return self.vmstat

    @property
    def idle(self) -> bool:
        """Whether no folio, write or slot is on its way anywhere."""
        return not (
            self.nr_in_flight
            or self.writeback.nr_writes
            or self.writeback.asked
            or any(device.stale or device.forgetting for device in self.swap)
        )

    def check(self) -> bool:
        """Assert every invariant of the core; returns True. O(everything): for tests."""
        return invariants.check(self)
