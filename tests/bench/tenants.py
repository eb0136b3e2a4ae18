"""Print what four tenants feel of each other, one of which wants 20 times what it may hold.

    python tests/bench/tenants.py [ROUNDS] [SECONDS]        default: 5 rounds of 2 s, 40 seconds

A memory of 80 MiB over a file has four groups with a `max` of 16 MiB each. Three tenants hold 24
MiB of pages that lz4 about halves, and get keys drawn at random, 300 requests a second each, by a
schedule: latency is from the time at which a request was due. The fourth, the hog, puts 320 MiB as
fast as it can. A round measures the three alone, then beside the hog. Figures are medians of the
rounds, least and most in brackets.

- p50, p99: ms from due to served, of all three.
- stalled: PSI some of the tenant that waited most, percent of the time.
- taken: pages of the three that reclaim isolated for the whole memory, or for another group.
"""

from __future__ import annotations

import itertools
import random
import statistics
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anyio

sys.path.insert(0, str(Path(__file__).parent))

from hot_paths import PAGE, real_pages
from table import machine

import reclaimactors as ra
from reclaimactors.lab.arrivals import open_loop, steady
from reclaimactors.lab.histogram import Histogram

if TYPE_CHECKING:
    from reclaimactors.memory import Memory

MIB = 1 << 20
MAX = 16 * MIB
HELD = 24 * MIB // PAGE  #: pages that each of the three holds
WANTED = 20 * MAX // PAGE  #: that the hog puts
A_S = 300  #: requests a second of each of the three


class Watch:
    """Counts the pages that were isolated of one group for somebody else."""

    def __init__(self, memory: Memory, tenants: list[Memory]) -> None:
        self.taken = 0
        of = {tenant._group for tenant in tenants}
        swapout = memory._machine.swapout
        isolate = swapout.isolate

        def counted(*args: Any, within: Any = None, **kwargs: Any) -> Any:
            batch = isolate(*args, within=within, **kwargs)
            if batch is not None and batch.group in of and batch.group is not within:
                self.taken += batch.nr_pages
            return batch

        swapout.isolate = counted


async def fill(tenant: Memory, pages: list[bytes]) -> None:
    """Give a tenant what it holds."""
    for i in range(HELD):
        await tenant.put(i, bytes(memoryview(pages[i % len(pages)])))


async def served(tenants: list[Memory], seconds: float, seed: int) -> tuple[Histogram, float]:
    """Serve the three for a while; return latencies, and the share that one of them was stalled."""
    before = [tenant.pressure().some.total for tenant in tenants]
    late = Histogram()

    async def one(nr: int) -> None:
        draw = random.Random(seed * 10 + nr)

        async def get() -> None:
            await tenants[nr].get(draw.randrange(HELD))

        late.merge((await open_loop(steady(A_S, seed * 10 + nr), get, seconds=seconds)).late)

    async with anyio.create_task_group() as tasks:
        for nr in range(len(tenants)):
            tasks.start_soon(one, nr)
    rows = zip(tenants, before, strict=True)
    stalled = max(tenant.pressure().some.total - then for tenant, then in rows)
    return late, stalled / 1e6 / seconds


async def hog(group: Memory, pages: list[bytes], done: list[int]) -> None:
    """Put what is wanted, again and again."""
    for i in itertools.count():
        await group.put(i % WANTED, bytes(memoryview(pages[i % len(pages)])))
        done[0] += 1


async def measure(seconds: float, seed: int, pages: list[bytes]) -> dict[str, float]:
    """One round."""
    swap = [{"backend": "file", "size": "2GiB"}]
    async with ra.open_memory("kcompressd", budget=4 * MAX + 16 * MIB, swap=swap) as memory:
        tenants = [memory.group(f"tenant{nr}", max=MAX) for nr in range(3)]
        for tenant in tenants:
            await fill(tenant, pages)
        greedy = memory.group("hog", max=MAX)
        watch = Watch(memory, tenants)
        await memory.drain()
        alone, stalled_alone = await served(tenants, seconds, seed)
        done = [0]
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(hog, greedy, pages, done)
            beside, stalled = await served(tenants, seconds, seed)
            tasks.cancel_scope.cancel()
        return {
            "p50 alone": 1e3 * alone.quantile(0.5), "p50 beside": 1e3 * beside.quantile(0.5),
            "p99 alone": 1e3 * alone.quantile(0.99), "p99 beside": 1e3 * beside.quantile(0.99),
            "stalled alone": 100 * stalled_alone, "stalled beside": 100 * stalled,
            "taken": watch.taken, "hog's puts a second": done[0] / seconds,
        }  # fmt: skip


def main(rounds: int = 5, seconds: float = 2.0) -> None:
    """Print the table."""
    pages = real_pages(2000)
    print(machine())
    found = [anyio.run(measure, seconds, seed, pages) for seed in range(rounds)]
    for name in found[0]:
        figures = sorted(row[name] for row in found)
        middle = statistics.median(figures)
        print(f"{name:>20}: {middle:8.2f} [{figures[0]:.2f} to {figures[-1]:.2f}]")


if __name__ == "__main__":
    main(*[int(word) for word in sys.argv[1:2]], *[float(word) for word in sys.argv[2:3]])
