"""A virtual clock: an asyncio loop in which waiting for the time to pass takes no time.

When every task waits for a deadline, the clock jumps to it: ``await anyio.sleep(3600)`` returns at
once, exactly 3600 s later. While a worker thread of anyio is busy, time passes as it really does,
so that a deadline of 5 s cannot expire during a job of 50 ms.

Not covered: worker processes and other threads, which the loop cannot see; test those on a real
loop. Beware of `anyio.wait_all_tasks_blocked`, which polls by sleeping 0.1 s while tasks still
run, and so may move this clock. For pytest-asyncio, in a conftest.py::

    def pytest_asyncio_loop_factories(config, item):
        return {"asyncio": asyncio.new_event_loop, "virtual": VirtualClockLoop}

and ``@pytest.mark.asyncio(loop_factories=["virtual"])`` on a test.
"""

from __future__ import annotations

import asyncio  # noqa: TID251 - a clock is part of one kind of loop; anyio has none to replace
import selectors
import threading
import time

__all__ = ["VirtualClockLoop"]

_POLL_S = 0.001


class VirtualClockLoop(asyncio.SelectorEventLoop):
    """An event loop whose `time()` starts at 0 and jumps when all is idle."""

    virtual = True  #: a memory's pressure is measured by this clock, too

    def __init__(self) -> None:
        self._clock = _VirtualClock()
        super().__init__(self._clock)

    def time(self) -> float:
        """Return the virtual seconds since this loop was made."""
        return self._clock.now


class _VirtualClock(selectors.DefaultSelector):
    """The selector in which the loop would sleep: it jumps instead."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        busy = _threads_busy()  # asked first: what ends after this has its report in the select
        ready = super().select(0)
        if ready or timeout == 0:
            return ready
        if busy or timeout is None:  # a thread is still busy for a moment after its report: poll
            start = time.monotonic()  # noqa: TID251 - a virtual clock
            ready = super().select(min(timeout, _POLL_S) if timeout else None)
            self.now += time.monotonic() - start  # noqa: TID251 - the same
        else:
            self.now += timeout
        return ready


def _threads_busy() -> bool:
    """Return whether a worker thread of anyio has a job, of whichever loop it is."""
    queues = [
        getattr(thread, "queue", None)
        for thread in threading.enumerate()
        if thread.name == "AnyIO worker thread"
    ]
    return any(queue is not None and queue.unfinished_tasks for queue in queues)
