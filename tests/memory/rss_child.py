"""A process that keeps ten times its budget alive: ``rss_child.py KIND OFFLOAD BUDGET_MIB``.

Prints the growth of its anonymous memory (RSS less shared pages), at the peak, in bytes. Values are
pieces of the running Python's own library, each a bytes object of its own; some are read back and
compared.
"""

from __future__ import annotations

import math
import os
import random
import sys
from pathlib import Path

import anyio

import reclaimactors as ra


def anonymous_bytes() -> int:
    status = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in status if line.startswith("RssAnon"))


def size_of(kind: str, rng: random.Random) -> int:
    if kind == "log":
        return int(math.exp(rng.uniform(math.log(100), math.log(256 * 1024))))
    return {"4KiB": 4096, "256KiB": 256 * 1024}[kind]


async def main(kind: str, offload: str, budget: int) -> None:
    library = sorted(Path(os.__file__).parent.glob("*.py"))
    source = memoryview(b"".join(path.read_bytes() for path in library))
    rng = random.Random(1)
    where: list[tuple[int, int]] = []
    live = 0
    before = peak = anonymous_bytes()
    async with ra.open_memory("kcompressd", budget=budget, compress={"offload": offload}) as memory:
        while live < 10 * budget:
            size = size_of(kind, rng)
            start = rng.randrange(len(source) - size)
            await memory.put(f"key:{len(where):07}", bytes(source[start : start + size]))
            where.append((start, size))
            live += size
            if len(where) % 64 == 0:
                peak = max(peak, anonymous_bytes())
        for i in rng.sample(range(len(where)), 500):
            start, size = where[i]
            assert await memory.get(f"key:{i:07}") == source[start : start + size]
        peak = max(peak, anonymous_bytes())
    print(peak - before)


if __name__ == "__main__":
    anyio.run(main, sys.argv[1], sys.argv[2], int(sys.argv[3]) << 20)
