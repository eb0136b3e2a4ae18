"""What threads do with slots of the swap file: write them, or give their space back.

A thread cannot be cancelled. A job whose caller has gone ends before its next step, and until then
later jobs on its slots wait for it.
"""

from __future__ import annotations

import errno
import sys
import threading
from bisect import bisect_left
from functools import partial
from operator import attrgetter
from typing import TYPE_CHECKING

from reclaimactors.cpu.clock import perf_counter
from reclaimactors.errors import BackendError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from reclaimactors.backends.swapfile import SwapFile

__all__ = ["GIVE_S", "GiveBack", "Job", "Write"]

GIVE_S = 0.05  #: that giving space back takes at most, but for the last hole
CLUSTER = 256  #: slots of one write: the thread asks for the interpreter again after each of them


class Job:
    """What a thread does with some slots; later writes of these slots wait until it is `done`."""

    def __init__(self, file: SwapFile, runs: list[range], page_size: int) -> None:
        self.done = threading.Event()  #: it touches the file no more
        self.after: list[Job] = []  #: that must be done first
        self.end = 0  #: of the slots that it writes
        self._file = file
        self._runs = runs
        self._page_size = page_size
        self._busy = threading.Lock()
        self._abandoned = False

    def touches(self, runs: list[range]) -> bool:
        """Whether it may change one of these slots."""
        for run in runs:
            at = bisect_left(self._runs, run.stop, key=attrgetter("start")) - 1
            if at >= 0 and self._runs[at].stop > run.start:
                return True
        return False

    def _steps(self, fd: int) -> Iterator[Callable[[], None]]:
        """Yield what is to be done, in steps between which it may be given up."""
        raise NotImplementedError

    def run(self) -> None:
        """Do it, in a thread."""
        # Order matters: `_busy` is taken before `_abandoned` is read, and the loop sets
        # `_abandoned` before it looks at `_busy`; a job that it sees idle then never starts.
        try:
            with self._busy, self._file.use() as fd:
                for job in self.after:
                    job.done.wait()
                for step in self._steps(fd):
                    if self._abandoned:
                        break
                    step()
        finally:
            self.done.set()

    def abandon(self) -> None:
        """Its caller has gone: it ends before its next step."""
        self._abandoned = True
        if not self._busy.locked():
            self.done.set()


class Write(Job):
    """One `store_many`: data for each slot of the runs."""

    def __init__(
        self, file: SwapFile, runs: list[range], data: list[bytes], page_size: int
    ) -> None:
        lengths = list(map(len, data))
        if runs[0].start < 0 or min(lengths) < 1 or max(lengths) > page_size:
            msg = f"an item is 1 to {page_size} bytes on a slot of at least 0"
            raise BackendError(errno.EINVAL, msg)
        super().__init__(file, runs, page_size)
        self.end = runs[-1].stop
        self._data = data

    def _steps(self, fd: int) -> Iterator[Callable[[], None]]:
        at = 0
        for run in self._runs:
            for start in range(run.start, run.stop, CLUSTER):
                nr = min(CLUSTER, run.stop - start)
                buffers = self._pages(at, at + nr)
                yield partial(self._file.calls.write, fd, buffers, start * self._page_size)
                at += nr

    def _pages(self, start: int, stop: int) -> Sequence[bytes | memoryview]:
        """Return the bytes of whole pages. While this thread runs Python, the loop cannot."""
        data, page = self._data[start:stop], self._page_size
        if min(map(len, data)) == page:
            return data
        zeros = memoryview(bytes(page))
        return [part for item in data for part in (item, zeros[len(item) :])]


class GiveBack(Job):
    """The end of the file is cut off, and holes are punched: as many as GIVE_S allows."""

    def __init__(self, file: SwapFile, end: int, holes: list[range], page_size: int) -> None:
        super().__init__(file, [*holes, range(end, sys.maxsize)], page_size)
        self.nr_punched = 0

    def _steps(self, fd: int) -> Iterator[Callable[[], None]]:
        page, calls = self._page_size, self._file.calls
        ends = perf_counter() + GIVE_S
        *holes, cut = self._runs
        yield partial(calls.truncate, fd, cut.start * page)
        for hole in holes:
            if perf_counter() > ends:
                break
            yield partial(calls.punch, fd, hole.start * page, len(hole) * page)
            self.nr_punched += 1
