"""Values under keys: what a put, an overwrite and a delete do, each in one step.

A value is one folio, or several where it is larger than `max_folio`. `commit` spends a reservation;
`put_fast` is the path of a put that needs not wait.
"""

from __future__ import annotations

import math
from array import array
from contextlib import suppress
from itertools import islice
from typing import TYPE_CHECKING, cast

from reclaimactors.errors import ProtocolViolation
from reclaimactors.mm.ending import undo
from reclaimactors.mm.expiry import LAZY_OVERHEAD, Expiry
from reclaimactors.mm.folio import (
    CACHED,
    DEAD,
    DEVICE,
    FREE,
    IN_MEMORY,
    RESIDENT,
    SAME,
    UNEVICTABLE,
    WRITEBACK,
    ZSWAP,
)
from reclaimactors.mm.keys import KEY_BYTES, MAX_EXTRA, PLAIN, key_extra
from reclaimactors.mm.lazyfree import Lazyfree
from reclaimactors.mm.memcg import FOLIO_OVERHEAD, KEY_OVERHEAD
from reclaimactors.units import nr_pages

if TYPE_CHECKING:
    from collections.abc import Hashable, Mapping, Sequence

    from reclaimactors.mm.expiry import Terms
    from reclaimactors.mm.group import Group

__all__ = ["Values"]

_OVERHEAD = KEY_OVERHEAD + FOLIO_OVERHEAD  # of a short key and its one folio


class Values:
    """The keys of one group."""

    def __init__(self, group: Group) -> None:
        self._group = group
        self._node = group.node
        self._mm = group.node.mm
        self._memcg = group.memcg
        self.small: dict[Hashable, int] = {}  #: key -> pfn of a value of one folio
        self.large: dict[Hashable, array[int]] = {}
        """key -> pfns of a value of several folios, or of one that ends at a time: a read of that
        has to look at the clock, and a hit of `small` must not"""
        self.expiry = Expiry()  #: when values end
        self.ends = self.expiry.slot_of  #: the keys of these
        self.lazy = Lazyfree(self._mm)  #: values that reclaim may drop

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

    def __len__(self) -> int:
        return len(self.small) + len(self.large)

    def frees_now(self, key: Hashable) -> int:
        """Return the bytes that the end of the key's value would free this instant."""
        if key not in self:
            return 0
        mm = self._mm
        pfns = self.pfns(key)
        total = KEY_OVERHEAD + mm.key[pfns[0]]
        for pfn in pfns:
            if not mm.refs[pfn]:
                data = mm.data.get(pfn)
                total += FOLIO_OVERHEAD + (len(data) if data is not None else 0)
        return total

    def need(self, key: Hashable, size: int, nr_folios: int, terms: Terms | None = None) -> int:
        """Return the bytes that a put of `size` bytes must reserve before it may commit."""
        new = size + self.overhead_of(key, nr_folios, terms)
        return max(0, new - self.frees_now(key))

    def more_overhead(self, key: Hashable, nr_folios: int, terms: Terms | None = None) -> int:
        """Return the overhead that a value of so many folios under `key` adds."""
        old = 0
        if key in self:
            pfns = self.pfns(key)
            old = KEY_OVERHEAD + self._mm.key[pfns[0]] + len(pfns) * FOLIO_OVERHEAD
        return self.overhead_of(key, nr_folios, terms) - old

    def overhead_of(self, key: Hashable, nr_folios: int, terms: Terms | None = None) -> int:
        """Return the overhead of a key, and of so many folios of its value."""
        return KEY_OVERHEAD + _extra(key, terms) + nr_folios * FOLIO_OVERHEAD

    def commit(
        self, key: Hashable, parts: list[bytes], reserved: int, terms: Terms | None = None
    ) -> None:
        """Make `parts` the value of `key` in one step, spending a reservation.

        Args:
            key: of the value.
            parts: bytes of each folio.
            reserved: bytes of the reservation.
            terms: when the value ends, and whether it may be dropped; None: never, and no.

        Raises:
            ProtocolViolation: if `reserved` is less than `need` says now and there is no room for
                the rest; nothing is changed.

        On failure, which is the policy's: the key has its old value, and the reservation stays.
        """
        size = sum(map(len, parts))
        memcg = self._memcg
        if self.need(key, size, len(parts), terms) > reserved + memcg.room:
            msg = f"put of {size} B with {reserved} B reserved and {memcg.room} B free"
            raise ProtocolViolation(msg)
        extra = _extra(key, terms)
        old = self._bytes_of_large(key)
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
        self._mm.key[pfns[0]] = extra
        if len(parts) == 1 and (terms is None or terms.ends_at == math.inf):
            self.small[key] = pfns[0]
        else:
            self.large[key] = array("Q", pfns)
        if terms is not None:
            self._note(key, pfns, terms)
        if old:
            self._node.let_go(old)

    def _note(self, key: Hashable, pfns: Sequence[int], terms: Terms) -> None:
        """Note what is to become of a value that was just put."""
        if terms.ends_at < math.inf:
            self.expiry.add(key, terms.ends_at, terms.slot)
        if terms.discardable:
            self.lazy.add(key, pfns)
            pages = self._node.pages(pfns)
            self._node.vmstat["pglazyfree"] += pages
            self._group.count("pglazyfree", pages)

    def _bytes_of_large(self, key: Hashable) -> list[bytes]:
        """Return the bytes that are held for a value of several folios, [] for any other."""
        pfns, data = self.large.get(key, ()), self._mm.data
        return [data[pfn] for pfn in pfns if pfn in data] if len(pfns) > 1 else []

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
        memcg, mm = self._memcg, self._mm
        group = self._group
        room = group.room_above_low() if group.index else memcg.free - group.marks.low
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
            self._group.policy.access(pfn)
            if mm.clean[pfn]:
                self._dirtied(pfn)
            if self._group.looked:
                self._group.looked.discard(pfn)
            mm.data[pfn] = data
            mm.size[pfn] = size
            memcg.charge(delta)
            return True
        self._let_go_of_copy(pfn, held)
        mm.data[pfn] = data
        mm.size[pfn] = size
        memcg.charge(size, -held)
        return True

    def _dirtied(self, pfn: int) -> None:
        """A clean folio is overwritten in place."""
        if self._mm.clean[pfn] == CACHED:
            self._node.swapcache.drop(pfn)
        else:
            self.lazy.forget((pfn,))
            self._mm.key[pfn] -= LAZY_OVERHEAD
            self._memcg.charge(0, 0, -LAZY_OVERHEAD)

    def put_new(self, items: Mapping[Hashable, bytes]) -> bool:
        """Make each of `items` a new value of one folio if nothing is in the way; else do nothing.

        The path of a batch: every key is absent, and free memory stays at *low* or above.

        On failure, which is the policy's: none of the keys has a value.
        """
        if not items or not self.small.keys().isdisjoint(items):
            return False
        if self.large and not self.large.keys().isdisjoint(items):
            return False
        datas = list(items.values())
        extras = [
            key.__sizeof__() - KEY_BYTES if type(key) in PLAIN else key_extra(key) for key in items
        ]
        size, overhead = sum(map(len, datas)), _OVERHEAD * len(datas)
        if max(extras) > 0:
            extras = [min(max(0, extra), MAX_EXTRA) for extra in extras]
            overhead += sum(extras)
        else:
            extras = []
        group = self._group
        room = group.room_above_low() if group.index else self._memcg.free - group.marks.low
        if size + overhead > room:
            return False
        pfns = self._insert_many(datas)
        for pfn, extra in zip(pfns, extras, strict=False):
            self._mm.key[pfn] = extra
        self.small.update(zip(items, pfns, strict=True))
        self._memcg.charge(size, 0, overhead)
        return True

    def _below_low(self, size: int, need: int, may_wait: bool) -> bool:
        """Whether a put of `size` bytes, which takes `need` more, may go on below *low*.

        Who is below the *low* of two limits waits in the brake of each.
        """
        short: Sequence[Group] = self._group.lineage
        if len(short) > 1:
            short = [level for level in short if level.memcg.free - need < level.marks.low]
            if may_wait and len(short) > 1:
                return False
        for level in short:
            free = level.memcg.free - need
            if not (level.lets(size, free, need) if may_wait else free >= level.marks.min):
                return False
        for level in short:
            level.on_wake()
        return True

    def _let_go_of_copy(self, pfn: int, held: int) -> None:
        """A reclaimed folio is overwritten: it is resident again, its copy of `held` bytes gone."""
        mm = self._mm
        state = mm.state[pfn]
        self._node.refaulted(pfn, self._group)
        if state == ZSWAP:
            old, page = mm.size[pfn], self._node.page_size
            pages = 1 if old <= page else nr_pages(old, page)
            self._node.zswap.remove(pfn, held, pages, self._group.index)
        elif state == DEVICE:
            self._node.demotion.forget(pfn)
            self._node.slots.release(pfn)
        mm.state[pfn] = RESIDENT
        self._group.nr_resident += 1

    def delete(self, key: Hashable) -> None:
        """Forget a key and its value.

        On failure, which is the policy's: the key is there as before.

        Raises:
            KeyError: if the key is absent.
        """
        if key not in self:
            raise KeyError(key)
        old = self._bytes_of_large(key)
        self._memcg.adjust(*self._unlink(key))
        if old:
            self._node.let_go(old)

    def give(self, key: Hashable, other: Values) -> None:
        """Make a key, whose folios are in another group by now, a key of that group."""
        pfns = self.pfns(key)
        if key in self.small:
            other.small[key] = self.small.pop(key)
        else:
            other.large[key] = self.large.pop(key)
        terms = self.expiry.forget(key)
        if terms is not None:
            other.expiry.add(key, terms.ends_at, terms.slot)
        if self.lazy.forget(pfns):
            other.lazy.add(key, pfns)

    def expire(self, key: Hashable) -> None:
        """Forget a key whose time is over; on failure it is there as before."""
        self.delete(key)
        self._node.vmstat["expired_keys"] += 1
        self._group.count("expired_keys")

    def _new_folios(self, parts: list[bytes]) -> list[int]:
        pfns: list[int] = []
        try:
            for part in parts:
                pfns.append(self._new_folio(part))  # noqa: PERF401 - kept, whoever raises
        except BaseException as exc:
            self._drop_new(pfns, exc)
            raise
        return pfns

    def _insert_many(self, datas: list[bytes]) -> list[int]:
        """Return the pfns of as many new folios; on failure there is none of them."""
        group, policy = self._group, self._group.policy
        pfns = self._mm.alloc_many(datas)
        group.nr_resident += len(pfns)
        try:
            for pfn in pfns if group.index else ():
                self._mm.group[pfn] = group.index
            insert_many = getattr(policy, "insert_many", None)
            if insert_many is not None:
                insert_many(pfns)
            else:
                for pfn in pfns:
                    policy.insert(pfn, refault=None)
        except BaseException as exc:
            self._drop_new(pfns, exc)
            raise
        return pfns

    def _drop_new(self, pfns: list[int], error: BaseException) -> None:
        """Undo `_new_folios`: nothing was charged for them yet."""
        for pfn in pfns:
            self._group.nr_resident -= 1
            self._mm.free(pfn)
            undo(error, self._group.policy.remove, pfn)

    def _new_folio(self, data: bytes) -> int:
        pfn = self._mm.alloc(data)
        if self._group.index:
            self._mm.group[pfn] = self._group.index
        try:
            self._group.policy.insert(pfn, refault=None)
        except BaseException as exc:
            self._mm.free(pfn)
            undo(exc, self._group.policy.remove, pfn)  # it may have been listed before that
            raise
        self._group.nr_resident += 1
        return pfn

    def _unlink(self, key: Hashable) -> tuple[int, int, int]:
        """Drop the key and its folios; return the change of resident, compressed, overhead."""
        pfns = self.pfns(key)
        try:
            for pfn in pfns:
                self._group.policy.remove(pfn)  # before any change: a plugin may raise
        except BaseException as exc:
            for pfn in pfns:
                if self._mm.state[pfn] == WRITEBACK:
                    self._node.disown(pfn)
                elif self._mm.state[pfn] == UNEVICTABLE:
                    self._group.unevictable.rescue((pfn,))
                    self._mm.state[pfn] = RESIDENT
            undo(exc, self._node.relist, pfns)
            raise
        if self.small.pop(key, None) is None:
            del self.large[key]
            self.expiry.forget(key)
        if self.lazy:
            self.lazy.forget(pfns)
        resident = compressed = 0
        overhead = -KEY_OVERHEAD - self._mm.key[pfns[0]]
        self._mm.key[pfns[0]] = 0
        for pfn in pfns:
            d_resident, d_compressed = self._kill(pfn)
            resident += d_resident
            compressed += d_compressed
            if self._mm.state[pfn] == FREE:
                overhead -= FOLIO_OVERHEAD
        return resident, compressed, overhead

    def _kill(self, pfn: int) -> tuple[int, int]:
        """End a folio whose key is gone; return the change of resident and compressed."""
        mm = self._mm
        state = mm.state[pfn]
        data = mm.data.get(pfn)
        held = len(data) if data is not None else 0
        resident = compressed = 0
        if state == ZSWAP:
            pages = nr_pages(mm.size[pfn], self._node.page_size)
            self._node.zswap.remove(pfn, held, pages, self._group.index)
            compressed = -held
            resident = held  # a blob that a store still reads is charged as resident
        elif state == WRITEBACK:
            self._node.disown(pfn)
        elif state == UNEVICTABLE:
            self._group.unevictable.forget(pfn)
        if state in IN_MEMORY:
            self._group.nr_resident -= 1
            self._group.looked.discard(pfn)
        if mm.clean[pfn]:
            self._node.swapcache.drop(pfn)
        if state == DEVICE:
            self._node.demotion.forget(pfn)
        mm.owner[pfn] = 0
        if mm.refs[pfn]:
            mm.state[pfn] = DEAD
            self._node.nr_dead += 1
            if state == SAME:
                mm.data[pfn] = b""  # `entry` is its word: only a DEAD folio without bytes has slots
            return resident, compressed
        if state == DEVICE:
            self._node.slots.release(pfn)
            compressed -= mm.charge[pfn]
        mm.free(pfn)
        return resident - held, compressed

    def deactivate(self, key: Hashable) -> int:
        """Have the policy reclaim a value first; return the bytes of it that can be reclaimed.

        On failure, which is the policy's: its folios are new to the policy.
        """
        resident = [pfn for pfn in self.pfns(key) if self._mm.state[pfn] == RESIDENT]
        deactivate = getattr(self._group.policy, "deactivate", None)  # it is optional
        if deactivate is not None:
            try:
                for pfn in reversed(resident):
                    deactivate(pfn)
            except BaseException as exc:
                undo(exc, self._node.relist, resident)
                raise
        return self._mm.bytes_of(resident)

    def check(self) -> None:
        """Assert that what is noted of values is noted of values that there are."""
        self.expiry.check(cast("dict[Hashable, object]", self.large))
        self.lazy.check()
        of_keys = {pfn for key in set(self.lazy.keys.values()) for pfn in self.pfns(key)}
        assert of_keys == self.lazy.keys.keys(), "a value that is partly discardable"


def _extra(key: Hashable, terms: Terms | None) -> int:
    """Return what is charged for a key and its terms beyond KEY_OVERHEAD."""
    if terms is None:
        return key_extra(key)
    return min(key_extra(key) + terms.overhead, MAX_EXTRA)
