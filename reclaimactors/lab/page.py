"""A comparison as one page of HTML: it needs no network, no script, and nothing beside it.

What it says is what `table.py` says, from the same figures; the drawings are of buckets, so that
its size depends on the number of topologies and not on how long they ran.
"""

from __future__ import annotations

from html import escape
from importlib.resources import files
from typing import TYPE_CHECKING

from reclaimactors.lab import draw
from reclaimactors.lab.catalog import WORKLOADS
from reclaimactors.lab.chronicle import chronicle
from reclaimactors.lab.figures import FIGURES
from reclaimactors.lab.histogram import Histogram
from reclaimactors.lab.measure import Measurement
from reclaimactors.lab.odd import odd_of
from reclaimactors.lab.run import machine
from reclaimactors.lab.table import PARTIAL, as_json, heading

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from reclaimactors.lab.compare import Comparison
    from reclaimactors.lab.run import Result

__all__ = ["as_page"]

_SECTIONS = {
    "figures": "Figures",
    "latencies": "Latencies",
    "timeline": "Who ran, and when",
    "odd": "Unusual counters",
    "json": "Everything, as JSON",
}
_HOW = (
    "Each curve is a histogram over time on a logarithmic axis, its highest column as high as the"
    " row. Dashed lines: powers of ten."
)


def as_page(comparison: Comparison, *, interrupted: bool) -> str:
    """Return the page.

    Args:
        comparison: what has been measured so far, with timelines.
        interrupted: whether Ctrl-C ended it.
    """
    results = comparison.results()
    title = f"{', '.join(comparison.topologies)}: {comparison.load.workload}"
    style = files("reclaimactors.lab").joinpath("page.css").read_text("utf-8")
    parts = [
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>{escape(title)}</title>\n<style>\n{style}</style>\n</head>\n<body>",
        *_head(comparison, title, interrupted=interrupted),
        *_section("figures", _figures(comparison, results)),
        *_section("latencies", _latencies(comparison, results)),
        *_section("timeline", chronicle(comparison)),
        *_section("odd", _odd(results)),
        *_section("json", _json(as_json(comparison, interrupted=interrupted))),
        "</main>\n</body>\n</html>\n",
    ]
    return "\n".join(parts)


def _head(comparison: Comparison, title: str, *, interrupted: bool) -> Iterator[str]:
    facts = machine()
    yield f"<header>\n<h1>{escape(title)}</h1>\n<div class='verdict'>"
    if interrupted:
        yield "<p>It was interrupted: what follows is of what was measured until then.</p>"
    for sentence in comparison.sentences():
        yield f"<p>{escape(sentence)}</p>"
    yield "</div>"
    yield f"<p>{escape(WORKLOADS[comparison.load.workload].shows)}</p>"
    yield (
        f"<p class='soft'>{escape(heading(comparison))}. Python {facts['python']},"
        f" {facts['system']} {escape(facts['release'])} on {facts['machine']}, reclaimactors"
        f" {facts['reclaimactors']}, seed {comparison.load.seed}.</p>\n</header>"
    )
    links = (f'<li><a href="#{name}">{text}</a></li>' for name, text in _SECTIONS.items())
    yield f"<nav aria-label='Sections'><ul>{''.join(links)}</ul></nav>\n<main>"


def _section(name: str, parts: Iterator[str]) -> Iterator[str]:
    yield f'<section id="{name}" class="{name}">\n<h2>{_SECTIONS[name]}</h2>'
    yield from parts
    yield "</section>"


def _figures(comparison: Comparison, results: Sequence[Result]) -> Iterator[str]:
    """Yield the table, with what differs from the first topology by more than chance."""
    unfinished, differs = comparison.unfinished(), _differs(comparison)
    yield "<div class='wide' tabindex='0' role='region' aria-label='Figures'><table><thead><tr>"
    yield "<th scope='col'>figure</th>"
    for result in results:
        partial = f"<br>{PARTIAL}" if result.topology in unfinished else ""
        yield f"<th scope='col'>{escape(result.topology)}{partial}</th>"
    yield "</tr></thead><tbody>"
    for figure in FIGURES:
        cells = (
            f"<td><span class='value'>{figure.show(result)}</span>"
            f"{differs.get((result.topology, figure.name), '')}</td>"
            for result in results
        )
        yield f"<tr><th scope='row'>{escape(figure.name)}</th>{''.join(cells)}</tr>"
    for rates in zip(*(result.ramp for result in results), strict=False):
        cells = (f"<td><span class='value'>{rate.state}</span></td>" for rate in rates)
        yield f"<tr><th scope='row'>at {rates[0].due_per_s:,.0f}/s</th>{''.join(cells)}</tr>"
    yield "</tbody></table></div>"
    if differs:
        first = escape(results[0].topology)
        said = f"Better, worse, more and fewer: than {first}, by more than chance."
        yield f"<p class='soft'>{said}</p>"
    yield "<p class='soft'>What the rows mean: reclaimactors compare --help</p>"


def _differs(comparison: Comparison) -> dict[tuple[str, str], str]:
    """Return by (topology, figure) the word for how it differs from the first topology."""
    first = next(iter(comparison.topologies))
    words: dict[tuple[str, str], str] = {}
    for verdict in comparison.verdicts():
        for each in verdict.differences if verdict.against == first else ():
            more = "more" if each.one > each.against else "fewer"
            word = {1: "better", -1: "worse", 0: more}[each.better]
            words[verdict.one, each.figure.name] = f"<span class='differs {word}'>{word}</span>"
    return words


def _latencies(comparison: Comparison, results: Sequence[Result]) -> Iterator[str]:
    measured = {result.topology: comparison.measured(result.topology) for result in results}
    kinds: list[tuple[str, Callable[[Measurement], Histogram]]] = [
        ("From when a request was due until it was served", _late)
    ]
    for number, step in enumerate(next(iter(measured.values()), Measurement()).steps):
        kinds.append((f"The same, at {step.share:g} x the limit", _step(number)))
    kinds += [("How long a put waited for room", _stalls)]
    kinds += [("How long a get took that found its value reclaimed", _faults)]
    yield f"<p class='soft'>{_HOW}</p>"
    for caption, of in kinds:
        samples = {name: of(each) for name, each in measured.items()}
        if any(each.count for each in samples.values()):
            yield f"<figure><h3>{caption}</h3><div class='rows'>"
            for name, each in samples.items():
                yield from _spread(name, each)
            yield f"{_axis()}</div></figure>"


def _late(measured: Measurement) -> Histogram:
    return measured.late


def _step(number: int) -> Callable[[Measurement], Histogram]:
    return lambda measured: measured.steps[number].late if measured.steps[number:] else Histogram()


def _stalls(measured: Measurement) -> Histogram:
    return measured.stalls


def _faults(measured: Measurement) -> Histogram:
    return measured.faults


def _spread(name: str, samples: Histogram) -> Iterator[str]:
    points = ((f"p{share:g}", samples.quantile(share / 100)) for share in (50, 99, 99.9))
    said = ", ".join(f"{point} {_seconds(value)}" for point, value in points)
    says = f"{said}, longest {_seconds(samples.max)}; {samples.count:,} in all"
    if samples.zeros:
        says += f", {samples.zeros / samples.count:.1%} did not wait"
    svg = draw.drawing(
        [draw.decades(), draw.spread(samples)], draw.COLUMNS, f"{name}: {says}", "spread"
    )
    yield f"<div>{escape(name)}</div><div class='plot'>{svg}</div><div class='says'>{says}</div>"


def _axis() -> str:
    ticks = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 0.1, 1.0, 10.0)
    marks = (
        f"<span style='left:{100 * draw.at(tick):.1f}%'>{_seconds(tick)}</span>" for tick in ticks
    )
    return f"<div class='axis'>{''.join(marks)}</div>"


def _seconds(value: float) -> str:
    """Return a time as people say it, with three digits."""
    for unit, name in ((1.0, "s"), (1e-3, "ms")):  # and below: us
        if value >= unit:
            return f"{value / unit:.3g} {name}"
    return f"{value * 1e6:.3g} us" if value else "0"


def _odd(results: Sequence[Result]) -> Iterator[str]:
    found = list(odd_of({result.topology: result.vmstat for result in results}))
    if not found:
        yield "<p>None: no counter says that something is short, full or failing.</p>"
        return
    yield "<div class='wide' tabindex='0' role='region' aria-label='Unusual counters'>"
    yield "<table><thead><tr><th scope='col'>counter</th><th scope='col'>counted</th>"
    yield "<th scope='col'>what it means</th><th scope='col'>what to do</th></tr></thead><tbody>"
    for odd, seen in found:
        counted = "<br>".join(f"{escape(name)}: {words}" for name, words in seen.items())
        yield f"<tr><th scope='row'>{odd.name}</th><td>{counted}</td>"
        yield f"<td>{escape(odd.means)}</td><td>{escape(odd.do)}</td></tr>"
    yield "</tbody></table></div>"


def _json(text: str) -> Iterator[str]:
    yield f"<details><summary>Show it</summary><pre tabindex='0'>{escape(text)}</pre></details>"
