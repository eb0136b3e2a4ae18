"""The commands that measure: run one topology, compare several."""

from __future__ import annotations

import sys
from collections import Counter
from typing import TYPE_CHECKING, Annotated, Any

import anyio
import attrs
import typer

from reclaimactors.commands.options import (
    WHICH,
    Budget,
    Inputs,
    Json,
    PerfettoTrace,
    Report,
    Rounds,
    Seconds,
    Seed,
    WorkloadName,
    one_line,
)
from reclaimactors.commands.output import (
    check_writable,
    progress,
    show,
    until_interrupted,
    width,
    write,
)
from reclaimactors.lab import table
from reclaimactors.lab.catalog import WORKLOADS
from reclaimactors.lab.compare import MIN_ROUND_S, Comparison
from reclaimactors.lab.data import load as load_input
from reclaimactors.lab.page import as_page
from reclaimactors.lab.run import Load, RunFailed
from reclaimactors.lab.tracks import as_trace, need_perfetto
from reclaimactors.lab.workload import set_budgets
from reclaimactors.topology import builtin_names, resolve
from reclaimactors.topology.memory_limit import too_large
from reclaimactors.units import format_size

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from reclaimactors.topology import Topology

__all__ = ["add_to", "load_of", "resolve_all"]

DEFAULT_COMPARED = ("kswapd_only", "kcompressd", "padata", "kswapd_only_inline")
RUN_S, COMPARE_S = 10.0, 20.0
MIN_S, MAX_S = 0.1, 86_400.0
IN_RAM_POOL_PERCENT = 80  # where a pool is all that takes cold pages

_ROWS_HELP = """[b]Rows[/b]

[b]ops/s[/b]: puts and gets a second; [b]late[/b]: how long after it was due a request was served,
where requests are due by a schedule.

[b]stall[/b]: how long puts waited for room, one that did not wait counting as 0; [b]loop lag[/b]:
how late the event loop was; [b]fault[/b]: how long a get took that was no pure hit.

[b]PSI some, full[/b]: percent of the time in which somebody waited for memory, and in which the
event loop itself was reclaiming, so that nobody could run.

[b]in time/s[/b], [b]at N/s[/b] (ramp): how much is served in time, and what becomes of each rate:
STABLE (99 of 100 requests are at most 20 ms late), BACKLOGGED (later) or OVERLOADED (fewer are
served than come).

[b]allocstall[/b]: puts that reclaimed for themselves, as the kernel counts them.

[b]refaults/s[/b]: pages that were wanted again after they had left; [b]pgsteal_anon/s[/b]: pages
that reclaim stole, whose bytes left memory, compressed or to a store. Neither is better or worse by
itself: of what is stolen and comes back nothing is gained.

[b]in loop[/b]: how much of kswapd's pages it compressed in the event loop itself.

[b]efficiency[/b]: pgsteal_anon/s over the bare compressor in a loop on the same pages;
[b]ratio[/b]: the input's size over what that compressor makes of it.

[b]Verdict[/b]

The topologies run side by side in each round. A difference counts where, with the names of a pair
dealt anew to its rounds, hardly any deal makes any row differ as much; so that of a hundred whole
comparisons of a topology with itself, at most four claim anything. With too few rounds to tell, it
says that. [b](partial)[/b]: no round of it came to its end."""


def add_to(app: typer.Typer) -> None:
    """Add `run` and `compare`."""
    app.command(epilog=one_line(_ROWS_HELP))(run)
    app.command(epilog=one_line(_ROWS_HELP))(compare)


def run(
    topology: Annotated[str, typer.Argument(help=WHICH)],
    *,
    inputs: Inputs = None,
    workload: WorkloadName = "eater",
    seconds: Seconds = RUN_S,
    budget: Budget = None,
    seed: Seed = 0,
    rounds: Rounds = None,
    report: Report = None,
    trace: PerfettoTrace = None,
    as_json: Json = False,
) -> None:
    """Run one topology, verify every value, and show what it did."""
    load = load_of(inputs, workload, seconds, seed)
    comparison = _comparison([topology], load, budget, seconds, rounds)
    _measure(comparison, as_json=as_json, report=report, trace=trace)


def compare(
    topologies: Annotated[
        list[str] | None,
        typer.Argument(
            help=WHICH + "  \\[default: " + ", ".join(DEFAULT_COMPARED) + "]",
            show_default=False,
        ),
    ] = None,
    *,
    inputs: Inputs = None,
    workload: WorkloadName = "launch",
    seconds: Seconds = COMPARE_S,
    budget: Budget = None,
    seed: Seed = 0,
    rounds: Rounds = None,
    report: Report = None,
    trace: PerfettoTrace = None,
    as_json: Json = False,
) -> None:
    """Run several topologies in interleaved rounds and say what differed.

    Every value is verified byte for byte at the end of each round.
    """
    load = load_of(inputs, workload, seconds, seed)
    comparison = _comparison(topologies or DEFAULT_COMPARED, load, budget, seconds, rounds)
    _measure(comparison, as_json=as_json, report=report, trace=trace)


def load_of(inputs: Sequence[Path] | None, workload: str, seconds: float, seed: int) -> Load:
    """Return what is done to each topology, from options that are checked here."""
    if workload not in WORKLOADS:
        msg = f"no workload {workload!r}; known: {', '.join(WORKLOADS)}"
        raise typer.BadParameter(msg)
    if not MIN_S <= seconds <= MAX_S:
        msg = f"--seconds {seconds:g} is not from {MIN_S:g} to {MAX_S:g}"
        raise typer.BadParameter(msg)
    return Load(load_input(inputs or (), seed=seed), workload, seed)


def _comparison(
    names: Sequence[str], load: Load, budget: str | None, seconds: float, rounds: int | None
) -> Comparison:
    """Return what is to be run, refused where it could not be told apart."""
    in_ram = WORKLOADS[load.workload].scheduled and not set(names) - set(builtin_names())
    named = resolve_all(names, budget, in_ram=in_ram)
    if len({topology.budget for topology in named.values()}) > 1:
        each = ", ".join(f"{name} {format_size(one.budget)}" for name, one in named.items())
        msg = f"budgets differ, so the topologies are not comparable: {each}; give all --budget"
        raise typer.BadParameter(msg)
    round_s = seconds / (rounds or 1) / len(named)
    if rounds and round_s < MIN_ROUND_S:
        msg = (
            f"--rounds {rounds} in --seconds {seconds:g}: a round of each of {len(named)} would be"
        )
        msg += f" {round_s:.3f} s long, and it takes {MIN_ROUND_S:g} at least"
        raise typer.BadParameter(msg)
    load = attrs.evolve(load, budgets=set_budgets(named.values()))
    return Comparison(named, load, seconds, rounds)


def resolve_all(names: Sequence[str], budget: str | None, *, in_ram: bool) -> dict[str, Topology]:
    """Return topologies by the names that results give them; one may be compared with itself."""
    overrides: dict[str, Any] = {} if budget is None else {"budget": budget}
    if in_ram:
        overrides |= {"swap": [], "zswap": {"max_pool_percent": IN_RAM_POOL_PERCENT}}
    named: dict[str, Topology] = {}
    met: Counter[str] = Counter()
    for asked in names:
        topology = resolve(asked, **overrides)
        _fits(topology)
        name = topology.name
        met[name] += 1
        named[f"{name} #{met[name]}" if met[name] > 1 else name] = topology
    return named


def _fits(topology: Topology) -> None:
    """Refuse at once what could only end in swapping this machine to death."""
    why = too_large(topology.budget)
    if why:
        raise typer.BadParameter(f"budget is {format_size(topology.budget)}; {why}")


def _measure(
    comparison: Comparison, *, as_json: bool, report: Path | None, trace: Path | None
) -> None:
    """Run topologies and print what was measured, also if one fails or Ctrl-C comes."""
    for path in filter(None, (report, trace)):
        check_writable(path)
        comparison.timelines = True
    if trace is not None:
        need_perfetto()
    ended: KeyboardInterrupt | RunFailed | None = None
    try:
        with progress() as on_step:
            comparison.on_round = lambda done, total, name: on_step(
                done, total, f"{name}, round {done + 1} of {total}"
            )
            anyio.run(until_interrupted, comparison.run)
    except (KeyboardInterrupt, RunFailed) as exc:
        ended = exc
    interrupted = isinstance(ended, KeyboardInterrupt)
    if as_json:
        show(table.as_json(comparison, interrupted=interrupted))
    else:
        encoding = getattr(sys.stdout, "encoding", None) or "ascii"
        show(table.as_text(comparison, width=width(), encoding=encoding))
    if report is not None:
        write(report, as_page(comparison, interrupted=interrupted).encode())
    if trace is not None:
        write(trace, as_trace(comparison))
    if ended:
        raise ended
