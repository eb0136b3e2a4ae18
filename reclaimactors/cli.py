"""The command line: its story, its small commands, and how it ends; the others are in `commands`.

Only here and there are typer and rich imported. Anything that a user can cause ends in one line on
stderr and an exit status: 0 done, 1 the run failed, 2 usage or configuration, 130 Ctrl-C.
"""

from __future__ import annotations

import contextlib
import logging
import sys
from typing import TYPE_CHECKING, Annotated, cast

import anyio
import typer

from reclaimactors import __version__
from reclaimactors.commands import measure, plugins, probe, replay, simulate, sweep
from reclaimactors.commands.options import WHICH, one_line
from reclaimactors.commands.output import StdoutLost, show
from reclaimactors.errors import ReclaimError
from reclaimactors.lab.run import RunFailed
from reclaimactors.opening import open_memory
from reclaimactors.topology import explain, resolve
from reclaimactors.topology.build import try_plugins

if TYPE_CHECKING:
    from collections.abc import Sequence

    from reclaimactors.topology import Topology

__all__ = ["main"]

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


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"reclaimactors {__version__}")
        raise typer.Exit


_STORY = """Try Linux's memory reclaim as actors, on your own data.

When memory runs low, Linux compresses what is cold. The thread that looks for cold pages (kswapd)
did the compressing too, and phones stalled; so that work moved to a second thread (kcompressd), and
one may ask whether a pool of them (padata) does better. This program builds each of these designs,
a [b]topology[/b], lets clients put more data than the memory budget allows, and shows in the
kernel's own words how each one fared. It needs no root, and leaves no file
but those that you ask for."""

_EXAMPLES = """[b]Examples[/b]

reclaimactors compare  [dim]# four designs, within a minute[/dim]

reclaimactors compare kcompressd padata --input ~/Pictures

reclaimactors run kcompressd --workload phases --budget 32MiB

reclaimactors check my-topology.toml  [dim]# what would it build?[/dim]

reclaimactors probe --pid 4711  [dim]# what would its memory give?[/dim]

reclaimactors replay requests.csv  [dim]# which budget is the right size?[/dim]

[b]Exit status[/b]: 0 done, 1 the run failed, 2 usage or configuration, 130 Ctrl-C."""


@app.callback(help=one_line(_STORY), epilog=_EXAMPLES)
def story(
    _version: Annotated[
        bool,
        typer.Option("--version", callback=_print_version, is_eager=True, help="Print it and end."),
    ] = False,
) -> None:
    """Tell the story; the rest is in the commands."""


measure.add_to(app)
probe.add_to(app)
replay.add_to(app)
simulate.add_to(app)
sweep.add_to(app)


@app.command()
def check(
    topology: Annotated[str, typer.Argument(help=WHICH)],
) -> None:
    """Validate a topology, explain it, and open and close its stores once.

    It says who compresses where, what happens when a queue is full, and what fits.
    """
    resolved = resolve(topology)
    try_plugins(resolved)
    show("\n".join(explain(resolved)))
    anyio.run(_open_once, resolved)
    show("it opens here")


async def _open_once(topology: Topology) -> None:
    async with open_memory(topology):
        pass


plugins.add_to(app)


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
    except StdoutLost as exc:
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
