"""The command line: run and compare topologies on real data, check one, list plugins.

The one module that imports typer and rich, and the one that prints. Anything that a user can cause
ends in one line on stderr and an exit status: 0 done, 1 the run failed, 2 usage or configuration,
130 Ctrl-C.
"""

from __future__ import annotations

import contextlib
import io
import json
import logging
import os
import signal
import sys
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import anyio
import attrs
import typer
from rich import box
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from reclaimactors import __version__
from reclaimactors.errors import ReclaimError
from reclaimactors.lab.compare import Comparison
from reclaimactors.lab.data import load as load_input
from reclaimactors.lab.run import Load, RunFailed, machine
from reclaimactors.lab.workload import WORKLOADS, set_budgets
from reclaimactors.opening import open_memory
from reclaimactors.registry import known
from reclaimactors.topology import builtin_names, explain, resolve
from reclaimactors.topology.build import try_plugins
from reclaimactors.topology.cpus import usable_cpus
from reclaimactors.topology.memory_limit import too_large
from reclaimactors.units import format_size

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Generator, Sequence

    from reclaimactors.lab.run import Result
    from reclaimactors.topology import Topology

__all__ = ["main"]

DEFAULT_COMPARED = ("kswapd_only", "kcompressd", "padata", "kswapd_only_inline")
RUN_S, COMPARE_S = 10.0, 20.0
MIN_S, MAX_S = 0.1, 86_400.0
INTERRUPTED = 130
# typer names no class for wrong usage, and may or may not bring a click of its own.
_UsageError = cast("type[typer.BadParameter]", typer.BadParameter.__mro__[1])

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)

_WHICH = f"Built in: {', '.join(builtin_names())}. Or the path of a TOML file."

Inputs = Annotated[
    list[Path] | None,
    typer.Option(
        "--input",
        metavar="PATH",
        help="File or folder whose bytes become the values; may be given several times."
        "  \\[default: the running Python's own library]",
        show_default=False,
    ),
]
WorkloadName = Annotated[
    str, typer.Option("--workload", metavar="NAME", help=f"One of {', '.join(WORKLOADS)}.")
]
Seconds = Annotated[
    float,
    typer.Option(
        "--seconds",
        metavar="N",
        help="How long clients work, all topologies together; verifying comes on top.",
    ),
]
Budget = Annotated[
    str | None,
    typer.Option(
        "--budget",
        metavar="SIZE",
        help="Memory budget, as 32MiB; clients use 4 x as much, or 1.25 x where all is in RAM.  "
        "\\[default: the topology's]",
        show_default=False,
    ),
]
Seed = Annotated[int, typer.Option("--seed", metavar="N", help="Decides what clients do.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of a table.")]


def _one_line(text: str) -> str:
    """Return text with each paragraph on one line, so that it is wrapped to the terminal."""
    return "\n\n".join(" ".join(part.split()) for part in text.split("\n\n"))


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"reclaimactors {__version__}")
        raise typer.Exit


_STORY = """Try Linux's memory reclaim as actors, on your own data.

When memory runs low, Linux compresses what is cold. The thread that looks for cold pages (kswapd)
did the compressing too, and phones stalled; so that work moved to a second thread (kcompressd), and
one may ask whether a pool of them (padata) does better. This program builds each of these designs,
a [b]topology[/b], in its own process, lets clients put four times more data than the memory budget
allows, and shows in the kernel's own words how each one fared. It needs no root, and changes
nothing outside."""

_EXAMPLES = """[b]Examples[/b]

reclaimactors compare  [dim]# four designs, within a minute[/dim]

reclaimactors compare kcompressd padata --input ~/Pictures

reclaimactors run kcompressd --workload phases --budget 32MiB

reclaimactors check my-topology.toml  [dim]# what would it build?[/dim]

[b]Exit status[/b]: 0 done, 1 the run failed, 2 usage or configuration, 130 Ctrl-C."""


_COLUMNS_HELP = """[b]Columns[/b]

[b]pgsteal_anon/s[/b]: pages that reclaim stole, a second: their bytes left memory, compressed or to
a store.

[b]allocstall[/b]: puts that reclaimed for themselves, as the kernel counts them; those that only
waited for what others reclaim are in the stall.

[b]refaults[/b]: pages that were wanted again after they had left.

[b]stall[/b]: how long puts waited for room; [b]loop lag[/b]: how late the event loop was.

[b]fault us[/b]: how long a get took that was no pure hit.

[b]efficiency[/b]: pgsteal_anon/s over the bare compressor in a loop on the same pages.

[b]ratio[/b]: the input's size over what that compressor makes of it.

The sentences below the table hold topologies against each other, first how many pages they stole; a
difference counts where each round of one beats the same round of the other. [b](unfinished)[/b]:
no round of it came to its end."""


@app.callback(help=_one_line(_STORY), epilog=_EXAMPLES)
def story(
    _version: Annotated[
        bool,
        typer.Option("--version", callback=_print_version, is_eager=True, help="Print it and end."),
    ] = False,
) -> None:
    """Tell the story; the rest is in the commands."""


@app.command(epilog=_COLUMNS_HELP)
def run(
    topology: Annotated[str, typer.Argument(help=_WHICH)],
    *,
    inputs: Inputs = None,
    workload: WorkloadName = "eater",
    seconds: Seconds = RUN_S,
    budget: Budget = None,
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Run one topology, verify every value, and show what it did."""
    load = _load(inputs, workload, seconds, seed)
    named = _resolve([topology], budget)
    load = attrs.evolve(load, budgets=set_budgets(named.values()))
    _measure(Comparison(named, load, seconds), as_json=as_json)


@app.command(epilog=_COLUMNS_HELP)
def compare(
    topologies: Annotated[
        list[str] | None,
        typer.Argument(
            help=_WHICH + "  \\[default: " + ", ".join(DEFAULT_COMPARED) + "]",
            show_default=False,
        ),
    ] = None,
    *,
    inputs: Inputs = None,
    workload: WorkloadName = "eater",
    seconds: Seconds = COMPARE_S,
    budget: Budget = None,
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Run several topologies in interleaved rounds and say what differed.

    Every value is verified byte for byte at the end of each round.
    """
    load = _load(inputs, workload, seconds, seed)
    named = _resolve(topologies or DEFAULT_COMPARED, budget)
    load = attrs.evolve(load, budgets=set_budgets(named.values()))
    _measure(Comparison(named, load, seconds), as_json=as_json)


@app.command()
def check(
    topology: Annotated[str, typer.Argument(help=_WHICH)],
) -> None:
    """Validate a topology, explain it, and open and close its stores once.

    It says who compresses where, what happens when a queue is full, and what fits.
    """
    resolved = resolve(topology)
    try_plugins(resolved)
    _print("\n".join(explain(resolved)))
    anyio.run(_open_once, resolved)
    _print("it opens here")


async def _open_once(topology: Topology) -> None:
    async with open_memory(topology):
        pass


@app.command()
def plugins() -> None:
    """List the compressors, backends and policies that a topology can name here."""
    lines = [
        f"{kind.ljust(12)} {name.ljust(16)} {origin}"
        for kind in ("compressors", "backends", "policies")
        for name, origin in known(kind)
    ]
    _print("\n".join(lines))


def main() -> None:
    """Run the command line and exit."""
    reconfigure = getattr(sys.stdout, "reconfigure", None)
    if reconfigure is not None:  # a result is not lost to a narrow encoding
        reconfigure(errors="replace")
    # What failed is said in one line at the end: log lines would come in between.
    logging.getLogger("reclaimactors").addHandler(logging.NullHandler())
    sys.exit(_status(sys.argv[1:] or ["--help"]))


def _status(argv: Sequence[str]) -> int:
    """Return the exit status of a command line; what is wrong is one line on stderr."""
    try:
        status = app(argv, prog_name="reclaimactors", standalone_mode=False) or 0
        return _interrupted() if status == INTERRUPTED else status
    except _UsageError as exc:
        return _complain(f"{exc.format_message()} (try --help)", 2)
    except RunFailed as exc:
        return _complain(str(exc), 1)
    except _StdoutLost as exc:
        return _complain(str(exc), 1)
    except ReclaimError as exc:
        return _complain(_words(exc), 2)
    except MemoryError:
        return _complain("this machine has not enough memory for that: try a smaller --budget", 2)
    except OSError as exc:  # above all the help of typer, to a stdout that takes nothing
        return _complain(f"the system refused: {exc}", 1)
    except (KeyboardInterrupt, typer.Abort):
        return _interrupted()


def _words(exc: ReclaimError) -> str:
    """Return what an error says, without the number in front that an OSError has."""
    return exc.strerror if isinstance(exc, OSError) and exc.strerror else str(exc)


def _interrupted() -> int:
    return _complain("interrupted: figures, if any, are of what was measured so far", INTERRUPTED)


def _complain(message: str, status: int) -> int:
    """Print one line on stderr and return the exit status."""
    with contextlib.suppress(OSError):
        print("reclaimactors:", " ".join(message.split()), file=sys.stderr, flush=True)
    return status


class _StdoutLost(Exception):  # noqa: N818 - it says what happened
    """Nobody reads the result, or there is no room for it."""


def _print(text: str) -> None:
    """Print the result."""
    if sys.stdout is None:  # pyright: ignore[reportUnnecessaryComparison] # it is, started with >&-
        raise _StdoutLost("stdout is closed: nobody can read the result")
    try:
        print(text, flush=True)
    except OSError as exc:
        sys.stdout = Path(os.devnull).open("w")  # noqa: SIM115 - for what Python flushes at exit
        msg = f"cannot write the result to stdout: {exc.strerror}"
        raise _StdoutLost(msg) from exc


def _load(inputs: Sequence[Path] | None, workload: str, seconds: float, seed: int) -> Load:
    """Return what is done to each topology, from options that are checked here."""
    if workload not in WORKLOADS:
        msg = f"no workload {workload!r}; known: {', '.join(WORKLOADS)}"
        raise typer.BadParameter(msg)
    if not MIN_S <= seconds <= MAX_S:
        msg = f"--seconds {seconds:g} is not from {MIN_S:g} to {MAX_S:g}"
        raise typer.BadParameter(msg)
    return Load(load_input(inputs or (), seed=seed), workload, seed)


def _resolve(names: Sequence[str], budget: str | None) -> dict[str, Topology]:
    """Return topologies by the names that results give them; one may be compared with itself."""
    overrides = {} if budget is None else {"budget": budget}
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


def _measure(comparison: Comparison, *, as_json: bool) -> None:
    """Run topologies and print what was measured, also if one fails or Ctrl-C comes."""
    ended: KeyboardInterrupt | RunFailed | None = None
    try:
        with _progress() as comparison.on_round:
            anyio.run(_until_interrupted, comparison.run)
    except (KeyboardInterrupt, RunFailed) as exc:
        ended = exc
    if as_json:
        _print(_as_json(comparison, interrupted=isinstance(ended, KeyboardInterrupt)))
    else:
        _print(_as_table(comparison))
    if ended:
        raise ended


async def _until_interrupted(run: Callable[[], Awaitable[None]]) -> None:
    """Run until the first Ctrl-C; more of them do not disturb the end and the printing of it."""
    interrupted = False

    async def watch() -> None:
        nonlocal interrupted
        with anyio.open_signal_receiver(signal.SIGINT) as signals:
            async for _ in signals:
                interrupted = True
                tasks.cancel_scope.cancel()
                break
        signal.signal(signal.SIGINT, signal.SIG_IGN)

    try:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(watch)
            await run()
            tasks.cancel_scope.cancel()
    except ExceptionGroup as group:
        raise group.exceptions[0] from group
    if interrupted:
        raise KeyboardInterrupt


@contextlib.contextmanager
def _progress() -> Generator[Callable[[int, int, str], None]]:
    """Show a bar on stderr where that is a terminal."""
    console = Console(stderr=True)
    bar = Progress(
        TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(),
        console=console, disable=not console.is_terminal, transient=True, refresh_per_second=2,
    )  # fmt: skip
    with bar:
        task = bar.add_task("starting")

        def on_round(done: int, total: int, name: str) -> None:
            description = f"{name}, round {done + 1} of {total}"
            bar.update(task, completed=done, total=total, description=description)

        yield on_round


def _as_json(comparison: Comparison, *, interrupted: bool) -> str:
    results = [attrs.asdict(result) for result in comparison.results()]
    printed: dict[str, object] = {"machine": machine(), "results": results}
    if interrupted:
        printed |= {"interrupted": True, "unfinished": comparison.unfinished()}
    return json.dumps(printed, indent=2)


def _or_dash(value: float) -> str:
    """Return a figure that a round measures last, or a dash where none came so far."""
    return f"{value:.2f}" if value else "-"


def _us(value: float) -> str:
    return f"{value:.0f}" if value < 10_000 else f"{value / 1000:.0f}k"


_COLUMNS: Sequence[tuple[str, Callable[[Result], str]]] = (
    ("pgsteal_anon\n/s", lambda result: f"{result.pgsteal_anon_per_s:,.0f}"),
    ("allocstall", lambda result: f"{result.allocstall:,}"),
    ("refaults", lambda result: f"{result.vmstat['workingset_refault_anon']:,}"),
    ("stall\np99 ms", lambda result: f"{result.stall_ms.p99:.2f}"),
    ("loop lag\np99 ms", lambda result: f"{result.loop_lag_ms.p99:.2f}"),
    ("fault us\np50/p99", lambda result: f"{_us(result.fault_us.p50)}/{_us(result.fault_us.p99)}"),
    ("effi-\nciency", lambda result: _or_dash(result.efficiency)),
    ("ratio", lambda result: _or_dash(result.compression_ratio)),
)


def _heading(comparison: Comparison) -> str:
    """Return in one line what was run on what."""
    load, nr = comparison.load, max(map(len, comparison.rounds.values()), default=0)
    budgets = {format_size(topology.budget) for topology in comparison.topologies.values()}
    verified = f"{comparison.verified:,} values verified"
    if not comparison.verified:
        verified = "it ended before the values were verified"
    return (
        f"{load.workload} on {len(load.input):,} pages of input"
        f" ({load.input.same_filled_share():.1%} same-filled),"
        f" {load.budgets:g} x the budget of {' or '.join(sorted(budgets))},"
        f" {nr} round{'s' * (nr > 1)},"
        f" {usable_cpus()} CPUs; {verified}"
    )


_FOOTER = "What the columns and words mean: reclaimactors compare --help"


def _as_table(comparison: Comparison) -> str:
    """Return the results as a table and the closing sentences."""
    unfinished = comparison.unfinished()
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("topology", overflow="fold", min_width=18)
    for heading, _ in _COLUMNS:
        table.add_column(heading, justify="right", no_wrap=True)
    for result in comparison.results():
        name = result.topology
        marked = f"{name}\n(unfinished)" if name in unfinished else name
        table.add_row(marked, *(cell(result) for _, cell in _COLUMNS))
    console = Console(file=io.StringIO(), width=max(100, Console().width), highlight=False)
    with console.capture() as captured:
        console.print(
            _heading(comparison), table, comparison.sentence(), _FOOTER, sep="\n", markup=False
        )
    return "\n".join(line.rstrip() for line in captured.get().rstrip().splitlines())
