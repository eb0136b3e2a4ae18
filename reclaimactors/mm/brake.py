"""The brake between *low* and *min*: a debt that reclaim pays.

Free memory at or above *low*: nobody owes anything. Below, a put of `size` bytes adds
``size x (low - free) / (low - min)`` to the debt, and each byte that reclaim frees pays one. A
caller waits only once the debt passes an allowance: a worker's batch at *low*, nothing at *min*. So
it is work that is waited for, never time: who owes next to nothing waits next to nothing, an idle
machine never brakes, and a slow one brakes harder. (The kernel has no such slope; its allocators
fall from the fast path straight into direct reclaim. The slope keeps a burst from getting there.)
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from reclaimactors.mm.ledger import Ledger
    from reclaimactors.mm.node import Node

__all__ = ["Brake"]


class Brake:
    """What callers owe to one node, in bytes.

    Args:
        node: whose free memory it looks at.
        ledger: whose freed bytes pay.
        batch: bytes that a worker takes at a time: the allowance at *low*.
    """

    def __init__(self, node: Node, ledger: Ledger, *, batch: int) -> None:
        self._node = node
        self._ledger = ledger
        self._batch = batch
        self.debt = 0
        self.waiting = 0  #: callers who wait in it: who comes later waits behind them
        self._paid = ledger.freed_total

    def owe(self, size: int) -> None:
        """A put of `size` bytes has reserved its room; free memory is as it will be after it."""
        self._settle()
        self.debt += self._node.marks.brake(self._node.memcg.free, size)

    def lets(self, size: int, free: int, need: int) -> bool:
        """Let a put of `size` bytes go on at once if it needs not wait; then it owes for that.

        The sums are those of `owe` and `holds`, written out: each put under pressure comes by here.

        Args:
            size: bytes.
            free: free memory after the put, below *low*, in bytes.
            need: bytes that the put takes of it.

        Returns:
            False where the caller has to wait or to reclaim for itself.
        """
        marks = self._node.marks
        if self.waiting or free < marks.min:
            return False
        freed = self._ledger.freed_total
        debt = self.debt - freed + self._paid
        if debt < 0 or free + need >= marks.low:
            debt = 0
        self._paid = freed
        band = marks.low - marks.min
        owes = debt + size * (marks.low - free) // band
        if owes > self._batch * (free - marks.min) // band:
            self.debt = debt
            return False
        self.debt = owes
        return True

    def forgive(self) -> None:
        """Nobody is at work who could pay."""
        self._settle()
        self.debt = 0

    @property
    def holds(self) -> bool:
        """Whether the next caller is to wait."""
        self._settle()
        return self.debt > self._allowance(self._node.memcg.free)

    def _settle(self) -> None:
        """Pay with what reclaim has freed; at *low* nobody owes anything."""
        freed = self._ledger.freed_total
        self.debt = max(0, self.debt - (freed - self._paid))
        self._paid = freed
        if self._node.memcg.free >= self._node.marks.low:
            self.debt = 0

    def _allowance(self, free: int) -> int:
        marks = self._node.marks
        above = min(marks.low, max(marks.min, free)) - marks.min
        return self._batch * above // (marks.low - marks.min)
