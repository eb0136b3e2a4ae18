"""A process that keeps ten times its budget alive: ``rss_child.py KIND OFFLOAD BUDGET_MIB``.

KIND "keys" is instead small values under long keys, until one is refused: no swap helps there.
Prints the growth of its anonymous memory (RSS less shared pages), at the peak, in bytes. Values are
pieces of the running Python's own library, each a bytes object of its own; some are read back and
compared.
"""

from __future__ import annotations

import math
import os
import random
import sys
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING

import anyio

import reclaimactors as ra

if TYPE_CHECKING:
    from collections.abc import Iterator


def anonymous_bytes() -> int:
    status = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in status if line.startswith("RssAnon"))


def size_of(kind: str, rng: random.Random) -> int:
    if kind == "log":
        return int(math.exp(rng.uniform(math.log(100), math.log(256 * 1024))))
    return {"4KiB": 4096, "256KiB": 256 * 1024}[kind]


def pieces(kind: str, total: int, budget: int) -> Iterator[tuple[str, int, int]]:
    """Yield key, start and size of each value: again and again the same, so nothing is kept."""
    rng = random.Random(1)
    live = nr = 0
    while live < 10 * budget:
        size = size_of(kind, rng)
        yield f"key:{nr:07}", rng.randrange(total - size), size
        live += size
        nr += 1


async def long_keys(budget: int) -> None:
    before = anonymous_bytes()
    async with ra.open_memory("kcompressd", budget=budget) as memory:
        for nr in count():
            url = f"https://example/{nr:09}?" + "&".join(
                f"filter{i}={nr * i:09}" for i in range(40)
            )
            try:
                await memory.put((url, nr), b"%0100d" % nr)
            except ra.OutOfMemory:
                break
        print(anonymous_bytes() - before)


async def main(kind: str, offload: str, budget: int) -> None:
    library = sorted(Path(os.__file__).parent.glob("*.py"))
    source = memoryview(b"".join(path.read_bytes() for path in library))
    before = peak = anonymous_bytes()
    async with ra.open_memory("kcompressd", budget=budget, compress={"offload": offload}) as memory:
        for nr, (key, start, size) in enumerate(pieces(kind, len(source), budget)):
            await memory.put(key, bytes(source[start : start + size]))
            if nr % 64 == 0:
                peak = max(peak, anonymous_bytes())
        for nr, (key, start, size) in enumerate(pieces(kind, len(source), budget)):
            if nr % 101 == 0:
                assert await memory.get(key) == source[start : start + size]
        peak = max(peak, anonymous_bytes())
    print(peak - before)


if __name__ == "__main__":
    if sys.argv[1] == "keys":
        anyio.run(long_keys, int(sys.argv[3]) << 20)
    else:
        anyio.run(main, sys.argv[1], sys.argv[2], int(sys.argv[3]) << 20)
