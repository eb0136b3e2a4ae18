"""The command that replays a trace, and says which budget is the right size for it."""

from __future__ import annotations

import json
import textwrap
from pathlib import Path  # noqa: TC003 - typer reads the types
from typing import TYPE_CHECKING, Annotated, Any

import anyio
import attrs
import typer

from reclaimactors.commands.options import WHICH, Inputs, Json, one_line
from reclaimactors.commands.output import progress, show, until_interrupted, width
from reclaimactors.lab.data import load as load_input
from reclaimactors.lab.replay import (
    STALL_SHARE,
    STORE_SHARE,
    budgets_for,
    need_of,
    replay,
    right_size,
)
from reclaimactors.lab.traces import MOST_REQUESTS, load
from reclaimactors.topology import resolve
from reclaimactors.topology.memory_limit import too_large
from reclaimactors.units import format_size

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from reclaimactors.lab.data import Input
    from reclaimactors.lab.replay import Replayed
    from reclaimactors.lab.traces import Trace
    from reclaimactors.topology import Topology

__all__ = ["add_to"]

_EXAMPLES = """[b]Examples[/b]

reclaimactors replay requests.csv  [dim]# as open_memory(record="requests.csv") writes it[/dim]

reclaimactors replay w92.oracleGeneral.bin.zst --requests 500000 --budgets 64MiB,128MiB

reclaimactors replay trace.csv --columns "time-col=1, obj-id-col=5, obj-size-col=4"

Values are cut from --input: what compresses as yours do makes the answer yours."""


def add_to(app: typer.Typer) -> None:
    """Add `replay`."""
    app.command("replay", epilog=one_line(_EXAMPLES))(replay_command)


def replay_command(
    trace: Annotated[Path, typer.Argument(help="A recording, or CacheBench's or libCacheSim's.")],
    *,
    topology: Annotated[
        str, typer.Option("--topology", metavar="NAME", help="What replays it. " + WHICH)
    ] = "kcompressd",
    budgets: Annotated[
        str | None,
        typer.Option(
            "--budgets",
            metavar="SIZES",
            help="Memory budgets to try, as 8MiB,16MiB.  \\[default: shares of what all values"
            " need]",
            show_default=False,
        ),
    ] = None,
    requests: Annotated[
        int, typer.Option("--requests", metavar="N", min=1, help="How many are replayed at most.")
    ] = MOST_REQUESTS,
    columns: Annotated[
        str,
        typer.Option(
            "--columns",
            metavar="WORDS",
            help="Where a CSV of libCacheSim has what, in its own words.",
            show_default=False,
        ),
    ] = "",
    inputs: Inputs = None,
    as_json: Json = False,
) -> None:
    """Replay a trace at several budgets, and say which is the right size."""
    held_by = resolve(topology)
    asked = load(trace, most=requests, columns=columns)
    sizes = budgets.split(",") if budgets else budgets_for(asked, held_by)
    each = [resolve(topology, budget=size.strip() if isinstance(size, str) else size)
            for size in sizes]  # fmt: skip
    for one in each:
        if why := too_large(one.budget):
            raise typer.BadParameter(f"budget is {format_size(one.budget)}; {why}")
    tried: list[Replayed] = []
    ended: KeyboardInterrupt | None = None
    source = load_input(inputs or ())
    try:
        with progress() as on_step:
            anyio.run(until_interrupted, lambda: _all(asked, each, source, tried, on_step))
    except KeyboardInterrupt as exc:
        ended = exc
    need = need_of(asked, held_by.max_folio)
    if as_json:
        show(_as_json(trace, asked, need, held_by, tried))
    else:
        show("\n".join(_lines(trace, asked, need, held_by, tried)))
    if ended:
        raise ended


async def _all(
    trace: Trace,
    topologies: Sequence[Topology],
    source: Input,
    tried: list[Replayed],
    on_step: Callable[[int, int, str], None],
) -> None:
    nr = len(topologies)
    for number, topology in enumerate(topologies):
        what = f"budget {format_size(topology.budget)}, {number + 1} of {nr}"

        def on_request(done: int, total: int, before: int = number, what: str = what) -> None:
            on_step(before * total + done, nr * total, what)

        tried.append(await replay(trace, topology, source, on_request))


def _as_json(
    path: Path, trace: Trace, need: int, topology: Topology, tried: Sequence[Replayed]
) -> str:
    right = right_size(tried)
    facts: dict[str, Any] = {
        "trace": str(path),
        "requests": len(trace),
        "keys": trace.nr_keys,
        "seconds": trace.seconds,
        "whole": trace.whole,
        "need_bytes": need,
        "topology": topology.name,
        "right_size_bytes": right and right.budget,
        "tried": [attrs.asdict(each) for each in tried],
    }
    return json.dumps(facts, indent=2)


def _lines(
    path: Path, trace: Trace, need: int, topology: Topology, tried: Sequence[Replayed]
) -> Iterator[str]:
    part = "" if trace.whole else "the first "
    yield from textwrap.wrap(_verdict(tried), width())
    yield ""
    yield from textwrap.wrap(
        f"{part}{len(trace):,} requests of {path}, for {trace.nr_keys:,} keys, whose values need"
        f" {format_size(need)} at once, on {topology.name}, one after the other",
        width(),
    )
    yield ""
    yield "   budget of need   hits  pool store  fault p50, p99 us  waited stalled refused"
    for each in tried:
        yield (
            f"{format_size(each.budget):>9} {each.budget / max(1, need):>7.0%} {each.hits:>6.1%}"
            f" {each.from_pool:>5.0%} {each.from_store:>5.0%}"
            f" {each.fault_p50_us:>10,.0f} {each.fault_p99_us:>7,.0f}"
            f" {each.waited:>7,} {each.stalled:>7.1%} {each.refused:>7,}"
        )


def _verdict(tried: Sequence[Replayed]) -> str:
    rule = (
        f"at most {STORE_SHARE:.0%} of the reads from a store, {STALL_SHARE:.0%} of the time"
        " stalled and no put refused"
    )
    right = right_size(tried)
    if right is None:
        return f"None of these budgets is enough: {rule}. Try larger --budgets."
    return f"The right size is {format_size(right.budget)}: the smallest tried with {rule}."
