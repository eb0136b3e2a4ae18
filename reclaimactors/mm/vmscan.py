"""How much is reclaimed, and when: kswapd as a state machine. Mirrors balance_pgdat and friends.

kswapd is woken below *low* and reclaims until free memory is at *high*. One run scans in passes of
falling priority, 12 to 1: a pass may isolate ``folios on the lists >> priority`` (at least
SWAP_CLUSTER_MAX), in steps of at most SWAP_CLUSTER_MAX. A pass that freed nothing lowers the
priority, but what is in flight is pending progress (D9): a pass is judged by as many verdicts as it
may isolate, the pipe is kept full until they are there, and when nothing is left to isolate kswapd
waits for them. After priority 1 a new run begins.

The same machine balances a group that has a limit of its own, by the watermarks of that: reclaim of
a tenant in the background, which takes of the tenant alone.

The group is *hopeless* once everything was looked at since reclaim last freed a byte (`scan`), and
nothing is on its way: kswapd sleeps, and is not woken until there is something new to look at.

What is being compressed covers the need for memory at the recent gain, as long as the worker
answers. What is at a store covers nothing, and stops nothing: a store may take its time. Only where
the pool takes nothing does kswapd wait for a store that is congested.

`Kswapd.next` answers what to do now; the actor does it and asks again.
"""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING

from reclaimactors.mm.batch import SWAP_CLUSTER_MAX

if TYPE_CHECKING:
    from reclaimactors.mm.batch import FolioBatch
    from reclaimactors.mm.group import Group

__all__ = ["DEF_PRIORITY", "LEAST", "Kswapd", "Step"]

DEF_PRIORITY = 12
LEAST = 4  #: parts of `max_in_flight`, if that is less than a cluster: what is worth isolating


class Step(enum.Enum):
    """What kswapd does next."""

    ISOLATE = "isolate"  #: take `nr` folios of `max_bytes` and route them
    WAIT = "wait"  #: enough is in flight: wait for a verdict
    THROTTLE = "throttle"  #: a store's mailbox is full: wait for it
    SLEEP = "sleep"  #: balanced, or hopeless


class Kswapd:
    """balance_pgdat between two sleeps.

    Args:
        group: what it balances; its recent gain says what that which is in flight will free.
        max_in_flight: bytes that may be queued or compressed at once, no more than lies between
            *min* and *low*; one folio may always be.
    """

    def __init__(self, group: Group, *, max_in_flight: int) -> None:
        self._group = group
        self._node = group.node
        self.max_in_flight = max_in_flight
        self.max_of_all = max_in_flight  #: the same of the whole memory
        self.running = False
        self.throttled = False  #: a store refused a write; cleared once it has room again
        self.late = False  #: the worker has not answered for a while: nothing is covered
        self.priority = DEF_PRIORITY
        self.asked = 0  #: callers who wait for proactive reclaim
        self.requested = 0  #: bytes still to be isolated whatever the watermarks say (PAGEOUT)
        self._pass_freed = 0
        self._pass_returned = 0
        self._quota = 0
        self._dry = False  # the last ISOLATE found nothing
        self.passes = 0  #: since the start: the policy is aged once per pass
        self.nr = 0  #: what ISOLATE asks for, in folios
        self.max_bytes = 0  #: and in bytes

    @property
    def pending(self) -> bool:
        """Whether something on its way may yet free memory."""
        return self._node.writeback.awaits_of(self._group, of_late=True)

    @property
    def hopeless(self) -> bool:
        """Whether everything was looked at since the last byte was freed: nothing more will be."""
        return not self.pending and self._group.scan.exhausted

    @property
    def balanced(self) -> bool:
        """Whether free memory is at *high* and nobody asked for more."""
        group = self._group
        return group.memcg.free >= group.marks.high and self.requested <= 0

    @property
    def behind(self) -> bool:
        """Whether callers use more memory than reclaim frees: free memory is below *low*."""
        return self._group.memcg.free < self._group.marks.low

    @property
    def weight(self) -> float:
        """For how long reclaim is to work in the event loop, in parts of what others work."""
        least = 1.0 if self.asked else 0.0  # a caller waits for it: it is work of the program, too
        return max(least, self._group.marks.weight(self._group.memcg.free))

    def wants_to_run(self) -> bool:
        """Return whether a wake-up is more than a no-op."""
        return not (self.running or self.balanced or self.hopeless)

    def request(self, nr_bytes: int) -> None:
        """Ask for so many bytes from the cold end, whatever the watermarks say (PAGEOUT).

        A node that is hopeless now does not remember it.
        """
        if not self.hopeless:
            self.requested += nr_bytes

    def next(self) -> Step:
        """Return the next step: one of `Step`, with `nr` and `max_bytes` set for ISOLATE."""
        group, writeback = self._group, self._node.writeback
        if self.balanced or self.hopeless:
            return self._sleep()
        if not self.running:
            self._start_run()
        if not writeback.awaits_writes(of_late=False):
            self.throttled = False
        if self.throttled and not group.pool_accepts:
            return Step.THROTTLE
        if group.scan.seen_all:
            writeback.want_of(group)
        if self._covered() or not self._room():
            return Step.WAIT
        if self._quota <= 0:
            return self._end_pass()
        return self._isolate()

    def isolated(self, batch: FolioBatch | None) -> None:
        """Tell what ISOLATE found; nothing at all ends the pass, and the pool must give."""
        self._dry = batch is None
        if batch is not None:
            self._quota -= len(batch.pfns) + batch.nr_clean
            self.requested = max(0, self.requested - batch.nr_bytes - batch.clean_bytes)
        else:
            self._quota = self.requested = 0
            self._node.writeback.want_of(self._group)

    def _isolate(self) -> Step:
        memcg = self._group.memcg
        self.nr = min(SWAP_CLUSTER_MAX, self._quota)
        self.max_bytes = self._left()
        if memcg.free >= self._group.marks.high:  # what was asked for, and nothing beside it
            self.max_bytes = min(self.max_bytes, self.requested)
        return Step.ISOLATE

    def _sleep(self) -> Step:
        self.running = False
        self.throttled = False
        self.priority = DEF_PRIORITY
        self.requested = 0
        return Step.SLEEP

    def _left(self) -> int:
        """Return the bytes more that may be in flight, of this group and of all."""
        of_all = self.max_of_all - self._node.memcg.compressing
        return min(self.max_in_flight - self._group.memcg.compressing, of_all)

    def _start_run(self) -> None:
        self.running = True
        self.priority = DEF_PRIORITY
        self._node.vmstat["pageoutrun"] += 1
        self._start_pass()

    def _start_pass(self) -> None:
        self._pass_freed = self._group.freed_total
        self._pass_returned = self._group.returned_total
        self._quota = self._pass_quota()
        self.passes += 1

    def _pass_quota(self) -> int:
        on_lists = sum([group.nr_evictable for group in self._group.subtree()])
        return max(SWAP_CLUSTER_MAX, on_lists >> self.priority)

    def _end_pass(self) -> Step:
        """A pass is over: the same again, harder, or give this run up."""
        freed = self._group.freed_total
        if freed == self._pass_freed:
            returned = self._group.returned_total - self._pass_returned
            seen_all = self._group.scan.seen_all
            if self.pending and (seen_all or returned < self._pass_quota()):
                if self._dry or seen_all:
                    return Step.WAIT  # for what is on its way: there is nothing else
                self._quota = SWAP_CLUSTER_MAX  # not known yet: keep the pipe full meanwhile
                return self._isolate()
            self.priority -= 1
        if self.priority >= 1:
            self._start_pass()
        else:
            self._start_run()
        return self._isolate()

    def _covered(self) -> bool:
        """Whether what is being compressed will bring free memory to *high*, at the recent gain."""
        group = self._group
        compressing = group.memcg.compressing
        if not compressing or self.requested or self.late:
            return False
        return int(compressing * group.gain) >= group.marks.high - group.memcg.free

    def _room(self) -> bool:
        """Whether enough may be isolated now to be worth a batch, or nothing else is under way.

        Room that opens by a page must not be filled by a page, or each page pays for a whole round.
        """
        least = min(SWAP_CLUSTER_MAX * self._node.page_size, self.max_in_flight // LEAST)
        return not self._group.memcg.compressing or self._left() >= max(1, least)
