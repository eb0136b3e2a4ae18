"""What a live key and its folio cost beside their bytes: KEY_OVERHEAD + FOLIO_OVERHEAD, measured.

    python tests/bench/overhead.py [NR_VALUES]

Values of a page are put under short str keys; the anonymous memory of the process, after malloc has
given back what it keeps, less what the core counts as bytes, is what the bookkeeping needs.
"""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import anyio

import reclaimactors as ra
from reclaimactors.mm.expiry import EXPIRY_OVERHEAD, LAZY_OVERHEAD
from reclaimactors.mm.memcg import FOLIO_OVERHEAD, KEY_OVERHEAD

TERMS: dict[str, dict[str, object]] = {
    "resident": {},
    "resident, it ends": {"expires_in": 3600},
    "resident, discardable": {"discardable": True},
}


def anonymous_bytes() -> int:
    ctypes.CDLL(None).malloc_trim(0)
    status = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in status if line.startswith("RssAnon"))


async def measure_resident(nr: int, terms: dict[str, object]) -> float:
    """Return bytes a value beside its own, of values that are put on some terms."""
    async with ra.open_memory(
        budget=nr * 2000, watermarks={"min": 1, "low": 2, "high": 3}, swap=[]
    ) as memory:
        before = anonymous_bytes()
        for i in range(nr):
            await memory.put(f"key:{i:07}", os.urandom(48) + b"%d " % i * 10, **terms)
        return (anonymous_bytes() - before - memory.usage().resident) / nr


async def measure(nr: int, *, swapped: bool) -> float:
    """Return bytes a value beside its blob, or beside nothing where it is swapped."""
    swap = [{"backend": "file", "size": "64GiB"}] if swapped else []
    pool = 1 if swapped else 90
    async with ra.open_memory(
        "kcompressd",
        budget=nr * 1200,
        swap=swap,
        zswap={"max_pool_percent": pool},
        compress={"offload": "inline"},
    ) as memory:
        before = anonymous_bytes()
        for i in range(nr):
            await memory.put(f"key:{i:07}", os.urandom(48) + b"%d " % i * 500)
        while await memory.reclaim(1 << 30):
            pass
        await memory.drain()
        usage = memory.usage()
        held = usage.resident + usage.compressed
        print(f"  {nr} values: {held >> 20} MiB of bytes, {usage.swapped >> 20} MiB swapped")
        return (anonymous_bytes() - before - held) / nr


def main(nr: int, *where: str) -> None:
    print(f"charged: {KEY_OVERHEAD + FOLIO_OVERHEAD} B ({KEY_OVERHEAD} + {FOLIO_OVERHEAD})")
    print(f"beside: {EXPIRY_OVERHEAD} B where it ends, {LAZY_OVERHEAD} B where it is discardable")
    for name in where or ("compressed", "swapped", *TERMS):
        if name in TERMS and where:
            cost = anyio.run(measure_resident, nr, TERMS[name])
            print(f"{name}: {cost:.0f} B a value")
        elif where:
            cost = anyio.run(partial(measure, nr, swapped=name == "swapped"))
            print(f"{name}: {cost:.0f} B a value")
        else:  # each in a process of its own: malloc remembers
            subprocess.run([sys.executable, __file__, str(nr), name], check=True)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 300_000, *sys.argv[2:])
