"""The benchmarks run, and compute what they say; nothing here judges a time.

The figures come from the scripts themselves: ``python tests/bench/gc_pause.py`` and
``python tests/bench/overhead.py``.
"""

from __future__ import annotations

import functools
import importlib.util
import re
import runpy
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest

HERE = Path(__file__).parent


def load(name: str):
    spec = importlib.util.spec_from_file_location(name, HERE / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_gc_pause_holds_every_value_reclaimed():
    said: list[str] = []
    assert load("gc_pause").main(2000, said.append) > 0
    assert "ratio" in said[-1]


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="RssAnon is Linux's")
def test_overhead_measures_both_places():
    ended = subprocess.run(
        [sys.executable, str(HERE / "overhead.py"), "3000"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    assert "compressed:" in ended.stdout
    assert "swapped:" in ended.stdout


@pytest.mark.parametrize("name", ["kcompressd, busy loop", "padata", "kswapd_only_inline"])
async def test_rates_are_of_pages_that_really_left(name, monkeypatch):
    monkeypatch.syspath_prepend(str(HERE))
    rates = load("rates")
    monkeypatch.setattr(rates, "BUDGET", 2 << 20)
    measured = await rates.measure(name, rates.real_pages(400), 0.2)
    assert min(measured) > 0


@pytest.mark.parametrize("name", ["hits of 4 KiB", "puts of 64 KiB, padata"])
async def test_lag_is_measured_where_there_is_reclaim_and_where_there_is_none(name, monkeypatch):
    monkeypatch.syspath_prepend(str(HERE))
    bench = load("lag")
    monkeypatch.setattr(bench, "BUDGET", 8 << 20)
    measured = await bench.measure(name, bench.real_pages(400), 0.3)
    assert measured.max_ms >= measured.p99_ms > 0
    assert (measured.pages > 0) == ("puts" in name)


def test_a_service_is_measured_and_every_answer_compared(monkeypatch):
    monkeypatch.syspath_prepend(str(HERE))
    bench = load("service")
    monkeypatch.setattr(bench, "BUDGET", 256 << 10)
    rows = bench.measure("dict", [], 0.2)
    assert [row["rate"] for row in rows[1:]] == [
        share * rows[0]["served/s"] for share in bench.SHARES
    ]
    assert all(row["p99 ms"] >= row["p50 ms"] > 0 for row in rows)


@pytest.mark.parametrize("name", ["kcompressd", "dict"])
async def test_requests_by_a_schedule_are_measured_and_every_value_compared(name, monkeypatch):
    monkeypatch.syspath_prepend(str(HERE))
    bench = load("open_loop")
    rows = await bench.measure(
        name, 0.7, [500.0], seconds=0.05, turns=bench.Turns(), budget=2 << 20
    )
    assert list(rows) == ["saturation", "25%", "50%", "75%", "90%", "500/s"]
    assert all(row["p99.9 ms"] >= row["p50 ms"] > 0 for row in rows.values())
    assert rows["500/s"]["served/s"] < rows["saturation"]["served/s"]


@pytest.mark.parametrize("rule", ["inline", "steal_oldest", "wait"])
async def test_each_rule_for_a_full_queue_is_measured(rule, monkeypatch):
    monkeypatch.syspath_prepend(str(HERE))
    bench = load("full_queue")
    monkeypatch.setattr(bench, "BUDGET", 2 << 20)
    measured = await bench.measure(rule, "zlib", bench.real_pages(400), 0.3)
    assert min(measured.rate, measured.put_p99_ms, measured.oldest_ms, measured.lag_p99_ms) > 0
    assert 0 <= measured.by_kswapd <= 1
    assert rule == "inline" or measured.by_kswapd < 1


async def test_a_pool_over_its_limit_is_measured_where_it_has_reached_it(monkeypatch):
    monkeypatch.syspath_prepend(str(HERE))
    bench = load("pool_limit")
    said: list[str] = []
    monkeypatch.setattr(bench, "measure", functools.partial(bench.measure, budget=2 << 20))
    rows = await bench.main(4000, said.append)
    assert len(said) == 2 + bench.ROWS == 2 + len(rows)
    assert sum(row.rejected for row in rows) > 0
    assert sum(row.written_back for row in rows) > 0
    assert all(0 < row.least <= row.most < (2 << 20) * 0.2 + bench.PAGE for row in rows)


@pytest.mark.parametrize("name", ["reclaimactors", "zict file"])
async def test_peers_are_measured_and_every_value_compared(name):
    peers = load("peers")
    measured = await peers.measure(name, 4096, 1, 0.05)
    assert set(measured) == set(peers.FIGURES)
    assert min(measured[figure] for figure in peers.FIGURES[:4]) > 0


async def test_swapoff_reads_every_value_back(monkeypatch):
    monkeypatch.syspath_prepend(str(HERE))
    measured = await load("swapoff").measure(600, budget=1 << 20, seconds=0.05)
    assert measured.slots >= 600
    assert measured.beside.count > 0


@pytest.mark.parametrize("store", ["zswap over a file", "zram", "a file alone"])
async def test_each_store_is_measured_and_what_is_read_compared(store, monkeypatch):
    monkeypatch.syspath_prepend(str(HERE))
    bench = load("stores")
    monkeypatch.setattr(bench, "BUDGET", 2 << 20)
    measured = await bench.measure(store, bench.real_pages(400), 0.3)
    assert min(measured) > 0


def test_the_policies_keep_their_order_on_a_published_trace():
    bench = load("policies")
    trace = bench.read(bench.TRACE)
    assert (len(trace), max(trace) + 1) == (95_607, 13_756)
    ratios = bench.ratios(trace)
    order = ["FIFO", "LRU", "active_inactive", "mglru", "compulsory"]
    for lower, higher in pairwise(order):
        assert all(map(float.__lt__, ratios[lower], ratios[higher])), f"{higher} over {lower}"
    for newer in ("s3fifo", "sieve"):
        assert all(map(float.__lt__, ratios["active_inactive"], ratios[newer])), newer


async def test_each_call_on_a_large_value_is_measured():
    found = await load("large_values").calls(4 << 20)
    assert len(found) == 15
    assert all(ms > 0 for ms in found.values())


async def test_reclaim_beside_a_busy_program_is_measured():
    assert await load("busy_reclaim").rate(busy=True, pages=400) > 0


async def test_a_service_that_sheds_is_measured(monkeypatch):
    monkeypatch.syspath_prepend(HERE)
    answers = await load("shed").run(sheds=True, seconds=0.1)
    assert len(answers.put_ms) + len(answers.read_ms) + answers.refused == 40


def test_refault_distance_is_worth_what_the_readme_says():
    bench = load("policies")
    ratios = bench.ratios(bench.read(bench.TRACE))
    worth = {
        name: [
            a - b for a, b in zip(ratios[name], ratios[f"{name}, refaults ignored"], strict=True)
        ]
        for name in bench.WITH_DISTANCE
    }
    assert all(0 < points < 0.01 for points in worth["mglru"])
    *smaller, largest = worth["active_inactive"]
    assert all(0 < points < 0.005 for points in smaller)
    assert -0.002 < largest < 0  # with room for 40 % of the keys it does a little harm


def test_the_script_of_all_benchmarks_knows_each_of_them():
    scripts = {path.stem for path in HERE.glob("*.py") if "test" not in path.stem}
    names = runpy.run_path(str(HERE / "__main__.py"), run_name="all of them")["NAMES"]
    assert {*names} == scripts - {"__main__", "hot_paths"}


@pytest.mark.parametrize(("name", "status"), [("policies", 0), ("polices", 2)])
def test_the_script_of_all_benchmarks_runs_what_is_named(name, status):
    ended = subprocess.run(
        [sys.executable, str(HERE), name], capture_output=True, text=True, check=False
    )
    assert ended.returncode == status, ended.stderr
    assert ("compulsory" if status == 0 else "there is no 'polices'") in ended.stdout + ended.stderr


def test_tenants_are_measured_alone_and_beside_a_hog(monkeypatch, capsys):
    tenants = load("tenants")
    monkeypatch.setattr(tenants, "HELD", 300)
    tenants.main(1, 0.1)
    said = capsys.readouterr().out
    assert "p99 beside" in said
    assert re.search(r"taken: +0\.00 \[0\.00 to 0\.00\]", said), "taken of one for another"
