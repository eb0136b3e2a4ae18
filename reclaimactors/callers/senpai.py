"""senpai: reclaims a little, again and again, for as long as nobody notices.

Mirrors the controller of TMO (ASPLOS '22), which drives memory.reclaim of a cgroup by its pressure:
in each interval it asks for a share of what is resident, less of it the closer callers come to
stalling as much as they may, and nothing from there on. So what is cold leaves memory before there
is pressure, and comes back where that was wrong.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import anyio

from reclaimactors.callers.reclaim import Proactive

if TYPE_CHECKING:
    from reclaimactors.actors.machine import Machine
    from reclaimactors.topology.spec import SenpaiSpec

__all__ = ["Senpai"]


class Senpai:
    """The actor of one machine."""

    def __init__(self, machine: Machine, spec: SenpaiSpec) -> None:
        self._m = machine
        self._spec = spec
        self._rest = 0.0  # bytes that were less than a page
        machine.starter.add("senpai", self.run, at_once=True)

    async def run(self) -> None:
        """Reclaim a little in each interval, for ever."""
        machine = self._m
        while True:
            began, stalled = machine.cpu.now(), self._stalled_s()
            await anyio.sleep(self._spec.interval)
            elapsed = max(self._spec.interval, machine.cpu.now() - began)
            nbytes = self._due((self._stalled_s() - stalled) / elapsed)
            if nbytes:
                freed = await Proactive(machine, nbytes).run()
                machine.node.vmstat["senpai_freed"] += freed

    def _stalled_s(self) -> float:
        psi = self._m.cpu.psi
        return psi.snapshot(self._m.cpu.now()).some.total / 1e6

    def _due(self, pressure: float) -> int:
        """Return the bytes to reclaim after an interval of which so large a part was stalled."""
        memcg, spec = self._m.node.memcg, self._spec
        share = max(0.0, 1 - 100 * pressure / spec.pressure)
        resident = memcg.resident - memcg.in_flight - memcg.pinned
        self._rest += resident * spec.percent / 100 * share
        if self._rest < self._m.node.page_size:
            return 0
        nbytes, self._rest = int(self._rest), 0.0
        return nbytes
