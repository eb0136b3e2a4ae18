"""A group: keys, lists, counters and limits of its own. Mirrors struct mem_cgroup, and its lruvec.

Groups are a tree whose root is the memory itself. Each folio is charged to one group
(`MemMap.group`), whose policy has it on its lists; a batch is of one group. The pool and the
devices are shared by all.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from reclaimactors.mm.limits import Limits, closed_devices, pool_left, swap_left
from reclaimactors.mm.scan import Scan
from reclaimactors.mm.unevictable import Unevictable
from reclaimactors.mm.values import Values
from reclaimactors.mm.vmstat import OF_GROUPS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from reclaimactors.abc import Policy
    from reclaimactors.mm.memcg import Memcg
    from reclaimactors.mm.node import Node
    from reclaimactors.mm.watermark import Watermarks

__all__ = ["Group"]


def _ignore() -> None:
    """Nobody listens."""


def _never(*_: object) -> bool:
    """Nobody may owe anything."""
    return False


class Group:
    """One group, or the root of them.

    Args:
        node: whose folios they are.
        memcg: what is charged to it.
        marks: where reclaim of it begins and ends.
        policy: which of its folios goes next.
        limits: beside the budget of `memcg`.
        parent: the group that it is in, None for the root.
        index: of its folios in `MemMap.group`.
        name: "" for the root.
    """

    nr_resident = 0
    """folios whose source bytes are in memory, those in flight included"""
    nr_in_flight = 0
    """folios in WRITEBACK"""
    swapped = 0
    """bytes that swap devices hold for its own folios"""
    gain = 0.5
    """share of a stolen byte that was really freed, recently"""
    freed_total = 0
    """bytes that reclaim has really freed since the start"""
    returned_total = 0
    """folios that reclaim had to give back since the start"""
    wanted = 0
    """bytes that are to go to devices though they are not resident (the root's: `Writeback`)"""
    pool_wanted = 0
    """bytes of blobs that are to go to devices because somebody asked for just that"""
    written_back = 0
    """bytes of blobs that have gone there since the start"""
    leaving = 0
    """those of them that are on their way there"""
    credit = 0
    """folios of its turns to be scanned, see `victims`"""

    def __init__(
        self,
        node: Node,
        memcg: Memcg,
        marks: Watermarks,
        policy: Policy,
        *,
        limits: Limits | None = None,
        parent: Group | None = None,
        index: int = 0,
        name: str = "",
    ) -> None:
        self.node = node
        self.memcg = memcg
        self.limits = Limits() if limits is None else limits
        self.policy = policy
        self.index = index
        self.name = name
        self.parent = parent
        self.children: dict[str, Group] = {}
        self.lineage: tuple[Group, ...] = (self, *(parent.lineage if parent else ()))
        """itself, the group that it is in, ... the root"""
        self.marks = marks
        self.pool_restricted = self.swap_restricted = False
        self.note_limits()
        self.counted = self.lineage[:-1]
        """those of its lineage that count by themselves what happens to it: all but the root"""
        self.stat: dict[str, int] = dict.fromkeys(OF_GROUPS, 0)
        """what happened to it and to the groups in it, where it is not the root"""
        self.on_wake: Callable[[], None] = _ignore
        """reclaim of it is wanted"""
        self.lets: Callable[[int, int, int], bool] = _never
        """whether a put may go on below *low*, and owes for that (`Brake.lets`)"""
        self.unevictable = Unevictable(self)
        """resident folios that do not compress, while no store can take them"""
        self.scan = Scan(self)
        """what reclaim has looked at since it last freed a byte"""
        self.looked = self.scan.looked
        """the pfns of that, for the path of a put"""
        self.values = Values(self)
        """keys, and what they stand for"""

    def __repr__(self) -> str:
        return f"<group {self.name or 'root'}>"

    def limit(self, limits: Limits, marks: Watermarks) -> None:
        """Change its limits, and where reclaim of it begins and ends; `Memcg.resize` is beside."""
        self.limits = limits
        self.marks = marks
        for group in self.subtree():
            group.note_limits()

    def note_limits(self) -> None:
        """Look at which limits hold for it."""
        self.pool_restricted = any(each.limits.zswap_max is not None for each in self.lineage)
        self.swap_restricted = any(each.limits.on_devices for each in self.lineage)

    def subtree(self) -> Iterator[Group]:
        """Yield this group, and those in it."""
        yield self
        for child in self.children.values():
            yield from child.subtree()

    def count(self, name: str, nr: int = 1) -> None:
        """Count so many of what happened, in it and in all groups that it is in."""
        for group in self.counted:
            group.stat[name] += nr

    # -- room -------------------------------------------------------------------------------------

    def room_above_low(self) -> int:
        """Return the bytes that may be put while free memory stays at *low* or above."""
        return min([level.memcg.free - level.marks.low for level in self.lineage])

    def has_headroom(self, nr_bytes: int) -> bool:
        """Return whether free memory stays at *low* or above with so many bytes more.

        Where it does not, reclaim is woken.
        """
        if self.index == 0:  # the loop would cost a fault a twentieth
            if self.memcg.free - nr_bytes >= self.marks.low:
                return True
            self.on_wake()
            return False
        for level in self.lineage:
            if level.memcg.free - nr_bytes < level.marks.low:
                level.on_wake()
                return False
        return True

    # -- reclaim ----------------------------------------------------------------------------------

    @property
    def lazy_overhead(self) -> int:
        """Bytes of overhead that go with the discardable values in it, if reclaim drops them."""
        return sum([group.values.lazy.overhead for group in self.subtree()])

    @property
    def nr_evictable(self) -> int:
        """Folios of its own that are on its policy's lists."""
        return self.nr_resident - self.nr_in_flight - len(self.unevictable)

    def victims(self) -> list[Group]:
        """Return the groups to reclaim from, this one or in it, in the order in which to try them.

        Mirrors the walk of shrink_node_memcgs(), and its soft limits: who is above his `high` by
        most goes first; among the others each has as many turns as he has folios.
        """
        if not self.children:
            return [self]
        groups = [group for group in self.subtree() if group.nr_resident]
        total = sum([group.nr_evictable for group in groups])
        for group in groups:
            group.credit = min(total, group.credit + group.nr_evictable)
        groups.sort(key=lambda group: (group.above_high, group.credit), reverse=True)
        if groups:
            groups[0].credit = max(-total, groups[0].credit - total)
        return groups

    @property
    def above_high(self) -> int:
        """Bytes by which it, or a group that it is in, is above its `high`."""
        above = 0
        for level in self.lineage:
            if level.limits.high is not None:
                used = level.memcg.budget - level.memcg.free
                above = max(above, used - level.limits.high)
        return above

    # -- the pool and the devices -----------------------------------------------------------------

    @property
    def pool_bytes(self) -> int:
        """Bytes of its blobs in the pool, and of those of the groups in it."""
        held = self.node.zswap.held
        return sum([held[group.index] for group in self.subtree()])

    @property
    def pool_accepts(self) -> bool:
        """Whether the pool takes a blob of it now."""
        accepts = self.node.zswap.accepts()
        return accepts and (not self.pool_restricted or pool_left(self) > 0)

    @property
    def may_swap(self) -> bool:
        """Whether its limits let any of it go to a device."""
        return not self.swap_restricted or swap_left(self) > 0

    @property
    def swap_ready(self) -> bool:
        """Whether a device that it may use takes what does not compress."""
        swap = self.node.swap
        return swap.is_ready(closed_devices(self)) if self.swap_restricted else swap.ready

    @property
    def swap_has_room(self) -> bool:
        """Whether a device in service that it may use has a free slot."""
        swap = self.node.swap
        return swap.with_room(closed_devices(self)) if self.swap_restricted else swap.has_room

    def shrink_pool(self) -> None:
        """The pool takes no more of it: where that is for a limit, its coldest blobs are to go.

        They go down to the share of the limit at which the pool as a whole accepts again.
        """
        zswap = self.node.zswap
        for over in self.lineage:
            most = over.limits.zswap_max
            if most is not None and over.pool_bytes >= most and self.swap_has_room:
                least = most * zswap.accept_below // max(1, zswap.limit)
                over.wanted = max(over.wanted, over.pool_bytes - least, 1)
                self.node.on_pool_full()
