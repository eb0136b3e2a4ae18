"""Background reclaim of one group: what wakes it, what it is to do, what it has sent.

The root's is kswapd's. A group that has a limit of its own has one too, as has long been proposed
for memcgs, so that its callers need not reclaim for themselves: it takes of that group alone.
`KswapdActor` runs either.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import anyio

from reclaimactors.mm.batch import Reclaimer
from reclaimactors.mm.vmscan import Kswapd

if TYPE_CHECKING:
    from reclaimactors.actors.machine import Machine
    from reclaimactors.mm.group import Group

__all__ = ["Background"]

GROUP_SHARE = 2  #: part of what may be in flight that one group may have


class Background:
    """What reclaims one group in the background.

    Args:
        machine: whose group it is.
        group: the root, or one that has a limit.
    """

    def __init__(self, machine: Machine, group: Group) -> None:
        self._m = machine
        self.group = group
        most = machine.pipeline.max_bytes
        its_own = most
        if group.parent is not None:
            its_own = max(machine.node.page_size, min(most // GROUP_SHARE, group.memcg.budget // 8))
        self.kswapd = Kswapd(group, max_in_flight=its_own, max_of_all=most)
        self.stream = machine.handover.producer(Reclaimer.KSWAPD)
        self.awake = False  #: it was woken and has not gone back to sleep
        self._wakeups, self._woken = anyio.create_memory_object_stream[None](1)
        group.on_wake = self.want

    def wake(self) -> None:
        """Wake it where that is more than a no-op; wake-ups coalesce."""
        if self.kswapd.wants_to_run() and not self._m.closing:
            self._m.starter.start()
            self.awake = True
            if self.group.above_high:
                self.group.count("high")
            try:
                self._wakeups.send_nowait(None)
            except (anyio.WouldBlock, anyio.BrokenResourceError, anyio.ClosedResourceError):
                return  # one is waiting already, which will see what this one says; or it has ended

    def want(self) -> None:
        """Free memory is below *low*: wake it unless it runs. Each put under pressure asks."""
        if not self.kswapd.running:
            self.wake()

    async def woken(self) -> None:
        """Wait for a wake-up."""
        await self._woken.receive()

    def close(self) -> None:
        """Nobody is to be woken any more."""
        self._wakeups.close()
        self._woken.close()
