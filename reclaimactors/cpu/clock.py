"""The clocks. No other room of the package reads one, so that time can be modelled.

What is to run in modelled time calls ``clock.perf_counter()``, by the module: a simulation puts the
clock of its machine here for as long as it runs (`modelled`), and nobody else pays for that.

Attributes:
    perf_counter: seconds that pass, whatever the event loop does; any thread may read it.
    process_time: seconds of CPU of this process.
    thread_time: seconds of CPU of the calling thread.
"""

from __future__ import annotations

import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

__all__ = ["modelled", "perf_counter", "process_time", "stall_clock", "thread_time"]

perf_counter: Callable[[], float] = time.perf_counter  # noqa: TID251 - the one place
process_time: Callable[[], float] = time.process_time  # noqa: TID251 - the same
thread_time: Callable[[], float] = time.thread_time  # noqa: TID251 - the same


@contextmanager
def modelled(now: Callable[[], float]) -> Generator[None]:
    """Have every clock of this process say what `now` does, within the block.

    Args:
        now: seconds of a modelled machine, in which all work is the work of its CPUs.
    """
    names = ("perf_counter", "process_time", "thread_time")
    real = {name: globals()[name] for name in names}
    globals().update(dict.fromkeys(names, now))
    try:
        yield
    finally:
        globals().update(real)


def stall_clock(loop: Any) -> Callable[[], float]:
    """Return the clock by which stalls are measured: seconds that pass, or a virtual loop's own.

    Args:
        loop: asyncio's loop; None on trio.
    """
    clock: Callable[[], float] = loop.time if getattr(loop, "virtual", False) else perf_counter
    return clock
