"""The clocks. No other module of the package reads one, so that time can be modelled.

Attributes:
    perf_counter: seconds that pass, whatever the event loop does; any thread may read it.
    process_time: seconds of CPU of this process.
    thread_time: seconds of CPU of the calling thread.
    current_time: seconds of the event loop's clock, which stands still with a virtual one.
"""

from __future__ import annotations

from time import perf_counter, process_time, thread_time  # noqa: TID251 - the one place

from anyio import current_time  # noqa: TID251 - the same

__all__ = ["current_time", "perf_counter", "process_time", "thread_time"]
