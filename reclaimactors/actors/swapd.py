"""swapd: one per backing store. Half of its lanes load, the others store and forget.

What is loaded is in `loads`, what is stored in `stores`, what is forgotten in `forgets`, how the
store is called in `backing`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import anyio

from reclaimactors.actors.backing import Backing
from reclaimactors.actors.base import run_lanes
from reclaimactors.actors.forgets import Forgets
from reclaimactors.actors.loads import LOAD_LANES, Loads
from reclaimactors.actors.stores import STORE_LANES, Stores
from reclaimactors.actors.supervision import words_of
from reclaimactors.mm.ending import end_all
from reclaimactors.mm.rmap import Rmap

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine, Sequence

    from reclaimactors.abc import Backend
    from reclaimactors.actors.machine import Machine
    from reclaimactors.mm.swap_device import SwapDevice

__all__ = ["Swapd"]


class Swapd:
    """The actor of one backing store."""

    def __init__(
        self, machine: Machine, device: SwapDevice, backend: Backend, *, timeout: float
    ) -> None:
        self.device = device
        self.backend = backend
        self.page_size = machine.node.page_size
        self._verdicts = machine.verdicts
        self.synchronous = bool(backend.synchronous)
        self.backing = Backing(machine, device, backend, timeout)
        self.loads = Loads(machine, self.backing)
        self.stores = Stores(machine, self.backing)
        self.forgets = Forgets(machine, self.backing, self.loads)
        keep_time, lane = self.backing.deadlines.run, self.loads.lane
        self._loading = Lanes([keep_time, *[lane] * LOAD_LANES], self.loads.clear)
        lanes = [*[self.stores.lane] * STORE_LANES, self.forgets.lane, self.forgets.aside_lane]
        self._storing = Lanes(lanes, lambda _why: self.stores.clear())

    @property
    def actors(self) -> dict[str, Callable[[], Awaitable[None]]]:
        """What serves it, by name: an error of a policy in a store fails no load."""
        name = f"swapd/{self.device.name}"
        return {f"{name}/loads": self._loading.run, f"{name}/stores": self._store}

    async def _store(self) -> None:
        self.device.down = False
        self._verdicts.notify()  # who waited for it goes on
        self.stores.wake_shrinker()  # the store is new, or after a crash: there may be work
        try:
            await self._storing.run()
        except Exception:  # whatever it was: its supervisor says it
            self.device.down = True  # until its supervisor starts it again
            raise

    def read_ahead(self) -> None:
        """Have neighbours read with what is asked for: seeking is dear here."""
        self.stores.rmap = self.stores.rmap or Rmap()
        self.loads.read_ahead(self.stores.rmap)

    async def end(self) -> None:
        """Have its actors return, and wait for them: nothing is stored here any more (swapoff)."""
        try:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self._loading.end)
                tasks.start_soon(self._storing.end)
        finally:
            self.close()

    def close(self) -> None:
        """End whatever waits, and close the mailboxes."""
        end_all((self.stores.close, self.loads.close), lambda close: close())


class Lanes:
    """The tasks of one half of a swapd. A crash of one ends all, and what waits for them.

    Args:
        lanes: what each of them does, for ever.
        clear: ends what waits; it is told why: the swapd "stopped", or "crashed" and with what.
    """

    def __init__(
        self, lanes: Sequence[Callable[[], Coroutine[None, None, None]]],
        clear: Callable[[str], None],
    ) -> None:  # fmt: skip
        self._lanes = lanes
        self._clear = clear
        self._scope = anyio.CancelScope()  # of `run`: it ends alone at swapoff
        self._running = anyio.Lock(fast_acquire=True)
        self._ended = False

    async def run(self) -> None:
        """Serve until `end`."""
        async with self._running:
            scope = self._scope = anyio.CancelScope()
            if self._ended:
                return
            why = "stopped"
            try:
                with scope:
                    await run_lanes(self._lanes)
            except Exception as exc:
                why = f"crashed: {words_of(exc)}"
                raise
            finally:
                self._clear(why)

    async def end(self) -> None:
        """Have `run` return, and wait for it."""
        self._ended = True
        self._scope.cancel()
        async with self._running:
            pass
