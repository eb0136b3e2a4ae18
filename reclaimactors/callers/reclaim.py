"""Proactive reclaim: the caller queues what his share of the FIFO takes, and waits for verdicts.

Each call is a producer of its own, with its own account and, in ordered padata, its own order.
Where the call or its share of the FIFO is less than a cluster, kcompressd is off, or the FIFO is
full with nothing of this call in it, the caller compresses a slice for himself, as direct reclaim
does: so a small call is no slower than without workers, and a call ends whatever becomes of them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import anyio
from anyio.lowlevel import checkpoint

from reclaimactors.actors.gates import enqueue, first_pages, gate_of
from reclaimactors.actors.machine import PATIENCE_S
from reclaimactors.cpu.breath import Breath
from reclaimactors.mm.batch import SWAP_CLUSTER_MAX, Reclaimer
from reclaimactors.mm.page_io import QUEUE_SHARE, Gate
from reclaimactors.mm.vmscan import LEAST

if TYPE_CHECKING:
    from reclaimactors.actors.machine import Machine
    from reclaimactors.mm.group import Group

__all__ = ["Proactive"]


class Proactive:
    """One call of `Memory.reclaim`, or of a group's."""

    def __init__(self, machine: Machine, nbytes: int, group: Group | None = None) -> None:
        self._m = machine
        self._group = group or machine.node.root
        self._nbytes = nbytes
        self._mine = machine.handover.producer(Reclaimer.PROACTIVE)
        self._over = False  # everything was looked at, and nothing is on its way
        self._patient = True  # what is at a store is worth waiting for: it has answered lately
        self._careful = False  # the last batch freed nothing: one at a time
        self._seen_freed = 0
        self._seen_ended = 0

    async def run(self) -> int:
        """Reclaim; return the bytes that were really freed for this call.

        Raises:
            ClosedResourceError: if the memory closes.
        """
        machine = self._m
        machine.revive()
        machine.kswapd.asked += 1
        try:
            return await self._run()
        finally:
            machine.kswapd.asked -= 1

    async def _run(self) -> int:
        machine, mine = self._m, self._mine
        breath = Breath()
        while mine.freed < self._nbytes and not self._over:
            if mine.ended != self._seen_ended:
                await self._judge()
            elif self._queue():
                pass  # and another, as long as there is room
            elif mine.in_flight:
                fifo = machine.fifo
                # Where nothing waits in it no room will be made: the share is less than a page.
                full = fifo.waiting_pages and fifo.left(mine.who) < fifo.least(mine.who)
                full = full and not self._careful
                if full and fifo.takers:
                    await checkpoint()  # a lane takes it in the next turn, before this goes on
                else:
                    await (fifo.room_made if full else machine.verdicts).wait()
                breath.begin()
            elif not machine.fifo.takers or machine.fifo.room(1, mine.who):
                missing = self._missing()
                machine.reclaim_inline(
                    SWAP_CLUSTER_MAX, mine.who, max_bytes=missing, producer=mine, within=self._group
                )
                await self._judge()
            else:
                await checkpoint()  # a lane takes what fills the FIFO when its turn comes
                breath.begin()
            await breath.take()
            machine.check_open()
        while mine.in_flight:
            await machine.verdicts.wait()
            machine.check_open()
        return mine.freed

    def _missing(self) -> int:
        """Return the bytes to isolate, at the recent gain, beside those that are on their way."""
        expected = (self._nbytes - self._mine.freed) / max(self._group.gain, 0.05)
        return max(1, int(expected)) - self._mine.in_flight

    def _queue(self) -> bool:
        """Isolate a batch and queue it; return whether that could be done."""
        machine, mine = self._m, self._mine
        fifo, memcg = machine.fifo, machine.node.memcg
        cluster = SWAP_CLUSTER_MAX * machine.node.page_size
        room = min(self._missing(), machine.pipeline.max_bytes - memcg.compressing)
        if self._narrow() or gate_of(machine, self._group, mine.who, 1) is not Gate.QUEUED:
            return False
        if mine.in_flight:
            # A window that opens by a page must not be filled by a page: each would pay for a
            # whole round. What is in flight will open it further.
            if self._careful or room < cluster or fifo.left(mine.who) < fifo.least(mine.who):
                return False
        elif self._missing() < cluster or room <= 0:
            return False  # not worth a hop
        nr = min(SWAP_CLUSTER_MAX, max(1, fifo.left(mine.who)))
        batch = machine.swapout.isolate(nr, room, mine.who, mine, within=self._group)
        if batch is None:
            return False
        if not batch.pfns:
            return True  # clean, all of them: they are gone
        if not fifo.room(first_pages(machine, batch), mine.who):
            machine.swapout.hand_back(batch)
            return False
        rest = enqueue(machine, batch)
        if rest is not None:
            machine.swapout.hand_back(rest)
        return True

    def _narrow(self) -> bool:
        """Whether so few pages may be on their way that each few would pay for a whole round.

        Beside a busy program a round takes several turns of the event loop. What takes longer than
        a slice is worth it all the same.
        """
        machine = self._m
        pipeline, page = machine.pipeline, machine.node.page_size
        share = int(machine.fifo.limit * QUEUE_SHARE[self._mine.who])
        way = min(share, pipeline.batch_pages * pipeline.in_flight)
        least = min(SWAP_CLUSTER_MAX, pipeline.max_bytes // page // LEAST)
        return way < least and not machine.cpu.rates.too_slow_to_compress(page)

    async def _judge(self) -> None:
        """Look at what the batches that have ended meanwhile came to."""
        machine, mine = self._m, self._mine
        self._seen_ended = mine.ended
        self._careful = mine.freed == self._seen_freed
        if not self._careful:
            self._seen_freed = mine.freed
            self._patient = True
        elif not mine.in_flight:
            scan = self._group.scan
            if scan.seen_all and not scan.exhausted:  # as whoever compresses in the loop does
                machine.node.writeback.want_of(self._group)
            if scan.exhausted:
                self._over = not await self._others_free()
            elif scan.seen_all and machine.node.writeback.wanted_of(self._group):
                # All that is left to do is a store's; one that is late is not waited for.
                freed = await self._others_free()
                self._over = not freed and machine.node.writeback.wanted_of(self._group) > 0
            elif self._patient:
                with anyio.move_on_after(PATIENCE_S) as scope:
                    await self._others_free()
                self._patient = not scope.cancelled_caught

    async def _others_free(self) -> bool:
        """Wait until others have freed something, or have nothing on its way; return which it was.

        Nothing is sent meanwhile: several calls that free nothing would keep each other going.
        """
        machine = self._m
        before = self._group.freed_total
        while self._group.freed_total == before:
            writeback = machine.node.writeback
            if not (writeback.awaits_of(self._group, of_late=False) or writeback.awaits_slots):
                return False
            await machine.verdicts.wait()
            machine.check_open()
        return True
