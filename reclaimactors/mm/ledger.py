"""The ledger: what each verdict changes, what reclaim has freed. Mirrors shrink_folio_list's end.

A folio that was isolated ends here, once: it was stolen (its source bytes are dropped), or given
back to the policy. `pgsteal` counts a folio whose source bytes were dropped. What is *freed*, and
counts as progress, is its size less the blob that is kept.
"""

from __future__ import annotations

from array import array
from typing import TYPE_CHECKING

from reclaimactors.abc import Verdict
from reclaimactors.errors import PluginError
from reclaimactors.mm.folio import RESIDENT, SAME

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from reclaimactors.mm.batch import FolioBatch, StoreBatch
    from reclaimactors.mm.node import Node

__all__ = ["Ledger"]


class Ledger:
    """The account of one node's verdicts."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self.gain = 0.5  #: share of a stolen byte that was really freed, recently
        self.freed_total = 0  #: bytes that reclaim has really freed since the start
        self.returned_total = 0  #: folios that reclaim had to give back since the start

    def pages(self, pfns: Iterable[int]) -> int:
        """Return the base pages of these folios."""
        size, page = self._node.mm.size, self._node.page_size
        return sum([1 if size[pfn] <= page else -(-size[pfn] // page) for pfn in pfns])

    def shadows(self, pfns: Sequence[int]) -> array[int]:
        """Tell the policy that folios leave. Before any change: a plugin may raise, or give junk.

        Raises:
            PluginError: if what it gives is no int of 63 bits.
        """
        policy = self._node.policy
        try:
            return array("q", map(policy.shadow, pfns))
        except (OverflowError, TypeError) as exc:
            msg = f"policy {type(policy).__name__} gave a shadow that is no int of 63 bits: {exc}"
            raise PluginError(msg) from exc

    def stolen(
        self,
        nr: int,
        pages: int,
        source: int,
        kept: int,
        batch: FolioBatch | StoreBatch,
        *,
        compressed: bool = True,
    ) -> None:
        """Account folios that have left memory, `kept` bytes of their blobs staying.

        Those that nobody had to compress say nothing about what compressing gains.
        """
        node = self._node
        node.nr_in_flight -= nr
        node.memcg.in_flight -= source
        node.nr_resident -= nr
        self.freed_total += max(0, source - kept)
        if batch.producer is not None:
            batch.producer.freed += max(0, source - kept)
        node.memcg.adjust(resident=-source, compressed=kept)
        node.vmstat["pgsteal_" + batch.who.value] += pages
        node.vmstat["pgsteal_anon"] += pages
        if source and compressed:
            weight = min(1.0, nr / 256)
            self.gain += (max(0.0, 1.0 - kept / source) - self.gain) * weight

    def drop_same(self, same: Sequence[tuple[int, int]], batch: FolioBatch) -> None:
        """Verdict ZERO: keep the word, drop the bytes."""
        node = self._node
        mm, vm = node.mm, node.vmstat
        pages = source = 0
        shadows = self.shadows([pfn for pfn, _ in same])
        for (pfn, word), shadow in zip(same, shadows, strict=True):
            mm.data.pop(pfn, None)
            mm.state[pfn] = SAME
            mm.owner[pfn] = 0
            mm.entry[pfn] = word
            mm.shadow[pfn] = shadow
            source += mm.size[pfn]
            nr = self.pages((pfn,))
            pages += nr
            vm["swpout_zero" if word == 0 else "same_filled"] += nr
        vm["reclaim_zero"] += len(same)
        self.stolen(len(same), pages, source, 0, batch)

    def give_back(self, pfns: Sequence[int], verdict: Verdict) -> None:
        """Verdicts that leave a folio resident."""
        if not pfns:
            return
        node = self._node
        mm, vm = node.mm, node.vmstat
        for pfn in pfns:
            mm.state[pfn] = RESIDENT
            mm.owner[pfn] = 0
            node.memcg.in_flight -= mm.size[pfn]
        node.nr_in_flight -= len(pfns)
        vm[f"reclaim_{verdict.value}"] += len(pfns)
        if verdict is not Verdict.CANCELLED:
            self.returned_total += len(pfns)
        if verdict is Verdict.ACTIVATE:
            vm["pgactivate"] += self.pages(pfns)
        node.policy.putback(pfns, verdict)

    def cancel(self, pfn: int) -> None:
        """A fault found the folio in flight: it stays, and the late verdict is thrown away."""
        self.give_back((pfn,), Verdict.CANCELLED)
