"""The budget: what is charged, and how much is free. Mirrors mm/memcontrol.c and page_counter.

`budget >= resident + compressed + overhead` holds at every instant: each change is checked here
before it is made. Room is reserved first (a reservation counts as resident) and spent later, in
one step. Only callers reserve; an actor never does. Where bytes are *freed*, `freed_total` grows; a
reservation that is given back was never more than set aside, and frees nothing. Either way there is
room: `on_room` is called, which wakes whoever waits for it. Nobody else writes these counters.

What a group is charged for, all groups are that it is in, up to the root (`ChildMemcg`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import attrs

from reclaimactors.errors import ProtocolViolation

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["FOLIO_OVERHEAD", "KEY_OVERHEAD", "ChildMemcg", "Memcg"]

# Measured with tests/bench/overhead.py: some 280 B a resident value, 260 to 290 B a compressed one,
# 190 to 240 B a swapped one, which is charged the same. A live key costs a key object of KEY_BYTES
# (what is beyond that is charged beside, see `mm.keys`) and half of its slot in the dict; a folio
# the rest: its columns, its slot in the dict of bytes, the
# header of its bytes object and the rounding of malloc.
KEY_OVERHEAD = 84
FOLIO_OVERHEAD = 204


def _nothing() -> None:
    """Nobody waits for room."""


@attrs.define(eq=False)
class Memcg:
    """Counters of one budget, in bytes."""

    budget: int
    resident: int = 0  #: source bytes in memory, in flight and reserved ones included
    compressed: int = 0  #: blobs in the zswap pool, and what in-process stores hold
    overhead: int = 0  #: a measured constant per live key and folio, and what long keys cost beside
    in_flight: int = 0  #: the part of `resident` that an actor owns for reclaim
    at_store: int = 0  #: the part of `in_flight` that a store is writing, or is to write
    reserved: int = 0  #: the part of `resident` that callers and faults have reserved
    pinned: int = 0  #: the part of `resident` that pins hold
    freed_total: int = 0  #: bytes given back since the start; only grows
    above: tuple[Memcg, ...] = attrs.field(init=False, default=(), repr=False)
    """the counters of the groups that it is in"""
    free: int = attrs.field(init=False)  #: bytes that nobody holds: what the watermarks look at
    on_room: Callable[[], None] = _nothing

    @property
    def compressing(self) -> int:
        """Bytes in flight that are queued to be compressed, or are being compressed."""
        return self.in_flight - self.at_store

    def __attrs_post_init__(self) -> None:
        self.free = self.budget - self.resident - self.compressed - self.overhead

    def adjust(self, resident: int = 0, compressed: int = 0, overhead: int = 0) -> None:
        """Change all three counters in one step.

        Raises:
            ProtocolViolation: if that would pass the budget; nothing is changed.
        """
        delta = resident + compressed + overhead
        if delta > 0:
            self.must_have(delta)
        self.charge(resident, compressed, overhead)

    def charge(self, resident: int, compressed: int = 0, overhead: int = 0) -> None:
        """Change all three counters in one step, where the caller has seen that there is room."""
        delta = resident + compressed + overhead
        self.resident += resident
        self.compressed += compressed
        self.overhead += overhead
        self.free -= delta
        if delta < 0:
            self.freed_total -= delta
            self.on_room()

    @property
    def room(self) -> int:
        """Bytes that may be charged: free here, and in every group that it is in."""
        return self.free

    def must_have(self, nr_bytes: int) -> None:
        """Check that so many bytes are free.

        Raises:
            ProtocolViolation: if they are not.
        """
        if nr_bytes > self.free:
            msg = f"a charge of {nr_bytes} B passes the budget: only {self.free} B are free"
            raise ProtocolViolation(msg)

    # -- reservations -----------------------------------------------------------------------------

    def reserve(self, nr_bytes: int) -> None:
        """Set bytes aside; they count as resident until `adjust` spends them."""
        if nr_bytes:
            self.adjust(resident=nr_bytes)
            self.reserved += nr_bytes

    def unreserve(self, nr_bytes: int) -> None:
        """Give a reservation back. That is room for whoever waits, but nothing was freed."""
        if nr_bytes:
            self.reserved -= nr_bytes
            self.resident -= nr_bytes
            self.free += nr_bytes
            self.on_room()

    def spend(
        self, reserved: int, *, resident: int = 0, compressed: int = 0, overhead: int = 0
    ) -> None:
        """Put charges in the place of a reservation, in one step.

        Raises:
            ProtocolViolation: as `adjust`, for what they are beyond the reservation.
        """
        self.adjust(resident - reserved, compressed, overhead)
        self.reserved -= reserved

    # -- parts of what is resident ----------------------------------------------------------------

    def isolated(self, nr_bytes: int) -> None:
        """So many bytes go into flight."""
        self.in_flight += nr_bytes

    def to_store(self, nr_bytes: int) -> None:
        """So many bytes in flight are given to a store."""
        self.at_store += nr_bytes

    def landed(self, nr_bytes: int, *, at_store: bool) -> None:
        """So many bytes are in flight no more, where a store had them or before that."""
        self.in_flight -= nr_bytes
        if at_store:
            self.at_store -= nr_bytes

    def pin(self, nr_bytes: int) -> None:
        """So many bytes are kept by pins."""
        self.pinned += nr_bytes

    def unpin(self, nr_bytes: int) -> None:
        """So many bytes are kept by pins no longer."""
        self.pinned -= nr_bytes

    def resize(self, budget: int) -> None:
        """Change the limit, to what is held or more.

        Raises:
            ProtocolViolation: if more is held.
        """
        held = self.budget - self.free
        if held > budget:
            raise ProtocolViolation(f"a limit of {budget} B, with {held} B held")
        self.budget, self.free = budget, budget - held

    def moved_up(self, resident: int, compressed: int, overhead: int) -> None:
        """What was charged for this group is for the one that it is in from now on."""
        Memcg.charge(self, -resident, -compressed, -overhead)

    def check(self) -> None:
        """Assert that the budget holds and that no part is larger than its whole."""
        assert self.free >= 0, f"{-self.free} B over the budget"
        assert self.free == self.budget - self.resident - self.compressed - self.overhead
        assert min(self.resident, self.compressed, self.overhead) >= 0
        assert 0 <= self.at_store <= self.in_flight
        assert self.reserved >= 0
        assert self.in_flight + self.reserved <= self.resident, "in flight bytes are resident"


class ChildMemcg(Memcg):
    """Counters of a group that is in another: each change is made in all of them, or in none.

    Args:
        budget: bytes; that of the root where it has no limit of its own, which then never binds.
        parent: the counters of the group that it is in.
    """

    def __init__(self, budget: int, parent: Memcg) -> None:
        super().__init__(budget)
        self._parent = parent
        self.above: tuple[Memcg, ...] = (parent, *parent.above)  #: up to the root's

    @property
    def room(self) -> int:
        """As `Memcg.room`."""
        return min([self.free, *[memcg.free for memcg in self.above]])

    def must_have(self, nr_bytes: int) -> None:
        """As `Memcg.must_have`, of this group and of those that it is in."""
        super().must_have(nr_bytes)
        self._parent.must_have(nr_bytes)

    def charge(self, resident: int, compressed: int = 0, overhead: int = 0) -> None:
        """As `Memcg.charge`; who waits for room is told once all of them are changed."""
        super().charge(resident, compressed, overhead)
        self._parent.charge(resident, compressed, overhead)

    def reserve(self, nr_bytes: int) -> None:
        """As `Memcg.reserve`."""
        super().reserve(nr_bytes)
        for memcg in self.above:
            memcg.reserved += nr_bytes

    def unreserve(self, nr_bytes: int) -> None:
        """As `Memcg.unreserve`."""
        super().unreserve(nr_bytes)
        self._parent.unreserve(nr_bytes)

    def spend(
        self, reserved: int, *, resident: int = 0, compressed: int = 0, overhead: int = 0
    ) -> None:
        """As `Memcg.spend`."""
        super().spend(reserved, resident=resident, compressed=compressed, overhead=overhead)
        for memcg in self.above:
            memcg.reserved -= reserved

    def isolated(self, nr_bytes: int) -> None:
        """As `Memcg.isolated`."""
        super().isolated(nr_bytes)
        self._parent.isolated(nr_bytes)

    def to_store(self, nr_bytes: int) -> None:
        """As `Memcg.to_store`."""
        super().to_store(nr_bytes)
        self._parent.to_store(nr_bytes)

    def landed(self, nr_bytes: int, *, at_store: bool) -> None:
        """As `Memcg.landed`."""
        super().landed(nr_bytes, at_store=at_store)
        self._parent.landed(nr_bytes, at_store=at_store)

    def pin(self, nr_bytes: int) -> None:
        """As `Memcg.pin`."""
        super().pin(nr_bytes)
        self._parent.pin(nr_bytes)

    def unpin(self, nr_bytes: int) -> None:
        """As `Memcg.unpin`."""
        super().unpin(nr_bytes)
        self._parent.unpin(nr_bytes)
