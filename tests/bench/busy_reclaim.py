"""`reclaim` beside a busy program, over the same alone: pages/s, in fresh memories.

    python tests/bench/busy_reclaim.py [RUNS]       default: 9, some 10 seconds

The program beside it is one task that keeps the loop for 0.5 ms in each of its turns, and a ticker
of 1 ms. Each run is a pair, one after the other. Beside a program that asks for the loop all the
time, half of it is the most that is fair: 0.5.
"""

from __future__ import annotations

import sys
import time
from statistics import median

import anyio

import reclaimactors as ra

PAGES = 12_000
BURN_S = 0.0005


def text(i: int) -> bytes:
    """A page that compresses 20:1."""
    line = b"record %08d of the report, field %03d; " % (i, i * 7919 % 1000)
    return (line * 120)[:4096]


async def tick() -> None:
    """Sleep and wake."""
    while True:
        await anyio.sleep(0.001)


async def burn() -> None:
    """Ask for the loop in each of its turns."""
    while True:
        ends = time.perf_counter() + BURN_S
        while time.perf_counter() < ends:
            pass
        await anyio.sleep(0)


async def rate(*, busy: bool, pages: int = PAGES) -> float:
    """Return the pages/s of one call that reclaims four fifths of all values."""
    budget = 3 * pages * 4096
    async with ra.open_memory(budget=budget, zswap={"max_pool_percent": 60}, swap=[]) as memory:
        for i in range(pages):
            await memory.put(i, text(i))
        async with anyio.create_task_group() as tasks:
            if busy:
                tasks.start_soon(tick)
                tasks.start_soon(burn)
            started = time.perf_counter()
            await memory.reclaim(pages * 4096 * 4 // 5)
            took = time.perf_counter() - started
            tasks.cancel_scope.cancel()
        return memory.vmstat["pgsteal_anon"] / took


async def main(runs: int) -> None:
    print(f"{'run':<8}{'alone /s':>12}{'busy /s':>12}{'ratio':>8}")
    ratios: list[float] = []
    for run in range(runs):
        alone, busy = await rate(busy=False), await rate(busy=True)
        ratios.append(busy / alone)
        print(f"{run:<8}{alone:>12,.0f}{busy:>12,.0f}{ratios[-1]:>8.2f}", flush=True)
    print(f"least {min(ratios):.2f}, median {median(ratios):.2f}")


if __name__ == "__main__":
    anyio.run(main, int(sys.argv[1]) if len(sys.argv) > 1 else 9)
