"""What the designs can gain, by simulation on a bare machine, against what must come out."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from reclaimactors.simulation.sweep import Point, gain_of, heat_map, points, read_done

CEILINGS = (
    (Point(workers=1, on_full="wait"), 1 / 0.7),
    (Point(workers=1, on_full="inline"), 2.0),
    (Point(workers=2, on_full="wait"), 2 / 0.7),
    (Point(workers=2, on_full="inline"), 3.0),
    (Point(workers=3, on_full="inline"), 1 / 0.3),
    (Point(workers=1, capacity=1.5), 2.5),
    (Point(workers=1, capacity=3.0), 1 / 0.3),
)


@pytest.mark.parametrize(("point", "ceiling"), CEILINGS, ids=str)
def test_scan_to_compress_as_3_to_7_gains_what_its_ceiling_is(point, ceiling):
    assert gain_of(point) == pytest.approx(ceiling, rel=0.03)


def test_where_compressing_is_as_cheap_as_a_tenth_of_the_scan_a_worker_gains_next_to_nothing():
    assert gain_of(Point(share=0.1)) < 1.15


def test_a_point_that_was_done_is_found_again_and_a_line_that_was_cut_is_not(tmp_path):
    kept = tmp_path / "kept"
    row = json.dumps({"point": {"share": 0.5, "workers": 2}, "gain": 1.5})
    kept.write_text(f"{row}\n{row[: len(row) // 2]}")
    assert read_done(kept) == {Point(share=0.5, workers=2).key: 1.5}
    assert read_done(tmp_path / "none") == {}


def test_a_heat_map_has_the_longer_parameter_across_and_marks_what_the_patch_claims():
    lists = {"share": [0.5, 0.8], "workers": [1, 2, 3], "on_full": ["wait"]}
    gains = {
        point.key: gain
        for point, gain in zip(points(lists), [1.0, 1.7, 2.0, 1.25, 2.6, 3.6], strict=True)
    }
    _, head, first, second = heat_map(lists, gains)
    assert head.split() == ["1", "2", "3"]
    assert first.split() == ["0.5", "1.00", "1.70+", "2.00+"]
    assert second.split() == ["0.8", "1.25", "2.60#", "3.60@"]


def sweep(*args: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "reclaimactors", "sweep", *map(str, args)],
        check=False, capture_output=True, text=True, timeout=50,
    )  # fmt: skip


def test_a_sweep_that_is_resumed_does_not_do_again_what_was_done(tmp_path):
    kept = tmp_path / "kept"
    lists = {"share": [0.5, 0.6], "workers": [1], "on_full": ["inline"]}
    rows = [json.dumps({"point": json.loads(point.key), "gain": 9.0}) for point in points(lists)]
    kept.write_text("\n".join(rows))
    swept = ("--share", "0.5,0.6", "--workers", 1, "--on-full", "inline")
    ended = sweep(*swept, "--resume", kept, "--json")
    assert ended.returncode == 0, ended.stderr
    assert [row["gain"] for row in json.loads(ended.stdout)["rows"]] == [9.0, 9.0]


def test_a_value_that_is_not_allowed_is_said_in_one_line():
    ended = sweep("--share", "0.5,much")
    assert ended.returncode == 2
    assert ended.stderr.count("\n") == 1
    assert "--share has 'much'; allowed: between 0 and 1" in ended.stderr
