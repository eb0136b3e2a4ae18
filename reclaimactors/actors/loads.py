"""The loads of one swapd: who wants a folio of a store gets a ticket, and lanes read batches.

A mailbox and lanes of their own, so that a load never waits for a store. Where seeking is dear,
neighbours are read along.
"""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING

import anyio
import attrs

from reclaimactors.actors.backing import TooSlow
from reclaimactors.actors.base import Mailbox
from reclaimactors.actors.supervision import closed, unraised
from reclaimactors.cpu.breath import Breath
from reclaimactors.errors import BackendError, CorruptData
from reclaimactors.mm.ending import end_all
from reclaimactors.mm.readahead import MAX_PAGES, Readahead

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from reclaimactors.actors.backing import Backing
    from reclaimactors.actors.machine import Machine
    from reclaimactors.mm.rmap import Rmap
    from reclaimactors.mm.swapin import Load

__all__ = ["LOAD_LANES", "Loads", "Ticket"]

LOAD_LANES = 4
MAX_LOADS = 64  #: requests that wait
LOAD_BATCH = 64  #: slots that a load_many has at least, if so many are asked for
MOST_SLOTS = 64  #: slots of one load_many, or those of one folio: 256 KiB of pages of 4 KiB


def _ignore() -> None:
    """Nobody waits for that."""


@attrs.define(eq=False)
class Ticket:
    """One folio being read; everybody who wants it waits for the same ticket."""

    load: Load
    ahead: bool = False  #: nobody wants it: it is read along with a neighbour
    data: bytes | None = None
    error: Exception | None = None
    _done: bool = attrs.field(default=False, init=False)
    _event: anyio.Event | None = attrs.field(default=None, init=False)

    def end(self, *, data: bytes | None = None, error: Exception | None = None) -> None:
        """Tell all who wait what came of it."""
        self.data, self.error, self._done = data, error, True
        if self._event is not None:
            self._event.set()

    async def wait(self) -> bytes:
        """Return the folio's bytes, or raise why there are none: each waiter a new instance."""
        if not self._done:
            if self._event is None:  # not one for each folio of a large value: it costs 5 us
                self._event = anyio.Event()
            await self._event.wait()
        if self.data is None:
            raise unraised(self.error) if self.error is not None else closed()
        return self.data


class Loads:
    """What is read from one store, and what was read ahead."""

    def __init__(self, machine: Machine, backing: Backing) -> None:
        self._m = machine
        self.backing = backing
        self._mailbox: Mailbox[list[Ticket]] = Mailbox(MAX_LOADS)
        self.tickets: dict[int, Ticket] = {}
        self.readahead: Readahead | None = None
        self.begun = 0  #: faults that asked for something since the start
        self.on_none_left: Callable[[], None] = _ignore  #: no load is on its way any more
        self._failing = False  # the last read has failed
        self._finishing = anyio.Lock(fast_acquire=True)  # four lanes in one turn make it long
        self._load_now = backing.backend.load_now

    # -- what others ask --------------------------------------------------------------------------

    def load_now(self, pfn: int, *, promote: bool) -> bytes | None:
        """Read a folio here and now where the store can; None where it takes its turn in a lane.

        Raises:
            CorruptData: if what is there is not what was stored.
        """
        self.begun += 1
        if pfn in self.tickets:
            return None
        ahead = self.readahead.hit(pfn) if self.readahead is not None else None
        (load,) = self._m.swapin.begin_loads((pfn,), promote=promote)
        stored = ahead if ahead is not None else self.slots_now(load.slots)
        if stored is None:
            self._m.swapin.drop(load)
            return None
        try:
            return self._m.swapin.finish(load, stored)
        except CorruptData:
            if ahead is None:
                raise
            return None  # it was read a while ago: what the store gives now is what counts

    def slots_now(self, slots: Sequence[int]) -> Sequence[bytes] | None:
        """Return what slots hold where the store can say at once, else None."""
        try:
            stored: object = self._load_now(slots)  # a plugin's word
        except Exception:  # noqa: BLE001 - `load_many` is asked instead, and says what is wrong
            return None
        return stored if isinstance(stored, (list, tuple)) else None

    def request(self, pfns: Sequence[int], *, promote: bool) -> list[Ticket] | None:
        """Return a ticket for each folio, those that are being read already shared.

        Returns None where the mailbox is full: wait for `room_for_loads`, and look again.
        """
        self.begun += 1
        swapin = self._m.swapin
        missing = [pfn for pfn in pfns if pfn not in self.tickets]
        if missing:
            new = [Ticket(load) for load in swapin.begin_loads(missing, promote=promote)]
            try:
                self._m.starter.start()
                self._mailbox.send_nowait(new)
            except BaseException as exc:
                end_all(new, lambda ticket: swapin.drop(ticket.load))
                if isinstance(exc, anyio.WouldBlock):
                    return None
                raise
            self.tickets.update(zip(missing, new, strict=True))
        tickets = [self.tickets[pfn] for pfn in pfns]
        for ticket in tickets:
            ticket.ahead = False
        return tickets

    @property
    def full(self) -> bool:
        """Whether no further request for loads can wait."""
        return len(self._mailbox.waiting) >= MAX_LOADS

    async def room(self) -> None:
        """Wait until a load was taken."""
        await self._mailbox.taken.wait()

    def read_ahead(self, rmap: Rmap) -> None:
        """Have neighbours read with what is asked for: seeking is dear here."""
        self.readahead = Readahead(self._m.node, self.backing.device.index, rmap)

    def drop_readahead(self) -> None:
        """Let go of what was read ahead: room is short."""
        if self.readahead is not None:
            self.readahead.drop()

    def clear(self, why: str = "stopped") -> None:
        """Fail whatever waits: no lane is left to read it, because its swapd did `why`."""
        self._mailbox.drain()
        self.drop_readahead()
        end_all(list(self.tickets.values()), lambda ticket: self._stopped(ticket, why))

    def _stopped(self, ticket: Ticket, why: str) -> None:
        stopped = self.backing.error("load", RuntimeError(f"its swapd {why}"))
        self._end(ticket, error=self._m.closed() if self._m.closing else stopped)

    def close(self) -> None:
        """Fail whatever waits, and close the mailbox."""
        self.clear()
        self._mailbox.close()

    # -- lanes ------------------------------------------------------------------------------------

    async def lane(self) -> None:
        """Read what is asked for, for ever."""
        breath = Breath()
        while True:
            tickets = await self._mailbox.receive()
            breath.begin()
            while sum(len(ticket.load.slots) for ticket in tickets) < LOAD_BATCH:
                try:
                    tickets += self._mailbox.receive_nowait()
                except anyio.WouldBlock:
                    break
            await self._load_each(_in_pieces(tickets), breath)

    async def _load_each(
        self, groups: Iterable[list[Ticket]], breath: Breath, *, ahead: bool = True
    ) -> TooSlow | None:
        """Read batches one after the other; once the store is too slow, the others fail with it."""
        late: TooSlow | None = None
        for tickets in groups:
            if late is None:
                late = await self.load(tickets, breath, ahead=ahead)
                continue
            for ticket in tickets:
                self._end(ticket, error=late)
        return late

    async def load(
        self, tickets: list[Ticket], breath: Breath, *, ahead: bool = True
    ) -> TooSlow | None:
        """Read a batch of folios; one that cannot be read does not spoil the others.

        Args:
            tickets: the batch.
            breath: of the lane: a store that answers at once must not hold the loop for ever.
            ahead: whether neighbours are read along.

        Returns:
            The error where the store was too slow: it is not asked for anything else then.
        """
        near = self._begin_ahead(tickets) if ahead and self.readahead is not None else []
        try:
            stored = await self._read([ticket.load for ticket in tickets + near])
        except BackendError as exc:
            self._say(exc)
            asked = self._asked_for(near)
            late = exc if isinstance(exc, TooSlow) else None
            if late is not None or (len(tickets) == 1 and not near):
                for ticket in tickets + asked:
                    self._end(ticket, error=exc)
                return late
            groups = [tickets] if near else [[ticket] for ticket in tickets]
            groups += [[ticket] for ticket in asked]
            return await self._load_each(groups, breath, ahead=False)
        self._failing = False
        asked_for: list[tuple[Ticket, Sequence[bytes]]] = []
        for ticket, parts in zip(tickets + near, stored, strict=True):
            if ticket.ahead and self.readahead is not None:  # before its neighbour's reader goes on
                self._drop(ticket)
                self.readahead.keep(ticket.load.pfn, parts)
            else:
                asked_for.append((ticket, parts))
        async with self._finishing:
            for ticket, parts in asked_for:
                self._finish(ticket, parts)
                await breath.take()
        return None

    def _say(self, exc: BackendError) -> None:
        """Say the first failure in a row, with its traceback: what readers get has none."""
        if not self._failing:
            self._failing = True
            device = self.backing.device.name
            self._m.log.warning("swapd.load_failed", device=device, error=str(exc), exc_info=exc)

    def _asked_for(self, near: Sequence[Ticket]) -> list[Ticket]:
        """Return what was read ahead and is wanted by now; the others end, unread."""
        for ticket in near:
            if ticket.ahead:
                self._drop(ticket)
        return [ticket for ticket in near if not ticket.ahead]

    def _drop(self, ticket: Ticket) -> None:
        if self._take_off(ticket):
            self._m.swapin.drop(ticket.load)

    def _take_off(self, ticket: Ticket) -> bool:
        """Take a ticket that ends off the list; return False where it has ended before."""
        if self.tickets.pop(ticket.load.pfn, None) is None:
            return False
        if not self.tickets:
            self.on_none_left()
        return True

    async def _read(self, loads: Sequence[Load]) -> list[Sequence[bytes]]:
        """Return what the slots of each folio hold.

        Raises:
            BackendError: if they cannot be read.
        """
        slots = [slot for load in loads for slot in load.slots]
        stored: Sequence[bytes] = await self.backing.call(
            "load", self.backing.backend.load_many(slots)
        )
        if not isinstance(stored, (list, tuple)) or len(stored) != len(slots):
            wrong = TypeError(f"load_many gave {stored!r:.80}, not a list of {len(slots)}")
            raise self.backing.error("load", wrong)
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
        loads = self._m.swapin.begin_loads(pfns, promote=False)
        near = [Ticket(load, ahead=True) for load in loads]
        self.tickets.update((ticket.load.pfn, ticket) for ticket in near)
        return near

    def _finish(self, ticket: Ticket, stored: Sequence[bytes]) -> None:
        if not self._take_off(ticket):
            return
        data: bytes | None = None
        error: Exception | None = None
        try:
            data = self._m.swapin.finish(ticket.load, stored)
        except CorruptData as exc:
            error = exc
        except Exception as exc:  # noqa: BLE001 - a policy's: it goes to who asked, if anybody did
            error = exc
            self._broken(exc)
        finally:
            ticket.end(data=data, error=error)

    def _broken(self, exc: Exception) -> None:
        device = self.backing.device.name
        self._m.log.error("swapd.load_failed", device=device, error=str(exc), exc_info=exc)

    def _end(self, ticket: Ticket, *, error: Exception) -> None:
        if not self._take_off(ticket):
            return
        self._m.swapin.fail(ticket.load)
        ticket.end(error=error)


def _in_pieces(tickets: list[Ticket]) -> Iterator[list[Ticket]]:
    """Yield tickets in groups of at most MOST_SLOTS, one ticket at least."""
    some: list[Ticket] = []
    nr_slots = 0
    for ticket in tickets:
        nr_slots += len(ticket.load.slots)
        if some and nr_slots > MOST_SLOTS:
            yield some
            some, nr_slots = [], len(ticket.load.slots)
        some.append(ticket)
    if some:
        yield some
