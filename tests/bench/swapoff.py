"""Print what swapoff of many slots costs, and how late the event loop is meanwhile.

    python tests/bench/swapoff.py [SLOTS]        default 100000: 400 MiB of pages, half a minute

Two swap files: the first is filled, then swapped off, so that all of it is read back and most of it
goes to the second. A task that wakes each millisecond measures the lag of the event loop, first
beside nothing, then beside the swapoff. Every value is compared at the end.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import NamedTuple

import anyio

sys.path.insert(0, str(Path(__file__).parent))

from hot_paths import real_pages
from rates import ticker
from table import machine

import reclaimactors as ra
from reclaimactors.lab.histogram import Histogram

BUDGET = 64 << 20
PAGE = 4096


class Measured(NamedTuple):
    slots: int
    seconds: float
    alone: Histogram  #: lag beside nothing
    beside: Histogram  #: lag beside the swapoff


def value(pages: list[bytes], key: int) -> bytes:
    return key.to_bytes(8, "little") + pages[key % len(pages)][8:]


async def fill(memory: ra.Memory, pages: list[bytes], slots: int) -> int:
    """Put values until the first device has so many slots in use; return how many it took."""
    nr = 0
    while memory.swaps()[0].used < slots * PAGE:
        for _ in range(256):
            await memory.put(nr, value(pages, nr))
            nr += 1
        await memory.reclaim(256 * PAGE)
    await memory.drain()
    return nr


async def lag(seconds: float) -> Histogram:
    lags = Histogram()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(ticker, lags)
        await anyio.sleep(seconds)
        tasks.cancel_scope.cancel()
    return lags


async def measure(slots: int, *, budget: int = BUDGET, seconds: float = 1.0) -> Measured:
    pages = real_pages(4000)
    swap = [{"size": 4 * slots * PAGE, "priority": priority} for priority in (2, 1)]
    async with ra.open_memory("kcompressd", budget=budget, swap=swap) as memory:
        nr = await fill(memory, pages, slots)
        alone = await lag(seconds)
        first = memory.swaps()[0]
        beside = Histogram()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(ticker, beside)
            started = time.perf_counter()
            await memory.swapoff(first.name)
            elapsed = time.perf_counter() - started
            tasks.cancel_scope.cancel()
        for key in range(nr):
            assert await memory.get(key) == value(pages, key)
    return Measured(first.used // PAGE, elapsed, alone, beside)


async def main(slots: int) -> None:
    print(machine())
    measured = await measure(slots)
    rate = measured.slots / measured.seconds
    print(f"swapoff of {measured.slots:,} slots: {measured.seconds:.1f} s, {rate:,.0f} slots/s")
    for name, lags in (("nothing", measured.alone), ("swapoff", measured.beside)):
        p99, worst = lags.quantile(0.99) * 1e3, lags.max * 1e3
        print(f"loop lag beside {name}: p99 {p99:.2f} ms, max {worst:.2f} ms, {lags.count} samples")


if __name__ == "__main__":
    anyio.run(main, int(sys.argv[1]) if len(sys.argv) > 1 else 100_000)
