"""Drawings of a report: SVG paths that stretch to any width, with no text in them.

A drawing is a row of columns, whose labels are HTML beside it, so that they stay readable however
narrow the page. Classes name what is drawn; colours and patterns are the style sheet's.
"""

from __future__ import annotations

import math
from html import escape
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from reclaimactors.lab.histogram import Histogram

__all__ = [
    "FIRST_S",
    "LAST_S",
    "area",
    "at",
    "band",
    "decades",
    "drawing",
    "line",
    "marks",
    "spread",
]

HEIGHT = 100.0  # units of a drawing's own, as wide as it has columns
FIRST_S, LAST_S = 1e-6, 10.0  # of the axis of a distribution
COLUMNS = 140  # of a distribution


def drawing(parts: Iterable[str], nr: int, says: str, kind: str = "") -> str:
    """Return an SVG of `nr` columns.

    Args:
        parts: what the functions below return.
        nr: columns.
        says: the same in words, for those who do not see it.
        kind: a class of the style sheet.
    """
    return (
        f'<svg class="{kind}" viewBox="0 0 {nr} {HEIGHT:g}" preserveAspectRatio="none" role="img"'
        f' aria-label="{escape(says)}">{"".join(parts)}</svg>'
    )


def area(values: Sequence[float], most: float, kind: str = "fill") -> str:
    """Return columns from the bottom up; `most` reaches the top."""
    if not most:
        return ""
    path = [f"M0 {HEIGHT:g}"]
    for number, value in enumerate(values):
        path.append(f"V{_y(value, most)}H{number + 1}")
    return f'<path class="{kind}" d="{"".join(path)}V{HEIGHT:g}Z"/>'


def line(values: Sequence[float], most: float, kind: str = "line") -> str:
    """Return the upper edge of columns."""
    if not most or not values:
        return ""
    path = [f"M0 {_y(values[0], most)}"]
    for number, value in enumerate(values):
        path.append(f"V{_y(value, most)}H{number + 1}")
    return f'<path class="{kind}" d="{"".join(path)}"/>'


def band(least: Sequence[float | None], most: Sequence[float | None], top: float) -> str:
    """Return what lies between two values of each column, joined to the one before; None: a gap."""
    path: list[str] = []
    before: tuple[float, float] | None = None
    for number, (low, high) in enumerate(zip(least, most, strict=True)):
        if low is None or high is None:
            before = None
            continue
        from_low, from_high = before or (low, high)
        before = low, high
        low, high = min(low, from_high), max(high, from_low)
        path.append(f"M{number} {_y(high, top)}H{number + 1}V{_low(low, high, top)}H{number}Z")
    return f'<path class="band" d="{"".join(path)}"/>'


def marks(values: Iterable[float], most: float, nr: int, kind: str = "mark") -> str:
    """Return lines across all columns."""
    path = "".join(f"M0 {_y(value, most)}H{nr}" for value in values)
    return f'<path class="{kind}" d="{path}"/>'


def spread(samples: Histogram) -> str:
    """Return how samples, in seconds, lie over a logarithmic axis, the fullest column highest."""
    columns = [0] * COLUMNS
    for value, count in samples.items():
        columns[min(COLUMNS - 1, int(at(value) * COLUMNS))] += count
    return area(columns, max(columns))


def decades() -> str:
    """Return lines at each power of ten."""
    nr = round(math.log10(LAST_S / FIRST_S))
    path = "".join(f"M{number * COLUMNS / nr:g} 0V{HEIGHT:g}" for number in range(1, nr))
    return f'<path class="mark" d="{path}"/>'


def at(seconds: float) -> float:
    """Return where on the axis of a distribution that is, 0 to 1."""
    share = math.log(max(seconds, FIRST_S) / FIRST_S) / math.log(LAST_S / FIRST_S)
    return min(1.0, share)


def _y(value: float, most: float) -> str:
    return f"{HEIGHT * (1 - min(1.0, max(0.0, value / most))):.4g}"


def _low(low: float, high: float, most: float) -> str:
    """Return where a band ends: it is never too thin to be seen."""
    return _y(min(low, high - most / HEIGHT), most)
