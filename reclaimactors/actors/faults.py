"""The path of a get that is no resident hit: from the pool at once, from a store through its swapd.

What a store has at hand is read at once too. All or nothing: what is asked for is reserved before
the first load goes out, and a get never waits for room.
"""

from __future__ import annotations

from time import perf_counter
from types import MappingProxyType
from typing import TYPE_CHECKING

from reclaimactors.actors.admission import Stalled
from reclaimactors.mm.folio import DEVICE
from reclaimactors.offload.breath import SLICE_S

if TYPE_CHECKING:
    from collections.abc import Hashable, Mapping, Sequence

    from reclaimactors.actors.loads import Loads, Ticket
    from reclaimactors.actors.machine import Machine
    from reclaimactors.mm.swapin import Expanded

__all__ = ["Faults", "joined"]

_NOTHING: Mapping[int, Expanded] = MappingProxyType({})


class Faults:
    """How one machine gives back what is not resident."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self._node = machine.node
        self._state = machine.node.mm.state

    async def get(self, key: Hashable) -> bytes:
        """Return the value of `key`; what it may raise is said at `Memory.get`."""
        ready = _NOTHING
        pfns = self._node.pfns(key)
        if self._machine.takes_long(pfns):
            ready = await self._machine.expand_ahead(pfns)
            self._machine.check_open()
        elif len(pfns) == 1:
            pfn = pfns[0]
            known = self._load_one(pfn) if self._state[pfn] == DEVICE else self.one(pfn)
            if known is not None:
                return known
        while True:
            pfns = self._node.pfns(key)
            # All or nothing: what is asked for is reserved before the first load goes out.
            promote = self._machine.swapin.may_promote(pfns)
            now = self._load_now(pfns, promote=promote)
            tickets = self.request([pfn for pfn in pfns if pfn not in now], promote=promote)
            if tickets is None:
                await self._full(pfns).room()
                self._machine.check_open()
                continue
            parts = self.parts(pfns, promote=promote, ready=ready)
            if now:
                parts = [now.get(pfn, part) for pfn, part in zip(pfns, parts, strict=True)]
            if tickets:
                with Stalled(self._machine):
                    for ticket in tickets:
                        parts[pfns.index(ticket.load.pfn)] = await ticket.wait()
            return joined(parts)

    def _load_one(self, pfn: int) -> bytes | None:
        """Read a folio from its store if that can be done at once."""
        machine = self._machine
        promote = machine.swapin.may_promote((pfn,))
        return machine.swapds[self._node.mm.device[pfn]].loads.load_now(pfn, promote=promote)

    def _load_now(self, pfns: Sequence[int], *, promote: bool) -> dict[int, bytes]:
        """Read what stores can give at once, each folio by itself, a slice's worth at most."""
        state, mm, machine = self._state, self._node.mm, self._machine
        now: dict[int, bytes] = {}
        ends = perf_counter() + SLICE_S
        for pfn in pfns:
            if state[pfn] == DEVICE:
                data = machine.swapds[mm.device[pfn]].loads.load_now(pfn, promote=promote)
                if data is None:
                    break
                now[pfn] = data
                if perf_counter() > ends:
                    break
        return now

    def request(self, pfns: Sequence[int], *, promote: bool) -> list[Ticket] | None:
        """Ask the stores for the folios that only they have; None where a mailbox is full."""
        state = self._state
        away = [pfn for pfn in pfns if state[pfn] == DEVICE]
        if not away:
            return []
        machine = self._machine
        tickets: list[Ticket] = []
        for swapd in machine.swapds.values():
            mine = [pfn for pfn in away if self._node.mm.device[pfn] == swapd.device.index]
            if mine:
                got = swapd.loads.request(mine, promote=promote)
                if got is None:
                    return None
                tickets += got
        return tickets

    def _full(self, pfns: Sequence[int]) -> Loads:
        """Return the loads whose mailbox was full."""
        swapds, device = self._machine.swapds, self._node.mm.device
        wanted = [swapds[device[pfn]].loads for pfn in pfns if self._state[pfn] == DEVICE]
        return next((loads for loads in wanted if loads.full), wanted[0])

    def one(self, pfn: int) -> bytes:
        """Return the bytes of a folio that no store has to give: the path of a small value."""
        machine = self._machine
        swapin = machine.swapin
        started = perf_counter()
        data = swapin.fault(pfn, promote=swapin.may_promote((pfn,))) or b""
        ended = perf_counter()
        machine.psi.stall_full(started, ended)
        machine.faulted(len(data), ended - started)
        return data

    def parts(
        self, pfns: Sequence[int], *, promote: bool, ready: Mapping[int, Expanded] = _NOTHING
    ) -> list[bytes]:
        """Return the bytes of each folio, b"" for those that a store must give."""
        machine = self._machine
        fault = machine.swapin.fault
        started = perf_counter()
        parts = [fault(pfn, promote=promote, ready=ready.get(pfn)) or b"" for pfn in pfns]
        ended = perf_counter()
        machine.psi.stall_full(started, ended)
        if not ready:
            machine.faulted(sum(map(len, parts)), ended - started)
        return parts


def joined(parts: list[bytes]) -> bytes:
    """Return a value from its parts."""
    return parts[0] if len(parts) == 1 else b"".join(parts)
