"""Print how fast pages are reclaimed, over the bare compressor or over another topology.

    python tests/bench/rates.py [ROUNDS [SECONDS]]        default 5 rounds of 2 s: four minutes

Real pages of 4 KiB that lz4 about halves, none same-filled, each put its own bytes object; 1.3 x
the budget is alive and overwritten in a closed loop by one client; no swap, max_pool_percent 80. A
rate is pgsteal_anon a second of wall time, while one task wakes each millisecond to measure how
late the event loop is. Configurations take turns; figures are medians, ratios are those of medians.
The bare compressor is called page by page in this process, on the same pages, in each round, with
nothing beside it. What workers and loop could do at most, were nothing ever to wait, is
2 / (c + l): c is what the bare compressor takes for a page, l is `loop us`, the client included.
"""

from __future__ import annotations

import importlib.util
import os
import statistics
import subprocess
import sys
import time
from collections import defaultdict
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import anyio
import lz4.block
from anyio.lowlevel import checkpoint

sys.path.insert(0, str(Path(__file__).parent))

from hot_paths import real_pages
from table import machine

import reclaimactors as ra
from reclaimactors.lab.histogram import Histogram

PAGE = 4096
BUDGET = 32 << 20
NR_PAGES = 2000  #: of the source
ZSTD = {"name": "zstd", "level": 3}
CONFIGS: dict[str, tuple[str, dict[str, object]]] = {
    "kswapd_only_inline": ("kswapd_only_inline", {}),
    "kcompressd": ("kcompressd", {}),
    "kcompressd, busy loop": ("kcompressd", {}),
    "kcompressd, wait": ("kcompressd", {"on_full": "wait"}),
    "padata": ("padata", {"workers": 2}),
    "padata, SCHED_IDLE": ("padata", {"workers": 2}),
    "padata, wait": ("padata", {"workers": 2, "on_full": "wait"}),
    "kcompressd, zstd": ("kcompressd", {"compressor": ZSTD, "on_full": "wait"}),
    "padata, zstd": ("padata", {"workers": 2, "compressor": ZSTD, "on_full": "wait"}),
}
NATIVE = ("kcompressd", "kcompressd, busy loop", "kcompressd, wait", "padata, wait",
          "kcompressd, zstd", "padata, zstd")  # fmt: skip
CONFIGS |= {
    f"{name}, native": (CONFIGS[name][0], CONFIGS[name][1] | {"offload": "native"})
    for name in NATIVE
}
ROWS = (
    ("kcompressd", "bare lz4"),
    ("kcompressd, wait", "bare lz4"),
    ("padata", "bare lz4"),
    ("padata", "kcompressd"),
    ("padata, wait", "kcompressd, wait"),
    ("padata, zstd", "kcompressd, zstd"),
    ("kcompressd, busy loop", "kcompressd"),
    ("kcompressd", "kswapd_only_inline"),
    ("kcompressd, native", "bare lz4"),
    ("kcompressd, busy loop, native", "kcompressd, native"),
    ("kcompressd, native", "kcompressd"),
    ("padata, wait, native", "kcompressd, wait, native"),
    ("padata, zstd, native", "kcompressd, zstd, native"),
)


class Measured(NamedTuple):
    rate: float  #: pages a second
    puts: float  #: a second
    loop_us: float  #: CPU of the loop's thread for each page, the client's puts included
    lag_p99_ms: float
    lag_max_ms: float


def bare_rate(pages: list[bytes], seconds: float) -> float:
    nr, started = 0, time.perf_counter()
    while time.perf_counter() - started < seconds:
        for page in pages:
            lz4.block.compress(page, mode="fast", acceleration=1, store_size=False)
        nr += len(pages)
    return nr / (time.perf_counter() - started)


async def ticker(lags: Histogram) -> None:
    while True:
        due = time.perf_counter() + 0.001
        await anyio.sleep(0.001)
        lags.add(time.perf_counter() - due)


async def burner() -> None:
    while True:
        until = time.perf_counter() + 0.0005
        while time.perf_counter() < until:
            pass
        await checkpoint()


async def overwrite(memory: ra.Memory, pages: list[bytes], done: list[int]) -> None:
    live = BUDGET * 13 // 10 // PAGE
    views = [memoryview(page) for page in pages]
    while True:
        for _ in range(64):
            await memory.put(done[0] % live, bytes(views[done[0] % len(views)]))
            done[0] += 1


def yield_to_everybody() -> None:
    """Have the worker processes run only where nobody else wants to."""
    for children in Path("/proc/self/task").glob("*/children"):
        for pid in children.read_text().split():
            os.sched_setscheduler(int(pid), os.SCHED_IDLE, os.sched_param(0))


async def measure(name: str, pages: list[bytes], seconds: float) -> Measured:
    topology, compress = CONFIGS[name]
    zswap = {"max_pool_percent": 80}
    done = [0]
    async with (
        ra.open_memory(topology, budget=BUDGET, swap=[], zswap=zswap, compress=compress) as memory,
        anyio.create_task_group() as tasks,
    ):
        tasks.start_soon(overwrite, memory, pages, done)
        if "busy" in name:
            tasks.start_soon(burner)
        live = BUDGET * 13 // 10 // PAGE
        while done[0] < 2 * live:  # everything is alive, and the workers are up
            await anyio.sleep(0.01)
        if "SCHED_IDLE" in name:
            yield_to_everybody()
        lags = Histogram()
        tasks.start_soon(ticker, lags)
        before, puts = dict(memory.vmstat), done[0]
        started, cpu = time.perf_counter(), time.thread_time()
        await anyio.sleep(seconds)
        elapsed, cpu = time.perf_counter() - started, time.thread_time() - cpu
        after = memory.vmstat
        stolen = after["pgsteal_anon"] - before["pgsteal_anon"]
        assert after["pool_limit_hit"] == after["pswpout"] == 0
        tasks.cancel_scope.cancel()
    return Measured(
        rate=stolen / elapsed,
        puts=(done[0] - puts) / elapsed,
        loop_us=cpu / max(1, stolen) * 1e6,
        lag_p99_ms=lags.quantile(0.99) * 1e3,
        lag_max_ms=lags.max * 1e3,
    )


def on_one_cpu(seconds: float) -> float:
    """Return the puts a second of kcompressd over those of kswapd_only_inline, all on one CPU."""
    program = [sys.executable, __file__, "--one-cpu", str(seconds)]
    ended = subprocess.run(program, check=True, capture_output=True, text=True)
    return float(ended.stdout)


async def one_cpu(seconds: float) -> None:
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    pages = real_pages(NR_PAGES)
    puts = defaultdict(list)
    for _ in range(3):
        for name in ("kcompressd", "kswapd_only_inline"):
            puts[name].append((await measure(name, pages, seconds)).puts)
    print(statistics.median(puts["kcompressd"]) / statistics.median(puts["kswapd_only_inline"]))


async def main(rounds: int, seconds: float) -> None:
    pages = real_pages(NR_PAGES)
    ratio = sum(map(len, pages)) / sum(len(lz4.block.compress(page)) for page in pages)
    print(f"{machine()}; {len(pages)} pages, lz4 {ratio:.2f}:1")
    names = [
        name
        for name in CONFIGS
        if ("zstd" not in name or _has("reclaimactors_zstd"))
        and ("native" not in name or _has("reclaimactors_native"))
    ]
    bare: list[float] = []
    runs: dict[str, list[Measured]] = defaultdict(list)
    for _ in range(rounds):
        bare.append(bare_rate(pages, 0.5))
        for name in names:
            runs[name].append(await measure(name, pages, seconds))
    rates = {"bare lz4": statistics.median(bare)}
    print(f"{'':<32}{'pages/s':>10}{'puts/s':>10}{'loop us':>9}{'lag p99':>9}{'max ms':>8}")
    print(f"{'bare lz4':<32}{rates['bare lz4']:>10,.0f}")
    for name, rows in runs.items():
        rate, puts, us, p99, worst = (
            statistics.median(column) for column in zip(*rows, strict=True)
        )
        rates[name] = rate
        print(f"{name:<32}{rate:>10,.0f}{puts:>10,.0f}{us:>9.1f}{p99:>9.2f}{worst:>8.2f}")
    for mine, other in ROWS:
        if mine in rates and other in rates:
            print(f"{mine} / {other}: {rates[mine] / rates[other]:.2f}")
    for name in ("padata", "padata, wait"):
        bound = 2e6 / (
            1e6 / rates["bare lz4"] + statistics.median(run.loop_us for run in runs[name])
        )
        print(f"{name} / its bound 2 / (c + l), {bound:,.0f}: {rates[name] / bound:.2f}")
    with suppress(AttributeError):  # Linux only
        os.sched_getaffinity(0)
        print(f"on one CPU, puts of kcompressd / kswapd_only_inline: {on_one_cpu(seconds):.2f}")


def _has(distribution: str) -> bool:
    return importlib.util.find_spec(distribution) is not None


if __name__ == "__main__":
    if sys.argv[1:2] == ["--one-cpu"]:
        anyio.run(one_cpu, float(sys.argv[2]))
    else:
        nr_rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 5
        anyio.run(main, nr_rounds, float(sys.argv[2]) if len(sys.argv) > 2 else 2.0)
