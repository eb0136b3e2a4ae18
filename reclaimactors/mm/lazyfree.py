"""Discardable values: reclaim drops them, and compresses or writes nothing. Mirrors MADV_FREE.

They are clean as the kernel's lazily freed pages are, whatever they hold: where reclaim comes to
one, it forgets the whole value with its key. A put without `discardable` makes the key's value one
that is kept, as writing to such a page does there. One that somebody holds is passed over.

A discardable folio is resident and nowhere else: it is dropped before a batch could own it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from reclaimactors.mm.folio import LAZY, RESIDENT
from reclaimactors.mm.memcg import FOLIO_OVERHEAD, KEY_OVERHEAD

if TYPE_CHECKING:
    from collections.abc import Hashable, Sequence

    from reclaimactors.mm.batch import FolioBatch
    from reclaimactors.mm.folio import MemMap
    from reclaimactors.mm.ledger import Ledger
    from reclaimactors.mm.node import Node

__all__ = ["Lazyfree", "drop_lazy"]


class Lazyfree:
    """The discardable values of one group, false where there are none.

    `MemMap.clean` says the same by pfn.
    """

    def __init__(self, mm: MemMap) -> None:
        self._mm = mm
        self.keys: dict[int, Hashable] = {}  #: by pfn, each folio of a value
        self.overhead = 0  #: bytes charged for them beside their own, which reclaim can free

    def __bool__(self) -> bool:
        return bool(self.keys)

    def add(self, key: Hashable, pfns: Sequence[int]) -> None:
        """The value of a key may be dropped."""
        for pfn in pfns:
            self._mm.clean[pfn] = LAZY
            self.keys[pfn] = key
        self.overhead += self._overhead_of(pfns)

    def forget(self, pfns: Sequence[int]) -> bool:
        """A value is gone, or is to be kept: return whether it was discardable."""
        if pfns[0] not in self.keys:
            return False
        for pfn in pfns:
            self._mm.clean[pfn] = 0
            del self.keys[pfn]
        self.overhead -= self._overhead_of(pfns)
        return True

    def _overhead_of(self, pfns: Sequence[int]) -> int:
        return KEY_OVERHEAD + self._mm.key[pfns[0]] + len(pfns) * FOLIO_OVERHEAD

    def check(self) -> None:
        """Assert that they are resident, and what they are charged."""
        mm = self._mm
        assert all(mm.state[pfn] == RESIDENT and mm.clean[pfn] == LAZY for pfn in self.keys)
        nr = len(set(self.keys.values()))
        extra = sum([mm.key[pfn] for pfn in self.keys])
        assert self.overhead == nr * KEY_OVERHEAD + extra + len(self.keys) * FOLIO_OVERHEAD


def drop_lazy(node: Node, ledger: Ledger, batch: FolioBatch, pfns: list[int]) -> list[int]:
    """Forget the discardable values among folios that were just isolated; return the others.

    On failure, which is the policy's: the value that it is about is there as before.
    """
    group, mm, vm = batch.group, node.mm, node.vmstat
    values, who = group.values, batch.who.value
    for pfn in pfns:
        if pfn not in values.lazy.keys or mm.refs[pfn]:
            continue
        key = values.lazy.keys[pfn]
        folios = values.pfns(key)
        nr, pages, freed = len(folios), node.pages(folios), values.frees_now(key)
        values.delete(key)
        batch.nr_clean += nr
        batch.clean_bytes += freed
        if batch.producer is not None:
            batch.producer.freed += freed
        ledger.freed(group, freed)
        for name in (f"pgscan_{who}", "pgscan_file", f"pgsteal_{who}", "pgsteal_file"):
            vm[name] += pages
        vm["pglazyfreed"] += pages
        for name in ("pgscan", f"pgscan_{who}", "pgsteal", f"pgsteal_{who}", "pglazyfreed"):
            group.count(name, pages)
    return [pfn for pfn in pfns if mm.state[pfn] == RESIDENT]
