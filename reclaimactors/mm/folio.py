"""The mem_map: one row of columns per folio, indexed by pfn. Mirrors struct page / struct folio.

States of a folio, and who may move it on::

    FREE -> RESIDENT <-> WRITEBACK -> ZSWAP | SAME | DEVICE -> RESIDENT (fault)
               ^          |  ^            |
               |          v  |            v
               +---- UNEVICTABLE    all -> DEAD -> FREE      (delete, overwrite)

A folio in WRITEBACK has an owner: the batch that was isolated with it. Its source bytes stay
readable, and only a verdict from that very batch counts; a fault, overwrite or delete takes the
ownership away, and the late verdict is thrown away. A folio that is known to be incompressible, and
that no store could take, is UNEVICTABLE until it is written or a store can take it (`unevictable`);
to the policy it is isolated all that time. A blob on its way to a store stays in ZSWAP,
owned by that write; so is a folio that moves from one device to another in DEVICE.

`refs` counts those who still look at the bytes or the slot whatever becomes of the key: a worker
thread, a store's write or load in flight, a pin. A folio deleted meanwhile is DEAD, charged, and
freed by the last of them; so bytes and slots are never reused under anybody.

Nothing here is looked at by the cyclic collector: columns are arrays, and the bytes are in a dict
from int to bytes, which it does not track (a list of a million of them would cost it 30 ms).
"""

from __future__ import annotations

from array import array
from typing import TYPE_CHECKING, Final

from reclaimactors.errors import ProtocolViolation

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

__all__ = [
    "CACHED",
    "DEAD",
    "DEVICE",
    "FREE",
    "IN_MEMORY",
    "LAZY",
    "RESIDENT",
    "SAME",
    "UNEVICTABLE",
    "WRITEBACK",
    "ZSWAP",
    "MemMap",
]

FREE: Final = 0  #: the pfn is not in use
RESIDENT: Final = 1  #: its bytes are in memory, on the policy's lists
WRITEBACK: Final = 2  #: its bytes are in memory, isolated, owned by a batch
ZSWAP: Final = 3  #: its blob is in the pool
SAME: Final = 4  #: one machine word repeated: the word is in `entry`
DEVICE: Final = 5  #: a backing store has it, from slot `entry` on
DEAD: Final = 6  #: its key is gone, somebody still holds a ref
UNEVICTABLE: Final = (
    7  #: its bytes are in memory, on no list: it does not compress, no store took it
)

CACHED: Final = 1  #: clean: its slots still hold the same bytes (`swap_state`)
LAZY: Final = 2  #: clean: it may be dropped (`lazyfree`)

IN_MEMORY: Final = frozenset({RESIDENT, WRITEBACK, UNEVICTABLE})  #: states with the source bytes

_ROWS = 256
LET_GO = 8  #: folios that are let go of at a time


class MemMap:
    """Columns of folios. A pfn is handed out by `alloc` and taken back by `free`."""

    __slots__ = (
        "_free", "at_store", "charge", "clean", "codec", "crc", "data", "device", "entry", "gone",
        "group", "key", "length", "owner", "refs", "shadow", "size", "state",
    )  # fmt: skip

    def __init__(self) -> None:
        self.state = bytearray()  #: one of the states above
        self.data: dict[int, bytes] = {}  #: source bytes, or the blob in ZSWAP; else absent
        self.size = array("I")  #: bytes of the value's part
        self.owner = array("Q")  #: the batch that owns its reclaim, 0 = nobody
        self.refs = array("I")  #: holders of the bytes or of the slot
        self.shadow = array("q")  #: what the policy said at eviction, -1 = never evicted
        self.entry = array("Q")  #: first slot on `device`, or the word of a SAME folio
        self.device = bytearray()  #: index of the swap device
        self.length = array("I")  #: bytes stored on the device
        self.crc = array("I")  #: crc32 of what is stored on the device
        self.codec = bytearray()  #: what is stored on the device: 0 = as it is, 1 = a blob
        self.charge = array("I")  #: bytes that an in-process device holds for it
        self.clean = bytearray()  #: of a RESIDENT folio: 0, or why it may go as it is, see above
        self.key = array("I")  #: bytes charged for the key beyond KEY_OVERHEAD, at its first folio
        self.group = array("H")  #: index of the group that is charged for it
        self.at_store = bytearray()  #: 1 = WRITEBACK, and a write to a store owns it
        self.gone = False  #: the memory has ended, and its values were let go
        self._free = array("I")

    def __len__(self) -> int:
        return len(self.state)

    def let_go(self) -> Iterator[None]:
        """Drop the bytes of all folios but those that somebody holds, LET_GO at each step.

        For the end of a memory, whose counters stay as they were.
        """
        self.gone = True
        for start in range(0, len(self.refs), LET_GO):
            for pfn in range(start, min(start + LET_GO, len(self.refs))):
                if not self.refs[pfn]:
                    self.data.pop(pfn, None)
            yield

    def alloc(self, data: bytes) -> int:
        """Return the pfn of a new RESIDENT folio that holds `data`."""
        if not self._free:
            self._grow()
        pfn = self._free.pop()
        self.state[pfn] = RESIDENT
        self.data[pfn] = data
        self.size[pfn] = len(data)
        return pfn

    def alloc_many(self, datas: Sequence[bytes]) -> list[int]:
        """Return the pfns of as many new RESIDENT folios, in order."""
        nr = len(datas)
        while len(self._free) < nr:
            self._grow()
        pfns = self._free[-nr:].tolist()
        pfns.reverse()
        del self._free[-nr:]
        state, size = self.state, self.size
        for pfn, data in zip(pfns, datas, strict=True):
            state[pfn] = RESIDENT
            size[pfn] = len(data)
        self.data.update(zip(pfns, datas, strict=True))
        return pfns

    def _grow(self) -> None:
        """Add _ROWS rows to each column: a row at a time costs as much as the rest of a put."""
        nr = len(self.state)
        for column in (self.size, self.owner, self.refs, self.entry, self.length, self.crc,
                       self.charge, self.key, self.group):  # fmt: skip
            column.frombytes(bytes(_ROWS * column.itemsize))
        for flags in (self.state, self.device, self.codec, self.clean, self.at_store):
            flags.extend(bytes(_ROWS))
        self.shadow.extend(array("q", [-1]) * _ROWS)
        self._free.extend(range(nr + _ROWS - 1, nr - 1, -1))

    # -- what is asked of them --------------------------------------------------------------------

    def in_memory(self, pfn: int) -> bool:
        """Return whether the source bytes of a folio are in memory."""
        return self.state[pfn] in IN_MEMORY

    def is_dead(self, pfn: int) -> bool:
        """Return whether the key of a folio is gone, while somebody still holds its bytes."""
        return self.state[pfn] == DEAD

    def is_blob(self, pfn: int) -> bool:
        """Return whether the pool has a folio, compressed."""
        return self.state[pfn] == ZSWAP

    def is_away(self, pfn: int) -> bool:
        """Return whether only a swap device has a folio."""
        return self.state[pfn] == DEVICE

    def is_on(self, pfn: int, device: int) -> bool:
        """Return whether only this swap device has a folio."""
        return self.state[pfn] == DEVICE and self.device[pfn] == device

    def keeps_slots(self, pfn: int) -> bool:
        """Return whether a folio, live or dead, is nowhere but in the slots of its device."""
        state = self.state[pfn]
        return state == DEVICE or (state == DEAD and self.data.get(pfn) is None)

    def away(self, pfns: Iterable[int]) -> list[int]:
        """Return those of these folios that only a swap device has."""
        state = self.state
        return [pfn for pfn in pfns if state[pfn] == DEVICE]

    def on(self, device: int, start: int, stop: int) -> list[int]:
        """Return the folios from row `start` to before `stop` that only this device has."""
        rows = enumerate(zip(self.state[start:stop], self.device[start:stop], strict=True), start)
        return [pfn for pfn, row in rows if row == (DEVICE, device)]

    def pooled(self, pfns: Iterable[int]) -> list[int]:
        """Return those of these folios that are expanded from what the pool, or a word, says."""
        state = self.state
        return [pfn for pfn in pfns if state[pfn] in {ZSWAP, SAME}]

    def bytes_of(self, pfns: Iterable[int]) -> int:
        """Return the bytes of the values of these folios."""
        size = self.size
        return sum([size[pfn] for pfn in pfns])

    def blob_bytes(self, pfns: Iterable[int]) -> int:
        """Return the bytes that the blobs of these folios expand to."""
        state, size = self.state, self.size
        return sum([size[pfn] for pfn in pfns if state[pfn] == ZSWAP])

    def owned_by(self, pfn: int, batch: int) -> bool:
        """Return whether a batch still owns a folio."""
        return self.owner[pfn] == batch

    # -- their life -------------------------------------------------------------------------------

    def free(self, pfn: int) -> None:
        """Take a pfn back. Nobody may hold a ref."""
        if self.refs[pfn] or self.state[pfn] == FREE:
            msg = f"pfn {pfn} freed in state {self.state[pfn]} with {self.refs[pfn]} refs"
            raise ProtocolViolation(msg)
        self.state[pfn] = FREE
        self.data.pop(pfn, None)
        self.owner[pfn] = 0
        self.shadow[pfn] = -1
        self.group[pfn] = 0
        self._free.append(pfn)

    def check(self) -> None:
        """Assert that each row is consistent with its state."""
        has_bytes = IN_MEMORY | {ZSWAP}
        for pfn, state in enumerate(self.state):
            data = self.data.get(pfn)
            if state in has_bytes:
                assert data is not None or self.gone, f"pfn {pfn}: state {state} without bytes"
            elif state != DEAD:
                assert data is None, f"pfn {pfn}: state {state} still holds bytes"
            assert state == WRITEBACK or not self.at_store[pfn], f"pfn {pfn}: at no store"
            if state in IN_MEMORY and data is not None:
                assert len(data) == self.size[pfn], f"pfn {pfn}: wrong size"
            if state == WRITEBACK:
                assert self.owner[pfn], f"pfn {pfn}: in writeback, owned by nobody"
            elif state not in {ZSWAP, DEVICE}:
                assert not self.owner[pfn], f"pfn {pfn}: state {state} has an owner"
            if state == FREE:
                assert not self.refs[pfn], f"pfn {pfn}: free with refs"
        free = sorted(self._free)
        assert free == [pfn for pfn, state in enumerate(self.state) if state == FREE]
