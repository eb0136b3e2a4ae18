"""Print how late the event loop is beside reclaim at full speed, for values of several sizes.

    python tests/bench/lag.py [ROUNDS [SECONDS]]        default 5 rounds of 1.5 s: two minutes

A task that wakes each millisecond measures the lag: beside nothing, beside one client that only
reads resident values, beside one that overwrites as fast as it can (no swap, 1.3 x the budget is
alive, as in `rates.py`). Figures are medians; the larger the value, the more pages a put brings.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import anyio

sys.path.insert(0, str(Path(__file__).parent))

from hot_paths import real_pages
from rates import NR_PAGES, PAGE, ticker
from table import machine

import reclaimactors as ra
from reclaimactors.lab.histogram import Histogram

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

BUDGET = 64 << 20
ROWS: dict[str, tuple[str, int]] = {
    "nothing": ("kcompressd", 0),
    "hits of 4 KiB": ("kcompressd", 0),
    **{
        f"puts of {size >> 10} KiB, {topology}": (topology, size)
        for topology in ("kcompressd", "padata")
        for size in (4 << 10, 64 << 10, 1 << 20)
    },
}


class Lag(NamedTuple):
    p99_ms: float
    max_ms: float
    pages: float  #: reclaimed a second


async def nothing(_: ra.Memory, __: list[bytes], ___: int) -> None:
    await anyio.sleep_forever()


async def hits(memory: ra.Memory, pages: list[bytes], _: int) -> None:
    for key, page in enumerate(pages):
        await memory.put(key, page)
    while True:
        for key in range(len(pages)):
            await memory.get(key)


async def puts(memory: ra.Memory, pages: list[bytes], size: int) -> None:
    source = b"".join(pages)
    view, live, nr = memoryview(source), BUDGET * 13 // 10 // size, 0
    while True:
        at = nr * size % (len(source) - size + 1) // PAGE * PAGE
        await memory.put(nr % live, bytes(view[at : at + size]))
        nr += 1


async def measure(name: str, pages: list[bytes], seconds: float) -> Lag:
    topology, size = ROWS[name]
    client: Callable[[ra.Memory, list[bytes], int], Awaitable[None]]
    client = puts if size else hits if "hits" in name else nothing
    lags = Histogram()
    async with (
        ra.open_memory(topology, budget=BUDGET, swap=[], zswap={"max_pool_percent": 80}) as memory,
        anyio.create_task_group() as tasks,
    ):
        tasks.start_soon(client, memory, pages, size)
        await anyio.sleep(seconds / 2)  # the workers are up, all is alive
        tasks.start_soon(ticker, lags)
        before, started = memory.vmstat["pgsteal_anon"], time.perf_counter()
        await anyio.sleep(seconds)
        stolen, elapsed = memory.vmstat["pgsteal_anon"] - before, time.perf_counter() - started
        tasks.cancel_scope.cancel()
    return Lag(lags.quantile(0.99) * 1e3, lags.max * 1e3, stolen / elapsed)


async def main(rounds: int, seconds: float) -> None:
    pages = real_pages(NR_PAGES)
    print(machine())
    rows: dict[str, list[Lag]] = defaultdict(list)
    for _ in range(rounds):
        for name in ROWS:
            rows[name].append(await measure(name, pages, seconds))
    print(f"{'beside':<28}{'p99 ms':>8}{'max ms':>8}{'pages/s':>10}")
    for name, lags in rows.items():
        p99, worst, rate = (statistics.median(column) for column in zip(*lags, strict=True))
        print(f"{name:<28}{p99:>8.2f}{worst:>8.2f}{rate:>10,.0f}")


if __name__ == "__main__":
    nr_rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 5
    anyio.run(main, nr_rounds, float(sys.argv[2]) if len(sys.argv) > 2 else 1.5)
