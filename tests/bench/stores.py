"""Print what zswap over a file, zram, and a file alone do with the same load.

    python tests/bench/stores.py [ROUNDS [SECONDS]]     default 5 rounds of 2 s: about a minute

One client overwrites 1.3 x a budget of 32 MiB with real pages of 4 KiB and reads a page at random
after every third put, in a closed loop; kcompressd is one worker process with lz4. Stores take
turns; figures are medians of the rounds: pages reclaimed a second, puts a second, how long a get
took that was no hit, and CPU time (workers and threads included) for a page reclaimed. All that is
alive fits the pool or zram once it is compressed, and the file lies in the page cache of the
operating system: what a disk costs comes on top of its rows.
"""

from __future__ import annotations

import random
import statistics
import sys
import time
from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import anyio

sys.path.insert(0, str(Path(__file__).parent))

from hot_paths import PAGE, real_pages
from table import machine

import reclaimactors as ra
from reclaimactors.lab.histogram import Histogram
from reclaimactors.lab.measure import cpu_times

if TYPE_CHECKING:
    from collections.abc import Callable

BUDGET = 32 << 20
FILE = {"backend": "file"}
STORES = {
    "zswap over a file": {"zswap": {"enabled": True}, "swap": [FILE]},
    "zram": {"zswap": {"enabled": False}, "swap": [{"backend": "zram"}]},
    "a file alone": {"zswap": {"enabled": False}, "swap": [FILE]},
}


class Measured(NamedTuple):
    rate: float  #: pages reclaimed a second
    puts: float  #: a second
    fault_p50_us: float
    fault_p99_us: float
    cpu_us: float  #: for a page reclaimed


async def measure(store: str, pages: list[bytes], seconds: float) -> Measured:
    """Run one store for so long, once everything is alive; every value read is compared."""
    live = BUDGET * 13 // 10 // PAGE
    rng = random.Random(store)
    faults = Histogram()
    done = 0

    async with ra.open_memory("kcompressd", budget=BUDGET, **STORES[store]) as memory:

        async def put() -> None:
            nonlocal done
            await memory.put(done % live, bytes(memoryview(pages[done % len(pages)])))
            done += 1

        async def get() -> None:
            nr = done - 1 - rng.randrange(min(done, live))
            before = memory.vmstat["pgfault"]
            started = time.perf_counter()
            value = await memory.get(nr % live)
            if memory.vmstat["pgfault"] != before:
                faults.add(time.perf_counter() - started)
            if value != pages[nr % len(pages)]:
                msg = f"{store}: key {nr % live} does not hold what was put last"
                raise ra.CorruptData(msg)

        while done < live:
            await put()
        first, stolen, cpu = done, memory.vmstat["pgsteal_anon"], cpu_times()[0]
        started = time.perf_counter()
        while time.perf_counter() < started + seconds:
            await put()
            if done % 3 == 0:
                await get()
        elapsed = time.perf_counter() - started
        stolen = memory.vmstat["pgsteal_anon"] - stolen
        return Measured(
            rate=stolen / elapsed,
            puts=(done - first) / elapsed,
            fault_p50_us=faults.quantile(0.5) * 1e6,
            fault_p99_us=faults.quantile(0.99) * 1e6,
            cpu_us=(cpu_times()[0] - cpu) / max(1, stolen) * 1e6,
        )


async def main(rounds: int, seconds: float, say: Callable[[str], object] = print) -> None:
    """Print the table."""
    pages = [page for page in real_pages(4000) if len(page) == PAGE]
    say(f"{machine()}; {rounds} rounds of {seconds:g} s")
    runs: dict[str, list[Measured]] = defaultdict(list)
    for _ in range(rounds):
        for store in STORES:
            runs[store].append(await measure(store, pages, seconds))
    say(f"{'':<18}{'pages/s':>9}{'puts/s':>9}{'fault p50':>11}{'p99 us':>9}{'CPU us/page':>13}")
    for store, rows in runs.items():
        rate, puts, p50, p99, cpu = (statistics.median(c) for c in zip(*rows, strict=True))
        say(f"{store:<18}{rate:>9,.0f}{puts:>9,.0f}{p50:>11.1f}{p99:>9.0f}{cpu:>13.1f}")


if __name__ == "__main__":
    nr_rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 5
    anyio.run(main, nr_rounds, float(sys.argv[2]) if len(sys.argv) > 2 else 2.0)
