"""The path of a get that is no resident hit: from the pool at once, from a store through its swapd.

What a store has at hand is read at once too. All or nothing: what is asked for is reserved before
the first load goes out, and a get never waits for room.

A value of several folios is taken in one step, as it is then: the bytes that are resident, the
blobs of the pool, loads of what stores have. Decompressing and joining follow, in threads or in
slices, so that no step is as long as the value; whatever becomes of the key meanwhile, what is
returned is one whole value that it had during the call.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, TypeVar

from reclaimactors.callers.expand import Expander
from reclaimactors.callers.stall import Stall
from reclaimactors.cpu import clock
from reclaimactors.cpu.breath import SLICE_S, Breath, let_go
from reclaimactors.mm.swapin import Expanded
from reclaimactors.offload.job import COPY_BYTES, join

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Hashable, Sequence

    from reclaimactors.actors.loads import Ticket
    from reclaimactors.actors.machine import Machine
    from reclaimactors.mm.group import Group
    from reclaimactors.mm.swapin import Held

__all__ = ["Faults"]

T = TypeVar("T")

MAX_LOOKS = 3  #: at a key that is overwritten each time before its value was decompressed


class _Snapshot(NamedTuple):
    """A value of several folios as it was at one instant."""

    pfns: Sequence[int]
    parts: list[bytes]  #: b"" where the bytes are yet to come
    held: list[Held]  #: what is to be decompressed
    tickets: list[Ticket]  #: what stores are asked for


class Faults:
    """How one group gets back what is not resident."""

    def __init__(self, machine: Machine, group: Group, check_open: Callable[[], None]) -> None:
        self._machine = machine
        self._check_open = check_open
        self._group = group
        self._values = group.values
        self._node = machine.node
        self._mm = machine.node.mm
        self.expander = Expander(machine)

    async def get(self, key: Hashable) -> bytes:
        """Return the value of `key`; what it may raise is said at `Memory.get`."""
        pfns = self._values.pfns(key)
        if len(pfns) > 1:
            return await self.joined(key, self._join)
        pfn = pfns[0]
        ready: Expanded | None = None
        if self._mm.is_away(pfn):
            known = self.load_one(pfn)
            if known is not None:
                return known
        elif not self.expander.takes_long(pfns):
            return self.one(pfn)
        else:
            ready = await self.expand_one(pfn)
        while len(pfns := self._values.pfns(key)) == 1:
            pfn = pfns[0]
            if not self._mm.is_away(pfn):
                return self.one(pfn, ready)
            tickets = self.request(pfns, promote=self._machine.swapin.may_promote(pfns))
            if tickets is None:
                await self.room(pfns)
                continue
            with Stall(self._machine, self._group):
                return await tickets[0].wait()
        return await self.joined(key, self._join)

    async def expand_one(self, pfn: int) -> Expanded | None:
        """Decompress one large folio off the loop, for a fault that follows."""
        held = self._machine.swapin.held(pfn)
        (data,) = await self.expander.expand([held])
        self._check_open()
        return None if data is None else Expanded(held.what, data)

    async def _join(self, parts: Sequence[bytes]) -> bytes:
        return await join(parts, limiter=self._machine.readers)

    async def joined(self, key: Hashable, join: Callable[[Sequence[bytes]], Awaitable[T]]) -> T:
        """Return a value of several folios, or of one by the time that it is looked at.

        Args:
            key: its key.
            join: of its folios.
        """
        looks = 0
        while True:
            value = await self._snapshot(key)
            expanded = await self.expander.expand(value.held)
            self._check_open()
            looks += 1
            if looks == MAX_LOOKS or self._values.pfns(key) == value.pfns:
                break
        place = {pfn: at for at, pfn in enumerate(value.pfns)}
        found = await self.settle(value.held, expanded)
        for held, data in zip(value.held, found, strict=True):
            value.parts[place[held.pfn]] = data
        if value.tickets:
            with Stall(self._machine, self._group):
                for ticket in value.tickets:
                    value.parts[place[ticket.load.pfn]] = await ticket.wait()
        whole = await join(value.parts)
        del expanded, found
        await let_go(value.parts)
        return whole

    async def _snapshot(self, key: Hashable) -> _Snapshot:
        """Take a value as it is; wait only where a store's mailbox is full."""
        while True:
            pfns = self._values.pfns(key)
            promote = self._machine.swapin.may_promote(pfns)
            away = self._mm.away(pfns)
            few = self._mm.bytes_of(away) <= COPY_BYTES
            now = self._load_now(away, promote=promote) if few else {}
            tickets = self.request([pfn for pfn in pfns if pfn not in now], promote=promote)
            if tickets is not None:
                break
            await self.room(pfns)
        if not self.expander.takes_long(pfns):
            parts = self.parts(pfns, promote=promote)
            held: list[Held] = []
        else:
            swapin = self._machine.swapin
            held = [swapin.held(pfn) for pfn in self._mm.pooled(pfns)]
            later = {one.pfn for one in held}
            parts = [
                b"" if pfn in later else swapin.fault(pfn, promote=promote) or b"" for pfn in pfns
            ]
        if now:
            parts = [now.get(pfn, part) for pfn, part in zip(pfns, parts, strict=True)]
        return _Snapshot(pfns, parts, held, tickets)

    async def settle(self, held: Sequence[Held], expanded: Sequence[bytes | None]) -> list[bytes]:
        """Fault in what was decompressed, where it is still there; return the bytes of each.

        Raises:
            CorruptData: for the first that could not be decompressed.
        """
        swapin, breath = self._machine.swapin, Breath()
        found: list[bytes] = []
        promote = True
        for one, data in zip(held, expanded, strict=True):
            data = swapin.decompress(one, data)
            if swapin.still(one):
                promote = promote and swapin.may_promote((one.pfn,))
                swapin.fault(one.pfn, promote=promote, ready=Expanded(one.what, data))
            found.append(data)
            await breath.take()
        return found

    def load_one(self, pfn: int) -> bytes | None:
        """Read a folio from its store if that can be done at once."""
        machine = self._machine
        promote = machine.swapin.may_promote((pfn,))
        return machine.swapds[self._node.device_of(pfn)].loads.load_now(pfn, promote=promote)

    def _load_now(self, pfns: Sequence[int], *, promote: bool) -> dict[int, bytes]:
        """Read what stores can give at once, each folio by itself, a slice's worth at most."""
        node, swapds = self._node, self._machine.swapds
        now: dict[int, bytes] = {}
        ends = clock.perf_counter() + SLICE_S
        for pfn in pfns:
            data = swapds[node.device_of(pfn)].loads.load_now(pfn, promote=promote)
            if data is None:
                break
            now[pfn] = data
            if clock.perf_counter() > ends:
                break
        return now

    def request(self, pfns: Sequence[int], *, promote: bool) -> list[Ticket] | None:
        """Ask the stores for the folios that only they have; None where a mailbox is full."""
        mm = self._mm
        away = mm.away(pfns)
        if not away:
            return []
        tickets: list[Ticket] = []
        for device, swapd in self._machine.swapds.items():
            mine = [pfn for pfn in away if mm.is_on(pfn, device)]
            if mine:
                got = swapd.loads.request(mine, promote=promote)
                if got is None:
                    return None
                tickets += got
        return tickets

    async def room(self, pfns: Sequence[int]) -> None:
        """Wait for room in the mailbox that was full, in the same step, for these folios."""
        swapds, device_of = self._machine.swapds, self._node.device_of
        wanted = [swapds[device_of(pfn)].loads for pfn in self._mm.away(pfns)]
        await next((loads for loads in wanted if loads.full), wanted[0]).room()
        self._check_open()

    def one(self, pfn: int, ready: Expanded | None = None) -> bytes:
        """Return the bytes of a folio that no store has to give: the path of a small value."""
        machine = self._machine
        swapin = machine.swapin
        blob = ready is None and self._mm.is_blob(pfn)
        started = machine.cpu.now()
        data = swapin.fault(pfn, promote=swapin.may_promote((pfn,)), ready=ready) or b""
        spent = machine.cpu.worked(started)
        if blob:
            machine.cpu.rates.expanded(len(data), spent)
        return data

    def parts(self, pfns: Sequence[int], *, promote: bool) -> list[bytes]:
        """Return the bytes of each folio, b"" for those that a store must give."""
        machine = self._machine
        fault = machine.swapin.fault
        expanded = self._mm.blob_bytes(pfns)
        away = set(self._mm.away(pfns))
        started = machine.cpu.now()
        parts = [(fault(pfn, promote=promote) or b"") if pfn not in away else b"" for pfn in pfns]
        machine.cpu.rates.expanded(expanded, machine.cpu.worked(started))
        return parts
