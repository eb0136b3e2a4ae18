"""The embedding API: the `Memory` that `open_memory` gives.

The synchronous half decides (`put_nowait`, `get_nowait`), the asynchronous half adds the waiting. A
put reserves room, waits in the brake if it must (`reclaimactors.callers.admission`), and commits in
one step; a get never waits for room. What becomes of a folio is in `reclaimactors.mm`.
"""

from __future__ import annotations

import math
import os
import sys
from contextlib import asynccontextmanager
from threading import get_ident
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Protocol, TypeVar, overload
from weakref import WeakSet

import anyio
import attrs
from anyio.lowlevel import checkpoint

from reclaimactors.advice import Advice
from reclaimactors.callers import grouping
from reclaimactors.callers.batches import Batches
from reclaimactors.callers.buffers import bytes_of, flat, size_of, split
from reclaimactors.callers.faults import Faults
from reclaimactors.callers.mapped import Loader, Mapped
from reclaimactors.callers.pins import Pins
from reclaimactors.callers.prefetch import Prefetch
from reclaimactors.callers.pressure import Headroom, PressureTrigger
from reclaimactors.callers.reclaim import Proactive
from reclaimactors.callers.senpai import Senpai
from reclaimactors.callers.swapoff import swapoff
from reclaimactors.callers.write_back import write_back
from reclaimactors.cpu import clock
from reclaimactors.cpu.breath import Away
from reclaimactors.cpu.watch import Watch
from reclaimactors.errors import TopologyError
from reclaimactors.gauges import Gauges, SwapInfo, Usage
from reclaimactors.mm.expiry import Terms
from reclaimactors.mm.folio import DEVICE, RESIDENT, UNEVICTABLE
from reclaimactors.offload.job import COPY_BYTES, join_in_map
from reclaimactors.topology import checks
from reclaimactors.topology.fit import fit
from reclaimactors.topology.swapon import swapon
from reclaimactors.units import format_size, nr_pages

if TYPE_CHECKING:
    from collections.abc import (
        AsyncGenerator,
        Callable,
        Hashable,
        Iterable,
        Mapping,
        Sequence,
    )

    from typing_extensions import Buffer

    from reclaimactors.actors.machine import Machine
    from reclaimactors.callers.admission import Admission
    from reclaimactors.callers.buffers import Source
    from reclaimactors.cpu.watch import Kind
    from reclaimactors.topology import SwapSpec, Topology

    Value = Buffer | Sequence[Buffer]

__all__ = ["Life", "Memory", "SwapInfo", "Usage"]

BUDGET_CALLS = 200  #: calls of the fast paths between two checkpoints
MIN_CALLS = 8  #: of one caller, however many others there are
PUT_CALLS = 8  #: what a put counts for
BUDGET_BYTES = 64 * 1024  #: or bytes copied or decompressed
MAX_EXPIRES_S = 1e10  #: some 300 years
MIN_WINDOW_US, MAX_WINDOW_US = 1000, 10_000_000  #: of a pressure trigger
_BYTES_PER_CALL = BUDGET_BYTES // BUDGET_CALLS
_MISSING: Any = object()  # no default
_AS_IT_IS: Any = object()  # a limit that is not to change

_T = TypeVar("_T")


class Life(Protocol):
    """What runs a memory's actors, and ends them."""

    async def aclose(self) -> None:
        """Close the memory, and wait for that."""
        ...

    def forked(self) -> None:
        """End the actors here, in a forked child, where they are copies of the parent's."""
        ...


_open: WeakSet[Memory] = WeakSet()


def _forked() -> None:
    """In a child process: what was opened in its parent serves nobody here."""
    for memory in _open:
        memory.forked()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forked)


class Memory(Gauges):
    """Values under keys, within a budget of bytes. Made by `open_memory`; not persistent.

    It belongs to the event loop, the thread and the process that opened it: calls from another
    raise RuntimeError, and after close `anyio.ClosedResourceError`. Those that only look are
    allowed from any thread, closed or not: ``in``, `len`, `usage`, `swaps`, `pressure`, `vmstat`,
    `stats` and `health`.
    """

    def __init__(
        self, topology: Topology, machine: Machine, *, inside: Memory | None = None,
        admission: Admission | None = None,
    ) -> None:  # fmt: skip
        self._admission = admission or grouping.admission_of_root(machine, topology)
        group = self._admission.group
        super().__init__(machine, group)
        self._topology = topology
        self._inside = inside
        self._groups: dict[str, Memory] = {}
        _open.add(self)
        self.life: Life | None = None  #: set by who opens it
        #: called in the task of a put that has waited for room, with its seconds, as it ends
        self.on_stall: Callable[[float], None] | None = None
        self._faults = Faults(machine, group, self._admission.check_open)
        self._mapped = Mapped(
            machine, self._admission, self._admission.check_open, topology.max_folio
        )
        self._pins = Pins(machine, group, self._admission, self._faults)
        self._batches = Batches(
            machine,
            self._admission,
            self._faults,
            self._commit,
            self._stalled,
            max_folio=topology.max_folio,
        )
        self._headroom = Headroom(machine, self._admission)
        if inside is None:
            self._prefetch = Prefetch(machine, self._faults)
            self._swapping = anyio.Lock()
            if topology.senpai.enabled:
                Senpai(machine, topology.senpai)
        else:
            # of the whole memory, and so of the group that this one is in
            self._prefetch, self._swapping = inside._prefetch, inside._swapping  # noqa: SLF001
        self._credit = BUDGET_CALLS
        self._yielding = 0
        # The path of a hit looks at these directly. CPython finds an attribute by its place as long
        # as the object has no more than 30; with more, each hit takes a tenth longer.
        self._small = group.values.small
        self._state = self._node.mm.state
        self._data = self._node.mm.data
        self._access = group.policy.access
        self._heeds_advice = getattr(group.policy, "deactivate", None) is not None
        self._put_fast = group.values.put_fast
        self._max_folio = topology.max_folio

    # -- reading ----------------------------------------------------------------------------------

    @overload
    async def get(self, key: Hashable) -> bytes: ...

    @overload
    async def get(self, key: Hashable, default: _T) -> bytes | _T: ...

    async def get(self, key: Hashable, default: Any = _MISSING) -> Any:
        """Return the value of `key`, or `default` if that is given and the key is absent.

        It never waits for room. A resident value of one folio is the very object that is held. Once
        in about 200 calls, or 64 KiB decompressed, it yields to the event loop.

        Raises:
            KeyError: if the key is absent, and there is no default.
            CorruptData: if what a store or the pool gave back is not what it was given.
            BackendError: if the store that has the only copy cannot read it; it is tried again by
                the next get.
        """
        if get_ident() != self._callers:
            self._refuse()
        self._credit -= 1
        if self._credit < 0:
            await self._yield()
        try:  # costs a hit nothing; a call of dict.get does
            pfn = self._small[key]
        except KeyError:
            pfn = None
        if pfn is not None and self._state[pfn] == RESIDENT:
            self._access(pfn)
            return self._data[pfn]
        if pfn is not None and self._state[pfn] == UNEVICTABLE:
            return self._data[pfn]
        if not self._is_running():  # asked here, where it is small beside what follows
            self._refuse()
        if self._values.ends:
            self._machine.sweeper.look(self._values, key)
        try:
            value = await (self._faults.get(key) if not self._mapped else self._get_mapped(key))
        except KeyError:
            if default is _MISSING or key in self:
                raise
            return default
        self._credit -= len(value) // _BYTES_PER_CALL
        return value

    async def _get_mapped(self, key: Hashable) -> bytes:
        try:
            return await self._faults.get(key)
        except KeyError:
            if key not in self._mapped:
                raise
        return await self._mapped.get(key)

    async def get_writable(self, key: Hashable) -> memoryview:
        """Return the value of `key` in memory of the caller's own, which may be written to.

        It is outside the budget. A value of several folios is copied once, in slices.

        Raises:
            KeyError, CorruptData, BackendError: as `get`.
        """
        self._check()
        self._machine.sweeper.look(self._values, key)
        if len(self._values.large.get(key, ())) > 1:
            return memoryview(await self._faults.joined(key, join_in_map))
        return memoryview(bytearray(await self.get(key)))

    async def get_many(self, keys: Iterable[Hashable]) -> dict[Hashable, bytes]:
        """Return the values of those of these keys that are there, in the order of `keys`.

        Stores are asked for up to 64 folios at a time. A value is one that the key had during the
        call; two keys may be of different instants.

        Raises:
            CorruptData: as `get`, for the first that is damaged.
            BackendError: as `get`.
        """
        self._check()
        keys = list(keys)
        found: dict[Hashable, bytes] = {}
        away = 0
        for start in range(0, len(keys), BUDGET_CALLS):
            some = keys[start : start + BUDGET_CALLS]
            self._credit -= len(some)
            if self._credit < 0:
                await self._yield()
            small, state, data, access = self._small, self._state, self._data, self._access
            rest: list[Hashable] = []
            for key in some:
                if key in small and state[pfn := small[key]] == RESIDENT:
                    access(pfn)
                    found[key] = data[pfn]
                else:
                    rest.append(key)
            if rest:
                away += len(rest)
                more = await self._batches.get(dict.fromkeys(rest))
                self._credit -= sum(map(len, more.values())) // _BYTES_PER_CALL
                found |= more
        if self._mapped:
            loaded = [key for key in keys if key not in found and key in self._mapped]
            found |= await self._mapped.get_many(loaded)
            away += len(loaded)
        return {key: found[key] for key in keys if key in found} if away else found

    def get_nowait(self, key: Hashable) -> bytes:
        """Return the value of `key` if it is in memory, compressed or not.

        Raises:
            KeyError: if the key is absent.
            WouldBlock: if only a store has it, or a loader would be asked for it.
            CorruptData: if a blob of the pool is damaged.
        """
        if get_ident() != self._callers:
            self._refuse()
        try:
            pfn = self._small[key]
        except KeyError:
            pfn = None
        if pfn is not None and self._state[pfn] == RESIDENT:
            self._access(pfn)
            return self._data[pfn]
        if not self._is_running():
            self._refuse()
        if pfn is not None:
            if self._state[pfn] == DEVICE:
                raise anyio.WouldBlock
            return self._faults.one(pfn)
        self._machine.sweeper.look(self._values, key)
        if key in self._mapped and key not in self._values:
            raise anyio.WouldBlock
        pfns: Sequence[int] = self._values.large[key]
        if DEVICE in [self._state[pfn] for pfn in pfns]:
            raise anyio.WouldBlock
        promote = self._machine.swapin.may_promote(pfns)
        return b"".join(self._faults.parts(pfns, promote=promote))

    def keys(self) -> list[Hashable]:
        """Return a snapshot of the keys."""
        self._check()
        values = self._values
        found = [*values.small, *values.large]
        ended = values.expiry.ended(self._machine.loop.now()) if values.ends else ()
        return [key for key in found if key not in ended] if ended else found

    def expires_in(self, key: Hashable) -> float | None:
        """Return the seconds after which `key` has no value any more; None: it stays.

        Raises:
            KeyError: if the key is absent.
        """
        self._check()
        self._machine.sweeper.look(self._values, key)
        if key not in self._values:
            raise KeyError(key)
        left = self._values.expiry.ends_at(key) - self._machine.loop.now()
        return left if left < math.inf else None

    # -- writing ----------------------------------------------------------------------------------

    async def put(
        self,
        key: Hashable,
        data: Value,
        *,
        expires_in: float | None = None,
        discardable: bool = False,
    ) -> None:
        """Make `data` the value of `key`.

        With free memory at or above *low* it does not wait. Below, it waits for memory to be freed
        in proportion; below *min* it reclaims for itself first. The old value is readable until the
        new one replaces it in one step; a cancelled put leaves the old value. A value of several
        folios is copied in steps of a MiB: leave a bytearray alone until the put has returned.

        `data` is anything with the buffer protocol: bytes, which are kept as they are up to
        `max_folio`, or a bytearray, memoryview, array, ndarray, mmap, of whose bytes (in C order)
        a copy is kept. A list or tuple of those is one value, their bytes one after the other; they
        are not joined before they are cut into folios.

        Args:
            key: anything hashable.
            data: the value.
            expires_in: seconds from the call on, by the event loop's clock, after which the key is
                absent. A put without it makes the value one that stays.
            discardable: whether reclaim may drop the value, with its key, where it would compress
                another (MADV_FREE). Each such page counts in `pglazyfreed`. With nothing but
                discardable values a memory is a cache, and puts never raise OutOfMemory.

        Raises:
            TopologyError: if `expires_in` is no number of seconds.
            OutOfMemory: if the value can never fit, at once; or if reclaim freed nothing for it.
            TypeError: if `data` has no buffer; a str has to be encoded.
        """
        if get_ident() != self._callers or not self._is_running():
            self._refuse()
        terms = None
        if expires_in is not None or discardable:
            terms = self._terms(expires_in, discardable)
        self._credit -= PUT_CALLS
        if self._credit < 0:
            await self._yield()  # before anything is changed: a cancelled put is no put
        if (
            type(data) is bytes
            and terms is None
            and len(data) <= self._max_folio
            and not self._admission.queued
            and self._put_fast(key, data)
        ):
            return
        source = bytes_of(data)
        size = size_of(source)
        if size > self._max_folio:  # refused before it is copied
            folios = nr_pages(size, self._max_folio)
            self._admission.must_fit(size, self._values.more_overhead(key, folios, terms))
        parts = await self._cut(source)
        if parts[0] is not data:  # it was copied
            self._credit -= size // _BYTES_PER_CALL
        if not self._admission.queued:
            need = self._values.need(key, size, len(parts), terms)
            if not self._admission.below_low(need):
                self._commit(key, parts, 0, terms)
                return
        self._admission.must_fit(size, self._values.more_overhead(key, len(parts), terms))
        await self._batches.put([(key, parts)], terms)

    async def _cut(self, source: Source) -> list[bytes]:
        """Return the folios of a value, copied in slices where it is not one as it is."""
        parts: list[bytes] = []
        parts_per_yield = max(2, COPY_BYTES // self._max_folio)
        dear = isinstance(source, memoryview) and not source.c_contiguous  # copied item by item
        for part in split(source, self._max_folio):
            parts.append(part)
            if dear or len(parts) % parts_per_yield == 0:
                await self._yield()
        return parts

    def _terms(self, expires_in: float | None, discardable: bool) -> Terms | None:
        """Return what was said of a value, None if it is one that stays."""
        checks.flag("discardable", discardable)
        if expires_in is None:
            return Terms(discardable=True) if discardable else None
        seconds = checks.number("expires_in", expires_in, 0, MAX_EXPIRES_S, "(seconds)")
        return self._machine.sweeper.terms(seconds, discardable=discardable)

    def _stalled(self, seconds: float) -> None:
        if self.on_stall is not None:
            self.on_stall(seconds)

    def _commit(
        self, key: Hashable, parts: list[bytes], reserved: int, terms: Terms | None = None
    ) -> None:
        """Make `parts` the value of `key`; where it ends, it is swept in time."""
        self._values.commit(key, parts, reserved, terms)
        if terms is not None:
            self._machine.sweeper.noted(terms.slot)

    def put_nowait(self, key: Hashable, data: Value) -> None:
        """Make `data` the value of `key` without waiting; below *min* it compresses here and now.

        Raises:
            WouldBlock: if room is being made, or a store could make it, or puts wait already.
            OutOfMemory: as `put`.
            TypeError: if `data` has no buffer; a str has to be encoded.
        """
        self._check()
        if (
            type(data) is bytes
            and len(data) <= self._max_folio
            and not self._admission.queued
            and self._put_fast(key, data, may_wait=False)
        ):
            return
        source = bytes_of(data)
        size = size_of(source)
        folios = max(1, nr_pages(size, self._max_folio))
        self._admission.must_fit(size, self._values.more_overhead(key, folios))
        parts = list(split(source, self._max_folio))
        reserved = self._admission.reserve_now(lambda: self._values.need(key, size, len(parts)))
        try:
            self._commit(key, parts, reserved)
        except BaseException:  # a policy's, or Ctrl-C: nobody else has the reservation
            self._group.memcg.unreserve(reserved)
            raise
        self._admission.wake_below_low()

    async def put_many(
        self,
        items: Mapping[Any, Value] | Iterable[tuple[Hashable, Value]],
        *,
        expires_in: float | None = None,
        discardable: bool = False,
    ) -> None:
        """Make each of `items` the value of its key, in order, with one admission for many.

        As so many puts, but cheaper: the batch waits once for up to 64 values, or a sixteenth of
        the budget.

        Args:
            items: a mapping, or pairs of key and value; of several for one key the last counts.
            expires_in: as of `put`, of each of them.
            discardable: as of `put`, of each of them.

        Raises:
            TypeError: if one of the values has no buffer; nothing is changed.
            OutOfMemory: if one of the values can never fit, before anything is changed; or if
                reclaim freed nothing for them.

        On failure (cancellation, too): the first keys may have their new values, all others have
        their old ones. No key is without a value that had one.
        """
        self._check()
        terms = self._terms(expires_in, discardable)
        sources: dict[Hashable, Any] = dict(items)
        if {*map(type, sources.values())} != {bytes}:
            sources = {key: flat(data) for key, data in sources.items()}
        for key, source in sources.items():
            if len(source) > self._max_folio:
                self._batches.must_fit(key, len(source), terms)
        for chunk in self._batches.chunks(sources):
            self._credit -= PUT_CALLS * len(chunk) // 2
            if self._credit < 0:
                await self._yield()
            await self._batches.put_some(chunk, terms)

    async def put_if(
        self,
        key: Hashable,
        data: Value,
        expected: bytes | None,
        *,
        expires_in: float | None = None,
        discardable: bool = False,
    ) -> bool:
        """Put if the value of `key` is `expected`; None stands for an absent key.

        The value is compared and replaced in one step: compare-and-swap. As a put, it waits where
        memory is short. `expires_in` and `discardable` are those of `put`.

        Returns:
            Whether it was so, and `data` is the value now. If not, nothing was changed.

        Raises:
            OutOfMemory, TypeError: as `put`.
            CorruptData, BackendError: as `get`, where the old value has to be read.
        """
        self._check()
        self._credit -= PUT_CALLS
        if self._credit < 0:
            await self._yield()
        terms = self._terms(expires_in, discardable)
        source = bytes_of(data)
        self._batches.must_fit(key, size_of(source), terms)
        parts = list(split(source, self._max_folio))
        return await self._batches.put_if(key, parts, expected, terms)

    @overload
    async def pop(self, key: Hashable) -> bytes: ...

    @overload
    async def pop(self, key: Hashable, default: _T) -> bytes | _T: ...

    async def pop(self, key: Hashable, default: Any = _MISSING) -> Any:
        """Delete `key` and return its value, or `default` if that is given and it is absent.

        A value that is overwritten meanwhile is not the one that is deleted.

        Raises:
            KeyError: if the key is absent, and there is no default.
            CorruptData, BackendError: as `get`; the key is there as before.
        """
        self._check()
        self._credit -= 1
        if self._credit < 0:
            await self._yield()
        try:
            return await (self._batches.pop(key, self._delete) if not self._mapped
                          else self._pop_mapped(key))  # fmt: skip
        except KeyError:
            if default is _MISSING or key in self:
                raise
            return default

    async def _pop_mapped(self, key: Hashable) -> bytes:
        while True:
            try:
                return await self._batches.pop(key, self._delete)
            except KeyError:
                if key not in self._mapped:
                    raise
            value = await self._mapped.get(key)
            if key not in self._values and self._mapped.discard(key):
                return value  # else what is held goes: one that was put meanwhile is newer

    async def delete_many(self, keys: Iterable[Hashable]) -> int:
        """Forget these keys and their values; return how many there were. Absent ones are skipped.

        On failure (cancellation, too): the first of them may be gone, the others are as before.
        """
        self._check()
        nr = 0
        for key in list(keys):
            self._credit -= 1
            if self._credit < 0:
                await self._yield()
            if key in self or key in self._mapped:
                self._delete(key)
                nr += 1
        return nr

    @overload
    async def delete(self, key: Hashable) -> None: ...

    @overload
    async def delete(self, *, reparent: bool) -> None: ...

    async def delete(self, key: Any = _MISSING, *, reparent: bool | None = None) -> None:
        """Forget `key`, its value and its loader; or, without a key, end this group.

        Whoever is in a call of a group that ends gets `anyio.ClosedResourceError`, pins stay valid.
        Where its policy raises meanwhile, what is left of it is ended by another call.

        Args:
            key: of the value.
            reparent: True: the values of the group become those of the one that it is in, under
                their keys. False: they are forgotten.

        Raises:
            KeyError: if the key is absent.
            TypeError: if neither is given, or this is the whole memory, which `aclose` ends.
            TopologyError: if there are groups in the group, or the one that it is in has one of its
                keys, where they are to be its; nothing is changed.
        """
        if get_ident() != self._thread or not self._admission.half_ended:
            self._check()
        if reparent is not None or key is _MISSING:
            if reparent is None or key is not _MISSING:
                raise TypeError("delete takes a key, or reparent=True or False to end a group")
            await self._end(reparent=reparent)
            return
        self._check()
        self._credit -= 1
        if self._credit < 0:
            await self._yield()
        self._delete(key)

    def _delete(self, key: Hashable) -> None:
        self._machine.sweeper.look(self._values, key)
        if not self._mapped or key in self._values:
            self._values.delete(key)
        elif key not in self._mapped:
            raise KeyError(key)
        self._mapped.discard(key)

    # -- mapped keys ------------------------------------------------------------------------------

    def map(self, key: Hashable, loader: Loader) -> None:
        """Have `loader` asked for the value of `key` whenever a get finds none.

        What it gives is held as a discardable value: where memory is short it is dropped, not
        compressed or written, and loaded again by the next get. Gets of one key at the same time
        have it loaded once. Below *low* it is handed out and not held. A value that is put under
        the key is kept as any other, and the loader is asked again once that is gone: it has ended,
        or was discardable. `delete` forgets the loader, too. Mapped anew, what the loader before
        gave is forgotten. `in`, `len`, `keys` and `put_if` are about values that are held.

        Args:
            key: any hashable.
            loader: ``async def loader(key)``; it returns what `put` takes. What it raises reaches
                whoever waits for it, and nobody else: the next get asks it again. KeyError says
                that there is no value now: a get with a default returns that.

        Raises:
            TypeError: if the loader cannot be called.
        """
        self._check()
        hash(key)
        self._mapped.add(key, loader)

    async def _hold(self, key: Hashable, data: bytes) -> None:
        """Wait for room for what was loaded, and hold it; what is put meanwhile stays."""
        done = await Memory.put_if(self, key, data, None, discardable=True)
        if done and key not in self._mapped:
            self._values.delete(key)  # somebody has deleted it while this waited

    # -- pins, advice, proactive reclaim ----------------------------------------------------------

    @asynccontextmanager
    async def pin(self, key: Hashable) -> AsyncGenerator[memoryview]:
        """Keep the value of `key` resident: a read-only contiguous view, valid until the exit.

        A value of several folios is pinned as a joined copy, charged to the budget, and its view is
        released at the exit. The key may be overwritten or deleted meanwhile; the view keeps the
        old value.

        Raises:
            KeyError: if the key is absent.
            OutOfMemory: as `put`, if it does not fit beside what is pinned.
        """
        self._check()
        self._machine.sweeper.look(self._values, key)
        while key in self._mapped and key not in self._values:
            await self._hold(key, await self._mapped.get(key))
        pfn = await self._pins.folio(key)
        if pfn is None:
            async with self._pins.copy(key) as view:
                yield view
            return
        try:
            yield memoryview(self._data[pfn]).toreadonly()
        finally:
            self._node.unpin(pfn)

    async def reclaim(self, nbytes: int, *, zswap_writeback_only: bool = False) -> int:
        """Reclaim proactively, as writing to a cgroup's memory.reclaim; return the bytes freed.

        kcompressd compresses, where there is one: up to half of its FIFO is proactive reclaim's,
        the rest is kswapd's alone. Less than a cluster is compressed in the caller. What counts is
        really freed for this call: folio sizes less the blobs that are kept. It ends once that is
        `nbytes`, or when nothing more can be freed. Of a group it takes what is in that group.

        Args:
            nbytes: to free.
            zswap_writeback_only: True: nothing is compressed, but so many bytes of the coldest
                blobs go from the pool to devices, as long as these take them (`zswpwb_proactive`).

        Raises:
            TopologyError: if `nbytes` is no whole number from 0.
        """
        self._check()
        checks.integer("nbytes", nbytes, 0, sys.maxsize, "(bytes)")
        if zswap_writeback_only:
            return await write_back(self._machine, self._group, nbytes)
        return await Proactive(self._machine, nbytes, self._group).run()

    async def drain(self) -> None:
        """Wait until nothing is in flight and kswapd sleeps.

        What was deleted or overwritten while a worker or a store had it is in flight, and in the
        budget, until that lets go of it.
        """
        self._check()
        await checkpoint()
        machine, node = self._machine, self._node
        while machine.awake or not machine.idle or node.nr_leaving or self._prefetch.pending:
            await machine.verdicts.wait()
            self._check()

    def advise(self, key: Hashable, advice: Advice) -> None:
        """Say what is coming for a value, as madvise does; it never waits.

        COLD makes it the next to be reclaimed, PAGEOUT has kswapd reclaim it now, WILLNEED
        promotes it as `get` does.

        Raises:
            KeyError: if the key is absent.
            TypeError: if `advice` is no `Advice`.
        """
        self._check()
        if not isinstance(advice, Advice):  # pyright: ignore[reportUnnecessaryIsInstance] # callers are not always typed
            msg = f"advice is one of {', '.join(map(str, Advice))}, not {advice!r}"
            raise TypeError(msg)
        self._machine.sweeper.look(self._values, key)
        if advice is Advice.WILLNEED:
            self._prefetch.will_need(self._values, key)
            return
        nr_bytes = self._values.deactivate(key)
        if not self._heeds_advice:
            self._heeds_advice = True  # it is said once
            self._machine.log.warning(
                "policy.ignores_advice", policy=type(self._group.policy).__name__,
                effect=f"{advice} does not change what is reclaimed next",
                instead="give the policy a deactivate(pfn), as reclaimactors.DeactivatingPolicy",
            )  # fmt: skip
        if advice is Advice.PAGEOUT and nr_bytes:
            background = self._machine.backgrounds[self._group.index]
            background.kswapd.request(nr_bytes)
            background.wake()

    def tune(self, *, kcompressd: bool | None = None, fifo: int | None = None) -> None:
        """Switch kcompressd (padata too) off or on, or change the depth of its FIFO, at once.

        Low and high move with the FIFO as where a topology names it. Nothing is lost: what waits or
        is being compressed ends as it would have. While it is off,
        kswapd has its batches compressed as in mode "inline", and `reclaim` compresses in the
        caller. A FIFO cut below what waits in it takes nothing more until there is room again.

        Args:
            kcompressd: whether it takes folios; None: as it is.
            fifo: base pages that may wait, from 1; None: as many as now.

        Raises:
            TopologyError: if the topology has no kcompressd, or the FIFO may not be that deep: an
                eighth of the budget may be in flight, batches of the workers included, and where
                low or high was given, no more than lies between min and low.
        """
        self._check()
        machine = self._machine
        if kcompressd is not None:
            checks.flag("kcompressd", kcompressd)
        if machine.mode == "inline" and (kcompressd or fifo is not None):
            key, value = ("kcompressd", kcompressd) if kcompressd else ("fifo", fifo)
            raise checks.bad(key, value, "nothing with mode 'inline', where kswapd compresses")
        if fifo is not None:
            unit = "(base pages): more may not be in flight with the workers' batches"
            checks.integer("fifo", fifo, 1, machine.fifo.most, unit)
            machine.tune(fifo, *fit(self._topology, fifo=fifo))
        if kcompressd is not None:
            machine.switch(kcompressd=kcompressd)

    # -- swap devices -----------------------------------------------------------------------------

    async def swapon(self, spec: SwapSpec | Mapping[str, Any]) -> str:
        """Add a backing store, as a ``[[swap]]`` table or a `SwapSpec` says; return its name.

        Raises:
            TopologyError: if a key or value is wrong.
            PluginError: if the backend cannot be had.
            BackendError: if it cannot be opened, or that very object is in use already.
        """
        self._check()
        with_it = attrs.evolve(self._topology, swap=(spec,))
        async with self._swapping:
            return await swapon(self._machine, with_it, with_it.swap[0])

    async def swapoff(self, name: str) -> None:
        """Bring everything back from a backing store, then close it.

        Room is made as for a put: other values are compressed, or go to other stores. Where that
        cannot be, or something cannot be read, the store stays on and nothing is lost; a cancelled
        swapoff leaves it on as well, or is done.

        Raises:
            TopologyError: if no store has that name.
            OutOfMemory: if there is no room for what it holds.
            BackendError: if it cannot give a value back.
            CorruptData: if what it gives back is not what it was given.
        """
        self._check()
        async with self._swapping:
            self._check()
            for swapd in self._machine.swapds.values():
                if swapd.device.name == name:
                    await swapoff(self._machine, self._topology, self._admission, swapd)
                    return
        names = ", ".join(info.name for info in self.swaps()) or "none"
        raise TopologyError(f"swapoff of {name!r}, which is no swap device; there are: {names}")

    # -- groups -----------------------------------------------------------------------------------

    @property
    def groups(self) -> Mapping[str, Memory]:
        """The groups in this one by name, a live read-only view."""
        return MappingProxyType(self._groups)

    def group(
        self,
        name: str,
        *,
        max: int | str | None = None,  # noqa: A002 - as memory.max, which is what it is
        high: int | str | None = None,
        zswap_max: int | str | None = None,
        zswap_writeback: bool = True,
        swap_max: int | str | None = None,
        swap: Iterable[str] | None = None,
    ) -> Memory:
        """Add a group: a memory within this one, with keys, lists and limits of its own.

        What it holds counts in this one too. It is reclaimed by itself above its own limits, in the
        background and by its callers, and takes nothing of another group then. Where the whole
        memory is short, who is above his `high` by most goes first, else each by his size.

        A group has what a memory has; `tune`, `swapon`, `swapoff`, `drain` and `health` are of the
        whole memory. It ends with ``await group.delete(reparent=...)``, or with the memory.

        Args:
            name: of its own in this one, without a "/".
            max: bytes, or a string like "16MiB", that it may hold; None: no limit of its own.
            high: bytes above which it is reclaimed, and its puts are slowed.
            zswap_max: bytes of its blobs in the pool; what is beyond that goes to a device.
            zswap_writeback: False where none of it may go to a device: what does not compress then
                stays as it is.
            swap_max: bytes of it that devices may hold.
            swap: names of the devices that it may use (`swaps`); None: all.

        Raises:
            TopologyError: if one of them is not allowed, or the name is taken.
            OutOfMemory: if there are 1,023 groups already.
        """
        self._check()
        given = {"max": max, "high": high, "zswap_max": zswap_max, "swap_max": swap_max,
                 "zswap_writeback": zswap_writeback, "swap": swap}  # fmt: skip
        limits = grouping.checked(self._topology, self._machine, given)
        admission = grouping.add(self._machine, self._topology, self._admission, name, limits)
        group = Memory(self._topology, self._machine, inside=self, admission=admission)
        self._groups[name] = group
        return group

    async def set_limits(
        self,
        *,
        max: int | str | None = _AS_IT_IS,  # noqa: A002 - as memory.max, which is what it is
        high: int | str | None = _AS_IT_IS,
        zswap_max: int | str | None = _AS_IT_IS,
        zswap_writeback: bool = _AS_IT_IS,
        swap_max: int | str | None = _AS_IT_IS,
        swap: Iterable[str] | None = _AS_IT_IS,
    ) -> None:
        """Change limits of a group, which are those of `group`; what is not given stays.

        What it holds beyond a lower max is reclaimed first.

        Raises:
            TopologyError: if one of them is not allowed, or this is no group.
            OutOfMemory: if so much cannot be reclaimed; the limits are as before.
        """
        self._check()
        if self._inside is None:
            raise TopologyError("limits are of a group; the whole memory has its budget")
        limits = attrs.asdict(self._group.limits, recurse=False)
        given = {"max": max, "high": high, "zswap_max": zswap_max, "swap_max": swap_max,
                 "zswap_writeback": zswap_writeback, "swap": swap}  # fmt: skip
        limits |= {key: value for key, value in given.items() if value is not _AS_IT_IS}
        new = grouping.checked(self._topology, self._machine, limits)
        await grouping.change(self._machine, self._group, new)

    async def _end(self, *, reparent: bool) -> None:
        """End this group."""
        inside = self._inside
        if inside is None:
            raise TypeError("reparent is of a group; the whole memory ends by aclose()")
        checks.flag("reparent", reparent)
        await grouping.end(
            self._machine, self._admission, reparent=reparent, begun=self.serve_nobody
        )
        inside.forget_group(self._group.name.rpartition("/")[2])

    def forget_group(self, name: str) -> None:
        """A group in this one has ended."""
        del self._groups[name]

    # -- pressure ---------------------------------------------------------------------------------

    @asynccontextmanager
    async def pressure_trigger(
        self, kind: Kind, *, stall_us: int, window_us: int
    ) -> AsyncGenerator[PressureTrigger]:
        """Watch for pressure, as a trigger of /proc/pressure/memory does.

        ``await trigger.wait()`` returns once `stall_us` of any `window_us` were stalled, and at
        most once a window. What happens between two waits is not lost: the next returns at once.

        Args:
            kind: "some" or "full", the lines of `pressure`.
            stall_us: microseconds of the window, from 1 to all of it.
            window_us: microseconds, from a millisecond to ten seconds.

        Raises:
            TopologyError: if one of them is anything else.
        """
        self._check()
        checks.choice("kind", kind, ("some", "full"))
        checks.integer("window_us", window_us, MIN_WINDOW_US, MAX_WINDOW_US, "(microseconds)")
        checks.integer("stall_us", stall_us, 1, window_us, "(microseconds: all of window_us)")
        watch = Watch(kind, stall_us / 1e6, window_us / 1e6)
        machine = self._machine
        psi = machine.psi_of(self._group) if kind == "some" else machine.cpu.psi
        psi.account(self._machine.cpu.now())  # what was before is not its business
        psi.watches.append(watch)
        try:
            yield PressureTrigger(machine, psi, watch, self._admission)
        finally:
            psi.watches.remove(watch)

    async def wait_for_headroom(self, nbytes: int) -> None:
        """Wait until `nbytes` can be put without waiting: free memory stays at *low* or above.

        What is missing is reclaimed meanwhile. It promises nothing for later: whoever puts next,
        takes of it. Where all is incompressible and no store has room, it waits for a delete.

        Raises:
            TopologyError: if `nbytes` is no whole number from 0.
            OutOfMemory: if so much can never be had.
        """
        self._check()
        checks.integer("nbytes", nbytes, 0, sys.maxsize, "(bytes)")
        await self._headroom.wait(nbytes)

    def __repr__(self) -> str:
        memcg = self._group.memcg
        held = f"{format_size(memcg.budget - memcg.free)} of {format_size(memcg.budget)}"
        of = f"group {self._group.name!r} of " if self._group.name else ""
        return f"<Memory {of}{self._topology.name!r}: {len(self)} keys, {held}>"

    # -- turns, and the end -----------------------------------------------------------------------

    async def _yield(self) -> None:
        """Let the loop turn. Callers who yield share the calls of a turn, however many they are.

        A single one has more where others keep the loop for long (see `Away`).
        """
        self._yielding += 1
        away = Away(clock.perf_counter())
        try:
            await checkpoint()
        finally:
            self._yielding -= 1
        if self._yielding:
            self._credit = max(MIN_CALLS, BUDGET_CALLS // (self._yielding + 1))
        else:
            self._credit = int(BUDGET_CALLS * away.share(clock.perf_counter()))
        self._check()
        self._machine.starter.look_at_malloc()

    def refuse_calls(self) -> None:
        """Close for callers; `open_memory` calls this, and ends the actors by cancellation."""
        self.serve_nobody()
        self._machine.refuse_calls()

    def forked(self) -> None:
        """This is a forked child: the stores and the workers are the parent's, and stay as is."""
        self.serve_nobody()
        self._machine.forked()
        if self.life is not None and get_ident() == self._thread:  # else its loop runs no more
            self.life.forked()

    def serve_nobody(self) -> None:
        """Refuse every call from now on but those that only look, in the groups in it too."""
        super().serve_nobody()
        for group in self._groups.values():
            group.serve_nobody()

    def _closed(self) -> anyio.ClosedResourceError:
        return self._admission.closed() if self._admission.ended else super()._closed()

    async def aclose(self) -> None:
        """Close it: forget everything, end whoever waits; a second call waits for the first.

        On asyncio any task may do that. On trio it is closed by leaving its ``async with``. Called
        by a plugin inside one of the memory's actors, it asks for the end and does not wait. In a
        forked child it does nothing: the memory is the parent's.

        Raises:
            ReclaimError: what else ended the memory, a plugin's crash, say: to each who waited for
                the end, or else to the first who asks.
        """
        if os.getpid() != self._process:
            return
        if get_ident() != self._thread or (
            self._machine.loop.another_runs and not self._machine.ended
        ):
            self._refuse()
        if self._inside is not None:
            raise TypeError("a group ends by delete(reparent=...), or with its memory")
        if self.life is not None:
            await self.life.aclose()
