"""A swap device: which slots of a backing store a folio gets.

Covers the swap map of the kernel's mm/swapfile.c, and a device taken out of service. What
a slot holds is known to `page_io` and `zswap`; reading and writing it is the actors' work.

Theory. A slot is free, used or set aside, one byte each in a map that grows with the highest slot
ever handed out. A folio takes a run of consecutive slots. The search is next-fit: it goes on from
where the last run ended, so that what is written together lies together, and turns back to the
start only where the map ends and cannot grow, or at least half of it is free (a sparse file then
stays near twice the size of what it holds). A slot is reusable from the moment of `free`: the
caller invalidates it in the backing store first.

Cost. A search is one `bytearray.find` from the cursor (1 byte a slot, at the speed of memchr). Each
slot is passed once a turn, so while a device has room an allocation costs O(1) amortised. Once a
search has failed, `_longest` bounds the longest free run: longer requests fail without a search,
until a `free` joins a longer run; it is noted, the cursor goes there, and taking it brings back the
bound of the runs elsewhere. So on a full or fragmented device allocations cost O(1) as well, and a
search of the whole map happens only where the bound says that there may be a run.
"""

from __future__ import annotations

import sys
from collections import deque
from typing import TYPE_CHECKING

import attrs

from reclaimactors.errors import ProtocolViolation

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["SwapDevice", "runs"]

_FREE, _USED, _ASIDE = 0, 1, 2

_MIN_MAP = 1024  # slots: the map's first size, 4 MiB of 4 KiB pages
_NEAR = 512  # slots looked at on each side of a freed run, to see how long it has become


@attrs.define(eq=False)
class SwapDevice:
    """The slots of one backing store, like a ``struct swap_info_struct``.

    Attributes:
        index: The kernel's swap type: its number, used again only once it is swapped off.
        name: What people call it.
        priority: Devices of higher priority are filled first.
        capacity: Slots it has; None where nothing bounds it.
        used: Slots that are handed out now.
        aside: Slots not in use that a call which was given up may still write.
        stale: Slots in use that hold nothing any more, and that its store is yet to forget.
        takes_squeezed: It compresses with the machine's compressor, so that workers do it for it.
        takes_poor: It is given what does not compress; False where that would free nothing.
        writes: Writes that are on their way to it.
        at_store: Bytes of resident folios in these writes.
        forgetting: Calls on their way that have it forget slots.
        in_service: False = a store failed, no new ones for a while; loads are tried all the same.
        lost: It has failed for so long that nobody waits until it is tried again, nor for its
            answer if that is late (see `mm.swap_service`).
        down: Its swapd has crashed and is to come back: no new stores meanwhile.
        leaving: It is being swapped off: no new stores, what it holds is brought back.
        full: Its store said so, whatever the slots say; it is tried again later.
        late: Its store has not answered for a while: nothing new is given to it meanwhile.
        congested: As many writes wait for it as may; it takes the next once half of them are done.
        failures: Stores that failed in a row, each after a rest; until one succeeds, only one is
            tried at a time.
        in_budget: What it holds is charged to the budget; known from its first write on.
        passed_over: Batches that go elsewhere before it is tried again (see `mm.demotion`).
    """

    index: int
    name: str
    priority: int
    capacity: int | None
    takes_squeezed: bool = attrs.field(default=False, init=False)
    takes_poor: bool = attrs.field(default=True, init=False)
    used: int = attrs.field(default=0, init=False)
    aside: int = attrs.field(default=0, init=False)
    stale: int = attrs.field(default=0, init=False)
    writes: int = attrs.field(default=0, init=False)
    at_store: int = attrs.field(default=0, init=False)
    forgetting: int = attrs.field(default=0, init=False)
    in_service: bool = attrs.field(default=True, init=False)
    lost: bool = attrs.field(default=False, init=False)
    down: bool = attrs.field(default=False, init=False)
    leaving: bool = attrs.field(default=False, init=False)
    full: bool = attrs.field(default=False, init=False)
    late: bool = attrs.field(default=False, init=False)
    congested: bool = attrs.field(default=False, init=False)
    failures: int = attrs.field(default=0, init=False)
    in_budget: bool = attrs.field(default=False, init=False)
    passed_over: int = attrs.field(default=0, init=False)
    _aside: deque[tuple[int, int]] = attrs.field(
        factory=deque[tuple[int, int]], init=False, repr=False
    )
    _map: bytearray = attrs.field(factory=bytearray, init=False, repr=False)
    _cursor: int = attrs.field(default=0, init=False, repr=False)
    _longest: int = attrs.field(default=sys.maxsize, init=False, repr=False)
    _elsewhere: int = attrs.field(default=0, init=False, repr=False)  # but for the noted run
    _noted: int = attrs.field(default=-1, init=False, repr=False)  # its start, -1 for none
    _noted_end: int = attrs.field(default=-1, init=False, repr=False)

    @property
    def free_slots(self) -> int:
        """Slots that could be handed out; `sys.maxsize` where nothing bounds it."""
        return sys.maxsize if self.capacity is None else self.capacity - self.used - self.aside

    @property
    def more_than_half_used(self) -> bool:
        """Whether it has no slots to spare for copies of what is resident (vm_swap_full)."""
        return self.capacity is not None and 2 * (self.used + self.aside) > self.capacity

    @property
    def takes_writes(self) -> bool:
        """Whether new folios may be given slots here at all."""
        if not self.in_service or self.full or self.late or self.leaving or self.down:
            return False
        return not (self.failures and self.writes)

    @property
    def may_return(self) -> bool:
        """Whether it takes no writes now, and is expected to take them again soon."""
        return not self.lost and not self.leaving and (self.down or not self.in_service)

    def alloc(self, nr: int) -> int | None:
        """Take `nr` (at least 1) consecutive slots: the first, or None where no run is so long."""
        if nr < 1:
            msg = f"{nr} slots asked for; a folio takes at least 1"
            raise ProtocolViolation(msg)
        if nr > self._longest:
            return None
        room = self.free_slots
        slot = self._find(nr) if nr <= room else -1
        if slot < 0:
            if len(self._map) == self.capacity:
                self._longest = min(room, nr - 1)
            return None
        self._map[slot : slot + nr] = b"\x01" * nr
        self._cursor = slot + nr
        self.used += nr
        if slot == self._noted:
            self._noted = slot + nr
            self._longest = max(self._elsewhere, self._noted_end - self._noted)
        return slot

    def alloc_slots(self, nr: int) -> Sequence[int] | None:
        """Take `nr` slots, in one run if there is one; None where there are not so many."""
        first = self.alloc(nr)
        return self.alloc_scattered(nr) if first is None else range(first, first + nr)

    def alloc_scattered(self, nr: int) -> list[int] | None:
        """Take `nr` slots wherever they are, None where there are not so many."""
        if not 0 < nr <= self.free_slots:
            return None
        slots: list[int] = []
        at = -1
        while len(slots) < nr:
            at = self._map.find(_FREE, at + 1)
            if at < 0:
                at = len(self._map) - 1
                self._grow(nr - len(slots))
            else:
                slots.append(at)
        for slot in slots:
            self._map[slot] = _USED
        self.used += nr
        return slots

    def free(self, slot: int, nr: int) -> None:
        """Give back `nr` used slots. The backing store has forgotten them already.

        Raises:
            ProtocolViolation: if one of them is not used; nothing has changed then.
        """
        self._leave(slot, nr, _FREE)
        if self._longest < sys.maxsize:
            self._joined(slot, nr)

    def set_aside(self, slot: int, nr: int) -> None:
        """Do not hand these used slots out for now: a write given up on may still reach them.

        Raises:
            ProtocolViolation: if one of them is not used; nothing has changed then.
        """
        self._leave(slot, nr, _ASIDE)
        self.aside += nr
        self._aside.append((slot, nr))

    def first_aside(self, nr: int) -> list[int]:
        """Return about `nr` of the slots set aside; `take_back` or `aside_last` follows."""
        slots: list[int] = []
        for first, length in self._aside:
            if len(slots) >= nr:
                break
            slots += range(first, first + length)
        return slots

    def aside_last(self, nr: int) -> None:
        """The first `nr` slots of those set aside stay so, behind the others."""
        while nr > 0:
            run = self._aside.popleft()
            self._aside.append(run)
            nr -= run[1]

    def take_back(self, nr: int) -> None:
        """The store has forgotten the first `nr` slots of those set aside: they are free."""
        while nr > 0:
            slot, length = self._aside.popleft()
            nr -= length
            self.aside -= length
            self.used += length
            self._map[slot : slot + length] = bytes((_USED,)) * length
            self.free(slot, length)

    def used_slots(self) -> set[int]:
        """Return all slots in use. O(slots): for checks."""
        return {slot for slot, state in enumerate(self._map) if state == _USED}

    def check(self) -> None:
        """Assert that the counters and the bound agree with the map."""
        size = len(self._map)
        assert self._map.count(_USED) == self.used, f"{self.name}: used is {self.used}"
        assert self._map.count(_ASIDE) == self.aside, f"{self.name}: aside is {self.aside}"
        assert self.aside == sum(nr for _, nr in self._aside), f"{self.name}: runs aside drifted"
        assert self.capacity is None or size <= self.capacity, f"{self.name}: map of {size} slots"
        assert 0 <= self._cursor <= size, f"{self.name}: cursor at {self._cursor} of {size}"
        if self._longest < sys.maxsize:
            assert size == self.capacity, f"{self.name}: searches fail although the map can grow"
            assert bytes(self._longest + 1) not in self._map, f"{self.name}: a longer run is free"

    def _find(self, nr: int) -> int:
        run = bytes(nr)
        found = self._map.find(run, self._cursor)
        if found < 0 and 2 * (self.used + self.aside) > len(self._map) and self._grow(nr):
            found = self._map.find(run, self._cursor)
        if found < 0:
            found = self._map.find(run, 0, self._cursor + nr - 1)
        if found < 0 and self._grow(nr):
            found = self._map.find(run)  # it may begin before the cursor
        return found

    def _grow(self, nr: int) -> bool:
        size = len(self._map)
        more = max(nr, size // 2, _MIN_MAP)
        if self.capacity is not None:
            more = min(more, self.capacity - size)
        self._map.extend(bytes(more))
        return more > 0

    def _leave(self, slot: int, nr: int, state: int) -> None:
        if nr < 1 or slot < 0 or self._map.count(_USED, slot, slot + nr) != nr:
            msg = f"{self.name}: slots {slot}+{nr} are not all in use"
            raise ProtocolViolation(msg)
        self._map[slot : slot + nr] = bytes((state,)) * nr
        self.used -= nr

    def _joined(self, slot: int, nr: int) -> None:
        """Note a run that has become free where the longest one is known."""
        lowest = max(0, slot - _NEAR)
        start = 1 + max(self._map.rfind(state, lowest, slot) for state in (_USED, _ASIDE))
        start = max(start, lowest)
        ends = [self._map.find(state, slot + nr, slot + nr + _NEAR) for state in (_USED, _ASIDE)]
        end = min((at for at in ends if at >= 0), default=min(len(self._map), slot + nr + _NEAR))
        if start == lowest > 0 or end == slot + nr + _NEAR:
            self._longest, self._noted = sys.maxsize, -1  # it may reach further than we looked
            self._cursor = start
        elif end - start > self._longest:
            self._elsewhere, self._longest = self._longest, end - start
            self._cursor = self._noted = start
            self._noted_end = end
        else:
            self._elsewhere = max(self._elsewhere, end - start)


def runs(slots: Sequence[int]) -> list[tuple[int, int]]:
    """Return slots as (first, how many) runs of neighbours."""
    if isinstance(slots, range):
        return [(slots.start, len(slots))] if slots else []
    out: list[tuple[int, int]] = []
    start = stop = -1
    for slot in slots:
        if slot != stop:
            if start >= 0:
                out.append((start, stop - start))
            start = slot
        stop = slot + 1
    return [*out, (start, stop - start)] if start >= 0 else out
