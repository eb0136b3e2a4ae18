"""Reclaim of folios: isolate, verdict, write, write back. Mirrors shrink_folio_list and pageout.

`isolate` hands folios to a batch; `begin` turns a batch into bytes to compress; `complete` gives
each its verdict and returns the writes that follow; `stored` or `store_failed` ends a write. A
folio is freed by the completion itself, with no second scan (the kernel rotates and rescans).

`pgsteal` counts a folio whose source bytes were dropped. What is *freed*, and counts as progress,
is its size less the blob that is kept.
"""

from __future__ import annotations

from array import array
from typing import TYPE_CHECKING
from zlib import crc32

from reclaimactors.abc import Verdict
from reclaimactors.errors import PluginError
from reclaimactors.mm.batch import FolioBatch, Reclaimer, StoreBatch
from reclaimactors.mm.folio import DEVICE, RESIDENT, SAME, WRITEBACK, ZSWAP
from reclaimactors.mm.page_io import BLOB, FAIL, POOR, SAME_FILLED, outcome, same_filled

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from reclaimactors.mm.node import Node
    from reclaimactors.mm.page_io import Squeezed
    from reclaimactors.mm.swap import SwapDevice

__all__ = ["SWAP_CLUSTER_MAX", "Swapout"]

SWAP_CLUSTER_MAX = 32  #: folios isolated at a time
MAX_PINNED_BATCHES = 8  #: batches of nothing but pinned folios that one isolate looks past
MAX_WRITE_BYTES = 1 << 20  #: of one write, so that its checksums hold the event loop under 1 ms

_RAW, _BLOB = 0, 1  #: MemMap.codec


class Swapout:
    """The way out of memory."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self.gain = 0.5  #: share of a stolen byte that was really freed, recently
        self.freed_total = 0  #: bytes that reclaim has really freed since the start
        self.returned_total = 0  #: folios that reclaim had to give back since the start
        self.freed_by = dict.fromkeys(Reclaimer, 0)  #: the same by who asked

    # -- isolate ----------------------------------------------------------------------------------

    def isolate(self, nr: int, max_bytes: int, who: Reclaimer) -> FolioBatch | None:
        """Take up to `nr` cold folios of `max_bytes` in all, at least one, off the lists.

        Returns:
            A batch that owns them, or None where there is nothing to isolate.
        """
        node = self._node
        vm = node.vmstat
        batch = FolioBatch(node.new_id(), [], 0, 0, who)
        for _ in range(MAX_PINNED_BATCHES):
            candidates = node.policy.isolate(nr)
            if not candidates:
                return None
            try:
                self._claim(batch, candidates, max_bytes)
            except BaseException:  # the policy did not take back what was not wanted
                for pfn in batch.pfns:
                    node.mm.state[pfn] = RESIDENT
                    node.mm.owner[pfn] = 0
                raise
            if batch.pfns:
                break
        else:
            return None
        node.memcg.in_flight += batch.nr_bytes
        node.nr_in_flight += len(batch.pfns)
        vm["reclaim_isolated"] += len(batch.pfns)
        vm["pgscan_" + who.value] += batch.nr_pages
        vm["pgscan_anon"] += batch.nr_pages
        return batch

    def _claim(self, batch: FolioBatch, candidates: list[int], max_bytes: int) -> None:
        """Give candidates to a batch; pinned ones, and those too many, go back to the lists."""
        node = self._node
        state, size, refs, owner = node.mm.state, node.mm.size, node.mm.refs, node.mm.owner
        page, bid, taken = node.page_size, batch.id, batch.pfns
        pinned: list[int] = []
        too_many: list[int] = []
        for pfn in self._checked(candidates):
            length = size[pfn]
            if refs[pfn]:
                pinned.append(pfn)
            elif taken and batch.nr_bytes + length > max_bytes:
                too_many.append(pfn)
            else:
                state[pfn] = WRITEBACK
                owner[pfn] = bid
                batch.nr_bytes += length
                batch.nr_pages += 1 if length <= page else -(-length // page)
                taken.append(pfn)
        if pinned:
            node.policy.putback(pinned, Verdict.ACTIVATE)
        if too_many:
            node.policy.putback(too_many, Verdict.KEEP)

    def _checked(self, candidates: list[int]) -> list[int]:
        """Return what a policy isolated, if each is a resident folio, and is there once.

        Raises:
            PluginError: if not; the folios that were right are back on the lists.
        """
        node = self._node
        state = node.mm.state
        try:
            wrong = [pfn for pfn in candidates if state[pfn] != RESIDENT or pfn < 0]
            if not wrong and len(set(candidates)) == len(candidates):
                return candidates
        except (IndexError, TypeError):  # no pfn at all
            pass
        pfns = {pfn for pfn in candidates if isinstance(pfn, int)}  # pyright: ignore[reportUnnecessaryIsInstance] # it is a plugin's word
        nr = len(state)
        node.policy.putback(
            [pfn for pfn in pfns if 0 <= pfn < nr and state[pfn] == RESIDENT], Verdict.KEEP
        )
        name = type(node.policy).__name__
        raise PluginError(f"policy {name} isolated what is not on its lists, among {candidates}")

    def _pages(self, pfns: Iterable[int]) -> int:
        size, page = self._node.mm.size, self._node.page_size
        return sum([max(1, -(-size[pfn] // page)) for pfn in pfns])

    def owned(self, batch: FolioBatch) -> list[int]:
        """Return the pfns that the batch still owns: the others were cancelled meanwhile."""
        owner, bid = self._node.mm.owner, batch.id
        return [pfn for pfn in batch.pfns if owner[pfn] == bid]

    def split(self, batch: FolioBatch, nr: int) -> FolioBatch:
        """Move all but the first `nr` folios to a new batch, which owns them from then on."""
        node = self._node
        mm = node.mm
        rest = FolioBatch(node.new_id(), batch.pfns[nr:], 0, 0, batch.who)
        del batch.pfns[nr:]
        for pfn in rest.pfns:
            if mm.owner[pfn] == batch.id:
                mm.owner[pfn] = rest.id
        for part in (batch, rest):
            part.nr_bytes = sum([mm.size[pfn] for pfn in part.pfns])
            part.nr_pages = self._pages(part.pfns)
        return rest

    # -- compress ---------------------------------------------------------------------------------

    def begin(self, batch: FolioBatch, *, hold: bool) -> tuple[list[bytes], list[StoreBatch]]:
        """Return the bytes of the folios that are to be compressed now, and writes to route.

        The policy is looked at again here, at execution: a pool that takes nothing is not
        compressed for (each folio goes to a device as it is, or is activated). Afterwards
        `batch.pfns` are those whose bytes were returned.

        Args:
            batch: isolated folios; those cancelled meanwhile are dropped.
            hold: whether the bytes are looked at while the event loop goes on (a thread): the
                folios are held until `complete` or `hand_back`.
        """
        node = self._node
        data = node.mm.data
        batch.pfns = self.owned(batch)
        writes: list[StoreBatch] = []
        if not node.zswap.accepts():
            writes = self._divert(batch)
        if hold:
            for pfn in batch.pfns:
                node.mm.refs[pfn] += 1
            batch.held = list(batch.pfns)
        return [data[pfn] for pfn in batch.pfns], writes

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
            self._drop_same(same, batch.who)
        if node.zswap.enabled:
            node.vmstat["pool_limit_hit"] += len(to_device)
            node.on_pool_full()
        batch.pfns = []
        return self._to_devices(to_device, batch, Verdict.ACTIVATE)

    def complete(self, batch: FolioBatch, out: Squeezed) -> list[StoreBatch]:
        """Give each folio of a batch its verdict; return the device writes to route.

        Row i of `out` is `batch.pfns[i]`. A folio that the batch no longer owns is skipped: its
        verdict was CANCELLED.
        """
        owner, crc = self._node.mm.owner, self._node.mm.crc
        bid = batch.id
        stored: list[int] = []
        blobs: list[bytes] = []
        same: list[tuple[int, int]] = []
        rejected: dict[int, list[int]] = {BLOB: [], POOR: [], FAIL: []}
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
            rejected[BLOB] = self._store(stored, blobs, batch.who)
        if same:
            self._drop_same(same, batch.who)
        writes = self._settle(rejected, batch) if any(rejected.values()) else []
        self._let_go(batch)
        if self._node.zswap.reached_full:
            self._node.on_pool_full()
        return writes

    def _store(self, pfns: list[int], blobs: list[bytes], who: Reclaimer) -> list[int]:
        """Verdict STORED: swap source for blob; return the folios that the pool does not take."""
        node = self._node
        mm, pool = node.mm, node.zswap
        lengths = list(map(len, blobs))
        refused = pfns[pool.room_for(lengths) :]
        for pfn in refused:
            mm.crc[pfn] = 0  # that was the blob's; a store will get the source
        if refused:
            pfns = pfns[: -len(refused)]
            del lengths[len(pfns) :]
        if not pfns:
            return refused
        shadows = self._shadows(pfns)
        mm.data.update(zip(pfns, blobs, strict=False))
        state, owner, size, shadow = mm.state, mm.owner, mm.size, mm.shadow
        source = 0
        for pfn, evicted in zip(pfns, shadows, strict=True):
            state[pfn] = ZSWAP
            owner[pfn] = 0
            shadow[pfn] = evicted
            source += size[pfn]
        pages = self._count_zswpout(pfns)
        pool.extend(pfns, sum(lengths), pages)
        node.vmstat["reclaim_stored"] += len(pfns)
        self._stolen(len(pfns), pages, source, sum(lengths), who)
        return refused

    def _shadows(self, pfns: Sequence[int]) -> array[int]:
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

    def _count_zswpout(self, pfns: list[int]) -> int:
        """Count folios by their order, as mTHP statistics do; return their pages."""
        vm, size, page = self._node.vmstat, self._node.mm.size, self._node.page_size
        small = pages = 0
        for pfn in pfns:
            length = size[pfn]
            if length <= page:
                small += 1
            else:
                nr = -(-length // page)
                pages += nr
                vm[f"zswpout_order_{(nr - 1).bit_length()}"] += 1
        vm["zswpout_order_0"] += small
        vm["zswpout"] += small + pages
        return small + pages

    def _settle(self, rejected: dict[int, list[int]], batch: FolioBatch) -> list[StoreBatch]:
        """Find a place for what the pool did not take, by the table of `page_io.outcome`."""
        node = self._node
        vm = node.vmstat
        writes: list[StoreBatch] = []
        vm["pool_limit_hit"] += len(rejected[BLOB])
        vm["reject_compress_poor"] += len(rejected[POOR])
        vm["reject_compress_fail"] += len(rejected[FAIL])
        for kind, pfns in rejected.items():
            if pfns:
                otherwise = outcome(kind, pool_accepts=False, swap_has_room=False)
                writes += self._to_devices(pfns, batch, otherwise)
        return writes

    def hand_back(self, batch: FolioBatch, verdict: Verdict = Verdict.KEEP) -> None:
        """End a batch without a result: what it still owns is resident as before (D2, D3)."""
        try:
            self._return(self.owned(batch), verdict)
        finally:
            self._let_go(batch)

    def _let_go(self, batch: FolioBatch) -> None:
        for pfn in batch.held:
            self._node.release(pfn)
        batch.held = []

    # -- verdicts ---------------------------------------------------------------------------------

    def _stolen(self, nr: int, pages: int, source: int, kept: int, who: Reclaimer) -> None:
        """Account folios that have left memory, `kept` bytes of each blob staying."""
        node = self._node
        node.nr_in_flight -= nr
        node.memcg.in_flight -= source
        node.nr_resident -= nr
        self.freed_total += max(0, source - kept)
        self.freed_by[who] += max(0, source - kept)
        node.memcg.adjust(resident=-source, compressed=kept)
        node.vmstat["pgsteal_" + who.value] += pages
        node.vmstat["pgsteal_anon"] += pages
        if source:
            weight = min(1.0, nr / 256)
            self.gain += (max(0.0, 1.0 - kept / source) - self.gain) * weight

    def _drop_same(self, same: Sequence[tuple[int, int]], who: Reclaimer) -> None:
        """Verdict ZERO: keep the word, drop the bytes."""
        node = self._node
        mm, vm = node.mm, node.vmstat
        pages = source = 0
        shadows = self._shadows([pfn for pfn, _ in same])
        for (pfn, word), shadow in zip(same, shadows, strict=True):
            mm.data.pop(pfn, None)
            mm.state[pfn] = SAME
            mm.owner[pfn] = 0
            mm.entry[pfn] = word
            mm.shadow[pfn] = shadow
            source += mm.size[pfn]
            nr = self._pages((pfn,))
            pages += nr
            vm["swpout_zero" if word == 0 else "same_filled"] += nr
        vm["reclaim_zero"] += len(same)
        self._stolen(len(same), pages, source, 0, who)

    def _return(self, pfns: Sequence[int], verdict: Verdict) -> None:
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
            vm["pgactivate"] += self._pages(pfns)
        node.policy.putback(pfns, verdict)

    def cancel(self, pfn: int) -> None:
        """A fault found the folio in flight: it stays, and the late verdict is thrown away."""
        self._return((pfn,), Verdict.CANCELLED)

    # -- devices ----------------------------------------------------------------------------------

    def _to_devices(
        self,
        pfns: Sequence[int],
        batch: FolioBatch | StoreBatch,
        otherwise: Verdict,
        *,
        failed: frozenset[int] = frozenset(),
    ) -> list[StoreBatch]:
        """Give folios slots on the best device that has room; `otherwise` where none has."""
        node = self._node
        mm = node.mm
        out: list[StoreBatch] = []
        writes: dict[int, StoreBatch] = {}
        homeless: list[int] = []
        for pfn in pfns:
            length = mm.size[pfn]
            found = node.swap.alloc(max(1, -(-length // node.page_size)), failed)
            if found is None:
                homeless.append(pfn)
                continue
            device, slot = found
            write = writes.get(device.index)
            if write is None or write.nr_bytes + length > MAX_WRITE_BYTES:
                write = self._new_write(device, batch.who, blobs=False)
                write.failed = failed
                writes[device.index] = write
                out.append(write)
            self._assign(write, pfn, slot, length)
        try:
            self._return(homeless, otherwise)
        except BaseException:  # the policy did not take them back
            for write in out:
                self.refuse(write)
            raise
        return out

    def _new_write(self, device: SwapDevice, who: Reclaimer, *, blobs: bool) -> StoreBatch:
        self._node.nr_writes += 1
        return StoreBatch(self._node.new_id(), device.index, who, blobs)

    def _assign(self, write: StoreBatch, pfn: int, slot: int, length: int) -> None:
        write.pfns.append(pfn)
        write.slots.append(slot)
        write.lengths.append(length)
        write.nr_bytes += length
        self._node.mm.owner[pfn] = write.id
        self._node.hold(pfn)

    def items(self, write: StoreBatch) -> list[tuple[int, bytes]]:
        """Return what the store is to write; the checksum of each folio is taken here."""
        node = self._node
        mm, page = node.mm, node.page_size
        out: list[tuple[int, bytes]] = []
        for pfn, slot, length in zip(write.pfns, write.slots, write.lengths, strict=True):
            data = mm.data.get(pfn)
            if mm.owner[pfn] != write.id or data is None:
                continue
            if not mm.crc[pfn]:  # a worker process has taken it already
                mm.crc[pfn] = crc32(data)
            if length <= page:
                out.append((slot, data))
            else:
                starts = range(0, length, page)
                out += [(slot + i, data[at : at + page]) for i, at in enumerate(starts)]
        return out

    def stored(self, write: StoreBatch, charges: Sequence[int] | None = None) -> None:
        """The store has acknowledged: verdict DEVICE for what the write still owns.

        Args:
            write: the acknowledged write.
            charges: bytes of this process that the store holds for each folio, None = nothing.
        """
        node = self._node
        mm, vm = node.mm, node.vmstat
        owned = [] if write.blobs else [pfn for pfn in write.pfns if mm.owner[pfn] == write.id]
        shadows = iter(self._shadows(owned))
        node.nr_writes -= 1
        done = pages = source = kept = slots = 0
        for i, (pfn, slot, length) in enumerate(
            zip(write.pfns, write.slots, write.lengths, strict=True)
        ):
            nr_slots = max(1, -(-length // node.page_size))
            if mm.owner[pfn] != write.id:
                node.forget_slots(write.device, slot, nr_slots)
                node.release(pfn)
                continue
            if write.blobs:
                nr = self._pages((pfn,))
                node.zswap.remove(pfn, length, nr)
                vm["zswpwb"] += nr
                vm["written_back_pages"] += nr
            else:
                mm.shadow[pfn] = next(shadows)
            mm.data.pop(pfn, None)
            mm.state[pfn] = DEVICE
            mm.owner[pfn] = 0
            mm.device[pfn] = write.device
            mm.entry[pfn] = slot
            mm.length[pfn] = length
            node.swapped += length
            mm.codec[pfn] = _BLOB if write.blobs else _RAW
            mm.charge[pfn] = charges[i] if charges else 0
            done += 1
            slots += nr_slots
            pages += self._pages((pfn,))
            source += length
            kept += mm.charge[pfn]
            node.release(pfn)
        vm["pswpout"] += slots
        vm["nr_vmscan_write"] += slots
        if write.blobs:
            self.freed_total += max(0, source - kept)
            node.zswap.wanted = max(0, node.zswap.wanted - source)
            node.memcg.adjust(compressed=kept - source)
        elif done:
            vm["reclaim_device"] += done
            self._stolen(done, pages, source, kept, write.who)

    def store_failed(
        self, write: StoreBatch, otherwise: Verdict = Verdict.ERROR, *, retire: bool = False
    ) -> list[StoreBatch]:
        """The store raised: the folios stay, dirty and counted; the next device is tried.

        Args:
            write: the write that failed.
            otherwise: the verdict where there is no next device: ERROR, or ACTIVATE if it is full.
            retire: True where the write may still happen later (it timed out): its slots are
                never handed out again.

        Returns:
            Writes to another device, for the folios that found one.
        """
        node = self._node
        mm = node.mm
        node.nr_writes -= 1
        node.vmstat["swapout_error"] += 1
        left: list[int] = []
        for pfn, slot, length in zip(write.pfns, write.slots, write.lengths, strict=True):
            self._give_back_slots(write.device, slot, length, retire=retire)
            if mm.owner[pfn] == write.id:
                if write.blobs:
                    mm.owner[pfn] = 0
                    node.zswap.rotate(pfn)
                else:
                    left.append(pfn)
            node.release(pfn)
        if write.blobs:
            node.vmstat["reject_reclaim_fail"] += len(write.pfns)
            return []
        return self._to_devices(left, write, otherwise, failed=write.failed | {write.device})

    def refuse(self, write: StoreBatch, *, retire: bool = False) -> None:
        """End a write without its store's answer: mailbox full, closing, or a crash (`retire`)."""
        node = self._node
        mm = node.mm
        node.nr_writes -= 1
        left: list[int] = []
        for pfn, slot, length in zip(write.pfns, write.slots, write.lengths, strict=True):
            self._give_back_slots(write.device, slot, length, retire=retire)
            if mm.owner[pfn] == write.id:
                if write.blobs:
                    mm.owner[pfn] = 0
                else:
                    left.append(pfn)
            node.release(pfn)
        self._return(left, Verdict.KEEP)

    def _give_back_slots(self, device: int, slot: int, length: int, *, retire: bool) -> None:
        nr = max(1, -(-length // self._node.page_size))
        if retire:
            self._node.swap[device].retire(slot, nr)
        else:
            self._node.forget_slots(device, slot, nr)

    # -- the pool's shrinker ----------------------------------------------------------------------

    def writeback(self, device: SwapDevice, nr: int = SWAP_CLUSTER_MAX) -> StoreBatch | None:
        """Return a write of the coldest blobs to `device`, as they are; None if nothing is to do.

        Mirrors shrink_worker(): it goes on until the pool is back at its accept threshold.
        """
        node = self._node
        mm, pool = node.mm, node.zswap
        excess = pool.excess()
        if not excess:
            return None
        write: StoreBatch | None = None
        for pfn in pool.coldest(nr + 2 * node.nr_writes * SWAP_CLUSTER_MAX):
            data = mm.data.get(pfn)
            if mm.owner[pfn]:
                excess -= len(data or b"")
                continue
            if data is None or mm.refs[pfn] or excess <= 0:
                continue
            slot = device.alloc(max(1, -(-len(data) // node.page_size)))
            if slot is None:
                break
            if write is None:
                write = self._new_write(device, Reclaimer.KSWAPD, blobs=True)
            self._assign(write, pfn, slot, len(data))
            excess -= len(data)
            if len(write.pfns) >= nr or write.nr_bytes >= MAX_WRITE_BYTES:
                break
        return write
