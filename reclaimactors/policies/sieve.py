"""SIEVE: one queue and a hand (Zhang et al., NSDI 2024).

Theory. New folios join the hot end of a queue. A read only marks its folio. The hand walks from the
cold end to the hot end, and from there to the cold end again: it clears a mark and leaves that
folio where it is, and takes the first folio without one. So what is new and was not read goes
early, while what is read stays where it is, behind the hand, for a whole round.

The queue is kept as two lists, cut at the hand: `ahead`, from the hand to the hot end, and what is
behind it. Where `ahead` is used up, the hand starts anew at the cold end: the two change names.

Cost. A hit writes one byte. A mark is cleared by the hand that meets it, so the walk is paid for by
hits; one `isolate` looks at `SCAN_MAX` folios at most (about a millisecond), and where all of those
were marked, it takes the next ones all the same.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from reclaimactors.abc import Verdict
from reclaimactors.errors import ProtocolViolation
from reclaimactors.mm.links import Links

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["SCAN_MAX", "Sieve"]

SCAN_MAX = 2048
"""Folios that one `isolate` looks at, whatever it finds."""

_ISOLATED, _GONE = 2, 3  # beside the numbers of both lists


class Sieve:
    """One queue, a mark for each folio, and a hand."""

    __slots__ = ("_ahead", "_lists", "_marked", "_where")

    def __init__(self) -> None:
        self._lists = Links(2)
        self._ahead = 0  # the list from the hand to the hot end
        self._where = bytearray()  # by pfn: the list it is on, _ISOLATED or _GONE
        self._marked = bytearray()  # by pfn: read since the hand last met it

    def insert(self, pfn: int, *, refault: int | None) -> None:  # noqa: ARG002 - it has no ghosts
        """Put a folio at the hot end."""
        if pfn >= len(self._where):
            extra = pfn + 1 + pfn // 8 - len(self._where)
            self._where.extend(bytes([_GONE]) * extra)
            self._marked.extend(bytes(extra))
        elif self._where[pfn] != _GONE:
            raise ProtocolViolation(f"insert of pfn {pfn}, which is resident already")
        self._marked[pfn] = 0
        ahead = self._at_hand()
        self._where[pfn] = ahead
        self._lists.add_tail(ahead, pfn)

    def access(self, pfn: int) -> None:
        """Mark a folio; the hand acts on it."""
        self._marked[pfn] = 1

    def remove(self, pfn: int) -> None:
        """Forget a folio wherever it is."""
        self._unlist(pfn)
        self._where[pfn] = _GONE

    def isolate(self, nr: int) -> list[int]:
        """Take up to `nr` folios that the hand meets without a mark."""
        taken: list[int] = []
        left = SCAN_MAX
        while (missing := min(nr - len(taken), left)) > 0 and self._lists.sizes[self._at_hand()]:
            found, marked = self._lists.split(self._ahead, missing, self._marked, 0, left)
            left -= len(found) + len(marked)
            self._pass(marked)
            taken += found
        taken = taken or self._lists.pop_many(self._at_hand(), nr)
        for pfn in taken:
            self._where[pfn] = _ISOLATED
        return taken

    def putback(self, pfns: Sequence[int], verdict: Verdict) -> None:
        """Return isolated folios: with KEEP the hand meets them next, else in a whole round."""
        for pfn in pfns:
            if self._where[pfn] != _ISOLATED:
                raise ProtocolViolation(f"verdict for pfn {pfn}, which is not isolated")
        if verdict is not Verdict.KEEP:
            self._pass(pfns)
            return
        for pfn in reversed(pfns):
            self._put_at_hand(pfn)

    def shadow(self, pfn: int) -> int:
        """Let an isolated folio go. Nothing of it is remembered."""
        if self._where[pfn] != _ISOLATED:
            raise ProtocolViolation(f"shadow of pfn {pfn}, which is not isolated")
        self._where[pfn] = _GONE
        return 0

    def age(self, now: float) -> None:
        """Do nothing: its clock is the hand."""

    def deactivate(self, pfn: int) -> None:
        """Have the hand meet a folio on the lists next, its mark cleared (MADV_COLD)."""
        if self._unlist(pfn):
            self._marked[pfn] = 0
            self._put_at_hand(pfn)

    def check(self) -> None:
        """Assert that lists and columns say the same."""
        self._lists.check()
        for head, size in enumerate(self._lists.sizes):
            assert all(self._where[pfn] == head for pfn in self._lists.walk(head))
            assert self._where.count(head) == size, f"list {head} has lost a folio"

    def _at_hand(self) -> int:
        """Return the list that begins at the hand, which is empty only where both are."""
        if not self._lists.sizes[self._ahead]:
            self._ahead = 1 - self._ahead
        return self._ahead

    def _put_at_hand(self, pfn: int) -> None:
        self._where[pfn] = ahead = self._at_hand()
        self._lists.add_head(ahead, pfn)

    def _pass(self, pfns: Sequence[int]) -> None:
        """Put folios behind the hand, their marks cleared."""
        behind = 1 - self._ahead
        for pfn in pfns:
            self._marked[pfn] = 0
            self._where[pfn] = behind
        self._lists.extend_tail(behind, pfns)

    def _unlist(self, pfn: int) -> bool:
        """Take a folio off the list that it is on; return whether it was on one."""
        listed = self._where[pfn] < _ISOLATED
        if listed:
            self._lists.remove(self._where[pfn], pfn)
        return listed
