"""Print what the hot paths cost over the bare operation, and the machine.

    python tests/bench/table.py [ROUNDS]        about a minute

A and B alternate, and the medians of ROUNDS (default 9) are compared: trust the ratios.
"""

from __future__ import annotations

import gc
import os
import platform
import statistics
import sys
import time
from pathlib import Path

import anyio

sys.path.insert(0, str(Path(__file__).parent))

import gc_pause
import hot_paths

NR = 20_000


def machine() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    model = next((line.split(": ")[1] for line in lines if line.startswith("model name")), "")
    load = f", load {os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else ""
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    python = f"{platform.python_implementation()} {platform.python_version()}"
    return f"{python}, {platform.system()} {platform.machine()}, {cpus} CPUs {model}{load}"


def timed(call, setup) -> float:
    setup()
    gc.disable()
    started = time.perf_counter()
    call()
    ended = time.perf_counter()
    gc.enable()
    return ended - started


async def compare(name: str, nr: int, rounds: int) -> None:
    async with getattr(hot_paths, name)(nr) as row:
        ours: list[float] = []
        bare: list[float] = []
        for _ in range(rounds):
            bare.append(timed(row.bare, row.setup) / row.nr)
            ours.append(timed(row.ours, row.setup) / row.nr)
        line(name, statistics.median(ours), statistics.median(bare))


def line(name: str, ours: float, bare: float) -> None:
    print(f"{name:<18}{ours * 1e6:>12.2f}{bare * 1e6:>12.2f}{ours / bare:>8.2f}", flush=True)


async def main(rounds: int) -> None:
    print(machine())
    print(f"{'row':<18}{'ours us':>12}{'bare us':>12}{'ratio':>8}")
    for name in ("get", "get_nowait", "put", "put_many", "get_many", "fault", "reclaim_one"):
        try:
            await compare(name, 2000 if name in {"fault", "reclaim_one"} else NR, rounds)
        except ImportError as missing:
            print(f"{name:<18}skipped: {missing}")
    line("fault at low", *(us / 1e6 for us in await hot_paths.fault_at_low_us(NR)))
    over = await hot_paths.burst_over_budget(NR)
    print(f"{'burst, held/budget':<18}{over:>32.2f}")
    line("loop, page", *(us / 1e6 for us in await hot_paths.loop_us_per_page(NR)))
    few, many = [await hot_paths.random_keys_us(nr) for nr in (NR, 100 * NR)]
    for name, (ours, bare) in ((f"{NR:,} keys", few), (f"{100 * NR:,} keys", many)):
        line(name, ours / 1e6, bare / 1e6)
    grown = [after / before for before, after in zip(few, many, strict=True)]
    print(f"{'more keys cost':<18}{grown[0]:>12.2f}{grown[1]:>12.2f}{grown[0] / grown[1]:>8.2f}")
    plain, held = await gc_pause.compare(1_000_000)
    line("gc.collect, 1e6", held, plain)


if __name__ == "__main__":
    anyio.run(main, int(sys.argv[1]) if len(sys.argv) > 1 else 9)
