"""The CPUs of a modelled machine: who runs where, for how long, and what that costs.

Threads have jobs, one after the other. A thread that has one runs on the fastest idle CPU that it
may run on, or waits. Where more want to run than there are CPUs, each gets a slice at a time, the
one that had least of its share first, as in the kernel's CFS; a thread that wakes up after a rest
goes before one that has had more. Moving a CPU from one thread to another costs `switch_s`. A CPU
that has nothing to do takes over what runs on a slower one.

Time passes by `advance` and `run` only. Seconds of work are those of a CPU of capacity 1.
"""

from __future__ import annotations

import math
from collections import deque
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

__all__ = ["Cpu", "Cpus", "Thread"]

_NEXT_TO_NOTHING = 1e-12  # seconds of work that are what is left of none, rounded


class Thread:
    """Somebody who works: an actor, a worker, a caller.

    Args:
        name: of its own.
        allowed: indexes of the CPUs that it may run on.
        weight: its share beside others; 1 for most.
    """

    __slots__ = ("allowed", "cpu", "jobs", "name", "ran_s", "speed", "weight", "work_s")

    def __init__(self, name: str, allowed: Sequence[int], weight: float = 1.0) -> None:
        self.name = name
        self.allowed = tuple(allowed)
        self.weight = weight
        self.ran_s = 0.0  #: seconds that it ran, over its weight: the least is next
        self.work_s = 0.0  #: seconds that it ran
        self.speed = 1.0  #: of the CPU that it ran on last
        self.cpu: Cpu | None = None  #: that it runs on now
        self.jobs: deque[tuple[float, Callable[[], object]]] = deque()


class Cpu:
    """One CPU.

    Args:
        index: of its own.
        capacity: work that it does in a second.
        watts: that it takes while it is busy.
    """

    __slots__ = (
        "busy_s", "capacity", "ends", "index", "last", "left_s", "since", "slice_ends", "switches",
        "thread", "watts",
    )  # fmt: skip

    def __init__(self, index: int, capacity: float, watts: float) -> None:
        self.index = index
        self.capacity = capacity
        self.watts = watts
        self.thread: Thread | None = None  #: that runs
        self.last: Thread | None = None  #: that ran last
        self.left_s = 0.0  #: work of its job that is left, as of `since`
        self.since = 0.0
        self.ends = math.inf  #: when its job is done, or its slice is over
        self.slice_ends = math.inf
        self.busy_s = 0.0
        self.switches = 0


class Cpus:
    """All CPUs, and the clock.

    Args:
        cpus: what there is.
        slice_s: for how long a thread runs while others wait.
        switch_s: that it takes to move a CPU to another thread.
    """

    def __init__(self, cpus: Iterable[Cpu], *, slice_s: float, switch_s: float) -> None:
        self.cpus = list(cpus)
        self.now = 0.0
        self._slice_s = slice_s
        self._switch_s = switch_s
        self._waiting: list[Thread] = []
        self._fastest = sorted(self.cpus, key=lambda cpu: (-cpu.capacity, cpu.index))
        self._least_s = 0.0  # what a thread has had at least that has always wanted to run

    # -- what others ask ---------------------------------------------------------------------------

    def submit(self, thread: Thread, work_s: float, done: Callable[[], object]) -> None:
        """Give a thread a job.

        Args:
            thread: who does it, after those that it has.
            work_s: seconds of work.
            done: called once it is done, in the middle of `advance` or `run`.
        """
        thread.jobs.append((work_s, done))
        if len(thread.jobs) == 1:
            self._wake(thread)

    def advance(self, until: float) -> bool:
        """Let time pass until a job is done, or until `until`; return whether one was done."""
        while True:
            cpu = min(self.cpus, key=_ends)
            if cpu.ends > until or cpu.ends == math.inf:
                if until < math.inf:
                    self.now = max(self.now, until)
                return False
            self.now = max(self.now, cpu.ends)
            if self._event(cpu):
                return True

    def run(self, thread: Thread, work_s: float) -> None:
        """Have a thread do a job, and let time pass until it is done."""
        cpu = thread.cpu or self._idle(thread)
        if cpu is not None and not self._waiting and not thread.jobs:
            ends = self.now + work_s / cpu.capacity
            if cpu.last is thread and ends <= min([other.ends for other in self.cpus]):
                self._worked(cpu, thread, ends - self.now)  # nobody else does anything meanwhile
                self.now = ends
                return
        done: list[bool] = []
        self.submit(thread, work_s, lambda: done.append(True))
        while not done:
            self.advance(math.inf)

    # -- who runs ----------------------------------------------------------------------------------

    def _wake(self, thread: Thread) -> None:
        """A thread has a job: it runs now, or waits."""
        # One that rested gets no more than a slice ahead of those that did not.
        thread.ran_s = max(thread.ran_s, self._least_s - self._slice_s)
        cpu = self._idle(thread) or self._behind(thread)
        if cpu is None:
            self._wait(thread)
            return
        if cpu.thread is not None:
            before = self._stop(cpu)
            self._start(cpu, thread)
            self._wait(before)
        else:
            self._start(cpu, thread)

    def _idle(self, thread: Thread) -> Cpu | None:
        """Return the fastest idle CPU that a thread may run on, its last one if that is."""
        best: Cpu | None = None
        for cpu in self._fastest:
            if cpu.thread is None and cpu.index in thread.allowed:
                if best is None:
                    best = cpu
                if cpu.capacity < best.capacity:
                    break
                if cpu.last is thread:
                    return cpu
        return best

    def _behind(self, thread: Thread) -> Cpu | None:
        """Return a CPU whose thread has had so much more that this one goes first."""
        most, found = thread.ran_s + self._slice_s / 4, None
        for cpu in self.cpus:
            if cpu.thread is not None and cpu.index in thread.allowed:
                had = cpu.thread.ran_s + (self.now - cpu.since) / cpu.thread.weight
                if had > most:
                    most, found = had, cpu
        return found

    def _wait(self, thread: Thread) -> None:
        self._waiting.append(thread)
        for cpu in self.cpus:  # who runs where it might run has a slice from now on
            if cpu.thread is not None and cpu.index in thread.allowed:
                cpu.slice_ends = min(cpu.slice_ends, self.now + self._slice_s)
                self._plan(cpu)

    def _start(self, cpu: Cpu, thread: Thread) -> None:
        cpu.thread, thread.cpu = thread, cpu
        thread.speed = cpu.capacity
        cpu.since = self.now
        cpu.left_s = thread.jobs[0][0]
        if cpu.last is not thread:
            cpu.switches += 1
            cpu.left_s += self._switch_s * cpu.capacity
            cpu.last = thread
        wanted = any(cpu.index in other.allowed for other in self._waiting)
        cpu.slice_ends = self.now + self._slice_s if wanted else math.inf
        self._plan(cpu)

    def _plan(self, cpu: Cpu) -> None:
        cpu.ends = min(cpu.slice_ends, cpu.since + cpu.left_s / cpu.capacity)

    def _stop(self, cpu: Cpu) -> Thread:
        """Take a CPU from its thread, which has this much left of its job."""
        thread = self._account(cpu)
        thread.jobs[0] = (max(0.0, cpu.left_s), thread.jobs[0][1])
        cpu.thread, thread.cpu = None, None
        cpu.ends = cpu.slice_ends = math.inf
        return thread

    def _account(self, cpu: Cpu) -> Thread:
        thread = cpu.thread
        assert thread is not None
        ran = self.now - cpu.since
        cpu.left_s -= ran * cpu.capacity
        cpu.since = self.now
        self._worked(cpu, thread, ran)
        return thread

    def _worked(self, cpu: Cpu, thread: Thread, seconds: float) -> None:
        cpu.busy_s += seconds
        thread.work_s += seconds
        thread.ran_s += seconds / thread.weight
        self._least_s = max(self._least_s, min([thread.ran_s, *map(_ran, self._waiting)]))

    def _event(self, cpu: Cpu) -> bool:
        """A job is done, or a slice is over; return whether a job is done."""
        thread = self._account(cpu)
        if cpu.left_s > _NEXT_TO_NOTHING:
            self._stop(cpu)
            self._waiting.append(thread)
            self._next(cpu)
            return False
        _, done = thread.jobs.popleft()
        cpu.thread = thread.cpu = None
        cpu.ends = cpu.slice_ends = math.inf
        if thread.jobs:
            self._waiting.append(thread)
        self._next(cpu)
        done()
        if cpu.thread is None:
            self._pull(cpu)
        return True

    def _next(self, cpu: Cpu) -> None:
        """A CPU is free: whoever waits and had least runs."""
        fitting = [thread for thread in self._waiting if cpu.index in thread.allowed]
        if fitting:
            thread = min(fitting, key=_ran)
            self._waiting.remove(thread)
            self._start(cpu, thread)

    def _pull(self, cpu: Cpu) -> None:
        """A CPU is idle and nobody waits: it takes over what runs on a slower one."""
        for slower in reversed(self._fastest):
            if slower.capacity >= cpu.capacity:
                return
            if slower.thread is not None and cpu.index in slower.thread.allowed:
                self._start(cpu, self._stop(slower))
                self._next(slower)
                return


def _ends(cpu: Cpu) -> float:
    return cpu.ends


def _ran(thread: Thread) -> float:
    return thread.ran_s
