"""How long work on end may take: measured in a clock that the test moves."""

from __future__ import annotations

import anyio
import pytest

from reclaimactors.offload import breath
from reclaimactors.offload.breath import BREATH_S, FAIR_S, MOST, Breath, share


@pytest.fixture
def clock(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(breath, "perf_counter", lambda: now[0])
    return now


@pytest.mark.parametrize(
    ("away", "times"), [(0.0, 1.0), (FAIR_S, 1.0), (2 * FAIR_S, 2.0), (99.0, MOST)]
)
def test_more_work_follows_a_long_turn_of_others(away, times):
    assert share(away) == pytest.approx(times)


async def test_it_gives_way_only_when_its_time_is_up(clock):
    turns = 0

    async def other():
        nonlocal turns
        turns += 1

    mine = Breath()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(other)
        await mine.take()
        assert (mine.due, turns) == (False, 0)
        clock[0] += 1.1 * BREATH_S
        assert mine.due
        await mine.take()
        assert (mine.due, turns) == (False, 1)


async def test_its_next_time_grows_with_the_turn_of_the_others(clock):
    async def busy():
        clock[0] += 2 * FAIR_S

    mine = Breath()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(busy)
        clock[0] += 1.1 * BREATH_S
        await mine.take()
    clock[0] += 1.9 * BREATH_S
    assert not mine.due
    clock[0] += 0.2 * BREATH_S
    assert mine.due
    mine.begin()
    clock[0] += 1.1 * BREATH_S
    assert mine.due
