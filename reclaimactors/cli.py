"""The command line: run and compare topologies on real data, check one, list plugins.

The one module that imports typer and rich, and the one that prints. Anything that a user can cause
ends in one line on stderr and an exit status: 0 done, 1 the run failed, 2 usage or configuration,
130 Ctrl-C.
"""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import signal
import sys
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import anyio
import attrs
import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from reclaimactors import __version__
from reclaimactors.errors import ReclaimError
from reclaimactors.lab import table
from reclaimactors.lab.catalog import WORKLOADS
from reclaimactors.lab.compare import MIN_ROUND_S, Comparison
from reclaimactors.lab.data import load as load_input
from reclaimactors.lab.run import Load, RunFailed
from reclaimactors.lab.workload import set_budgets
from reclaimactors.opening import open_memory
from reclaimactors.registry import known
from reclaimactors.topology import builtin_names, explain, resolve
from reclaimactors.topology.build import try_plugins
from reclaimactors.topology.memory_limit import too_large
from reclaimactors.units import format_size

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Generator, Sequence

    from reclaimactors.topology import Topology

__all__ = ["main"]

DEFAULT_COMPARED = ("kswapd_only", "kcompressd", "padata", "kswapd_only_inline")
RUN_S, COMPARE_S = 10.0, 20.0
MIN_S, MAX_S = 0.1, 86_400.0
MOST_WIDTH = 100  # characters of a line, where the terminal has as many
IN_RAM_POOL_PERCENT = 80  # where a pool is all that takes cold pages
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
Rounds = Annotated[
    int | None,
    typer.Option(
        "--rounds",
        metavar="N",
        min=1,
        max=1000,
        help="In how many rounds; more of them tell smaller differences.  \\[default: as many"
        " good ones as there is time for, at most 12]",
        show_default=False,
    ),
]
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
a [b]topology[/b], lets clients put more data than the memory budget allows, and shows in the
kernel's own words how each one fared. It needs no root, and changes nothing outside."""

_EXAMPLES = """[b]Examples[/b]

reclaimactors compare  [dim]# four designs, within a minute[/dim]

reclaimactors compare kcompressd padata --input ~/Pictures

reclaimactors run kcompressd --workload phases --budget 32MiB

reclaimactors check my-topology.toml  [dim]# what would it build?[/dim]

[b]Exit status[/b]: 0 done, 1 the run failed, 2 usage or configuration, 130 Ctrl-C."""


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


@app.callback(help=_one_line(_STORY), epilog=_EXAMPLES)
def story(
    _version: Annotated[
        bool,
        typer.Option("--version", callback=_print_version, is_eager=True, help="Print it and end."),
    ] = False,
) -> None:
    """Tell the story; the rest is in the commands."""


@app.command(epilog=_ROWS_HELP)
def run(
    topology: Annotated[str, typer.Argument(help=_WHICH)],
    *,
    inputs: Inputs = None,
    workload: WorkloadName = "eater",
    seconds: Seconds = RUN_S,
    budget: Budget = None,
    seed: Seed = 0,
    rounds: Rounds = None,
    as_json: Json = False,
) -> None:
    """Run one topology, verify every value, and show what it did."""
    load = _load(inputs, workload, seconds, seed)
    _measure(_comparison([topology], load, budget, seconds, rounds), as_json=as_json)


@app.command(epilog=_ROWS_HELP)
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
    workload: WorkloadName = "launch",
    seconds: Seconds = COMPARE_S,
    budget: Budget = None,
    seed: Seed = 0,
    rounds: Rounds = None,
    as_json: Json = False,
) -> None:
    """Run several topologies in interleaved rounds and say what differed.

    Every value is verified byte for byte at the end of each round.
    """
    load = _load(inputs, workload, seconds, seed)
    names = topologies or DEFAULT_COMPARED
    _measure(_comparison(names, load, budget, seconds, rounds), as_json=as_json)


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
    """List the compressors, backends, policies and offloads that a topology can name here."""
    lines = [
        f"{kind.ljust(12)} {name.ljust(16)} {origin}"
        for kind in ("compressors", "backends", "policies", "offloads")
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


def _comparison(
    names: Sequence[str], load: Load, budget: str | None, seconds: float, rounds: int | None
) -> Comparison:
    """Return what is to be run, refused where it could not be told apart."""
    in_ram = WORKLOADS[load.workload].scheduled and not set(names) - set(builtin_names())
    named = _resolve(names, budget, in_ram=in_ram)
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


def _resolve(names: Sequence[str], budget: str | None, *, in_ram: bool) -> dict[str, Topology]:
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


def _measure(comparison: Comparison, *, as_json: bool) -> None:
    """Run topologies and print what was measured, also if one fails or Ctrl-C comes."""
    ended: KeyboardInterrupt | RunFailed | None = None
    try:
        with _progress() as comparison.on_round:
            anyio.run(_until_interrupted, comparison.run)
    except (KeyboardInterrupt, RunFailed) as exc:
        ended = exc
    if as_json:
        _print(table.as_json(comparison, interrupted=isinstance(ended, KeyboardInterrupt)))
    else:
        width = min(MOST_WIDTH, shutil.get_terminal_size((MOST_WIDTH, 24)).columns)
        encoding = getattr(sys.stdout, "encoding", None) or "ascii"
        _print(table.as_text(comparison, width=width, encoding=encoding))
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
