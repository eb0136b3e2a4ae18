"""What happened when in a round: looks at a memory while it works, added up in buckets.

A look reads counters that are there anyway, and of each thread and worker process the line of
/proc that says how long it ran and how long it waited for a CPU (Linux; elsewhere only the event
loop is known). It takes some 15 us, once in 5 ms, and only where a report is wanted. However long
the round, there are `NR_BUCKETS`.
"""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from contextlib import suppress
from pathlib import Path
from threading import get_native_id
from typing import TYPE_CHECKING

import attrs

from reclaimactors.cpu import clock

if TYPE_CHECKING:
    from collections.abc import Iterator

    from reclaimactors.memory import Memory

__all__ = ["LOOP", "NR_BUCKETS", "Bucket", "Timeline"]

NR_BUCKETS = 80
LOOP = "event loop"
MOMENT_S = 0.001  # of CPU: who had less, as a thread that waits, is in no row
COUNTERS = (
    "pgscan_kswapd", "pgscan_direct", "pgsteal_kswapd", "pgsteal_direct", "pgsteal_proactive",
    "kcompressd_queued", "allocstall_normal",
)  # fmt: skip
_TASKS = Path("/proc/self/task")


@attrs.define(eq=False)
class Bucket:
    """A part of a round.

    Attributes:
        seconds: between the first and the last of its looks and the one before.
        looks: how many there were; in a part of which the loop was held, none.
        least_free, most_free: bytes that nothing held, at the looks.
        early_s: for how long, at most, something compressed had waited for its turn.
        some_s, full_s: seconds of stall (PSI).
        counted: by how much each of `COUNTERS` grew.
        ran_s, waited_s: seconds of CPU, and of waiting for one, of each of the actors.
    """

    seconds: float = 0.0
    looks: int = 0
    least_free: int = 0
    most_free: int = 0
    early_s: float = 0.0
    some_s: float = 0.0
    full_s: float = 0.0
    counted: Counter[str] = attrs.field(factory=Counter[str])
    ran_s: dict[str, float] = attrs.field(factory=lambda: defaultdict[str, float](float))
    waited_s: dict[str, float] = attrs.field(factory=lambda: defaultdict[str, float](float))


@attrs.define(eq=False)
class _Task:
    """A thread or a process: its descriptor, and what it had run and waited, in nanoseconds."""

    name: str
    fd: int
    ran: int = 0
    waited: int = 0


class _Tasks:
    """The event loop's thread, and everybody else of this memory who may use a CPU."""

    def __init__(self) -> None:
        self._tasks: list[_Task] = []
        self._ran_s = 0.0

    def find(self) -> None:
        """Look who there is: threads of this process, and its children."""
        me = get_native_id()
        threads, workers = 0, 0
        self._ran_s = clock.thread_time()
        with suppress(OSError):  # no Linux, or a thread has just ended: it is not in the timeline
            for folder in sorted(_TASKS.iterdir(), key=lambda folder: int(folder.name)):
                if int(folder.name) == me:
                    self._add(LOOP, folder)
                else:
                    threads += 1
                    self._add(f"thread {threads}", folder)
                for pid in folder.joinpath("children").read_text().split():
                    workers += 1
                    self._add(f"worker {workers}", Path("/proc", pid))

    def _add(self, name: str, folder: Path) -> None:
        with suppress(OSError):  # it has just ended
            fd = os.open(folder / "schedstat", os.O_RDONLY | os.O_CLOEXEC)
            self._tasks.append(_Task(name, fd))

    def since(self) -> Iterator[tuple[str, float, float]]:
        """Yield (who, seconds on a CPU, seconds waiting for one) since the last time."""
        for task in self._tasks:
            try:
                ran, waited = map(int, os.pread(task.fd, 80, 0).split()[:2])
            except (OSError, ValueError):
                continue  # it has ended
            yield task.name, (ran - task.ran) / 1e9, (waited - task.waited) / 1e9
            task.ran, task.waited = ran, waited
        if not self._tasks:
            ran_s = clock.thread_time()
            yield LOOP, ran_s - self._ran_s, 0.0
            self._ran_s = ran_s

    def close(self) -> None:
        """Close the descriptors."""
        for task in self._tasks:
            os.close(task.fd)
        self._tasks.clear()


@attrs.define(eq=False)
class Timeline:
    """The buckets of one round.

    Args:
        seconds: how long the round is to be; what comes later goes to the last bucket.
    """

    seconds: float
    buckets: list[Bucket] = attrs.field(init=False)
    began: float = attrs.field(init=False, default=0.0)  #: seconds of the clock
    _last: float = attrs.field(init=False, default=0.0)
    _totals: Counter[str] = attrs.field(init=False, factory=Counter[str])
    _psi: tuple[int, int] = attrs.field(init=False, default=(0, 0))
    _tasks: _Tasks = attrs.field(init=False, factory=_Tasks)

    def __attrs_post_init__(self) -> None:
        self.buckets = [Bucket() for _ in range(NR_BUCKETS)]

    def begin(self, memory: Memory) -> None:
        """The round begins."""
        self._tasks.find()
        self.began = self._last = clock.perf_counter()
        self._note(memory, Bucket())

    def look(self, memory: Memory) -> None:
        """Add what has happened since the last look."""
        now = clock.perf_counter()
        number = int((now - self.began) / self.seconds * NR_BUCKETS)
        bucket = self.buckets[min(number, NR_BUCKETS - 1)]
        usage = memory.usage()
        bucket.least_free = min(bucket.least_free, usage.free) if bucket.looks else usage.free
        bucket.most_free = max(bucket.most_free, usage.free)
        bucket.early_s = max(bucket.early_s, usage.oldest_undelivered_s)
        bucket.looks += 1
        bucket.seconds += now - self._last
        self._last = now
        self._note(memory, bucket)

    def end(self) -> None:
        """The round has ended."""
        self._tasks.close()

    def _note(self, memory: Memory, bucket: Bucket) -> None:
        vmstat, totals = memory.vmstat, self._totals
        for name in COUNTERS:
            total = vmstat[name]
            if total != totals[name]:
                bucket.counted[name] += total - totals[name]
                totals[name] = total
        pressure = memory.pressure()
        some, full = pressure.some.total, pressure.full.total
        bucket.some_s += (some - self._psi[0]) / 1e6
        bucket.full_s += (full - self._psi[1]) / 1e6
        self._psi = some, full
        for name, ran_s, waited_s in self._tasks.since():
            bucket.ran_s[name] += ran_s
            bucket.waited_s[name] += waited_s

    @property
    def actors(self) -> list[str]:
        """Who ran for more than a moment, the event loop first."""
        ran_s: dict[str, float] = defaultdict(float)
        for bucket in self.buckets:
            for name, seconds in bucket.ran_s.items():
                ran_s[name] += seconds
        return sorted(
            (name for name, seconds in ran_s.items() if seconds > MOMENT_S or name == LOOP),
            key=lambda name: (name != LOOP, name),
        )
