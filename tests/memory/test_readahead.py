"""Readahead: neighbours are read along where seeking is dear, and nothing else changes."""

import errno
import random
from collections import Counter

import anyio
import pytest
from anyio.lowlevel import checkpoint

import reclaimactors as ra
from reclaimactors.backends.memory import MemoryBackend
from reclaimactors.mm.readahead import MAX_PAGES
from reclaimactors.mm.watermark import Watermarks

PAGE = 512
BUDGET = 1 << 18
EVERYTHING = 1 << 30


class Disk(MemoryBackend):
    """A store outside this process that is asked for slots, never for what is at hand."""

    load_now = None

    def __init__(self, *, rotational=True):
        super().__init__()
        self.rotational = rotational
        self.asked = []
        self.broken = set()
        self.bad = set()

    async def load_many(self, slots):
        self.asked.append(list(slots))
        if self.broken & set(slots):
            raise OSError(errno.EIO, "I/O error")
        stored = MemoryBackend.load_now(self, slots)
        pairs = zip(slots, stored, strict=True)
        return [data[::-1] if slot in self.bad else data for slot, data in pairs]

    def footprint(self, slots):
        return 0


def noise(seed):
    return random.Random(seed).randbytes(PAGE)


def over(disk):
    compress = {"mode": "inline", "offload": "inline"}
    swap = [{"backend": disk, "size": "1MiB"}]
    return ra.open_memory(budget=BUDGET, page_size=PAGE, compress=compress, swap=swap)


async def fill(memory, nr=64):
    values = {key: noise(key) for key in range(nr)}
    for key, value in values.items():
        await memory.put(key, value)
    await memory.reclaim(EVERYTHING)
    await memory.drain()
    return values


def in_slot_order(memory):
    """Return the keys in the order of their slots."""
    node = memory._node
    return sorted(node.values.small, key=lambda key: node.mm.entry[node.values.small[key]])


async def test_reading_in_order_is_read_ahead_in_growing_windows():
    disk = Disk()
    async with over(disk) as memory:
        values = await fill(memory)
        for key in in_slot_order(memory):
            assert await memory.get(key) == values[key]
            assert memory._node.check()
        assert len(disk.asked) < 64 / 4
        assert max(map(len, disk.asked)) == MAX_PAGES
        assert memory.vmstat["swap_ra_hit"] > 64 / 2
        assert memory.vmstat["swap_ra"] >= memory.vmstat["swap_ra_hit"]


async def test_reading_in_no_order_is_hardly_read_ahead():
    disk = Disk()
    async with over(disk) as memory:
        values = await fill(memory)
        keys = in_slot_order(memory)
        for key in keys[::16] + keys[8::16]:
            assert await memory.get(key) == values[key]
        assert sum(map(len, disk.asked)) <= 2 * len(disk.asked)


async def test_nothing_is_read_ahead_where_seeking_is_cheap():
    disk = Disk(rotational=False)
    async with over(disk) as memory:
        values = await fill(memory)
        for key in in_slot_order(memory):
            assert await memory.get(key) == values[key]
        assert {len(slots) for slots in disk.asked} == {1}
        assert memory.vmstat["swap_ra"] == 0


async def test_what_was_read_ahead_is_never_read_after_an_overwrite():
    disk = Disk()
    async with over(disk) as memory:
        values = await fill(memory)
        keys = in_slot_order(memory)
        for key in keys[:12]:
            assert await memory.get(key) == values[key]
        for key in keys[12:24]:
            values[key] = noise(-key - 1)
            await memory.put(key, values[key])
        await memory.reclaim(EVERYTHING)
        await memory.drain()
        assert {key: await memory.get(key) for key in keys} == values
        assert memory._node.check()


async def test_a_neighbour_that_cannot_be_read_spoils_nothing():
    disk = Disk()
    async with over(disk) as memory:
        values = await fill(memory)
        keys = in_slot_order(memory)
        slots = {key: memory._node.mm.entry[memory._node.values.small[key]] for key in keys}
        disk.broken = {slots[keys[10]]}
        for key in keys:
            if key == keys[10]:
                with pytest.raises(ra.BackendError, match="failed to load"):
                    await memory.get(key)
            else:
                assert await memory.get(key) == values[key]


async def test_bad_bytes_that_were_read_ahead_are_read_again():
    disk = Disk()
    async with over(disk) as memory:
        values = await fill(memory)
        disk.bad = set(range(64))
        for key in in_slot_order(memory):
            with pytest.raises(ra.CorruptData, match="gave other bytes"):
                await memory.get(key)
        disk.bad.clear()  # it was the way here that spoiled them
        assert {key: await memory.get(key) for key in values} == values
        assert memory._node.check()


async def test_what_was_read_ahead_makes_room_for_a_put():
    disk = Disk()
    async with over(disk) as memory:
        values = await fill(memory, 256)
        for key in in_slot_order(memory)[:20]:
            await memory.get(key)
        assert memory._node.memcg.reserved > 0
        for key in range(1000, 1600):
            values[key] = noise(key)
            await memory.put(key, values[key])
        assert memory._node.memcg.reserved == 0
        assert {key: await memory.get(key) for key in values} == values
        assert memory._node.check()


async def test_a_put_that_lacks_no_more_than_was_read_ahead_waits_for_nobody():
    async with over(Disk()) as memory:
        await fill(memory, 256)
        for key in in_slot_order(memory)[:20]:
            await memory.get(key)
        node = memory._node
        assert node.memcg.reserved >= PAGE
        # A put lacks one byte, and what was read ahead is enough to bring free memory to *high*.
        least = node.memcg.free - node.values.need("new", PAGE, 1) + 1
        node.root.marks = Watermarks(least, least + 1, least + 2)
        with anyio.fail_after(10):
            await memory.put("new", noise(1000))
        assert node.memcg.reserved == 0
        assert node.check()


async def test_no_slot_is_read_twice_at_a_time_or_forgotten_while_it_is_read():
    class Watched(Disk):
        def __init__(self):
            super().__init__()
            self.reading = Counter()
            self.overlaps = []

        async def load_many(self, slots):
            self.overlaps += [slot for slot in slots if self.reading[slot]]
            self.reading.update(slots)
            try:
                for _ in range(3 * (len(self.asked) % 3)):  # some take longer than others
                    await checkpoint()
                return await super().load_many(slots)
            finally:
                self.reading.subtract(slots)

        async def invalidate_many(self, slots):
            self.overlaps += [slot for slot in slots if self.reading[slot]]
            await super().invalidate_many(slots)

    disk = Watched()
    async with over(disk) as memory:
        values = await fill(memory, 240)
        keys = in_slot_order(memory)

        async def read(start):
            for key in keys[start::2]:
                assert await memory.get(key) == values[key]

        for key in keys[:40]:  # alone and in order: two at once may never read ahead
            assert await memory.get(key) == values[key]
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(read, 0)
            tasks.start_soon(read, 1)
        assert disk.overlaps == []
        assert memory.vmstat["swap_ra"] > 0
        assert memory._node.check()
