"""A memory over zram: who compresses for it, what is charged, what happens under pressure."""

import gc
import random
from contextlib import suppress

import anyio
import pytest
from anyio.lowlevel import checkpoint

import reclaimactors as ra
from reclaimactors.backends.memory import MemoryBackend
from reclaimactors.backends.zram import ZramBackend
from reclaimactors.compressors.lz4 import Lz4
from reclaimactors.mm.batch import Reclaimer
from reclaimactors.mm.folio import DEVICE, RESIDENT
from reclaimactors.testing import FaultyBackend, FaultyCompressor, Gate

PAGE = 4096
BUDGET = 1 << 20
EVERYTHING = 1 << 30


def text(seed=0, size=PAGE):
    return (b"value %d over zram, " % seed * (size // 8 + 1))[:size]


def noise(seed=0, size=PAGE):
    return random.Random(seed).randbytes(size)


def half(seed):
    """Pages of which lz4 makes about the half, and zlib less."""
    letters = bytes(b"abcdefgh"[byte % 8] for byte in noise(seed, PAGE // 2))
    return letters + text(seed, PAGE // 2)


def value(rng):
    """A value of any kind: text, zeros, noise, or all of them in the pages of one."""
    size = rng.choice([0, 1, 100, 1000, PAGE, PAGE, PAGE, 3 * PAGE, 4 * PAGE - 5, 9 * PAGE + 3])
    seed = rng.randrange(1000)
    parts = [text(seed, size), text(seed, size), bytes(size), b"12345678" * (size // 8 + 1)]
    if rng.random() < 0.15:
        parts = [noise(seed, size)]
    if size > PAGE and rng.random() < 0.5:
        parts = [bytes(PAGE) + text(seed) + noise(seed) + b"\xff" * size]
    return rng.choice(parts)[:size]


def open_zram(*, offload="inline", below=(), zram=None, **overrides):
    store = zram if zram is not None else ZramBackend()
    spec = {
        "budget": BUDGET,
        "max_folio": 4 * PAGE,
        "compress": {"offload": offload, "fifo": 32, "batch": 32},
        "swap": [
            {"backend": store, "priority": 100, "size": "8MiB"},
            *({"backend": other, "size": "4MiB"} for other in below),
        ],
    }
    return ra.open_memory("zram", **spec | overrides)


class Elsewhere(MemoryBackend):
    """A store that holds nothing in this process, or so it says."""

    synchronous = False
    footprint = ra.Backend.footprint


def zram_of(memory):
    return next(info.backend for info in memory.swaps() if info.name.startswith("Zram"))


def check(memory):
    """The core's invariants, and that what is charged is what zram holds."""
    memory._node.check()
    zram = zram_of(memory)
    zram.table.check()
    return zram


async def put_all(memory, make):
    for key in range(600):
        await memory.put(key, make(key))


def put_all_now(memory, make):
    for key in range(600):
        memory.put_nowait(key, make(key))


async def settled(memory):
    """Wait until slots that nobody wants have been forgotten: what is charged is what is held."""
    await memory.drain()
    zram = check(memory)
    usage = memory.usage()
    assert usage.compressed == zram.mm_stat["mem_used_total"] + memory.vmstat["pool_total_size"]
    return zram


# -- values survive --------------------------------------------------------------------------------


@pytest.mark.parametrize("offload", ["inline", "thread", "process"])
@pytest.mark.parametrize("mode", ["kcompressd", "inline", "padata"])
async def test_every_value_survives_pressure_overwrites_and_deletes(offload, mode):
    rng = random.Random(f"{offload} {mode}")
    values = {}
    compress = {"offload": offload, "mode": mode, "fifo": 32, "batch": 32}
    async with open_zram(compress=compress, below=[Elsewhere()]) as memory:
        for turn in range(2500):
            key = rng.randrange(400)
            what = rng.random()
            if what < 0.7 or key not in values:
                values[key] = value(rng)
                await memory.put(key, bytes(bytearray(values[key])))
            elif what < 0.9:
                assert await memory.get(key) == values[key]
            else:
                await memory.delete(key)
                del values[key]
            if turn % 100 == 0:
                check(memory)
        zram = await settled(memory)
        assert zram.mm_stat["orig_data_size"] > 0
        assert memory.vmstat["zswpout"] == 0
        assert memory.vmstat["pswpout"] > 0
        for key, expected in values.items():
            assert await memory.get(key) == expected
        for key in values:
            await memory.delete(key)
        zram = await settled(memory)
        assert zram.mm_stat["orig_data_size"] == 0


async def test_a_batch_reaches_zram_in_the_step_in_which_it_is_compressed():
    async with open_zram(watermarks={"min": 1000, "low": 2000, "high": 3000}) as memory:
        for key in range(20):
            await memory.put(key, text(key))
        machine = memory._machine
        freed = machine.reclaim_inline(8, Reclaimer.DIRECT, ram_only=True)
        zram = check(memory)
        assert freed == 8 * PAGE - memory.usage().compressed
        assert memory.usage().compressed == zram.mm_stat["mem_used_total"] > 0
        assert (memory.vmstat["pswpout"], memory.vmstat["reclaim_device"]) == (8, 8)
        assert memory.usage().swapped == 8 * PAGE
        assert memory._node.idle
        faults = [pfn for pfn, state in enumerate(memory._node.mm.state) if state == DEVICE]
        (key,) = [key for key, pfn in memory._node.values.small.items() if pfn == faults[0]]
        get = memory.get(key)
        with pytest.raises(StopIteration) as stopped:
            get.send(None)  # a fault from zram changes no tasks
        assert stopped.value.value == text(key)
        assert memory.vmstat["pswpin"] == 1
        await settled(memory)


async def test_workers_compress_and_take_the_checksum_of_the_source(monkeypatch):
    zram = ZramBackend()

    def never(_data):
        raise AssertionError("the store compressed for itself")

    monkeypatch.setattr(zram.primary, "compress", never, raising=False)
    for offload in ("process", "thread"):
        async with open_zram(offload=offload, zram=ZramBackend()) as memory:
            monkeypatch.setattr(zram_of(memory).primary, "compress", never, raising=False)
            for key in range(600):
                await memory.put(key, text(key))
            await memory.drain()
            assert memory.vmstat["pswpout"] > 100
            for key in range(600):
                assert await memory.get(key) == text(key)


async def test_large_values_keep_the_kinds_of_their_pages_apart():
    sizes = {"zeros": bytes(4 * PAGE), "word": b"abcdefgh" * 2048, "tail": bytes(3 * PAGE + 5)}
    pages = {"mixed": bytes(PAGE) + text() + noise() + b"\x07" * PAGE, "noise": noise(1, 4 * PAGE)}
    async with open_zram() as memory:
        for key, data in (sizes | pages).items():
            await memory.put(key, data)
        while memory._machine.reclaim_inline(8, Reclaimer.DIRECT, ram_only=True):
            pass
        zram = await settled(memory)
        assert memory._node.nr_resident == 0
        assert memory.vmstat["swpout_zero"] == 4 + 4
        assert memory.vmstat["same_filled"] == 4
        assert zram.mm_stat["same_pages"] == 2
        assert zram.mm_stat["huge_pages"] == 1 + 4
        for key, data in (sizes | pages).items():
            assert await memory.get(key) == data


# -- where there is no room ------------------------------------------------------------------------


async def test_what_does_not_compress_leaves_ram_if_there_is_somewhere_to_go():
    other = Elsewhere()
    async with open_zram(below=[other]) as memory:
        for key in range(500):
            await memory.put(key, noise(key))
        zram = await settled(memory)
        assert zram.mm_stat["huge_pages"] == 0
        assert len(other._slots) > 200
        for key in range(500):
            assert await memory.get(key) == noise(key)


async def test_what_a_store_had_no_time_for_does_not_go_to_zram_either():
    async with open_zram(below=[Elsewhere()]) as memory:
        for key in range(8):
            memory.put_nowait(key, noise(key))
        machine, node = memory._machine, memory._node
        batch = machine.swapout.isolate(8, 1 << 20, Reclaimer.PROACTIVE)
        batch.poor = True  # as it is known to be once a write of it was refused
        pages, writes = machine.swapout.begin(batch, hold=False)
        assert pages == []
        assert sum(len(write.pfns) for write in writes) == 8
        assert not any(node.swap[write.device].takes_squeezed for write in writes)
        for write in writes:
            machine.pageout.refuse(write)
        assert len(node.root.unevictable) == 8
        assert node.check()


async def test_what_does_not_compress_is_kept_as_it_is_where_there_is_nothing_else():
    async with open_zram() as memory:
        with pytest.raises(ra.OutOfMemory):
            await put_all(memory, noise)
        zram = await settled(memory)
        assert zram.mm_stat["huge_pages"] > 0
        for key in memory.keys():  # noqa: SIM118 - a method of its own
            assert await memory.get(key) == noise(key)


@pytest.mark.parametrize("topology", ["zram", "kswapd_only_inline"])
async def test_what_does_not_compress_takes_nothing_of_a_limit(topology):
    kept = {}
    for nr in (0, 300):
        spec = {"zswap": {"enabled": False}, "compress": {"offload": "inline"}}
        swap = [{"backend": ZramBackend(mem_limit=1 << 20), "size": "64MiB"}]
        async with ra.open_memory(topology, budget="4MiB", swap=swap, **spec) as memory:
            for key in range(nr):
                await memory.put(("noise", key), noise(key))
            for key in range(3000):
                await memory.put(key, text(key))
            zram = await settled(memory)
            kept[nr] = zram.mm_stat["huge_pages"]
            for key in range(nr):
                assert await memory.get(("noise", key)) == noise(key)
            assert memory._node.check()
    assert kept == {0: 0, 300: 0}


async def test_over_its_limit_some_folios_of_a_batch_fit_and_others_go_on():
    other = Elsewhere()
    zram = ZramBackend(mem_limit=20_000)
    async with open_zram(zram=zram, below=[other]) as memory:
        for key in range(300):
            await memory.put(key, text(key, 3 * PAGE))
        await settled(memory)
        assert 15_000 < zram.mm_stat["mem_used_total"] <= 20_000
        assert zram.io_stat["failed_writes"] > 0
        assert len(other._slots) > 0
        for key in range(300):
            assert await memory.get(key) == text(key, 3 * PAGE)
        check(memory)


async def test_a_full_zram_alone_is_out_of_memory_that_says_why():
    compress = {"mode": "inline", "offload": "inline"}
    zram = ZramBackend(mem_limit="2KiB")
    async with open_zram(zram=zram, budget="256KiB", compress=compress) as memory:
        with pytest.raises(anyio.WouldBlock):
            put_all_now(memory, text)
        reason = (
            r"'ZramBackend0' is full: .*zram: \d+ slots more would pass its mem_limit of 2KiB, "
            r"of which 2KiB is used; mem_limit may be raised"
        )
        with pytest.raises(ra.OutOfMemory, match=reason):
            await memory.put("more", text(1, 4 * PAGE))
        held = memory.keys()
        assert len(held) > 64
        for key in held:
            assert await memory.get(key) == text(key)
        check(memory)


async def test_put_nowait_reclaims_into_zram_and_no_further():
    other = Elsewhere()
    async with open_zram(below=[other]) as memory:
        nr = 0
        with suppress(anyio.WouldBlock, ra.OutOfMemory):
            for nr in range(20_000):
                memory.put_nowait(nr, text(nr))
        assert nr > 1.5 * BUDGET / PAGE
        assert not other._slots
        check(memory)
        for key in range(0, nr, 7):
            assert await memory.get(key) == text(key)


async def test_zswap_in_front_of_zram_takes_what_it_takes():
    zswap = {"enabled": True, "max_pool_percent": 10, "shrinker": False}
    async with open_zram(zswap=zswap) as memory:
        for key in range(300):
            await memory.put(key, half(key))
        zram = await settled(memory)
        assert memory.vmstat["zswpout"] > 0
        assert memory.vmstat["pool_limit_hit"] > 0
        assert zram.mm_stat["orig_data_size"] > 0
        for key in range(300):
            assert await memory.get(key) == half(key)


async def test_another_compressor_than_the_topologys_is_the_stores_own_business():
    async with open_zram(zram=ZramBackend("zlib")) as memory:
        for key in range(400):
            await memory.put(key, text(key))
        zram = await settled(memory)
        assert zram.mm_stat["orig_data_size"] > 100 * PAGE
        for key in range(400):
            assert await memory.get(key) == text(key)


# -- what goes wrong -------------------------------------------------------------------------------


async def test_a_cancelled_folio_of_a_batch_in_the_worker_keeps_its_last_value():
    async with open_zram(watermarks={"min": 1000, "low": 2000, "high": 3000}) as memory:
        for key in range(6):
            await memory.put(key, text(key, 2 * PAGE))
        machine, node = memory._machine, memory._node
        batch = machine.swapout.isolate(6, EVERYTHING, Reclaimer.KSWAPD)
        pages = machine.handover.begin(batch)
        assert (len(pages), batch.nr_rows) == (12, 12)
        assert await memory.get(0) == text(0, 2 * PAGE)  # a fault
        await memory.put(1, text(100, 3 * PAGE))
        await memory.put(2, noise())
        await memory.delete(3)
        out = await machine.offload.squeeze(pages, of_sources=True)
        machine.handover.finish(batch, out)
        zram = check(memory)
        assert zram.mm_stat["orig_data_size"] == 2 * 2 * PAGE
        assert [node.mm.state[node.values.small[key]] for key in (0, 1, 2)] == [RESIDENT] * 3
        values = {0: text(0, 2 * PAGE), 1: text(100, 3 * PAGE), 2: noise()}
        for key, data in (values | {4: text(4, 2 * PAGE), 5: text(5, 2 * PAGE)}).items():
            assert await memory.get(key) == data
        await settled(memory)


async def test_a_damaged_slot_is_an_error_that_names_the_store_and_hurts_nobody_else():
    async with open_zram() as memory:
        for key in range(400):
            await memory.put(key, text(key))
        await memory.drain()
        zram, node = zram_of(memory), memory._node
        away = [key for key, pfn in node.values.small.items() if node.mm.state[pfn] == DEVICE][:4]
        slots = [node.mm.entry[node.values.small[key]] for key in away]
        good = {slot: zram.table.bytes[slot] for slot in slots}
        zram.table.bytes[slots[0]] = b"\xff" * len(good[slots[0]])  # damaged
        zram.table.bytes[slots[1]] = good[slots[3]]  # another one's
        zram.table.bytes[slots[2]] = b""  # emptied
        for key in away[:3]:
            with pytest.raises((ra.CorruptData, ra.BackendError), match="ZramBackend0"):
                await memory.get(key)
        for key in range(400):
            if key not in away[:3]:
                assert await memory.get(key) == text(key)
        zram.table.bytes.update(good)
        for key in away[:3]:
            assert await memory.get(key) == text(key)


@pytest.mark.parametrize("below", [[], [Elsewhere]])
async def test_a_compressor_that_fails_loses_nothing(below):
    compressor = FaultyCompressor(Lz4(), every=5)
    compress = {"offload": "inline", "compressor": compressor, "fifo": 32, "batch": 32}
    stores = [make() for make in below]
    async with open_zram(zram=ZramBackend(compressor), compress=compress, below=stores) as memory:
        for key in range(400):
            await memory.put(key, text(key))
        zram = await settled(memory)
        assert memory.vmstat["reject_compress_fail"] > 10
        assert (zram.mm_stat["huge_pages"] == 0) == bool(below)
        for key in range(400):
            assert await memory.get(key) == text(key)


class Refusing(ZramBackend):
    """One that cannot take what workers have compressed, `left` times."""

    def __init__(self, left):
        super().__init__()
        self.left = left

    def store_squeezed(self, slots, sizes, kept):
        self.left -= 1
        if self.left >= 0:
            raise OSError(5, "a broken table")
        return super().store_squeezed(slots, sizes, kept)


@pytest.mark.asyncio(loop_factories=["virtual"])
@pytest.mark.parametrize(("left", "works"), [(3, True), (1000, False)])
async def test_a_zram_that_raises_is_passed_by_and_tried_again_later(left, works):
    other, passed_by = Elsewhere(), False
    async with open_zram(zram=Refusing(left), below=[other]) as memory:
        for _ in range(12):
            for key in range(500):
                await memory.put(key, text(key))
            await memory.drain()
            passed_by = passed_by or bool(other._slots)
            await anyio.sleep(10.0)
        assert passed_by
        if works:
            assert memory.vmstat["swapout_error"] == left
        else:
            assert 4 <= memory.vmstat["swapout_error"] <= 24
        zram = next(info for info in memory.swaps() if info.name == "Refusing0")
        assert bool(zram.backend.mm_stat["orig_data_size"]) == works
        for key in range(500):
            assert await memory.get(key) == text(key)
        memory._node.check()


async def fill(memory, start):
    with suppress(anyio.ClosedResourceError):
        for key in range(start, start + 10_000):
            await memory.put(key, text(key))


async def test_close_in_the_middle_of_it_all():
    for offload in ("inline", "thread"):
        async with (
            anyio.create_task_group() as tasks,
            open_zram(offload=offload, below=[Elsewhere()]) as memory,
        ):
            for start in range(0, 80_000, 10_000):
                tasks.start_soon(fill, memory, start)
            while not memory.vmstat["pswpout"]:
                await checkpoint()


# -- passes ----------------------------------------------------------------------------------------


async def test_recompression_and_writeback_give_back_to_the_budget_at_once():
    backing = Elsewhere()
    zram = ZramBackend(recompressor="zlib", backing=backing)
    async with open_zram(zram=zram) as memory:
        for key in range(250):
            await memory.put(key, half(key) + half(key + 1000) if key % 5 == 0 else half(key))
        zram.mark_idle()
        await settled(memory)
        before = memory.usage()
        gained = await zram.recompress()
        assert gained > 0
        assert memory.usage().compressed == before.compressed - gained
        assert memory.usage().free == before.free + gained
        await settled(memory)
        zram.mark_idle()
        assert await zram.writeback() > 0
        assert memory.usage().compressed == zram.mm_stat["mem_used_total"] == 0
        await settled(memory)
        assert backing._slots
        for key in range(250):
            expected = half(key) + half(key + 1000) if key % 5 == 0 else half(key)
            assert await memory.get(key) == expected
        for key in range(250):
            await memory.delete(key)
        await settled(memory)
        assert not backing._slots


async def test_a_writeback_in_flight_survives_faults_overwrites_and_deletes():
    gate = Gate()
    backing = FaultyBackend(Elsewhere(), store_gate=gate)
    zram = ZramBackend(backing=backing)
    async with open_zram(zram=zram) as memory:
        for key in range(300):
            await memory.put(key, half(key))
        await memory.drain()
        zram.mark_idle()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(zram.writeback)
            await gate.entered.wait()
            for key in range(0, 300, 3):
                await memory.put(key, text(key))
            for key in range(1, 300, 3):
                assert await memory.get(key) == half(key)
            for key in range(2, 300, 6):
                await memory.delete(key)
            check(memory)
            gate.open()
        await settled(memory)
        for key in memory.keys():  # noqa: SIM118 - a method of its own
            assert await memory.get(key) == (half(key) if key % 3 else text(key))


async def test_slots_are_not_looked_at_by_the_cyclic_collector():
    zram = ZramBackend()
    async with open_zram(zram=zram, budget="4MiB") as memory:
        for key in range(1500):
            await memory.put(key, text(key))
        await memory.drain()
        assert not gc.is_tracked(zram.table.bytes)
        assert len(zram.table.bytes) > 500
