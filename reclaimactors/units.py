"""Sizes: human strings to bytes and back, and bytes to pages.

Human strings exist only at the edge (TOML, the command line, `budget=`); inside, every size is an
int of bytes, and names carry `_pages` where they count pages.
"""

from __future__ import annotations

import re

__all__ = ["KIB", "MIB", "PAGE_SIZE", "format_size", "nr_pages", "parse_size"]

KIB = 1024
MIB = 1024 * KIB
PAGE_SIZE = 4 * KIB

_UNITS = {"": 1, "B": 1, "KIB": KIB, "MIB": MIB, "GIB": 1024 * MIB, "TIB": 1024**4, "PIB": 1024**5}
_SIZE = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*")


def parse_size(value: int | str) -> int:
    """Return a size in bytes from an int or a string like ``"64MiB"``.

    Raises:
        ValueError: if it is neither, is negative, or has an unknown unit.
    """
    if isinstance(value, bool):
        msg = f"{value!r} is not a size; write an int of bytes or a string like '64MiB'"
        raise ValueError(msg)  # noqa: TRY004 - one kind of error for one kind of mistake
    if isinstance(value, int):
        if value < 0:
            msg = f"{value} is negative; a size is 0 or more bytes"
            raise ValueError(msg)
        return value
    match = _SIZE.fullmatch(value) if isinstance(value, str) else None  # pyright: ignore[reportUnnecessaryIsInstance] # TOML may hand us anything
    unit = _UNITS.get(match[2].upper()) if match else None
    if match is None or unit is None:
        msg = f"{value!r} is not a size; write bytes, or a unit from B and KiB to PiB, as '64MiB'"
        raise ValueError(msg)
    return int(float(match[1]) * unit) if "." in match[1] else int(match[1]) * unit


def format_size(nr_bytes: int) -> str:
    """Return a size as people write it: ``format_size(67108864) == "64MiB"``."""
    for unit, name in ((1024 * MIB, "GiB"), (MIB, "MiB"), (KIB, "KiB")):
        if abs(nr_bytes) >= unit:
            return f"{nr_bytes / unit:.1f}".removesuffix(".0") + name
    return f"{nr_bytes}B"


def nr_pages(nr_bytes: int, page_size: int) -> int:
    """Return how many base pages a folio of so many bytes has, at least one."""
    return 1 if nr_bytes <= page_size else -(-nr_bytes // page_size)
