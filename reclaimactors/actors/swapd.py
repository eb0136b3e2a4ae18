"""swapd: one per backing store. Its lanes load, store and forget; a crash of one ends all.

What is loaded is in `loads`, what is stored and forgotten in `stores`, how the store is called in
`backing`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import anyio

from reclaimactors.actors.backing import Backing
from reclaimactors.actors.loads import LOAD_LANES, Loads
from reclaimactors.actors.stores import STORE_LANES, Stores
from reclaimactors.actors.supervision import words_of
from reclaimactors.mm.ending import end_all
from reclaimactors.mm.rmap import Rmap

if TYPE_CHECKING:
    from reclaimactors.abc import Backend
    from reclaimactors.actors.machine import Machine
    from reclaimactors.mm.swap import SwapDevice

__all__ = ["Swapd"]


class Swapd:
    """The actor of one backing store."""

    def __init__(
        self, machine: Machine, device: SwapDevice, backend: Backend, *, timeout: float
    ) -> None:
        self.device = device
        self.backend = backend
        self.page_size = machine.node.page_size
        self.synchronous = bool(getattr(backend, "synchronous", False))
        self.backing = Backing(machine, device, backend, timeout)
        self.loads = Loads(machine, self.backing)
        self.stores = Stores(machine, self.backing)
        self._scope = anyio.CancelScope()  # of `run`: it ends alone at swapoff
        self._running = anyio.Lock(fast_acquire=True)
        self._ended = False

    def read_ahead(self) -> None:
        """Have neighbours read with what is asked for: seeking is dear here."""
        self.stores.rmap = self.stores.rmap or Rmap()
        self.loads.read_ahead(self.stores.rmap)

    async def run(self) -> None:
        """Serve until `end`. If a lane crashes, all writes are handed back and all loads fail."""
        async with self._running:
            scope = self._scope = anyio.CancelScope()
            if self._ended:
                return
            try:
                with scope:
                    async with anyio.create_task_group() as lanes:
                        lanes.start_soon(self.backing.deadlines.run)
                        for _ in range(LOAD_LANES):
                            lanes.start_soon(self.loads.lane)
                        for _ in range(STORE_LANES):
                            lanes.start_soon(self.stores.lane)
                        self.stores.wake_shrinker()  # after a crash there may be work
            except Exception as exc:
                self.loads.clear(f"crashed: {words_of(exc)}")
                raise
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

    def close(self) -> None:
        """End whatever waits, and close the mailboxes."""
        end_all((self.stores.close, self.loads.close), lambda close: close())

    def _clear(self) -> None:
        end_all((self.stores.clear, self.loads.clear), lambda clear: clear())
