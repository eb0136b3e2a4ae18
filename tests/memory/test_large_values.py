"""Values of many folios: no step is as long as the value, and what comes back is one whole value.

Work is counted by turns of the event loop: a task counts them, and whatever decompresses, checks or
expands notes how many bytes it was given in which of them. Breaths yield each time that they may.
"""

import asyncio
import errno
import random
import threading
from collections import Counter
from contextlib import suppress

import anyio
import pytest
from anyio.lowlevel import checkpoint

import reclaimactors as ra
from reclaimactors.actors import loads as loads_module
from reclaimactors.actors.loads import MOST_SLOTS
from reclaimactors.backends.memory import MemoryBackend
from reclaimactors.callers import prefetch as prefetch_module
from reclaimactors.compressors.lz4 import Lz4
from reclaimactors.cpu import breath as breath_module
from reclaimactors.cpu.breath import let_go
from reclaimactors.mm import swapin as swapin_module
from reclaimactors.mm.folio import DEVICE, RESIDENT, SAME, ZSWAP
from reclaimactors.offload.job import COPY_BYTES, join, join_in_map
from reclaimactors.testing import FaultyBackend, Gate

PART = 64 << 10
FOLIOS = 40
BUDGET = 16 << 20
EVERYTHING = 1 << 30


def text(version=0, folios=FOLIOS):
    """A value that says in each line which version it is of."""
    line = b"this is version %08d of a value of many lines;\n" % version
    return (line * (PART * folios // len(line) + 1))[: PART * folios]


def noise(version=0, folios=FOLIOS):
    return random.Random(version).randbytes(PART * folios)


class Elsewhere(MemoryBackend):
    """A store outside of this process, or so it says, that has nothing at hand."""

    synchronous = False
    footprint = ra.Backend.footprint
    load_now = ra.Backend.load_now

    def __init__(self):
        super().__init__()
        self.asked = []

    async def load_many(self, slots):
        await checkpoint()
        self.asked.append(len(slots))
        return [self._slots[slot] for slot in slots]


class Turns:
    """Counts turns of the loop, and how many bytes were worked on in each, in its own thread."""

    def __init__(self):
        self.turn = 0
        self.bytes = Counter()
        self.elsewhere = 0
        self._thread = threading.get_ident()

    async def count(self):
        while True:
            self.turn += 1
            await checkpoint()

    def note(self, nr_bytes):
        if threading.get_ident() == self._thread:
            self.bytes[self.turn] += nr_bytes
        else:
            self.elsewhere += nr_bytes

    @property
    def most(self):
        return max(self.bytes.values(), default=0)


class Counting(Lz4):
    """lz4 that notes what it decompresses."""

    def __init__(self, turns):
        super().__init__()
        self.turns = turns
        self.broken = False

    def decompress(self, blob, size):
        self.turns.note(size)
        if self.broken:
            raise ra.CorruptData("broken")
        return super().decompress(blob, size)


@pytest.fixture
async def turns(monkeypatch):
    turns = Turns()

    def counted(function, size_of):
        def call(*args):
            turns.note(size_of(*args))
            return function(*args)

        return call

    monkeypatch.setattr(breath_module, "TURN_S", 0.0)
    monkeypatch.setattr(prefetch_module, "SLICE_S", 0.0)
    crc32, expand = swapin_module.crc32, swapin_module.expand
    monkeypatch.setattr(swapin_module, "crc32", counted(crc32, len))
    monkeypatch.setattr(swapin_module, "expand", counted(expand, lambda _, size: size))
    task = asyncio.ensure_future(turns.count())
    yield turns
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task


def open_memory(turns, *stores, offload="thread", **overrides):
    compress = {"compressor": Counting(turns), "offload": offload}
    spec = {
        "budget": BUDGET,
        "max_folio": PART,
        "compress": compress,
        "zswap": {"max_pool_percent": 80} if not stores else {"enabled": False},
        "swap": [{"backend": store, "size": "64MiB"} for store in stores],
    }
    return ra.open_memory("kcompressd", **spec | overrides)


async def reclaimed(memory, key, value):
    await memory.put(key, value)
    while await memory.reclaim(EVERYTHING):
        pass
    await memory.drain()
    assert not memory.usage().resident
    memory._machine.cpu.rates.expand = 1e8  # so that reading back takes long on any machine


def states(memory, key="k"):
    return {memory._node.mm.state[pfn] for pfn in memory._node.values.pfns(key)}


# -- no step is as long as the value

MAKES = {"pool": (text, ZSWAP), "same": (lambda: bytes(PART * FOLIOS), SAME)}


@pytest.mark.parametrize("offload", ["thread", "inline"])
@pytest.mark.parametrize("what", [*MAKES, "store"])
@pytest.mark.parametrize("call", ["get", "pin", "WILLNEED"])
async def test_a_value_comes_back_a_few_folios_a_turn(turns, offload, what, call):
    make, where = MAKES.get(what, (noise, DEVICE))
    stores = [Elsewhere()] if what == "store" else []
    async with open_memory(turns, *stores, offload=offload) as memory:
        value = make()
        await reclaimed(memory, "k", value)
        assert states(memory) == {where}
        turns.bytes.clear()
        if call == "get":
            assert await memory.get("k") == value
        elif call == "pin":
            async with memory.pin("k") as view:
                assert view == value
        else:
            memory.advise("k", ra.Advice.WILLNEED)
            await memory.drain()
            assert states(memory) == {RESIDENT}
        assert sum(turns.bytes.values()) + turns.elsewhere >= FOLIOS * PART
        assert turns.most <= 4 * PART, "of a value of 40 folios"
        assert await memory.get("k") == value
        assert memory._node.check()


async def test_a_large_folio_is_decompressed_off_the_loop_for_a_pin(turns):
    async with open_memory(turns, max_folio=4 << 20) as memory:
        await reclaimed(memory, "k", text())
        assert len(memory._node.values.pfns("k")) == 1
        turns.bytes.clear()
        async with memory.pin("k") as view:
            assert view == text()
        assert turns.most == 0
        assert turns.elsewhere >= PART * FOLIOS


async def test_a_store_is_asked_for_a_large_value_in_pieces(turns):
    store = Elsewhere()
    async with open_memory(turns, store) as memory:
        await reclaimed(memory, "k", noise())
        store.asked.clear()
        assert await memory.get("k") == noise()
        assert sum(store.asked) == PART * FOLIOS // 4096
        assert max(store.asked) <= MOST_SLOTS


@pytest.mark.asyncio(loop_factories=["virtual"])
async def test_a_store_that_is_too_slow_is_not_asked_for_the_rest_of_a_value():
    store = FaultyBackend(Elsewhere())
    swap = [{"backend": store, "size": "64MiB", "timeout": 3.0}]
    zswap = {"enabled": False}
    async with ra.open_memory(
        budget=BUDGET, max_folio=PART, compress={"offload": "inline"}, swap=swap, zswap=zswap
    ) as memory:
        await memory.put("k", noise())
        while await memory.reclaim(EVERYTHING):
            pass
        await memory.drain()
        store.load_gate = Gate()
        before = store.nr_loads
        with pytest.raises(ra.BackendError, match="took longer than 3 s"):
            await memory.get("k")
        assert store.nr_loads == before + 1
        assert not memory._machine.swapds[0].loads.tickets
        store.load_gate.open()
        store.load_gate = None
        assert await memory.get("k") == noise()
        assert memory._node.check()


async def test_a_long_join_runs_in_a_thread(monkeypatch):
    hops = []

    async def recording(call, *args, limiter):
        hops.append(limiter)
        return call(*args)

    monkeypatch.setattr("reclaimactors.offload.job.hop", recording)
    limiter = anyio.CapacityLimiter(1)
    parts = [b"a" * (COPY_BYTES // 2), b"b" * (COPY_BYTES // 2)]
    assert await join(parts, limiter=limiter) == b"".join(parts)
    assert not hops
    assert await join([*parts, b"c"], limiter=limiter) == b"".join([*parts, b"c"])
    assert hops == [limiter]


async def test_a_map_is_filled_in_slices():
    parts = [bytes([i]) * (1 << 20) for i in range(16)]
    filling = asyncio.ensure_future(join_in_map(parts))
    turns = 0
    while not filling.done():
        await checkpoint()
        turns += 1
    assert turns > 16
    with filling.result() as joined:
        assert joined[:] == b"".join(parts)


async def test_a_map_of_nothing_is_empty():
    assert await join_in_map([b""]) == b""


async def test_what_the_system_refuses_is_a_memory_error(monkeypatch):
    def refused(*_, **__):
        raise OSError(errno.ENOMEM, "Cannot allocate memory")

    monkeypatch.setattr("reclaimactors.offload.job.mmap", refused)
    with pytest.raises(MemoryError, match="Cannot allocate"):
        await join_in_map([b"a"])


async def test_a_long_join_needs_no_thread(monkeypatch):
    async def refused(*_, **__):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr("reclaimactors.threads.to_thread.run_sync", refused)
    parts = [b"a" * COPY_BYTES, b"b" * COPY_BYTES]
    assert await join(parts, limiter=anyio.CapacityLimiter(1)) == b"".join(parts)


async def test_what_is_resident_says_nothing_about_how_fast_blobs_are_decompressed(turns):
    async with open_memory(turns) as memory:
        await memory.put("k", text())
        before = memory._machine.cpu.rates.expand
        for _ in range(20):
            await memory.get("k")
            memory.get_nowait("k")
        assert memory._machine.cpu.rates.expand == before


# -- what goes is freed in slices


async def test_references_are_let_go_a_few_at_a_time(turns):
    held = [bytes([i]) for i in range(100)]
    letting = asyncio.ensure_future(let_go(held))
    left = []
    while not letting.done():
        await checkpoint()
        left.append(len(held))
    assert left[-1] == 0
    assert max(a - b for a, b in zip([100, *left], left, strict=False)) <= 8


async def test_a_map_is_cut_from_its_end_and_closed(monkeypatch):
    monkeypatch.setattr(breath_module, "TURN_S", 0.0)
    joined = await join_in_map([b"x" * (20 << 20)])
    letting = asyncio.ensure_future(let_go(joined))
    left = []
    while not letting.done():
        left.append(len(joined))
        await checkpoint()
    assert joined.closed
    assert left == [n << 20 for n in range(20, 0, -1)]


async def test_a_map_that_somebody_looks_at_stays():
    joined = await join_in_map([b"x" * (4 << 20)])
    view = memoryview(joined)[1:]
    await let_go(joined)
    assert view == b"x" * ((4 << 20) - 1)


@pytest.mark.parametrize("call", ["delete", "put", "put_nowait"])
async def test_a_large_value_that_goes_is_freed_in_slices(turns, call, monkeypatch):
    async with open_memory(turns) as memory:
        await memory.put("k", text())
        given = []
        monkeypatch.setattr(memory._node, "let_go", lambda held: given.append(len(held)))
        if call == "delete":
            await memory.delete("k")
        elif call == "put":
            await memory.put("k", text(2))
        else:
            memory.put_nowait("k", text(2))
        assert given == [FOLIOS]
        assert memory.usage().resident == (0 if call == "delete" else FOLIOS * PART)


async def test_a_callback_of_the_loop_puts_over_a_large_value(turns):
    async with open_memory(turns) as memory:
        await memory.put("k", text())
        asyncio.get_running_loop().call_soon(memory.put_nowait, "k", text(2))
        await anyio.sleep(0.01)
        assert await memory.get("k") == text(2)
        assert not memory._machine.starter._to_free


async def test_the_view_of_a_large_pin_is_released_unless_somebody_else_has_one(turns):
    async with open_memory(turns) as memory:
        await memory.put("k", text())
        async with memory.pin("k") as view:
            pass
        with pytest.raises(ValueError, match="released"):
            view.tobytes()
        async with memory.pin("k") as view:
            other = memoryview(view)
        await anyio.sleep(0)
        assert other == text()
        assert memory._node.memcg.reserved == memory._node.memcg.pinned == 0


async def test_a_value_that_never_fits_is_refused_before_it_is_copied(turns, monkeypatch):
    async with open_memory(turns) as memory:
        monkeypatch.setattr("reclaimactors.memory.split", lambda *_: pytest.fail("it was copied"))
        with pytest.raises(ra.OutOfMemory, match="never fits"):
            await memory.put("k", bytes(BUDGET))


# -- one whole value


@pytest.mark.parametrize("where", ["pool", "store"])
async def test_readers_beside_writers_get_whole_values(turns, where):
    stores = [Elsewhere()] if where == "store" else []
    async with open_memory(turns, *stores, budget=BUDGET) as memory:
        versions = 12
        wanted = {text(version) for version in range(versions + 1)}
        await reclaimed(memory, "k", text(0))
        got, written = [], anyio.Event()

        async def read():
            while not written.is_set():
                value = await memory.get("k")
                assert value in wanted, "a mixture"
                got.append(value)

        async def write():
            for version in range(1, versions + 1):
                await memory.put("k", text(version))
                await memory.reclaim(PART * FOLIOS // 2)  # readers bring it back meanwhile
                memory._machine.cpu.rates.expand = 1e8
            written.set()

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(read)
            tasks.start_soon(read)
            tasks.start_soon(write)
        assert len(set(got)) > 1
        assert await memory.get("k") == text(versions)
        assert memory._node.check()


async def test_a_value_that_is_overwritten_without_end_is_read_all_the_same(turns):
    async with open_memory(turns) as memory:
        await reclaimed(memory, "k", text(0))
        expand = memory._faults.expander.expand
        version = 0

        async def overwritten(held):
            nonlocal version
            expanded = await expand(held)
            version += 1
            await memory.put("k", text(version))
            await memory.reclaim(EVERYTHING)
            memory._machine.cpu.rates.expand = 1e8
            return expanded

        memory._faults.expander.expand = overwritten
        with anyio.fail_after(20):
            value = await memory.get("k")
        assert value in {text(i) for i in range(version + 1)}


@pytest.mark.parametrize("call", ["get", "pin"])
@pytest.mark.parametrize("what", ["pool", "store"])
async def test_a_cancelled_read_leaves_everything_as_it_was(turns, call, what):
    """Whenever it is cancelled."""
    make = text if what == "pool" else noise
    stores = [Elsewhere()] if what == "store" else []

    async def read(memory):
        if call == "get":
            await memory.get("k")
        else:
            async with memory.pin("k"):
                pass

    async with open_memory(turns, *stores) as memory:
        for after in [*range(12), 20, 40, 80]:
            await reclaimed(memory, "k", make(after))
            reading = asyncio.ensure_future(read(memory))
            for _ in range(after):
                await checkpoint()
            reading.cancel()
            with suppress(asyncio.CancelledError):
                await reading
            assert await memory.get("k") == make(after)
            await memory.drain()
            assert memory._node.memcg.reserved == memory._node.memcg.pinned == 0
            assert memory._node.check()


async def test_a_damaged_blob_is_met_by_a_get_of_a_large_value(turns):
    async with open_memory(turns) as memory:
        await reclaimed(memory, "k", text())
        memory._machine.compressor.broken = True
        for _ in range(2):
            with pytest.raises(ra.CorruptData, match="the zswap pool"):
                await memory.get("k")
        assert memory.vmstat["decompress_fail"] == 2
        memory._machine.compressor.broken = False
        assert await memory.get("k") == text()


# -- WILLNEED


async def test_a_damaged_blob_is_counted_ahead_of_need_and_not_raised(turns):
    async with open_memory(turns) as memory:
        for key in ("k", "small"):
            await reclaimed(memory, key, text() if key == "k" else text(1, 1))
        memory._machine.compressor.broken = True
        memory.advise("small", ra.Advice.WILLNEED)
        memory.advise("k", ra.Advice.WILLNEED)
        await memory.drain()
        assert memory.vmstat["decompress_fail"] >= 2
        assert states(memory) == states(memory, "small") == {ZSWAP}
        assert not memory.vmstat["actor_restarts"]
        memory._machine.compressor.broken = False
        assert await memory.get("k") == text()
        assert await memory.get("small") == text(1, 1)


async def test_a_store_that_cannot_read_ahead_of_need_is_counted(turns):
    store = FaultyBackend(Elsewhere())
    async with open_memory(turns, store) as memory:
        await reclaimed(memory, "k", noise())
        store.error = OSError(5, "dead")
        memory.advise("k", ra.Advice.WILLNEED)
        await memory.drain()
        assert memory.vmstat["swapin_error"]
        assert not memory.vmstat["actor_restarts"]
        store.error = None
        assert await memory.get("k") == noise()


@pytest.mark.parametrize("fate", ["delete", "overwrite", "asked twice"])
async def test_a_value_may_change_while_it_comes_ahead_of_need(turns, fate):
    async with open_memory(turns) as memory:
        await reclaimed(memory, "k", text())
        memory.advise("k", ra.Advice.WILLNEED)
        assert memory._prefetch.pending
        await checkpoint()
        if fate == "delete":
            await memory.delete("k")
        elif fate == "overwrite":
            await memory.put("k", text(2))
        else:
            memory.advise("k", ra.Advice.WILLNEED)
        await memory.drain()
        assert not memory._prefetch.pending
        if fate == "delete":
            assert "k" not in memory
        else:
            assert await memory.get("k") == text(2 if fate == "overwrite" else 0)
        assert memory._node.check()


async def test_ahead_of_need_is_no_reason_to_go_below_low(turns):
    async with open_memory(turns) as memory:
        await reclaimed(memory, "k", text())
        node = memory._node
        filler = node.memcg.free - node.marks.low - FOLIOS * PART
        node.memcg.reserve(filler)
        memory.advise("k", ra.Advice.WILLNEED)
        node.memcg.reserve(PART * 10)  # room that somebody takes meanwhile
        await anyio.sleep(0)
        while memory._prefetch.pending:
            await checkpoint()
        assert node.memcg.free >= node.marks.low - PART
        assert ZSWAP in states(memory)
        node.memcg.unreserve(filler + PART * 10)


async def test_a_memory_closes_while_values_come_ahead_of_need(turns):
    store = FaultyBackend(Elsewhere(), load_gate=Gate())
    async with open_memory(turns, store) as memory:
        await reclaimed(memory, "k", noise())
        memory.advise("k", ra.Advice.WILLNEED)
        await store.load_gate.entered.wait()
    assert store.load_gate is not None


async def test_willneed_of_an_absent_key_is_a_key_error(turns):
    async with open_memory(turns) as memory:
        with pytest.raises(KeyError):
            memory.advise("k", ra.Advice.WILLNEED)


def test_pieces_hold_at_least_one_ticket():
    class Load:
        def __init__(self, nr):
            self.slots = range(nr)

    class Ticket:
        def __init__(self, nr):
            self.load = Load(nr)

    sizes = [1, MOST_SLOTS - 1, 1, 3 * MOST_SLOTS, 2, 2]
    pieces = list(loads_module._in_pieces([Ticket(nr) for nr in sizes]))
    assert [[len(ticket.load.slots) for ticket in piece] for piece in pieces] == [
        [1, MOST_SLOTS - 1],
        [1],
        [3 * MOST_SLOTS],
        [2, 2],
    ]
