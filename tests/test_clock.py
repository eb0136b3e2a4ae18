"""The virtual clock: it jumps when all is idle, and only then."""

import threading
import time

import anyio
import pytest

from reclaimactors.testing import ThreadGate

pytestmark = pytest.mark.asyncio(loop_factories=["virtual"])


async def test_an_hour_passes_at_once():
    real = time.monotonic()
    await anyio.sleep(3600)
    assert anyio.current_time() == pytest.approx(3600)
    assert time.monotonic() - real < 5


async def test_sleepers_wake_in_the_order_of_their_deadlines():
    woken = []

    async def sleep(seconds):
        await anyio.sleep(seconds)
        woken.append((seconds, round(anyio.current_time(), 6)))

    async with anyio.create_task_group() as tasks:
        for seconds in (30, 0.001, 7, 86400 * 3):
            tasks.start_soon(sleep, seconds)
    assert woken == [(0.001, 0.001), (7, 7), (30, 30), (259200, 259200)]


async def test_timeout_expires_on_the_dot():
    with anyio.move_on_after(5) as scope:
        await anyio.sleep_forever()
    assert scope.cancelled_caught
    assert anyio.current_time() == pytest.approx(5)


async def test_clock_stands_while_tasks_run():
    for _ in range(100):
        await anyio.lowlevel.checkpoint()
    assert anyio.current_time() == 0


async def test_does_not_run_ahead_of_a_busy_thread():
    with anyio.fail_after(5):
        await anyio.to_thread.run_sync(time.sleep, 0.05)
    assert 0 < anyio.current_time() < 1


async def test_does_not_run_ahead_of_an_abandoned_thread():
    go = threading.Event()
    with anyio.move_on_after(0.02):
        await anyio.to_thread.run_sync(go.wait, 10, abandon_on_cancel=True)
    with anyio.move_on_after(0.02) as scope:
        await anyio.sleep(5)
    assert scope.cancelled_caught
    assert anyio.current_time() < 1
    go.set()


async def test_jumps_again_after_threads_are_done():
    await anyio.to_thread.run_sync(int)
    await anyio.sleep(1000)
    assert 1000 <= anyio.current_time() < 1001


async def test_thread_gate_is_real_even_here():
    gate = ThreadGate()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(anyio.to_thread.run_sync, gate.wait)
        with anyio.fail_after(5):
            await gate.wait_entered()
        gate.open()
