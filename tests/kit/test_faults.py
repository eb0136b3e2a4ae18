"""The plugins that fail on purpose, and gates, do as they are told."""

import zlib

import anyio
import pytest

from reclaimactors import Backend, BackendError, BackendFull, CorruptData
from reclaimactors.backends.memory import MemoryBackend
from reclaimactors.testing import (
    FaultyBackend,
    FaultyCompressor,
    Gate,
    GatedCompressor,
    ThreadGate,
)

PAGE = 4096


class Codec:
    """Conforms."""

    name = "codec"

    def compress(self, data):
        return zlib.compress(data, 1)

    def decompress(self, blob, size):
        return zlib.decompress(blob)


async def faulty(**faults) -> FaultyBackend:
    backend = FaultyBackend(MemoryBackend(), **faults)
    await backend.open(PAGE)
    return backend


async def test_looks_like_the_inner_one():
    backend = FaultyBackend(MemoryBackend(capacity=9))
    assert backend.synchronous
    assert backend.in_this_process
    assert not FaultyBackend(Backend()).synchronous
    assert not FaultyBackend(Backend()).in_this_process
    await backend.open(PAGE)
    assert backend.capacity == 9
    await backend.store(1, b"abc")
    assert backend.footprint([1]) == 3


async def test_fails_on_the_numbered_calls():
    boom = BackendError(5, "boom")
    backend = await faulty(store_errors={2: boom}, load_errors={1: OSError("lost")})
    await backend.store(1, b"a")
    with pytest.raises(BackendError, match="boom"):
        await backend.store_many([(1, b"b"), (2, b"c")])
    with pytest.raises(OSError, match="lost"):
        await backend.load(1)
    for slot in (1, 2):
        with pytest.raises(BackendError, match="never stored"):
            await backend.load(slot)
    await backend.store(2, b"d")
    assert await backend.load(2) == b"d"
    assert (backend.nr_stores, backend.nr_loads) == (3, 4)


async def test_fails_while_broken():
    backend = await faulty()
    await backend.store(1, b"a")
    backend.error = BackendError(5, "broken")
    with pytest.raises(BackendError, match="broken"):
        await backend.load(1)
    with pytest.raises(BackendError, match="broken"):
        await backend.store(2, b"b")
    backend.error = None
    assert await backend.load(1) == b"a"


async def test_is_full_after_so_many_slots():
    backend = await faulty(full_after=2)
    await backend.store_many([(1, b"a"), (2, b"b")])
    with pytest.raises(BackendFull):
        await backend.store(3, b"c")
    await backend.store(2, b"B")
    await backend.invalidate(1)
    await backend.store(3, b"c")
    assert await backend.load_many([2, 3]) == [b"B", b"c"]


@pytest.mark.parametrize(
    ("damage", "expected"),
    [
        (None, b"new!"),
        ("flip", bytes([ord("n") ^ 0xFF]) + b"ew!"),
        ("zero", bytes(4)),
        ("short", b"ne"),
        ("stale", b"old!"),
        ("misplace", b"else"),
    ],
)
async def test_damages_what_it_loads(damage, expected):
    backend = await faulty(damage=damage, damaged_slots={1})
    await backend.store_many([(1, b"old!"), (2, b"else")])
    await backend.store(1, b"new!")
    assert await backend.load_many([1, 2]) == [expected, b"else"]
    backend.damaged_slots = None
    assert (await backend.load(2) == b"else") == (damage is None)


@pytest.mark.parametrize("call", ["store", "load"])
async def test_hangs_at_its_gate(call):
    backend = await faulty()
    await backend.store(1, b"a")
    gate = Gate()
    setattr(backend, f"{call}_gate", gate)
    results = []

    async def use():
        if call == "store":
            await backend.store(1, b"b")
        results.append(await backend.inner.load(1))

    async def load():
        results.append(await backend.load(1))

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(use if call == "store" else load)
        await gate.entered.wait()
        assert not results
        assert await backend.inner.load(1) == b"a"
        gate.open()
    assert results == [b"b" if call == "store" else b"a"]


def test_compressor_fails_on_every_kth_page_or_where_told():
    third = FaultyCompressor(Codec(), every=3)
    blobs = []
    for nr in range(6):
        try:
            blobs.append(third.compress(b"page"))
        except CorruptData:
            blobs.append(nr)
    assert [blob for blob in blobs if isinstance(blob, int)] == [2, 5]
    assert third.decompress(blobs[0], 4) == b"page"
    picky = FaultyCompressor(Codec(), when=lambda page: page[0] == 7, error=RuntimeError("seven"))
    picky.compress(memoryview(b"\1page"))
    with pytest.raises(RuntimeError, match="seven"):
        picky.compress(memoryview(b"\7page"))
    picky.decompress_error = CorruptData("unreadable")
    with pytest.raises(CorruptData, match="unreadable"):
        picky.decompress(blobs[0], 4)


async def test_compressor_waits_at_its_gate():
    gate = ThreadGate()
    compressor = GatedCompressor(Codec(), gate)
    blobs = []

    async def compress():
        blobs.append(await anyio.to_thread.run_sync(compressor.compress, b"page"))

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(compress)
        await gate.wait_entered()
        assert not blobs
        gate.open()
    assert compressor.decompress(blobs[0], 4) == b"page"


async def test_thread_gate_does_not_wait_for_ever():
    gate = ThreadGate(timeout=0.01)
    with pytest.raises(TimeoutError, match="nobody came"):
        await gate.wait_entered()
    with pytest.raises(TimeoutError):
        await anyio.to_thread.run_sync(gate.wait)


async def test_the_event_loop_does_not_wait_at_a_gate_that_it_is_to_open():
    gate = ThreadGate()
    with pytest.raises(RuntimeError, match="open itself"):
        gate.wait()
    gate.open()
    gate.wait()
