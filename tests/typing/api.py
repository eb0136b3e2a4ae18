"""A user's program that only type checkers read: what the public names promise about types.

mypy and pyright check it in their strict modes. It is never run, and no test imports it.
"""

from __future__ import annotations

import zlib
from array import array
from collections.abc import Hashable, Mapping, Sequence
from mmap import mmap
from typing import TYPE_CHECKING, assert_type

from prometheus_client import Metric

import reclaimactors as ra
from reclaimactors.metrics.opentelemetry import observe
from reclaimactors.metrics.prometheus import MemoryCollector
from reclaimactors.testing import (
    BackendTests,
    CompressorTests,
    FaultyBackend,
    FaultyCompressor,
    Gate,
    GatedCompressor,
    PolicyTests,
    ThreadGate,
    VirtualClockLoop,
)

if TYPE_CHECKING:
    from contextlib import AbstractAsyncContextManager


def give() -> AbstractAsyncContextManager[ra.Memory]:
    """Open one from a table."""
    return ra.open_memory({"budget": "8MiB", "swap": []})


async def load(key: str) -> bytearray:
    return bytearray(key, "utf-8")


async def embed() -> None:
    """Open a memory and use all of its surface."""
    async with ra.open_memory("kcompressd", budget="64MiB") as memory:
        assert_type(memory, ra.Memory)
        assert_type(memory.pressure(), ra.Pressure)
        assert_type(memory.pressure().some, ra.PressureLine)
        await memory.swapon(ra.SwapSpec(backend="file", size="1GiB"))
        for info in memory.swaps():
            assert isinstance(info.backend, ra.ZramBackend)
            assert_type(info.backend.mm_stat, Mapping[str, int])
        assert_type(await memory.put("key", b"bytes"), None)
        await memory.put(("a", "tuple"), bytearray(10))
        await memory.put(7, memoryview(b"view"))
        await memory.put(8, array("d", [1.0]))
        memory.put_nowait(9, mmap(-1, 4096))
        assert_type(memory.put_nowait("key", b"bytes"), None)
        assert_type(await memory.get("key"), bytes)
        assert_type(memory.get_nowait("key"), bytes)
        assert_type("key" in memory, bool)
        assert_type(len(memory), int)
        assert_type(memory.keys(), list[Hashable])
        assert_type(await memory.delete("key"), None)

        async with memory.pin(7) as view:
            assert_type(view, memoryview)
        assert_type(await memory.reclaim(1 << 20), int)
        assert_type(await memory.wait_for_headroom(1 << 20), None)
        async with memory.pressure_trigger("some", stall_us=1, window_us=1000) as trigger:
            assert_type(trigger, ra.PressureTrigger)
            assert_type(await trigger.wait(), None)
        assert_type(await memory.drain(), None)
        assert_type(memory.advise(7, ra.Advice.PAGEOUT), None)

        group = memory.group(
            "group", max="16MiB", high=8 << 20, zswap_writeback=False, swap=["file0"]
        )
        assert_type(group, ra.Memory)
        assert_type(memory.groups, Mapping[str, ra.Memory])
        assert_type(await group.set_limits(max=None, swap_max=1 << 20), None)
        assert_type(await group.reclaim(1 << 20, zswap_writeback_only=True), int)
        assert_type(await group.delete(reparent=True), None)

        assert_type(memory.tune(kcompressd=False, fifo=64), None)


def look(memory: ra.Memory) -> None:
    """What only looks."""
    assert_type(memory.vmstat, Mapping[str, int])
    assert_type(memory.vmstat["pgsteal_anon"], int)
    assert_type(memory.pressure().some.avg10, float)
    assert_type(memory.pressure().full.total, int)
    health = memory.health()
    assert_type(health, ra.Health)
    if health.state == "crashed":
        assert_type(health.reason, str)
    assert_type(health.degraded, tuple[str, ...])
    usage = memory.usage()
    assert_type(usage, ra.Usage)
    assert_type(usage.budget - usage.resident - usage.free, int)
    assert_type(usage.swapped + usage.staging, int)
    assert_type(usage.oldest_queued_s, float)
    assert_type(usage.oldest_undelivered_s, float)
    stats = memory.stats()
    assert_type(stats, ra.Stats)
    assert_type(stats.free_bytes - stats.keys, int)
    assert_type(stats.stalled_some_seconds, float)
    MemoryCollector(memory)
    observe({"cache": memory})
    for metric in MemoryCollector({"cache": memory}).collect():
        assert_type(metric, Metric)


async def batches(memory: ra.Memory) -> None:
    """More than one key, more than one step."""
    assert_type(await memory.get("key", None), bytes | None)
    assert_type(await memory.get_many(["key", 7]), dict[Hashable, bytes])
    await memory.put_many({"key": b"bytes", "other": b"more"})
    assert_type(await memory.put_many([("key", b"bytes"), (7, bytearray(7))]), None)
    assert_type(await memory.put_if("key", b"new", b"bytes"), bool)
    assert_type(await memory.pop("key"), bytes)
    assert_type(await memory.pop("key", None), bytes | None)
    assert_type(await memory.delete_many(["key", 8]), int)
    await memory.put("key", b"bytes", expires_in=60, discardable=True)
    await memory.put_many({"key": b"bytes"}, expires_in=0.5)
    assert_type(memory.expires_in("key"), float | None)
    assert_type(memory.map("key", load), None)


async def objects(memory: ra.Memory) -> None:
    """Values of other types."""
    await ra.Objects(memory).put("key", {"any": ["thing"]})
    texts = ra.Objects(memory, str.encode, bytes.decode)
    assert_type(texts, ra.Objects[str])
    assert_type(await texts.put("key", "text"), None)
    assert_type(await texts.put_many({"key": "text"}), None)
    assert_type(await texts.get("key"), str)
    assert_type(await texts.get("key", None), str | None)
    assert_type(await texts.get_many(["key"]), dict[Hashable, str])
    assert_type(await texts.pop("key", 0), str | int)
    await memory.put("several", [b"head", bytearray(10), memoryview(b"view")])
    assert_type(await memory.get_writable("several"), memoryview)


def block(other: Mapping[str, bytes]) -> None:
    """A memory for threads."""
    with ra.open_blocking("kcompressd", budget="8MiB", swap=[]) as store:
        assert_type(store, ra.BlockingMemory)
        store["key"] = b"bytes"
        store[("a", "tuple")] = bytearray(10)
        assert_type(store["key"], bytes)
        assert_type(store.get("key"), bytes | None)
        assert_type(store.get("key", 0), bytes | int)
        assert_type(store.pop("key"), bytes)
        assert_type(store.pop("key", 0), bytes | int)
        assert_type(store.setdefault("key", b"bytes"), bytes)
        assert_type(store.put_if("key", b"new", b"bytes"), bool)
        assert_type(store.get_many(["key"]), dict[Hashable, bytes])
        assert_type(store.delete_many(["key"]), int)
        store.put_many(other)
        store.update(other, key=b"bytes")
        assert_type(list(store), list[Hashable])
        assert_type(list(store.items()), list[tuple[Hashable, bytes]])
        assert_type(store.run(size_of, "key", times=2), int)
        assert_type(store.memory.usage(), ra.Usage)


async def size_of(memory: ra.Memory, key: str, *, times: int) -> int:
    """Several steps."""
    return len(await memory.get(key)) * times


async def openings(topology: ra.Topology) -> None:
    """Every way to say which topology, and to change it."""
    async with ra.open_memory() as memory:
        assert_type(memory, ra.Memory)
    async with ra.open_memory(topology, budget=1 << 20, swap=[]):
        pass
    async with ra.open_memory(
        "some.toml",
        compress={"compressor": {"name": "zlib", "level": 6}, "on_full": "wait"},
        swap=[{"backend": Slots(), "size": "1GiB"}],
        watermarks={"min": "3%"},
    ):
        pass
    assert_type(topology.budget, int)
    assert_type(topology.compress.mode, str)


async def mistakes(memory: ra.Memory) -> str:
    """What may be raised, and what it is besides."""
    try:
        await memory.put("key", b"bytes")
    except ra.OutOfMemory as exc:
        oom: MemoryError = exc
        return str(oom)
    except ra.BackendFull as exc:
        full: ra.BackendError = exc
        return str(full)
    except ra.BackendError as exc:
        os_error: OSError = exc
        return os_error.strerror or ""
    except (ra.CorruptData, ra.TopologyError) as exc:
        value_error: ValueError = exc
        return str(value_error)
    except (ra.PluginError, ra.ProtocolViolation) as exc:
        root: ra.ReclaimError = exc
        return str(root)
    return ""


class Squash:
    """A compressor that inherits nothing."""

    name = "squash"

    def compress(self, data: ra.Buffer) -> bytes:
        """Return the blob."""
        return zlib.compress(data)

    def decompress(self, blob: ra.Buffer, size: int) -> bytes:
        """Return the data."""
        return zlib.decompress(blob, bufsize=size)


class SquashMany(Squash):
    """One that takes whole batches."""

    def compress_many(self, pages: Sequence[ra.Buffer]) -> list[bytes]:
        """Return the blobs."""
        return [self.compress(page) for page in pages]


class Slots(ra.Backend):
    """A backing store."""

    capacity = 100

    def __init__(self) -> None:
        self._slots: dict[int, bytes] = {}

    async def store_many(self, items: Sequence[tuple[int, bytes]]) -> None:
        """Store."""
        self._slots.update(items)

    async def load_many(self, slots: Sequence[int]) -> list[bytes]:
        """Load."""
        return [self._slots[slot] for slot in slots]

    async def invalidate_many(self, slots: Sequence[int]) -> None:
        """Forget."""
        for slot in slots:
            self._slots.pop(slot, None)


class Oldest:
    """A policy that inherits nothing: first in, first out."""

    def __init__(self, pages: int) -> None:
        self.pages = pages
        self._queue: dict[int, None] = {}

    def insert(self, pfn: int, *, refault: int | None) -> bool | None:
        """Append."""
        self._queue[pfn] = None
        return refault is not None

    def access(self, pfn: int) -> None:
        """Do not care."""

    def remove(self, pfn: int) -> None:
        """Forget."""
        self._queue.pop(pfn, None)

    def isolate(self, nr: int) -> list[int]:
        """Take the oldest."""
        taken = list(self._queue)[:nr]
        for pfn in taken:
            del self._queue[pfn]
        return taken

    def putback(self, pfns: Sequence[int], verdict: ra.Verdict) -> None:
        """Append again."""
        assert verdict is not ra.Verdict.STORED
        self._queue.update(dict.fromkeys(pfns))

    def shadow(self, pfn: int) -> int:
        """Remember nothing."""
        return pfn

    def age(self, now: float) -> None:
        """Do not care."""


compressor: ra.Compressor = Squash()
batching: ra.BatchCompressor = SquashMany()
backend: ra.Backend = Slots()
policy: ra.Policy = Oldest(pages=64)


class TestSquash(CompressorTests):
    """Conformance of a compressor."""

    def make_compressor(self) -> ra.Compressor:
        """Make one."""
        return Squash()


class TestSlots(BackendTests):
    """Conformance of a backend."""

    def make_backend(self) -> ra.Backend:
        """Make one."""
        return Slots()


class TestOldest(PolicyTests):
    """Conformance of a policy."""

    heeds_access = False

    def make_policy(self, pages: int) -> ra.Policy:
        """Make one."""
        return Oldest(pages)


async def faults() -> None:
    """What the kit has for tests of one's own."""
    gate = Gate()
    faulty: ra.Backend = FaultyBackend(Slots(), full_after=10, store_gate=gate)
    await gate.entered.wait()
    gate.open()
    failing: ra.Compressor = FaultyCompressor(Squash(), every=3, error=ra.CorruptData("told"))
    waiting: ra.Compressor = GatedCompressor(failing, ThreadGate(timeout=1.0))
    async with ra.open_memory(compress={"compressor": waiting}, swap=[{"backend": faulty}]):
        pass
    VirtualClockLoop().close()
