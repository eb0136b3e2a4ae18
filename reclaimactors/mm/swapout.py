"""Reclaim of folios: isolate, compress, verdict. Mirrors shrink_folio_list().

`isolate` hands folios to a batch; `begin` turns a batch into bytes to compress; `complete` gives
each its verdict and returns the writes that follow. A folio is freed by the completion itself, with
no second scan (the kernel rotates and rescans). What a verdict changes is in `ledger`, writing to
devices in `pageout`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from reclaimactors.abc import Verdict
from reclaimactors.errors import PluginError
from reclaimactors.mm.batch import FolioBatch, Reclaimer
from reclaimactors.mm.ending import end_all, undo
from reclaimactors.mm.folio import RESIDENT, WRITEBACK, ZSWAP
from reclaimactors.mm.lazyfree import drop_lazy
from reclaimactors.mm.ledger import Ledger
from reclaimactors.mm.limits import pool_left
from reclaimactors.mm.page_io import BLOB, FAIL, NOMEM, POOR, SAME_FILLED, outcome, same_filled
from reclaimactors.mm.pageout import Pageout
from reclaimactors.mm.shrink_worker import ShrinkWorker
from reclaimactors.mm.swap_state import drop_clean
from reclaimactors.mm.vmstat import order_of
from reclaimactors.mm.zram_out import ZramOut

if TYPE_CHECKING:
    from collections.abc import Hashable, Sequence

    from reclaimactors.mm.batch import Producer, StoreBatch
    from reclaimactors.mm.group import Group
    from reclaimactors.mm.node import Node
    from reclaimactors.mm.page_io import Squeezed

__all__ = ["Swapout"]

MAX_PINNED_BATCHES = 8  #: batches of nothing but pinned folios that one isolate looks past


class Swapout:
    """The way out of memory."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self.ledger = Ledger(node)
        self.pageout = Pageout(node, self.ledger)
        self.shrinker = ShrinkWorker(node, self.pageout)
        self.zram = ZramOut(node, self.ledger, self.pageout)

    # -- isolate ----------------------------------------------------------------------------------

    def isolate(
        self,
        nr: int,
        max_bytes: int,
        who: Reclaimer,
        producer: Producer | None = None,
        *,
        ram_only: bool = False,
        within: Group | None = None,
    ) -> FolioBatch | None:
        """Take up to `nr` cold folios of `max_bytes` in all, at least one, off the lists.

        All of them are of one group: the next of those to reclaim from (`Group.victims`).

        Where a store has room, the unevictable list comes first; but direct reclaim, whose caller
        waits, compresses before it writes.

        Args:
            nr: folios.
            max_bytes: of all but the first of them.
            who: whose counters they are.
            producer: whose account they are, and whose order they keep.
            ram_only: whether nothing is to be written: the unevictable list stays as it is.
            within: the group that they are of, or of a group in it; None for the root.

        Returns:
            A batch that owns them, or None where nothing was found: there is nothing, or more than
            a few clusters of pinned folios came first (`Scan.exhausted` tells). Clean ones, those
            of the swap cache and of discardable values, are gone already, with nothing to do for
            them; the batch may be empty then.
        """
        node = self._node
        for group in (within or node.root).victims():
            batch = FolioBatch(node.new_id(), group, [], 0, 0, who, producer, ram_only=ram_only)
            if self._fill(batch, nr, max_bytes):
                return batch
        return None

    def _fill(self, batch: FolioBatch, nr: int, max_bytes: int) -> bool:
        """Fill a batch with folios of its group; return whether anything was found."""
        group, who, ram_only = batch.group, batch.who, batch.ram_only
        written = not ram_only and len(group.unevictable) > 0
        first = written and (who is not Reclaimer.DIRECT or group.scan.lists_seen)
        if first and self._rescue(batch, nr, max_bytes):
            return True
        if self._isolate(batch, nr, max_bytes):
            return True
        return written and not first and self._rescue(batch, nr, max_bytes)

    def _rescue(self, batch: FolioBatch, nr: int, max_bytes: int) -> bool:
        """Fill a batch from the unevictable list if a store can take it now."""
        node, group = self._node, batch.group
        if not group.swap_ready:
            return False
        pfns, _ = _up_to(max_bytes, group.unevictable.first(nr), node.mm.size)
        if not pfns:
            return False
        group.unevictable.rescue(pfns)
        group.scan.handed_back(len(pfns))  # a store with too few slots would take them for ever
        batch.poor = True
        self._own(batch, pfns)
        self._count(batch)
        return True

    def _own(self, batch: FolioBatch, pfns: list[int]) -> None:
        node = self._node
        state, owner, size = node.mm.state, node.mm.owner, node.mm.size
        for pfn in pfns:
            state[pfn] = WRITEBACK
            owner[pfn] = batch.id
        batch.pfns = pfns
        batch.nr_bytes = sum([size[pfn] for pfn in pfns])
        batch.nr_pages = node.pages(pfns)

    def _count(self, batch: FolioBatch) -> None:
        """Account folios that a batch has just got: from here on each is owed a verdict."""
        node = self._node
        vm = node.vmstat
        batch.group.memcg.isolated(batch.nr_bytes)
        batch.group.nr_in_flight += len(batch.pfns)
        vm["reclaim_isolated"] += len(batch.pfns)
        vm["pgscan_" + batch.who.value] += batch.nr_pages
        vm["pgscan_anon"] += batch.nr_pages
        batch.group.count("pgscan", batch.nr_pages)
        batch.group.count("pgscan_" + batch.who.value, batch.nr_pages)

    def _isolate(self, batch: FolioBatch, nr: int, max_bytes: int) -> bool:
        """Fill a batch from the policy's lists."""
        node, group = self._node, batch.group
        for _ in range(MAX_PINNED_BATCHES):
            candidates = list(group.policy.isolate(nr))
            if not candidates:
                group.scan.found_nothing()
                return False
            try:
                self._claim(batch, candidates, max_bytes)
            except BaseException as exc:  # junk, or the policy did not take back what is too much
                for pfn in batch.pfns:
                    node.mm.state[pfn] = RESIDENT
                    node.mm.owner[pfn] = 0
                undo(exc, node.relist, self._resident(group, candidates))
                raise
            if batch.pfns or batch.nr_clean:
                break
        else:
            return False
        self._count(batch)
        if node.swapcache.pages:
            try:
                drop_clean(node, self.ledger, batch)
            except BaseException as exc:
                undo(exc, self.hand_back, batch)
                raise
        return True

    def _claim(self, batch: FolioBatch, candidates: list[int], max_bytes: int) -> None:
        """Give candidates to a batch; pinned ones, and those too many, go back to the lists."""
        size, refs = self._node.mm.size, self._node.mm.refs
        group = batch.group
        pfns = self._checked(group, candidates)
        if group.values.lazy:
            pfns = drop_lazy(self._node, self.ledger, batch, pfns)
        pinned: list[int] = []
        too_many: list[int] = []
        held = {refs[pfn] for pfn in pfns} != {0}
        if held or sum([size[pfn] for pfn in pfns]) > max_bytes:
            pinned = [pfn for pfn in pfns if refs[pfn]]
            pfns, too_many = _up_to(max_bytes, [pfn for pfn in pfns if not refs[pfn]], size)
        self._own(batch, pfns)
        if pinned:
            group.scan.gave_back(pinned, Verdict.ACTIVATE)
            group.policy.putback(pinned, Verdict.ACTIVATE)
        if too_many:
            group.policy.putback(too_many, Verdict.KEEP)

    def _checked(self, group: Group, candidates: list[int]) -> list[int]:
        """Return what a policy isolated, if each is a resident folio, and is there once.

        Raises:
            PluginError: if not.
        """
        mm = self._node.mm
        state, charged_to = mm.state, mm.group
        try:
            states = {state[pfn] for pfn in candidates}
            once = len(set(candidates)) == len(candidates)
            its_own = {charged_to[pfn] for pfn in candidates} == {group.index}
            if states == {RESIDENT} and once and its_own and min(candidates) >= 0:
                return candidates
        except (IndexError, TypeError):  # no pfn at all
            pass
        name = type(group.policy).__name__
        raise PluginError(f"policy {name} isolated what is not on its lists, among {candidates}")

    def _resident(self, group: Group, candidates: list[int]) -> list[int]:
        """Return what a policy isolated of its folios that are resident, each once."""
        mm, index = self._node.mm, group.index
        state = mm.state
        pfns = {pfn for pfn in candidates if isinstance(pfn, int)}  # pyright: ignore[reportUnnecessaryIsInstance] # it is a plugin's word
        pfns = {pfn for pfn in pfns if 0 <= pfn < len(state) and mm.group[pfn] == index}
        return [pfn for pfn in pfns if state[pfn] == RESIDENT]

    def owned(self, batch: FolioBatch) -> list[int]:
        """Return the pfns that the batch still owns: the others were cancelled meanwhile."""
        owner, bid = self._node.mm.owner, batch.id
        return [pfn for pfn in batch.pfns if owner[pfn] == bid]

    def first_bytes(self, batch: FolioBatch) -> int:
        """Return the bytes of a batch's first folio: where it may enter, some of the batch may."""
        return self._node.mm.size[batch.pfns[0]]

    def lethal(self, batch: FolioBatch) -> list[tuple[Hashable, int]]:
        """Return key and size of each folio that has killed workers, once for each."""
        node = self._node
        if not node.lethal:
            return []
        held = [(pfn, node.mm.data[pfn]) for pfn in self.owned(batch)]
        told = [(pfn, len(data)) for pfn, data in held if node.lethal.to_tell(data)]
        return [(batch.group.values.key_of(pfn), size) for pfn, size in told]

    def cut(self, batch: FolioBatch, *, pages: int = 0, nr_bytes: int = 0) -> FolioBatch | None:
        """Keep so many pages or bytes of a batch, one folio at least; return the rest, if any."""
        node = self._node
        limit = pages or nr_bytes
        for nr, pfn in enumerate(batch.pfns):
            limit -= node.pages((pfn,)) if pages else node.mm.size[pfn]
            if limit < 0 and nr:
                return self.split(batch, nr)
        return None

    def split(self, batch: FolioBatch, nr: int) -> FolioBatch:
        """Move all but the first `nr` folios to a new batch, which owns them from then on."""
        node = self._node
        mm = node.mm
        rest = FolioBatch(node.new_id(), batch.group, batch.pfns[nr:], 0, 0, batch.who,
                          batch.producer, poor=batch.poor)  # fmt: skip
        del batch.pfns[nr:]
        for pfn in rest.pfns:
            if mm.owner[pfn] == batch.id:
                mm.owner[pfn] = rest.id
        for part in (batch, rest):
            part.nr_bytes = sum([mm.size[pfn] for pfn in part.pfns])
            part.nr_pages = node.pages(part.pfns)
        return rest

    # -- compress ---------------------------------------------------------------------------------

    def begin(self, batch: FolioBatch, *, hold: bool) -> tuple[list[bytes], list[StoreBatch]]:
        """Return the bytes of what is to be compressed now, and writes to route.

        The policy is looked at again here, at execution: a pool that takes nothing is not
        compressed for. Each folio goes to a device as it is then, or is activated; or where that
        device compresses, its pages are compressed for it. Afterwards `batch.pfns` are the folios
        whose bytes were returned, in `batch.nr_rows` rows.

        Args:
            batch: isolated folios; those cancelled meanwhile are dropped.
            hold: whether the bytes are looked at while the event loop goes on (a thread): the
                folios are held until `complete` or `hand_back`.
        """
        node = self._node
        data = node.mm.data
        batch.pfns = self.owned(batch)
        writes: list[StoreBatch] = []
        pages: list[bytes] | None = None
        if batch.poor:
            writes = self._divert(batch)
        elif not batch.group.pool_accepts:
            if self.zram.next_in_line:
                pages = self.zram.rows_of(batch)
            else:
                writes = self._divert(batch)
        if hold:
            for pfn in batch.pfns:
                node.mm.refs[pfn] += 1
            batch.held = list(batch.pfns)
        return [data[pfn] for pfn in batch.pfns] if pages is None else pages, writes

    def _divert(self, batch: FolioBatch) -> list[StoreBatch]:
        """The pool takes nothing: settle the whole batch without compressing it."""
        node = self._node
        to_device: list[int] = []
        same: list[tuple[int, int]] = []
        for pfn in batch.pfns:
            data = node.mm.data.get(pfn)
            word = same_filled(data) if data is not None else None
            if word is None:
                to_device.append(pfn)
                node.mm.crc[pfn] = 0
            else:
                same.append((pfn, word))
        if same:
            self.ledger.drop_same(same, batch)
        if node.zswap.enabled and not batch.poor:
            node.vmstat["pool_limit_hit"] += len(to_device)
            batch.group.shrink_pool()
            node.on_pool_full()
        failed = self.zram.elsewhere() if batch.poor else frozenset[int]()
        writes = self.pageout.to_devices(
            to_device, batch, Verdict.ACTIVATE, failed=failed, poor=batch.poor
        )
        batch.pfns = []
        return writes

    def complete(self, batch: FolioBatch, out: Squeezed) -> list[StoreBatch]:
        """Give each folio of a batch its verdict; return the device writes to route.

        Row i of `out` is `batch.pfns[i]`, or as `begin` has cut them into pages. A folio that the
        batch no longer owns is skipped: its verdict was CANCELLED.
        """
        owner, crc = self._node.mm.owner, self._node.mm.crc
        bid = batch.id
        if batch.rows is not None:
            writes = self.zram.complete(batch, out)
            self._let_go(batch)
            return writes
        if None not in out.blobs and {owner[pfn] for pfn in batch.pfns} == {bid}:
            return self._complete_all(batch, out)
        stored: list[int] = []
        blobs: list[bytes] = []
        same: list[tuple[int, int]] = []
        rejected: dict[int, list[int]] = {BLOB: [], POOR: [], FAIL: [], NOMEM: []}
        rows = zip(batch.pfns, out.kinds, out.blobs, out.values, strict=True)
        for pfn, kind, blob, value in rows:
            if owner[pfn] != bid:
                continue
            if blob is not None:
                crc[pfn] = value
                stored.append(pfn)
                blobs.append(blob)
            elif kind == SAME_FILLED:
                same.append((pfn, value))
            else:
                crc[pfn] = value
                rejected[kind].append(pfn)
        if stored:
            rejected[BLOB] = self._store(stored, blobs, batch)
        if same:
            self.ledger.drop_same(same, batch)
        return self._end(batch, rejected)

    def _complete_all(self, batch: FolioBatch, out: Squeezed) -> list[StoreBatch]:
        """The usual case of `complete`: each folio is still the batch's, and was compressed."""
        crc = self._node.mm.crc
        for pfn, value in zip(batch.pfns, out.values, strict=True):
            crc[pfn] = value
        blobs = cast("list[bytes]", out.blobs)
        return self._end(batch, {BLOB: self._store(batch.pfns, blobs, batch)})

    def _end(self, batch: FolioBatch, rejected: dict[int, list[int]]) -> list[StoreBatch]:
        """Find a place for what the pool did not take; nobody looks at the bytes any more."""
        if self._node.zswap.reached_full:
            self._node.on_pool_full()
        writes = self._settle(rejected, batch) if any(rejected.values()) else []
        self._let_go(batch)
        return writes

    def _store(self, pfns: list[int], blobs: list[bytes], batch: FolioBatch) -> list[int]:
        """Verdict STORED: swap source for blob; return the folios that the pool does not take."""
        node = self._node
        mm, pool = node.mm, node.zswap
        lengths = list(map(len, blobs))
        refused = pfns[self._room_for(batch.group, lengths) :]
        for pfn in refused:
            mm.crc[pfn] = 0  # that was the blob's; a store will get the source
        if refused:
            pfns = pfns[: -len(refused)]
            del lengths[len(pfns) :]
        if not pfns:
            return refused
        shadows = self.ledger.shadows(batch.group, pfns)
        mm.data.update(zip(pfns, blobs, strict=False))
        state, owner, size, shadow = mm.state, mm.owner, mm.size, mm.shadow
        for pfn, evicted in zip(pfns, shadows, strict=True):
            state[pfn] = ZSWAP
            owner[pfn] = 0
            shadow[pfn] = evicted
        sizes = [size[pfn] for pfn in pfns]
        pages = self._count_zswpout(sizes)
        kept = sum(lengths)
        pool.extend(pfns, kept, pages, batch.group.index)
        batch.group.count("zswpout", pages)
        node.vmstat["reclaim_stored"] += len(pfns)
        self.ledger.stolen(len(pfns), pages, sum(sizes), kept, batch)
        return refused

    def _room_for(self, group: Group, lengths: list[int]) -> int:
        """Return how many blobs of these sizes the pool takes of a group now."""
        nr = self._node.zswap.room_for(lengths)
        if not group.pool_restricted:
            return nr
        left = pool_left(group)
        for at, length in enumerate(lengths[:nr]):
            if left <= 0:
                group.shrink_pool()
                return at
            left -= length
        return nr

    def _count_zswpout(self, sizes: list[int]) -> int:
        """Count folios by their order, as mTHP statistics do; return their pages."""
        vm, page = self._node.vmstat, self._node.page_size
        large = [-(-size // page) for size in sizes if size > page]
        for nr in large:
            vm[f"zswpout_order_{order_of(nr)}"] += 1
        small = len(sizes) - len(large)
        vm["zswpout_order_0"] += small
        vm["zswpout"] += small + sum(large)
        return small + sum(large)

    def _settle(self, rejected: dict[int, list[int]], batch: FolioBatch) -> list[StoreBatch]:
        """Find a place for what the pool did not take, by the table of `page_io.outcome`."""
        node = self._node
        vm = node.vmstat
        writes: list[StoreBatch] = []
        vm["pool_limit_hit"] += len(rejected.get(BLOB, ()))
        vm["reject_compress_poor"] += len(rejected.get(POOR, ()))
        vm["reject_compress_fail"] += len(rejected.get(FAIL, ()))
        vm["reject_alloc_fail"] += len(rejected.get(NOMEM, ()))
        try:
            for kind, pfns in rejected.items():
                if pfns:
                    otherwise = outcome(kind, pool_accepts=False, swap_has_room=False)
                    writes += self.pageout.to_devices(pfns, batch, otherwise, poor=kind == POOR)
        except BaseException as exc:
            undo(exc, end_all, writes, self.pageout.refuse)
            raise
        return writes

    def hand_back(self, batch: FolioBatch, verdict: Verdict = Verdict.KEEP) -> None:
        """End a batch without a result: what it still owns is resident as before (D2, D3).

        That holds on failure too, which is the policy's.
        """
        try:
            owned = self.owned(batch)
            self.ledger.give_back(batch.group, owned, verdict, tried=False, cull=batch.poor)
        finally:
            self._let_go(batch)

    def _let_go(self, batch: FolioBatch) -> None:
        for pfn in batch.held:
            self._node.release(pfn)
        batch.held = []


def _up_to(limit: int, pfns: list[int], size: Sequence[int]) -> tuple[list[int], list[int]]:
    """Return the folios that fit `limit` bytes, at least the first one, and the others."""
    fit: list[int] = []
    others: list[int] = []
    for pfn in pfns:
        if fit and size[pfn] > limit:
            others.append(pfn)
        else:
            limit -= size[pfn]
            fit.append(pfn)
    return fit, others
