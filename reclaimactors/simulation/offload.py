"""The offload of a modelled machine: worker threads that take batches from one line."""

from __future__ import annotations

import asyncio  # noqa: TID251 - the modelled loop is one of asyncio's
import os
from collections import deque
from contextlib import suppress
from typing import TYPE_CHECKING

from reclaimactors.errors import PluginError
from reclaimactors.mm.page_io import squeeze
from reclaimactors.simulation.loop import ModelledLoop

if TYPE_CHECKING:
    from collections.abc import Sequence

    from reclaimactors.abc import Compressor
    from reclaimactors.simulation.cpus import Thread
    from reclaimactors.squeezed import Squeezed

__all__ = ["Modelled"]


class Modelled:
    """Workers of a machine in a simulation, each a thread on its CPUs.

    What the event loop does for a batch (handing it over, copying it, taking it back) is charged to
    the thread that does it, what compressing takes to a worker.

    Args:
        compressor: of the topology; it charges what it does.
        workers: how many.
        nice: as for worker processes.
    """

    staging = 0

    def __init__(self, compressor: Compressor, workers: int, nice: int) -> None:
        loop = asyncio.get_running_loop()
        if not isinstance(loop, ModelledLoop):
            raise PluginError("offload 'modelled' is for simulations: reclaimactors simulate")
        self._loop = loop
        seconds = loop.machine.costs.seconds
        self._batch_s, self._wake_s = seconds("batch_us"), seconds("wake_us")
        of_loop = loop.machine.actors == "loop"
        self._submit_s = seconds("submit_us") if of_loop else 0.0
        self._copy_s = seconds("copy_ns") if of_loop else 0.0
        self._collect_s = seconds("collect_us") if of_loop else 0.0
        self._compressor = compressor
        self._weight = 1.25**-nice  # as the kernel's table: a tenth of the CPU a step of niceness
        self._nr_workers = workers
        self._idle: list[Thread] = []
        self._line: deque[tuple[int, Squeezed]] = deque()
        self._done: deque[tuple[int, Squeezed]] = deque()
        self._numbers = 0
        self._fds: tuple[int, int] | None = None

    def open(self) -> int:
        """Start; return a descriptor that is readable while a batch is done."""
        self._fds = os.pipe()
        for fd in self._fds:
            os.set_blocking(fd, False)
        self._idle = [
            self._loop.worker(f"worker {number}", self._weight)
            for number in reversed(range(self._nr_workers))
        ]
        return self._fds[0]

    def submit(self, pages: Sequence[bytes], *, of_sources: bool) -> int:
        """Take a batch; what compressing it takes is known now, and passes on a worker's CPU."""
        meter = self._loop.meter
        of_caller = meter.s
        meter.s = 0.0
        rows = squeeze(self._compressor, pages, checksum=True, of_sources=of_sources)
        rows.cpu_s = meter.s + self._batch_s
        meter.s = of_caller + self._submit_s + self._copy_s * sum(map(len, pages))
        self._numbers += 1
        self._line.append((self._numbers, rows))
        if self._idle:
            self._take(self._idle.pop())
        return self._numbers

    def _take(self, worker: Thread) -> None:
        """A worker takes the next batch, or rests."""
        if not self._line or self._fds is None:
            self._idle.append(worker)
            return
        number, rows = self._line.popleft()

        def done() -> None:
            self._done.append((number, rows))
            self._tell()
            self._take(worker)

        self._loop.cpus.submit(worker, rows.cpu_s, done)

    def _tell(self) -> None:
        if self._fds is not None and len(self._done) == 1:
            self._loop.call_at(self._loop.cpus.now + self._wake_s, self._wake)

    def _wake(self) -> None:
        if self._fds is not None:
            with suppress(BlockingIOError):
                os.write(self._fds[1], b".")

    def collect(self) -> tuple[int, Squeezed] | None:
        """Return a batch that is done."""
        if not self._done:
            if self._fds is not None:
                with suppress(BlockingIOError):
                    os.read(self._fds[0], 64)
            return None
        number, rows = self._done.popleft()
        self._loop.meter.s += self._collect_s * len(rows.kinds)
        return number, rows

    def close(self) -> bool:
        """Stop."""
        if self._fds is not None:
            for fd in self._fds:
                os.close(fd)
            self._fds = None
            self._line.clear()
            self._done.clear()
        return True
