"""What may be in flight lies between min and low, whatever a topology says."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reclaimactors import open_memory
from reclaimactors.mm.watermark import Watermarks
from reclaimactors.topology import explain, resolve
from reclaimactors.topology.fit import fit
from reclaimactors.units import MIB

PAGE = 4096


@given(
    pages=st.integers(16, 1 << 20),
    compress=st.fixed_dictionaries(
        {},
        optional={
            "fifo": st.integers(1, 1 << 16),
            "batch": st.integers(1, 4096),
            "in_flight": st.integers(1, 64),
            "workers": st.integers(1, 256),
        },
    ),
    watermarks=st.sampled_from(
        [{}, {"min": "1%"}, {"low": "3%"}, {"high": "50%"}, {"low": "30%", "high": "40%"}]
    ),
)
def test_no_more_may_be_in_flight_than_lies_between_min_and_low(pages, compress, watermarks):
    budget = pages * PAGE
    topology = resolve("padata", budget=budget, compress=compress, watermarks=watermarks)
    marks, pipeline = fit(topology)
    assert 0 < marks.min < marks.low < marks.high < budget
    assert pipeline.max_bytes <= min(marks.low - marks.min, budget // 8)
    fitted = pipeline.fifo_pages + pipeline.batch_pages * pipeline.in_flight
    assert fitted <= max(3, pipeline.max_bytes // PAGE)
    assert pipeline.fifo_pages <= min(pipeline.most_fifo_pages, topology.compress.fifo)
    changed, longest = fit(topology, fifo=pipeline.most_fifo_pages)
    assert longest.fifo_pages == pipeline.most_fifo_pages
    assert longest.max_bytes <= min(changed.low - changed.min, budget // 8)
    given_ones = topology.watermarks.resolve(budget)
    assert marks.min == given_ones[0]
    if "low" in watermarks or "high" in watermarks or topology.compress.fifo == 256:
        assert marks == Watermarks(*given_ones)


def test_low_goes_up_for_a_fifo_that_was_asked_for_and_for_nothing_else():
    default, _ = fit(resolve("kcompressd", budget=64 * MIB))
    assert default == Watermarks(*resolve("kcompressd").watermarks.resolve(64 * MIB))
    long, pipeline = fit(resolve("kcompressd", budget=64 * MIB, compress={"fifo": 1000}))
    assert pipeline.fifo_pages == 1000
    assert long.low - long.min == pipeline.max_bytes == (1000 + 2 * 128) * PAGE
    assert long.high - long.low == default.high - default.low
    short, _ = fit(resolve("kcompressd", budget=16 * MIB, compress={"fifo": 64}))
    assert short == Watermarks(*resolve("kcompressd").watermarks.resolve(16 * MIB))


def test_every_worker_has_a_batch_where_the_fifo_must_shrink():
    _, pipeline = fit(resolve("padata", budget=16 * MIB, compress={"workers": 4}))
    assert pipeline.in_flight == 4
    assert pipeline.fifo_pages >= pipeline.max_bytes // PAGE // 2


@pytest.mark.parametrize(("low", "warned"), [("2.5%", True), ("6%", False)])
def test_check_says_that_watermarks_leave_too_little_between_them(low, warned):
    topology = resolve("kswapd_only", budget=64 * MIB, watermarks={"low": low, "high": "12%"})
    says = [line for line in explain(topology) if line.startswith("watermarks: ")]
    assert [line.split(" lies")[0] for line in says] == ["watermarks: only 327.7KiB"] * warned


async def test_a_group_has_no_more_in_flight_than_lies_between_its_own():
    async with open_memory("kcompressd", budget="64MiB", swap=[]) as memory:
        group = memory.group("a", max="16MiB")
        background = memory._machine.backgrounds[group._group.index]
        gap = 16 * MIB * 4 // 100
        assert background.kswapd.max_in_flight == pytest.approx(gap, abs=PAGE)
        await group.set_limits(max="8MiB")
        assert background.kswapd.max_in_flight == pytest.approx(gap // 2, abs=PAGE)
        await group.set_limits(max=None)
        assert background.kswapd.max_in_flight == memory._machine.pipeline.max_bytes // 2
