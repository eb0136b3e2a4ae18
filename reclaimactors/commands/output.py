"""Where a result goes: stdout, and an error of one line where nobody reads it."""

from __future__ import annotations

import os
import sys
from pathlib import Path

__all__ = ["StdoutLost", "show"]


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
