"""How much is reclaimed, and when: kswapd as a state machine. Mirrors balance_pgdat and friends.

kswapd is woken below *low* and reclaims until free memory is at *high*. One run scans in passes of
falling priority, 12 to 1: a pass may isolate ``resident folios >> priority`` (at least
SWAP_CLUSTER_MAX), in steps of at most SWAP_CLUSTER_MAX. A pass that freed nothing lowers the
priority, but what is in flight is pending progress (D9): a pass is judged by as many verdicts as it
may isolate, the pipe is kept full until they are there, and when nothing is left to isolate kswapd
waits for them. Where that many verdicts are as many as there are resident folios, a lower priority
would only look at the same ones again, and the run is over. A run that freed nothing is a failure;
MAX_RECLAIM_RETRIES of them in a row make the node *hopeless*: kswapd is not woken any more until
reclaim, by whomever, frees something, or deletes bring free memory back to *high*.

`Kswapd.next` answers what to do now; the actor does it and asks again.
"""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING

from reclaimactors.mm.batch import SWAP_CLUSTER_MAX

if TYPE_CHECKING:
    from reclaimactors.mm.batch import FolioBatch
    from reclaimactors.mm.ledger import Ledger
    from reclaimactors.mm.node import Node

__all__ = ["DEF_PRIORITY", "MAX_RECLAIM_RETRIES", "Kswapd", "Step"]

DEF_PRIORITY = 12
MAX_RECLAIM_RETRIES = 16


class Step(enum.Enum):
    """What kswapd does next."""

    ISOLATE = "isolate"  #: take `nr` folios of `max_bytes` and route them
    WAIT = "wait"  #: enough is in flight: wait for a verdict
    THROTTLE = "throttle"  #: a store's mailbox is full: wait for it
    SLEEP = "sleep"  #: balanced, or hopeless


class Kswapd:
    """balance_pgdat between two sleeps.

    Args:
        node: what it balances.
        ledger: whose recent gain says what is in flight will free.
        max_in_flight: bytes that may be isolated at once (1/8 of the budget); one folio may
            always be.
    """

    def __init__(self, node: Node, ledger: Ledger, *, max_in_flight: int) -> None:
        self._node = node
        self._ledger = ledger
        self.max_in_flight = max_in_flight
        self.running = False
        self.throttled = False  #: a store refused a write; cleared when a write ends
        self.failures = 0
        self.priority = DEF_PRIORITY
        self.requested = 0  #: bytes still to be isolated whatever the watermarks say (PAGEOUT)
        self._run_freed = 0
        self._pass_freed = 0
        self._pass_returned = 0
        self._seen_freed = 0
        self._quota = 0
        self._dry = False  # the last ISOLATE found nothing
        self.passes = 0  #: since the start: the policy is aged once per pass
        self.nr = 0  #: what ISOLATE asks for, in folios
        self.max_bytes = 0  #: and in bytes

    @property
    def hopeless(self) -> bool:
        """Whether MAX_RECLAIM_RETRIES runs in a row freed nothing."""
        return self.failures >= MAX_RECLAIM_RETRIES

    @property
    def balanced(self) -> bool:
        """Whether free memory is at *high* and nobody asked for more."""
        node = self._node
        return node.memcg.free >= node.marks.high and self.requested <= 0

    def wants_to_run(self) -> bool:
        """Return whether a wake-up is more than a no-op."""
        self._note_progress()
        return not (self.running or self.hopeless or self.balanced)

    def request(self, nr_bytes: int) -> None:
        """Ask for so many bytes from the cold end, whatever the watermarks say (PAGEOUT)."""
        self.requested += nr_bytes

    def _note_progress(self) -> None:
        """Whatever reclaim freed since, by whomever, ends hopelessness."""
        freed = self._ledger.freed_total - self._seen_freed
        if freed:
            self._seen_freed += freed
            self.failures = 0

    def next(self) -> Step:
        """Return the next step: one of `Step`, with `nr` and `max_bytes` set for ISOLATE."""
        node = self._node
        self._note_progress()
        if self.hopeless or self.balanced:
            return self._sleep()
        if not self.running:
            self._start_run(node)
        if self.throttled and node.nr_writes:
            return Step.THROTTLE
        self.throttled = False
        if self._covered(node) or not self._room(node):
            return Step.WAIT
        if self._quota <= 0:
            return self._end_pass(node)
        return self._isolate(node)

    def isolated(self, batch: FolioBatch | None) -> None:
        """Tell what ISOLATE found; nothing at all ends the pass, and the pool must give."""
        self._dry = batch is None
        if batch is not None:
            self._quota -= len(batch.pfns) + batch.nr_clean
            self.requested = max(0, self.requested - batch.nr_bytes - batch.clean_bytes)
        else:
            self._quota = self.requested = 0
            self._node.want_writeback()

    def _isolate(self, node: Node) -> Step:
        self.nr = min(SWAP_CLUSTER_MAX, self._quota)
        self.max_bytes = self.max_in_flight - node.memcg.in_flight
        if node.memcg.free >= node.marks.high:  # what was asked for, and nothing beside it
            self.max_bytes = min(self.max_bytes, self.requested)
        return Step.ISOLATE

    def _sleep(self) -> Step:
        self.running = False
        self.throttled = False
        self.priority = DEF_PRIORITY
        if self.hopeless:
            self.requested = 0
        self.relieved()
        return Step.SLEEP

    def relieved(self) -> None:
        """Memory was given back, whichever way: at *high* the node is not hopeless any more."""
        if self.failures and self._node.memcg.free >= self._node.marks.high:
            self.failures = 0

    def _start_run(self, node: Node) -> None:
        self.running = True
        self.priority = DEF_PRIORITY
        self._run_freed = self._ledger.freed_total
        node.vmstat["pageoutrun"] += 1
        self._start_pass(node)

    def _start_pass(self, node: Node) -> None:
        self._pass_freed = self._ledger.freed_total
        self._pass_returned = self._ledger.returned_total
        self._quota = self._pass_quota(node)
        self.passes += 1

    def _pass_quota(self, node: Node) -> int:
        resident = node.nr_resident - node.nr_in_flight
        return max(SWAP_CLUSTER_MAX, resident >> self.priority)

    def _end_pass(self, node: Node) -> Step:
        """A pass is over: the same again, harder, or give this run up."""
        freed = self._ledger.freed_total
        if freed == self._pass_freed:
            returned = self._ledger.returned_total - self._pass_returned
            pending = node.nr_in_flight or node.nr_writes or node.writeback_wanted
            if pending and returned < self._pass_quota(node):
                if self._dry:
                    return Step.WAIT  # for what is on its way: there is nothing else
                self._quota = SWAP_CLUSTER_MAX  # not known yet: keep the pipe full meanwhile
                return self._isolate(node)
            self.priority = 0 if self._seen_all(node, returned) else self.priority - 1
        if self.priority >= 1:
            self._start_pass(node)
            return self._isolate(node)
        if freed == self._run_freed:
            self.failures += 1
        if self.hopeless:
            return self._sleep()
        self._start_run(node)
        return self._isolate(node)

    def _seen_all(self, node: Node, returned: int) -> bool:
        """Whether a pass with so many verdicts has seen all there is. A store may yet free some."""
        return returned >= node.nr_resident and not (node.nr_writes or node.writeback_wanted)

    def _covered(self, node: Node) -> bool:
        """Whether what is in flight will bring free memory to *high*, at the recent gain."""
        if not node.nr_in_flight or self.requested:
            return False
        expected = int(node.memcg.in_flight * self._ledger.gain)
        return expected >= node.marks.high - node.memcg.free

    def _room(self, node: Node) -> bool:
        return not node.nr_in_flight or node.memcg.in_flight < self.max_in_flight
