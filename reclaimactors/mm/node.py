"""One node: the mem_map, the keys, the budget, the pool, the devices. Mirrors struct pglist_data.

This module holds the state that the others share, and what keys do to it: `commit` a put in one
step, `forget` a value. Reclaim is in `swapout`, writes to devices in `pageout`, faults in `swapin`,
how much and when in `vmscan`.

Invariants (`check`): the budget holds; each folio is in exactly one place (the policy's lists, a
batch, the pool, a device, dead); what is charged is what is there; every folio that was isolated
has had one verdict or is in flight (I1).
"""

from __future__ import annotations

import sys
from array import array
from collections import deque
from collections.abc import Hashable
from contextlib import suppress
from itertools import islice
from typing import TYPE_CHECKING

import attrs

from reclaimactors.errors import ProtocolViolation
from reclaimactors.mm.demotion import Demotion
from reclaimactors.mm.ending import end_all, undo
from reclaimactors.mm.folio import (
    DEAD,
    DEVICE,
    FREE,
    IN_MEMORY,
    RESIDENT,
    SAME,
    UNEVICTABLE,
    WRITEBACK,
    ZSWAP,
    MemMap,
)
from reclaimactors.mm.keys import KEY_BYTES, MAX_EXTRA, PLAIN, key_extra
from reclaimactors.mm.lethal import Lethal
from reclaimactors.mm.memcg import FOLIO_OVERHEAD, KEY_OVERHEAD, Memcg
from reclaimactors.mm.scan import Scan
from reclaimactors.mm.swap import runs
from reclaimactors.mm.swap_state import SwapCache
from reclaimactors.mm.unevictable import Unevictable
from reclaimactors.mm.vmstat import Vmstat
from reclaimactors.units import nr_pages

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from reclaimactors.abc import Compressor, Policy
    from reclaimactors.mm.swap import SwapDevices
    from reclaimactors.mm.watermark import Watermarks
    from reclaimactors.mm.zswap import Zswap

__all__ = ["Node"]

_OVERHEAD = KEY_OVERHEAD + FOLIO_OVERHEAD  # of a short key and its one folio


def _ignore(*_: object) -> None:
    """Nobody listens."""


def _never(*_: object) -> bool:
    """Nobody may owe anything."""
    return False


@attrs.define(eq=False)
class Node:
    """Shared state of the mm core; not for use from more than one thread."""

    page_size: int
    memcg: Memcg
    marks: Watermarks
    policy: Policy
    zswap: Zswap
    swap: SwapDevices
    compressor: Compressor
    vmstat: Vmstat = attrs.Factory(Vmstat)
    mm: MemMap = attrs.Factory(MemMap)
    small: dict[Hashable, int] = attrs.Factory(dict[Hashable, int])
    """key -> pfn of a value of one folio"""
    large: dict[Hashable, array[int]] = attrs.Factory(dict[Hashable, "array[int]"])
    """key -> pfns of a value of several folios"""
    pins: dict[int, int] = attrs.Factory(dict[int, int])
    """pfn -> how many views are open on it"""
    nr_resident: int = 0
    """folios whose source bytes are in memory, those in flight included"""
    nr_in_flight: int = 0
    """folios in WRITEBACK"""
    nr_dead: int = 0
    """folios whose key is gone, and that somebody still holds"""
    nr_writes: int = 0
    """store batches that have not had their verdict"""
    unwilling: set[int] = attrs.Factory(set[int])
    """devices that can take no more of the blobs whose writeback is wanted"""
    swapped: int = 0
    """bytes that swap devices hold for live folios"""
    scattered: dict[int, array[int]] = attrs.Factory(dict[int, "array[int]"])
    """pfn -> slots of a folio that found no run of them"""
    swapcache: SwapCache = attrs.field(init=False)
    """resident folios that still have their slots"""
    lethal: Lethal = attrs.field(init=False)
    """pages that killed workers"""
    demotion: Demotion = attrs.field(init=False)
    """folios that stores hold within the budget"""
    unevictable: Unevictable = attrs.field(init=False)
    """resident folios that do not compress, while no store can take them"""
    scan: Scan = attrs.field(init=False)
    """what reclaim has looked at since it last freed a byte"""
    looked: set[int] = attrs.field(init=False)
    """the pfns of that, for the path of a put"""
    stale: dict[int, deque[tuple[int, int]]] = attrs.Factory(dict[int, "deque[tuple[int, int]]"])
    """device -> (first slot, slots) that its store must still forget before they are reused"""
    lets: Callable[[int, int, int], bool] = _never
    """whether a put may go on below *low*, and owes for that (`Brake.lets`)"""
    on_wake: Callable[[], None] = _ignore
    """kswapd is wanted"""
    on_stale: Callable[[int], None] = _ignore
    """a device has slots to forget"""
    on_pool_full: Callable[[], None] = _ignore
    """the pool wants its coldest blobs written back"""
    _next_id: int = 1

    def __attrs_post_init__(self) -> None:
        self.swapcache = SwapCache(self)
        self.demotion = Demotion(self)
        self.unevictable = Unevictable(self)
        self.scan = Scan(self)
        self.looked = self.scan.looked
        self.lethal = Lethal(self.page_size)

    def new_id(self) -> int:
        """Return an id for a batch, never used before."""
        self._next_id += 1
        return self._next_id - 1

    # -- keys -------------------------------------------------------------------------------------

    def pfns(self, key: Hashable) -> Sequence[int]:
        """Return the pfns of a value in order.

        Raises:
            KeyError: if the key is absent.
        """
        pfn = self.small.get(key)
        return self.large[key] if pfn is None else (pfn,)

    def key_of(self, pfn: int) -> Hashable:
        """Return the key of a folio, None if it has none any more. It looks at every key."""
        with suppress(ValueError):
            at = list(self.small.values()).index(pfn)
            return next(islice(self.small, at, None))
        return next((key for key, pfns in self.large.items() if pfn in pfns), None)

    def __contains__(self, key: Hashable) -> bool:
        return key in self.small or key in self.large

    def frees_now(self, key: Hashable) -> int:
        """Return the bytes that the end of the key's value would free this instant."""
        if key not in self:
            return 0
        mm = self.mm
        pfns = self.pfns(key)
        total = KEY_OVERHEAD + mm.key[pfns[0]]
        for pfn in pfns:
            if not mm.refs[pfn]:
                data = mm.data.get(pfn)
                total += FOLIO_OVERHEAD + (len(data) if data is not None else 0)
        return total

    def need(self, key: Hashable, size: int, nr_folios: int) -> int:
        """Return the bytes that a put of `size` bytes must reserve before it may commit."""
        new = size + self.overhead_of(key, nr_folios)
        return max(0, new - self.frees_now(key))

    def other_overhead(self, key: Hashable, nr_folios: int) -> int:
        """Return the overhead of all keys once `key` has a value of so many folios."""
        old = 0
        if key in self:
            pfns = self.pfns(key)
            old = KEY_OVERHEAD + self.mm.key[pfns[0]] + len(pfns) * FOLIO_OVERHEAD
        return self.memcg.overhead - old + self.overhead_of(key, nr_folios)

    def overhead_of(self, key: Hashable, nr_folios: int) -> int:
        """Return the overhead of a key, and of so many folios of its value."""
        return KEY_OVERHEAD + key_extra(key) + nr_folios * FOLIO_OVERHEAD

    def commit(self, key: Hashable, parts: list[bytes], reserved: int) -> None:
        """Make `parts` the value of `key` in one step, spending a reservation.

        Raises:
            ProtocolViolation: if `reserved` is less than `need` says now and there is no room for
                the rest; nothing is changed.

        On failure, which is the policy's: the key has its old value, and the reservation stays.
        """
        size = sum(map(len, parts))
        memcg = self.memcg
        if self.need(key, size, len(parts)) > reserved + memcg.free:
            msg = f"put of {size} B with {reserved} B reserved and {memcg.free} B free"
            raise ProtocolViolation(msg)
        extra = key_extra(key)
        pfns = self._new_folios(parts)
        try:
            resident, compressed, overhead = self._unlink(key) if key in self else (0, 0, 0)
        except BaseException as exc:
            self._drop_new(pfns, exc)
            raise
        memcg.spend(
            reserved,
            resident=resident + size,
            compressed=compressed,
            overhead=overhead + KEY_OVERHEAD + extra + len(parts) * FOLIO_OVERHEAD,
        )
        self.mm.key[pfns[0]] = extra
        if len(parts) == 1:
            self.small[key] = pfns[0]
        else:
            self.large[key] = array("Q", pfns)

    def put_fast(  # noqa: C901 - one call less is a twentieth of a put
        self, key: Hashable, data: bytes, *, may_wait: bool = True
    ) -> bool:
        """Make `data`, one folio, the value of `key` if nothing is in the way; else do nothing.

        The path of a put that needs not wait: free memory stays at *low* or above, or what it owes
        below that is allowed (`Brake`); nobody looks at the old bytes. An overwritten folio keeps
        its pfn; to the policy it is read, or refaulted.

        Args:
            key: of the value.
            data: its bytes.
            may_wait: False for who cannot wait, and so owes nothing down to *min*.
        """
        memcg, mm = self.memcg, self.mm
        room = memcg.free - self.marks.low
        size = len(data)
        pfn = self.small.get(key)
        if pfn is None:
            # Most keys cost no call of `key_extra`.
            extra = key.__sizeof__() - KEY_BYTES if type(key) in PLAIN else key_extra(key)
            overhead = _OVERHEAD
            if extra > 0:
                extra = min(extra, MAX_EXTRA)
                overhead += extra
            if self.large and key in self.large:
                return False
            if size + overhead > room and not self._below_low(size, size + overhead, may_wait):
                return False
            self.small[key] = pfn = self._new_folio(data)
            if extra > 0:
                mm.key[pfn] = extra
            memcg.charge(size, 0, overhead)
            return True
        state = mm.state[pfn]
        held = mm.charge[pfn] if state == DEVICE else len(mm.data.get(pfn, b""))
        delta = size - held
        if mm.refs[pfn] or state in {WRITEBACK, UNEVICTABLE}:
            return False
        if delta > room and not self._below_low(size, delta, may_wait):
            return False
        if state == RESIDENT:
            self.policy.access(pfn)
            if mm.cached[pfn]:
                self.swapcache.drop(pfn)
            if self.looked:
                self.looked.discard(pfn)
            mm.data[pfn] = data
            mm.size[pfn] = size
            memcg.charge(delta)
            return True
        self._let_go_of_copy(pfn, held)
        mm.data[pfn] = data
        mm.size[pfn] = size
        memcg.charge(size, -held)
        return True

    def _below_low(self, size: int, need: int, may_wait: bool) -> bool:
        """Whether a put of `size` bytes, which takes `need` more, may go on below *low*."""
        free = self.memcg.free - need
        if not (self.lets(size, free, need) if may_wait else free >= self.marks.min):
            return False
        self.on_wake()
        return True

    def _let_go_of_copy(self, pfn: int, held: int) -> None:
        """A reclaimed folio is overwritten: it is resident again, its copy of `held` bytes gone."""
        mm = self.mm
        state = mm.state[pfn]
        self.refaulted(pfn)
        if state == ZSWAP:
            old, page = mm.size[pfn], self.page_size
            self.zswap.remove(pfn, held, 1 if old <= page else nr_pages(old, page))
        elif state == DEVICE:
            self.demotion.forget(pfn)
            self.release_slots(pfn)
        mm.state[pfn] = RESIDENT
        self.nr_resident += 1

    def delete(self, key: Hashable) -> None:
        """Forget a key and its value.

        On failure, which is the policy's: the key is there as before.

        Raises:
            KeyError: if the key is absent.
        """
        if key not in self:
            raise KeyError(key)
        self.memcg.adjust(*self._unlink(key))

    def _new_folios(self, parts: list[bytes]) -> list[int]:
        pfns: list[int] = []
        try:
            for part in parts:
                pfns.append(self._new_folio(part))  # noqa: PERF401 - kept, whoever raises
        except BaseException as exc:
            self._drop_new(pfns, exc)
            raise
        return pfns

    def _drop_new(self, pfns: list[int], error: BaseException) -> None:
        """Undo `_new_folios`: nothing was charged for them yet."""
        for pfn in pfns:
            self.nr_resident -= 1
            self.mm.free(pfn)
            undo(error, self.policy.remove, pfn)

    def _new_folio(self, data: bytes) -> int:
        pfn = self.mm.alloc(data)
        try:
            self.policy.insert(pfn, refault=None)
        except BaseException as exc:
            self.mm.free(pfn)
            undo(exc, self.policy.remove, pfn)  # it may have been listed before that
            raise
        self.nr_resident += 1
        return pfn

    def refaulted(self, pfn: int) -> bool | None:
        """Tell the policy that a reclaimed folio becomes resident, before anything is changed.

        On failure it stays reclaimed, and comes back as a new one later.
        """
        shadow = self.mm.shadow[pfn]
        try:
            return self.policy.insert(pfn, refault=None if shadow < 0 else shadow)
        except BaseException as exc:
            undo(exc, self.relist, (pfn,))
            raise

    def relist(self, pfns: Sequence[int]) -> None:
        """After the policy raised, nobody knows how far it came: these folios are new to it.

        It forgets each, wherever it has it, and gets those back whose bytes are in memory.
        """
        end_all(pfns, self._relist)

    def _relist(self, pfn: int) -> None:
        self.mm.shadow[pfn] = -1
        try:
            self.policy.remove(pfn)
        finally:
            if self.mm.state[pfn] in {RESIDENT, WRITEBACK}:
                self.policy.insert(pfn, refault=None)

    def _unlink(self, key: Hashable) -> tuple[int, int, int]:
        """Drop the key and its folios; return the change of resident, compressed, overhead."""
        pfns = self.pfns(key)
        try:
            for pfn in pfns:
                self.policy.remove(pfn)  # before any change: a plugin may raise
        except BaseException as exc:
            for pfn in pfns:
                if self.mm.state[pfn] == WRITEBACK:
                    self._disown(pfn)
                elif self.mm.state[pfn] == UNEVICTABLE:
                    self.unevictable.rescue((pfn,))
                    self.mm.state[pfn] = RESIDENT
            undo(exc, self.relist, pfns)
            raise
        if self.small.pop(key, None) is None:
            del self.large[key]
        resident = compressed = 0
        overhead = -KEY_OVERHEAD - self.mm.key[pfns[0]]
        self.mm.key[pfns[0]] = 0
        for pfn in pfns:
            d_resident, d_compressed = self._kill(pfn)
            resident += d_resident
            compressed += d_compressed
            if self.mm.state[pfn] == FREE:
                overhead -= FOLIO_OVERHEAD
        return resident, compressed, overhead

    def _kill(self, pfn: int) -> tuple[int, int]:
        """End a folio whose key is gone; return the change of resident and compressed."""
        mm = self.mm
        state = mm.state[pfn]
        data = mm.data.get(pfn)
        held = len(data) if data is not None else 0
        resident = compressed = 0
        if state == ZSWAP:
            self.zswap.remove(pfn, held, nr_pages(mm.size[pfn], self.page_size))
            compressed = -held
            resident = held  # a blob that a store still reads is charged as resident
        elif state == WRITEBACK:
            self._disown(pfn)
        elif state == UNEVICTABLE:
            self.unevictable.forget(pfn)
        if state in IN_MEMORY:
            self.nr_resident -= 1
            self.looked.discard(pfn)
        if mm.cached[pfn]:
            self.swapcache.drop(pfn)
        if state == DEVICE:
            self.demotion.forget(pfn)
        mm.owner[pfn] = 0
        if mm.refs[pfn]:
            mm.state[pfn] = DEAD
            self.nr_dead += 1
            if state == SAME:
                mm.data[pfn] = b""  # `entry` is its word: only a DEAD folio without bytes has slots
            return resident, compressed
        if state == DEVICE:
            self.release_slots(pfn)
            compressed -= mm.charge[pfn]
        mm.free(pfn)
        return resident - held, compressed

    def _disown(self, pfn: int) -> None:
        """Take a folio away from the batch that reclaims it: that is its verdict, CANCELLED."""
        mm = self.mm
        mm.owner[pfn] = 0
        mm.state[pfn] = RESIDENT
        self.left_flight(pfn)
        self.nr_in_flight -= 1
        self.vmstat["reclaim_cancelled"] += 1

    def left_flight(self, pfn: int) -> None:
        """A folio is not on its way out any more: take its bytes off the accounts of flight."""
        mm, size = self.mm, self.mm.size[pfn]
        self.memcg.landed(size, at_store=mm.at_store[pfn] > 0)
        mm.at_store[pfn] = 0

    def pages(self, pfns: Iterable[int]) -> int:
        """Return the base pages of these folios."""
        size, page = self.mm.size, self.page_size
        return sum([1 if size[pfn] <= page else -(-size[pfn] // page) for pfn in pfns])

    # -- refs and slots ---------------------------------------------------------------------------

    def hold(self, pfn: int) -> None:
        """Take a ref: the bytes, or the slot, stay as they are until `release`."""
        self.mm.refs[pfn] += 1

    def release(self, pfn: int) -> None:
        """Give a ref back; the last one frees a folio whose key is gone."""
        mm = self.mm
        mm.refs[pfn] -= 1
        if mm.refs[pfn] or mm.state[pfn] != DEAD:
            return
        data = mm.data.get(pfn)
        held = len(data) if data is not None else 0
        compressed = 0
        if data is None:
            self.release_slots(pfn)
            compressed = mm.charge[pfn]
        mm.free(pfn)
        self.nr_dead -= 1
        self.memcg.adjust(-held, -compressed, -FOLIO_OVERHEAD)

    @property
    def nr_leaving(self) -> int:
        """Folios whose key is gone, and that a worker or a store still has: not those of pins."""
        mm, pins = self.mm, self.pins.items() if self.nr_dead else ()
        pinned = [pfn for pfn, views in pins if mm.state[pfn] == DEAD and mm.refs[pfn] == views]
        return self.nr_dead - len(pinned)

    def slots_of(self, pfn: int) -> Sequence[int]:
        """Return the slots of a folio that a device holds, in the order of its bytes."""
        scattered = self.scattered.get(pfn)
        if scattered is not None:
            return scattered
        first = self.mm.entry[pfn]
        return range(first, first + nr_pages(self.mm.length[pfn], self.page_size))

    def slots_at(self, device: int, pfn: int) -> Sequence[int]:
        """Return the slots that a device holds for a folio, () where that has none or has left."""
        mm = self.mm
        return self.slots_of(pfn) if mm.device[pfn] == device and mm.keeps_slots(pfn) else ()

    def device_of(self, pfn: int) -> int:
        """Return the index of the swap device that has, or last had, a folio."""
        return self.mm.device[pfn]

    def deactivate(self, key: Hashable) -> int:
        """Have the policy reclaim a value first; return the bytes of it that can be reclaimed.

        On failure, which is the policy's: its folios are new to the policy.
        """
        resident = [pfn for pfn in self.pfns(key) if self.mm.state[pfn] == RESIDENT]
        deactivate = getattr(self.policy, "deactivate", None)
        if deactivate is not None:
            try:
                for pfn in reversed(resident):
                    deactivate(pfn)
            except BaseException as exc:
                undo(exc, self.relist, resident)
                raise
        return self.mm.bytes_of(resident)

    def release_slots(self, pfn: int) -> None:
        """Let the device forget a folio's slots; they are reused after that."""
        mm = self.mm
        self.swapped -= mm.length[pfn]
        self.forget_slots(mm.device[pfn], self.slots_of(pfn))
        self.scattered.pop(pfn, None)

    def recharge(self, pfn: int, nr_bytes: int) -> int:
        """A device has come to hold only so many bytes for a folio; return what that gave back."""
        less = max(0, self.mm.charge[pfn] - nr_bytes)
        if less:
            self.mm.charge[pfn] -= less
            if not self.mm.charge[pfn]:
                self.demotion.forget(pfn)
            self.memcg.adjust(compressed=-less)
        return less

    def forget_slots(self, device: int, slots: Sequence[int]) -> None:
        """Queue slots for their store to forget."""
        self.stale.setdefault(device, deque()).extend(runs(slots))
        self.swap[device].stale += len(slots)
        self.on_stale(device)

    def take_stale(self, device: int, nr: int = sys.maxsize) -> list[tuple[int, int]]:
        """Return runs that a device must forget now, of about `nr` slots; `forgotten` follows."""
        stale, taken = self.stale.get(device), list[tuple[int, int]]()
        total = 0
        while stale and total < nr:
            first, slots = stale.popleft()
            total += slots
            if taken and sum(taken[-1]) == first:  # neighbours are freed in one go
                first, before = taken.pop()
                slots += before
            taken.append((first, slots))
        self.swap[device].forgetting += bool(taken)
        self.swap[device].stale -= total
        return taken

    def forgotten(self, device: int, runs: list[tuple[int, int]]) -> None:
        """The store has forgotten these runs: they may be used again."""
        store = self.swap[device]
        store.forgetting -= bool(runs)
        for slot, nr in runs:
            store.free(slot, nr)

    def not_forgotten(self, device: int, runs: list[tuple[int, int]]) -> None:
        """Nobody knows when the store will forget these runs: they are set aside."""
        store = self.swap[device]
        store.forgetting -= bool(runs)
        for slot, nr in runs:
            store.set_aside(slot, nr)

    def pin(self, pfn: int) -> None:
        """Keep a resident folio where it is, and its bytes even after its key is gone."""
        if self.pins.get(pfn, 0) == 0:
            self.memcg.pin(self.mm.size[pfn])
        self.pins[pfn] = self.pins.get(pfn, 0) + 1
        self.hold(pfn)

    def unpin(self, pfn: int) -> None:
        """Undo one `pin`."""
        self.pins[pfn] -= 1
        if not self.pins[pfn]:
            del self.pins[pfn]
            self.memcg.unpin(self.mm.size[pfn])
        self.release(pfn)

    def levels(self) -> dict[str, int]:
        """Return those counters that are levels, as of now."""
        return {
            "pool_total_size": self.zswap.total,
            "stored_pages": self.zswap.pages,
            "nr_swapcached": self.swapcache.pages,
            "nr_unevictable": self.unevictable.pages,
            "nr_writeback": -(-self.memcg.in_flight // self.page_size),
        }

    def gauges(self) -> Vmstat:
        """Return the counters, with those that are levels brought up to date."""
        self.vmstat.update(self.levels())
        return self.vmstat

    # -- the whole --------------------------------------------------------------------------------

    @property
    def idle(self) -> bool:
        """Whether no folio, write or slot is on its way anywhere."""
        return not (
            self.nr_in_flight
            or self.nr_writes
            or self.writeback_wanted
            or any(device.stale or device.forgetting for device in self.swap)
        )

    def awaits(self, *, of_late: bool) -> bool:
        """Return whether something on its way may yet free memory, so that it is waited for.

        What a store has that is late counts only if `of_late`, and not where it is lost.
        """
        pending = self.memcg.compressing or self.writeback_wanted
        return bool(pending) or self.awaits_writes(of_late=of_late)

    @property
    def awaits_slots(self) -> bool:
        """Whether a store that answers is to forget slots, which can be handed out then."""
        return any(
            (device.stale or device.forgetting) and not (device.late or device.down)
            for device in self.swap
        )

    def awaits_writes(self, *, of_late: bool) -> bool:
        """Return the same of what stores are writing, or are to write."""
        return any(
            device.writes and not (device.late and (device.lost or not of_late))
            for device in self.swap
        )

    @property
    def writeback_wanted(self) -> int:
        """Bytes of the budget that reclaim wants written to devices, though they are not resident.

        That is pending progress until a swapd has done it, or none of them can.
        """
        return self.zswap.wanted + self.demotion.wanted

    def want_writeback(self, at_least: int = 0) -> None:
        """Nothing resident is left to reclaim: ask for what else is held to go to a device instead.

        First come the folios of stores in the budget, then cold blobs of the pool. The latter
        mirrors zswap's dynamic shrinker, which memory pressure drives whether the pool is full or
        not; `Zswap.freeable` says how much it may take.

        Args:
            at_least: bytes, for a caller who needs more than brings free memory to *high*.
        """
        pool, demotion = self.zswap, self.demotion
        if not self.writeback_wanted and not self.scan.ask(at_least):
            return
        short = max(at_least, self.marks.high - self.memcg.free)
        if short <= 0 or not self.swap.has_room:
            return
        if not self.writeback_wanted:
            self.unwilling.clear()
        demotion.wanted = min(short, demotion.held) if demotion.outside_has_room else 0
        rest = short - demotion.wanted
        if pool.shrinker and len(pool) and rest:
            pool.wanted = min(rest, pool.wanted or pool.freeable())
        else:
            pool.wanted = 0
        if self.writeback_wanted:
            self.on_pool_full()

    @property
    def may_write_back(self) -> bool:
        """Whether something that is held, and not resident, may go to a store with room."""
        if not self.swap.has_room:
            return False
        pool, demotion = self.zswap, self.demotion
        in_pool = pool.shrinker and len(pool) > 0
        return in_pool or (demotion.held > 0 and demotion.outside_has_room)

    def cannot_write_back(self, device: int) -> None:
        """A device can take no more of what is wanted; once none can, nothing is pending."""
        self.unwilling.add(device)
        self._nobody_writes_back()

    def device_left(self, device: int) -> None:
        """A device is swapped off: what it was asked for may be nobody's work now."""
        self.unwilling.discard(device)
        self._nobody_writes_back()

    def write_begun(self, device: int) -> None:
        """A write to a store is on its way."""
        self.nr_writes += 1
        self.swap[device].writes += 1

    def write_ended(self, device: int) -> None:
        """A write to a store has its verdict."""
        self.nr_writes -= 1
        self.swap[device].writes -= 1
        self._nobody_writes_back()

    def _nobody_writes_back(self) -> None:
        """Nothing is pending once no device can take what is wanted, and no write is on its way.

        What a late store has on its way does not count.
        """
        if self.writeback_wanted and not self.awaits_writes(of_late=False):
            others = [other for other in self.swap if other.index not in self.unwilling]
            if not any(other.takes_writes for other in others):
                self.zswap.wanted = self.demotion.wanted = 0

    def check(self) -> bool:
        """Assert every invariant of the core; returns True. O(everything): for tests."""
        mm, memcg, vm = self.mm, self.memcg, self.vmstat
        memcg.check()
        mm.check()
        for part in (
            self.zswap,
            self.swap,
            self.swapcache,
            self.demotion,
            self.unevictable,
            self.scan,
        ):
            part.check()
        resident = compressed = in_flight = at_store = nr_in_flight = folios = 0
        pool = 0
        for pfn, state in enumerate(mm.state):
            data = mm.data.get(pfn)
            held = len(data) if data is not None else 0
            folios += state != FREE
            if state in IN_MEMORY or state == DEAD:
                resident += held
            if state == ZSWAP:
                pool += held
            if state == WRITEBACK:
                in_flight += held
                at_store += held * mm.at_store[pfn]
                nr_in_flight += 1
            if state == DEVICE or (state == DEAD and data is None):
                compressed += mm.charge[pfn]
        of_keys = [pfn for pfns in self.large.values() for pfn in pfns] + list(self.small.values())
        live = set(of_keys)
        assert len(of_keys) == len(live), "a folio of two keys"
        assert all(mm.state[pfn] not in {FREE, DEAD} for pfn in live), "a key without its folio"
        dead = {pfn for pfn, state in enumerate(mm.state) if state == DEAD}
        assert len(live) + len(dead) == folios, "a folio without a key"
        assert self.nr_dead == len(dead), "folios without a key drifted"
        assert mm.gone or memcg.compressed == compressed + pool, "compressed bytes drifted"
        assert mm.gone or self.zswap.total == pool, "pool bytes drifted"
        assert self.zswap.leaving == 0 or self.nr_writes, "nobody writes back what is leaving"
        pool_pages = sum(
            nr_pages(mm.size[pfn], self.page_size)
            for pfn, state in enumerate(mm.state)
            if state == ZSWAP
        )
        assert self.zswap.pages == pool_pages, "pool pages drifted"
        self._check_slots()
        vm.check()
        assert memcg.in_flight == in_flight, "in-flight bytes drifted"
        assert memcg.at_store == at_store, "bytes at stores drifted"
        assert self.nr_in_flight == nr_in_flight, "in-flight folios drifted"
        swapped = sum(
            mm.length[pfn]
            for pfn, state in enumerate(mm.state)
            if state == DEVICE or mm.cached[pfn] or (state == DEAD and mm.data.get(pfn) is None)
        )
        assert self.swapped == swapped, "swapped bytes drifted"
        nr_resident = sum(state in IN_MEMORY for state in mm.state)
        assert self.nr_resident == nr_resident, "resident folios drifted"
        keys = len(self.small) + len(self.large)
        constants = keys * KEY_OVERHEAD + folios * FOLIO_OVERHEAD
        assert memcg.overhead == constants + sum(mm.key), "overhead drifted"
        firsts = {pfns[0] for pfns in self.large.values()} | set(self.small.values())
        assert firsts.issuperset(pfn for pfn, extra in enumerate(mm.key) if extra), "no key's bytes"
        # what is reserved, and the joined copies of pins, are the rest of resident
        assert memcg.resident - memcg.reserved >= resident, "resident bytes drifted"
        verdicts = sum(
            vm[f"reclaim_{verdict}"]
            for verdict in ("stored", "zero", "device", "activate", "keep", "cancelled", "error")
        )
        assert vm["reclaim_isolated"] == verdicts + nr_in_flight, "a folio without one verdict"
        return True

    def _check_slots(self) -> None:
        """Assert that each used slot has one owner: a folio, or a run that is to be forgotten.

        The others are in the hands of a write or of a store that forgets, if there is any.
        """
        mm = self.mm
        owned: dict[int, list[int]] = {device.index: [] for device in self.swap}
        for device in self.swap:
            for slot, nr in self.stale.get(device.index, ()):
                owned[device.index] += range(slot, slot + nr)
            assert len(owned[device.index]) == device.stale, "slots to be forgotten drifted"
        for pfn, state in enumerate(mm.state):
            if state == DEVICE or mm.cached[pfn] or (state == DEAD and mm.data.get(pfn) is None):
                owned[mm.device[pfn]] += self.slots_of(pfn)
            else:
                assert pfn not in self.scattered, f"pfn {pfn}: slots without a copy in them"
        assert self.nr_writes == sum(device.writes for device in self.swap), "writes drifted"
        for device in self.swap:
            slots = set(owned[device.index])
            assert len(slots) == len(owned[device.index]), f"{device.name}: a slot of two owners"
            assert slots <= device.used_slots(), f"{device.name}: a copy in a slot that is not used"
            assert device.writes or not device.at_store, f"{device.name}: bytes at store drifted"
            in_hand = device.used - len(slots)
            assert not in_hand or device.writes or device.forgetting, (
                f"{device.name}: {in_hand} slots of nobody"
            )
