"""A full gc.collect() with many reclaimed values held, over one with a plain dict of as many bytes.

    python tests/bench/gc_pause.py [NR_VALUES]

Both are held by the same process in turns (A B A B), and the medians compared: the bar is 3.
"""

from __future__ import annotations

import gc
import statistics
import sys
import time
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING

import anyio

import reclaimactors as ra

if TYPE_CHECKING:
    from collections.abc import Callable


def value_of(i: int) -> bytes:
    return b"value %d, " % i * 40


def collect_s() -> float:
    start = time.perf_counter()
    gc.collect()
    return time.perf_counter() - start


async def fill(memory: ra.Memory, nr: int) -> None:
    for i in range(nr):
        await memory.put(i, value_of(i))
    while await memory.reclaim(1 << 30):
        pass
    await memory.drain()


async def compare(nr: int, rounds: int = 5) -> tuple[float, float]:
    """Return the median seconds of a full collection beside a dict, and beside a memory."""
    plain: list[float] = []
    held: list[float] = []
    for _ in range(rounds):
        values = {i: value_of(i) for i in range(nr)}
        gc.collect()
        plain.append(collect_s())
        del values
        async with AsyncExitStack() as stack:
            memory = await stack.enter_async_context(
                ra.open_memory(
                    "kcompressd",
                    budget=max(1 << 20, nr * 600),
                    swap=[],
                    zswap={"max_pool_percent": 60},
                    compress={"offload": "inline"},
                )
            )
            await fill(memory, nr)
            assert memory.usage().resident == 0
            gc.collect()
            held.append(collect_s())
    return statistics.median(plain), statistics.median(held)


def main(nr: int, say: Callable[[str], None] = print) -> float:
    plain, held = anyio.run(compare, nr)
    say(f"{nr} values: dict {plain * 1e3:.1f} ms, reclaimed {held * 1e3:.1f} ms")
    say(f"ratio {held / plain:.2f} (bar 3)")
    return held / plain


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 1_000_000)
