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
        self.kswapd = Kswapd(group, max_in_flight=machine.pipeline.max_bytes)
        self.fit()
        self.stream = machine.handover.producer(Reclaimer.KSWAPD)
        self.awake = False  #: it was woken and has not gone back to sleep
        self._wakeups, self._woken = anyio.create_memory_object_stream[None](1)
        group.on_wake = self.want

    def fit(self) -> None:
        """Watermarks are new: no more may be in flight than lies between its *min* and *low*."""
        group, machine = self.group, self._m
        most = its_own = machine.pipeline.max_bytes  # fitted to the watermarks of all
        if group.parent is not None:
            its_own = most // GROUP_SHARE
            if group.limits.max is not None or group.limits.high is not None:
                its_own = min(its_own, group.marks.low - group.marks.min)
            its_own = max(machine.node.page_size, its_own)
        self.kswapd.max_in_flight, self.kswapd.max_of_all = its_own, most

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
