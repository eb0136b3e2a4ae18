"""The machine: one node's core, the queues between its actors, and what several of them need.

`finish` and `hand_back` are the only ways a batch ends, `offer` the only way a write reaches its
store, `reclaim_inline` the only way anybody compresses in the event loop. Waiting goes one way:
callers -> (kswapd | kcompressd | padata) -> swapd -> store.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

import anyio
from anyio.lowlevel import checkpoint

from reclaimactors.actors.base import Fifo, Signal
from reclaimactors.actors.malloc_trim import MallocTrim
from reclaimactors.actors.supervision import Supervisor, closed, unraised
from reclaimactors.cpu.breath import let_go
from reclaimactors.loops import current_loop
from reclaimactors.mm.batch import SWAP_CLUSTER_MAX, Producer, Reclaimer
from reclaimactors.mm.ending import end_all, undo
from reclaimactors.mm.padata import Reorder
from reclaimactors.mm.page_io import FAIL, Squeezed, expand, squeeze
from reclaimactors.mm.swapin import Swapin
from reclaimactors.mm.swapout import Swapout
from reclaimactors.mm.vmscan import Kswapd
from reclaimactors.offload.job import multithreaded

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence
    from mmap import mmap

    from anyio.abc import TaskGroup

    from reclaimactors.abc import Compressor
    from reclaimactors.actors.swapd import Swapd
    from reclaimactors.cpu.loop_thread import Cpu
    from reclaimactors.log import Log
    from reclaimactors.mm.batch import FolioBatch, StoreBatch
    from reclaimactors.mm.node import Node
    from reclaimactors.mm.swap import SwapDevice
    from reclaimactors.mm.swapin import Held
    from reclaimactors.offload import Offload

__all__ = ["LATE_S", "PATIENCE_S", "Machine", "Pipeline"]

LATE_S = 0.1  #: without a verdict, after which whoever waits for one does something himself
PATIENCE_S = 0.01  #: that reclaim waits for a store before it looks for what it can free itself
RETRY_S = 0.5  #: after which folios are tried again that a compressor or a store failed on
RECOVERED = 1024  #: pages in a row without a failure after which a compressor counts as working


class Pipeline:
    """How much may be in flight, fitted to the budget.

    All that is in flight stays under 1/8 of the budget. Where that is less than the FIFO and the
    worker's batches, the batches shrink first (to 32 pages, then to fewer), then the FIFO, so that
    a full FIFO stays reachable.
    """

    def __init__(
        self, *, budget: int, page_size: int, fifo: int, batch: int, in_flight: int, workers: int
    ) -> None:
        self.max_bytes = budget // 8
        limit = self.max_bytes // page_size
        in_flight = max(in_flight, workers)
        while fifo + batch * in_flight > limit:
            if batch > SWAP_CLUSTER_MAX:
                batch = max(SWAP_CLUSTER_MAX, batch // 2)
            elif in_flight > 1:
                in_flight -= 1
            else:
                batch = min(batch, max(1, limit // 4))
                fifo = max(1, limit - batch)
                break
        self.fifo_pages = fifo
        self.most_fifo_pages = max(fifo, limit - batch * in_flight)  #: what the budget allows
        self.batch_pages = batch
        self.batch_bytes = batch * page_size
        self.in_flight = in_flight


class Machine:
    """What the actors of one node share."""

    def __init__(
        self,
        node: Node,
        compressor: Compressor,
        offload: Offload,
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
        self.ledger = self.swapout.ledger
        self.pageout = self.swapout.pageout
        self.swapin = Swapin(node, self.ledger)
        self.kswapd = Kswapd(node, self.ledger, max_in_flight=pipeline.max_bytes)
        self.offload = offload
        self.pipeline = pipeline
        self.mode = mode
        self.on_full = on_full
        self.kcompressd = mode != "inline"  #: whether it takes more; what it has it does anyway
        self.fifo = Fifo(pipeline.fifo_pages, pipeline.most_fifo_pages)
        self.swapds: dict[int, Swapd] = {}  #: by the index of the device
        self.pressure = Signal()  #: a trigger fires, or a stall begins that one may see
        self.cpu.psi.on_pressure = self.pressure.notify
        self.verdicts = Signal()  #: a batch or a write has ended, or kswapd has changed its state
        self.wakeups, self._wakeup_rx = anyio.create_memory_object_stream[None](1)
        self._ordered = ordered
        self.kswapd_stream = self.producer(Reclaimer.KSWAPD)
        self._compressor = compressor
        self._worked = RECOVERED  #: pages since the compressor last failed, RECOVERED at most
        self._failed_with = ""  #: what it raised last, "" where it killed a worker
        self._retry_at = 0.0  #: when folios that a compressor or a store failed on are tried again
        self.readers = anyio.CapacityLimiter(max(2, offload.workers))  #: threads, for large values
        self.malloc = MallocTrim(node.memcg)
        self._actors: dict[str, Callable[[], Awaitable[None]]] = {}
        self._tasks: TaskGroup | None = None
        self._to_start: deque[str] = deque()
        self._to_free: deque[list[bytes] | mmap] = deque()
        self._to_trim = False
        self._start_now = anyio.Event()
        self.loop = current_loop()
        self._started = False
        self._at_once = False  # one of the actors does not wait for pressure
        self.supervisor = Supervisor(node.vmstat, log, self.crashed)
        self.closing = False
        self.ended = False  #: closed, its stores as well
        self.crash: BaseException | None = None  #: what ended the memory, where that was no close
        self.on_crash: Callable[[], None] | None = None  #: told of the crash before anybody else
        self.ours = True  #: False in a forked child: all of it is the parent's
        self.opening: anyio.CancelScope | None = None  #: of the store that is being opened
        self.awake = False  #: kswapd was woken and has not gone back to sleep
        node.memcg.on_room = self.verdicts.notify
        node.on_wake = self.want_kswapd
        node.on_pool_full = self.wake_shrinkers
        node.on_stale = self.wake_swapd

    # -- life -------------------------------------------------------------------------------------

    def add_actor(
        self, name: str, run: Callable[[], Awaitable[None]], *, at_once: bool = False
    ) -> None:
        """Name an actor that starts at the first pressure, or now where that has been.

        Args:
            name: of its own.
            run: what it does, for ever.
            at_once: whether all actors start as the memory is opened, because of this one.
        """
        self._actors[name] = run
        self._at_once = self._at_once or at_once
        if self._started:
            self._start(name)

    def remove_actor(self, name: str) -> None:
        """Forget an actor that ends by itself, has ended, or was never started."""
        del self._actors[name]

    def _start(self, name: str) -> None:
        self._to_start.append(name)
        self._start_now.set()

    def attach(self, tasks: TaskGroup) -> None:
        """Give the task group that the actors run in."""
        self._tasks = tasks
        tasks.start_soon(
            self.supervisor.run, "starter", lambda: self._starter(tasks), name="starter"
        )
        if self._at_once:
            self.start()

    async def _starter(self, tasks: TaskGroup) -> None:
        """Start the actors as they are wanted.

        Whoever meets the first pressure only sets an event: it may be a callback of the loop, where
        no task can be started, and the actors are to run in the context of the opening rather than
        in that of a request.

        On failure: what could not be started is tried again, as the supervisor runs this again.
        """
        while True:
            self._start_now = anyio.Event()
            started: list[str] = []
            while self._to_start:
                name = self._to_start[0]
                if name in self._actors:  # swapped off meanwhile, if not
                    tasks.start_soon(self.supervisor.run, name, self._actors[name], name=name)
                    started.append(name)
                self._to_start.popleft()
            if started:
                self.log.debug("actors.started", actors=started)
            while self._to_free:
                tasks.start_soon(self._let_go, self._to_free.popleft(), name="let_go")
            if self._to_trim:
                self._to_trim = False
                tasks.start_soon(self.malloc.trim, name="trim")
            await self._start_now.wait()

    def start(self) -> None:
        """Start the actors, once. Nothing runs before the first pressure."""
        if self._started or self._tasks is None or self.closing:
            return
        self._started = True
        for name in self._actors:
            self._start(name)

    def let_go(self, held: list[bytes] | mmap) -> None:
        """Free a large value in slices, if it is one; nobody waits for that."""
        if held and self._tasks is not None and not self.closing:
            self._to_free.append(held)
            self._start_now.set()

    async def _let_go(self, held: list[bytes] | mmap) -> None:
        await let_go(held)
        self.look_at_malloc()

    def look_at_malloc(self) -> None:
        """Have the heap trimmed, in a thread, if that is due; nobody waits for that."""
        if self.malloc.due():
            self._to_trim = True
            self._start_now.set()

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
            end_all(self.fifo.drain(), self.hand_back)
        finally:
            self.fifo.close()
            self.wakeups.close()
            self._wakeup_rx.close()
            try:
                end_all(self.swapds.values(), lambda swapd: swapd.close())
            finally:
                self.verdicts.notify()
                self.pressure.notify()

    def tune(self, *, kcompressd: bool | None, fifo: int | None) -> None:
        """Change what the FIFO takes from now on; what is in it goes its way."""
        if kcompressd is not None:
            self.kcompressd = kcompressd
        if fifo is not None:
            self.fifo.limit = fifo
        self.log.debug("kcompressd.tuned", on=self.kcompressd, fifo=self.fifo.limit)
        self.fifo.room_made.notify()  # a kswapd that waits for room looks again

    # -- wake-ups ---------------------------------------------------------------------------------

    def wake_kswapd(self) -> None:
        """Wake kswapd where that is more than a no-op; wake-ups coalesce."""
        for swapd in self.swapds.values():
            swapd.loads.drop_readahead()
            if not swapd.device.takes_writes:
                swapd.backing.revive(self.loop.now())
        if self.kswapd.wants_to_run() and not self.closing:
            self.start()
            self.awake = True
            try:
                self.wakeups.send_nowait(None)
            except anyio.WouldBlock:
                return  # one is waiting already: it will see everything that this one says

    def want_kswapd(self) -> None:
        """Free memory is below *low*: wake kswapd unless it runs. Each put under pressure asks."""
        if not self.kswapd.running:
            self.wake_kswapd()

    async def woken(self) -> None:
        """Wait for a wake-up of kswapd."""
        await self._wakeup_rx.receive()

    def wake_swapd(self, device: int) -> None:
        """Tell a swapd that slots are to be forgotten."""
        if not self.closing and device in self.swapds:
            self.start()
            self.swapds[device].forgets.wake()

    def wake_shrinkers(self) -> None:
        """Tell every swapd in service that what is not resident is to be written back."""
        wanted = self.node.zswap.excess() or self.node.demotion.wanted
        if wanted and not self.closing:
            for swapd in self.swapds.values():
                if swapd.device.takes_writes:
                    self.start()
                    swapd.stores.wake_shrinker()

    # -- how a batch ends -------------------------------------------------------------------------

    def producer(self, who: Reclaimer) -> Producer:
        """Return a producer of batches, with an order of its own where the topology has one."""
        return Producer(who, Reorder() if self._ordered else None)

    def in_turn(self, batch: FolioBatch) -> Producer:
        """Give a batch its turn in the ordered stream of its producer, where there is one."""
        if batch.producer is None:
            batch.producer = self.kswapd_stream
        if batch.producer.order is not None and batch.seq is None:
            batch.seq = batch.producer.order.next_seq()
        return batch.producer

    def begin(self, batch: FolioBatch) -> list[bytes]:
        """Return the bytes of a batch for the offload, whose list they are from then on."""
        pages, writes = self.swapout.begin(batch, hold=self.offload.holds)
        self.offer(writes)
        return pages

    def finish(self, batch: FolioBatch, out: Squeezed) -> None:
        """End a batch with what compressing it gave, and route the writes that follow."""
        self._notice_failure(batch, out)
        self._emit(batch, out)

    def _notice_failure(self, batch: FolioBatch, out: Squeezed) -> None:
        """Say it once when a compressor that worked has failed; how often is in vmstat."""
        if FAIL in out.kinds:
            self._name_lethal(batch)
            self._failed_with = out.why or self._failed_with
            if self._worked == RECOVERED:
                self.log.warning(
                    "compressor.failed",
                    compressor=self._compressor.name,
                    error=out.why or "it killed a worker",
                    effect="what it fails on goes to a store as it is, or stays in memory",
                    counter="reject_compress_fail",
                )
            self._worked = 0
        elif self._worked < RECOVERED:
            self._worked = min(RECOVERED, self._worked + len(out.kinds))

    @property
    def failing(self) -> str:
        """Why the compressor does not count as working, "" where it does."""
        if self._worked == RECOVERED:
            return ""
        what = f"failed within the last {RECOVERED} pages"
        last = self._failed_with or "it killed a worker"
        return f"compressor {self._compressor.name!r} {what}; the last error: {last}"

    def _name_lethal(self, batch: FolioBatch) -> None:
        """Say once of each folio that killed workers whose it is."""
        for key, size in self.swapout.lethal(batch):
            self.log.error(
                "compressor.killed_workers",
                compressor=self._compressor.name,
                key=f"{key!r:.200}",
                size=size,
                effect="it is not compressed: it goes to a store as it is, or stays in memory",
            )

    def hand_back(self, batch: FolioBatch) -> None:
        """End a batch without a result: its folios are resident as before."""
        self.node.vmstat["kcompressd_handed_back"] += len(self.swapout.owned(batch))
        self._emit(batch, None)

    def _emit(self, batch: FolioBatch, out: Squeezed | None) -> None:
        """End a batch, and those that waited for its turn."""
        turns = [(batch, out)]
        order = batch.producer.order if batch.producer is not None else None
        if order is not None and batch.seq is not None:
            turns = order.push(batch.seq, (batch, out))
        for ready, _ in turns:
            _left_the_queue(ready)
        try:
            end_all(turns, lambda turn: self._end(*turn))
        finally:
            self.verdicts.notify()

    def _end(self, batch: FolioBatch, out: Squeezed | None) -> None:
        if out is None:
            self.swapout.hand_back(batch)
            return
        try:
            writes = self.swapout.complete(batch, out)
        except BaseException as exc:  # a policy broke its contract in the middle
            undo(exc, self.swapout.hand_back, batch)
            raise
        self.offer(writes, ram_only=batch.ram_only)

    def offer(self, writes: Sequence[StoreBatch], *, ram_only: bool = False) -> None:
        """Offer writes to their stores: a device that compresses takes its pages here and now.

        Mailbox full: folios stay, dirty, and kswapd throttles.
        """
        end_all(writes, lambda write: self._offer(write, ram_only=ram_only))

    def _offer(self, write: StoreBatch, *, ram_only: bool) -> None:
        if self.closing or (ram_only and write.kept is None):
            self.pageout.refuse(write)
            return
        swapd = self.swapds[write.device]
        try:
            self.start()
        except BaseException as exc:  # the host's task group has ended
            undo(exc, self.pageout.refuse, write)
            raise
        if write.kept is not None:
            self.offer(swapd.stores.store_now(write), ram_only=ram_only)
        else:
            self._mail(write, swapd)

    def _mail(self, write: StoreBatch, swapd: Swapd) -> None:
        if not self._room_at_store(write, swapd.device) or not swapd.stores.offer(write):
            swapd.device.congested = self.kswapd.throttled = True
            self.node.vmstat["nr_throttled_written"] += len(write.pfns)
            self.pageout.refuse(write)

    def _room_at_store(self, write: StoreBatch, device: SwapDevice) -> bool:
        """Whether a store may be given so much: as much as may be compressed, or one write alone.

        Each store has this bound of its own: one that hangs keeps no other from being written to.
        """
        at_store = device.at_store  # what this write brings is in it already
        return not write.reclaims or at_store <= max(write.nr_bytes, self.pipeline.max_bytes)

    # -- compressing in the loop ------------------------------------------------------------------

    @property
    def ram_takes(self) -> bool:
        """Whether a folio that compresses stays in memory: the pool, or a store that compresses."""
        return self.node.zswap.accepts() or self.swapout.zram.next_in_line

    def compress_inline(self, batch: FolioBatch) -> None:
        """Compress a whole batch here and now, and end it. Size it with `Rates.slice_bytes`."""
        try:
            pages, writes = self.swapout.begin(batch, hold=False)
            self.offer(writes, ram_only=batch.ram_only)
            started = self.cpu.now()
            out = squeeze(self._compressor, pages, never=self.node.lethal)
        except BaseException as exc:  # Ctrl-C in the middle of it, or a policy's
            undo(exc, self.hand_back, batch)
            raise
        self.cpu.rates.compressed(sum(map(len, pages)), self.cpu.worked(started))
        self.finish(batch, out)

    def reclaim_inline(
        self,
        nr: int,
        who: Reclaimer,
        *,
        max_bytes: int | None = None,
        ram_only: bool = False,
        producer: Producer | None = None,
    ) -> int:
        """Reclaim up to `nr` folios, about a slice's worth, in the calling task.

        The one path of everybody who compresses in the event loop: direct reclaim, `put_nowait`,
        proactive reclaim, and a machine without workers (I13). At least one folio is tried,
        whatever its size.

        Returns:
            Bytes really freed at once: folio sizes less the blobs kept. Writes to a store free
            theirs later.
        """
        before = self.ledger.freed_total
        limit = min(self.cpu.rates.slice_bytes(), max_bytes or self.pipeline.max_bytes)
        batch = self.swapout.isolate(nr, limit, who, producer, ram_only=ram_only)
        if not ram_only and (batch is None or self.node.scan.seen_all):
            # The caller's need is not known here: free memory may be at *high*, and too little.
            cluster = SWAP_CLUSTER_MAX * self.node.page_size
            self.node.writeback.want(cluster if who is Reclaimer.DIRECT else 0)
        if batch is None:
            return 0
        if self.kcompressd and self.node.zswap.enabled:
            self.node.vmstat["kcompressd_bypassed"] += batch.nr_pages
        self.compress_inline(batch)
        return self.ledger.freed_total - before

    # -- decompressing ----------------------------------------------------------------------------

    def takes_long(self, pfns: Sequence[int]) -> bool:
        """Whether decompressing these folios would hold the loop for longer than a slice."""
        mm = self.node.mm
        if len(pfns) == 1 and mm.bytes_of(pfns) <= self.node.page_size:
            return False
        return self.cpu.rates.too_slow_to_expand(mm.bytes_of(mm.pooled(pfns)))

    async def expand(self, held: Sequence[Held]) -> list[bytes | None]:
        """Decompress what the pool held off the loop; None for what fails, to fail in turn.

        Nothing changes hands: whether a blob is still there is for the fault to see.
        """
        decompress = self._compressor.decompress
        same: dict[tuple[int, int], bytes] = {}  # a value of zeros is one folio, many times

        def work(one: Held) -> bytes | None:
            try:
                if isinstance(one.what, int):
                    known = same.get(key := (one.what, one.size))
                    return known or same.setdefault(key, expand(one.what, one.size))
                return decompress(one.what, one.size)
            except Exception:  # noqa: BLE001 - the fault itself will meet it, and say whose blob
                return None

        if self.offload.inline:
            results: list[bytes | None] = []
            for one in held:  # as slow as it is, but others get their turn
                results.append(work(one))
                await checkpoint()
            return results
        folio = sum(one.size for one in held) // max(1, len(held))
        min_chunk = max(1, round(self.cpu.rates.worth_a_hop() / max(1, folio)))
        return await multithreaded(work, held, limiter=self.readers, min_chunk=min_chunk)

    @property
    def late(self) -> bool:
        """Whether the workers have not answered for a while: nobody is to wait for them."""
        return self.offload.late

    async def progress_within(self, seconds: float, *, or_room: bool = False) -> bool:
        """As `progress`, but False as well once so many seconds have passed."""
        with anyio.move_on_after(seconds):
            return await self.progress(or_room=or_room)
        return False

    async def progress(self, *, or_room: bool = False) -> bool:
        """Wait for what is in flight now.

        What is queued later does not count, or two callers who find nothing could wait for each
        other without end. A blob that a store did not take was only looked at: no progress.

        Args:
            or_room: whether room that somebody else makes, say by a delete, counts too.

        Returns:
            True once reclaim has freed bytes; False once every folio that was in flight at the call
            has had its verdict, and freed none.
        """
        node, ledger = self.node, self.ledger
        freed, free = ledger.freed_total, node.memcg.free
        ends = ledger.returned_total + node.nr_in_flight
        while True:
            await self.verdicts.wait()
            self.check_open()
            if ledger.freed_total != freed or (or_room and node.memcg.free > free):
                return True
            compressed = not node.memcg.compressing or ledger.returned_total >= ends
            if compressed and not node.writeback.awaits_writes(of_late=True):
                return False

    # -- stores -----------------------------------------------------------------------------------

    def revive(self) -> None:
        """Look at the clock: try again what was full, or failed, a while ago; note who is late."""
        now = self.loop.now()
        self.kswapd.late = self.late
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


def _left_the_queue(batch: FolioBatch) -> None:
    """A batch ends now: its producer may send another."""
    if batch.producer is not None and batch.queued:
        batch.producer.in_flight -= batch.queued
        batch.producer.ended += 1
        batch.queued = 0
