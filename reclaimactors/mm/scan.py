"""When reclaim may give up: once it has looked at everything since it last freed a byte.

This is the one rule of kswapd, direct reclaim, `put_nowait` and proactive reclaim. It stands for
the kernel's MAX_RECLAIM_RETRIES, which counts passes of do_try_to_free_pages() over all lists and
not batches: a cluster of folios that cannot be freed says nothing about those behind it.

A folio counts as looked at once it was isolated and given back (it could not be compressed or
written, or it is pinned). Those that are known not to compress, where no store can take them, are
on the unevictable list (`unevictable`), and not looked at again. What was looked at counts until
reclaim frees a byte, or until the pool or a store takes something that it did not take before.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from reclaimactors.abc import Verdict

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from reclaimactors.mm.group import Group

__all__ = ["MAX_RECLAIM_RETRIES", "Scan"]

MAX_RECLAIM_RETRIES = 16  #: writes of the pool in a row that freed nothing, and it is given up

_SPARE = 512  #: looks beyond twice as many as there are folios, for a policy that repeats itself


class Scan:
    """What reclaim of one group has looked at since it last freed a byte of it.

    What `exhausted` and `seen_all` say is of the groups in it as well.
    """

    def __init__(self, group: Group) -> None:
        self._group = group
        self._node = group.node
        self.looked: set[int] = set()  #: pfns
        self._failed: set[int] = set()  # those of them whose last verdict was ERROR
        self._looks = 0  # the same pfn may count several times
        self._asked_for = 0
        self.asks = 0  #: how often what is not resident was asked to go to a store, in vain
        self._conditions = (True, False)

    @property
    def exhausted(self) -> bool:
        """Whether all that could free memory was tried: folios, and the pool's way to a store."""
        given_up = self.asks >= MAX_RECLAIM_RETRIES
        return self.seen_all and (given_up or not self._node.writeback.may(self._group))

    @property
    def lists_seen(self) -> bool:
        """Whether all that is on the lists of the policy, this group's own, was looked at."""
        self._look_at_conditions()
        return len(self.looked) >= self._nr_on_lists()

    @property
    def seen_all(self) -> bool:
        """Whether everything that may be isolated was looked at, and nothing of it was freed.

        The unevictable list may be isolated while a store can take it. A policy that offers the
        same folios again and again, and others never, is given up on after twice as many looks as
        there are folios.
        """
        return all(group.scan.own_seen_all for group in self._group.subtree())

    @property
    def own_seen_all(self) -> bool:
        """The same of this group alone."""
        self._look_at_conditions()
        nr = self._nr_on_lists()
        if self._group.swap_ready:
            nr += len(self._group.unevictable)
        return len(self.looked) >= nr or self._looks >= 2 * nr + _SPARE

    def _nr_on_lists(self) -> int:
        group = self._group
        return group.nr_resident - group.nr_in_flight - len(group.unevictable)

    def _look_at_conditions(self) -> None:
        """Forget all looks if the pool, or a store, takes what it did not take before."""
        now = (self._group.pool_accepts, self._group.swap_ready)
        if now != self._conditions:
            self._conditions = now
            self.freed()

    def gave_back(self, pfns: Sequence[int], verdict: Verdict) -> Sequence[int]:
        """Note folios that were looked at in vain; return those that were looked at before.

        They are to be put behind all others, so that the scan gets on.
        """
        self._look_at_conditions()
        looked = self.looked
        again = [pfn for pfn in pfns if pfn in looked] if looked else ()
        looked.update(pfns)
        if verdict is Verdict.ERROR:
            self._failed.update(pfns)
        self._looks += len(pfns)
        return again

    def ask(self, at_least: int) -> bool:
        """What is not resident is to go to a store: return whether it was not asked too often.

        Who needs more (`at_least` bytes) asks anew: less may have been there already.
        """
        if at_least > self._asked_for:
            self._asked_for, self.asks = at_least, 0
        self.asks = min(self.asks + 1, MAX_RECLAIM_RETRIES + 1)
        return self.asks <= MAX_RECLAIM_RETRIES

    def handed_back(self, nr: int) -> None:
        """Note folios that came back untried, say from a worker that died: it may go on so."""
        self._looks += nr

    def found_nothing(self) -> None:
        """Note that the policy has nothing on its lists, whatever the counters say."""
        nr = self._nr_on_lists() + len(self._group.unevictable)
        self._looks = max(self._looks, 2 * nr + _SPARE)

    def gone(self, pfns: Iterable[int]) -> None:
        """Note folios that leave memory, though that may free nothing: a store holds as much."""
        if self.looked:
            self.looked.difference_update(pfns)

    def freed(self) -> None:
        """Reclaim has freed something: everything is worth a look again."""
        self.looked.clear()
        self._failed.clear()
        self._looks = 0
        self.asks = 0
        self._asked_for = 0

    def retry_failed(self) -> None:
        """Time has passed: what a compressor or a store failed on is worth a look again."""
        if not self._failed:
            return
        self.looked -= self._failed
        self._looks = max(0, self._looks - len(self._failed))
        self._failed.clear()

    def check(self) -> None:
        """Assert that only folios in memory count as looked at."""
        mm = self._node.mm
        from_nowhere = [pfn for pfn in self.looked if not mm.in_memory(pfn)]
        assert not from_nowhere, f"pfns {from_nowhere} were looked at, and are not in memory"
