"""What one value of a topology may be: each check returns it converted, or raises.

A message begins with the key, so that a table above it can put its own name and a dot in front.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeGuard

from reclaimactors.errors import PluginError, TopologyError
from reclaimactors.units import parse_size

if TYPE_CHECKING:
    from collections.abc import Generator, Iterable, Sequence

__all__ = [
    "bad",
    "choice",
    "flag",
    "integer",
    "is_table",
    "mark",
    "number",
    "size",
    "suggest",
    "text",
    "within",
]

MAX_SIZE = 1 << 50  # 1PiB: what fits a column of 63-bit ints with room to multiply
_PERCENT = re.compile(r"\s*(\d+(?:\.\d+)?)\s*%\s*")


def bad(key: str, value: object, allowed: str) -> TopologyError:
    """Return the error that says what `key` is and what it may be."""
    try:
        seen = repr(value)
    except (ValueError, RecursionError):  # an int of 5000 digits, a list in a list in a list ...
        seen = f"of type {type(value).__name__}"
    return TopologyError(f"{key} is {seen[:100]}{'...' * (len(seen) > 100)}; allowed: {allowed}")


@contextmanager
def within(key: str) -> Generator[None]:
    """Put the key of a plugin in front of what is wrong with that plugin."""
    try:
        yield
    except (PluginError, TopologyError) as exc:
        raise type(exc)(f"{key}: {exc}") from exc


def is_table(value: object) -> TypeGuard[Mapping[Any, Any]]:
    """Return whether it is a table, whatever its keys."""
    return isinstance(value, Mapping)


def suggest(value: object, known: Iterable[str]) -> str:
    """Return " (did you mean ...?)" for the nearest of the known words, "" if none is near."""
    near = difflib.get_close_matches(str(value)[:50], list(known), 1)
    return f" (did you mean {near[0]!r}?)" if near else ""


def size(key: str, value: Any, allowed: str) -> int:
    """Return bytes, at most MAX_SIZE, from an int of bytes or a string with a unit.

    Args:
        key: for the error.
        value: what was given.
        allowed: from where to where, in words. The lower limit is left to the caller.
    """
    try:
        nr_bytes = parse_size(value)
    except (ValueError, OverflowError):
        nr_bytes = -1
    if not 0 <= nr_bytes <= MAX_SIZE:
        how = "in bytes, or with a unit (B, KiB, MiB, GiB, TiB) as '64MiB'"
        raise bad(key, value, f"{allowed}, {how}")
    return nr_bytes


def mark(key: str, value: Any) -> int | str:
    """Return a size in bytes, or a percentage as the string it is: "2%"."""
    if isinstance(value, str) and value.strip().isdecimal():
        raise bad(key, value, f"'{value.strip()}%' of the budget, or a size with its unit")
    if not (isinstance(value, str) and "%" in value):
        return size(key, value, "0% to 100% of the budget, or a size")
    match = _PERCENT.fullmatch(value)
    if match is None or float(match[1]) > 100:
        raise bad(key, value, "0% to 100% of the budget, or a size like '4MiB'")
    return f"{match[1]}%"


def integer(key: str, value: Any, least: int, most: int, unit: str = "") -> int:
    """Return a whole number from `least` to `most`."""
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        raise bad(key, value, f"a whole number from {least} to {most} {unit}".rstrip())
    return value


def number(key: str, value: Any, least: float, most: float, unit: str) -> float:
    """Return a number from `least` to `most` as a float; neither nan nor infinity is one."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not least <= value <= most:
        raise bad(key, value, f"a number from {least:g} to {most:g} {unit}")
    return float(value)


def flag(key: str, value: Any) -> bool:
    """Return True or False, which nothing else stands for."""
    if not isinstance(value, bool):
        raise bad(key, value, "true or false")
    return value


def choice(key: str, value: Any, words: Sequence[str]) -> str:
    """Return one of the words."""
    if not isinstance(value, str) or value not in words:
        raise bad(key, value, ", ".join(words) + suggest(value, words))
    return value


def text(key: str, value: Any) -> str:
    """Return a string that is not empty."""
    if not isinstance(value, str) or not value:
        raise bad(key, value, "a string that is not empty")
    return value
