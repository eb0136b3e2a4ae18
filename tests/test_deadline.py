"""Deadlines count the time in which the loop ran, and let what became ready go first."""

import asyncio
import threading

import anyio
import pytest
from anyio.lowlevel import checkpoint

from reclaimactors.deadline import SLICE_S, Deadlines, happens, within

virtual = pytest.mark.asyncio(loop_factories=["virtual"])


def stop(seconds):
    """As if the process had been stopped for so long at this very point."""
    asyncio.get_running_loop()._clock.now += seconds


async def stop_at(when, seconds, *then):
    """Be stopped at `when`; what happened meanwhile is delivered in some turns of the loop."""
    await anyio.sleep(when)
    stop(seconds)
    for _ in range(3):
        await checkpoint()
    for call in then:
        call()


@pytest.fixture(params=["within", "happens", "deadlines"])
def waits(request):
    """Wait for an event for so many seconds in one of the three ways; return whether it came."""

    async def in_a_call(event, seconds):
        try:
            return await within(seconds, event.wait) is None
        except TimeoutError:
            return False

    async def under_one_timer(event, seconds):
        deadlines = Deadlines(seconds)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(deadlines.run)
            scope = deadlines.begin()
            with scope:
                await event.wait()
            deadlines.end(scope)
            tasks.cancel_scope.cancel()
        return event.is_set()

    ways = {"within": in_a_call, "happens": happens, "deadlines": under_one_timer}
    return ways[request.param]


@virtual
@pytest.mark.parametrize("seconds", [0.2, 1.0, 5.0, 30.0])
async def test_a_deadline_passes_on_the_dot_where_the_loop_runs(waits, seconds):
    started = anyio.current_time()
    assert not await waits(anyio.Event(), seconds)
    assert anyio.current_time() - started == pytest.approx(seconds)


@virtual
async def test_what_comes_in_time_has_come(waits):
    event = anyio.Event()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(stop_at, 0.9, 0.0, event.set)
        assert await waits(event, 1.0)
    assert anyio.current_time() == pytest.approx(0.9)


@virtual
@pytest.mark.parametrize("when", [0.1, 0.5, 0.99])
@pytest.mark.parametrize("stopped", [0.5, 5.0, 3600.0])
async def test_an_answer_that_came_while_the_process_was_stopped_is_in_time(waits, when, stopped):
    event = anyio.Event()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(stop_at, when, stopped, event.set)
        assert await waits(event, 1.0)


@virtual
@pytest.mark.parametrize("stopped", [0.5, 5.0, 3600.0])
async def test_after_a_stop_the_rest_of_a_deadline_is_left(waits, stopped):
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(stop_at, 0.5, stopped)
        assert not await waits(anyio.Event(), 1.0)
    ran = anyio.current_time() - stopped
    assert 1.0 - 1.0 / 8 <= ran <= 1.0 + 1.0 / 8, "it counts at most the slice that it fell in"


@virtual
async def test_however_often_the_process_is_stopped_answers_are_in_time(waits):
    async def soon(event):
        for _ in range(6):
            await checkpoint()
        event.set()

    async def stop_again_and_again():
        while True:
            await anyio.sleep(0.03)
            stop(5.0)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(stop_again_and_again)
        for _ in range(100):
            event = anyio.Event()
            tasks.start_soon(soon, event)
            assert await waits(event, 0.2)
            await anyio.sleep(0.01)
        tasks.cancel_scope.cancel()


@virtual
async def test_a_loop_that_is_always_late_has_deadlines_all_the_same(waits):
    async def hold():
        while True:
            stop(0.3)
            await checkpoint()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(hold)
        assert not await waits(anyio.Event(), 0.2)
        tasks.cancel_scope.cancel()


@virtual
async def test_many_calls_under_one_timer_end_each_in_its_time():
    deadlines = Deadlines(2.0)
    ended = []

    async def call(begins):
        await anyio.sleep(begins)
        scope = deadlines.begin()
        with scope:
            await anyio.sleep_forever()
        deadlines.end(scope)
        ended.append(anyio.current_time() - begins)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(deadlines.run)
        async with anyio.create_task_group() as calls:
            for begins in (0.0, 0.1, 0.7, 1.5, 10.0):
                calls.start_soon(call, begins)
        tasks.cancel_scope.cancel()
    assert ended == pytest.approx([2.0] * 5)


@virtual
async def test_a_call_that_goes_on_past_its_deadline_is_overdue_and_disturbs_no_other():
    deadlines = Deadlines(2.0)
    gate = anyio.Event()

    async def stubborn():
        scope = deadlines.begin()
        with scope, anyio.CancelScope(shield=True):
            await gate.wait()
        deadlines.end(scope)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(deadlines.run)
        tasks.start_soon(stubborn)
        await anyio.sleep(1.0)
        assert not deadlines.overdue
        scope = deadlines.begin()
        with scope:
            await anyio.sleep_forever()
        deadlines.end(scope)
        assert anyio.current_time() == pytest.approx(3.0)
        assert deadlines.overdue
        gate.set()
        await checkpoint()
        await checkpoint()
        assert not deadlines.overdue
        tasks.cancel_scope.cancel()


@virtual
async def test_no_timer_runs_while_there_is_no_call():
    deadlines = Deadlines(5.0)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(deadlines.run)
        scope = deadlines.begin()
        deadlines.end(scope)
        await anyio.sleep(SLICE_S)
        assert deadlines._begun is not None
        tasks.cancel_scope.cancel()


async def test_within_gives_what_the_call_gives():
    async def answer():
        await checkpoint()
        return 42

    async def fails():
        raise ValueError("as told")

    assert await within(5.0, answer) == 42
    with pytest.raises(ValueError, match="as told"):
        await within(5.0, fails)


async def test_a_cancelled_within_is_cancelled_and_ends_its_call():
    ended = []

    async def call():
        try:
            await anyio.sleep_forever()
        finally:
            ended.append(True)

    with anyio.CancelScope() as scope:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(within, 5.0, call)
            await checkpoint()
            await checkpoint()
            scope.cancel()
    assert scope.cancelled_caught
    assert ended == [True]


@pytest.mark.asyncio(loop_factories=["asyncio", "uvloop"])
async def test_a_thread_that_has_answered_while_the_loop_was_held_is_in_time():
    answered = threading.Event()

    async def call():
        return await anyio.to_thread.run_sync(lambda: answered.set() or 42)

    async def hold():
        while not answered.is_set():
            await checkpoint()
        loop = asyncio.get_running_loop()
        ends = loop.time() + 0.4
        while loop.time() < ends:
            pass

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(hold)
        assert await within(0.2, call) == 42
