"""Print what a steady stream of puts costs while the pool is over its limit.

    python tests/bench/pool_limit.py [PUTS]        default 60000: a few seconds

Real pages of 4 KiB, 16 MiB of budget over a file, four times as much alive and overwritten in a
closed loop, so that the pool is at its limit from the first lap on. A row for each tenth of the
puts, its figures per 1000 of them: folios that the pool rejected because it was full, pages that
the shrinker wrote back, blobs that it passed over once, how often the pool became full (its limit
is a flip, its threshold the way back), and the least and most bytes of blobs that it held.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import anyio

sys.path.insert(0, str(Path(__file__).parent))

from hot_paths import PAGE, real_pages
from table import machine

import reclaimactors as ra

if TYPE_CHECKING:
    from collections.abc import Callable

ROWS = 10
COUNTERS = ("pool_limit_hit", "written_back_pages", "zswap_second_chance", "reclaim_stored")


class Row(NamedTuple):
    """Per 1000 puts, but for the two sizes."""

    rejected: float
    written_back: float
    passed_over: float
    stored: float
    flips: float
    least: int  #: bytes in the pool
    most: int


async def measure(puts: int, budget: int = 16 << 20) -> list[Row]:
    """Return a row for each tenth of the puts."""
    pages = real_pages(4000)
    live = 4 * budget // PAGE
    rows: list[Row] = []
    async with ra.open_memory("kcompressd", budget=budget) as memory:
        pool = memory._node.zswap
        done = 0

        async def put() -> None:
            nonlocal done
            await memory.put(done % live, bytes(memoryview(pages[done % len(pages)])))
            done += 1

        while done < live:
            await put()
        for _ in range(ROWS):
            before = [memory.vmstat[name] for name in COUNTERS]
            flips, full, least, most = 0, pool.reached_full, pool.total, pool.total
            for _ in range(puts // ROWS):
                await put()
                flips += pool.reached_full and not full
                full = pool.reached_full
                least, most = min(least, pool.total), max(most, pool.total)
            k = puts / ROWS / 1000
            grown = [memory.vmstat[name] - old for name, old in zip(COUNTERS, before, strict=True)]
            rows.append(Row(*(nr / k for nr in grown), flips / k, least, most))
    return rows


async def main(puts: int, say: Callable[[str], object] = print) -> list[Row]:
    """Print the table; return its rows."""
    say(f"{machine()}; {puts} puts, per 1000:")
    say("rejected  written back  passed over  stored  flips  pool KiB")
    rows = await measure(puts)
    for row in rows:
        say(
            f"{row.rejected:>8.0f}{row.written_back:>14.0f}{row.passed_over:>13.0f}"
            f"{row.stored:>8.0f}{row.flips:>7.2f}  {row.least >> 10} to {row.most >> 10}"
        )
    return rows


if __name__ == "__main__":
    anyio.run(main, int(sys.argv[1]) if len(sys.argv) > 1 else 60_000)
