"""How long each call on one large value holds the event loop: its longest step, in ms of CPU.

    python tests/bench/large_values.py [MIB]        default: 128, some 20 seconds

A task asks for the loop again and again; what the loop's thread worked between two of its turns is
one step. CPU time, so that other programs do not count. A step of `put` copies a MiB. To free what
the caller alone holds is a step of the caller: what `get` returned is kept until it was measured.
What was freed before a call is given back to the system before it, too: malloc does that in steps
of up to 64 MiB, whenever it likes.
"""

from __future__ import annotations

import ctypes
import random
import sys
import time
from contextlib import suppress
from typing import TYPE_CHECKING

import anyio
from anyio.lowlevel import checkpoint

import reclaimactors as ra

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

MIB = 1 << 20


def halves(size: int) -> bytes:
    """MiBs that compress in turn with MiBs that do not."""
    text = (b"a line of a long text that is much like the others; " * MIB)[:MIB]
    return (text + random.Random(1).randbytes(MIB)) * (size // (2 * MIB))


def trim() -> None:
    """Have malloc give back what is free, where it can be told to."""
    with suppress(AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


class Steps:
    """Measures the longest step of calls."""

    def __init__(self) -> None:
        self.worst_s = 0.0

    async def turns(self) -> None:
        """Be run in each turn of the loop."""
        last = time.thread_time()
        while True:
            await checkpoint()
            now = time.thread_time()
            self.worst_s, last = max(self.worst_s, now - last), now

    async def of(self, call: Callable[[], Awaitable[object]]) -> tuple[float, object]:
        """Return the longest step of a call in ms, and what it gave."""
        await anyio.sleep(0.02)
        trim()
        await checkpoint()
        self.worst_s = 0.0
        given = await call()
        worst_s = self.worst_s
        await anyio.sleep(0.02)  # what it left to others counts too
        return 1000 * max(worst_s, self.worst_s), given


async def calls(size: int) -> dict[str, float]:
    """Return the longest step of each call on a value of `size` bytes, in ms."""
    found: dict[str, float] = {}
    steps = Steps()
    value, zeros = halves(size), bytes(size)

    async def pinned() -> None:
        async with memory.pin("k"):
            pass

    async def needed() -> None:
        memory.advise("k", ra.Advice.WILLNEED)
        await memory.drain()

    async def out() -> None:
        while await memory.reclaim(4 * size):
            pass
        await memory.drain()

    async def measure(name: str, call: Callable[[], Awaitable[object]]) -> None:
        found[name], given = await steps.of(call)
        assert given is None or given == (zeros if "zeros" in name else value)

    async def row(name: str, call: Callable[[], Awaitable[object]]) -> None:
        """Measure a call on a value whose compressible half is in the pool, the rest on a store."""
        await out()
        await measure(name, call)

    zswap = {"max_pool_percent": 50}
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(steps.turns)
        async with ra.open_memory(budget=3 * size, zswap=zswap, swap=[]) as memory:
            await measure("put", lambda: memory.put("k", value))
            await measure("get", lambda: memory.get("k"))
            await measure("pin", pinned)
            await measure("put over it", lambda: memory.put("k", value))
            await row("get, half of it compressed", lambda: memory.get("k"))
            await row("pin, half of it compressed", pinned)
            await row("WILLNEED, half of it compressed", needed)
            await row("put over it, half of it compressed", lambda: memory.put("k", value))
            await measure("delete", lambda: memory.delete("k"))
            await memory.put("k", zeros)
            await row("get, zeros", lambda: memory.get("k"))
        async with ra.open_memory(budget=3 * size, zswap={"enabled": False}) as memory:
            await memory.put("k", value)
            await row("get, in a file", lambda: memory.get("k"))
            await row("pin, in a file", pinned)
            await row("WILLNEED, in a file", needed)
            await row("delete, in a file", lambda: memory.delete("k"))
            await memory.put("k", value)
            await row("swapoff", lambda: memory.swapoff("file0"))
        tasks.cancel_scope.cancel()
    return found


async def main(mib: int) -> None:
    print(f"{'a value of ' + str(mib) + ' MiB':<36}longest step, ms of CPU")
    for name, ms in (await calls(mib * MIB)).items():
        print(f"{name:<36}{ms:>8.2f}", flush=True)


if __name__ == "__main__":
    anyio.run(main, int(sys.argv[1]) if len(sys.argv) > 1 else 128)
