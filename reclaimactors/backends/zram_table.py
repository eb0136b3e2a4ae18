"""The slot table of the `zram` backend: what each slot holds, and what all of them weigh.

One row per slot, in columns that grow with the highest slot ever stored, and one dict from slot to
bytes; nothing here is looked at by the cyclic collector. A slot that is stored holds one of::

    SAME   one machine word repeated: the word, no memory
    HUGE   what did not compress: the source bytes as they came
    WB     nothing: its bytes are in the backing store, in a block of their own
    none   a blob, of the primary compressor, or with SECONDARY of the other one

Besides: IDLE, not accessed since it was marked; INCOMPRESSIBLE, the secondary compressor has failed
on it; and OWNED, a writeback of it is in flight (the kernel's PP_SLOT). Overwriting or freeing a
slot takes the mark away, and the late completion then throws its block away.
"""

from __future__ import annotations

from array import array
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

__all__ = ["HUGE", "IDLE", "INCOMPRESSIBLE", "OWNED", "SAME", "SECONDARY", "STORED", "WB",
           "SlotTable"]  # fmt: skip

STORED: Final = 1
SAME: Final = 2
HUGE: Final = 4
WB: Final = 8
IDLE: Final = 16
SECONDARY: Final = 32
INCOMPRESSIBLE: Final = 64
OWNED: Final = 128

_MARKED_IDLE = bytes(
    flags | IDLE if flags & STORED and not flags & (SAME | WB) else flags for flags in range(256)
)


class SlotTable:
    """Rows by slot; every change keeps the totals."""

    def __init__(self) -> None:
        self.flags = bytearray()  #: 0 where nothing is stored
        self.size = array("I")  #: bytes that were stored
        self.held = array("I")  #: bytes in memory now: of the blob, or as they came
        self.bytes: dict[int, bytes] = {}  #: what is in memory
        self.word: dict[int, int] = {}  #: of SAME slots
        self.block: dict[int, int] = {}  #: of WB slots: where in the backing store
        self.length: dict[int, int] = {}  #: of WB slots: bytes in that block
        self.dropped: list[int] = []  #: blocks of slots that are gone: the store is yet to forget
        self.source_bytes = 0
        self.held_bytes = 0
        self.most_held_bytes = 0
        self.same_slots = 0
        self.huge_slots = 0
        self.huge_since = 0

    def __len__(self) -> int:
        return len(self.flags)

    def flags_of(self, slot: int) -> int:
        """Return the flags of any slot, 0 where nothing is stored."""
        return self.flags[slot] if 0 <= slot < len(self.flags) else 0

    def growth(self, slot: int, kept: bytes | int) -> int:
        """Return the bytes by which storing `kept` would make the total grow, or shrink."""
        old = self.held[slot] if slot < len(self.held) else 0
        return (len(kept) if isinstance(kept, bytes) else 0) - old

    def store(
        self, slots: Sequence[int], sizes: Sequence[int], kept: Sequence[bytes | int]
    ) -> None:
        """Store rows, each in place of what the slot held.

        Args:
            slots: where.
            sizes: bytes of each source.
            kept: the word that it repeats, or its bytes: a blob if they are fewer than the source,
                else the source.
        """
        if not slots:
            return
        self._grow(max(slots))
        flags, size, held = self.flags, self.size, self.held
        for slot, source, what in zip(slots, sizes, kept, strict=True):
            if flags[slot]:
                self.free(slot)
            size[slot] = source
            self.source_bytes += source
            if isinstance(what, int):
                flags[slot] = STORED | SAME
                self.word[slot] = what
                self.same_slots += 1
                continue
            flags[slot] = STORED
            held[slot] = len(what)
            self.held_bytes += len(what)
            self.bytes[slot] = what
            if len(what) == source:
                flags[slot] |= HUGE
                self.huge_slots += 1
                self.huge_since += 1
        self.most_held_bytes = max(self.most_held_bytes, self.held_bytes)

    def free(self, slot: int) -> bool:
        """Forget a slot; return whether anything was stored there."""
        flags = self.flags_of(slot)
        if not flags:
            return False
        self.source_bytes -= self.size[slot]
        if flags & SAME:
            del self.word[slot]
            self.same_slots -= 1
        elif flags & WB:
            self.dropped.append(self.block.pop(slot))
            del self.length[slot]
        else:
            self._let_go(slot)
        self.flags[slot] = 0
        return True

    def recompressed(self, slot: int, blob: bytes) -> None:
        """A slot in memory gets a smaller blob, of the secondary compressor."""
        flags = self.flags[slot]
        self._let_go(slot)
        self.bytes[slot] = blob
        self.held[slot] = len(blob)
        self.held_bytes += len(blob)
        self.flags[slot] = flags & ~HUGE | SECONDARY

    def written_back(self, slot: int, block: int) -> None:
        """A slot in memory has gone to a block of the backing store."""
        self.block[slot] = block
        self.length[slot] = self.held[slot]
        flags = self.flags[slot]
        self._let_go(slot)
        self.flags[slot] = flags & ~(OWNED | IDLE) | WB

    def mark_idle(self, slots: Iterable[int] | None) -> None:
        """Mark slots in memory, None = all of them, until they are accessed."""
        if slots is None:
            self.flags[:] = self.flags.translate(_MARKED_IDLE)
            return
        for slot in slots:
            if self.flags_of(slot):
                self.flags[slot] = _MARKED_IDLE[self.flags[slot]]

    def _let_go(self, slot: int) -> None:
        """Drop the bytes in memory."""
        del self.bytes[slot]
        self.held_bytes -= self.held[slot]
        self.held[slot] = 0
        if self.flags[slot] & HUGE:
            self.huge_slots -= 1

    def _grow(self, slot: int) -> None:
        missing = slot + 1 - len(self.flags)
        if missing > 0:
            missing += len(self.flags) // 2
            self.flags.extend(bytes(missing))
            for column in (self.size, self.held):
                column.frombytes(bytes(column.itemsize * missing))

    def check(self) -> None:
        """Assert that the columns, the dicts and the totals agree. O(everything): for tests."""
        stored = [slot for slot, flags in enumerate(self.flags) if flags]
        flags = self.flags
        assert all(flags[slot] & STORED for slot in stored), "flags without a slot"
        same = {slot for slot in stored if flags[slot] & SAME}
        away = {slot for slot in stored if flags[slot] & WB}
        assert set(self.word) == same, "words drifted"
        assert set(self.block) == set(self.length) == away, "blocks drifted"
        assert not same & away, "a slot of both kinds"
        assert set(self.bytes) == set(stored) - same - away, "bytes drifted"
        held = {slot: nr for slot, nr in enumerate(self.held) if nr}
        assert held == {slot: len(data) for slot, data in self.bytes.items()}, "lengths drifted"
        assert self.held_bytes == sum(held.values()), "held bytes drifted"
        assert self.source_bytes == sum(self.size[slot] for slot in stored), "source bytes drifted"
        assert self.same_slots == len(same), "same-filled slots drifted"
        huge = [slot for slot in stored if flags[slot] & HUGE and not flags[slot] & WB]
        assert self.huge_slots == len(huge), "huge slots drifted"
        assert all(self.held[slot] == self.size[slot] for slot in huge), "a huge slot of a blob"
        blocks = [*self.block.values(), *self.dropped]
        assert len(blocks) == len(set(blocks)), "a block of two slots"
