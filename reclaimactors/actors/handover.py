"""How a batch of folios begins and ends, and how a write reaches its store.

`finish` and `hand_back` are the only ways a batch ends, `offer` the only way a write reaches its
store.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from reclaimactors.mm.batch import Producer, Reclaimer
from reclaimactors.mm.ending import end_all, undo
from reclaimactors.mm.padata import Reorder
from reclaimactors.mm.page_io import FAIL, Squeezed

if TYPE_CHECKING:
    from collections.abc import Sequence

    from reclaimactors.actors.machine import Machine
    from reclaimactors.actors.swapd import Swapd
    from reclaimactors.mm.batch import FolioBatch, StoreBatch
    from reclaimactors.mm.swap_device import SwapDevice

__all__ = ["Handover"]

RECOVERED = 1024  #: pages in a row without a failure after which a compressor counts as working


class Handover:
    """Of one machine.

    Args:
        machine: whose it is.
        ordered: whether batches of one producer end in the order in which they were sent.
    """

    def __init__(self, machine: Machine, *, ordered: bool) -> None:
        self._m = machine
        self._ordered = ordered
        self._worked = RECOVERED  #: pages since the compressor last failed, RECOVERED at most
        self._failed_with = ""  #: what it raised last, "" where it killed a worker

    def producer(self, who: Reclaimer) -> Producer:
        """Return a producer of batches, with an order of its own where the topology has one."""
        return Producer(who, Reorder() if self._ordered else None)

    def in_turn(self, batch: FolioBatch) -> Producer:
        """Give a batch its turn in the ordered stream of its producer, where there is one."""
        if batch.producer is None:
            batch.producer = self._m.background.stream
        if batch.producer.order is not None and batch.seq is None:
            batch.seq = batch.producer.order.next_seq()
        return batch.producer

    def begin(self, batch: FolioBatch) -> list[bytes]:
        """Return the bytes of a batch for the offload, whose list they are from then on."""
        pages, writes = self._m.swapout.begin(batch, hold=self._m.offload.holds)
        self.offer(writes)
        return pages

    def finish(self, batch: FolioBatch, out: Squeezed) -> None:
        """End a batch with what compressing it gave, and route the writes that follow."""
        self._notice_failure(batch, out)
        usec = round(out.cpu_s * 1e6)
        self._m.node.vmstat["compress_usec"] += usec
        batch.group.count("compress_usec", usec)
        self._emit(batch, out)

    def _notice_failure(self, batch: FolioBatch, out: Squeezed) -> None:
        """Say it once when a compressor that worked has failed; how often is in vmstat."""
        if FAIL in out.kinds:
            self._name_lethal(batch)
            self._failed_with = out.why or self._failed_with
            if self._worked == RECOVERED:
                self._m.log.warning(
                    "compressor.failed",
                    compressor=self._m.compressor.name,
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
        return f"compressor {self._m.compressor.name!r} {what}; the last error: {last}"

    def _name_lethal(self, batch: FolioBatch) -> None:
        """Say once of each folio that killed workers whose it is."""
        for key, size in self._m.swapout.lethal(batch):
            self._m.log.error(
                "compressor.killed_workers",
                compressor=self._m.compressor.name,
                key=f"{key!r:.200}",
                size=size,
                effect="it is not compressed: it goes to a store as it is, or stays in memory",
            )

    def hand_back(self, batch: FolioBatch) -> None:
        """End a batch without a result: its folios are resident as before."""
        self._m.node.vmstat["kcompressd_handed_back"] += len(self._m.swapout.owned(batch))
        self._emit(batch, None)

    def _emit(self, batch: FolioBatch, out: Squeezed | None) -> None:
        """End a batch, and those that waited for its turn."""
        turns = [(batch, out)]
        order = batch.producer.order if batch.producer is not None else None
        if order is not None and batch.seq is not None:
            turns = order.push(batch.seq, (batch, out), self._m.loop.now())
        for ready, _ in turns:
            _left_the_queue(ready)
        try:
            end_all(turns, lambda turn: self._end(*turn))
        finally:
            self._m.verdicts.notify()

    def _end(self, batch: FolioBatch, out: Squeezed | None) -> None:
        if out is None:
            self._m.swapout.hand_back(batch)
            return
        try:
            writes = self._m.swapout.complete(batch, out)
        except BaseException as exc:  # a policy broke its contract in the middle
            undo(exc, self._m.swapout.hand_back, batch)
            raise
        self.offer(writes, ram_only=batch.ram_only)

    def offer(self, writes: Sequence[StoreBatch], *, ram_only: bool = False) -> None:
        """Offer writes to their stores: a device that compresses takes its pages here and now.

        Mailbox full: folios stay, dirty, and kswapd throttles.
        """
        end_all(writes, lambda write: self._offer(write, ram_only=ram_only))

    def _offer(self, write: StoreBatch, *, ram_only: bool) -> None:
        if self._m.closing or (ram_only and write.kept is None):
            self._m.pageout.refuse(write)
            return
        swapd = self._m.swapds[write.device]
        try:
            self._m.starter.start()
        except BaseException as exc:  # the host's task group has ended
            undo(exc, self._m.pageout.refuse, write)
            raise
        if write.kept is not None:
            self.offer(swapd.stores.store_now(write), ram_only=ram_only)
        else:
            self._mail(write, swapd)

    def _mail(self, write: StoreBatch, swapd: Swapd) -> None:
        if not self._room_at_store(write, swapd.device) or not swapd.stores.offer(write):
            swapd.device.congested = True
            self._m.throttle(wait=True)
            self._m.node.vmstat["nr_throttled_written"] += len(write.pfns)
            self._m.pageout.refuse(write)

    def _room_at_store(self, write: StoreBatch, device: SwapDevice) -> bool:
        """Whether a store may be given so much: as much as may be compressed, or one write alone.

        Each store has this bound of its own: one that hangs keeps no other from being written to.
        """
        at_store = device.at_store  # what this write brings is in it already
        return not write.reclaims or at_store <= max(write.nr_bytes, self._m.pipeline.share_bytes)


def _left_the_queue(batch: FolioBatch) -> None:
    """A batch ends now: its producer may send another."""
    if batch.producer is not None and batch.queued:
        batch.producer.in_flight -= batch.queued
        batch.producer.ended += 1
        batch.queued = 0
