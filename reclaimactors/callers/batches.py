"""Puts of several values with one admission, gets of several in one go, and compare-and-swap.

Each key is all or nothing: it has its old value or its new one, at every instant. A batch is not:
keys that come first may have their new values while a later one fails.

What reads a value and then acts on that very value (`pop`, `put_if`) holds its folios meanwhile: a
held folio is not overwritten in place, and its pfn is not used again. So where the key still names
the same folios after the wait, it still has the same value.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, cast

from reclaimactors.callers.buffers import split
from reclaimactors.callers.stall import Stall
from reclaimactors.units import nr_pages

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Hashable, Iterable, Sequence

    from reclaimactors.actors.loads import Ticket
    from reclaimactors.actors.machine import Machine
    from reclaimactors.callers.admission import Admission
    from reclaimactors.callers.faults import Faults
    from reclaimactors.mm.expiry import Terms

    Item = tuple[Hashable, list[bytes]]
    Source = bytes | memoryview  # what `flat` gives

__all__ = ["Batches"]

MOST_KEYS = 64  #: values that are put with one admission
MOST_OF_BUDGET = 16  #: or this part of the budget, if that is less: one value may be larger
MOST_LOADS = 64  #: folios that are asked of stores at once


class Batches:
    """How one group serves calls that are about more than one read or one write.

    Args:
        machine: whose.
        admission: who lets puts in.
        faults: who reads what is not resident.
        commit: makes parts the value of a key on some terms, spending a reservation.
        stalled: is told for how many seconds a put, or a batch of them, has waited for room.
        max_folio: bytes.
    """

    def __init__(
        self,
        machine: Machine,
        admission: Admission,
        faults: Faults,
        commit: Callable[[Hashable, list[bytes], int, Terms | None], None],
        stalled: Callable[[float], None],
        *,
        max_folio: int,
    ) -> None:
        self._machine = machine
        self._group = group = admission.group
        self._values = group.values
        self._memcg = group.memcg
        self._node = machine.node
        self._mm = machine.node.mm
        self._admission = admission
        self._faults = faults
        self._commit = commit
        self._stalled = stalled
        self._max_folio = max_folio

    # -- writing ----------------------------------------------------------------------------------

    def chunks(self, sources: dict[Hashable, Source]) -> Generator[dict[Hashable, Source]]:
        """Cut values into what is put with one admission each."""
        limit = self._memcg.budget // MOST_OF_BUDGET
        if len(sources) <= MOST_KEYS and sum(map(len, sources.values())) <= limit:
            yield sources
            return
        chunk: dict[Hashable, Source] = {}
        held = 0
        for key, source in sources.items():
            if chunk and (held + len(source) > limit or len(chunk) == MOST_KEYS):
                yield chunk
                chunk, held = {}, 0
            chunk[key] = source
            held += len(source)
        yield chunk

    async def put_some(self, chunk: dict[Hashable, Source], terms: Terms | None) -> None:
        """Put one chunk: at once where nothing is in the way, the rest with one admission."""
        limit = self._max_folio
        if (
            terms is None
            and not self._admission.queued
            and {*map(type, chunk.values())} == {bytes}
            and max(map(len, chunk.values())) <= limit
            and self._values.put_new(cast("dict[Hashable, bytes]", chunk))
        ):
            return
        items = [(key, [*split(source, limit)]) for key, source in chunk.items()]
        done = 0
        for key, parts in items:
            if terms is not None or self._admission.queued or len(parts) > 1:
                break
            if not self._values.put_fast(key, parts[0]):
                break
            done += 1
        if done < len(items):
            del items[:done]
            for key, parts in items:
                self.must_fit(key, sum(map(len, parts)), terms)
            await self.put(items, terms)

    def must_fit(self, key: Hashable, size: int, terms: Terms | None) -> None:
        """Raise OutOfMemory at once where a value could never fit."""
        folios = max(1, nr_pages(size, self._max_folio))
        self._admission.must_fit(size, self._values.more_overhead(key, folios, terms))

    async def put(self, items: Sequence[Item], terms: Terms | None) -> None:
        """Put under pressure: reserve for all of these, brake once, commit each.

        On failure before the first commit nothing is changed; where one of the commits fails, which
        is a policy's, those before it are done.
        """
        values, memcg = self._values, self._memcg
        sizes = [sum(map(len, parts)) for _, parts in items]
        reserved = 0
        braked = False
        stall = Stall(self._machine, self._group)

        def needs() -> list[int]:
            rows = zip(items, sizes, strict=True)
            return [values.need(key, size, len(parts), terms) for (key, parts), size in rows]

        def short() -> int:
            return sum(needs()) - reserved

        try:
            while short() > 0 or not braked:  # the old values may change while we wait
                reserved += await self._admission.reserve(short, stall)
                if not braked:
                    braked = True
                    await self._admission.brake(sum(sizes), stall)
            for (key, parts), need in zip(items, needs(), strict=True):
                self._commit(key, parts, need, terms)
                reserved -= need
        finally:
            memcg.unreserve(reserved)
            if stall.waited_s:
                self._stalled(stall.waited_s)

    async def put_if(
        self, key: Hashable, parts: list[bytes], expected: bytes | None, terms: Terms | None
    ) -> bool:
        """Put if the value is `expected`, None for an absent key; return whether that was so."""
        stall = Stall(self._machine, self._group)
        try:
            while (swapped := await self._swap(key, parts, expected, terms, stall)) is None:
                pass  # it was another value by the time that there was room
            return swapped
        finally:
            if stall.waited_s:
                self._stalled(stall.waited_s)

    async def _swap(
        self,
        key: Hashable,
        parts: list[bytes],
        expected: bytes | None,
        terms: Terms | None,
        stall: Stall,
    ) -> bool | None:
        """Compare, then get room, then commit if the value is the same still; None if not."""
        values, memcg = self._values, self._memcg
        size = sum(map(len, parts))
        reserved = 0

        def short() -> int:
            return values.need(key, size, len(parts), terms) - reserved

        self._admission.check_open()  # its group may have ended while it waited
        try:
            with self._held(key) as pfns:
                if self._is_other(pfns, expected):
                    return False
                if expected and (await self._one(key)).get(key) != expected:
                    return False if self._is(key, pfns) else None
                if short() > 0:
                    reserved += await self._admission.reserve(short, stall)
                    await self._admission.brake(size, stall)
                same = self._is(key, pfns)
            if not same or short() > 0:
                return None
            self._commit(key, parts, reserved, terms)
            reserved = 0
            return True
        finally:
            memcg.unreserve(reserved)

    def _is_other(self, pfns: Sequence[int], expected: bytes | None) -> bool:
        """Return whether a value cannot be `expected`, as far as that is known without reading."""
        if expected is None or not pfns:
            return bool(pfns) or expected is not None
        return self._mm.bytes_of(pfns) != len(expected)

    async def pop(self, key: Hashable, delete: Callable[[Hashable], None]) -> bytes:
        """Return the value of `key`, and delete it in the step in which it is known.

        Raises:
            KeyError: if the key is absent.
        """
        while True:
            with self._held(key) as pfns:
                if not pfns:
                    raise KeyError(key)
                value = await self._faults.get(key)
                same = self._is(key, pfns)
            self._admission.check_open()
            if same:
                delete(key)
                return value

    @contextmanager
    def _held(self, key: Hashable) -> Generator[Sequence[int]]:
        """Hold the folios of a value, none where the key is absent."""
        node = self._node
        self._machine.sweeper.look(self._values, key)
        pfns = tuple(self._values.pfns(key)) if key in self._values else ()
        for pfn in pfns:
            node.hold(pfn)
        try:
            yield pfns
        finally:
            for pfn in pfns:
                node.release(pfn)

    def _is(self, key: Hashable, pfns: Sequence[int]) -> bool:
        """Return whether a key has just these folios."""
        values = self._values
        self._machine.sweeper.look(values, key)
        return (tuple(values.pfns(key)) if key in values else ()) == pfns

    # -- reading ----------------------------------------------------------------------------------

    async def get(self, keys: Iterable[Hashable]) -> dict[Hashable, bytes]:
        """Return the values of those of these keys that are there; stores are asked for many.

        Args:
            keys: what is not resident, each once.
        """
        found: dict[Hashable, bytes] = {}
        away: dict[Hashable, int] = {}
        for key in keys:
            self._machine.sweeper.look(self._values, key)
            if key not in self._values:
                continue
            pfns = self._values.pfns(key)
            if len(pfns) == 1 and self._mm.is_away(pfns[0]):
                known = self._faults.load_one(pfns[0])
                if known is None:
                    away[key] = pfns[0]
                    if len(away) == MOST_LOADS:
                        found |= await self._load(away)
                        away = {}
                else:
                    found[key] = known
            else:
                found |= await self._one(key)
        found |= await self._load(away)
        self._admission.check_open()  # else a group that has ended meanwhile seems to lack keys
        return found

    async def _load(self, away: dict[Hashable, int]) -> dict[Hashable, bytes]:
        """Read folios that only stores have, with one request to each."""
        found: dict[Hashable, bytes] = {}
        pfns = [pfn for key, pfn in away.items() if self._is(key, (pfn,)) and self._mm.is_away(pfn)]
        promote = self._machine.swapin.may_promote(pfns)
        tickets: dict[int, Ticket] = {
            ticket.load.pfn: ticket for ticket in self._faults.request(pfns, promote=promote) or ()
        }
        with Stall(self._machine, self._group):
            for key, pfn in away.items():
                if pfn in tickets:
                    found[key] = await tickets[pfn].wait()
        for key in away.keys() - found.keys():  # a mailbox was full, or it has moved
            found |= await self._one(key)
        return found

    async def _one(self, key: Hashable) -> dict[Hashable, bytes]:
        """Return the value of a key as a get does, nothing where it is absent by now."""
        try:
            return {key: await self._faults.get(key)}
        except KeyError:
            if key in self._values:
                raise
            return {}
