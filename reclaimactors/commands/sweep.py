"""`sweep`: simulations over several parameters, on all CPUs, with a table and a heat map."""

from __future__ import annotations

import json
import os
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import attrs
import typer

from reclaimactors.commands.options import Json  # noqa: TC001 - typer reads the types
from reclaimactors.commands.output import show
from reclaimactors.cpu import clock
from reclaimactors.simulation.sweep import Point, as_text, gain_of, points, read_done
from reclaimactors.topology.cpus import usable_cpus

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

__all__ = ["add_to"]

MOST_POINTS = 10_000

Resume = Annotated[
    Path | None,
    typer.Option("--resume", metavar="FILE", help="Where each point is kept as it is done."),
]


def add_to(app: typer.Typer) -> None:
    """Add `sweep`."""
    app.command()(sweep)


def _option(name: str, what: str) -> Any:
    return typer.Option(f"--{name}", metavar="A,B,...", help=what)


def sweep(
    *,
    share: Annotated[str, _option("share", "Of a page's work that is compressing.")] = "0.7",
    workers: Annotated[str, _option("workers", "Beside kswapd; 0: it compresses.")] = "0,1,2,3",
    on_full: Annotated[str, _option("on-full", "inline, wait, steal_oldest.")] = "wait,inline",
    capacity: Annotated[str, _option("capacity", "Of a worker's CPU, over kswapd's.")] = "1",
    fifo: Annotated[str, _option("fifo", "Pages that may wait.")] = "64",
    batch: Annotated[str, _option("batch", "Pages that a worker takes at a time.")] = "32",
    resume: Resume = None,
    as_json: Json = False,
) -> None:
    """Say where workers help, by simulations on a bare machine: one for each combination."""
    lists: dict[str, Sequence[Any]] = {
        "share": _values("share", share, float, lambda value: 0 < value < 1, "between 0 and 1"),
        "workers": _values("workers", workers, int, lambda value: 0 <= value <= 64, "0 to 64"),
        "on_full": _values(
            "on-full", on_full, str, lambda value: value in ("inline", "wait", "steal_oldest"),
            "inline, wait, steal_oldest",
        ),
        "capacity": _values(
            "capacity", capacity, float, lambda value: 0.1 <= value <= 100, "0.1 to 100"
        ),
        "fifo": _values("fifo", fifo, int, lambda value: 1 <= value <= 4096, "1 to 4096"),
        "batch": _values("batch", batch, int, lambda value: 1 <= value <= 4096, "1 to 4096"),
    }  # fmt: skip
    todo = points(lists)
    if len(todo) > MOST_POINTS:
        msg = f"that is {len(todo):,} points, and a sweep has {MOST_POINTS:,} at most"
        raise typer.BadParameter(msg)
    gains = _run(todo, read_done(resume), resume)
    if as_json:
        rows = [{"point": attrs.asdict(point), "gain": gains[point.key]} for point in todo]
        show(json.dumps({"simulated": True, "machine": "bare: all costs assumed", "rows": rows}))
    else:
        show(as_text(lists, gains))


def _values(
    name: str, text: str, kind: Callable[[str], Any], fits: Callable[[Any], bool], allowed: str
) -> list[Any]:
    values: list[Any] = []
    for word in text.split(","):
        try:
            value = kind(word.strip())
        except ValueError:
            value = None
        if value is None or not fits(value):
            raise typer.BadParameter(f"--{name} has {word!r}; allowed: {allowed}, by commas")
        values.append(value)
    return list(dict.fromkeys(values))


def _run(todo: Sequence[Point], done: dict[str, float], resume: Path | None) -> dict[str, float]:
    """Simulate what is not done yet, in a process for each CPU; each point is kept at once."""
    left = [point for point in todo if point.key not in done]
    if not left:
        return done
    began = clock.perf_counter()
    context = get_context("spawn")
    with (
        open(resume or os.devnull, "a", encoding="utf-8") as kept,  # noqa: PTH123 - or no file
        ProcessPoolExecutor(min(len(left), usable_cpus()), mp_context=context) as pool,
    ):
        if kept.tell():
            kept.write("\n")  # the last line may have been cut
        asked = {pool.submit(gain_of, point): point for point in left}
        try:
            for nr, future in enumerate(as_completed(asked), 1):
                point, gain = asked[future], round(future.result(), 4)
                done[point.key] = gain
                kept.write(json.dumps({"point": attrs.asdict(point), "gain": gain}) + "\n")
                kept.flush()
                took = clock.perf_counter() - began
                eta = took / nr * (len(left) - nr)
                typer.echo(f"\r{nr} of {len(left)} points, {eta:.0f} s left ", nl=False, err=True)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
        finally:
            typer.echo("", err=True)
    return done
