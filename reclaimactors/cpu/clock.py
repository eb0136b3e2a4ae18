"""The clocks. No other room of the package reads one, so that time can be modelled.

Attributes:
    perf_counter: seconds that pass, whatever the event loop does; any thread may read it.
    process_time: seconds of CPU of this process.
    thread_time: seconds of CPU of the calling thread.
"""

from __future__ import annotations

from time import perf_counter, process_time, thread_time  # noqa: TID251 - the one place

__all__ = ["perf_counter", "process_time", "thread_time"]
