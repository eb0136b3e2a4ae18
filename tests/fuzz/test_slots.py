"""Slots that do not hold what they were given: the reader is told which store it was.

Whatever befalls the bytes of a store, the reader of a value that lost some gets an error that names
the store, every other value is as it was, and a put over the bad key makes it good again.
"""

from __future__ import annotations

import asyncio
import os
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

import reclaimactors as ra
from reclaimactors.mm.folio import DEVICE

PAGE = 512
SIZES = [100, PAGE, PAGE + 1, 3 * PAGE, 9 * PAGE]  # the last is a value of several folios
DAMAGES = ["flip", "stale", "misplaced", "emptied", "zeroed", "short"]


def value(seed: int, size: int, *, text: bool) -> bytes:
    """Bytes like no other seed's: noise, or half text, which compresses."""
    noise = random.Random(seed).randbytes(size)
    return noise[: size // 2] + (b"value %d, " % seed * size)[: size - size // 2] if text else noise


class FileSlots:
    """The slots of a `file` store, behind its back."""

    def __init__(self, backend) -> None:
        self._fd = backend._file.fd

    def read(self, slot: int) -> bytes:
        return os.pread(self._fd, PAGE, slot * PAGE)

    raw = read

    def write(self, slot: int, data: bytes) -> None:
        os.pwrite(self._fd, data.ljust(PAGE, b"\0"), slot * PAGE)

    def whole(self, slot: int) -> bool:
        """A file has padding, and is refused without it."""
        return len(self.read(slot)) == PAGE

    def cut(self, slot: int, left: int) -> None:
        """The file ends in this slot, as if the disk had lost its last writes."""
        os.ftruncate(self._fd, slot * PAGE + left)


class DictSlots:
    """The slots of a `memory` store, behind its back."""

    def __init__(self, backend) -> None:
        self._slots = backend._slots

    def read(self, slot: int) -> bytes:
        return self._slots.get(slot, b"")

    raw = read

    def write(self, slot: int, data: bytes) -> None:
        self._slots[slot] = data

    def whole(self, slot: int) -> bool:
        return slot in self._slots

    def cut(self, slot: int, left: int) -> None:
        data = self._slots.pop(slot)[:left]
        if data:
            self._slots[slot] = data


class ZramSlots:
    """The slots of a `zram` store, behind its back: blobs, or bytes as they came."""

    def __init__(self, backend) -> None:
        self._backend = backend

    def raw(self, slot: int) -> bytes:
        return self._backend.table.bytes[slot]

    def read(self, slot: int) -> bytes:
        """What the store would make of it: a blob may survive a flipped bit."""
        try:
            (source,) = self._backend.load_now([slot]) or [b""]
        except ra.BackendError:
            return b""
        return source

    def write(self, slot: int, data: bytes) -> None:
        self._backend.table.bytes[slot] = data

    def whole(self, slot: int) -> bool:
        return self._backend.table.flags_of(slot) != 0

    def cut(self, slot: int, left: int) -> None:
        if left:
            self.write(slot, self.raw(slot)[:left])
        else:
            self._backend.table.free(slot)


SLOTS = {"file": FileSlots, "memory": DictSlots, "zram": ZramSlots}


class Shelf:
    """A memory whose values are all in one store, and what its slots held before and hold now."""

    def __init__(self, memory, store: str) -> None:
        self.memory = memory
        self._node = memory._node
        backend = memory._machine.swapds[0].backend
        self._slots = SLOTS[store](backend)
        self.model: dict[int, bytes] = {}
        self._truth: dict[int, tuple[bytes, bool]] = {}  # key -> what its slots are meant to hold
        self._before: dict[int, list[bytes]] = {}  # slot -> what it held at each look

    async def put(self, key: int, data: bytes) -> None:
        await self.memory.put(key, data)
        self.model[key] = data

    async def page_out(self) -> None:
        """Have every value in the store, and look at what is there."""
        await self.memory.reclaim(1 << 30)
        await self.memory.drain()
        self._truth = {key: self._held(key) for key in self.model}
        for key in self.model:
            for slot in self._of(key):
                self._before.setdefault(slot, []).append(self._slots.raw(slot))

    def _folios(self, key: int) -> list[int]:
        mm = self._node.mm
        return [pfn for pfn in self._node.values.pfns(key) if mm.state[pfn] == DEVICE]

    def _of(self, key: int) -> list[int]:
        return [slot for pfn in self._folios(key) for slot in self._node.slots.of(pfn)]

    def _held(self, key: int) -> tuple[bytes, bool]:
        """What a store has of a value, without padding, and whether each slot is whole."""
        read, length = self._slots.read, self._node.mm.length
        own = [
            b"".join(map(read, self._node.slots.of(pfn)))[: length[pfn]]
            for pfn in self._folios(key)
        ]
        return b"".join(own), all(self._slots.whole(slot) for slot in self._of(key))

    def victims(self) -> list[int]:
        return [key for key in self.model if self._folios(key)]

    def _stale(self, slot: int, held: bytes) -> bytes:
        """What the slot held earlier; where it is new, what another one did."""
        own = [data for data in self._before[slot] if data != held]
        return own[0] if own else next((d for b in self._before.values() for d in b), b"stale")

    def damage(self, key: int, how: str, rng: random.Random) -> None:
        """Do one thing to one slot of a value."""
        slots = self._slots
        slot = rng.choice(self._of(key))
        held = slots.raw(slot)
        match how:
            case "flip":
                at = rng.randrange(max(1, len(held)))
                slots.write(slot, held[:at] + bytes([held[at] ^ 1 << at % 8]) + held[at + 1 :])
            case "zeroed":
                slots.write(slot, bytes(len(held)))
            case "stale":
                slots.write(slot, self._stale(slot, held))
            case "misplaced":
                of_all = [other for key in self.victims() for other in self._of(key)]
                there = rng.choice(list(filter(slots.whole, of_all)))  # what is gone can't move
                slots.write(slot, slots.raw(there))
                slots.write(there, held)
            case "emptied":
                slots.cut(slot, 0)
            case "short":
                slots.cut(slot, 1)

    def bad(self) -> set[int]:
        """The keys of which the store does not have any more what it was given."""
        return {key for key, truth in self._truth.items() if self._held(key) != truth}

    async def compare(self, bad: set[int], store: str) -> None:
        """Each value comes back, or an error that names the store where it is bad."""
        for key, right in self.model.items():
            if key in bad:
                with pytest.raises((ra.CorruptData, ra.BackendError), match=f"{store}0"):
                    await self.memory.get(key)
            else:
                assert await self.memory.get(key) == right


async def life(store: str, zswap: dict, sizes: list[int], damages: list[str], seed: int) -> int:
    """Put, page out, overwrite, page out, damage, read, heal, read; return how many were bad."""
    rng = random.Random(seed)
    async with ra.open_memory(
        "kswapd_only_inline",
        budget="256KiB",
        page_size=PAGE,
        max_folio=4 * PAGE,
        zswap=zswap,
        swap=[{"backend": store}],
    ) as memory:
        shelf = Shelf(memory, store)
        for turn in range(2):
            for key, size in enumerate(sizes):
                if turn == 0 or key % 2:
                    await shelf.put(key, value(100 * turn + key, size, text=key % 3 > 0))
            await shelf.page_out()
        for how in damages:
            left = [key for key in shelf.victims() if key not in shelf.bad()]
            if left:
                shelf.damage(rng.choice(left), how, rng)
        bad = shelf.bad()
        await shelf.compare(bad, store)
        await shelf.compare(bad, store)  # what is bad stays bad, and spoils nothing
        assert memory._node.check()
        for key in bad:
            await shelf.put(key, value(1000 + key, sizes[key], text=False))
        await shelf.compare(set(), store)
        await shelf.page_out()
        await shelf.compare(set(), store)
        for key in shelf.model:
            await memory.delete(key)
        while memory._machine.swapds[0].loads.tickets:  # reads of which nobody waits any more
            await asyncio.sleep(0)
        await memory.drain()
        assert memory._node.check()
        assert memory._node.swap.used == memory._node.slots.swapped == 0
        assert memory.vmstat["actor_restarts"] == 0
        return len(bad)


@pytest.mark.parametrize("store", list(SLOTS))
@pytest.mark.parametrize("how", DAMAGES)
async def test_a_damaged_slot_is_an_error_that_names_the_store_and_hurts_no_other(store, how):
    assert await life(store, {"enabled": False}, 4 * SIZES, [how], seed=1) > 0


@given(
    st.sampled_from(list(SLOTS)),
    st.sampled_from([{"enabled": False}, {"max_pool_percent": 1}]),
    st.lists(st.sampled_from(SIZES), min_size=2, max_size=30),
    st.lists(st.sampled_from(DAMAGES), min_size=1, max_size=6),
    st.integers(0, 1 << 30),
)
def test_whatever_befalls_slots_no_wrong_byte_is_read(store, zswap, sizes, damages, seed):
    asyncio.run(life(store, zswap, sizes, damages, seed))
