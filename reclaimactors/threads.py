"""Calls in other threads that get the interpreter's lock, however busy the event loop is.

A thread asks for the lock after 5 ms in which nobody let go of it. An event loop that is never idle
lets go of it once a turn, for microseconds in its poll, and has it again before the thread has
woken up: then the thread waits for seconds (11 in one run, beside a task of 0.5 ms a turn). So
while a call is out, and other tasks keep the loop, the loop's own thread sleeps for as long as a
thread needs to wake up, at most once a millisecond.
"""

from __future__ import annotations

import threading
from time import sleep
from typing import TYPE_CHECKING, TypeVar

import anyio
from anyio import to_thread
from anyio.lowlevel import checkpoint

from reclaimactors.cpu.clock import perf_counter

if TYPE_CHECKING:
    from collections.abc import Callable

    from anyio import CapacityLimiter

__all__ = ["hop", "lend"]

T = TypeVar("T")

WAKE_S = 0.0001  #: in which a thread wakes up and takes the lock
EVERY_S = 0.001  #: how often the loop sleeps for that, at most


class _Out(threading.local):
    """Of the event loop of this thread."""

    def __init__(self) -> None:
        self.calls = 0  #: in other threads
        self.idle: set[anyio.Event] = set()  #: of the tasks that lend, while no call is out
        self.lent_at = 0.0  #: when the loop slept last


_out = _Out()


async def hop(call: Callable[..., T], *args: object, limiter: CapacityLimiter) -> T:
    """Return ``call(*args)``, called in another thread.

    Args:
        call: on cancellation it goes on, and what it returns or raises is dropped.
        args: for the call.
        limiter: threads at most. One of our own: threads of the host that wait for us may hold all
            tokens of anyio's default.

    Raises:
        RuntimeError: if this process may not start another thread.
        Exception: what the call raises.
    """
    _out.calls += 1
    for event in _out.idle:
        event.set()
    _out.idle.clear()
    try:
        return await to_thread.run_sync(call, *args, abandon_on_cancel=True, limiter=limiter)
    finally:
        _out.calls -= 1


async def lend() -> None:
    """Let the calls that are out have the lock, for ever. One task of each memory."""
    while True:
        while not _out.calls:
            event = anyio.Event()
            _out.idle.add(event)
            try:
                await event.wait()
            finally:
                _out.idle.discard(event)
        await anyio.sleep(EVERY_S)
        began = perf_counter()
        await checkpoint()
        now = perf_counter()
        busy = now - began > WAKE_S  # else the loop waits in its poll, and the lock is free
        if busy and _out.calls and now - _out.lent_at > EVERY_S:
            _out.lent_at = now
            sleep(WAKE_S)  # noqa: ASYNC251 - it is this thread that has to let go of the lock
