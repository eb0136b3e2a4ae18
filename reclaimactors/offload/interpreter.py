"""Which program a worker process runs, and how it is started: a Python like this one, or none.

A worker gets the flags of this interpreter and its ``sys.path``. Nothing is imported from the
current folder: the interpreter is started with ``-P`` (or ``-I``) and without PYTHONPATH, and the
standard library comes first on the worker's path, so that a ``signal.py`` beside the program, which
this process never imports, is not imported there either.

Where ``sys.executable`` is no Python (a frozen program, uWSGI, an application that embeds Python),
starting it would start the application once more. So only what is named like a Python is started at
all, and it is asked once what it is before the first worker.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import anyio

__all__ = ["command", "environment", "unusable"]

ASK_S = 10.0  #: for an interpreter to say which Python it is; a start takes some 10 ms

_NAME = re.compile(r"(python|pypy)w?[\d.]*([dt]*|-dbg|-intel64)(\.exe)?", re.IGNORECASE)
_QUESTION = "import sys; print('a Python,', sys.implementation.cache_tag)"
_WORKER = (
    "import sys; sys.path[:] = {path}; "
    "from reclaimactors.offload.worker import main; sys.exit(main({arguments}))"
)

_answers: dict[str, str] = {}  # executable -> why it is not usable, "" where it is


async def unusable() -> str:
    """Return why ``sys.executable`` cannot run workers, "" where it can; it is asked only once.

    Raises:
        OSError: if it cannot be started now, or (TimeoutError) does not answer within ASK_S. Later
            it may.
    """
    executable = sys.executable
    why = _by_its_name(executable)
    if why:
        return why
    if executable not in _answers:
        _answers[executable] = await _ask(executable)
    return _answers[executable]


def _by_its_name(executable: str | None) -> str:
    """Return why it is not to be started, not even to ask; "" where it may be."""
    if not executable:
        return "sys.executable does not say which interpreter to start"
    if getattr(sys, "frozen", False) or hasattr(sys.modules.get("__main__"), "__compiled__"):
        return f"{executable} is this program itself, frozen: started again it is no worker"
    if not _NAME.fullmatch(Path(executable).name):
        return f"{executable} is not named like a Python: started again it may be the application"
    return ""


async def _ask(executable: str) -> str:
    """Start it with a question that any Python answers."""
    wanted = f"a Python, {sys.implementation.cache_tag}"
    with anyio.fail_after(ASK_S):
        done = await anyio.run_process(
            [executable, *_flags(), "-S", "-c", _QUESTION],
            stdin=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            check=False,
            env=environment(),
        )
    said = done.stdout.decode(errors="replace").strip()
    if said == wanted:
        return ""
    return f"{executable} was asked what it is, and said {said[:80]!r}, not {wanted!r}"


def command(*arguments: int) -> list[str]:
    """Return the command line of a worker, whose `main` gets these arguments."""
    numbers = ", ".join(map(str, arguments))
    code = _WORKER.format(path=ascii(_import_path()), arguments=numbers)
    return [sys.executable, *_flags(), "-c", code]


def environment() -> dict[str, str]:
    """Return the environment of a worker: this one, without the path that it is given otherwise."""
    return {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}


def _flags() -> list[str]:
    """Return the options that make an interpreter behave as this one does."""
    flags = sys.flags
    options = ["-I"] if flags.isolated else ["-P"]
    given = {
        "-E": flags.ignore_environment,
        "-s": flags.no_user_site,
        "-S": flags.no_site,
        "-B": flags.dont_write_bytecode,
        "-" + "O" * flags.optimize: flags.optimize,
        "-" + "b" * flags.bytes_warning: flags.bytes_warning,
    }
    options += [option for option, is_given in given.items() if is_given]
    options += ["-X", f"utf8={flags.utf8_mode}"]
    if flags.dev_mode:
        options += ["-X", "dev"]
    for warning in sys.warnoptions:
        options += ["-W", warning]
    return options


def _import_path() -> list[str]:
    """Return what a worker imports from: the standard library, then ``sys.path`` as it is now.

    The current folder is left out where it is there by a relative name, such as the "" of
    ``python -c``. What the import system would pass over (programs put Paths there) is, too.
    """
    entries = [e for e in sys.path if isinstance(e, str) and e]  # pyright: ignore[reportUnnecessaryIsInstance] # it is the program's list
    folders = [entry for entry in map(_absolute, entries) if entry]
    library = str(Path(os.__file__).parent)
    return sorted(folders, key=lambda folder: not _in_library(folder, library))


def _absolute(entry: str) -> str:
    """Return the absolute name of an entry of the path, "" for the current folder."""
    if Path(entry).is_absolute():
        return entry
    try:
        here = Path.cwd()
    except OSError:  # it was deleted
        return ""
    folder = Path(os.path.normpath(here / entry))
    return "" if folder == here else str(folder)


def _in_library(folder: str, library: str) -> bool:
    return folder == library or folder == str(Path(library, "lib-dynload"))
