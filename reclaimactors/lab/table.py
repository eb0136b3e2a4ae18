"""What a comparison is shown as: what it can show, the verdict, the figures; as text or as JSON.

The table has a row for each figure and a column for each topology, as many beside each other as the
width holds.
"""

from __future__ import annotations

import json
import textwrap
from typing import TYPE_CHECKING

import attrs

from reclaimactors.lab.catalog import WORKLOADS
from reclaimactors.lab.figures import FIGURES
from reclaimactors.lab.run import machine
from reclaimactors.lab.workload import RAM_SET_BUDGETS
from reclaimactors.topology.cpus import usable_cpus
from reclaimactors.units import format_size

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from reclaimactors.lab.compare import Comparison

__all__ = ["PARTIAL", "as_json", "as_text", "heading"]

FOOTER = "What the rows and words mean: reclaimactors compare --help"
PARTIAL = "(partial)"  # no round of it came to its end
LEAST_CELL, MOST_CELL = 10, 18  # characters of a topology's column
GAP = 1


def as_text(comparison: Comparison, *, width: int, encoding: str) -> str:
    """Return the verdict and the figures.

    Args:
        comparison: what has been measured so far.
        width: characters of a line; at least 40 are used.
        encoding: of the stream that it goes to: what that cannot show is shown in ASCII.
    """
    width = max(40, width)
    verdict = (textwrap.fill(sentence, width) for sentence in comparison.sentences())
    return "\n\n".join(
        [
            textwrap.fill(WORKLOADS[comparison.load.workload].shows, width),
            "\n".join(verdict),
            textwrap.fill(heading(comparison), width),
            "\n".join(_table(comparison, width, _rule(encoding))),
            textwrap.fill(FOOTER, width),
        ]
    )


def as_json(comparison: Comparison, *, interrupted: bool) -> str:
    """Return one JSON object that says what was run, on what, and all that came of it."""
    load = comparison.load
    printed: dict[str, object] = {
        "machine": machine(),
        "workload": load.workload,
        "seed": load.seed,
        "seconds": comparison.seconds,
        "budget": next(iter(comparison.topologies.values())).budget,
        "budgets": load.budgets,
        "limit_per_s": round(load.limit, 1),
        "input": {
            "paths": [str(path) for path in load.input.paths],
            "pages": len(load.input),
            "value_size": load.input.value_size,
            "same_filled_share": round(load.input.same_filled_share, 4),
        },
        "verdict": [verdict.as_dict() for verdict in comparison.verdicts()],
        "results": [
            attrs.asdict(result) | {"rounds": comparison.figures_of(result.topology)}
            for result in comparison.results()
        ],
    }
    if interrupted:
        printed |= {"interrupted": True, "unfinished": comparison.unfinished()}
    return json.dumps(printed, indent=2)


def heading(comparison: Comparison) -> str:
    """Return in one line what was run on what."""
    load, nr = comparison.load, max(map(len, comparison.rounds.values()), default=0)
    budgets = {format_size(topology.budget) for topology in comparison.topologies.values()}
    verified = f"{comparison.verified:,} values verified"
    if not comparison.verified:
        verified = "it ended before the values were verified"
    where = "all in RAM" if load.budgets == RAM_SET_BUDGETS else "in RAM and stores"
    limit = f" a limit of {load.limit:,.0f} ops/s," if load.limit else ""
    return (
        f"{load.workload} on {len(load.input):,} pages of input"
        f" ({load.input.same_filled_share:.1%} same-filled),"
        f" {where}, {load.budgets:g} x the budget of {' or '.join(sorted(budgets))},"
        f"{limit} {nr} round{'s' * (nr > 1)},"
        f" {usable_cpus()} CPUs; {verified}"
    )


def _rule(encoding: str) -> str:
    """Return the character of a horizontal line."""
    try:
        "\u2500".encode(encoding)
    except (UnicodeEncodeError, LookupError):
        return "-"
    return "\u2500"


def _table(comparison: Comparison, width: int, rule: str) -> Iterator[str]:
    """Yield lines; topologies that do not fit beside each other follow below."""
    results, unfinished = comparison.results(), comparison.unfinished()
    label = max(len(figure.name) for figure in FIGURES)
    beside = max(1, min(len(results), (width - label) // (LEAST_CELL + GAP)))
    cell = min(MOST_CELL, (width - label) // beside - GAP)
    for start in range(0, len(results), beside):
        if start:
            yield ""
        part = results[start : start + beside]
        heads = [_folded(result.topology, cell) for result in part]
        for head, result in zip(heads, part, strict=True):
            head += [PARTIAL] * (result.topology in unfinished)
        height = max(map(len, heads))
        for line in zip(*([""] * (height - len(head)) + head for head in heads), strict=True):
            yield _row("", line, label, cell)
        yield rule * (label + len(part) * (cell + GAP))
        for figure in FIGURES:
            yield _row(figure.name, [figure.show(result) for result in part], label, cell)
        for rates in zip(*(result.ramp for result in part), strict=False):
            yield _row(
                f"at {rates[0].due_per_s:,.0f}/s", [rate.state for rate in rates], label, cell
            )


def _folded(name: str, cell: int) -> list[str]:
    """Return a name in lines of at most `cell` characters, cut after an underscore if it can be."""
    lines: list[str] = []
    while len(name) > cell:
        cut = name.rfind("_", 1, cell) + 1 or cell
        lines.append(name[:cut])
        name = name[cut:]
    return [*lines, name]


def _row(name: str, cells: Sequence[str], label: int, cell: int) -> str:
    return name.ljust(label) + "".join(f"{text:>{cell + GAP}}" for text in cells)
