"""Compress in worker processes over shared memory: as fast beside a busy event loop as beside none.

Workers are started as `interpreter` says, so they need no ``__main__`` guard. Staging memory is
anonymous from birth and passed as a descriptor: nothing is left behind, whatever dies. It is the
workers' reserve: of one size from their start to their end, so that compressing asks nothing of a
budget that has nothing to give, and never waits for reclaim.

They start at the first pressure. Until one is up the event loop compresses, in slices, where a
folio takes less than one: beside a busy loop a thread gets the interpreter once a turn at best, for
one folio. Where folios take longer, or no worker comes up, a thread does it.

A worker that dies loses nothing: its batches end in `WorkerDied`, whoever sent them hands them
back, and it is started again (`workers`). The pages of the batch that it was at are suspects
(`reclaimactors.mm.lethal`): each is tried once more, alone, by a worker. One that ends a second
worker is a FAIL. None of them is compressed in this process.
"""

from __future__ import annotations

import pickle
from typing import TYPE_CHECKING

from reclaimactors.cpu.breath import Breath
from reclaimactors.cpu.loop_thread import Cpu
from reclaimactors.errors import ReclaimError
from reclaimactors.log import log
from reclaimactors.mm.page_io import FAIL, Squeezed
from reclaimactors.offload.inline import InlineOffload
from reclaimactors.offload.thread import ThreadOffload
from reclaimactors.offload.workers import Workers

if TYPE_CHECKING:
    from reclaimactors.abc import Compressor
    from reclaimactors.log import Log
    from reclaimactors.mm.lethal import Lethal
    from reclaimactors.mm.vmstat import Vmstat
    from reclaimactors.offload.link import Ticket, Worker
    from reclaimactors.offload.slots import Slots
    from reclaimactors.registry import PluginRef

__all__ = ["ProcessOffload", "WorkerDied"]


class WorkerDied(ReclaimError):  # noqa: N818 - says what happened
    """The worker that had a batch has ended; nothing is lost, the batch is to be handed back."""


class ProcessOffload:
    """`workers` processes that share one set of slots."""

    def __init__(
        self, ref: PluginRef, compressor: Compressor, *, workers: int, nice: int, slots: int,
        area: int, rows: int, vmstat: Vmstat, lethal: Lethal, cpu: Cpu | None = None,
        log: Log = log, end_s: float = 1.0,
    ) -> None:  # fmt: skip
        self.workers = workers
        self._shape = {"nr": slots, "area": area, "rows": rows}
        self._lethal = lethal
        self._cpu = cpu or Cpu(1)
        self._meanwhile = InlineOffload(compressor, never=lethal, cpu=self._cpu)
        self._instead = ThreadOffload(
            compressor, workers=workers, cpu=self._cpu, log=log, never=lethal
        )
        self._crew = Workers(
            pickle.dumps(ref),
            self._shape,
            nr=workers,
            nice=nice,
            end_s=end_s,
            vmstat=vmstat,
            log=log,
        )

    async def run(self) -> None:
        """Keep the workers up, for ever: the actor that owns the processes."""
        await self._crew.run()

    @property
    def staging(self) -> int:
        """Bytes of shared memory."""
        slots = self._crew.slots  # read once: any thread may ask
        return slots.nr_bytes if slots is not None else 0

    @property
    def holds(self) -> bool:
        """Whether the source bytes are looked at meanwhile: by a thread, where no worker is up."""
        return not (self._crew.free and self._crew.up)

    @property
    def inline(self) -> bool:
        """Whether the event loop compresses: no worker is up, and no thread is to be had."""
        return self._instead.inline and not self._crew.up

    @property
    def late(self) -> bool:
        """Whether those who compress have not answered for a while, although they have work."""
        up = self._crew.up
        return all(worker.late for worker in up) if up else self._instead.late

    @property
    def degraded(self) -> str:
        """Why batches are not compressed as configured, "" where they are."""
        why = self._crew.degraded
        return f"{why}; {self._instead.degraded}" if why and self.inline else why

    # -- a batch ----------------------------------------------------------------------------------

    async def squeeze(self, pages: list[bytes], *, of_sources: bool = False) -> Squeezed:
        """Compress a batch, in pieces that fit a slot.

        Raises:
            WorkerDied: if its worker ends first.
        """
        out: Squeezed | None = None
        while out is None or pages:
            if self._lethal and pages and pages[0] in self._lethal:
                rows = await self._alone(pages.pop(0), of_sources=of_sources)
            else:
                rows = await self._squeeze(self._cut(pages), of_sources=of_sources)
            if out is None:
                out = rows
            else:
                out.extend(rows)
        return out

    def _cut(self, pages: list[bytes]) -> list[bytes]:
        """Take off the front of `pages` what fits a slot, up to the first suspect."""
        room, nr = self._shape["area"], 0
        suspects = self._lethal or ()
        for page in pages[: self._shape["rows"]]:
            room -= len(page)
            if nr and (room < 0 or page in suspects):
                break
            nr += 1
        piece = pages[:nr]
        del pages[:nr]
        return piece

    async def _alone(self, page: bytes, *, of_sources: bool) -> Squeezed:
        """Compress a page that was there when a worker died, unless it ended a second one."""
        if not self._lethal.condemned(page):
            try:
                row = await self._squeeze([page], of_sources=of_sources)
            except WorkerDied:
                if not self._lethal.condemned(page):
                    raise
            else:
                if row.kinds[0] != FAIL:
                    self._lethal.survived(page)
                return row
        return Squeezed(bytearray([FAIL]), [None], [0], of_sources)

    async def _squeeze(self, pages: list[bytes], *, of_sources: bool) -> Squeezed:
        if self._lethal and not self._crew.up:
            await self._crew.restarted()  # what may be lethal is not for the event loop's process
        slots, free = self._crew.slots, self._crew.free
        fits = sum(map(len, pages)) <= self._shape["area"]
        if slots is None or not fits or self.holds:
            starting = not self._crew.up and not self._crew.degraded
            here = self._meanwhile if starting and self._meanwhile.quick(pages) else self._instead
            return await here.squeeze(pages, of_sources=of_sources)
        slot = free.pop()
        ticket: Ticket | None = None
        breath = Breath(self._cpu.share)
        try:
            for _ in slots.put(slot, pages, of_sources=of_sources):
                await self._breathe(breath, slots)
            pages.clear()  # the copy is what is compressed: a deleted folio is freed at once
            ticket = self._send(slot)
            await ticket.done.wait()
            if ticket.died:
                await self._suspect(slots, slot, ticket)
                raise WorkerDied(ticket.died)
            self._lethal.went_well()
            out = Squeezed(bytearray(), [], [], of_sources)
            breath.begin()
            await self._breathe(breath, slots)
            for rows in slots.rows_of(slot):
                out.extend(rows)
                await self._breathe(breath, slots)
            return out
        finally:
            if ticket is not None and not ticket.done.is_set():
                ticket.abandoned = True  # the slot is free once the worker has done it, or died
            elif self._crew.slots is slots and not (ticket is not None and ticket.lost):
                free.append(slot)

    async def _suspect(self, slots: Slots, slot: int, ticket: Ticket) -> None:
        """Note the pages that a worker has died with, where it was at them."""
        if not ticket.begun or self._crew.slots is not slots:
            return
        if self._lethal.explains():
            self._crew.excuse()
        breath = Breath(self._cpu.share)
        for page in slots.pages(slot):
            self._lethal.killed(page)
            await self._breathe(breath, slots)

    def _send(self, slot: int) -> Ticket:
        """Give a slot to the worker that has the least to do."""
        worker = min(self._crew.up, key=_load, default=None)
        if worker is None:
            raise WorkerDied("all workers died while a batch was copied")
        return worker.send(slot)

    async def _breathe(self, breath: Breath, slots: Slots) -> None:
        """Let the event loop go on where that is due.

        Raises:
            WorkerDied: if the slots are gone afterwards.
        """
        await breath.take()
        if self._crew.slots is not slots:
            raise WorkerDied("the workers were ended while a batch was copied")


def _load(worker: Worker) -> tuple[bool, int]:
    return worker.late, len(worker.tickets)
