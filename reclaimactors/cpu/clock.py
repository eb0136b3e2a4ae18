"""The clocks. No other room of the package reads one, so that time can be modelled.

Attributes:
    perf_counter: seconds that pass, whatever the event loop does; any thread may read it.
    process_time: seconds of CPU of this process.
    thread_time: seconds of CPU of the calling thread.
"""

from __future__ import annotations

from time import perf_counter, process_time, thread_time  # noqa: TID251 - the one place
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["perf_counter", "process_time", "stall_clock", "thread_time"]


def stall_clock(loop: Any) -> Callable[[], float]:
    """Return the clock by which stalls are measured: seconds that pass, or a virtual loop's own.

    Args:
        loop: asyncio's loop; None on trio.
    """
    clock: Callable[[], float] = loop.time if getattr(loop, "virtual", False) else perf_counter
    return clock
