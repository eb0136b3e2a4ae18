"""One caller's stall: what it waits, and what it reclaims for itself.

PSI's *some* and the time that one put waited are taken from the same two instants, so that they
agree: all callers together wait at most as long as *some* says, times the callers that there are.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from reclaimactors.mm.batch import SWAP_CLUSTER_MAX, Reclaimer

if TYPE_CHECKING:
    from reclaimactors.actors.machine import Machine
    from reclaimactors.mm.group import Group

__all__ = ["Stall"]


class Stall:
    """The stall of one call; ``with`` it, the caller waits: that is PSI's *some*."""

    __slots__ = ("_counted", "_m", "_psis", "_since", "waited_s")

    def __init__(self, machine: Machine, group: Group | None = None) -> None:
        self._m = machine
        self._psis = machine.psis_of(group)
        self._counted = False  # in allocstall
        self._since = 0.0
        self.waited_s = 0.0  #: seconds so far, of every ``with``

    def __enter__(self) -> None:
        self._since = self._m.cpu.now()
        for psi in self._psis:
            psi.enter_some(self._since)

    def __exit__(self, *_: object) -> None:
        now = self._m.cpu.now()
        for psi in self._psis:
            psi.leave_some(now)
        self.waited_s += now - self._since

    def reclaim(self, *, ram_only: bool = False, within: Group | None = None) -> int:
        """Reclaim a slice in the calling task; return the bytes freed at once.

        The first that looks at a folio counts as allocstall, as the kernel counts an entry into
        direct reclaim: who only waits for what others have in flight has not reclaimed.
        """
        vmstat = self._m.node.vmstat
        scanned = vmstat["pgscan_direct"]
        freed = self._m.reclaim_inline(
            SWAP_CLUSTER_MAX, Reclaimer.DIRECT, ram_only=ram_only, within=within
        )
        if not self._counted and vmstat["pgscan_direct"] != scanned:
            self._counted = True
            vmstat["allocstall_normal"] += 1
        return freed
