"""kcompressd, and padata: take what waits in the FIFO, have it compressed, give the verdicts.

One kcompressd has one worker, padata has N; the loop is the same. Each lane is one batch in flight:
while one is being compressed another is on its way, so that a worker never waits for the event
loop. A lane takes what waits, up to `batch_pages`, and never waits to fill a batch. In ordered mode
the machine gives the verdicts in the order of submission, whichever lane is first.
"""

from __future__ import annotations

from itertools import accumulate, pairwise, starmap
from typing import TYPE_CHECKING

import anyio

from reclaimactors.actors.base import run_lanes
from reclaimactors.cpu.breath import Breath
from reclaimactors.mm.ending import end_all
from reclaimactors.offload.process import WorkerDied

if TYPE_CHECKING:
    from reclaimactors.actors.machine import Machine
    from reclaimactors.mm.batch import FolioBatch
    from reclaimactors.mm.page_io import Squeezed

__all__ = ["KcompressdActor"]


class KcompressdActor:
    """The consumers of one FIFO."""

    def __init__(self, machine: Machine) -> None:
        self._m = machine
        self._next = anyio.Lock(fast_acquire=True)  # held by the one lane that waits for work

    async def run(self) -> None:
        """Compress for ever. If a lane crashes, all that was taken or waits is handed back."""
        machine = self._m
        try:
            await run_lanes([self._lane] * machine.pipeline.in_flight)
        finally:
            end_all(machine.fifo.drain(), machine.handover.hand_back)

    async def _lane(self) -> None:
        """Take and compress. One lane waits at a time: what kswapd sends at once is one batch."""
        machine = self._m
        while True:
            async with self._next:
                batches = await machine.fifo.take(machine.pipeline.batch_pages)
            await self.compress(batches)

    async def compress(self, batches: list[FolioBatch]) -> None:
        """Compress batches as one; each ends here, whatever happens.

        Once they are compressed, an error of one keeps none of the others from its verdicts.
        """
        machine = self._m
        breath = Breath(machine.cpu.share)
        left: list[tuple[FolioBatch, Squeezed | None]] = [(batch, None) for batch in batches]
        try:
            pages: list[bytes] = []
            for batch in batches:
                pages += machine.handover.begin(batch)
                await breath.take()
            of_sources = all(batch.rows is not None for batch in batches)
            out = await machine.offload.squeeze(pages, of_sources=of_sources)
            stops = list(accumulate((batch.nr_rows for batch in batches), initial=0))
            rows = list(starmap(out.rows, pairwise(stops)))
            nr_bytes = sum([batch.nr_bytes for batch in batches])
            for batch, part in zip(batches, rows, strict=True):
                part.cpu_s = out.cpu_s * batch.nr_bytes / nr_bytes if nr_bytes else 0.0
            left = list(zip(batches, rows, strict=True))
            breath.begin()
            while left:
                await breath.take()
                self._end(left.pop(0))
        except WorkerDied:
            return  # handed back below: the offload restarts its worker, the lane goes on
        finally:
            end_all(left, self._end)

    def _end(self, ended: tuple[FolioBatch, Squeezed | None]) -> None:
        """End a batch with what compressing it gave, or without, where it came to nothing."""
        batch, out = ended
        if out is None:
            self._m.handover.hand_back(batch)
        else:
            self._m.handover.finish(batch, out)
