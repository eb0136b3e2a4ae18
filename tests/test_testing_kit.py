"""The kit: its conformance tests fail for a plugin that breaks their rule, and its faults work."""

import asyncio
import inspect
import itertools
import os
import subprocess
import sys
import zlib

import anyio
import anyio.lowlevel
import pytest

from reclaimactors import Backend, BackendError, BackendFull, CorruptData
from reclaimactors.backends.memory import MemoryBackend
from reclaimactors.testing import (
    BackendTests,
    CompressorTests,
    FaultyBackend,
    FaultyCompressor,
    Gate,
    GatedCompressor,
    ThreadGate,
)

PAGE = 4096


def test_kit_imports_without_the_test_tools():
    code = (
        "import sys; sys.modules.update(pytest=None, hypothesis=None); import reclaimactors.testing"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def run(suite, name: str) -> None:
    """Run one test of a suite as pytest would."""
    test = getattr(suite, name)
    if inspect.iscoroutinefunction(test):
        asyncio.run(test())
    else:
        test()


def run_all(suite) -> None:
    names = [name for name in dir(suite) if name.startswith("test_")]
    assert len(names) > 10
    for name in names:
        run(suite, name)


# backends


class Raw(MemoryBackend):
    """Conforms; each class below breaks one rule of it."""


class BadCapacity(Raw):
    async def open(self, page_size):
        self.capacity = 0


class CloseNeedsOpen(Raw):
    async def open(self, page_size):
        self.ready = True

    async def aclose(self):
        assert self.ready


class LosesTheEnd(Raw):
    async def store_many(self, items):
        await super().store_many([(slot, data[:-1] + b"\0") for slot, data in items])


class ReturnsBytearrays(Raw):
    async def load_many(self, slots):
        return [bytearray(data) for data in await super().load_many(slots)]


class PadsTooMuch(Raw):
    async def load_many(self, slots):
        return [data + bytes(PAGE) for data in await super().load_many(slots)]


class LoadsOnce(Raw):
    async def load_many(self, slots):
        loaded = await super().load_many(slots)
        await self.invalidate_many(slots)
        return loaded


class OnePageSize(Raw):
    async def store_many(self, items):
        await super().store_many([(slot, data[:PAGE]) for slot, data in items])


class SortsLoads(Raw):
    async def load_many(self, slots):
        return await super().load_many(sorted(slots))


class StopsAt1024(Raw):
    async def store_many(self, items):
        await super().store_many(items[:1024])


class WrapsSlots(Raw):
    async def store_many(self, items):
        await super().store_many([(slot & 0xFFFF, data) for slot, data in items])

    async def load_many(self, slots):
        return await super().load_many([slot & 0xFFFF for slot in slots])


class NeverReplaces(Raw):
    async def store_many(self, items):
        await super().store_many([item for item in items if item[0] not in self._slots])


class LoadsZeros(Raw):
    async def load_many(self, slots):
        return [self._slots.get(slot, bytes(PAGE)) for slot in slots]


class RaisesKeyError(Raw):
    async def load_many(self, slots):
        return [self._slots[slot] for slot in slots]


class NeverForgets(Raw):
    async def invalidate_many(self, slots):
        pass


class StrictForget(Raw):
    async def invalidate_many(self, slots):
        for slot in slots:
            del self._slots[slot]


class ForgetsAll(Raw):
    async def invalidate_many(self, slots):
        if slots:
            self._slots.clear()


class EmptyBatchRaises(Raw):
    async def store_many(self, items):
        items[0]
        await super().store_many(items)


class OneAtATime(Raw):
    busy = False

    async def store_many(self, items):
        assert not self.busy
        self.busy = True
        await anyio.lowlevel.checkpoint()
        self.busy = False
        await super().store_many(items)


class StoresThenWaits(Raw):
    async def store_many(self, items):
        await super().store_many(items)
        await anyio.sleep(0.001)


class WritesBehind(Raw):
    """Goes on writing after it was cancelled, and so on top of what came later."""

    async def store_many(self, items):
        try:
            await anyio.sleep(0.0001)
        except BaseException:
            asyncio.get_running_loop().call_later(0, self._slots.update, items)
            raise
        await super().store_many(items)


class Shared(Raw):
    def __init__(self):
        super().__init__()
        self._slots = SHARED


class NegativeFootprint(Raw):
    def footprint(self, slots):
        return -1 if slots else 0


SHARED = {}


class BackendSuite(BackendTests):
    def __init__(self, make):
        self.make_backend = make


def test_conforming_backend_passes():
    run_all(BackendSuite(Raw))


@pytest.mark.parametrize(
    ("broken", "caught_by"),
    [
        (BadCapacity, "says_what_it_is"),
        (CloseNeedsOpen, "closes_without_having_been_opened"),
        (LosesTheEnd, "returns_what_was_stored"),
        (ReturnsBytearrays, "returns_what_was_stored"),
        (PadsTooMuch, "returns_what_was_stored"),
        (LoadsOnce, "returns_what_was_stored"),
        (OnePageSize, "page_size_is_the_one_it_was_opened_with"),
        (SortsLoads, "slots_in_any_order"),
        (StopsAt1024, "large_batch"),
        (WrapsSlots, "first_and_last_slot"),
        (NeverReplaces, "storing_to_a_slot_in_use_replaces_it"),
        (LoadsZeros, "load_of_a_slot_never_stored_raises"),
        (RaisesKeyError, "load_of_a_slot_never_stored_raises"),
        (NeverForgets, "invalidated_slots_are_gone_and_others_are_not"),
        (NeverForgets, "single_calls"),
        (StrictForget, "invalidating_a_slot_never_stored_does_nothing"),
        (ForgetsAll, "invalidated_slots_are_gone_and_others_are_not"),
        (EmptyBatchRaises, "nothing_to_do"),
        (OneAtATime, "calls_on_different_slots_may_overlap"),
        (StoresThenWaits, "cancelled_store_leaves_nothing_of_itself"),
        (WritesBehind, "cancelled_store_leaves_nothing_of_itself"),
        (Shared, "new_one_has_none_of_the_old_slots"),
        (NegativeFootprint, "footprint_is_a_number_of_bytes"),
    ],
    ids=lambda value: getattr(value, "__name__", value),
)
def test_broken_backend_is_caught(broken, caught_by):
    with pytest.raises(Exception):  # noqa: B017, PT011 - however it fails
        run(BackendSuite(broken), f"test_{caught_by}")


def test_unfinished_suite_says_what_is_missing():
    with pytest.raises(NotImplementedError, match="must define make_backend"):
        BackendTests().make_backend()
    with pytest.raises(NotImplementedError, match="must define make_compressor"):
        CompressorTests().make_compressor()


# compressors


class Codec:
    """Conforms; each class below breaks one rule of it."""

    name = "codec"

    def compress(self, data):
        return zlib.compress(data, 1)

    def decompress(self, blob, size):
        inflate = zlib.decompressobj()
        try:
            data = inflate.decompress(blob, size + 1)
        except zlib.error as exc:
            raise CorruptData(str(exc)) from exc
        if len(data) != size or not inflate.eof:
            raise CorruptData(f"{len(data)} bytes, not {size}")
        return data


class Nameless(Codec):
    name = ""


class ReturnsViews(Codec):
    def compress(self, data):
        return memoryview(super().compress(data))


class LosesTails(Codec):
    def compress(self, data):
        return super().compress(bytes(data)[:65536])


class BytesOnly(Codec):
    def compress(self, data):
        return zlib.compress(data.strip(b"\xff") if len(data) == 4097 else data, 1)


class KeepsTheView(Codec):
    def __init__(self):
        self.kept = []

    def compress(self, data):
        if isinstance(data, memoryview):
            self.kept.append(data[:])
        return super().compress(data)


class ReadsLater(Codec):
    """Its blob is a name under which it keeps the data in this process."""

    kept = {}  # noqa: RUF012 - it is a rule-breaker

    def compress(self, data):
        blob = super().compress(data)[:10] + len(self.kept).to_bytes(4, "big")
        self.kept[blob] = super().compress(data)
        return blob

    def decompress(self, blob, size):
        return super().decompress(self.kept.get(bytes(blob), b""), size)


class OwnDictionary(Codec):
    def __init__(self):
        self.salt = os.urandom(4)

    def compress(self, data):
        return self.salt + super().compress(data)

    def decompress(self, blob, size):
        if bytes(blob[:4]) != self.salt:
            raise CorruptData("not mine")
        return super().decompress(blob[4:], size)


class CutsToSize(Codec):
    def decompress(self, blob, size):
        return zlib.decompress(blob)[:size]


class Bomb(Codec):
    def decompress(self, blob, size):
        try:
            data = zlib.decompress(blob)
        except zlib.error as exc:
            raise CorruptData(str(exc)) from exc
        if len(data) != size:
            raise CorruptData(f"{len(data)} bytes, not {size}")
        return data


class IgnoresTheEnd(Codec):
    def decompress(self, blob, size):
        inflate = zlib.decompressobj()
        try:
            data = inflate.decompress(blob, size)
        except zlib.error as exc:
            raise CorruptData(str(exc)) from exc
        if len(data) != size:
            raise CorruptData(f"{len(data)} bytes, not {size}")
        return data


class OwnErrors(Codec):
    def decompress(self, blob, size):
        data = zlib.decompress(blob)
        if len(data) != size:
            raise CorruptData(f"{len(data)} bytes, not {size}")
        return data


class OtherBatches(Codec):
    def compress_many(self, pages):
        return [zlib.compress(page, 9) for page in pages]


class UnorderedBatches(Codec):
    def compress_many(self, pages):
        return [self.compress(page) for page in sorted(map(bytes, pages))]


class NotForThreads(Codec):
    def __init__(self):
        self.page = None
        self.turns = itertools.count()

    def compress(self, data):
        self.page = bytes(data)
        if next(self.turns) >= 64:  # a switch of threads, made certain
            self.page = bytes(len(data))
        return super().compress(self.page)


class CompressorSuite(CompressorTests):
    def __init__(self, make):
        self.make_compressor = make


def test_conforming_compressor_passes():
    run_all(CompressorSuite(Codec))


@pytest.mark.parametrize(
    ("broken", "caught_by"),
    [
        (Nameless, "says_what_it_is"),
        (ReturnsViews, "round_trip"),
        (LosesTails, "round_trip"),
        (BytesOnly, "memoryview_is_as_good_as_bytes"),
        (KeepsTheView, "keeps_no_view_of_its_input"),
        (ReadsLater, "is_pure_and_another_instance_reads_its_blobs"),
        (OwnDictionary, "is_pure_and_another_instance_reads_its_blobs"),
        (CutsToSize, "another_size_than_was_compressed_is_corrupt"),
        (Bomb, "memory_is_bounded_by_size_whatever_the_blob_says"),
        (IgnoresTheEnd, "truncated_blob_is_corrupt"),
        (OwnErrors, "bad_blobs_raise_nothing_but_corrupt_data"),
        (OtherBatches, "compress_many_is_compress_of_each"),
        (UnorderedBatches, "compress_many_is_compress_of_each"),
        (NotForThreads, "several_threads_may_share_one"),
    ],
    ids=lambda value: getattr(value, "__name__", value),
)
def test_broken_compressor_is_caught(broken, caught_by):
    with pytest.raises(Exception):  # noqa: B017, PT011 - however it fails
        run(CompressorSuite(broken), f"test_{caught_by}")


# faults and gates


async def faulty(**faults) -> FaultyBackend:
    backend = FaultyBackend(MemoryBackend(), **faults)
    await backend.open(PAGE)
    return backend


def test_faulty_backend_without_faults_conforms():
    run_all(BackendSuite(lambda: FaultyBackend(MemoryBackend())))


async def test_looks_like_the_inner_one():
    backend = FaultyBackend(MemoryBackend(capacity=9))
    assert backend.synchronous
    assert not FaultyBackend(Backend()).synchronous
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
        gate.wait()
