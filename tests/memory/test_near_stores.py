"""Stores in the budget, of higher priority than a file: no put is refused while that has room."""

import random

import anyio
import pytest

import reclaimactors as ra
from reclaimactors.backends.memory import MemoryBackend

BUDGET = 1 << 20
PAGE = 4096
MODES = [("kcompressd", "thread"), ("padata", "process")]
INLINE_COMPRESS = {"offload": "inline"}
NEAR = ["memory", "zram", {"name": "zram", "compressor": "zlib"}]


def noise(i, size=PAGE):
    return random.Random(i).randbytes(size)


def half(i):
    return noise(i, PAGE // 2) + b"%08d" % i * (PAGE // 16)


def mixed(i):
    return noise(i) if i % 3 else b"%08d of the mixed, " % i * 215


def open_memory(near, *more, **overrides):
    swap = [{"backend": near, "priority": 20}, *({"backend": store} for store in more)]
    return ra.open_memory(
        **{"budget": BUDGET, "swap": swap, "compress": INLINE_COMPRESS} | overrides
    )


async def fill(memory, make, nr=4 * BUDGET // PAGE):
    for i in range(nr):
        await memory.put(i, make(i))


async def until_full(memory):
    """Put values until one is refused; return how many there are."""
    for nr in range(10 * BUDGET // PAGE):
        try:
            await memory.put(nr, half(nr))
        except ra.OutOfMemory:
            return nr
    raise AssertionError("nothing was refused")


async def verify(memory, make, nr=4 * BUDGET // PAGE):
    for i in range(nr):
        assert await memory.get(i) == make(i)
    assert memory._node.check()


KINDS = [noise, half, mixed]
INLINE = ("inline", "inline")
CASES = [
    *((near, INLINE, make, zswap) for near in NEAR for make in KINDS for zswap in (True, False)),
    *((near, mode, mixed, True) for near in NEAR for mode in MODES),
]


@pytest.mark.parametrize(("near", "mode", "make", "zswap"), CASES)
async def test_a_store_in_the_budget_gives_way_to_a_file(near, mode, make, zswap):
    compress = {"mode": mode[0], "offload": mode[1]}
    zswap = {"enabled": zswap}
    async with open_memory(near, "file", compress=compress, zswap=zswap) as memory:
        with anyio.fail_after(50):
            await fill(memory, make)
            await verify(memory, make)


@pytest.mark.parametrize("near", NEAR, ids=["memory", "zram", "zram of its own"])
async def test_what_a_store_in_the_budget_holds_makes_room_for_one_large_value(near):
    """It came when there was no file: all that reclaim can do is to move it."""
    async with open_memory(near, zswap={"enabled": False}) as memory:
        nr = await until_full(memory)
        await memory.swapon({"backend": "file", "priority": 1})
        keys = nr * 288
        large = noise(0, BUDGET - keys - BUDGET // 50 - 10 * PAGE)
        with anyio.fail_after(50):
            await memory.put("large", large)
        assert memory.vmstat["swap_demoted"]
        assert await memory.get("large") == large
        await verify(memory, half, nr)


async def test_blobs_of_the_pool_make_room_for_one_large_value():
    """Free memory is far above *high*, and too little."""
    async with ra.open_memory(
        budget=BUDGET, zswap={"max_pool_percent": 50}, compress=INLINE_COMPRESS
    ) as memory:
        for i in range(400):
            await memory.put(i, half(i))
        while await memory.reclaim(1 << 30):
            pass
        await memory.drain()
        usage = memory.usage()
        assert usage.compressed > BUDGET // 3
        assert usage.free > memory._node.marks.high
        large = noise(0, usage.free + BUDGET // 5)
        with anyio.fail_after(50):
            await memory.put("large", large)
        assert await memory.get("large") == large
        await verify(memory, half, 400)


async def test_what_cannot_be_read_is_not_moved_and_holds_nothing_up():
    async with open_memory("zram", zswap={"enabled": False}) as memory:
        node = memory._node
        nr = await until_full(memory)
        slots = node.slots.of(node.values.pfns(0)[0])
        memory.swaps()[0].backend.table.bytes[slots[0]] = b"damage"
        await memory.swapon({"backend": "file", "priority": 1})
        for key in range(nr, nr + 200):
            await memory.put(key, half(key))
        assert memory.vmstat["swap_demoted"]
        with pytest.raises(ra.BackendError, match="damaged"):
            await memory.get(0)
        for key in range(1, nr + 200):
            assert await memory.get(key) == half(key)
        assert node.check()


async def test_reclaim_ends_beside_a_store_in_the_budget_that_has_too_few_slots():
    """What it holds could go to the other store; there is no pressure that would want that."""
    small = MemoryBackend(capacity=40)
    compress = {"mode": "padata", "offload": "inline", "fifo": 16, "workers": 2}
    sizes = {"page_size": "1KiB", "max_folio": "16KiB"}
    more = {"backend": small, "priority": 20}
    swap = [{"backend": "zram", "priority": 20}, more]
    zswap = {"enabled": False}
    async with open_memory("zram", swap=swap, compress=compress, zswap=zswap, **sizes) as memory:
        await memory.put("a", noise(0, 70_000))
        with anyio.fail_after(20):
            assert await memory.reclaim(1_000_000) >= 0
        assert await memory.get("a") == noise(0, 70_000)
        assert memory._node.check()
