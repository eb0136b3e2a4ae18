"""Each row of the hot paths runs and gives right values. Figures: ``python tests/bench/table.py``.

With pytest-benchmark a row's two sides are timed too, under the loop's debug mode, so trust only
the ratio; no time is judged.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

spec = importlib.util.spec_from_file_location("hot_paths", Path(__file__).with_name("hot_paths.py"))
assert spec is not None
assert spec.loader is not None
hot_paths = importlib.util.module_from_spec(spec)
spec.loader.exec_module(hot_paths)


ROWS = ["get", "get_nowait", "put", "put_many", "get_many", "fault", "reclaim_one"]


@pytest.mark.parametrize("side", ["ours", "bare"])
@pytest.mark.parametrize(
    "name", ["get", "get_nowait", "put", "put_many", "get_many", "fault", "reclaim_one"]
)
async def test_row(request, name, side):
    if name == "put":
        pytest.importorskip("zict")
    async with getattr(hot_paths, name)(200) as row:
        if not request.config.pluginmanager.hasplugin("benchmark"):
            row.setup()
            row.ours()
            row.bare()
            return
        row.setup()
        row.ours()  # the row closes by looking at what it left
        benchmark = request.getfixturevalue("benchmark")
        benchmark.group = name
        benchmark.pedantic(getattr(row, side), setup=row.setup, rounds=5)


async def test_loop_cost_of_a_reclaimed_page():
    ours, bare = await hot_paths.loop_us_per_page(300)
    assert ours > 0
    assert bare > 0


async def test_a_fault_at_low_has_a_page_reclaimed():
    assert min(await hot_paths.fault_at_low_us(600)) > 0


async def test_a_burst_stays_within_the_budget():
    assert 0.5 < await hot_paths.burst_over_budget(1500, budget=2 << 20) <= 1


async def test_random_keys_are_timed_beside_a_dict():
    assert min(await hot_paths.random_keys_us(500, reads=1000)) > 0
