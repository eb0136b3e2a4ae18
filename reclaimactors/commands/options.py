"""Options that several commands have, each said in the same words."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from reclaimactors.lab.catalog import WORKLOADS
from reclaimactors.topology import builtin_names

__all__ = [
    "WHICH",
    "Budget",
    "Inputs",
    "Json",
    "PerfettoTrace",
    "Report",
    "Rounds",
    "Seconds",
    "Seed",
    "WorkloadName",
    "one_line",
]

WHICH = f"Built in: {', '.join(builtin_names())}. Or the path of a TOML file."

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
        help="How long clients work, in all rounds together; verifying comes on top.",
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
Report = Annotated[
    Path | None,
    typer.Option(
        "--report",
        metavar="FILE",
        help="Also write a page of HTML with all figures, latencies and a timeline.",
        show_default=False,
    ),
]
PerfettoTrace = Annotated[
    Path | None,
    typer.Option(
        "--trace",
        metavar="FILE",
        help="Also write the timeline of every round for ui.perfetto.dev.",
        show_default=False,
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of a table.")]


def one_line(text: str) -> str:
    """Return text with each paragraph on one line, so that it is wrapped to the terminal."""
    return "\n\n".join(" ".join(part.split()) for part in text.split("\n\n"))
