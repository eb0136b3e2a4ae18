"""Values that end at a time: a timer wheel. Mirrors kernel/time/timer.c.

Whoever reads compares with the exact time (`ended`). What nobody reads is swept: keys are gathered
in slots, and a slot is over after the last of its keys, by at most a second or an eighth of the
time that the value was given. So there are some hundred slots, whatever times are given, and adding
or removing a key takes as long with a million keys as with one.

Times are seconds of one clock, which whoever asks reads.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final

import attrs

if TYPE_CHECKING:
    from collections.abc import Hashable

__all__ = ["EXPIRY_OVERHEAD", "LAZY_OVERHEAD", "Expiry", "Terms", "terms_of"]

# Measured with tests/bench/overhead.py, which puts short keys with and without them.
EXPIRY_OVERHEAD: Final = 240  #: bytes of a key that ends: its places here, and its array of folios
LAZY_OVERHEAD: Final = 60  #: bytes of a discardable value: its place among these
PARTS: Final = 8  #: of its time, one of which a value may be swept too late


@attrs.frozen
class Terms:
    """What becomes of a value beside being deleted: it ends at a time, or may be dropped.

    Attributes:
        ends_at: when there is no such value any more.
        slot: when that is swept, at the latest.
        discardable: whether reclaim may drop it.
    """

    ends_at: float = math.inf
    slot: float = math.inf
    discardable: bool = False

    @property
    def overhead(self) -> int:
        """Bytes that are charged for keeping them."""
        ends = EXPIRY_OVERHEAD if self.ends_at < math.inf else 0
        return ends + (LAZY_OVERHEAD if self.discardable else 0)


def terms_of(now: float, seconds: float, *, discardable: bool = False) -> Terms:
    """Return the terms of a value that ends so many seconds from now."""
    ends_at = now + seconds
    step = 2.0 ** max(0, math.frexp(seconds / PARTS)[1] - 1)  # a power of two, 1 s or more
    return Terms(ends_at, math.ceil(ends_at / step) * step, discardable)


class Expiry:
    """The keys of one group whose values end.

    Attributes:
        slot_of: when the slot of each of them is over; empty where no value ends, so that whoever
            reads a value need not ask further.
        next: when the first slot is over.
    """

    def __init__(self) -> None:
        self._slots: dict[float, dict[Hashable, float]] = {}  # when each of the keys ends
        self.slot_of: dict[Hashable, float] = {}
        self.next = math.inf

    def add(self, key: Hashable, ends_at: float, slot: float) -> None:
        """Note that the value of a key ends; the key is not among these."""
        if slot not in self._slots:
            self._slots[slot] = {}
            self.next = min(self.next, slot)
        self._slots[slot][key] = ends_at
        self.slot_of[key] = slot

    def forget(self, key: Hashable) -> Terms | None:
        """The value of a key is gone, or another one: return when it would have ended."""
        slot = self.slot_of.pop(key, None)
        if slot is None:
            return None
        keys = self._slots[slot]
        ends_at = keys.pop(key)
        if not keys:
            del self._slots[slot]
            if slot == self.next:
                self.next = min(self._slots, default=math.inf)
        return Terms(ends_at, slot)

    def ends_at(self, key: Hashable) -> float:
        """Return when the value of a key ends, infinity if it does not; any thread may ask."""
        slot = self.slot_of.get(key, math.inf)
        return self._slots.get(slot, {}).get(key, math.inf)

    def ended(self, now: float) -> set[Hashable]:
        """Return the keys whose values have ended, and were not swept yet."""
        over = [keys for slot, keys in self._slots.items() if slot <= now]
        open_ones = [keys for slot, keys in self._slots.items() if slot > now]
        found = {key for keys in over for key in keys}
        return found | {key for keys in open_ones for key, at in keys.items() if at <= now}

    def first(self) -> Hashable:
        """Return a key of the slot that is over `next`, of which there is one."""
        keys = self._slots[self.next]
        key, at = keys.popitem()
        keys[key] = at  # it stays until it is deleted, which may fail; the end is quick to find
        return key

    def check(self, keys: dict[Hashable, object]) -> None:
        """Assert that both sides say the same, of keys that there are."""
        assert self.slot_of == {key: slot for slot, some in self._slots.items() for key in some}
        assert self.slot_of.keys() <= keys.keys(), "the end of no value"
        assert self.next == min(self._slots, default=math.inf)
        assert all(at <= slot for slot, some in self._slots.items() for at in some.values())
        assert all(self._slots.values()), "a slot without keys"
