"""Measuring one round of a run: waits, faults, the loop's lag, CPU time and RSS.

Everything is bounded in size however long the run: samples go into histograms whose buckets are
2 % wide. Counters come from `memory.vmstat`; what a round amounts to is in `run.py`.
"""

from __future__ import annotations

import contextlib
import functools
import os
import resource
import sys
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import anyio
import attrs

from reclaimactors.cpu import clock
from reclaimactors.lab.histogram import Histogram
from reclaimactors.lab.ramp import Step

if TYPE_CHECKING:
    from collections.abc import Generator

    from reclaimactors.lab.timeline import Timeline
    from reclaimactors.memory import Memory

__all__ = ["Measurement", "cpu_times", "rss_bytes"]

TICK_S = 0.005
_SUMS = (
    "seconds",
    "puts",
    "gets",
    "psi_some_s",
    "psi_full_s",
    "verified",
    "cpu_s",
    "workers_cpu_s",
    "bare_pages",
    "bare_bytes",
    "bare_s",
)
_GAUGES = ("stored_pages", "pool_total_size", "nr_writeback")  # what is now, not how often


@attrs.define(eq=False)
class Measurement:
    """What one round measured, or, merged, what several did. Times are in seconds."""

    seconds: float = 0.0
    puts: int = 0
    gets: int = 0
    psi_some_s: float = 0.0
    psi_full_s: float = 0.0
    verified: int = 0
    vmstat: Counter[str] = attrs.field(factory=Counter[str], repr=False)
    stalls: Histogram = attrs.field(factory=Histogram)
    faults: Histogram = attrs.field(factory=Histogram)
    late: Histogram = attrs.field(factory=Histogram)
    steps: list[Step] = attrs.field(factory=list[Step])  #: of a ramp
    lag: Histogram = attrs.field(factory=Histogram)
    cpu_s: float = 0.0
    workers_cpu_s: float = 0.0
    rss_start: int = 0
    rss_peak: int = 0
    bare_pages: int = 0
    bare_bytes: int = 0
    bare_s: float = 0.0
    all_in_ram: bool = False  #: what was swapped is blobs in this process
    kswapd_in_loop: bool = False  #: kswapd compresses, and in the event loop
    finished: bool = False  #: it came to its end, verified; merged: one of them did
    timeline: Timeline | None = None  #: where a report is wanted; of one round, never merged

    @contextlib.contextmanager
    def measuring(self, memory: Memory) -> Generator[None]:
        """Measure the body; what it did until then counts however it ends."""
        vmstat = memory.vmstat
        before, (cpu_s, workers_cpu_s) = dict(vmstat), cpu_times()
        some_s, full_s = _psi_s(memory)
        if self.timeline is not None:
            self.timeline.begin(memory)
        started = clock.perf_counter()
        try:
            yield
        finally:
            self.seconds += clock.perf_counter() - started
            if self.timeline is not None:
                self.timeline.end()
            some_end_s, full_end_s = _psi_s(memory)
            self.psi_some_s += some_end_s - some_s
            self.psi_full_s += full_end_s - full_s
            cpu_end_s, workers_end_s = cpu_times()
            self.cpu_s += cpu_end_s - cpu_s
            self.workers_cpu_s += workers_end_s - workers_cpu_s
            self.vmstat.update({name: now - before[name] for name, now in vmstat.items()})
            self.stalls.add_zeros(self.puts - self.stalls.count)  # puts that did not wait
            self.rss_peak = max(self.rss_peak, rss_bytes())

    async def tick(self, memory: Memory) -> None:
        """Sample the loop's lag and RSS, and for a timeline the memory, until cancelled."""
        while True:
            due = clock.perf_counter() + TICK_S
            await anyio.sleep(TICK_S)
            self.lag.add(clock.perf_counter() - due)
            self.rss_peak = max(self.rss_peak, rss_bytes())
            if self.timeline is not None:
                self.timeline.look(memory)

    def merge(self, other: Measurement) -> None:
        """Add another round: sums, and of RSS the round that grew most."""
        if other.rss_peak - other.rss_start >= self.rss_peak - self.rss_start:
            self.rss_start, self.rss_peak = other.rss_start, other.rss_peak
        for name in _SUMS:
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.all_in_ram = other.all_in_ram
        self.kswapd_in_loop = other.kswapd_in_loop
        self.finished |= other.finished
        self.vmstat.update(other.vmstat)
        self.vmstat.update({name: other.vmstat[name] - self.vmstat[name] for name in _GAUGES})
        self.stalls.merge(other.stalls)
        self.faults.merge(other.faults)
        self.late.merge(other.late)
        for step in other.steps:
            mine = next((mine for mine in self.steps if mine.share == step.share), None)
            if mine is None:
                self.steps.append(mine := Step(step.share))
            mine.merge(step)
        self.lag.merge(other.lag)

    @property
    def pgsteal_anon_per_s(self) -> float:
        """Anonymous pages stolen per second."""
        return self.vmstat["pgsteal_anon"] / self.seconds if self.seconds else 0.0


def _psi_s(memory: Memory) -> tuple[float, float]:
    """Return seconds of PSI's some and full so far."""
    pressure = memory.pressure()
    return pressure.some.total / 1e6, pressure.full.total / 1e6


def cpu_times() -> tuple[float, float]:
    """Return CPU seconds so far of this process and its workers, and of the workers alone.

    Workers are all threads but the calling one, and child processes; of those that still run
    only Linux tells, elsewhere they count once they have ended.
    """
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    children_s = children.ru_utime + children.ru_stime + _running_children_s()
    process_s = clock.process_time()
    return process_s + children_s, process_s - clock.thread_time() + children_s


def _running_children_s() -> float:
    """Return CPU seconds of the child processes that have not been waited for; 0.0 if unknown."""
    ticks = 0
    for listed in Path("/proc/self/task").glob("*/children"):
        with contextlib.suppress(OSError):
            for pid in listed.read_text().split():
                fields = Path("/proc", pid, "stat").read_text().rpartition(")")[2].split()
                ticks += int(fields[11]) + int(fields[12])  # utime, stime
    return ticks / os.sysconf("SC_CLK_TCK")


@functools.cache
def _statm() -> int:
    """Return a descriptor that stays open: to open it each time would hold up the loop measured."""
    return os.open("/proc/self/statm", os.O_RDONLY | os.O_CLOEXEC)


def rss_bytes() -> int:
    """Return this process's resident bytes less shared ones; without /proc, its peak so far."""
    try:
        resident, shared = os.pread(_statm(), 200, 0).split()[1:3]
    except OSError:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024
    return (int(resident) - int(shared)) * resource.getpagesize()
