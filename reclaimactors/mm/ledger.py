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
from reclaimactors.mm.batch import StoreBatch
from reclaimactors.mm.ending import undo
from reclaimactors.mm.folio import RESIDENT, SAME

if TYPE_CHECKING:
    from collections.abc import Sequence

    from reclaimactors.mm.batch import FolioBatch
    from reclaimactors.mm.group import Group
    from reclaimactors.mm.node import Node

__all__ = ["Ledger"]


class Ledger:
    """The account of one node's verdicts."""

    def __init__(self, node: Node) -> None:
        self._node = node

    def freed(self, group: Group, nr_bytes: int) -> None:
        """Count bytes that reclaim has really freed: all of the group is worth a look again."""
        if nr_bytes > 0:
            for each in group.lineage:
                each.freed_total += nr_bytes
            group.scan.freed()

    def shadows(self, group: Group, pfns: Sequence[int]) -> array[int]:
        """Tell the policy that folios leave, before anything is changed.

        On failure, which is the policy's: all of them are resident as before, their verdict KEEP.

        Raises:
            PluginError: if what it gives is no int of 63 bits.
        """
        policy = group.policy
        try:
            return array("q", map(policy.shadow, pfns))
        except BaseException as exc:
            self._stay(group, pfns, Verdict.KEEP)
            undo(exc, self._node.relist, pfns)
            if isinstance(exc, (OverflowError, TypeError)):
                name = type(policy).__name__
                msg = f"policy {name} gave a shadow that is no int of 63 bits: {exc}"
                raise PluginError(msg) from exc
            raise

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
        node, group = self._node, batch.group
        group.nr_in_flight -= nr
        group.memcg.landed(source, at_store=isinstance(batch, StoreBatch))
        group.nr_resident -= nr
        self.freed(group, source - kept)
        if batch.producer is not None:
            batch.producer.freed += max(0, source - kept)
        group.memcg.adjust(resident=-source, compressed=kept)
        node.vmstat["pgsteal_" + batch.who.value] += pages
        node.vmstat["pgsteal_anon"] += pages
        group.count("pgsteal", pages)
        group.count("pgsteal_" + batch.who.value, pages)
        if source and compressed:
            weight = min(1.0, nr / 256)
            gained = max(0.0, 1.0 - kept / source)
            for each in group.lineage:
                each.gain += (gained - each.gain) * weight

    def drop_same(self, same: Sequence[tuple[int, int]], batch: FolioBatch) -> None:
        """Verdict ZERO: keep the word, drop the bytes."""
        node = self._node
        mm, vm = node.mm, node.vmstat
        pages = source = 0
        shadows = self.shadows(batch.group, [pfn for pfn, _ in same])
        for (pfn, word), shadow in zip(same, shadows, strict=True):
            mm.data.pop(pfn, None)
            mm.state[pfn] = SAME
            mm.owner[pfn] = 0
            mm.entry[pfn] = word
            mm.shadow[pfn] = shadow
            source += mm.size[pfn]
            nr = node.pages((pfn,))
            pages += nr
            vm["swpout_zero" if word == 0 else "same_filled"] += nr
        vm["reclaim_zero"] += len(same)
        batch.group.scan.gone([pfn for pfn, _ in same])
        self.stolen(len(same), pages, source, 0, batch)

    def give_back(
        self,
        group: Group,
        pfns: Sequence[int],
        verdict: Verdict,
        *,
        tried: bool = True,
        cull: bool = False,
    ) -> None:
        """Verdicts that leave a folio resident.

        On failure (the policy does not take them back) they are resident all the same, and new to
        the policy.

        Args:
            group: whose they are.
            pfns: folios in WRITEBACK.
            verdict: ACTIVATE, KEEP, CANCELLED or ERROR.
            tried: whether it was tried to free them, so that they count as looked at.
            cull: whether they are known not to compress, and no store can take them: they go to
                the unevictable list.
        """
        if not pfns:
            return
        node = self._node
        try:
            if not cull:
                looked = tried and verdict is not Verdict.CANCELLED
                self._put_back(group, pfns, verdict, tried=looked)
        except BaseException as exc:
            undo(exc, node.relist, pfns)
            raise
        finally:
            self._stay(group, pfns, verdict)
        if cull:
            group.unevictable.cull(pfns)
        elif not tried:
            group.scan.handed_back(len(pfns))

    def _stay(self, group: Group, pfns: Sequence[int], verdict: Verdict) -> None:
        """Folios that were in flight are resident again."""
        node = self._node
        mm, vm = node.mm, node.vmstat
        for pfn in pfns:
            mm.state[pfn] = RESIDENT
            mm.owner[pfn] = 0
            node.left_flight(pfn)
        group.nr_in_flight -= len(pfns)
        vm[f"reclaim_{verdict.value}"] += len(pfns)
        if verdict is not Verdict.CANCELLED:
            for each in group.lineage:
                each.returned_total += len(pfns)
        if verdict is Verdict.ACTIVATE:
            pages = node.pages(pfns)
            vm["pgactivate"] += pages
            group.count("pgactivate", pages)

    def _put_back(
        self, group: Group, pfns: Sequence[int], verdict: Verdict, *, tried: bool
    ) -> None:
        """Return folios to the policy; those that were tried before go behind all others."""
        again = group.scan.gave_back(pfns, verdict) if tried else ()
        if again and verdict is not Verdict.ACTIVATE:
            group.policy.putback(again, Verdict.ACTIVATE)
            behind = set(again)
            pfns = [pfn for pfn in pfns if pfn not in behind]
        if pfns:
            group.policy.putback(pfns, verdict)

    def cancel(self, pfn: int) -> None:
        """A fault found the folio in flight: it stays, and the late verdict is thrown away."""
        self.give_back(self._node.group_of(pfn), (pfn,), Verdict.CANCELLED)
