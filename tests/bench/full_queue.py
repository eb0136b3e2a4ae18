"""Print what the three rules for a full FIFO do: inline (the patch's), steal_oldest, wait.

    python tests/bench/full_queue.py [ROUNDS [SECONDS]]     default 5 rounds of 2 s: about a minute

One client overwrites 1.3 x a budget of 32 MiB with real pages of 4 KiB in a closed loop; no swap;
kcompressd is one worker process behind 64 pages, with lz4, and with zlib, which is so slow that the
FIFO is full nearly all the time. Rules take turns; figures are medians of the rounds: pages
reclaimed a second, the longest of all but a hundredth of the puts, the greatest age of the oldest
page that waited (looked at each millisecond), how late the event loop was, and the share of pages
that kswapd compressed in the event loop. What would hold that for longer than a millisecond it
leaves to the worker, and waits: with zlib, stealing takes turns with kcompressd.
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

from hot_paths import PAGE, real_pages
from table import machine

import reclaimactors as ra
from reclaimactors.lab.histogram import Histogram

if TYPE_CHECKING:
    from collections.abc import Callable

BUDGET = 32 << 20
FIFO = 64
RULES = ("inline", "steal_oldest", "wait")
COMPRESSORS = ("lz4", "zlib")
BY_KSWAPD = ("kcompressd_inline", "kcompressd_stolen")


class Measured(NamedTuple):
    rate: float  #: pages a second
    put_p99_ms: float
    oldest_ms: float
    lag_p99_ms: float
    by_kswapd: float  #: share of the pages, in the event loop


class Client:
    """One client in a closed loop."""

    done = 0
    puts = Histogram()  #: seconds

    async def run(self, memory: ra.Memory, pages: list[bytes]) -> None:
        live = BUDGET * 13 // 10 // PAGE
        while True:
            data = bytes(memoryview(pages[self.done % len(pages)]))
            started = time.perf_counter()
            await memory.put(self.done % live, data)
            self.puts.add(time.perf_counter() - started)
            self.done += 1


async def watch(memory: ra.Memory, ages: Histogram, lags: Histogram) -> None:
    while True:
        due = time.perf_counter() + 0.001
        await anyio.sleep(0.001)
        lags.add(time.perf_counter() - due)
        ages.add(memory.usage().oldest_queued_s)


async def measure(rule: str, compressor: str, pages: list[bytes], seconds: float) -> Measured:
    """Run one rule for so long, after everything is alive and the worker is up."""
    compress = {"on_full": rule, "compressor": compressor, "fifo": FIFO}
    client, ages, lags = Client(), Histogram(), Histogram()
    async with (
        ra.open_memory(
            budget=BUDGET, swap=[], zswap={"max_pool_percent": 80}, compress=compress
        ) as memory,
        anyio.create_task_group() as tasks,
    ):
        tasks.start_soon(client.run, memory, pages)
        while client.done < BUDGET * 2 // PAGE or not memory.usage().staging:
            await anyio.sleep(0.01)
        client.puts = Histogram()
        tasks.start_soon(watch, memory, ages, lags)
        before, started = dict(memory.vmstat), time.perf_counter()
        await anyio.sleep(seconds)
        elapsed = time.perf_counter() - started
        grown = {name: nr - before[name] for name, nr in memory.vmstat.items()}
        tasks.cancel_scope.cancel()
    inline = sum(grown[name] for name in BY_KSWAPD)
    return Measured(
        rate=grown["pgsteal_anon"] / elapsed,
        put_p99_ms=client.puts.quantile(0.99) * 1e3,
        oldest_ms=ages.max * 1e3,
        lag_p99_ms=lags.quantile(0.99) * 1e3,
        by_kswapd=inline / max(1, grown["pgscan_kswapd"]),
    )


async def main(rounds: int, seconds: float, say: Callable[[str], object] = print) -> None:
    """Print the table."""
    pages = real_pages(4000)
    say(f"{machine()}; {rounds} rounds of {seconds:g} s, a FIFO of {FIFO} pages")
    runs: dict[tuple[str, str], list[Measured]] = defaultdict(list)
    for _ in range(rounds):
        for compressor in COMPRESSORS:
            for rule in RULES:
                measured = await measure(rule, compressor, pages, seconds)
                runs[compressor, rule].append(measured)
    say(f"{'':<20}{'pages/s':>9}{'put p99':>9}{'oldest':>9}{'lag p99 ms':>12}{'by kswapd':>11}")
    for (compressor, rule), rows in runs.items():
        rate, put, oldest, lag, share = (statistics.median(c) for c in zip(*rows, strict=True))
        say(
            f"{compressor + ', ' + rule:<20}{rate:>9,.0f}{put:>9.2f}{oldest:>9.1f}{lag:>12.2f}"
            f"{share:>10.0%}"
        )


if __name__ == "__main__":
    nr_rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 5
    anyio.run(main, nr_rounds, float(sys.argv[2]) if len(sys.argv) > 2 else 2.0)
