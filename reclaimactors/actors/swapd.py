"""swapd: one per backing store. Stores, loads, forgets slots, and writes the pool's coldest back.

Two mailboxes, each with lanes of its own, so that a load never waits for a store: loads (full: the
caller waits) and stores (full: the folios stay dirty, and kswapd throttles). Slots are handed out
again only after the store has forgotten them and nobody reads them, so that calls on one slot never
overlap. Every call has a deadline. A store that keeps failing is taken out of service: it gets no
new writes, its loads are still tried.
"""

from __future__ import annotations

import errno
from itertools import islice
from typing import TYPE_CHECKING, Any

import anyio
import attrs
from anyio.lowlevel import checkpoint

from reclaimactors.abc import Backend, Verdict
from reclaimactors.actors.base import Mailbox, closed
from reclaimactors.errors import BackendError, BackendFull, CorruptData
from reclaimactors.log import log
from reclaimactors.mm.folio import DEAD, DEVICE
from reclaimactors.mm.readahead import MAX_PAGES, Readahead
from reclaimactors.mm.rmap import Rmap
from reclaimactors.mm.vmscan import MAX_RECLAIM_RETRIES
from reclaimactors.offload.breath import Breath

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from reclaimactors.actors.machine import Machine
    from reclaimactors.mm.batch import StoreBatch
    from reclaimactors.mm.swap import SwapDevice
    from reclaimactors.mm.swapin import Load

__all__ = ["Swapd", "Ticket"]

LOAD_LANES = 4
STORE_LANES = 2
MAX_LOADS = 64  #: requests that wait
MAX_STORES = 32  #: writes of up to 1 MiB that wait
LOAD_BATCH = 64  #: slots of one load_many
SHRINK_BATCHES = 4  #: of 32 blobs that the shrinker writes with one call, to pay for its hop
FORGET_RUNS = 64  #: runs of slots of one invalidate_many: a fraction of a slice
STORE_BYTES = 1 << 19  #: after which a store_many takes no further write that waits
FAILURES_TO_RETIRE = 8  #: failed stores in a row after which a device gets no more
RETRY_S = 0.5  #: after which a full store is tried again; doubles up to RETRY_MAX_S
RETRY_MAX_S = 30.0


@attrs.define(eq=False)
class Ticket:
    """One folio being read; everybody who wants it waits for the same ticket."""

    load: Load
    ahead: bool = False  #: nobody wants it: it is read along with a neighbour
    done: anyio.Event = attrs.Factory(anyio.Event)
    data: bytes | None = None
    error: Exception | None = None

    async def wait(self) -> bytes:
        """Return the folio's bytes, or raise why there are none."""
        await self.done.wait()
        if self.data is None:
            raise self.error or closed()
        return self.data


class Swapd:
    """The actor of one backing store."""

    def __init__(
        self, machine: Machine, device: SwapDevice, backend: Backend, *, timeout: float
    ) -> None:
        self._m = machine
        self.device = device
        self.backend = backend
        self.page_size = machine.node.page_size
        self.synchronous = bool(getattr(backend, "synchronous", False))
        self._timeout = timeout
        self._loads: Mailbox[list[Ticket]] = Mailbox(MAX_LOADS)
        self._stores: Mailbox[StoreBatch | None] = Mailbox(MAX_STORES)
        self.tickets: dict[int, Ticket] = {}
        footprint = getattr(backend, "footprint", None)
        elsewhere = getattr(footprint, "__func__", None) is Backend.footprint
        self._footprint = None if elsewhere else footprint
        self._rmap: Rmap | None = None
        if self._footprint is not None and getattr(backend, "compressor", None) is not None:
            self._rmap = Rmap()
            backend.on_shrunk = self._shrunk
        self._load_now: Callable[[Sequence[int]], Sequence[bytes] | None] | None
        self._load_now = getattr(backend, "load_now", None)
        self._retry_s = RETRY_S
        self._retry_at = 0.0
        self._warned = False
        self.readahead: Readahead | None = None
        self._shrink_asked = False
        self._scope = anyio.CancelScope()  # of `run`: it ends alone at swapoff
        self._running = anyio.Lock(fast_acquire=True)
        self._ended = False
        self.last_error = ""  #: why it did not take the last write, if it did not

    # -- what others ask --------------------------------------------------------------------------

    def offer(self, write: StoreBatch) -> bool:
        """Take a write if the mailbox has room."""
        try:
            self._stores.send_nowait(write)
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
                done = self.backend.store_squeezed(slots, sizes, kept)
            except BackendFull as exc:
                error = exc
            except Exception as exc:  # noqa: BLE001 - translated, as those of `_call`
                error = self._error("store", exc)
            if done < len(slots):
                left.append(self._m.pageout.split(write, done))
            self._stored(write)
            del left[0]
            if left:
                why = getattr(self.backend, "why_full", Backend.why_full)
                return self._failed(left.pop(), error or BackendFull(why))
            self._is_well()
            return []
        finally:
            for part in left:  # a policy broke its contract in the middle
                self._m.pageout.refuse(part)

    def _is_well(self) -> None:
        self.device.failures = 0
        self.last_error = ""
        self._retry_s = RETRY_S

    def wake(self) -> None:
        """Have a look at the slots to forget. A busy lane looks anyway."""
        if not self._stores.waiting:
            self.offer_nothing()

    def wake_shrinker(self) -> None:
        """Have the pool written back. Being woken for anything else does not start that."""
        self._shrink_asked = True
        self.wake()

    def offer_nothing(self) -> None:
        """Put an empty message in, which only makes a store lane look around."""
        try:
            self._stores.send_nowait(None)
        except (anyio.WouldBlock, anyio.ClosedResourceError):
            return

    def load_now(self, pfn: int, *, promote: bool) -> bytes | None:
        """Read a folio here and now where the store can; None where it takes its turn in a lane.

        Raises:
            CorruptData: if what is there is not what was stored.
        """
        if pfn in self.tickets:
            return None
        ahead = self.readahead.hit(pfn) if self.readahead is not None else None
        if ahead is None and self._load_now is None:
            return None
        load = self._m.swapin.begin_load(pfn, promote=promote)
        stored = ahead
        if stored is None and self._load_now is not None:
            try:
                stored = self._load_now(load.slots)
            except Exception:  # noqa: BLE001 - `load_many` is asked instead, and says what is wrong
                stored = None
        if not isinstance(stored, (list, tuple)):
            self._m.swapin.drop(load)
            return None
        try:
            return self._m.swapin.finish(load, stored)
        except CorruptData:
            if ahead is None:
                raise
            return None  # it was read a while ago: what the store gives now is what counts

    def request(self, pfns: Sequence[int], *, promote: bool) -> list[Ticket] | None:
        """Return a ticket for each folio, those that are being read already shared.

        Returns None where the mailbox is full: wait for `room_for_loads`, and look again.
        """
        swapin = self._m.swapin
        tickets: list[Ticket] = []
        new: list[Ticket] = []
        for pfn in pfns:
            ticket = self.tickets.get(pfn)
            if ticket is None:
                ticket = Ticket(swapin.begin_load(pfn, promote=promote))
                new.append(ticket)
            ticket.ahead = False
            tickets.append(ticket)
        if new:
            self._m.start()
            try:
                self._loads.send_nowait(new)
            except anyio.WouldBlock:
                for ticket in new:
                    swapin.drop(ticket.load)
                return None
            for ticket in new:
                self.tickets[ticket.load.pfn] = ticket
        return tickets

    @property
    def loads_full(self) -> bool:
        """Whether no further request for loads can wait."""
        return len(self._loads.waiting) >= MAX_LOADS

    async def room_for_loads(self) -> None:
        """Wait until a load was taken."""
        await self._loads.taken.wait()

    def revive(self, now: float) -> None:
        """Try a store again that was full a while ago."""
        if self.device.full and now >= self._retry_at:
            self.device.full = False

    def read_ahead(self) -> None:
        """Have neighbours read with what is asked for: seeking is dear here."""
        self._rmap = self._rmap or Rmap()
        self.readahead = Readahead(self._m.node, self.device.index, self._rmap)

    def drop_readahead(self) -> None:
        """Let go of what was read ahead: room is short."""
        if self.readahead is not None:
            self.readahead.drop()

    def close(self) -> None:
        """End whatever waits, and close the mailboxes."""
        self._clear()
        self._loads.close()
        self._stores.close()

    # -- life -------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Serve until `end`. If a lane crashes, all writes are handed back and all loads fail."""
        async with self._running:
            scope = self._scope = anyio.CancelScope()
            if self._ended:
                return
            try:
                with scope:
                    async with anyio.create_task_group() as lanes:
                        for _ in range(LOAD_LANES):
                            lanes.start_soon(self._load_lane)
                        for _ in range(STORE_LANES):
                            lanes.start_soon(self._store_lane)
                        self.wake_shrinker()  # after a crash there may be something to look at
            finally:
                self._clear()

    async def end(self) -> None:
        """Have `run` return, and wait for it: nothing is stored here any more (swapoff)."""
        self._ended = True
        self._scope.cancel()
        try:
            async with self._running:
                pass
        finally:
            self.close()

    def _clear(self) -> None:
        for write in self._stores.drain():
            if write is not None:
                self._m.pageout.refuse(write)
        self._loads.drain()
        self.drop_readahead()
        for ticket in list(self.tickets.values()):
            stopped = self._error("load", RuntimeError("its swapd stopped"))
            self._end(ticket, error=anyio.ClosedResourceError() if self._m.closing else stopped)

    async def _call(self, what: str, call: Awaitable[Any]) -> Any:
        """Await a call of the backend under the deadline; translate what it raises, once."""
        with anyio.move_on_after(self._timeout) as scope:
            try:
                answer = await call
            except BackendFull:
                raise
            except Exception as exc:
                raise self._error(what, exc) from exc
            except anyio.get_cancelled_exc_class() as exc:
                await checkpoint()  # goes on up where it is we who are cancelled
                raise self._error(what, RuntimeError("a call inside it was cancelled")) from exc
            if scope.cancel_called and not self._warned:
                self._warned = True
                log.warning("swapd.cannot_cancel", device=self.device.name, call=what,
                            hint="neither its deadline nor that of close holds")  # fmt: skip
            return answer
        assert scope.cancelled_caught  # nothing else gets here
        raise _TooSlow(f"swap {self.device.name!r} took longer than {self._timeout:g} s to {what}")

    def _error(self, what: str, exc: Exception) -> BackendError:
        detail = str(exc) if isinstance(exc, BackendError) else f"{type(exc).__name__}: {exc}"
        message = f"swap {self.device.name!r} failed to {what}: {detail}"
        number = exc.errno if isinstance(exc, OSError) else None
        return BackendError(number or errno.EIO, message)

    # -- loads ------------------------------------------------------------------------------------

    async def _load_lane(self) -> None:
        while True:
            tickets = await self._loads.receive()
            while sum(len(ticket.load.slots) for ticket in tickets) < LOAD_BATCH:
                try:
                    tickets += self._loads.receive_nowait()
                except anyio.WouldBlock:
                    break
            await self.load(tickets)

    async def load(self, tickets: list[Ticket], *, ahead: bool = True) -> None:
        """Read a batch of folios; one that cannot be read does not spoil the others."""
        near = self._begin_ahead(tickets) if ahead and self.readahead is not None else []
        try:
            stored = await self._read([ticket.load for ticket in tickets + near])
        except BackendError as exc:
            asked = self._asked_for(near)
            if isinstance(exc, _TooSlow) or (len(tickets) == 1 and not near):
                for ticket in tickets + asked:
                    self._end(ticket, error=exc)
            else:
                for some in [tickets] if near else [[ticket] for ticket in tickets]:
                    await self.load(some, ahead=False)
                for ticket in asked:
                    await self.load([ticket], ahead=False)
            return
        for ticket, parts in zip(tickets + near, stored, strict=True):
            if ticket.ahead and self.readahead is not None:
                self._drop(ticket)
                self.readahead.keep(ticket.load.pfn, parts)
            else:
                self._finish(ticket, parts)

    def _asked_for(self, near: Sequence[Ticket]) -> list[Ticket]:
        """Return what was read ahead and is wanted by now; the others end, unread."""
        for ticket in near:
            if ticket.ahead:
                self._drop(ticket)
        return [ticket for ticket in near if not ticket.ahead]

    def _drop(self, ticket: Ticket) -> None:
        if self.tickets.pop(ticket.load.pfn, None) is not None:
            self._m.swapin.drop(ticket.load)

    async def _read(self, loads: Sequence[Load]) -> list[Sequence[bytes]]:
        """Return what the slots of each folio hold.

        Raises:
            BackendError: if they cannot be read.
        """
        slots = [slot for load in loads for slot in load.slots]
        stored: Sequence[bytes] = await self._call("load", self.backend.load_many(slots))
        if not isinstance(stored, (list, tuple)) or len(stored) != len(slots):
            wrong = TypeError(f"load_many gave {stored!r:.80}, not a list of {len(slots)}")
            raise self._error("load", wrong)
        parts = iter(stored)
        return [list(islice(parts, len(load.slots))) for load in loads]

    def _begin_ahead(self, tickets: Sequence[Ticket]) -> list[Ticket]:
        """Start reading the neighbours of what is wanted, where it is not too much as it is.

        Whoever wants one of them meanwhile shares its ticket: no slot is read twice at a time.
        """
        assert self.readahead is not None
        if len(tickets) >= MAX_PAGES:
            return []
        pfns = self.readahead.neighbours(tickets[0].load.slots[0], list(self.tickets))
        near = [Ticket(self._m.swapin.begin_load(pfn, promote=False), ahead=True) for pfn in pfns]
        self.tickets.update((ticket.load.pfn, ticket) for ticket in near)
        return near

    def _finish(self, ticket: Ticket, stored: Sequence[bytes]) -> None:
        if self.tickets.pop(ticket.load.pfn, None) is None:
            return
        try:
            ticket.data = self._m.swapin.finish(ticket.load, stored)
        except CorruptData as exc:
            ticket.error = exc
        finally:
            ticket.done.set()

    def _end(self, ticket: Ticket, *, error: Exception) -> None:
        if self.tickets.pop(ticket.load.pfn, None) is None:
            return
        self._m.swapin.fail(ticket.load)
        ticket.error = error
        ticket.done.set()

    # -- stores -----------------------------------------------------------------------------------

    async def _store_lane(self) -> None:
        while True:
            message = await self._stores.receive()
            writes = [message] if message is not None else []
            while sum(write.nr_bytes for write in writes) < STORE_BYTES:
                try:
                    message = self._stores.receive_nowait()
                except anyio.WouldBlock:
                    break
                if message is not None:
                    writes.append(message)
            if writes:
                await self.store(writes)
            await self._forget()
            if self._shrink_asked:
                self._shrink_asked = False
                await self._shrink()

    async def store(self, writes: list[StoreBatch]) -> bool:
        """Write batches in one call, and give their verdicts; if it fails, one after the other.

        Returns:
            Whether the store has taken what it was given at once.
        """
        machine = self._m
        left, taken = list(writes), False
        try:
            breath = Breath()
            items: list[tuple[int, bytes]] = []
            for write in writes:
                items += machine.pageout.items(write)
                await breath.take()
            if items:
                await self._call("store", self.backend.store_many(items))
            for write in writes:
                await breath.take()
                self._stored(write)
                left.remove(write)
            self._is_well()
            taken = True
        except BackendError as exc:
            single, left = left, []
            if len(single) == 1 or isinstance(exc, _TooSlow):
                for write in single:
                    machine.offer(self._failed(write, exc))
            else:
                left = single
                while left:
                    await self.store([left.pop(0)])
        finally:
            for write in left:
                machine.pageout.refuse(write, retire=True)
            # Half of the mailbox at least: kswapd isolates in vain where there is room for one.
            if len(self._stores.waiting) <= MAX_STORES // 2:
                machine.kswapd.throttled = False
            machine.verdicts.notify()
        return taken

    def _stored(self, write: StoreBatch) -> None:
        if self._rmap is not None:
            self._rmap.note(write.pfns, write.slots)
        self._m.pageout.stored(write, self._charges(write))

    def _charges(self, write: StoreBatch) -> list[int] | None:
        """Return what this process holds for each folio, at most as much as it has freed.

        One that was cancelled meanwhile has no charge.
        """
        footprint = self._footprint
        if footprint is None:
            return None
        owner = self._m.node.mm.owner
        return [
            min(length, footprint(slots)) if owner[pfn] == write.id else 0
            for pfn, slots, length in zip(write.pfns, write.slots, write.lengths, strict=True)
        ]

    def _shrunk(self, slot: int) -> None:
        """The store has made a slot lighter: give back what is charged too much for its folio."""
        node = self._m.node
        pfn = self._rmap.folio(slot) if self._rmap is not None else None
        if pfn is None or self._footprint is None or node.mm.device[pfn] != self.device.index:
            return
        state = node.mm.state[pfn]
        if state == DEVICE or (state == DEAD and node.mm.data.get(pfn) is None):
            slots = node.slots_of(pfn)
            if slot in slots:
                self._m.ledger.freed_total += node.recharge(pfn, self._footprint(slots))

    def _failed(self, write: StoreBatch, exc: BackendError) -> list[StoreBatch]:
        """A store raised: full is tried again later, anything else counts against the device.

        Returns:
            Writes to other devices.
        """
        device = self.device
        full = isinstance(exc, BackendFull)
        self.last_error = f"swap {device.name!r} is full: {exc}" if full else str(exc)
        if full and not device.full:
            device.full = True
            self._m.node.swapcache.shed(device, device.used)
            self._retry_at = anyio.current_time() + self._retry_s
            log.warning("swapd.store_full", device=device.name, retry_in_s=self._retry_s)
            self._retry_s = min(RETRY_MAX_S, 2 * self._retry_s)
        elif not full:
            device.failures += 1
            if device.failures == 1:
                log.warning("swapd.store_failed", device=device.name, error=str(exc))
            if device.failures >= FAILURES_TO_RETIRE and device.in_service:
                device.in_service = False
                self._m.node.vmstat["swap_out_of_service"] += 1
                log.error("swapd.out_of_service", device=device.name, failures=device.failures)
        machine = self._m
        verdict = Verdict.ACTIVATE if full else Verdict.ERROR
        late = isinstance(exc, _TooSlow)
        return machine.pageout.store_failed(write, verdict, retire=late)

    async def _forget(self) -> None:
        breath = Breath()
        while runs := self._m.node.take_stale(self.device.index, FORGET_RUNS):
            await self._forget_some(runs)
            await breath.take()

    async def _forget_some(self, runs: list[tuple[int, int]]) -> None:
        node = self._m.node
        forgotten = False
        try:
            slots = [slot for first, nr in runs for slot in range(first, first + nr)]
            await self._call("forget", self.backend.invalidate_many(slots))
            forgotten = True
        except BackendError as exc:
            log.warning("swapd.forget_failed", device=self.device.name, error=str(exc))
            # Storing replaces what is there, so a refusal does no harm; a late success would.
            forgotten = not isinstance(exc, _TooSlow)
        finally:
            if forgotten:
                node.forgotten(self.device.index, runs)
            else:
                node.never_forgotten(self.device.index, runs)
            self._m.verdicts.notify()

    async def _shrink(self) -> None:
        """The shrink worker: the pool's coldest blobs to this store, down to the threshold.

        After MAX_RECLAIM_RETRIES failed writes in a row it gives up until it is woken again.
        """
        node = self._m.node
        vm = node.vmstat
        failures = 0
        at_once = 1  # until the store is seen to take what it is given
        while self.device.takes_writes and failures < MAX_RECLAIM_RETRIES:
            spared = vm["zswap_second_chance"]
            writes = await self._coldest(at_once)
            if writes:
                taken = await self.store(writes)
                failures, at_once = (0, SHRINK_BATCHES) if taken else (failures + 1, 1)
                await self._forget()
            elif vm["zswap_second_chance"] == spared:
                break
            else:
                await checkpoint()
        vm["zswap_shrink_gave_up"] += failures == MAX_RECLAIM_RETRIES
        if node.zswap.wanted:
            node.cannot_write_back(self.device.index)
            self._m.verdicts.notify()

    async def _coldest(self, nr: int) -> list[StoreBatch]:
        """Return up to `nr` writes of the pool's coldest blobs."""
        breath = Breath()
        writes: list[StoreBatch] = []
        try:
            while len(writes) < nr:
                write = self._m.pageout.writeback(self.device)
                if write is None:
                    break
                writes.append(write)
                await breath.take()
        except BaseException:  # cancelled: nobody else ends them
            for write in writes:
                self._m.pageout.refuse(write)
            raise
        return writes


class _TooSlow(BackendError):  # noqa: N818 - says what happened
    """The deadline passed; what was asked may still happen."""
