"""How long work on end may take: measured in a clock that the test moves."""

from __future__ import annotations

import anyio
import anyio.lowlevel
import pytest

from reclaimactors.cpu import breath
from reclaimactors.cpu.breath import FAIR_S, LEAST, MOST, TURN_S, Away, Breath, Share


@pytest.fixture
def clock(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(breath.clock, "perf_counter", lambda: now[0])
    monkeypatch.setattr(breath._breathing, "share", 1.0)
    return now


@pytest.mark.parametrize(
    ("by_others", "times"), [(0.0, 1.0), (FAIR_S, 1.0), (2 * FAIR_S, 2.0), (99.0, MOST)]
)
def test_more_work_follows_a_long_turn_of_others(by_others, times):
    assert Away(7.0).share(7.0 + by_others) == pytest.approx(times)


@pytest.mark.parametrize(
    ("pieces", "turns"), [(1, 1.5), (2, 0.3)], ids=["yields", "waits for an answer before"]
)
async def test_the_work_of_those_who_breathe_too_is_not_that_of_others(clock, pieces, turns):
    async def actor():
        breath = Breath()
        for _ in range(pieces):
            clock[0] += turns * TURN_S
            await breath.take()

    away = Away(clock[0])
    async with anyio.create_task_group() as tasks:
        for _ in range(30):
            tasks.start_soon(actor)
    assert clock[0] - 100.0 > 10 * FAIR_S
    assert away.share(clock[0]) == 1.0


async def test_what_a_task_waited_for_is_work_of_its_own_for_a_few_turns_at_most(clock):
    mine = Breath()
    away = Away(clock[0])
    clock[0] += 1.0  # another task held the loop meanwhile
    await mine.take()
    assert away.share(clock[0]) == MOST


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
        clock[0] += 1.1 * TURN_S
        assert mine.due
        await mine.take()
        assert (mine.due, turns) == (False, 1)


async def test_its_next_time_grows_with_the_turn_of_the_others(clock):
    others = [2 * FAIR_S, 0.0]

    async def busy():
        for seconds in others:
            clock[0] += seconds
            await anyio.lowlevel.checkpoint()

    mine = Breath()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(busy)
        clock[0] += 1.1 * TURN_S
        await mine.take()
    clock[0] += 1.9 * TURN_S
    assert not mine.due
    clock[0] += 0.2 * TURN_S
    assert mine.due
    another = Breath()  # whose owner has waited for something else
    clock[0] += 1.9 * TURN_S
    assert not another.due
    clock[0] += 0.2 * TURN_S
    await another.take()
    clock[0] += 1.1 * TURN_S
    assert another.due, "the others are done"


async def test_a_turn_of_the_loop_is_shared_by_those_who_breathe(clock):
    worked: list[float] = []

    async def actor():
        breath = Breath()
        for _ in range(20):
            started = clock[0]
            while not breath.due:
                clock[0] += TURN_S / 50
            worked.append(clock[0] - started)
            await breath.take()

    async with anyio.create_task_group() as tasks:
        for _ in range(4):
            tasks.start_soon(actor)
    in_a_turn = [sum(worked[at : at + 4]) for at in range(8, 72, 4)]
    assert TURN_S <= min(in_a_turn) <= max(in_a_turn) <= 1.3 * TURN_S


async def test_one_that_is_cancelled_does_not_count_any_more(clock):
    async def actor():
        breath = Breath()
        while True:
            clock[0] += 1.1 * TURN_S
            await breath.take()

    async with anyio.create_task_group() as tasks:
        for _ in range(3):
            tasks.start_soon(actor)
        await anyio.lowlevel.checkpoint()
        tasks.cancel_scope.cancel()
    breath = Breath()
    clock[0] += 0.9 * TURN_S
    assert not breath.due
    clock[0] += 0.2 * TURN_S
    assert breath.due


async def other(clock, seconds, turns):
    """Another task, which works so long in each turn of the loop."""
    for _ in range(turns):
        clock[0] += seconds
        await anyio.lowlevel.checkpoint()


@pytest.mark.parametrize(
    ("by_others", "weight", "of_a_turn"),
    [
        (0.0, 1.0, 1.0),  # nobody else is at work: all of it
        (0.4, 0.25, 0.6),  # what others leave
        (2.0, 0.25, 0.5),  # they leave nothing: in proportion
        (1.2, 1.5, 1.8),
        (2.0, 1.5, LEAST),  # light, and so no more than that in one turn
        (2.0, 6.0, 3.0),  # heavier: more
        (2.0, 99.0, MOST),
    ],
)
async def test_reclaim_has_what_others_leave_of_a_turn_or_its_weight(
    clock, by_others, weight, of_a_turn
):
    share = Share()
    share.weight = lambda: weight
    mine = Breath(share)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(other, clock, by_others * TURN_S, 3)
        clock[0] += TURN_S
        await mine.take()
    assert share.left_s == pytest.approx(of_a_turn * TURN_S)


async def test_a_long_step_of_reclaim_is_paid_for_in_the_turns_that_follow(clock):
    share, turns = Share(), 0
    share.weight = lambda: 0.5
    mine = Breath(share)

    async def busy():
        nonlocal turns
        while True:
            turns += 1
            clock[0] += 2 * TURN_S
            await anyio.lowlevel.checkpoint()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(busy)
        clock[0] += 3.9 * TURN_S  # of which one turn was there: 2.9 are owed, and 1 comes in each
        await mine.take()
        assert turns == 3
        tasks.cancel_scope.cancel()


async def test_tasks_of_reclaim_work_one_after_the_other_in_the_order_in_which_they_asked(clock):
    share, order = Share(), []

    async def task(name):
        mine = Breath(share)
        for _ in range(3):
            clock[0] += 1.1 * TURN_S
            await mine.take()
            order.append(name)
        assert share.left_s <= TURN_S

    async with anyio.create_task_group() as tasks:
        for name in "abc":
            tasks.start_soon(task, name)
        await anyio.lowlevel.checkpoint()
        assert share.waiting == 3
    assert order == [*"abcabcabc"]
    assert share.waiting == 0


async def test_after_a_rest_a_whole_turn_is_there_at_once(clock):
    share = Share()
    mine = Breath(share)
    clock[0] += 0.9 * TURN_S
    await mine.take()
    mine.begin()
    assert share.left_s == pytest.approx(0.1 * TURN_S)
    clock[0] += 2 * TURN_S
    mine.begin()
    assert share.left_s == TURN_S
