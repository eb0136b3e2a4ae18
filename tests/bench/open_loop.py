"""Print what a program feels whose requests do not wait for each other: latency from due time.

    python tests/bench/open_loop.py [--rounds 3] [--seconds 2] [--names NAME ...] [--mix puts 70/30]

Requests arrive by a schedule (a Poisson process) and are put in a stream, which eight tasks serve;
latency is from the time at which a request was due. Values are pages of 4 KiB that lz4 about
halves, each put as a bytes object of its own. The budget is 64 MiB, 1.3 x that is alive, there is
no swap, max_pool_percent is 80. `puts` overwrite the keys in turn; in `70/30` seven of ten requests
get a key, drawn by zipf.

Each contestant runs in a process of its own, in turns. `saturation` is what it serves in a second
with the stream never empty. Then come 25, 50, 75 and 90 % of that, fixed rates, and what
kswapd_only could serve in this round; a dict is measured at 50 % of what each of the others could
serve. Figures are medians of the rounds:

- p50, p99, p99.9: ms from due to served.
- CPU: microseconds of all processes for a request.
- step: the longest turn of the event loop, in ms of CPU of its thread.
- stalls: allocstall a second; by loop: share of the pages that kswapd compressed in the event loop.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import random
import selectors
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anyio
import lz4.block

sys.path.insert(0, str(Path(__file__).parent))

from hot_paths import PAGE, real_pages
from table import machine

import reclaimactors as ra
from reclaimactors.lab.arrivals import open_loop, steady
from reclaimactors.lab.measure import cpu_times

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

BUDGET = 64 << 20
MORE = 1_000_000  #: requests a second, more than anybody serves
SHARES = (0.25, 0.5, 0.75, 0.9)
FIXED = (10_000, 20_000, 30_000)
MIXES = {"puts": 0.0, "70/30": 0.7}
TOPOLOGIES: dict[str, tuple[str, dict[str, Any]]] = {
    "no pressure": ("kcompressd", {"budget": 16 * BUDGET}),
    "kcompressd": ("kcompressd", {}),
    "kcompressd, wait": ("kcompressd", {"compress": {"on_full": "wait"}}),
    "kcompressd, no brake": ("kcompressd", {"brake": False}),
    "kswapd_only": ("kswapd_only", {}),
    "kswapd_only, no brake": ("kswapd_only", {"brake": False}),
    "kswapd_only_inline": ("kswapd_only_inline", {}),
    "padata": ("padata", {"compress": {"workers": 2}}),
}
NAMES = ("dict", "zict lmdb", *TOPOLOGIES)
POINTS = {"p50 ms": 0.5, "p99 ms": 0.99, "p99.9 ms": 0.999}


class Mapped:
    """A mapping behind the calls of a Memory."""

    vmstat = dict.fromkeys(("allocstall_normal", "pgsteal_anon", "kcompressd_inline"), 0)

    def __init__(self, mapping: Any) -> None:
        self._mapping = mapping

    async def put(self, key: str, value: bytes) -> None:
        self._mapping[key] = value

    async def get(self, key: str) -> bytes:
        return self._mapping[key]


@asynccontextmanager
async def opened(name: str, budget: int) -> AsyncGenerator[Any]:
    if name == "dict":
        yield Mapped({})
    elif name == "zict lmdb":
        import zict

        with tempfile.TemporaryDirectory(dir="/var/tmp") as folder:
            slow = zict.Func(lz4.block.compress, lz4.block.decompress, zict.LMDB(folder))
            buffer = zict.Buffer({}, slow, n=budget, weight=lambda _, value: len(value))
            yield Mapped(buffer)
            buffer.close()
    else:
        topology, spec = TOPOLOGIES[name]
        spec = {"budget": budget, "swap": [], "zswap": {"max_pool_percent": 80}} | spec
        async with ra.open_memory(topology, **spec) as memory:
            yield memory


class Requests:
    """Puts of the keys in turn, and gets by zipf; every value is known."""

    def __init__(self, store: Any, pages: list[bytes], live: int, gets: float) -> None:
        self._store = store
        self._views = [memoryview(page) for page in pages]
        self._live = live
        self._keys = [f"key:{key:07}" for key in range(live)]
        rng = random.Random(1)
        weights = list(itertools.accumulate(1 / rank for rank in range(1, live + 1)))
        shuffled = rng.sample(self._keys, live)
        drawn = rng.choices(shuffled, cum_weights=weights, k=50_000)
        self._next = itertools.cycle([key if rng.random() < gets else None for key in drawn])
        self._puts = 0

    def _page(self, put: int) -> memoryview:
        return self._views[put % len(self._views)]

    async def fill(self) -> None:
        for _ in range(self._live):
            await self.put()

    async def put(self) -> None:
        put = self._puts
        self._puts += 1
        await self._store.put(self._keys[put % self._live], bytes(self._page(put)))

    async def serve(self) -> None:
        key = next(self._next)
        if key is None:
            await self.put()
        else:
            assert len(await self._store.get(key)) == PAGE

    async def check(self) -> None:
        """Compare every value; one whose last put was cut off at the end of a run may be older."""
        for key in range(self._live):
            last = (self._puts - 1 - key) // self._live * self._live + key
            value = await self._store.get(self._keys[key])
            assert value in {bytes(self._page(put)) for put in (last, last - self._live)}, key


class Turns(selectors.DefaultSelector):
    """Measures how long the loop works between two looks at its descriptors, in CPU time."""

    def __init__(self) -> None:
        super().__init__()
        self.worst_s = 0.0
        self._since = time.thread_time()

    def select(self, timeout: float | None = None) -> Any:
        self.worst_s = max(self.worst_s, time.thread_time() - self._since)
        try:
            return super().select(timeout)
        finally:
            self._since = time.thread_time()


async def run(
    store: Any, requests: Requests, turns: Turns, rate: float, seconds: float
) -> dict[str, float]:
    """Serve requests at a rate; return what was felt."""
    await anyio.sleep(0.01)  # what came before is over
    before, (cpu, _) = dict(store.vmstat), cpu_times()
    turns.worst_s = 0.0
    served = await open_loop(steady(rate, 1), requests.serve, seconds=seconds)
    cpu = cpu_times()[0] - cpu
    more = {name: store.vmstat[name] - before[name] for name in Mapped.vmstat}
    return {
        "rate": rate,
        "served/s": served.per_s,
        **{name: served.late.quantile(share) * 1e3 for name, share in POINTS.items()},
        "CPU us": cpu / max(1, served.late.count) * 1e6,
        "step ms": turns.worst_s * 1e3,
        "stalls/s": more["allocstall_normal"] / served.seconds,
        "by loop": more["kcompressd_inline"] / max(1, more["pgsteal_anon"]),
    }


async def measure(
    name: str,
    gets: float,
    rates: list[float],
    *,
    seconds: float,
    turns: Turns,
    budget: int = BUDGET,
) -> dict[str, dict[str, float]]:
    """Return what one contestant's requests felt: at saturation, at shares of it, at `rates`."""
    pages = real_pages(2000)
    async with opened(name, budget) as store:
        requests = Requests(store, pages, budget * 13 // 10 // PAGE, gets)
        await requests.fill()
        rows = {"saturation": await run(store, requests, turns, MORE, seconds)}
        top = rows["saturation"]["served/s"]
        at = {f"{share:.0%}": share * top for share in SHARES}
        at |= {f"{rate:,.0f}/s": rate for rate in rates}
        for label, rate in at.items():
            rows[label] = await run(store, requests, turns, rate, seconds)
        await requests.check()
    return rows


def child(name: str, mix: str, rates: list[float], seconds: float) -> Any:
    """Measure one contestant in a process of its own."""
    arguments = ["--child", name, "--mix", mix, "--seconds", str(seconds)]
    arguments += ["--rates", *map(str, rates)] if rates else []
    command = [sys.executable, __file__, *arguments]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    if "ModuleNotFoundError" in ended.stderr:
        return {}
    if ended.returncode:
        raise RuntimeError(f"{name}: {ended.stderr[-2000:]}")
    return json.loads(ended.stdout.splitlines()[-1])


def round_of(names: list[str], mix: str, seconds: float) -> dict[str, Any]:
    """Measure each contestant once, the dict last: at the rates of the others, too."""
    found: dict[str, Any] = {}
    rates = [*FIXED]
    for name in sorted(names, key=lambda name: (name == "dict", name != "kswapd_only")):
        if name == "dict":
            rates = [*FIXED, *(rows["50%"]["rate"] for rows in found.values())]
        print(f"{mix}: {name:<24}", end="\r", file=sys.stderr)
        found[name] = child(name, mix, rates, seconds)
        if name == "kswapd_only":
            rates.append(found[name]["saturation"]["served/s"])
        if not found[name]:
            print(f"{name} is not installed: skipped")
            del found[name]
    return found


def report(mix: str, rounds: list[dict[str, Any]]) -> None:
    """Print medians: a line for each contestant and rate."""
    columns = [name for name in next(iter(rounds[0].values()))["saturation"] if name != "rate"]
    for name in rounds[0]:
        print(f"\n{name + ', ' + mix:<32}" + "".join(f"{column:>10}" for column in columns))
        for label, rows in _aligned([found[name] for found in rounds]):
            medians = [statistics.median(row[column] for row in rows) for column in columns]
            print(f"  {label:<30}" + "".join(_figure(figure) for figure in medians))
    tops = {name: [found[name]["saturation"]["served/s"] for found in rounds] for name in rounds[0]}
    for other in ("kswapd_only", "kswapd_only_inline", "zict lmdb", "dict"):
        for name, mine in tops.items():
            if other in tops and name not in {"dict", "zict lmdb", other}:
                ratio = [a / b for a, b in zip(mine, tops[other], strict=True)]
                spread = f"{min(ratio):.2f} to {max(ratio):.2f}"
                print(f"saturation: {name} / {other}: {statistics.median(ratio):.2f} ({spread})")
    for name in tops.keys() - {"dict"} if "dict" in tops else ():
        more = [
            found[name]["50%"]["p99 ms"]
            - found["dict"][f"{found[name]['50%']['rate']:,.0f}/s"]["p99 ms"]
            for found in rounds
        ]
        spread = f"{min(more):.1f} to {max(more):.1f}"
        print(f"p99 at 50 %, {name}: {statistics.median(more):+.1f} ms over a dict's ({spread})")


def _aligned(rounds: list[dict[str, Any]]) -> list[tuple[str, list[dict[str, float]]]]:
    """Return label and rows of all rounds; the rates that others could serve differ by round."""
    rows = zip(*(found.items() for found in rounds), strict=True)
    return [(same[0][0], [row for _, row in same]) for same in rows]


def _figure(figure: float) -> str:
    return f"{figure:>10,.0f}" if figure >= 1000 else f"{figure:>10.2f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--names", nargs="+", default=NAMES, choices=NAMES)
    parser.add_argument("--mix", nargs="+", default=MIXES, choices=MIXES)
    parser.add_argument("--rates", nargs="+", type=float, default=[], help=argparse.SUPPRESS)
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        turns = Turns()
        found = anyio.run(
            partial(measure, seconds=options.seconds, turns=turns),
            options.child,
            MIXES[options.mix[0]],
            options.rates,
            backend_options={"loop_factory": lambda: asyncio.SelectorEventLoop(turns)},
        )
        print(json.dumps(found))
        return
    print(machine())
    for mix in options.mix:
        report(mix, [round_of(options.names, mix, options.seconds) for _ in range(options.rounds)])


if __name__ == "__main__":
    main()
