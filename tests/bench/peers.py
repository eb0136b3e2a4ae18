"""Print how it does beside its peers, each with a budget of half of the data.

    python tests/bench/peers.py [--sizes 4KiB 64KiB 1MiB] [--rounds 5] [--mib 64] [--seconds 2]

Values are pieces of the running Python's own library (about 3:1 by lz4), each put as a bytes object
of its own. Each contestant runs in a process of its own, in turns; figures are medians of rounds.

- reclaimactors: `open_memory(budget=...)`, all defaults: worker process, lz4, pool, file.
- zict file, zict lmdb: `zict.Buffer` (LRU by bytes) over lz4 over `zict.File` or `zict.LMDB`.
- zict async: `zict.AsyncBuffer`, one thread, over the same compressed files.
- dask: `distributed.spill.SpillBuffer`, `spill-compression: lz4`.
- diskcache: `diskcache.Cache`, values compressed by lz4 before they go in; no budget of RAM to set.

put/s: all values once. uniform, zipf: gets a second of one client, half a second of warming up
before. op/s, p99 ms: eight tasks, 70 % gets, 30 % puts, zipf; synchronous peers give way to the
loop after each operation, as they must in an asynchronous program. gap: how late a task is that
wakes each millisecond meanwhile. RSS: peak of anonymous memory over that of the start, in MiB.
disk: what lies in its folder at the end, or what is swapped. Every value is compared byte for byte
after that.
"""

from __future__ import annotations

import argparse
import asyncio
import ctypes
import itertools
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import defaultdict
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import lz4.block

import reclaimactors as ra
from reclaimactors.units import format_size, parse_size

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Iterator

CLIENTS = 8
FIGURES = ("put/s", "uniform/s", "zipf/s", "op/s", "p99 ms", "gap ms", "RSS MiB", "disk MiB")
KEEPS = "keeps"


class Mapped:
    """A synchronous mapping behind the calls of a Memory."""

    def __init__(self, mapping: Any, folder: Path) -> None:
        self.mapping = mapping
        self.folder = folder

    async def put(self, key: str, value: bytes) -> None:
        self.mapping[key] = value

    async def get(self, key: str) -> bytes:
        return self.mapping[key]

    async def give_way(self) -> None:
        await asyncio.sleep(0)

    def on_disk(self) -> int:
        files = (path for path in self.folder.rglob("*") if path.is_file())
        return sum(path.stat().st_blocks * 512 for path in files)


class Buffered(Mapped):
    """zict.AsyncBuffer: reads that miss go to its thread."""

    async def get(self, key: str) -> bytes:
        return (await self.mapping.async_get([key]))[key]


class Ours:
    """A Memory, which gives way by itself."""

    def __init__(self, memory: ra.Memory) -> None:
        self.memory = memory
        self.put = memory.put
        self.get = memory.get

    async def give_way(self) -> None:
        pass

    def on_disk(self) -> int:
        return self.memory.usage().swapped


@asynccontextmanager
async def opened(name: str, budget: int, folder: Path) -> AsyncGenerator[Any]:
    if name == "reclaimactors":
        async with ra.open_memory(budget=budget) as memory:
            yield Ours(memory)
        return
    if name == "dask":
        import dask
        from distributed.spill import SpillBuffer

        with dask.config.set({"distributed.worker.memory.spill-compression": "lz4"}):
            yield Mapped(SpillBuffer(str(folder), target=budget), folder)
        return
    if name == "diskcache":
        import diskcache
        import zict

        cache = diskcache.Cache(str(folder), size_limit=1 << 40, eviction_policy="none")
        yield Mapped(zict.Func(lz4.block.compress, lz4.block.decompress, cache), folder)
        cache.close()
        return
    import zict

    store = zict.LMDB(str(folder)) if name == "zict lmdb" else zict.File(str(folder))
    slow = zict.Func(lz4.block.compress, lz4.block.decompress, store)
    kind = zict.AsyncBuffer if name == "zict async" else zict.Buffer
    buffer = kind({}, slow, n=budget, weight=lambda _, value: len(value))
    yield (Buffered if name == "zict async" else Mapped)(buffer, folder)
    buffer.close()


NAMES = ("reclaimactors", "zict file", "zict lmdb", "zict async", "dask", "diskcache")


class Values:
    """The bytes of each version of each key."""

    def __init__(self, size: int, mib: int) -> None:
        library = sorted(Path(os.__file__).parent.rglob("*.py"))
        self.source = memoryview(b"".join(path.read_bytes() for path in library))
        self.size = size
        self.keys = [f"key:{i:07}" for i in range((mib << 20) // size)]
        self.version: dict[str, int] = {}

    def new(self, key: str) -> bytes:
        """Return the next version of a key as an object of its own."""
        self.version[key] = self.version.get(key, 0) + 1
        return self.now(key)

    def now(self, key: str) -> bytes:
        at = hash((int(key[4:]), self.version[key])) * 4093 % (len(self.source) - self.size)
        return bytes(self.source[at : at + self.size])

    def drawn(self, seed: int, *, zipf: bool) -> Iterator[str]:
        """Return keys for ever, the first 50,000 of them drawn now."""
        rng = random.Random(seed)
        nr = len(self.keys)
        shares = (1 / rank if zipf else 1 for rank in range(1, nr + 1))
        weights = list(itertools.accumulate(shares))
        shuffled = random.Random(1).sample(self.keys, nr)  # the same are popular for everybody
        return itertools.cycle(rng.choices(shuffled, cum_weights=weights, k=50_000))


class Rss(threading.Thread):
    """The peak of anonymous memory, looked at each 10 ms."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        ctypes.CDLL(None).malloc_trim(0)
        self.start_bytes = self.peak = self.look()
        self.stop = threading.Event()

    def look(self) -> int:
        status = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith("RssAnon"))

    def run(self) -> None:
        while not self.stop.wait(0.01):
            self.peak = max(self.peak, self.look())


async def reads(store: Any, keys: Iterator[str], seconds: float) -> float:
    nr, size = 0, None
    started = time.perf_counter()
    while time.perf_counter() - started < seconds:
        for key in itertools.islice(keys, 16):
            got = await store.get(key)
            assert size in (None, len(got))
            size = len(got)
            nr += 1
    return nr / (time.perf_counter() - started)


async def clients(store: Any, values: Values, seconds: float) -> tuple[float, float, float]:
    """Return operations a second, their p99 and the worst gap of the loop, both in ms."""
    took: list[float] = []
    gaps: list[float] = []
    busy: set[str] = set()
    drawn = [values.drawn(seed, zipf=True) for seed in range(CLIENTS)]
    rng = random.Random(2)
    ends = time.perf_counter() + seconds

    async def client(keys: Iterator[str]) -> None:
        while time.perf_counter() < ends:
            key = next(keys)
            started = time.perf_counter()
            if rng.random() < 0.3 and key not in busy:
                busy.add(key)  # one writer a key, so that the last version is known
                await store.put(key, values.new(key))
                busy.discard(key)
            else:
                with suppress(KeyError):  # zict.AsyncBuffer: while the key is overwritten
                    assert len(await store.get(key)) == values.size
            took.append(time.perf_counter() - started)
            await store.give_way()

    async def ticker() -> None:
        while True:
            due = time.perf_counter() + 0.001
            await asyncio.sleep(0.001)
            gaps.append(time.perf_counter() - due)

    ticking = asyncio.create_task(ticker())
    await asyncio.gather(*map(client, drawn))
    ticking.cancel()
    took.sort()
    return len(took) / seconds, took[len(took) * 99 // 100] * 1e3, max(gaps) * 1e3


async def measure(name: str, size: int, mib: int, seconds: float) -> dict[str, float]:
    values = Values(size, mib)
    budget = mib << 19
    uniform, zipf = values.drawn(1, zipf=False), values.drawn(2, zipf=True)
    rss = Rss()
    rss.start()
    async with AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(dir="/var/tmp")))
        store = await stack.enter_async_context(opened(name, budget, folder))
        started = time.perf_counter()
        for key in values.keys:
            await store.put(key, values.new(key))
        puts = len(values.keys) / (time.perf_counter() - started)
        await reads(store, uniform, seconds / 4)
        each = [await reads(store, keys, seconds) for keys in (uniform, zipf)]
        busy = await clients(store, values, seconds)
        rss.stop.set()
        disk = store.on_disk()
        for key in values.keys:
            assert await store.get(key) == values.now(key), f"{name} lost {key}"
    grown = (rss.peak - rss.start_bytes) / (1 << 20)
    return dict(zip(FIGURES, (puts, *each, *busy, grown, disk / (1 << 20)), strict=True))


def child(name: str, size: int, mib: int, seconds: float) -> dict[str, float] | None:
    """Measure one contestant in a process of its own; None where it is not installed."""
    arguments = [
        "--child",
        name,
        "--sizes",
        str(size),
        "--mib",
        str(mib),
        "--seconds",
        str(seconds),
    ]
    ended = subprocess.run(
        [sys.executable, __file__, *arguments], capture_output=True, text=True, check=False
    )
    if "ModuleNotFoundError" in ended.stderr:
        return None
    if ended.returncode:
        raise RuntimeError(f"{name}: {ended.stderr[-2000:]}")
    return json.loads(ended.stdout.splitlines()[-1])


def report(size: int, mib: int, runs: dict[str, list[dict[str, float]]]) -> None:
    bound = 1.15 * mib / 2 + 16
    print(f"\n{format_size(size)} values, {mib} MiB of them, budget {mib / 2:g} MiB")
    print(f"{'':<14}" + "".join(f"{figure:>11}" for figure in FIGURES))
    medians = {
        name: {figure: statistics.median(run[figure] for run in rounds) for figure in FIGURES}
        for name, rounds in runs.items()
    }
    for name, row in medians.items():
        over = "" if row["RSS MiB"] <= bound else f"  over its budget ({bound:.0f} MiB)"
        print(f"{name:<14}" + "".join(f"{row[figure]:>11,.1f}" for figure in FIGURES) + over)
    ours = medians.pop("reclaimactors", None)
    fair = {name: row for name, row in medians.items() if row["RSS MiB"] <= bound}
    for figure in FIGURES[:4]:
        if ours and fair:
            best = max(fair, key=lambda name: fair[name][figure])
            ratio = ours[figure] / fair[best][figure]
            print(f"  {figure}: {ratio:.2f} x the best that keeps its budget, {best}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", nargs="+", type=parse_size, default=[4096, 65536, 1 << 20])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--mib", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--peers", nargs="+", default=NAMES)
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        coroutine = measure(options.child, options.sizes[0], options.mib, options.seconds)
        print(json.dumps(asyncio.run(coroutine)))
        return
    for size in options.sizes:
        runs: dict[str, list[dict[str, float]]] = defaultdict(list)
        for round_nr, name in itertools.product(range(options.rounds), options.peers):
            print(f"round {round_nr + 1}: {name:<20}", end="\r", file=sys.stderr)
            measured = child(name, size, options.mib, options.seconds)
            if measured is not None:
                runs[name].append(measured)
            elif not round_nr:
                print(f"{name} is not installed: skipped")
        report(size, options.mib, runs)


if __name__ == "__main__":
    main()
