"""What is measured: each row gives our operation and the bare one that it is compared with.

A row is an async context manager over an open memory; it gives two plain functions that do NR
operations each and what to do, untimed, before each call. Coroutines are driven by hand, ours and
the bare one alike, so that neither pays for tasks of the event loop. `table.py` prints figures,
`test_hot_paths.py` runs each row.
"""

from __future__ import annotations

import random
import time
from contextlib import asynccontextmanager
from itertools import count
from typing import TYPE_CHECKING, NamedTuple

import lz4.block
from anyio.lowlevel import checkpoint

import reclaimactors as ra
from reclaimactors.lab.data import load

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Coroutine

PAGE = 4096


class Row(NamedTuple):
    nr: int  #: operations of one call
    ours: Callable[[], object]
    bare: Callable[[], object]
    setup: Callable[[], object] = lambda: None


def drive(coroutine: Coroutine[object, None, object]) -> object:
    """Run a coroutine that at most yields, in the task that we are in."""
    while True:
        try:
            coroutine.send(None)
        except StopIteration as end:
            return end.value


def open_for(nr: int, **compress: str):
    """A memory in RAM only that feels no pressure from `nr` pages."""
    return ra.open_memory(
        "kcompressd",
        budget=nr * (PAGE + 512) + (16 << 20),
        watermarks={"min": 1, "low": 2, "high": 3},
        zswap={"max_pool_percent": 100},
        swap=[],
        compress={"offload": "inline"} | compress,
    )


def real_pages(nr: int) -> list[bytes]:
    """Pages of this Python's own library that lz4 makes smaller."""
    source = load(limit=2 * nr * PAGE)
    pages = [source.value(i, 0) for i in range(len(source))]
    return [page for page in pages if 64 < len(lz4.block.compress(page)) < PAGE * 15 // 16][:nr]


@asynccontextmanager
async def get(nr: int) -> AsyncGenerator[Row]:
    """`await memory.get(key)` of a resident value over awaiting a coroutine that returns d[key]."""
    plain = {f"key-{i:08}": bytes(100) for i in range(nr)}
    keys = list(plain)

    async def bare_get(key: str) -> bytes:
        return plain[key]

    async def gets() -> None:
        for key in keys:
            await memory.get(key)

    async def bare_gets() -> None:
        for key in keys:
            await bare_get(key)

    async with open_for(nr) as memory:
        for key, value in plain.items():
            await memory.put(key, value)
            assert await memory.get(key) is value
        yield Row(nr, lambda: drive(gets()), lambda: drive(bare_gets()))


@asynccontextmanager
async def get_nowait(nr: int) -> AsyncGenerator[Row]:
    """`memory.get_nowait(key)` of a resident value over a function that returns d[key]."""
    plain = {f"key-{i:08}": bytes(100) for i in range(nr)}
    keys = list(plain)

    def bare_get(key: str) -> bytes:
        return plain[key]

    def gets() -> None:
        get = memory.get_nowait
        for key in keys:
            get(key)

    def bare_gets() -> None:
        for key in keys:
            bare_get(key)

    async with open_for(nr) as memory:
        for key, value in plain.items():
            await memory.put(key, value)
            assert memory.get_nowait(key) is value
        yield Row(nr, gets, bare_gets)


@asynccontextmanager
async def put(nr: int) -> AsyncGenerator[Row]:
    """`await memory.put(new key, value)` without pressure over zict.LRU.__setitem__."""
    from zict import LRU

    value = bytes(100)
    keys: list[str] = []
    number = count()
    lru: LRU[str, bytes] = LRU(1 << 60, {}, weight=lambda _, v: len(v))

    def setup() -> None:
        keys[:] = [f"key-{next(number):08}" for _ in range(nr)]

    async def puts() -> None:
        for key in keys:
            await memory.put(key, value)

    def bare_puts() -> None:
        for key in keys:
            lru[key] = value

    async with open_for(20 * nr) as memory:
        yield Row(nr, lambda: drive(puts()), bare_puts, setup)
        held = memory.keys()
        assert held
        assert all(memory.get_nowait(key) is value for key in held)


MANY = 32  #: keys of a batch


@asynccontextmanager
async def put_many(nr: int) -> AsyncGenerator[Row]:
    """`await memory.put_many(...)` of 32 new keys over 32 calls of `await memory.put(...)`."""
    value = bytes(100)
    chunks: list[list[str]] = []
    number = count()

    def setup() -> None:
        chunks[:] = [[f"key-{next(number):08}" for _ in range(MANY)] for _ in range(nr // MANY)]

    async def batches() -> None:
        for keys in chunks:
            await memory.put_many(dict.fromkeys(keys, value))

    async def singles() -> None:
        for keys in chunks:
            for key in keys:
                await memory.put(key, value)

    async with open_for(40 * nr) as memory:
        yield Row(
            max(1, nr // MANY) * MANY, lambda: drive(batches()), lambda: drive(singles()), setup
        )
        held = memory.keys()
        assert held
        assert all(memory.get_nowait(key) is value for key in held)


@asynccontextmanager
async def get_many(nr: int) -> AsyncGenerator[Row]:
    """`await memory.get_many(...)` of 32 resident values over a dict of 32 awaited gets."""
    keys = [f"key-{i:08}" for i in range(nr)]
    chunks = [keys[at : at + MANY] for at in range(0, nr, MANY)]

    async def batches() -> None:
        for some in chunks:
            await memory.get_many(some)

    async def singles() -> None:
        for some in chunks:
            {key: await memory.get(key) for key in some}

    async with open_for(nr) as memory:
        await memory.put_many({key: key.encode() for key in keys})
        assert await memory.get_many(keys) == {key: key.encode() for key in keys}
        yield Row(nr, lambda: drive(batches()), lambda: drive(singles()))


@asynccontextmanager
async def fault(nr: int) -> AsyncGenerator[Row]:
    """`await memory.get(key)` of a compressed 4 KiB value over bare lz4 decompress of its blob."""
    pages = real_pages(nr)
    nr = len(pages)
    blobs = [lz4.block.compress(page, store_size=False) for page in pages]

    async def faults() -> None:
        for i in range(nr):
            await memory.get(i)

    def bare() -> list[bytes]:
        return [lz4.block.decompress(blob, uncompressed_size=PAGE) for blob in blobs]

    def setup() -> None:
        drive(memory.reclaim(1 << 40))
        assert not memory.usage().resident

    async with open_for(nr) as memory:
        for i, page in enumerate(pages):
            await memory.put(i, page)
        memory.tune(kcompressd=False)  # so that `setup` compresses here, and waits for nobody
        yield Row(nr, lambda: drive(faults()), bare, setup)
        assert [memory.get_nowait(i) for i in range(nr)] == bare() == pages


@asynccontextmanager
async def reclaim_one(nr: int) -> AsyncGenerator[Row]:
    """Reclaim of one page by padata with 2 workers over the same where kswapd compresses inline."""
    pages = real_pages(nr)
    nr = len(pages)

    async def reclaims(memory: ra.Memory) -> None:
        for i in range(nr):
            await memory.get(i)  # it is resident again, and the only one
            freed = await memory.reclaim(PAGE // 8)
            assert freed >= PAGE // 8

    async with open_for(nr, mode="padata") as ours, open_for(nr, mode="inline") as bare:
        for memory in (ours, bare):
            for i, page in enumerate(pages):
                await memory.put(i, page)
            await memory.reclaim(1 << 40)
        yield Row(nr, lambda: drive(reclaims(ours)), lambda: drive(reclaims(bare)))
        for memory in (ours, bare):
            assert memory.vmstat["pgsteal_proactive"] >= nr
            assert [memory.get_nowait(i) for i in range(nr)] == pages


async def fault_at_low_us(nr: int) -> tuple[float, float]:
    """Return us of an `await get` that faults with free memory at *low*, and of bare decompress.

    All is read in turn, again and again, and half of it fits as it is: so each fault has to have
    one page reclaimed, and what that costs is in the figure.
    """
    pages = real_pages(nr)
    nr = len(pages)
    zswap = {"max_pool_percent": 80}
    async with ra.open_memory(budget=nr * PAGE, swap=[], zswap=zswap) as memory:
        for i, page in enumerate(pages):
            await memory.put(i, page)
        for timed in (False, True):
            faults = memory.vmstat["pgfault"]
            started = time.perf_counter()
            for i in range(nr):
                assert await memory.get(i) == pages[i], timed
            spent = time.perf_counter() - started
        faults = memory.vmstat["pgfault"] - faults
    blobs = [lz4.block.compress(page, store_size=False) for page in pages]
    started = time.perf_counter()
    for blob in blobs:
        lz4.block.decompress(blob, uncompressed_size=PAGE)
    return spent / max(1, faults) * 1e6, (time.perf_counter() - started) / nr * 1e6


async def burst_over_budget(nr: int, budget: int = 8 << 20) -> float:
    """Return the most bytes held at any instant of a put burst, over the budget.

    The compressor is zlib at level 9, which takes more than ten times as long as a put does.
    """
    pages = real_pages(nr)
    most = 0
    compress = {"compressor": {"name": "zlib", "level": 9}}
    async with ra.open_memory(budget=budget, compress=compress) as memory:
        for i in range(nr):
            await memory.put(i, bytes(memoryview(pages[i % len(pages)])))
            usage = memory.usage()
            most = max(most, usage.resident + usage.compressed + usage.overhead)
    return most / budget


async def random_keys_us(nr: int, reads: int = 200_000) -> tuple[float, float]:
    """Return us of `await get` and of a plain dict's `[]`, of random keys among `nr` small values.

    What both pay for more keys are the caches of the CPU.
    """
    plain = {f"key-{i:08}": i.to_bytes(16, "little") for i in range(nr)}
    rng = random.Random(1)
    keys = [f"key-{rng.randrange(nr):08}" for _ in range(reads)]

    async def gets() -> None:
        for key in keys:
            await memory.get(key)

    async with ra.open_memory(
        budget=nr * 400 + (16 << 20), watermarks={"min": 1, "low": 2, "high": 3}, swap=[]
    ) as memory:
        for key, value in plain.items():
            await memory.put(key, value)
        started = time.perf_counter()
        drive(gets())
        ours = time.perf_counter() - started
    started = time.perf_counter()
    for key in keys:
        plain[key]
    bare = time.perf_counter() - started
    return ours / reads * 1e6, bare / reads * 1e6


async def loop_us_per_page(nr: int) -> tuple[float, float]:
    """Return the event loop's CPU us for a page that kswapd and kcompressd reclaim, and lz4's.

    A worker process compresses: what is left is isolating, copying in and completing.
    """
    pages = real_pages(nr)
    nr = len(pages)
    async with open_for(nr, offload="process", on_full="wait") as memory:
        await memory.put("warm", pages[0])
        memory.advise("warm", ra.Advice.PAGEOUT)  # starts the worker
        stop = time.perf_counter() + 1
        while time.perf_counter() < stop:
            await checkpoint()
        for i, page in enumerate(pages):
            await memory.put(i, page)
        for i in range(nr):
            memory.advise(i, ra.Advice.PAGEOUT)
        before = memory.vmstat["pgsteal_anon"]
        started = time.thread_time()
        await memory.drain()
        spent = time.thread_time() - started
        stolen = memory.vmstat["pgsteal_anon"] - before
        for i, page in enumerate(pages):
            assert await memory.get(i) == page
    started = time.perf_counter()
    for page in pages:
        lz4.block.compress(page, mode="fast", acceleration=1, store_size=False)
    return spent / max(1, stolen) * 1e6, (time.perf_counter() - started) / nr * 1e6
