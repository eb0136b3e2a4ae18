"""The report: it says what the JSON says, is one small file, and shows in a browser."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections import Counter
from html import escape, unescape
from html.parser import HTMLParser
from itertools import pairwise

import pytest

from reclaimactors import cli
from reclaimactors.lab.compare import Comparison
from reclaimactors.lab.figures import FIGURES
from reclaimactors.lab.histogram import Histogram
from reclaimactors.lab.measure import Measurement
from reclaimactors.lab.page import as_page
from reclaimactors.lab.ramp import Step
from reclaimactors.lab.run import Load
from reclaimactors.lab.table import as_json
from reclaimactors.lab.timeline import LOOP, Timeline
from reclaimactors.topology import resolve

NAMES = ("kswapd_only", "kcompressd", "padata", "a <b>name</b> & more")
CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
VOID = {"meta", "br", "path"}


def samples(*values: float) -> Histogram:
    histogram = Histogram()
    for value in values:
        histogram.add(value)
    return histogram


def measured(nr: int, *, finished: bool = True) -> Measurement:
    late = samples(*(0.001 * nr * (1 + number) for number in range(50)))
    made = Measurement(
        seconds=1.0, puts=1000 * nr, gets=2000, verified=7, finished=finished, late=late,
        stalls=samples(0.0, 0.0, 0.002), faults=samples(4e-5),
        steps=[Step(0.5, 40.0, 1.0, samples(0.001))], timeline=Timeline(1.0),
    )  # fmt: skip
    made.vmstat.update(pgsteal_anon=1_234_567, allocstall_normal=9 * (nr % 2))
    for number, bucket in enumerate(made.timeline.buckets):
        if number % 10:
            bucket.seconds, bucket.looks = 1 / 80, 2
            bucket.least_free, bucket.most_free = number << 15, number << 16
            bucket.counted = Counter(pgscan_kswapd=number, pgsteal_kswapd=number * nr)
            bucket.ran_s = {LOOP: 0.01, "worker 1": 0.005}
            bucket.waited_s = {LOOP: 0.001, "worker 1": 0.002}
    return made


@pytest.fixture
def comparison(source):
    topologies = {name: resolve("kcompressd", budget="8MiB") for name in NAMES}
    comparison = Comparison(topologies, Load(source, seed=5), 1.0)
    for number, name in enumerate(NAMES):
        comparison.rounds[name] = [measured(1 + number) for _ in range(3)]
    return comparison


class Parsed(HTMLParser):
    """The rows of tables, and whether tags are closed in order."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.rows: list[list[str]] = []
        self.json = ""
        self.feed(page)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in {"td", "th"}:
            self.rows[-1].append("")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        if "pre" in self.open:
            self.json += data
        elif {"td", "th"} & set(self.open):
            self.rows[-1][-1] += data


def test_it_says_what_the_json_says(comparison):
    page = as_page(comparison, interrupted=False)
    parsed = Parsed(page)
    facts = json.loads(as_json(comparison, interrupted=False))
    assert json.loads(parsed.json) == facts
    rows = {row[0]: row[1:] for row in parsed.rows}
    assert rows["figure"] == list(NAMES) == [result["topology"] for result in facts["results"]]
    for figure in FIGURES:
        shown = [figure.show(result) for result in comparison.results()]
        for cell, value in zip(rows[figure.name], shown, strict=True):
            assert re.fullmatch(re.escape(value) + "(better|worse|more|fewer)?", cell)
    for result, shown in zip(facts["results"], rows["ops/s"], strict=True):
        assert shown.rstrip("abefhmnorstuw") == f"{result['ops_per_s']:,.0f}"
    for sentence in comparison.sentences():
        assert f"<p>{escape(sentence)}</p>" in page
    odd = rows["allocstall_normal"]
    assert odd[0] == "kswapd_only: 27padata: 27", "of the others it is none"
    assert "watermarks" in odd[2]


def test_it_is_one_small_file_that_asks_for_nothing(comparison):
    page = as_page(comparison, interrupted=False)
    assert len(page.encode()) < 300_000
    parsed = Parsed(page)
    assert {tag for tag, _ in parsed.tags}.isdisjoint({"script", "link", "img", "iframe"})
    for tag, attributes in parsed.tags:
        assert not {name for name in attributes if name in {"src", "onclick"}}, tag
        assert attributes.get("href", "#").startswith("#")
    assert "url(" not in page
    assert "@import" not in page


def test_a_drawing_is_said_in_words_too_and_links_lead_somewhere(comparison):
    parsed = Parsed(as_page(comparison, interrupted=False))
    drawings = [attributes for tag, attributes in parsed.tags if tag == "svg"]
    assert len(drawings) == 4 * (4 + 2 + 4 + 1 + 1)  # latencies; actors, reclaim, stalls, free
    assert all(attributes["aria-label"] and attributes["role"] == "img" for attributes in drawings)
    ids = {attributes["id"] for _, attributes in parsed.tags if "id" in attributes}
    links = {attributes["href"][1:] for tag, attributes in parsed.tags if tag == "a"}
    assert links == ids
    headings = [int(tag[1]) for tag, _ in parsed.tags if re.fullmatch(r"h\d", tag)]
    assert all(after <= before + 1 for before, after in pairwise(headings))


def test_what_was_measured_until_ctrl_c_is_shown(comparison, source):
    comparison.rounds = {NAMES[0]: [measured(1, finished=False)]}
    page = as_page(comparison, interrupted=True)
    assert "It was interrupted" in page
    assert "(partial)" in page
    assert "No round came to its end" in page
    Parsed(page)
    nothing = Comparison(comparison.topologies, Load(source), 1.0)
    assert "Nothing was measured." in as_page(nothing, interrupted=True)


def test_the_command_writes_it_and_prints_as_ever(tmp_path, capsys):
    page = tmp_path / "report.html"
    args = ["run", "kswapd_only_inline", "--budget", "1MiB", "--seconds", "0.2", "--report"]
    assert cli._status([*args, str(page), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert json.loads(Parsed(page.read_text("utf-8")).json) == facts


@pytest.mark.parametrize("path", ["/absent/report.html", "/", "report.html/absent"])
def test_a_page_that_cannot_be_written_is_refused_before_the_run(path, tmp_path, capsys):
    (tmp_path / "report.html").touch()
    asked = str(tmp_path / path)
    assert cli._status(["compare", "--report", asked]) == 2
    said = capsys.readouterr()
    assert (said.out, said.err.count("\n")) == ("", 1)
    assert f"cannot write {asked.rstrip('/') or '/'}" in said.err


LOOK = """<!DOCTYPE html><title>none</title><script>
const seen = {errors: [], widths: {}};
addEventListener("error", event => seen.errors.push(event.message));
function look() {
  for (const frame of document.querySelectorAll("iframe")) {
    const page = frame.contentDocument;
    const {scrollWidth, clientWidth} = page.documentElement;
    seen.widths[frame.width] = scrollWidth - clientWidth;
    seen.cells = [...page.querySelectorAll("#figures tr")].map(row =>
      [...row.cells].map(cell => (cell.querySelector(".value") || cell).textContent));
    seen.json = page.querySelector("pre").textContent;
    seen.high = Math.min(...[...page.querySelectorAll("svg")].map(svg => svg.clientHeight));
  }
  document.title = JSON.stringify(seen);
}
</script><body onload="look()">"""


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is here to open the report with")
def test_a_browser_shows_what_the_json_holds_however_narrow(comparison, tmp_path):
    page = as_page(comparison, interrupted=False)
    frames = "".join(
        f'<iframe width="{width}" srcdoc="{escape(page)}"></iframe>' for width in (390, 1200)
    )
    (tmp_path / "look.html").write_text(LOOK + frames, "utf-8")
    shown = subprocess.run(
        [
            CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
            f"--user-data-dir={tmp_path}/profile", "--enable-logging=stderr", "--dump-dom",
            f"file://{tmp_path}/look.html",
        ],
        capture_output=True, text=True, check=False, timeout=50,
    )  # fmt: skip
    title = re.search(r"<title>(.*?)</title>", shown.stdout, re.DOTALL)
    assert title, shown.stderr
    seen = json.loads(unescape(title[1]))
    assert seen["errors"] == []
    assert "CONSOLE" not in shown.stderr
    assert seen["widths"] == {"390": 0, "1200": 0}, "it is wider than the window"
    assert seen["high"] > 10
    assert json.loads(seen["json"]) == json.loads(as_json(comparison, interrupted=False))
    for figure, cells in zip(FIGURES, seen["cells"][1:], strict=False):
        assert cells == [figure.name, *map(figure.show, comparison.results())]
