"""A group: keys, lists and counters of its own. Mirrors struct mem_cgroup, and its lruvec.

Groups are a tree whose root is the memory itself. Each folio is charged to one group
(`MemMap.group`), whose policy has it on its lists; a batch is of one group. The pool and the
devices are shared by all.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from reclaimactors.mm.scan import Scan
from reclaimactors.mm.unevictable import Unevictable
from reclaimactors.mm.values import Values

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
    """

    def __init__(self, node: Node, memcg: Memcg, marks: Watermarks, policy: Policy) -> None:
        self.node = node
        self.memcg = memcg
        self.marks = marks
        self.policy = policy
        self.name = ""  #: "tenants/a", say; "" of the root
        self.index = 0  #: of its folios in `MemMap.group`
        self.lineage: tuple[Group, ...] = (self,)  #: itself, the group it is in, ... the root
        self.nr_resident = 0
        """folios whose source bytes are in memory, those in flight included"""
        self.nr_in_flight = 0
        """folios in WRITEBACK"""
        self.gain = 0.5
        """share of a stolen byte that was really freed, recently"""
        self.freed_total = 0
        """bytes that reclaim has really freed since the start"""
        self.returned_total = 0
        """folios that reclaim had to give back since the start"""
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

    def has_headroom(self, nr_bytes: int) -> bool:
        """Return whether free memory stays at *low* or above with so many bytes more.

        Where it does not, reclaim is woken.
        """
        for group in self.lineage:
            if group.memcg.free - nr_bytes < group.marks.low:
                group.on_wake()
                return False
        return True

    def subtree(self) -> Iterator[Group]:
        """Yield this group, and those in it."""
        yield self
