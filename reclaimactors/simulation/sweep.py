"""Sweeps: how much faster reclaim is with workers than without, over several parameters.

The machine is bare, so that nothing but the question is in it: one CPU for kswapd, one for each
worker, one for callers; a page costs `PAGE_S` of a CPU of capacity 1, of which a share is
compressing and the rest scanning; all else costs nothing. Callers put new values as fast as they
are let, so that reclaim is what limits them. The gain is pages that kswapd and the workers stole a
second, over those that kswapd alone steals on the same machine.

With a share s of compressing, kswapd scans 1/(1-s) of what it does alone where others compress
everything; n workers compress n/s. ``wait`` gives the smaller of the two; ``inline`` shares all
work out among n + 1 CPUs, as long as that is less than what kswapd scans.
"""

from __future__ import annotations

import json
import random
from functools import cache
from itertools import product
from typing import TYPE_CHECKING, Any

import attrs

from reclaimactors.lab.data import Input
from reclaimactors.lab.run import Load
from reclaimactors.simulation.run import simulate
from reclaimactors.simulation.spec import CodecSpec, Cost, Costs, CpuSpec, Machine, StoreSpec
from reclaimactors.topology import resolve

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

__all__ = ["Point", "as_text", "gain_of", "heat_map", "points", "rate", "read_done"]

PAGE_S = 10e-6  #: that a page takes kswapd alone
SECONDS = 0.03
_US = 1e6
_NO, _ONE = Cost(0.0, "assumed"), Cost(1.0, "assumed")


@attrs.frozen
class Point:
    """What is built and asked.

    Attributes:
        share: of a page's work that is compressing, 0 to 1.
        workers: that compress beside kswapd; 0 where it compresses itself.
        on_full: what kswapd does when the FIFO is full.
        capacity: of a worker's CPU; kswapd's has 1.
        fifo: pages that may wait.
        batch: pages that a worker takes at a time.
    """

    share: float = 0.7
    workers: int = 1
    on_full: str = "inline"
    capacity: float = 1.0
    fifo: int = 64
    batch: int = 32

    @property
    def key(self) -> str:
        """What a result of it is found by."""
        return json.dumps(attrs.asdict(self))


def points(lists: Mapping[str, Sequence[Any]]) -> list[Point]:
    """Return every combination of these values of parameters, by their names."""
    return [Point(**dict(zip(lists, each, strict=True))) for each in product(*lists.values())]


def _machine(point: Point) -> Machine:
    scan, compress = (1 - point.share) * PAGE_S * _US, point.share * PAGE_S * _US
    workers = max(1, point.workers)
    return Machine(
        name="bare",
        actors="threads",
        cpus=(CpuSpec(1, 1.0, _ONE), CpuSpec(workers, point.capacity, _ONE), CpuSpec(1, 1.0, _ONE)),
        slice_ms=_ONE,
        switch_us=_NO,
        costs=Costs(_NO, _NO, _NO, Cost(scan, "assumed"), _NO, _NO, _NO),
        codec={"lz4": CodecSpec(Cost(compress, "assumed"), _NO, _NO, _NO)},
        store=StoreSpec(_NO, _NO, _ONE, _NO, _NO),
        affinity={
            "kswapd": (0,), "workers": tuple(range(1, workers + 1)), "callers": (workers + 1,),
        },
    )  # fmt: skip


@cache
def _pages() -> Input:
    """Return pages that compress well, each unlike the others."""
    rng = random.Random(0)  # noqa: S311 - no secret
    return Input(b"".join(rng.randbytes(512) * 8 for _ in range(500)), 4096)


def rate(point: Point) -> float:
    """Return the pages a second that kswapd and its workers steal, in a simulation."""
    mode = {0: "inline", 1: "kcompressd"}.get(point.workers, "padata")
    compress: dict[str, Any] = {
        "mode": mode, "on_full": point.on_full, "fifo": point.fifo, "batch": point.batch,
        "offload": "process" if point.workers else "inline",
    }  # fmt: skip
    if point.workers > 1:
        compress["workers"] = point.workers
    topology = resolve(
        {
            "compress": compress,
            "budget": "8MiB",
            # Room for all that may be in flight, so that it is CPUs that limit reclaim.
            "watermarks": {"min": "5%", "low": "30%", "high": "50%"},
            "zswap": {"max_pool_percent": 90},
        }
    )
    load = Load(_pages(), "writer", budgets=2.0)
    result = simulate(topology, _machine(point), load, seconds=SECONDS, name="point").result
    return result.vmstat["pgsteal_kswapd"] / result.seconds


def gain_of(point: Point) -> float:
    """Return how many times as fast it is as kswapd alone."""
    return rate(point) / (1 / PAGE_S)


def read_done(path: Path | None) -> dict[str, float]:
    """Return the gains that an earlier sweep wrote, by the key of their points.

    A line that was cut as that was interrupted is done again.
    """
    done: dict[str, float] = {}
    if path is not None and path.exists():
        for line in path.read_text(encoding="utf-8").splitlines():
            try:
                row = json.loads(line)
                done[Point(**row["point"]).key] = float(row["gain"])
            except (ValueError, TypeError, KeyError):
                continue
    return done


def as_text(lists: Mapping[str, Sequence[Any]], gains: Mapping[str, float]) -> str:
    """Return a table with a row for each point, and a heat map of the two longest parameters."""
    swept = [name for name, values in lists.items() if len(values) > 1] or list(lists)
    rows = ["SIMULATED on a bare machine, all costs assumed: pages stolen, over kswapd alone", ""]
    rows.append("".join(name.rjust(10) for name in swept) + "gain".rjust(10))
    rows += [
        "".join(str(getattr(point, name)).rjust(10) for name in swept)
        + f"{gains[point.key]:.2f}x".rjust(10)
        for point in points(lists)
        if point.key in gains
    ]
    if len(swept) > 1:
        rows += ["", *heat_map(lists, gains)]
    return "\n".join(rows)


def heat_map(lists: Mapping[str, Sequence[Any]], gains: Mapping[str, float]) -> list[str]:
    """Return lines: the parameter with most values across, the next one down, the best gain each.

    A cell has a mark as well as its number: + from 1.6 x, # from 2.6 x (the patch's +160 %), and @
    from 3.6 x (its +260 %).
    """
    across, down = sorted(lists, key=lambda name: -len(lists[name]))[:2]
    lines = [f"{down} down, {across} across; + from 1.6x, # from 2.6x, @ from 3.6x"]
    lines.append(" " * 10 + "".join(str(value).rjust(8) for value in lists[across]))
    for row in lists[down]:
        cells: list[str] = []
        for column in lists[across]:
            here = [
                gains[point.key]
                for point in points({**lists, down: [row], across: [column]})
                if point.key in gains
            ]
            cells.append(_cell(max(here)) if here else "-")
        lines.append(str(row).rjust(10) + "".join(cell.rjust(8) for cell in cells))
    return lines


def _cell(gain: float) -> str:
    mark = "@" if gain >= 3.6 else "#" if gain >= 2.6 else "+" if gain >= 1.6 else " "
    return f"{gain:.2f}{mark}"
