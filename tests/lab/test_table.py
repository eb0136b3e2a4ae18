from __future__ import annotations

import json
from types import SimpleNamespace

import pytest

from reclaimactors.lab.compare import Comparison
from reclaimactors.lab.figures import FIGURES
from reclaimactors.lab.measure import Measurement
from reclaimactors.lab.ramp import Step
from reclaimactors.lab.run import Load
from reclaimactors.lab.table import as_json, as_text

NAMES = (
    "kswapd_only",
    "kcompressd",
    "padata",
    "kswapd_only_inline",
    "no_name_is_too_long_for_this",
)


@pytest.fixture
def comparison(source):
    topologies = {name: SimpleNamespace(budget=8 << 20) for name in NAMES}
    comparison = Comparison(topologies, Load(source, seed=5), 1.0)
    for number, name in enumerate(NAMES):
        rounds = [
            Measurement(seconds=1.0, puts=1000, gets=2000 + nr, verified=7, finished=True)
            for nr in range(2)
        ]
        for measured in rounds:
            measured.vmstat.update(pgsteal_anon=1_234_567, workingset_refault_anon=10 * number)
        comparison.rounds[name] = rounds
    return comparison


@pytest.mark.parametrize("width", [40, 60, 80, 100])
def test_it_fits_the_width_and_every_figure_of_every_topology_is_there(comparison, width):
    text = as_text(comparison, width=width, encoding="utf-8")
    assert max(map(len, text.splitlines())) <= width
    for figure in FIGURES:
        rows = [line for line in text.splitlines() if line.startswith(figure.name + " ")]
        assert sum(len(row.removeprefix(figure.name).split()) for row in rows) == len(NAMES)


@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "latin-1", "nonsense"])
def test_what_a_stream_cannot_show_is_ascii(comparison, encoding):
    text = as_text(comparison, width=80, encoding=encoding)
    assert text.isascii()
    assert "-----" in text
    assert "\u2500" in as_text(comparison, width=80, encoding="utf-8")


def test_first_comes_what_it_can_show_then_the_verdict_then_the_figures(comparison):
    paragraphs = as_text(comparison, width=100, encoding="ascii").split("\n\n")
    assert paragraphs[0].startswith("Clients of eater")
    assert "cannot show" in paragraphs[0].partition(". ")[0].replace("\n", " ")
    assert paragraphs[1].startswith("Not enough rounds to tell a difference from chance: 2, and it")
    assert paragraphs[2].startswith("eater on 40 pages of input")
    assert "ops/s" in paragraphs[3]


def test_a_ramp_has_a_row_for_each_rate(comparison):
    for rounds in comparison.rounds.values():
        for measured in rounds:
            measured.steps = [Step(share, due=share * 9000, seconds=1.0) for share in (0.5, 2.0)]
    text = as_text(comparison, width=60, encoding="ascii")
    assert max(map(len, text.splitlines())) <= 60
    for rate in ("at 4,500/s", "at 18,000/s"):
        rows = [line for line in text.splitlines() if line.startswith(rate)]
        assert sum(row.count("OVERLOADED") for row in rows) == len(NAMES)


def test_what_was_not_finished_is_marked(comparison):
    for measured in comparison.rounds["padata"]:
        measured.finished = False
    assert "(partial)" in as_text(comparison, width=100, encoding="ascii")


def test_json_says_what_was_run_and_all_that_came_of_it(comparison):
    printed = json.loads(as_json(comparison, interrupted=False))
    assert (printed["seed"], printed["budget"], printed["workload"]) == (5, 8 << 20, "eater")
    assert printed["input"]["pages"] == 40
    assert [(each["topology"], each["against"]) for each in printed["verdict"]][:2] == [
        ("kcompressd", "kswapd_only"),
        ("padata", "kswapd_only"),
    ]
    result = printed["results"][1]
    assert (result["ops_per_s"], result["refaults_per_s"]) == (3000.5, 10.0)
    assert result["psi"] == {"some": 0.0, "full": 0.0}
    assert [one["ops/s"] for one in result["rounds"]] == [3000.0, 3001.0]
    assert set(result["rounds"][0]) == {figure.name for figure in FIGURES}
