"""The embedding contract, sentence by sentence."""

import array
import asyncio
import ctypes
import io
import logging
import mmap
import pickle
import random
import threading
import tracemalloc

import anyio
import pytest
from anyio.lowlevel import checkpoint

import reclaimactors as ra
from reclaimactors.backends.memory import MemoryBackend
from reclaimactors.compressors.lz4 import Lz4
from reclaimactors.memory import BUDGET_CALLS
from reclaimactors.mm.batch import Reclaimer
from reclaimactors.mm.folio import DEVICE, RESIDENT, SAME, UNEVICTABLE, ZSWAP
from reclaimactors.mm.memcg import FOLIO_OVERHEAD, KEY_OVERHEAD
from reclaimactors.policies.mglru import Mglru
from reclaimactors.testing import FaultyBackend, Gate, GatedCompressor, ThreadGate

BUDGET = 1 << 20
PAGE = 4096
MIN, LOW, HIGH = 100_000, 300_000, 500_000
OVERHEAD = KEY_OVERHEAD + FOLIO_OVERHEAD
EVERYTHING = 1 << 30


def text(seed=0, size=PAGE):
    return (b"value %d of the contract, " % seed * (size // 8 + 1))[:size]


def noise(seed=0, size=PAGE):
    return random.Random(seed).randbytes(size)


def open_memory(*stores, **overrides):
    """Open a memory of a mebibyte, with exact watermarks, over these stores."""
    spec = {
        "budget": BUDGET,
        "max_folio": 4 * PAGE,
        "watermarks": {"min": MIN, "low": LOW, "high": HIGH},
        "compress": {"offload": "inline", "fifo": 16, "batch": 32},
        "swap": [{"backend": store, "size": "4MiB"} for store in stores],
    }
    return ra.open_memory("kcompressd", **spec | overrides)


class Elsewhere(MemoryBackend):
    """A store that holds nothing in this process, or says so."""

    synchronous = False
    footprint = ra.Backend.footprint


def store(**faults):
    return FaultyBackend(Elsewhere(), **faults)


def fill(memory, free, make=noise):
    """Put values, without waiting, until exactly so much is free."""
    node = memory._node
    nr = 0
    overhead = node.values.overhead_of(("fill", nr), 1)
    while node.memcg.free - free >= 2 * (PAGE + overhead):
        node.values.commit(("fill", nr), [make(nr)], 0)
        nr += 1
    size = node.memcg.free - free - node.values.overhead_of(("fill", nr), 1)
    node.values.commit(("fill", nr), [make(nr, size)], 0)
    assert node.memcg.free == free
    return nr + 1


async def settle(turns=100):
    for _ in range(turns):
        await checkpoint()


def state(memory, key):
    return memory._node.mm.state[memory._node.values.pfns(key)[0]]


# values


async def test_a_value_comes_back():
    async with open_memory() as memory:
        await memory.put("a", b"value")
        assert await memory.get("a") == b"value"
        assert memory.get_nowait("a") == b"value"


async def test_a_hit_returns_the_identical_object():
    async with open_memory() as memory:
        value = noise()
        await memory.put("a", value)
        assert await memory.get("a") is value
        assert memory.get_nowait("a") is value


async def test_two_reads_of_a_value_that_was_faulted_in_return_one_object():
    async with open_memory() as memory:
        await memory.put("a", text())
        await memory.reclaim(EVERYTHING)
        assert await memory.get("a") is await memory.get("a")


@pytest.mark.parametrize("kind", [bytearray, memoryview])
@pytest.mark.parametrize("size", [0, 1, PAGE, 4 * PAGE, 4 * PAGE + 1, 50_000])
async def test_bytes_like_values_are_copied(kind, size):
    source = bytearray(noise(size=size))
    async with open_memory() as memory:
        await memory.put("a", kind(source))
        source[:] = bytes(size)
        value = await memory.get("a")
        assert type(value) is bytes
        assert value == noise(size=size)


@pytest.mark.parametrize("size", [100, PAGE, 50_000])
async def test_a_memoryview_that_is_not_contiguous_is_copied_in_its_order(size):
    source = noise(size=2 * size)
    async with open_memory() as memory:
        await memory.put("a", memoryview(source)[::2])
        assert await memory.get("a") == source[::2]


async def test_a_strided_view_that_can_never_fit_is_refused_before_it_is_copied():
    view = memoryview(bytes(64 << 20))[::2]
    async with open_memory() as memory:
        tracemalloc.start()
        try:
            with pytest.raises(ra.OutOfMemory):
                await memory.put("a", view)
            with pytest.raises(ra.OutOfMemory):
                memory.put_nowait("a", view)
            _, most = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert most < 1 << 20


async def test_a_memoryview_of_larger_items_is_its_bytes():
    source = noise(size=48_000)
    async with open_memory() as memory:
        await memory.put("a", memoryview(source).cast("Q", (60, 100)))
        assert await memory.get("a") == source


async def test_a_key_that_never_fits_is_in_what_the_error_says_is_missing():
    async with open_memory() as memory:
        for put in (memory.put, put_now(memory)):
            with pytest.raises(ra.OutOfMemory, match=r"no room for 2MiB more"):
                await put("k" * (2 << 20), b"value")
        assert memory.usage().free == BUDGET


def put_now(memory):
    async def put(key, data):
        memory.put_nowait(key, data)

    return put


def mapped(source):
    view = mmap.mmap(-1, len(source))
    view[:] = source
    return view


def big_endian(source):
    """Of a format that no memoryview can be cast from."""
    return (ctypes.c_uint32.__ctype_be__ * (len(source) // 4)).from_buffer_copy(source)


BUFFERS = {
    "array": lambda source: array.array("d", source),
    "mmap": mapped,
    "ctypes array": lambda source: (ctypes.c_char * len(source)).from_buffer_copy(source),
    "big-endian": big_endian,
    "PickleBuffer": pickle.PickleBuffer,
    "read-only view": lambda source: memoryview(source).toreadonly(),
    "matrix": lambda source: memoryview(source).cast("H", (8, len(source) // 16)),
    "BytesIO": lambda source: io.BytesIO(source).getbuffer(),
}


@pytest.mark.parametrize("size", [16, PAGE, 48_000])
@pytest.mark.parametrize("kind", BUFFERS)
async def test_any_buffer_is_a_value(kind, size):
    source = noise(size=size)
    async with open_memory() as memory:
        await memory.put("a", BUFFERS[kind](source))
        memory.put_nowait("b", BUFFERS[kind](source))
        for key in ("a", "b"):
            value = await memory.get(key)
            assert type(value) is bytes
            assert value == source
        assert memory._node.check()


async def test_a_buffer_of_no_bytes_is_a_value():
    async with open_memory() as memory:
        await memory.put("a", array.array("d"))
        assert await memory.get("a") == b""


@pytest.mark.parametrize("size", [60, 60_000])
async def test_an_ndarray_is_its_bytes_in_c_order(size):
    np = pytest.importorskip("numpy")
    plain = np.frombuffer(noise(size=8 * size), dtype="f8")
    matrix = plain.reshape(-1, 4)
    arrays = [plain, matrix, matrix.T, matrix[::2], np.asfortranarray(matrix), plain.view(">i4"),
              plain.view([("a", "i4"), ("b", "f4")]), np.array(1.5), np.zeros((0, 3))]  # fmt: skip
    async with ra.open_memory(budget="64MiB", max_folio="16KiB", swap=[]) as memory:
        for number, data in enumerate(arrays):
            await memory.put(number, data)
            assert await memory.get(number) == data.tobytes()


async def test_an_array_of_objects_is_no_value():
    np = pytest.importorskip("numpy")
    async with open_memory() as memory:
        with pytest.raises(TypeError, match="references to objects"):
            await memory.put("a", np.array([object()]))
        assert "a" not in memory


async def test_a_text_is_told_to_be_encoded():
    async with open_memory() as memory:
        with pytest.raises(TypeError, match=r"not str; encode it: .*\.encode\(\)"):
            await memory.put("a", "text")


async def test_a_subclass_of_bytes_comes_back_as_bytes():
    class Special(bytes):
        pass

    async with open_memory() as memory:
        await memory.put("a", Special(b"value"))
        assert type(await memory.get("a")) is bytes


async def test_a_value_of_no_bytes_is_a_value():
    async with open_memory(store()) as memory:
        await memory.put("a", b"")
        await memory.reclaim(EVERYTHING)
        assert await memory.get("a") == b""
        assert "a" in memory
        await memory.delete("a")
        assert memory.usage().free == BUDGET


async def test_a_large_value_may_be_partly_on_a_device():
    value = text(1, 4 * PAGE) + noise(2, 4 * PAGE) + bytes(4 * PAGE) + noise(3, 100)
    async with open_memory(store()) as memory:
        await memory.put("a", value)
        await memory.reclaim(PAGE)
        for _ in range(4):
            memory._machine.reclaim_inline(1, Reclaimer.DIRECT)
            await settle()
            assert memory._node.check()
        assert await memory.get("a") == value


@pytest.mark.parametrize("reclaimed", [0, 1, 2, 3, 4])
async def test_a_large_value_comes_back_however_much_of_it_was_reclaimed(reclaimed):
    value = noise(1, 4 * PAGE) + text(2, 4 * PAGE) + noise(3, 4 * PAGE) + text(4, 17)
    async with open_memory(store()) as memory:
        await memory.put("a", value)
        if reclaimed:
            memory._machine.reclaim_inline(reclaimed, Reclaimer.DIRECT)
            await memory.drain()
        gone = sum(memory._node.mm.state[pfn] != RESIDENT for pfn in memory._node.values.pfns("a"))
        assert gone == reclaimed
        assert await memory.get("a") == value


async def test_a_large_value_is_overwritten_and_deleted_as_one():
    async with open_memory(store()) as memory:
        await memory.put("a", noise(1, 50_000))
        await memory.reclaim(EVERYTHING)
        await memory.put("a", noise(2, 40_000))
        assert await memory.get("a") == noise(2, 40_000)
        await memory.delete("a")
        await memory.drain()
        assert memory.usage().free == BUDGET
        assert memory.usage().swapped == 0


async def test_a_joined_value_is_outside_the_budget():
    async with open_memory() as memory:
        await memory.put("a", noise(1, 50_000))
        before = memory.usage()
        await memory.get("a")
        assert memory.usage() == before


# keys


@pytest.mark.parametrize("key", [0, "a", b"b", (1, "a"), None, frozenset({1}), 1.5], ids=repr)
async def test_any_hashable_is_a_key(key):
    async with open_memory() as memory:
        await memory.put(key, b"value")
        assert await memory.get(key) == b"value"
        assert key in memory
        assert memory.keys() == [key]


async def test_what_is_not_hashable_is_a_type_error():
    async with open_memory() as memory:
        with pytest.raises(TypeError):
            await memory.put([], b"value")
        assert memory._node.check()


async def test_an_absent_key_is_a_key_error():
    async with open_memory() as memory:
        await memory.put("a", b"value")
        with pytest.raises(KeyError, match="b"):
            await memory.get("b")
        with pytest.raises(KeyError, match="b"):
            memory.get_nowait("b")
        with pytest.raises(KeyError, match="b"):
            await memory.delete("b")
        with pytest.raises(KeyError, match="b"):
            memory.advise("b", ra.Advice.COLD)
        with pytest.raises(KeyError, match="b"):
            await memory.pin("b").__aenter__()


@pytest.mark.parametrize("where", ["resident", "pool", "device"])
async def test_a_deleted_key_is_absent_wherever_its_value_was(where):
    async with open_memory(store()) as memory:
        await memory.put("a", text() if where == "pool" else noise())
        if where != "resident":
            await memory.reclaim(EVERYTHING)
        assert state(memory, "a") == {"resident": RESIDENT, "pool": ZSWAP, "device": DEVICE}[where]
        await memory.delete("a")
        assert "a" not in memory
        with pytest.raises(KeyError):
            await memory.get("a")


async def test_keys_is_a_snapshot():
    async with open_memory() as memory:
        await memory.put(1, b"small")
        await memory.put(2, noise(size=50_000))
        keys = memory.keys()
        await memory.delete(1)
        assert sorted(keys) == [1, 2]
        assert len(memory) == 1


@pytest.mark.parametrize("value", ["text", 1, None, [1]], ids=repr)
async def test_a_value_that_is_not_bytes_like_is_a_type_error(value):
    async with open_memory() as memory:
        with pytest.raises(TypeError, match="bytes, bytearray or memoryview"):
            await memory.put("a", value)
        with pytest.raises(TypeError):
            memory.put_nowait("a", value)
        assert len(memory) == 0


# what does not fit


async def test_a_value_that_can_never_fit_is_refused_at_once():
    async with open_memory(store()) as memory:
        await memory.put("old", text())
        folios = -(-(BUDGET - MIN) // (4 * PAGE))
        most = BUDGET - MIN - 2 * KEY_OVERHEAD - (folios + 1) * FOLIO_OVERHEAD
        with pytest.raises(ra.OutOfMemory):
            await memory.put("new", bytes(most + 1))
        assert memory.vmstat["pgscan_anon"] == 0  # before anything was evicted
        assert state(memory, "old") == RESIDENT


async def test_a_value_that_just_fits_is_taken():
    async with open_memory() as memory:
        size = BUDGET - MIN - KEY_OVERHEAD - 58 * FOLIO_OVERHEAD
        assert -(-size // (4 * PAGE)) == 58
        await memory.put("a", bytes(size))
        assert len(await memory.get("a")) == size


async def test_what_is_pinned_counts_against_what_fits():
    async with open_memory() as memory:
        await memory.put("pinned", noise())
        async with memory.pin("pinned"):
            size = BUDGET - MIN - 2 * KEY_OVERHEAD - 59 * FOLIO_OVERHEAD
            with pytest.raises(ra.OutOfMemory, match="is pinned"):
                await memory.put("a", bytes(size))


async def test_sixteen_rounds_that_free_nothing_are_out_of_memory_and_the_old_value_stays():
    async with open_memory() as memory:
        await memory.put("a", b"old")
        fill(memory, MIN + 1000)
        with pytest.raises(ra.OutOfMemory, match="delete keys, raise the budget or add swap"):
            await memory.put("a", noise(0, 2 * PAGE))
        assert await memory.get("a") == b"old"
        assert memory._node.check()


async def test_put_nowait_is_out_of_memory_where_nothing_can_be_reclaimed():
    async with open_memory() as memory:
        await memory.put("a", b"old")
        fill(memory, MIN + 1000)
        with pytest.raises(ra.OutOfMemory):
            memory.put_nowait("a", noise(0, 2 * PAGE))
        assert memory.get_nowait("a") == b"old"


async def test_a_put_that_is_out_of_memory_is_a_memory_error():
    async with open_memory() as memory:
        with pytest.raises(MemoryError):
            await memory.put("a", bytes(BUDGET))


# put: the table


async def test_at_low_or_above_a_put_does_not_wait():
    async with open_memory() as memory:
        fill(memory, LOW + PAGE + OVERHEAD)
        await memory.put("a", noise())
        assert memory.usage().free == LOW
        assert not memory._machine.starter.started


@pytest.fixture
def patient(monkeypatch):
    """Nobody does the work of a worker that stands at a gate, however slow the machine is."""
    for where in ("callers.level", "callers.brake_line", "actors.kswapd", "offload.pace"):
        monkeypatch.setattr(f"reclaimactors.{where}.LATE_S", 60.0)


@pytest.mark.usefixtures("patient")
async def test_between_low_and_min_a_put_waits_for_work_in_proportion():
    gate = ThreadGate(timeout=60)
    compress = {"offload": "thread", "fifo": 16, "batch": 16, "on_full": "wait"}
    compress["compressor"] = GatedCompressor(Lz4(), gate)
    async with open_memory(compress=compress) as memory:
        fill(memory, MIN + 2 * (len(noise()) + OVERHEAD), text)
        put = asyncio.ensure_future(memory.put("a", noise()))
        await gate.wait_entered()
        await settle()
        assert not put.done()
        assert "a" not in memory  # it is committed in one step, after the wait
        assert memory.vmstat["allocstall_normal"] == 0
        gate.open()
        await put
        assert await memory.get("a") == noise()


@pytest.mark.usefixtures("patient")
async def test_a_put_that_waits_for_what_others_reclaim_is_no_allocstall():
    gate, waits = ThreadGate(timeout=60), []
    compress = {"offload": "thread", "fifo": 16, "batch": 16, "on_full": "wait"}
    compress["compressor"] = GatedCompressor(Lz4(), gate)
    async with open_memory(compress=compress) as memory:
        fill(memory, MIN + 2 * (len(noise()) + OVERHEAD), text)
        memory.on_stall = waits.append
        puts = [asyncio.ensure_future(memory.put("brake", noise()))]
        await gate.wait_entered()  # a batch is in flight, which covers what follows
        puts += [asyncio.ensure_future(memory.put(key, noise())) for key in ("min", "below", "x")]
        await settle()
        assert memory._admission.queued
        assert waits == []
        gate.open()
        await asyncio.gather(*puts)
        assert memory.vmstat["allocstall_normal"] == memory.vmstat["pgscan_direct"] == 0
        assert len(waits) == len(puts)
        some_s = memory.pressure().some.total / 1e6
        assert 0 < max(waits) <= some_s + 1e-6
        assert sum(waits) <= len(puts) * some_s + 1e-6


@pytest.mark.usefixtures("patient")
async def test_a_put_just_below_low_owes_next_to_nothing_and_does_not_wait():
    gate = ThreadGate(timeout=60)
    compress = {"offload": "thread", "fifo": 16, "batch": 16, "on_full": "wait"}
    compress["compressor"] = GatedCompressor(Lz4(), gate)
    async with open_memory(compress=compress) as memory:
        fill(memory, LOW, text)
        await memory.put("a", text())
        assert memory._machine.background.awake
        assert memory.usage().free < LOW
        gate.open()


async def test_between_low_and_min_a_put_returns_once_kswapd_has_given_up():
    async with open_memory() as memory:
        fill(memory, MIN + 2 * (len(noise()) + OVERHEAD))
        await memory.put("a", noise())
        assert memory._machine.kswapd.hopeless
        assert await memory.get("a") == noise()


async def test_between_low_and_min_put_nowait_wakes_kswapd_and_returns():
    async with open_memory() as memory:
        fill(memory, LOW - 50_000, text)
        memory.put_nowait("a", noise())
        assert memory._machine.background.awake
        assert memory.vmstat["pgscan_direct"] == 0


async def test_below_min_a_put_reclaims_for_itself():
    async with open_memory() as memory:
        fill(memory, MIN, text)
        await memory.put("a", noise())
        assert memory.vmstat["allocstall_normal"] == 1
        assert memory.vmstat["pgsteal_direct"] > 0


async def test_below_min_put_nowait_reclaims_into_memory():
    gated = store(store_gate=Gate())
    async with open_memory(gated) as memory:
        fill(memory, MIN, text)
        memory.put_nowait("a", noise())
        assert memory.get_nowait("a") == noise()
        assert memory.vmstat["pgsteal_direct"] > 0
        assert memory.vmstat["allocstall_normal"] == 1
        assert memory._node.writeback.nr_writes == 0


async def test_below_min_put_nowait_would_block_where_only_a_store_could_take_it():
    async with open_memory(store()) as memory:
        await memory.put("a", b"old")
        fill(memory, MIN + 500)
        with pytest.raises(anyio.WouldBlock):
            memory.put_nowait("a", noise())
        assert memory.get_nowait("a") == b"old"
        assert memory._node.check()


async def test_below_min_a_put_waits_where_a_store_takes_it():
    async with open_memory(store()) as memory:
        fill(memory, MIN + 500)
        await memory.put("a", noise())
        assert memory.vmstat["pswpout"] > 0
        assert await memory.get("a") == noise()


async def test_put_nowait_would_block_while_others_wait_for_room():
    gated = store(store_gate=Gate())
    async with open_memory(gated) as memory:
        fill(memory, MIN + 500)
        put = asyncio.ensure_future(memory.put("a", noise()))
        await gated.store_gate.entered.wait()
        with pytest.raises(anyio.WouldBlock):
            memory.put_nowait("b", b"b")
        gated.store_gate.open()
        await put


async def test_puts_that_wait_are_admitted_first_come_first_served():
    gated = store(store_gate=Gate())
    async with open_memory(gated) as memory:
        fill(memory, MIN + 500)
        order = []

        async def put(i):
            await memory.put(i, noise(i))
            order.append(i)

        puts = []
        for i in range(5):
            puts.append(asyncio.ensure_future(put(i)))
            await settle(5)
        gated.store_gate.open()
        await asyncio.gather(*puts)
        assert sorted(order) == list(range(5))
        assert list(memory._node.values.small)[-5:] == order


async def test_an_overwrite_needs_only_what_the_old_value_does_not_free():
    async with open_memory() as memory:
        await memory.put("a", noise(1))
        fill(memory, MIN)
        memory.put_nowait("a", noise(2))
        assert memory.vmstat["allocstall_normal"] == 0


async def test_a_put_that_is_cancelled_while_it_waits_leaves_the_old_value():
    gated = store(store_gate=Gate())
    async with open_memory(gated) as memory:
        await memory.put("a", b"old")
        fill(memory, MIN + 500)
        put = asyncio.ensure_future(memory.put("a", noise()))
        await gated.store_gate.entered.wait()
        put.cancel()
        await asyncio.gather(put, return_exceptions=True)
        assert await memory.get("a") == b"old"
        assert memory._node.memcg.reserved == 0
        gated.store_gate.open()
        await memory.drain()
        assert memory._node.check()


# get


@pytest.mark.parametrize("make", [text, noise], ids=["text", "noise"])
async def test_below_low_a_get_hands_out_the_bytes_and_leaves_the_stored_copy(make):
    async with open_memory(store()) as memory:
        await memory.put("a", make())
        await memory.reclaim(EVERYTHING)
        gone = state(memory, "a")
        fill(memory, LOW + 100)
        refaults = memory.vmstat["workingset_refault_anon"]
        assert await memory.get("a") == make()
        assert state(memory, "a") == gone
        assert memory.vmstat["workingset_refault_anon"] == refaults + 1
        assert memory._machine.background.awake


@pytest.mark.parametrize("make", [text, noise], ids=["text", "noise"])
async def test_above_low_a_get_promotes(make):
    async with open_memory(store()) as memory:
        await memory.put("a", make())
        await memory.reclaim(EVERYTHING)
        assert await memory.get("a") == make()
        assert state(memory, "a") == RESIDENT


async def test_get_nowait_serves_what_is_compressed():
    async with open_memory() as memory:
        await memory.put("a", text())
        await memory.reclaim(EVERYTHING)
        assert memory.get_nowait("a") == text()


async def test_get_nowait_would_block_where_only_a_store_has_it():
    async with open_memory(store()) as memory:
        await memory.put("a", noise())
        await memory.reclaim(EVERYTHING)
        with pytest.raises(anyio.WouldBlock):
            memory.get_nowait("a")
        assert await memory.get("a") == noise()
        assert memory.get_nowait("a") == noise()


async def test_get_nowait_would_block_where_a_store_has_one_part_of_it():
    async with open_memory(store()) as memory:
        await memory.put("a", noise(1, 8 * PAGE))
        memory._machine.reclaim_inline(1, Reclaimer.DIRECT)
        await memory.drain()
        with pytest.raises(anyio.WouldBlock):
            memory.get_nowait("a")


# pin


async def test_a_pin_is_a_read_only_contiguous_view():
    async with open_memory() as memory:
        await memory.put("a", noise())
        async with memory.pin("a") as view:
            assert view == noise()
            assert view.readonly
            assert view.contiguous
        assert memory._node.memcg.pinned == 0


@pytest.mark.parametrize("size", [PAGE, 50_000])
@pytest.mark.parametrize("make", [text, noise], ids=["text", "noise"])
async def test_a_pinned_value_was_brought_in_and_stays(make, size):
    async with open_memory(store()) as memory:
        await memory.put("a", make(0, size))
        await memory.reclaim(EVERYTHING)
        async with memory.pin("a") as view:
            await memory.reclaim(EVERYTHING)
            assert view == make(0, size)
            assert memory._node.check()
        assert await memory.get("a") == make(0, size)


async def test_a_pinned_folio_is_not_reclaimed():
    async with open_memory() as memory:
        await memory.put("a", text())
        async with memory.pin("a"):
            await memory.reclaim(EVERYTHING)
            assert state(memory, "a") == RESIDENT
        await memory.reclaim(EVERYTHING)
        assert state(memory, "a") == ZSWAP


@pytest.mark.parametrize("size", [PAGE, 50_000])
async def test_the_view_of_a_deleted_key_stays_valid_and_charged_until_it_is_unpinned(size):
    async with open_memory() as memory:
        await memory.put("a", noise(1, size))
        async with memory.pin("a") as view:
            await memory.delete("a")
            assert "a" not in memory
            assert view == noise(1, size)
            assert memory.usage().resident == size
        assert memory.usage().free == BUDGET


@pytest.mark.parametrize("size", [PAGE, 50_000])
async def test_the_view_of_an_overwritten_key_keeps_the_old_value(size):
    async with open_memory() as memory:
        await memory.put("a", noise(1, size))
        async with memory.pin("a") as view:
            await memory.put("a", noise(2, 100))
            assert view == noise(1, size)
            assert await memory.get("a") == noise(2, 100)
        assert memory.usage().resident == 100


async def test_a_joined_copy_is_charged():
    async with open_memory() as memory:
        await memory.put("a", noise(1, 50_000))
        async with memory.pin("a"):
            assert memory.usage().resident == 100_000
        assert memory.usage().resident == 50_000


async def test_two_pins_of_a_folio_share_it():
    async with open_memory() as memory:
        await memory.put("a", noise())
        async with memory.pin("a"):
            pinned = memory._node.memcg.pinned
            async with memory.pin("a") as second:
                assert memory._node.memcg.pinned == pinned
            assert second == noise()
        assert memory._node.memcg.pinned == 0


async def test_a_pin_that_can_never_fit_is_out_of_memory():
    async with open_memory() as memory:
        await memory.put("a", bytes(600_000))
        with pytest.raises(ra.OutOfMemory):
            await pin_twice(memory)
        assert memory._node.memcg.reserved == 0


async def pin_twice(memory):
    async with memory.pin("a"), memory.pin("a"):
        pass


async def test_a_pin_whose_key_is_overwritten_with_a_large_value_meanwhile_pins_that():
    gated = store()
    async with open_memory(gated) as memory:
        await memory.put("a", noise())
        await memory.reclaim(EVERYTHING)
        gated.load_gate = Gate()
        got = []

        async def pin():
            async with memory.pin("a") as view:
                got.append(bytes(view))

        pinning = asyncio.ensure_future(pin())
        await gated.load_gate.entered.wait()
        await memory.put("a", noise(2, 50_000))
        gated.load_gate.open()
        await pinning
        assert got == [noise(2, 50_000)]
        assert memory._node.check()


async def test_a_large_pin_whose_key_grows_while_it_waits_for_room_is_charged_in_full():
    gated = store(store_gate=Gate())
    async with open_memory(gated) as memory:
        await memory.put("a", noise(1, 5 * PAGE))
        fill(memory, MIN + 40_000)
        got = []

        async def pin():
            async with memory.pin("a") as view:
                got.append((view.nbytes, memory._node.memcg.pinned))

        big = asyncio.ensure_future(memory.put("big", noise(3, 60_000)))
        await gated.store_gate.entered.wait()
        pinning = asyncio.ensure_future(pin())
        await settle()
        memory._node.values.commit("a", [noise(2, 4 * PAGE), noise(3, 4 * PAGE)], 0)
        gated.store_gate.open()
        await asyncio.gather(big, pinning)
        assert got == [(8 * PAGE, 8 * PAGE)]
        assert memory._node.check()


# reclaim, drain, advise


async def test_reclaim_returns_the_bytes_that_were_really_freed():
    async with open_memory() as memory:
        for i in range(64):
            await memory.put(i, text(i))
        before = memory.usage().free
        freed = await memory.reclaim(20 * PAGE)
        assert freed >= 20 * PAGE
        assert memory.usage().free - before == freed
        assert memory.vmstat["pgsteal_proactive"] >= 20


async def test_reclaim_of_more_than_there_is_returns_what_there_was():
    async with open_memory(store()) as memory:
        await memory.put("a", noise())
        await memory.drain()
        assert 0 <= await memory.reclaim(EVERYTHING) <= PAGE
        assert await memory.reclaim(EVERYTHING) == 0


async def test_reclaim_of_what_cannot_be_freed_is_nothing():
    async with open_memory() as memory:
        await memory.put("a", noise())
        assert await memory.reclaim(EVERYTHING) == 0
        assert await memory.get("a") == noise()


async def test_reclaim_of_nothing_frees_nothing():
    async with open_memory() as memory:
        await memory.put("a", text())
        assert await memory.reclaim(0) == 0
        assert state(memory, "a") == RESIDENT


async def test_drain_waits_until_nothing_is_in_flight():
    gated = store(store_gate=Gate())
    async with open_memory(gated) as memory:
        fill(memory, LOW - 10_000)
        memory._machine.wake_kswapd()
        await gated.store_gate.entered.wait()
        drain = asyncio.ensure_future(memory.drain())
        await settle()
        assert not drain.done()
        gated.store_gate.open()
        await drain
        assert memory.usage().in_flight == 0
        assert memory._node.idle


async def test_pageout_has_a_value_reclaimed_although_memory_is_free():
    async with open_memory() as memory:
        await memory.put("a", text())
        memory.advise("a", ra.Advice.PAGEOUT)
        await memory.drain()
        assert state(memory, "a") == ZSWAP


async def test_pageout_takes_nothing_beside_what_was_advised():
    async with open_memory() as memory:
        for key in "abc":
            await memory.put(key, text())
        memory.advise("b", ra.Advice.PAGEOUT)
        await memory.drain()
        assert [state(memory, key) for key in "abc"] == [RESIDENT, ZSWAP, RESIDENT]


async def test_advice_is_an_advice():
    async with open_memory() as memory:
        await memory.put("a", text())
        with pytest.raises(TypeError, match=r"Advice\.COLD.*not 'cold'"):
            memory.advise("a", "cold")


async def test_an_opening_is_entered_once():
    opening = open_memory()
    async with opening:
        with pytest.raises(RuntimeError, match="entered before"):
            await opening.__aenter__()


@pytest.mark.parametrize("end", ["delete", "overwrite"])
async def test_a_zero_value_that_ends_while_its_pin_waits_gives_no_slot_away(end):
    """What a SAME folio keeps in `entry` is a word, not a slot."""
    async with open_memory(store()) as memory:
        node = memory._node
        await memory.put("slot 0", noise())
        await memory.put("zero", bytes(PAGE))
        await memory.reclaim(EVERYTHING)
        assert [state(memory, key) for key in ("slot 0", "zero")] == [DEVICE, SAME]
        pfn = node.values.small["zero"]
        node.pin(pfn)  # as `Memory.pin` does before it waits for room
        if end == "delete":
            await memory.delete("zero")
        else:
            await memory.put("zero", text())
        node.unpin(pfn)
        await memory.drain()
        assert node.check()
        assert await memory.get("slot 0") == noise()


async def test_pageout_of_what_cannot_be_reclaimed_does_not_stop_kswapd_for_later():
    async with open_memory() as memory:
        await memory.put("a", noise())
        memory.advise("a", ra.Advice.PAGEOUT)
        await memory.drain()
        assert state(memory, "a") == UNEVICTABLE
        fill(memory, LOW - 10_000, text)
        memory._machine.wake_kswapd()
        await memory.drain()
        assert memory.usage().free >= HIGH


async def test_cold_makes_a_value_the_next_to_go():
    async with open_memory() as memory:
        for i in range(40):
            await memory.put(i, text(i))
        memory.advise(33, ra.Advice.COLD)
        memory._machine.reclaim_inline(1, Reclaimer.DIRECT)
        assert state(memory, 33) == ZSWAP


class Unadvised(Mglru):
    deactivate = None


async def test_a_policy_that_ignores_advice_says_so_once(caplog):
    caplog.set_level(logging.WARNING, "reclaimactors")
    async with open_memory(policy=Unadvised(pages=64)) as memory:
        await memory.put("a", text())
        for advice in (ra.Advice.COLD, ra.Advice.PAGEOUT, ra.Advice.COLD):
            memory.advise("a", advice)
    (line,) = [record.message for record in caplog.records if "ignores" in record.message]
    assert "policy.ignores_advice" in line
    assert "policy='Unadvised'" in line
    assert "deactivate(pfn)" in line


async def test_cold_reclaims_nothing_by_itself():
    async with open_memory() as memory:
        await memory.put("a", text())
        memory.advise("a", ra.Advice.COLD)
        await memory.drain()
        assert state(memory, "a") == RESIDENT


@pytest.mark.parametrize("make", [text, noise], ids=["text", "noise"])
async def test_willneed_promotes(make):
    async with open_memory(store()) as memory:
        await memory.put("a", make())
        await memory.reclaim(EVERYTHING)
        memory.advise("a", ra.Advice.WILLNEED)
        await settle()
        assert state(memory, "a") == RESIDENT


async def test_below_low_willneed_only_wakes_kswapd():
    async with open_memory() as memory:
        await memory.put("a", text())
        await memory.reclaim(EVERYTHING)
        fill(memory, LOW + 100)
        memory.advise("a", ra.Advice.WILLNEED)
        assert state(memory, "a") == ZSWAP
        assert memory._machine.background.awake


# gauges


async def test_usage_adds_up_to_the_budget():
    async with open_memory(store()) as memory:
        for i in range(100):
            await memory.put(i, (text if i % 2 else noise)(i))
        await memory.reclaim(100_000)
        usage = memory.usage()
        assert usage.budget == BUDGET
        assert usage.budget == usage.resident + usage.compressed + usage.overhead + usage.free
        assert usage.in_flight <= usage.resident
        assert usage.overhead == 100 * OVERHEAD


async def test_a_store_in_this_process_counts_as_compressed():
    async with open_memory(MemoryBackend()) as memory:
        await memory.put("a", noise())
        await memory.reclaim(EVERYTHING)
        assert memory.usage().compressed == memory.usage().swapped == PAGE


async def test_an_empty_memory_uses_nothing():
    async with open_memory() as memory:
        usage = memory.usage()
        assert (usage.resident, usage.compressed, usage.overhead) == (0, 0, 0)
        assert usage.free == BUDGET


async def test_vmstat_has_the_kernels_names_from_the_start_and_is_read_only():
    async with open_memory() as memory:
        vmstat = memory.vmstat
        names = {"pgsteal_anon", "pgscan_kswapd", "allocstall_normal", "zswpout", "pool_limit_hit"}
        assert names <= vmstat.keys()
        with pytest.raises(TypeError):
            vmstat["pgsteal_anon"] = 1
        with pytest.raises(AttributeError):
            vmstat.clear()


async def test_pressure_full_is_at_most_some():
    async with open_memory(store()) as memory:
        for i in range(600):
            await memory.put(i, (text if i % 2 else noise)(i))
            assert memory.pressure().full.total <= memory.pressure().some.total
        pressure = memory.pressure()
        assert pressure.some.total > 0
        for full, some in zip(averages(pressure.full), averages(pressure.some), strict=True):
            assert 0 <= full <= some <= 100


def averages(line):
    return line.avg10, line.avg60, line.avg300


async def test_repr_says_what_it_is():
    async with open_memory() as memory:
        assert repr(memory) == "<Memory 'kcompressd': 0 keys, 0B of 1MiB>"


# other threads


THREAD_CALLS = {
    "get_nowait": lambda memory: memory.get_nowait("a"),
    "put_nowait": lambda memory: memory.put_nowait("a", b""),
    "advise": lambda memory: memory.advise("a", ra.Advice.COLD),
    "keys": lambda memory: memory.keys(),
    "get": lambda memory: memory.get("a").send(None),
    "put": lambda memory: memory.put("a", b"").send(None),
    "delete": lambda memory: memory.delete("a").send(None),
    "reclaim": lambda memory: memory.reclaim(1).send(None),
    "drain": lambda memory: memory.drain().send(None),
    "pin": lambda memory: memory.pin("a").__aenter__().send(None),
}

LOOKS = {
    "usage": lambda memory: memory.usage().budget == BUDGET,
    "pressure": lambda memory: memory.pressure().some.total == 0,
    "vmstat": lambda memory: memory.vmstat["oom_kill"] == 0,
    "swaps": lambda memory: memory.swaps() == [],
    "health": lambda memory: memory.health().state == "open",
    "len": lambda memory: len(memory) == 1,
    "in": lambda memory: "a" in memory,
}


@pytest.mark.parametrize("call", [*THREAD_CALLS.values()], ids=[*THREAD_CALLS])
async def test_a_call_from_another_thread_is_a_runtime_error(call):
    async with open_memory() as memory:
        await memory.put("a", b"value")
        errors = []

        def run():
            try:
                call(memory)
            except RuntimeError as exc:
                errors.append(str(exc))

        thread = threading.Thread(target=run)
        thread.start()
        thread.join()
        assert errors
        assert "belongs to the thread that opened it" in errors[0]
        assert "run_coroutine_threadsafe" in errors[0]


@pytest.mark.parametrize("look", [*LOOKS.values()], ids=[*LOOKS])
async def test_what_only_looks_is_allowed_from_another_thread(look):
    async with open_memory() as memory:
        await memory.put("a", b"value")
        assert await asyncio.to_thread(look, memory) is True


# cost


async def test_many_callers_share_the_calls_of_a_turn():
    """Eight loops over hits hold the event loop hardly longer than one of them."""
    async with open_memory() as memory:
        await memory.put("a", text())
        done = 0
        a_turn: list[int] = []

        async def reader() -> None:
            nonlocal done
            for _ in range(2000):
                await memory.get("a")
                done += 1

        async def watcher() -> None:
            while done < 8 * 2000:
                before = done
                await checkpoint()
                a_turn.append(done - before)

        async with anyio.create_task_group() as tasks:
            for _ in range(8):
                tasks.start_soon(reader)
            tasks.start_soon(watcher)
        assert sum(a_turn) > 12_000
        assert max(a_turn[2:]) <= 2 * BUDGET_CALLS


async def test_hits_yield_to_the_loop_once_in_a_while():
    async with open_memory() as memory:
        await memory.put("a", b"value")
        others = []

        async def other():
            while True:
                others.append(True)
                await checkpoint()

        task = asyncio.ensure_future(other())
        for _ in range(1000):
            await memory.get("a")
        task.cancel()
        assert 3 <= len(others) <= 10


async def test_a_value_larger_than_the_budget_is_told_what_helps():
    async with open_memory() as memory:
        with pytest.raises(ra.OutOfMemory, match=r"never fits a budget of .*put it in parts"):
            await memory.put("a", bytes(memory.usage().budget + 1))


@pytest.mark.parametrize("nbytes", ["1MiB", -1, 0.5, True])
async def test_reclaim_takes_a_number_of_bytes(nbytes):
    async with open_memory() as memory:
        with pytest.raises(ra.TopologyError, match=r"nbytes is .*whole number from 0"):
            await memory.reclaim(nbytes)


async def test_a_policy_object_serves_one_memory():
    policy = Mglru(pages=64)
    async with open_memory(policy=policy) as memory:
        await memory.put("a", text())
    with pytest.raises(ra.PluginError, match=r"^policy: .*Mglru has served a memory already"):
        async with open_memory(policy=policy):
            pass


async def test_an_object_on_the_path_of_a_hit_has_few_attributes():
    """CPython 3.11 finds an attribute by its place in objects of up to 30 of them."""
    async with open_memory() as memory:
        for thing in (memory, memory._machine, memory._node, memory._group):
            assert len(vars(thing)) <= 30, type(thing)
