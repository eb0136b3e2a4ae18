"""What one store is to forget: the slots of values that were read back, overwritten or deleted.

Slots are handed out again only after the store has forgotten them and nobody reads them, so that
calls on one slot never overlap.

Nobody waits for it but who needs slots, so loads go first: a call of the store begins once no load
is on its way and none came within TURNS of the event loop. It is not put off for ever: a store has
at most MAX_SHARE of the budget to forget, and no more slots than it has free ones.

Slots that a call which was given up may still write are set aside. Their store is asked to forget
them from time to time: once it says that it has, they are handed out again.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import anyio
from anyio.lowlevel import checkpoint

from reclaimactors.actors.backing import TooSlow
from reclaimactors.actors.base import Signal
from reclaimactors.cpu.breath import Breath
from reclaimactors.errors import BackendError
from reclaimactors.mm.swap_service import MOST_S

if TYPE_CHECKING:
    from reclaimactors.actors.backing import Backing
    from reclaimactors.actors.loads import Loads
    from reclaimactors.actors.machine import Machine

__all__ = ["Forgets"]

ASIDE_S = 1.0  #: after which slots set aside are asked for; doubles up to MOST_S
FORGET_SLOTS = 128  #: of one call, about: a fraction of a slice where the loop does it
TURNS = 4  #: of the loop, in which the reader of one value asks for the next
MAX_SHARE = 16  #: parts of the budget: a store in this process holds the bytes until it forgets


class Forgets:
    """The slots that one store is to forget."""

    def __init__(self, machine: Machine, backing: Backing, loads: Loads) -> None:
        self._m = machine
        self._backing = backing
        self._device = backing.device
        self._loads = loads
        self._look = Signal()
        node = machine.node
        self._most = max(1, node.memcg.budget // MAX_SHARE // node.page_size)  # slots put off
        loads.on_none_left = self._look.notify

    def wake(self) -> None:
        """There are slots to forget."""
        if not self._loads.tickets or self._urgent:
            self._look.notify()

    @property
    def _urgent(self) -> bool:
        """Whether it is time to forget, whoever loads."""
        return self._device.stale > min(self._most, self._device.free_slots)

    async def lane(self) -> None:
        """Forget, for ever."""
        breath = Breath(self._m.cpu.share)
        while True:
            while not self._device.stale:
                await self._look.wait()
                breath.begin()
            await self._after_loads()
            nr = min(FORGET_SLOTS, self._most)
            runs = self._m.node.slots.take_stale(self._device.index, nr)
            if runs:
                await self._forget(runs)
            await breath.take()

    async def _after_loads(self) -> None:
        """Wait until nobody has loaded for TURNS of the loop, or until it is urgent."""
        loads, begun, quiet = self._loads, -1, 0
        while not self._urgent and quiet < TURNS:
            if loads.tickets:
                await self._look.wait()
            else:
                await checkpoint()
            quiet = quiet + 1 if begun == loads.begun and not loads.tickets else 0
            begun = loads.begun

    async def _forget(self, runs: list[tuple[int, int]]) -> None:
        node, device = self._m.node, self._device
        forgotten = False
        failing = "forget" in self._backing.failing  # that was said
        try:
            slots = [slot for first, nr in runs for slot in range(first, first + nr)]
            await self._backing.call("forget", self._backing.backend.invalidate_many(slots))
            forgotten = True
        except BackendError as exc:
            if not failing:
                self._m.log.warning("swapd.forget_failed", device=device.name, error=str(exc))
            # Storing replaces what is there, so a refusal does no harm; a late success would.
            forgotten = not isinstance(exc, TooSlow)
        finally:
            if forgotten:
                node.slots.forgotten(device.index, runs)
            else:
                node.slots.not_forgotten(device.index, runs)
                self._backing.put_aside.notify()
            self._m.verdicts.notify()

    async def aside_lane(self) -> None:
        """Get back what is set aside, for ever."""
        device, backing = self._device, self._backing
        wait = ASIDE_S
        while True:
            while not device.aside:
                wait = ASIDE_S
                await self._backing.put_aside.wait()
            await anyio.sleep(wait)
            slots = device.first_aside(FORGET_SLOTS)
            try:
                await backing.call("forget", backing.backend.invalidate_many(slots))
            except BackendError:  # its writes tell that, and the forgetting of other slots
                wait = min(MOST_S, 2 * wait)
                device.aside_last(len(slots))  # it may be a matter of these alone
            else:
                device.take_back(len(slots))
                self._m.verdicts.notify()
