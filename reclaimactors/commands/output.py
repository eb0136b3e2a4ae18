"""Where a result goes: stdout, and an error of one line where nobody reads it; progress: stderr."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import anyio
import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Generator

__all__ = [
    "StdoutLost",
    "check_writable",
    "progress",
    "show",
    "until_interrupted",
    "width",
    "write",
]

MOST_WIDTH = 100  # characters of a line, where the terminal has as many


class StdoutLost(Exception):  # noqa: N818 - it says what happened
    """Nobody reads the result, or there is no room for it."""


def show(text: str) -> None:
    """Print the result."""
    if sys.stdout is None:  # pyright: ignore[reportUnnecessaryComparison] # it is, started with >&-
        raise StdoutLost("stdout is closed: nobody can read the result")
    try:
        print(text, flush=True)
    except OSError as exc:
        sys.stdout = Path(os.devnull).open("w")  # noqa: SIM115 - for what Python flushes at exit
        msg = f"cannot write the result to stdout: {exc.strerror}"
        raise StdoutLost(msg) from exc


def check_writable(path: Path) -> None:
    """Refuse before long work what could not be written after it."""
    if path.is_dir():
        raise typer.BadParameter(f"cannot write {path}: it is a folder; name a file")
    if not path.parent.is_dir():
        raise typer.BadParameter(f"cannot write {path}: there is no folder {path.parent}")
    if not os.access(path if path.exists() else path.parent, os.W_OK):
        raise typer.BadParameter(f"cannot write {path}: permission denied")


def write(path: Path, data: bytes) -> None:
    """Write a file beside the result."""
    try:
        path.write_bytes(data)
    except OSError as exc:
        msg = f"cannot write {path}: {exc.strerror}"
        raise StdoutLost(msg) from exc


def width() -> int:
    """Return how many characters a line of the result may have."""
    return min(MOST_WIDTH, shutil.get_terminal_size((MOST_WIDTH, 24)).columns)


@contextlib.contextmanager
def progress() -> Generator[Callable[[int, int, str], None]]:
    """Show a bar on stderr where that is a terminal; yield what moves it: (done, total, what)."""
    console = Console(stderr=True)
    bar = Progress(
        TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(),
        console=console, disable=not console.is_terminal, transient=True, refresh_per_second=2,
    )  # fmt: skip
    with bar:
        task = bar.add_task("starting")

        def on_step(done: int, total: int, what: str) -> None:
            bar.update(task, completed=done, total=total, description=what)

        yield on_step


async def until_interrupted(run: Callable[[], Awaitable[None]]) -> None:
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
