"""Twice as much data as the budget, on asyncio, and what became of it.

Run it: ``python examples/quickstart.py``
"""

from __future__ import annotations

import asyncio

import reclaimactors as ra
from reclaimactors.units import format_size

COUNTERS = ("pgsteal_anon", "allocstall_normal", "zswpout", "pswpout", "workingset_refault_anon")


def report(i: int) -> bytes:
    return "".join(f"{i:05},{line:03},{line * i % 9973:04},ok\n" for line in range(400)).encode()


async def main() -> None:
    async with ra.open_memory("kcompressd", budget="4MiB") as memory:
        for i in range(1200):
            await memory.put(f"report:{i}", report(i))
        for i in range(1200):
            assert await memory.get(f"report:{i}") == report(i)

        usage = memory.usage()
        total = sum(len(report(i)) for i in range(1200))
        print(f"{len(memory)} values, {format_size(total)}, in {format_size(usage.budget)}:")
        print(f"  as they are   {format_size(usage.resident)}")
        print(f"  compressed to {format_size(usage.compressed)}")
        print(f"  on swap       {format_size(usage.swapped)}")
        print(f"  bookkeeping   {format_size(usage.overhead)}")
        print(f"  free          {format_size(usage.free)}")
        print(*(f"{name} {memory.vmstat[name]}" for name in COUNTERS), sep="\n")
        print(f"somebody waited for {memory.pressure().some.total / 1000:.1f} ms in all")


if __name__ == "__main__":
    asyncio.run(main())
