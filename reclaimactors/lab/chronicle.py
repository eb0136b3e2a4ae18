"""The timeline of a report: who ran and what reclaim did, in one round of each topology."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING

from reclaimactors.lab import draw
from reclaimactors.lab.timeline import NR_BUCKETS
from reclaimactors.units import format_size

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from reclaimactors.lab.compare import Comparison
    from reclaimactors.lab.measure import Measurement
    from reclaimactors.lab.timeline import Bucket, Timeline
    from reclaimactors.topology import Topology

__all__ = ["chronicle"]

_HOW = (
    "One round of each topology: that with the median of operations a second. Filled: how much of"
    f" each {NR_BUCKETS}th part of the round; the line, where there is one, is said beside it. Rows"
    " of the same name have the same scale in all topologies."
)


def chronicle(comparison: Comparison) -> Iterator[str]:
    """Yield the section."""
    chosen = {
        name: (number, measured)
        for name, rounds in comparison.rounds.items()
        if (found := _median(rounds)) is not None
        for number, measured in [found]
    }
    if not chosen:
        yield "<p>No round came to its end.</p>"
        return
    yield f"<p class='soft'>{_HOW}</p>"
    timelines = [m.timeline for _, m in chosen.values() if m.timeline is not None]
    most = {
        row: max(max(rate(bucket) for bucket in each.buckets) for each in timelines)
        for row, (rate, _) in _ROWS.items()
    }
    for name, (number, measured) in chosen.items():
        if measured.timeline is not None:
            of = f"round {number + 1} of {len(comparison.rounds[name])}"
            yield f"<figure><h3>{escape(name)} <span class='soft'>{of}</span></h3>"
            yield "<div class='rows'>"
            yield from _actors(measured.timeline)
            yield from _reclaim(measured, measured.timeline, most)
            yield from _free(measured.timeline, comparison.topologies[name])
            yield f"{_axis(measured.timeline.seconds)}</div></figure>"


def _median(rounds: list[Measurement]) -> tuple[int, Measurement] | None:
    """Return the number of the round with the median of operations, and what it measured."""
    ended = [(each.puts + each.gets, nr) for nr, each in enumerate(rounds) if each.finished]
    if not ended:
        return None
    _, number = sorted(ended)[len(ended) // 2]
    return number, rounds[number]


def _row(label: str, svg: str, says: str) -> str:
    return (
        f"<div>{escape(label)}</div><div class='plot'>{svg}</div>"
        f"<div class='says'>{escape(says)}</div>"
    )


def _actors(timeline: Timeline) -> Iterator[str]:
    """Yield a row for each thread and worker process: on a CPU, and, as a line, wanting one."""
    for name in timeline.actors:
        ran = [_share(bucket, bucket.ran_s[name]) for bucket in timeline.buckets]
        wants = [_share(bucket, bucket.ran_s[name] + bucket.waited_s[name])
                 for bucket in timeline.buckets]  # fmt: skip
        seconds = sum(bucket.seconds for bucket in timeline.buckets) or 1.0
        ran_s = sum(bucket.ran_s[name] for bucket in timeline.buckets)
        waited_s = sum(bucket.waited_s[name] for bucket in timeline.buckets)
        says = f"on a CPU {ran_s / seconds:.0%}, waiting for one {waited_s / seconds:.0%} (line)"
        svg = draw.drawing([draw.area(ran, 1.0), draw.line(wants, 1.0)], NR_BUCKETS, says)
        yield _row(name, svg, says)


def _share(bucket: Bucket, seconds: float) -> float:
    return seconds / bucket.seconds if bucket.seconds else 0.0


def _rate(*names: str) -> Callable[[Bucket], float]:
    return lambda bucket: _share(bucket, sum(bucket.counted[name] for name in names))


_ROWS: Mapping[str, tuple[Callable[[Bucket], float], str]] = {
    "kswapd scans": (_rate("pgscan_kswapd"), "pages/s"),
    "given to workers": (_rate("kcompressd_queued"), "pages/s"),
    "callers scan": (_rate("pgscan_direct"), "pages/s"),
    "stolen": (_rate("pgsteal_kswapd", "pgsteal_direct", "pgsteal_proactive"), "pages/s"),
}


def _reclaim(measured: Measurement, timeline: Timeline, most: Mapping[str, float]) -> Iterator[str]:
    seconds = sum(bucket.seconds for bucket in timeline.buckets) or 1.0
    for row, (rate, unit) in _ROWS.items():
        values = [rate(bucket) for bucket in timeline.buckets]
        mean = sum(rate(bucket) * bucket.seconds for bucket in timeline.buckets) / seconds
        says = f"mean {mean:,.0f} {unit}, most {max(values):,.0f}; full height {most[row]:,.0f}"
        if not mean:
            says = "none"
        if row == "callers scan":
            stalls = sum(bucket.counted["allocstall_normal"] for bucket in timeline.buckets)
            says += f"; {stalls:,} allocstalls" * (stalls > 0)
        yield _row(row, draw.drawing([draw.area(values, most[row])], NR_BUCKETS, says), says)
    early = [bucket.early_s for bucket in timeline.buckets]
    if any(early):
        says = f"the oldest that was finished and not delivered: {max(early) * 1e3:.1f} ms at most"
        yield _row(
            "out of turn", draw.drawing([draw.area(early, max(early))], NR_BUCKETS, says), says
        )
    some = [_share(bucket, bucket.some_s) for bucket in timeline.buckets]
    full = [_share(bucket, bucket.full_s) for bucket in timeline.buckets]
    says = (
        f"some {measured.psi_some_s / measured.seconds:.1%},"
        f" full {measured.psi_full_s / measured.seconds:.1%} (line) of the time"
    )
    svg = draw.drawing([draw.area(some, 1.0), draw.line(full, 1.0)], NR_BUCKETS, says)
    yield _row("stalls (PSI)", svg, says)


def _free(timeline: Timeline, topology: Topology) -> Iterator[str]:
    """Yield the row of free memory, from the least to the most in each bucket."""
    least, low, high = topology.watermarks.resolve(topology.budget)
    seen = [bucket for bucket in timeline.buckets if bucket.looks]
    if not seen:
        return
    top = 1.1 * max(high, *(bucket.most_free for bucket in seen))
    lows = [bucket.least_free if bucket.looks else None for bucket in timeline.buckets]
    highs = [bucket.most_free if bucket.looks else None for bucket in timeline.buckets]
    marks = {"high": high, "low": low, "min": least}
    says = (
        f"least {format_size(min(bucket.least_free for bucket in seen))},"
        f" most {format_size(max(bucket.most_free for bucket in seen))} free; watermarks "
        + ", ".join(f"{name} {format_size(mark)}" for name, mark in marks.items())
    )
    svg = draw.drawing(
        [draw.band(lows, highs, top), draw.marks(marks.values(), top, NR_BUCKETS)],
        NR_BUCKETS, says, "high",
    )  # fmt: skip
    levels = "".join(
        f"<span class='level' style='top:{100 * (1 - mark / top):.1f}%'>{name}</span>"
        for name, mark in marks.items()
    )
    yield (
        f"<div>free memory</div><div class='plot'>{svg}{levels}</div>"
        f"<div class='says'>{escape(says)}</div>"
    )


def _axis(seconds: float) -> str:
    marks = (f"<span style='left:{25 * n}%'>{seconds * n / 4:.3g} s</span>" for n in range(5))
    return f"<div class='axis'>{''.join(marks)}</div>"
