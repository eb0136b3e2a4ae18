"""The machine: one node's core, the queues between its actors, and what several of them need.

`reclaim_inline` is the only way anybody compresses in the event loop; how batches end is in
`handover`, who starts tasks in `starter`. Waiting goes one way:
callers -> (kswapd | kcompressd | padata) -> swapd -> store.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import anyio

from reclaimactors.actors.background import Background
from reclaimactors.actors.base import Fifo, Signal
from reclaimactors.actors.handover import Handover
from reclaimactors.actors.starter import Starter
from reclaimactors.actors.supervision import Supervisor, closed, unraised
from reclaimactors.actors.sweeper import Sweeper
from reclaimactors.cpu import clock
from reclaimactors.cpu.psi import Psi
from reclaimactors.loops import current_loop
from reclaimactors.mm.batch import SWAP_CLUSTER_MAX, Producer, Reclaimer
from reclaimactors.mm.ending import end_all, undo
from reclaimactors.mm.page_io import squeeze
from reclaimactors.mm.swapin import Swapin
from reclaimactors.mm.swapout import Swapout

if TYPE_CHECKING:
    from collections.abc import Callable

    from reclaimactors.abc import Compressor
    from reclaimactors.actors.pipeline import Pipeline
    from reclaimactors.actors.swapd import Swapd
    from reclaimactors.cpu.loop_thread import Cpu
    from reclaimactors.log import Log
    from reclaimactors.mm.batch import FolioBatch
    from reclaimactors.mm.group import Group
    from reclaimactors.mm.ledger import Ledger
    from reclaimactors.mm.node import Node
    from reclaimactors.mm.pageout import Pageout
    from reclaimactors.mm.shrink_worker import ShrinkWorker
    from reclaimactors.mm.vmscan import Kswapd
    from reclaimactors.mm.watermark import Watermarks
    from reclaimactors.offload import Squeezer

__all__ = ["LATE_S", "PATIENCE_S", "RETRY_S", "Machine"]

LATE_S = 0.1  #: without a verdict, after which whoever waits for one does something himself
PATIENCE_S = 0.01  #: that reclaim waits for a store before it looks for what it can free itself
RETRY_S = 0.5  #: after which folios are tried again that a compressor or a store failed on


class Machine:
    """What the actors of one node share."""

    def __init__(
        self,
        node: Node,
        offload: Squeezer,
        pipeline: Pipeline,
        *,
        mode: str,
        on_full: str,
        ordered: bool,
        cpu: Cpu,
        log: Log,
    ) -> None:
        self.node = node
        self.cpu = cpu
        self.log = log  #: of this memory: whose lines say which one it is
        self.swapout = Swapout(node)
        self.swapin = Swapin(node, self.swapout.ledger)
        self.offload = offload
        self.pipeline = pipeline
        self.mode = mode
        self.on_full = on_full
        self.kcompressd = mode != "inline"  #: whether it takes more; what it has it does anyway
        self.fifo = Fifo(pipeline.fifo_pages, pipeline.most_fifo_pages)
        self.swapds: dict[int, Swapd] = {}  #: by the index of the device
        self.pressure = Signal()  #: a trigger fires, or a stall begins that one may see
        self.cpu.psi.on_pressure = self.pressure.notify
        self.cpu.share.weight = self._weight
        self._psis: dict[int, Psi] = {}  # by index of the group, the root's aside
        self.verdicts = Signal()  #: a batch or a write has ended, or kswapd has changed its state
        self._retry_at = 0.0  #: when folios that a compressor or a store failed on are tried again
        self.readers = anyio.CapacityLimiter(max(2, offload.workers))  #: threads, for large values
        self.loop = current_loop()
        self.supervisor = Supervisor(node.vmstat, log, self.crashed)
        self.starter = Starter(self)
        self.sweeper = Sweeper(self)
        self.handover = Handover(self, ordered=ordered)
        self.background = Background(self, node.root)  #: what kswapd carries out
        self.backgrounds = {0: self.background}  #: by group: of those that have a limit
        self.closing = False
        self.ended = False  #: closed, its stores as well
        self.crash: BaseException | None = None  #: what ended the memory, where that was no close
        self.on_crash: Callable[[], None] | None = None  #: told of the crash before anybody else
        self.ours = True  #: False in a forked child: all of it is the parent's
        self.opening: anyio.CancelScope | None = None  #: of the store that is being opened
        node.memcg.on_room = self.verdicts.notify
        node.root.on_wake = self.want_kswapd
        node.on_pool_full = self.wake_shrinkers
        node.on_stale = self.wake_swapd
        node.let_go = self.starter.let_go

    @property
    def ledger(self) -> Ledger:
        """The account of verdicts."""
        return self.swapout.ledger

    @property
    def pageout(self) -> Pageout:
        """The way to the devices."""
        return self.swapout.pageout

    @property
    def shrinker(self) -> ShrinkWorker:
        """What goes there though it is not resident."""
        return self.swapout.shrinker

    @property
    def kswapd(self) -> Kswapd:
        """What kswapd is to do."""
        return self.background.kswapd

    @property
    def compressor(self) -> Compressor:
        """What compresses in the event loop, and expands."""
        return self.node.compressor

    # -- life -------------------------------------------------------------------------------------

    def refuse_calls(self) -> None:
        """Start nothing any more, and give up opening a store."""
        self.closing = True
        if self.opening is not None:
            self.opening.cancel()

    def crashed(self, crash: BaseException) -> None:
        """Something that is no close ends the memory, an actor that gives up, say.

        Whoever waits, or calls from now on, is told of this error; the first one counts.
        """
        if self.crash is None and self.ours:
            self.crash = unraised(crash)  # it is kept for long, the frames of the actor are not
            self.refuse_calls()
            if self.on_crash is not None:
                self.on_crash()

    def forked(self) -> None:
        """In a forked child: all of this is a copy of the parent's, whose stores nobody calls."""
        self.ours = False
        self.closing = True
        self.supervisor.quiet = True

    def closed(self) -> anyio.ClosedResourceError:
        """Return what a call gets from now on: a new instance for each."""
        return closed(self.crash)

    def check_open(self) -> None:
        """Raise ClosedResourceError once the memory closes."""
        if self.closing:
            raise self.closed()

    def close(self) -> None:
        """Take back what the actors, which have ended, left in the queues, and close these."""
        try:
            end_all(self.fifo.drain(), self.handover.hand_back)
        finally:
            self.fifo.close()
            for background in self.backgrounds.values():
                background.close()
            try:
                end_all(self.swapds.values(), lambda swapd: swapd.close())
            finally:
                self.verdicts.notify()
                self.pressure.notify()

    def switch(self, *, kcompressd: bool) -> None:
        """Have the FIFO take folios from now on, or none; what is in it goes its way."""
        self.kcompressd = kcompressd
        self._tuned()

    def tune(self, fifo: int, marks: Watermarks, pipeline: Pipeline) -> None:
        """Change the depth of the FIFO, and the watermarks with it; what is in it goes its way.

        Args:
            fifo: pages that may wait.
            marks: of the whole memory, which fit that.
            pipeline: what may be in flight then; batches become no larger than they were.
        """
        self.fifo.limit = fifo
        pipeline.batch_pages = min(pipeline.batch_pages, self.pipeline.batch_pages)
        self.pipeline = pipeline
        root = self.node.root
        root.limit(root.limits, marks)
        for background in self.backgrounds.values():
            background.fit()
        if root.memcg.free < marks.low:
            root.on_wake()
        self._tuned()

    def _tuned(self) -> None:
        self.log.debug("kcompressd.tuned", on=self.kcompressd, fifo=self.fifo.limit)
        self.fifo.room_made.notify()  # a kswapd that waits for room looks again

    def psis_of(self, group: Group | None) -> tuple[Psi, ...]:
        """Return where a stall of a caller of a group counts: in it, and in all it is in."""
        if group is None or group.parent is None:
            return (self.cpu.psi,)
        return (*[self.psi_of(each) for each in group.lineage[:-1]], self.cpu.psi)

    def psi_of(self, group: Group) -> Psi:
        """Return the account of the stalls of one group."""
        if group.parent is None:
            return self.cpu.psi
        if group.index not in self._psis:
            psi = self._psis[group.index] = Psi()
            psi.on_pressure = self.pressure.notify
        return self._psis[group.index]

    def forget_psi(self, group: Group) -> None:
        """A group has ended: its index will be another's."""
        self._psis.pop(group.index, None)

    # -- wake-ups ---------------------------------------------------------------------------------

    def _weight(self) -> float:
        """For how long reclaim is to work in the loop: as the group says that is in most need."""
        return max([background.kswapd.weight for background in self.backgrounds.values()])

    def wake_kswapd(self) -> None:
        """Wake kswapd where that is more than a no-op; wake-ups coalesce."""
        for swapd in self.swapds.values():
            swapd.loads.drop_readahead()
            if not swapd.device.takes_writes:
                swapd.backing.revive(self.loop.now())
        self.background.wake()

    @property
    def awake(self) -> bool:
        """Whether kswapd, or what reclaims a group in the background, is awake."""
        return any(background.awake for background in self.backgrounds.values())

    def want_kswapd(self) -> None:
        """Free memory is below *low*: wake kswapd unless it runs. Each put under pressure asks."""
        if not self.kswapd.running:
            self.wake_kswapd()

    def wake_swapd(self, device: int) -> None:
        """Tell a swapd that slots are to be forgotten."""
        if not self.closing and device in self.swapds:
            self.starter.start()
            self.swapds[device].forgets.wake()

    def wake_shrinkers(self) -> None:
        """Tell every swapd in service that what is not resident is to be written back."""
        wanted = self.node.zswap.excess() or self.node.writeback.asked
        if wanted and not self.closing:
            for swapd in self.swapds.values():
                if swapd.device.takes_writes:
                    self.starter.start()
                    swapd.stores.wake_shrinker()

    # -- compressing in the loop ------------------------------------------------------------------

    @property
    def ram_takes(self) -> bool:
        """Whether a folio that compresses stays in memory: the pool, or a store that compresses."""
        return self.node.zswap.accepts() or self.swapout.zram.next_in_line

    def compress_inline(self, batch: FolioBatch) -> None:
        """Compress a whole batch here and now, and end it. Size it with `Rates.slice_bytes`."""
        try:
            pages, writes = self.swapout.begin(batch, hold=False)
            self.handover.offer(writes, ram_only=batch.ram_only)
            started, began = self.cpu.now(), clock.thread_time()
            out = squeeze(self.compressor, pages, never=self.node.lethal)
        except BaseException as exc:  # Ctrl-C in the middle of it, or a policy's
            undo(exc, self.handover.hand_back, batch)
            raise
        out.cpu_s = clock.thread_time() - began
        self.cpu.rates.compressed(sum(map(len, pages)), self.cpu.worked(started))
        self.handover.finish(batch, out)

    def reclaim_inline(
        self,
        nr: int,
        who: Reclaimer,
        *,
        max_bytes: int | None = None,
        ram_only: bool = False,
        producer: Producer | None = None,
        within: Group | None = None,
    ) -> int:
        """Reclaim up to `nr` folios, about a slice's worth, in the calling task.

        The one path of everybody who compresses in the event loop: direct reclaim, `put_nowait`,
        proactive reclaim, and a machine without workers (I13). At least one folio is tried,
        whatever its size.

        Returns:
            Bytes really freed at once: folio sizes less the blobs kept. Writes to a store free
            theirs later.
        """
        group = within or self.node.root
        before = group.freed_total
        limit = min(self.cpu.rates.slice_bytes(), max_bytes or self.pipeline.share_bytes)
        batch = self.swapout.isolate(nr, limit, who, producer, ram_only=ram_only, within=group)
        if not ram_only and (batch is None or group.scan.seen_all):
            # The caller's need is not known here: free memory may be at *high*, and too little.
            cluster = SWAP_CLUSTER_MAX * self.node.page_size
            self.node.writeback.want_of(group, cluster if who is Reclaimer.DIRECT else 0)
        if batch is None:
            return 0
        if self.kcompressd and self.node.zswap.enabled:
            self.node.vmstat["kcompressd_bypassed"] += batch.nr_pages
        self.compress_inline(batch)
        return group.freed_total - before

    def throttle(self, *, wait: bool) -> None:
        """A store's mailbox is full, or has room again: who reclaims in the background is told."""
        for background in self.backgrounds.values():
            background.kswapd.throttled = wait

    # -- waiting for what is on its way ------------------------------------------------------------

    @property
    def late(self) -> bool:
        """Whether the workers have not answered for a while: nobody is to wait for them."""
        return self.offload.late

    async def progress_within(
        self, seconds: float, *, or_room: bool = False, group: Group | None = None
    ) -> bool:
        """As `progress`, but False as well once so many seconds have passed."""
        with anyio.move_on_after(seconds):
            return await self.progress(or_room=or_room, group=group)
        return False

    async def progress(self, *, or_room: bool = False, group: Group | None = None) -> bool:
        """Wait for what is in flight now.

        What is queued later does not count, or two callers who find nothing could wait for each
        other without end. A blob that a store did not take was only looked at: no progress.

        Args:
            or_room: whether room that somebody else makes, say by a delete, counts too.
            group: of which, and of those in it; None for the root.

        Returns:
            True once reclaim has freed bytes; False once every folio that was in flight at the call
            has had its verdict, and freed none.
        """
        group = group or self.node.root
        writeback, memcg = self.node.writeback, group.memcg
        freed, free = group.freed_total, memcg.free
        ends = group.returned_total + sum([each.nr_in_flight for each in group.subtree()])
        while True:
            await self.verdicts.wait()
            self.check_open()
            if group.freed_total != freed or (or_room and memcg.free > free):
                return True
            compressed = not memcg.compressing or group.returned_total >= ends
            if compressed and not writeback.awaits_writes_of(group, of_late=True):
                return False

    def oldest_undelivered(self) -> float | None:
        """Return since when a finished batch has waited for its turn, the oldest; or None."""
        orders = [background.stream.order for background in list(self.backgrounds.values())]
        waits = [order.oldest_early for order in orders if order is not None]
        return min([since for since in waits if since is not None], default=None)

    # -- stores -----------------------------------------------------------------------------------

    def revive(self) -> None:
        """Look at the clock: try again what was full, or failed, a while ago; note who is late."""
        now = self.loop.now()
        late = self.late
        for background in self.backgrounds.values():
            background.kswapd.late = late
        if now >= self._retry_at:
            self._retry_at = now + RETRY_S
            self.node.scan.retry_failed()
        for swapd in self.swapds.values():
            swapd.backing.revive(now)

    @property
    def retry_in_s(self) -> float | None:
        """Seconds until a store may take writes that does not now; None where none is expected."""
        now = self.loop.now()
        waits = [
            LATE_S if swapd.device.down else swapd.backing.service.again_at - now
            for swapd in self.swapds.values()
            if swapd.device.may_return
        ]
        return max(0.0, min(waits)) if waits else None

    @property
    def idle(self) -> bool:
        """Whether nothing is in flight."""
        return self.node.idle
