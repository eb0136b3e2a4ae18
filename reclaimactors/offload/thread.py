"""Compress in worker threads, a whole batch per hop; where a thread starves, the loop helps.

A batch that takes much longer than its work is raced for (`race`).

Where this process may not start a thread now, the event loop compresses, and a thread is tried
again later.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import anyio
from anyio import CapacityLimiter

from reclaimactors.cpu.breath import SLICE_S
from reclaimactors.cpu.loop_clock import current_time
from reclaimactors.cpu.loop_thread import Cpu
from reclaimactors.log import log
from reclaimactors.mm.page_io import Squeezed
from reclaimactors.offload.backoff import Backoff
from reclaimactors.offload.inline import InlineOffload
from reclaimactors.offload.pace import Pace
from reclaimactors.offload.race import Patience, Race
from reclaimactors.threads import hop

if TYPE_CHECKING:
    from collections.abc import Container

    from reclaimactors.abc import Compressor
    from reclaimactors.log import Log

__all__ = ["ThreadOffload"]


class ThreadOffload:
    """At most `workers` batches at a time, in anyio's threads under a limiter of our own.

    Args:
        compressor: what compresses.
        workers: threads at most.
        cpu: of the memory: what the event loop compresses is pressure.
        log: of the memory.
        never: pages that the compressor does not get.
        why: threads were not asked for, but stand in for processes; "" where they were.
    """

    holds = True
    staging = 0

    def __init__(
        self, compressor: Compressor, *, workers: int, cpu: Cpu | None = None, log: Log = log,
        never: Container[bytes] = (), why: str = "",
    ) -> None:  # fmt: skip
        self.workers = workers
        self._log = log
        self._never = never
        self._why = why
        self._why_inline = ""
        self._compressor = compressor
        self._limiter = CapacityLimiter(workers)
        self._cpu = cpu or Cpu(1)
        self._instead = InlineOffload(compressor, never=never, cpu=cpu)
        self._backoff = Backoff()
        self._pace = Pace()
        self._cost = 0.0  # seconds of a thread's CPU a byte, lately; 0 = not known yet
        self._patience = Patience()
        self._again_at = 0.0  # when a thread is tried again
        self._out = 0  # batches that threads have, or wait for one
        self._heard = 0.0  # when the last one was done, or the first one was given

    @property
    def inline(self) -> bool:
        """Whether the event loop compresses, because there was no thread."""
        return self._why_inline != ""

    @property
    def degraded(self) -> str:
        """Why batches are not compressed as configured, "" where they are."""
        return self._why_inline or self._why

    @property
    def late(self) -> bool:
        """Whether no batch was done for longer than is usual, although there are some."""
        return self._out > 0 and self._pace.late(current_time() - self._heard)

    async def squeeze(self, pages: list[bytes], *, of_sources: bool = False) -> Squeezed:
        """Compress a batch in a thread, and in the event loop as well where that starves.

        On cancellation the thread ends its piece with its own references; what it did is dropped.
        """
        if self.inline and current_time() < self._again_at:
            return await self._instead.squeeze(pages, of_sources=of_sources)
        alone = 0 if self._cost else 1  # the first page says what the others take
        out = Squeezed(bytearray(), [], [], of_sources)
        for part in filter(None, (pages[:alone], pages[alone:])):
            race = Race(self._compressor, part, self._never, self._cpu, of_sources=of_sources)
            try:
                await self._in_thread(race)
            except RuntimeError as exc:  # this process may not start another thread
                self._refused(str(exc))
                out.extend(await self._instead.squeeze(part, of_sources=of_sources))
            else:
                self._worked()
                out.extend(race.rows())
            finally:
                race.left = True
        return out

    async def _in_thread(self, race: Race) -> None:
        if not self._out:
            self._heard = current_time()
        self._out += 1
        try:
            with anyio.move_on_after(self._wait_s(race.pages)) as scope:
                await hop(race.run, self._learn, limiter=self._limiter)
            if scope.cancelled_caught:
                await race.help()
            self._patience.learn(kept_up=race.kept_up)
            self._pace.answered(current_time() - self._heard)
        finally:
            self._out -= 1
            self._heard = current_time()

    def _wait_s(self, pages: list[bytes]) -> float:
        """Return for how long a thread has a batch to itself: for ever, if it is not quick work."""
        if not 0 < self._cost * max(map(len, pages), default=0) < SLICE_S:
            return math.inf
        return self._patience.times * (self._cost * sum(map(len, pages)) + SLICE_S)

    def _refused(self, why: str) -> None:
        wait = self._backoff.failed()
        if not self.inline:
            self._log.error("offload.degraded", reason=why, instead="inline", again_s=wait)
        self._why_inline = f"no thread can be started, the event loop compresses: {why}"
        self._again_at = current_time() + wait

    def _worked(self) -> None:
        if self.inline:
            self._why_inline = ""
            self._backoff.worked()
            self._log.warning("offload.recovered", workers=self.workers)

    def _learn(self, cost: float) -> None:
        """Learn from a piece, at once where it was cheap: all that runs beside it makes it dear."""
        if not self._cost or cost < self._cost:
            self._cost += (cost - self._cost) * (0.5 if self._cost else 1.0)
        else:
            self._cost += (min(cost, 2 * self._cost) - self._cost) * 0.05
