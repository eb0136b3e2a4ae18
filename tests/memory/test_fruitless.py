"""Nothing can be freed: puts end in OutOfMemory, whatever keeps the pipe full meanwhile."""

from __future__ import annotations

import random

import anyio
import pytest

import reclaimactors as ra


class Full(ra.Backend):
    """A store that is full after so many slots."""

    def __init__(self, room: int) -> None:
        self.room = room
        self.slots: dict[int, bytes] = {}

    async def store_many(self, items):
        if len(self.slots) + len(items) > self.room:
            raise ra.BackendFull
        self.slots.update(items)

    async def load_many(self, slots):
        return [self.slots[slot] for slot in slots]

    async def invalidate_many(self, slots):
        for slot in slots:
            self.slots.pop(slot, None)


@pytest.mark.parametrize("room", [None, 0, 300])
@pytest.mark.parametrize("topology", ["kswapd_only", "kcompressd", "padata_ordered"])
async def test_incompressible_values_end_in_out_of_memory_and_deletes_help(topology, room):
    rng = random.Random(3)
    swap = [] if room is None else [{"backend": Full(room)}]
    compress = {"offload": "thread"}
    model: dict[int, bytes] = {}
    async with ra.open_memory(topology, budget="2MiB", compress=compress, swap=swap) as memory:

        async def fill() -> None:
            for key in range(5000):
                value = rng.randbytes(4096)
                await memory.put(key, value)
                model[key] = value

        with anyio.fail_after(50), pytest.raises(ra.OutOfMemory):
            await fill()

        assert memory._node.check()
        for key, value in model.items():
            assert await memory.get(key) == value
        for key in list(model)[::2]:
            await memory.delete(key)
        await memory.put("after", b"room again" * 100)
        assert await memory.get("after") == b"room again" * 100


async def test_a_pool_that_no_run_of_slots_can_take_ends_in_out_of_memory():
    """The swap has free slots, but fewer than any blob needs: that is no progress."""
    swap = [{"backend": "memory", "size": "16KiB"}]
    compress = {"offload": "inline"}
    zswap = {"max_pool_percent": 100}
    rng = random.Random(3)
    async with ra.open_memory(budget="1MiB", swap=swap, compress=compress, zswap=zswap) as memory:

        async def fill() -> None:
            for key in range(400):
                await memory.put(key, rng.randbytes(16384) + bytes(16384))

        with anyio.fail_after(50), pytest.raises(ra.OutOfMemory):
            await fill()
        with anyio.fail_after(50):
            assert await memory.reclaim(1 << 30) >= 0
            await memory.drain()
        assert memory._node.check()


async def test_a_small_full_device_does_not_speak_for_a_large_one():
    swap = [
        {"backend": "memory", "size": "16KiB", "priority": 10},
        {"backend": "file", "size": "64MiB", "priority": 1},
    ]
    zswap = {"max_pool_percent": 100}
    compress = {"offload": "inline"}
    rng = random.Random(3)
    model: dict[int, bytes] = {}
    async with ra.open_memory(budget="1MiB", swap=swap, compress=compress, zswap=zswap) as memory:
        with anyio.fail_after(50):
            for key in range(300):
                half = 2048 if key < 20 else 16384
                value = rng.randbytes(half) + bytes(half)
                await memory.put(key, value)
                model[key] = value
            assert {key: await memory.get(key) for key in model} == model
        assert memory._node.check()
