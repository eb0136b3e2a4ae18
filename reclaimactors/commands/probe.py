"""The command that probes: what the memory of a process, or files, would give."""

from __future__ import annotations

import json
import textwrap
from pathlib import Path  # noqa: TC003 - typer reads the types
from typing import TYPE_CHECKING, Annotated

import attrs
import typer

from reclaimactors.commands.options import WHICH, Json, one_line
from reclaimactors.commands.output import progress, show, width
from reclaimactors.lab.chunks import CHUNK, Files, Process
from reclaimactors.lab.probe import SAMPLE, probe
from reclaimactors.topology import resolve
from reclaimactors.units import KIB, format_size, parse_size

if TYPE_CHECKING:
    from collections.abc import Iterator

    from reclaimactors.lab.probe import Holds, Probed

__all__ = ["add_to"]

_EXAMPLES = """[b]Examples[/b]

reclaimactors probe --pid 4711

reclaimactors probe ~/Pictures /var/lib/dpkg/status --topology phone.toml

It only reads. A process goes on meanwhile, and none of its pages is brought in for it."""


def add_to(app: typer.Typer) -> None:
    """Add `probe`."""
    app.command("probe", epilog=one_line(_EXAMPLES))(probe_command)


def probe_command(
    files: Annotated[
        list[Path] | None, typer.Argument(metavar="FILE", help="Files, or folders of them.")
    ] = None,
    *,
    pid: Annotated[
        int | None,
        typer.Option(
            "--pid",
            metavar="PID",
            min=1,
            help="A process instead, whose anonymous memory is looked at (Linux).",
            show_default=False,
        ),
    ] = None,
    topology: Annotated[
        str, typer.Option("--topology", metavar="NAME", help="What would hold it. " + WHICH)
    ] = "kcompressd",
    sample: Annotated[
        str,
        typer.Option("--sample", metavar="SIZE", help="How much of it compressors are tried on."),
    ] = format_size(SAMPLE),
    as_json: Json = False,
) -> None:
    """Say what memory would give: zero pages, duplicates, and what each compressor makes of it."""
    if (pid is None) == (not files):
        raise typer.BadParameter("probe takes either --pid PID, or files")
    try:
        sample_bytes = parse_size(sample)
    except ValueError as exc:
        raise typer.BadParameter(f"--sample: {exc}") from exc
    if sample_bytes < CHUNK:
        raise typer.BadParameter(f"--sample {sample} is less than {format_size(CHUNK)}")
    held_by = resolve(topology)
    source = Files.of(files) if files else Process.of(pid or 0)
    with progress() as on_step:
        probed = probe(source, held_by, sample=sample_bytes, on_step=on_step)
    show(json.dumps(attrs.asdict(probed), indent=2) if as_json else "\n".join(_lines(probed)))


def _lines(probed: Probed) -> Iterator[str]:
    pages = probed.pages
    yield from textwrap.wrap(probed.source, width())
    yield from textwrap.wrap(
        f"{pages.total:,} pages of 4KiB: {_share(pages.zero, pages.total)} zero,"
        f" {_share(pages.same_filled, pages.total)} another word over and over,"
        f" {_share(pages.duplicates, pages.total)} the same as an earlier page",
        width(),
    )
    yield ""
    yield f"compressors, on {format_size(probed.sample_bytes)} of it; microseconds are for 4KiB"
    label = max(len("compressor"), *(len(each.compressor) for each in probed.squeezed))
    yield f"{'compressor':<{label}}   unit   ratio  poor %    us in   us out"
    for each in probed.squeezed:
        yield (
            f"{each.compressor:<{label}} {each.unit // KIB:>2} KiB {each.ratio:>7.2f}"
            f" {100 * each.poor:>7.1f} {each.in_us:>8.1f} {each.out_us:>8.1f}"
        )
    for name, why in probed.left_out.items():
        yield from textwrap.wrap(f"{name} is left out: {why}", width())
    for name, why in {each.compressor: each.failed for each in probed.squeezed}.items():
        if why:
            yield from textwrap.wrap(f"{name} failed on some of it: {why}", width())
    yield ""
    head = (
        f"With its pool and zram, {probed.topology} ({probed.compressor}, budget"
        f" {format_size(probed.budget)}) would hold in RAM of such data"
    )
    yield from textwrap.wrap(f"{head} {'; '.join(map(_held, probed.holds))}.", width())


def _share(part: int, whole: int) -> str:
    return f"{part:,} ({part / whole:.1%})"


def _held(holds: Holds) -> str:
    more = holds.compressed / max(1, holds.as_they_are)
    return (
        f"{format_size(holds.compressed)} in values of {format_size(holds.unit)}, which is"
        f" {more:.2f} x what it would hold without compressing"
    )
