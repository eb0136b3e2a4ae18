"""Calls in other threads get the interpreter's lock, however busy the event loop is."""

import threading
import time

import anyio
import pytest
from anyio import CapacityLimiter
from anyio.lowlevel import checkpoint

from reclaimactors import threads
from reclaimactors.threads import hop, lend


@pytest.fixture
def naps(monkeypatch):
    """What the event loop slept, and when: it lets go of the lock there."""
    taken = []
    monkeypatch.setattr(threads, "sleep", taken.append)
    return taken


async def beside(task, *, busy_s, done):
    """Run a task beside one that holds the loop for so long in each turn, until `done`."""
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(task)
        with anyio.fail_after(20):
            while not done():
                ends = time.perf_counter() + busy_s
                while time.perf_counter() < ends:
                    pass
                await checkpoint()
        tasks.cancel_scope.cancel()


async def called(release):
    await hop(release.wait, 30, limiter=CapacityLimiter(1))


async def test_while_a_call_is_out_a_busy_loop_lets_go_of_the_lock(naps):
    release = threading.Event()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(called, release)
        await beside(lend, busy_s=0.001, done=lambda: len(naps) > 3)
        release.set()
    assert set(naps) == {threads.WAKE_S}


async def test_without_a_call_it_does_not(naps):
    turns = iter(range(300))
    await beside(lend, busy_s=0.0002, done=lambda: next(turns, None) is None)
    assert naps == []


async def test_an_idle_loop_does_not(naps, monkeypatch):
    """It waits in its poll, where the lock is free."""
    monkeypatch.setattr(threads, "WAKE_S", 60)  # whatever the host does meanwhile
    monkeypatch.setattr(threads, "EVERY_S", 0.0)
    release = threading.Event()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(lend)
        tasks.start_soon(called, release)
        for _ in range(50):
            await anyio.sleep(0.0001)
        release.set()
        tasks.cancel_scope.cancel()
    assert naps == []


async def test_a_call_wakes_who_lends_and_several_who_lend_sleep_as_one(naps):
    release = threading.Event()
    async with anyio.create_task_group() as tasks:
        for _ in range(3):
            tasks.start_soon(lend)
        for _ in range(5):
            await checkpoint()
        assert len(threads._out.idle) == 3
        tasks.start_soon(called, release)
        began = time.perf_counter()
        await beside(checkpoint, busy_s=0.001, done=lambda: len(naps) > 5)
        took = time.perf_counter() - began
        release.set()
        tasks.cancel_scope.cancel()
    assert len(naps) <= took / threads.EVERY_S + 1
    assert threads._out.calls == 0
    assert not threads._out.idle


async def test_a_cancelled_call_is_out_no_longer_and_an_error_is_that_of_the_call():
    release = threading.Event()
    with anyio.move_on_after(0.01):
        await called(release)
    release.set()
    assert threads._out.calls == 0
    with pytest.raises(ZeroDivisionError):
        await hop(lambda: 1 / 0, limiter=CapacityLimiter(1))
    assert threads._out.calls == 0


def test_a_loop_that_is_gone_leaves_nothing_to_the_next():
    for _ in range(2):
        anyio.run(one_life)
    assert threads._out.calls == 0
    assert not threads._out.idle


async def one_life():
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(lend)
        await checkpoint()
        assert await hop(lambda: 7, limiter=CapacityLimiter(1)) == 7
        tasks.cancel_scope.cancel()
