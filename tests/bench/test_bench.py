"""The benchmarks run, and compute what they say; nothing here judges a time.

The figures come from the scripts themselves: ``python tests/bench/gc_pause.py`` and
``python tests/bench/overhead.py``.
"""

from __future__ import annotations

import importlib.util
import subprocess
import sys
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
