"""The writes of one swapd: store batches, write the pool's coldest blobs back.

A mailbox and lanes of their own; full: the folios stay dirty, and kswapd throttles.
"""

from __future__ import annotations

from array import array
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING

import anyio
from anyio.lowlevel import checkpoint

from reclaimactors.abc import Verdict
from reclaimactors.actors.backing import TooSlow
from reclaimactors.actors.base import Mailbox
from reclaimactors.cpu.breath import Breath
from reclaimactors.errors import BackendError, BackendFull, CorruptData
from reclaimactors.mm.ending import end_all
from reclaimactors.mm.rmap import Rmap

if TYPE_CHECKING:
    from collections.abc import Callable

    from reclaimactors.actors.backing import Backing
    from reclaimactors.actors.machine import Machine
    from reclaimactors.mm.batch import StoreBatch

__all__ = ["STORE_LANES", "Stores"]

STORE_LANES = 2
MAX_STORES = 32  #: writes of up to 1 MiB that wait
SHRINK_BATCHES = 4  #: of 32 blobs that the shrinker writes with one call, to pay for its hop
STORE_BYTES = 1 << 19  #: after which a store_many takes no further write that waits


class Stores:
    """What is written to one store."""

    def __init__(self, machine: Machine, backing: Backing) -> None:
        self._m = machine
        self.backing = backing
        self._mailbox: Mailbox[StoreBatch | None] = Mailbox(MAX_STORES)
        self._shrink_asked = False
        self.rmap: Rmap | None = None  #: from slots to folios, where somebody asks
        backend = self.backing.backend
        self._footprint = backend.footprint if backend.in_this_process else None
        if self._footprint is not None and backend.compressor is not None:
            self.rmap = Rmap()
            backend.on_shrunk = self._shrunk
            backend.never_compress = machine.node.lethal

    # -- what others ask --------------------------------------------------------------------------

    def offer(self, write: StoreBatch) -> bool:
        """Take a write if the mailbox has room."""
        try:
            self._mailbox.send_nowait(write)
        except (anyio.WouldBlock, anyio.ClosedResourceError):
            return False
        return True

    def store_now(self, write: StoreBatch) -> list[StoreBatch]:
        """Store at once what was compressed for this store, as much of it as has room.

        Returns:
            Writes to other devices, of what has not.
        """
        left = [write]
        try:
            slots, sizes, kept = self._m.pageout.squeezed_items(write)
            error: BackendError | None = None
            done = 0
            try:
                done = min(len(slots), self.backing.backend.store_squeezed(slots, sizes, kept))
            except BackendFull as exc:
                error = exc
            except Exception as exc:  # noqa: BLE001 - translated, as those of `call`
                error = self.backing.error("store", exc)
            if done < len(slots):
                left.append(self._m.pageout.split(write, done))
            whole = len(left) == 1
            elsewhere = self._stored(left.pop(0), whole=whole)
            if left:
                error = error or BackendFull(self.backing.backend.why_full)
                return elsewhere + self._failed(left.pop(), error)
            return elsewhere
        finally:
            end_all(left, self._m.pageout.refuse)  # a policy broke its contract in the middle

    def wake_shrinker(self) -> None:
        """Have the pool written back."""
        self._shrink_asked = True
        if not self._mailbox.waiting:  # a busy lane looks anyway
            with suppress(anyio.WouldBlock, anyio.ClosedResourceError):
                self._mailbox.send_nowait(None)  # an empty message: have a look

    def clear(self) -> None:
        """Hand back whatever waits: no lane is left to write it."""
        self.backing.device.congested = False
        self._m.throttle(wait=False)
        writes = [write for write in self._mailbox.drain() if write is not None]
        end_all(writes, self._m.pageout.refuse)

    def close(self) -> None:
        """Hand back whatever waits, and close the mailbox."""
        self.clear()
        self._mailbox.close()

    # -- lanes ------------------------------------------------------------------------------------

    async def lane(self) -> None:
        """Write and shrink, for ever."""
        breath = Breath(self._m.cpu.share)
        while True:
            message = await self._mailbox.receive()
            breath.begin()
            writes = [message] if message is not None else []
            while sum(write.nr_bytes for write in writes) < STORE_BYTES:
                try:
                    message = self._mailbox.receive_nowait()
                except anyio.WouldBlock:
                    break
                if message is not None:
                    writes.append(message)
            if writes:
                await self.store(writes, breath)
            if self._shrink_asked:
                self._shrink_asked = False
                await self._shrink(breath)

    async def store(self, writes: list[StoreBatch], breath: Breath) -> bool:
        """Write batches in one call, and give their verdicts; if it fails, one after the other.

        Each ends here, whatever happens.

        Args:
            writes: the batches.
            breath: of the lane: a store that answers at once must not hold the loop for ever.

        Returns:
            Whether the store has taken what it was given at once.
        """
        try:
            return await self._store(list(writes), breath)
        finally:
            # Half of the mailbox at least: kswapd isolates in vain where there is room for one.
            half = self._m.pipeline.share_bytes // 2
            few = len(self._mailbox.waiting) <= MAX_STORES // 2
            device = self.backing.device
            if few and (not self._mailbox.waiting or device.at_store <= half):
                device.congested = False
                self._m.throttle(wait=False)
            if device.aside:
                self.backing.put_aside.notify()
            self._m.verdicts.notify()

    async def _store(self, left: list[StoreBatch], breath: Breath) -> bool:
        pageout = self._m.pageout
        end: Callable[[StoreBatch], object] = pageout.refuse  # what becomes of those that are left
        try:
            items: list[tuple[int, bytes]] = []
            for write in left:
                items += pageout.items(write)
                await breath.take()
            if items:
                end = partial(pageout.refuse, aside=True)  # it may be written whatever happens
                await self.backing.call("store", self.backing.backend.store_many(items))
            end = self._acknowledged
            while left:
                await breath.take()
                end(left.pop(0))
        except BackendError as exc:
            end = pageout.refuse
            if len(left) == 1 or isinstance(exc, TooSlow):
                failed = left.copy()
                left.clear()
                # What waits is not to wait as long for the same store again.
                waiting = self._waiting() if isinstance(exc, TooSlow) else []
                try:
                    end_all(waiting, self._goes_elsewhere)
                finally:
                    end_all(failed, partial(self._refused, exc=exc))
            while left:
                await self.store([left.pop(0)], breath)
            return False
        finally:
            end_all(left, end)
        return True

    def _waiting(self) -> list[StoreBatch]:
        """Take what waits out of the mailbox."""
        writes: list[StoreBatch] = []
        with suppress(anyio.WouldBlock):
            while True:
                message = self._mailbox.receive_nowait()
                if message is not None:
                    writes.append(message)
        if self._shrink_asked:  # the empty message that said so is gone, too
            self.wake_shrinker()
        return writes

    def _acknowledged(self, write: StoreBatch) -> None:
        self._m.handover.offer(self._stored(write))

    def _refused(self, write: StoreBatch, exc: BackendError) -> None:
        self._m.handover.offer(self._failed(write, exc))

    def _goes_elsewhere(self, write: StoreBatch) -> None:
        self._m.handover.offer(self._m.pageout.store_failed(write))

    def _stored(self, write: StoreBatch, *, whole: bool = True) -> list[StoreBatch]:
        """End a write that the store has taken, or as `whole` says the part of one.

        Returns:
            Writes to other devices, where it cannot say what it holds.
        """
        try:
            charges = self._charges(write)
        except Exception as exc:  # noqa: BLE001 - translated, as those of `call`
            return self._failed(write, self.backing.error("say what it holds", exc))
        if whole:
            self.backing.is_well()
        if self.rmap is not None:
            self.rmap.note(write.pfns, write.slots)
        self._m.pageout.stored(write, charges)
        return []

    def _charges(self, write: StoreBatch) -> array[int] | None:
        """Return what this process holds for each folio, at most as much as it has freed.

        One that was cancelled meanwhile has no charge.
        """
        footprint = self._footprint
        if footprint is None:
            return None
        mm = self._m.node.mm
        rows = zip(write.pfns, write.slots, write.lengths, strict=True)
        return array("I", [  # which takes nothing but whole numbers from 0
            min(length, footprint(slots)) if mm.owned_by(pfn, write.id) else 0
            for pfn, slots, length in rows
        ])  # fmt: skip

    def _shrunk(self, slot: int) -> None:
        """The store has made a slot lighter: give back what is charged too much for its folio."""
        node = self._m.node
        pfn = self.rmap.folio(slot) if self.rmap is not None else None
        if pfn is None or self._footprint is None:
            return
        slots = node.slots.at(self.backing.device.index, pfn)
        if slot in slots:
            less = node.slots.recharge(pfn, self._footprint(slots))
            self._m.ledger.freed(node.group_of(pfn), less)

    def _failed(self, write: StoreBatch, exc: BackendError) -> list[StoreBatch]:
        """A write has failed; return writes to other devices."""
        verdict = Verdict.ACTIVATE if self.backing.failed(exc) else Verdict.ERROR
        late = isinstance(exc, TooSlow)
        return self._m.pageout.store_failed(write, verdict, aside=late)

    async def _shrink(self, breath: Breath) -> None:
        """The shrink worker: the pool's coldest blobs to this store, down to the threshold.

        After a write that failed it gives up until it is woken again: the store is to rest.
        """
        node, device = self._m.node, self.backing.device
        vm = node.vmstat
        at_once = 1  # until the store is seen to take what it is given
        while device.takes_writes:
            spared = vm["zswap_second_chance"]
            writes = await self._coldest(at_once, breath)
            if writes:
                if not await self.store(writes, breath):
                    vm["zswap_shrink_gave_up"] += 1
                    break
                at_once = SHRINK_BATCHES
            elif vm["zswap_second_chance"] == spared:
                break
            else:
                await checkpoint()
        if node.writeback.asked:
            node.writeback.cannot(device.index)
            self._m.verdicts.notify()

    async def _coldest(self, nr: int, breath: Breath) -> list[StoreBatch]:
        """Return up to `nr` writes of what is coldest: of other stores, and of the pool."""
        writes: list[StoreBatch] = []
        shrinker, device = self._m.shrinker, self.backing.device
        try:
            while len(writes) < nr:
                write = shrinker.demote(device) or shrinker.writeback(device)
                if write is None:
                    break
                writes.append(write)
                if write.moved is not None:
                    await self._read_moved(write, write.moved, breath)
                await breath.take()
        except BaseException:  # cancelled: nobody else ends them
            end_all(writes, self._m.pageout.refuse)
            raise
        return writes

    async def _read_moved(self, write: StoreBatch, moved: dict[int, bytes], breath: Breath) -> None:
        """Read folios of stores in the budget that are to move here; the write holds them.

        Slot by slot and at once, each only if the folio is still the write's: so no slot is read
        here that a fault has given back meanwhile.
        """
        node = self._m.node
        for pfn in write.pfns:
            device, slots = node.device_of(pfn), node.slots.of(pfn)
            loads = self._m.swapds[device].loads
            stored: list[bytes] = []
            for slot in slots:
                if not node.mm.owned_by(pfn, write.id):
                    break
                stored += loads.slots_now((slot,)) or ()
                await breath.take()
            if len(stored) == len(slots) and node.mm.owned_by(pfn, write.id):
                try:
                    moved[pfn] = self._m.swapin.as_stored(pfn, device, slots, stored)
                    continue
                except CorruptData:  # whoever reads the value meets it, and is told
                    node.vmstat["swapin_error"] += 1
            self._m.shrinker.cannot_move(pfn, write)
