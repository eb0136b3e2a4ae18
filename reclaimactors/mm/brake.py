"""The brake between *low* and *min*: a debt that reclaim pays.

Free memory at or above *low*: nobody owes anything. Below, a put of `size` bytes adds
``size x (low - free) / (low - min)`` to the debt, and each byte that reclaim frees pays one. A
caller waits only once the debt passes an allowance: a worker's batch at *low*, nothing at *min*. So
it is work that is waited for, never time: who owes next to nothing waits next to nothing, an idle
machine never brakes, and a slow one brakes harder. (The kernel has no such slope; its allocators
fall from the fast path straight into direct reclaim. The slope keeps a burst from getting there.)

A caller who has to wait is told how many bytes must be freed first, counted since the start: what
was owed before him and his own share, less the allowance. What others owe after him does not hold
him up. Who comes while others wait, waits behind them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from reclaimactors.mm.group import Group

__all__ = ["Brake"]


class Brake:
    """What callers owe to one group, in bytes.

    Args:
        group: whose free memory it looks at, and whose freed bytes pay.
        batch: bytes that a worker takes at a time: the allowance at *low*.
        on: False for the kernel's rule: nobody owes anything above *min*.
    """

    def __init__(self, group: Group, *, batch: int, on: bool = True) -> None:
        self._group = group
        self._batch = batch
        self._on = on
        self._due = 0  # bytes freed since the start, at which nobody owes anything
        self.waiting = 0  #: callers who wait in it: who comes later waits behind them

    @property
    def debt(self) -> int:
        """Bytes that are owed now; at *low* none are."""
        if self._group.memcg.free >= self._group.marks.low:
            return 0
        return max(0, self._due - self._group.freed_total)

    def owe(self, size: int) -> int:
        """A put of `size` bytes has reserved its room; free memory is as it will be after it.

        Returns:
            What `paid` is to be asked about: bytes freed since the start.
        """
        free, freed = self._group.memcg.free, self._group.freed_total
        if not self._on or free >= self._group.marks.low:
            self.forgive()
            return freed
        self._due = max(self._due, freed) + self._group.marks.brake(free, size)
        return self._due - self._allowance(free)

    def paid(self, mark: int) -> bool:
        """Whether the caller whom `owe` told this `mark` may go on."""
        if self._group.freed_total >= mark:
            return True
        return self._group.memcg.free >= self._group.marks.low

    def lets(self, size: int, free: int, need: int) -> bool:
        """Let a put of `size` bytes go on at once if it needs not wait; then it owes for that.

        The sums are those of `owe` and `paid`, written out: each put under pressure comes by here.

        Args:
            size: bytes.
            free: free memory after the put, below *low*, in bytes.
            need: bytes that the put takes of it.

        Returns:
            False where the caller has to wait or to reclaim for itself.
        """
        marks = self._group.marks
        if self.waiting or free < marks.min:
            return False
        if not self._on:
            return True
        freed = self._group.freed_total
        due = self._due
        if due < freed or free + need >= marks.low:
            due = freed
        band = marks.low - marks.min
        due += size * (marks.low - free) // band
        if due - freed > self._batch * (free - marks.min) // band:
            return False
        self._due = due
        return True

    def forgive(self) -> None:
        """Nobody owes anything: memory is at *low*, or nobody is at work who could pay."""
        self._due = self._group.freed_total

    def _allowance(self, free: int) -> int:
        marks = self._group.marks
        above = min(marks.low, max(marks.min, free)) - marks.min
        return self._batch * above // (marks.low - marks.min)
