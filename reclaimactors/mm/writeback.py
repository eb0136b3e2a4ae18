"""What is to go to devices although it is not resident, and what is on its way there.

Where nothing resident is left to reclaim, blobs of the pool and folios of stores in the budget are
asked for. That is pending progress until a swapd has done it, or none of them can.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from reclaimactors.mm.group import Group
    from reclaimactors.mm.node import Node

__all__ = ["Writeback"]


class Writeback:
    """What one node wants written, and awaits."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self.unwilling: set[int] = set()  #: devices that can take no more of what is wanted
        self.nr_writes = 0  #: store batches that have not had their verdict

    def awaits(self, *, of_late: bool) -> bool:
        """Return whether something on its way may yet free memory, so that it is waited for.

        What a store has that is late counts only if `of_late`, and not where it is lost.
        """
        pending = self._node.memcg.compressing or self.wanted
        return bool(pending) or self.awaits_writes(of_late=of_late)

    def awaits_of(self, group: Group, *, of_late: bool) -> bool:
        """Return the same of what may free memory of one group."""
        if group.parent is None:
            return self.awaits(of_late=of_late)
        pending = group.memcg.compressing or group.wanted
        return pending > 0 or self.awaits_writes_of(group, of_late=of_late)

    def wanted_of(self, group: Group) -> int:
        """Return `wanted` of one group."""
        return self.wanted if group.parent is None else group.wanted

    def awaits_writes_of(self, group: Group, *, of_late: bool) -> bool:
        """Return whether stores are writing, or are to write, something of one group."""
        its_own = group.parent is None or group.memcg.at_store or group.leaving
        return bool(its_own) and self.awaits_writes(of_late=of_late)

    @property
    def awaits_slots(self) -> bool:
        """Whether a store that answers is to forget slots, which can be handed out then."""
        return any(
            (device.stale or device.forgetting) and not (device.late or device.down)
            for device in self._node.swap
        )

    def awaits_writes(self, *, of_late: bool) -> bool:
        """Return the same of what stores are writing, or are to write."""
        return any(
            device.writes and not (device.late and (device.lost or not of_late))
            for device in self._node.swap
        )

    @property
    def wanted(self) -> int:
        """Bytes of the budget that reclaim wants written to devices, though they are not resident.

        That is pending progress until a swapd has done it, or none of them can.
        """
        return self._node.zswap.wanted + self._node.demotion.wanted

    @property
    def asked(self) -> bool:
        """Whether anything is wanted written, for the whole memory or for one of its groups."""
        if self.wanted:
            return True
        groups = self._node.groups.values()
        return any(group.wanted or group.pool_wanted for group in groups)

    def want(self, at_least: int = 0) -> None:
        """Nothing resident is left to reclaim: ask for what else is held to go to a device instead.

        First come the folios of stores in the budget, then cold blobs of the pool. The latter
        mirrors zswap's dynamic shrinker, which memory pressure drives whether the pool is full or
        not; `Zswap.freeable` says how much it may take.

        Args:
            at_least: bytes, for a caller who needs more than brings free memory to *high*.
        """
        pool, demotion = self._node.zswap, self._node.demotion
        if not self.wanted and not self._node.scan.ask(at_least):
            return
        short = max(at_least, self._node.marks.high - self._node.memcg.free)
        if short <= 0 or not self._node.swap.has_room:
            return
        if not self.wanted:
            self.unwilling.clear()
        demotion.wanted = min(short, demotion.held) if demotion.outside_has_room else 0
        rest = short - demotion.wanted
        if pool.shrinker and len(pool) and rest:
            pool.wanted = min(rest, pool.wanted or pool.freeable())
        else:
            pool.wanted = 0
        if self.wanted:
            self._node.on_pool_full()

    def want_of(self, group: Group, at_least: int = 0) -> None:
        """As `want`, of one group: as much as brings its own free memory to *high*.

        All that it has in the pool may go, that of the groups in it as well.
        """
        if group.parent is None:
            self.want(at_least)
            return
        if not group.wanted and not group.scan.ask(at_least):
            return
        short = max(at_least, group.marks.high - group.memcg.free)
        if short <= 0 or not self.may(group):
            return
        self.unwilling.clear()
        group.wanted = min(short, group.memcg.compressed)
        self._node.on_pool_full()

    def want_blobs(self, group: Group, nr_bytes: int) -> bool:
        """Ask for so many bytes more of a group's blobs, and nothing else, to go to devices.

        Returns:
            Whether any may.
        """
        if not (group.swap_has_room and group.pool_bytes):
            return False
        self.unwilling.clear()
        group.pool_wanted = min(group.pool_wanted + nr_bytes, group.pool_bytes)
        self._node.on_pool_full()
        return True

    def may(self, group: Group) -> bool:
        """Return whether what is held of a group, and not resident, may go to a store with room."""
        if not group.swap_has_room:
            return False
        pool, demotion = self._node.zswap, self._node.demotion
        in_pool = group.pool_bytes if pool.shrinker else 0
        in_stores = group.memcg.compressed - group.pool_bytes
        return in_pool > 0 or (in_stores > 0 and demotion.outside_has_room)

    def cannot(self, device: int) -> None:
        """A device can take no more of what is wanted; once none can, nothing is pending."""
        self.unwilling.add(device)
        self._nobody()

    def device_left(self, device: int) -> None:
        """A device is swapped off: what it was asked for may be nobody's work now."""
        self.unwilling.discard(device)
        self._nobody()

    def write_begun(self, device: int) -> None:
        """A write to a store is on its way."""
        self.nr_writes += 1
        self._node.swap[device].writes += 1

    def write_ended(self, device: int) -> None:
        """A write to a store has its verdict."""
        self.nr_writes -= 1
        self._node.swap[device].writes -= 1
        self._nobody()

    def _nobody(self) -> None:
        """Nothing is pending once no device can take what is wanted, and no write is on its way.

        What a late store has on its way does not count.
        """
        if self.asked and not self.awaits_writes(of_late=False):
            others = [other for other in self._node.swap if other.index not in self.unwilling]
            if not any(other.takes_writes for other in others):
                self._node.zswap.wanted = self._node.demotion.wanted = 0
                for group in self._node.groups.values():
                    group.wanted = group.pool_wanted = 0
