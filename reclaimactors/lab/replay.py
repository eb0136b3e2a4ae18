"""A trace replayed at several budgets, and which of these is the right size.

Requests are made one after the other, as fast as they are served. A trace has no values: each is
cut from the lab's input, as long as the trace says, and compared when it is read. A get of a key
that is absent puts it, as a program does that keeps a cache; where the trace says that it found
nothing (size 0), it stays absent.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import attrs

from reclaimactors.cpu import clock
from reclaimactors.errors import OutOfMemory, ReclaimError
from reclaimactors.lab.histogram import Histogram
from reclaimactors.lab.traces import DELETE, PUT
from reclaimactors.mm.memcg import FOLIO_OVERHEAD, KEY_OVERHEAD
from reclaimactors.opening import open_memory
from reclaimactors.units import KIB, nr_pages

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from reclaimactors.lab.data import Input
    from reclaimactors.lab.traces import Trace
    from reclaimactors.memory import Memory
    from reclaimactors.topology import Topology

__all__ = ["Replayed", "budgets_for", "need_of", "replay", "right_size"]

SHARES = (0.15, 0.25, 0.4, 0.55, 0.7, 0.85, 1.0, 1.2)  # of what all values need, that are tried
LEAST_BUDGET = 256 * KIB
STORE_SHARE = 0.01  #: with the right size at most so many of the reads ask a store
STALL_SHARE = 0.01  #: and callers wait for memory for at most this share of the time
_TELL = 1000  # requests between two reports of progress


@attrs.frozen
class Replayed:
    """What one budget did with a trace.

    Attributes:
        budget: bytes.
        seconds: that it took.
        requests: of the trace.
        reads: gets of keys that were there.
        hits: the share of these, 0 to 1, whose value was in memory as it is.
        from_pool, from_store: the shares that were decompressed, and that a store was asked for.
        fault_p50_us, fault_p99_us: microseconds that those took.
        waited: puts that waited for room.
        stalled: the share of the time in which somebody waited for memory (PSI some): of the time
            that the trace took, where it says that, and otherwise of `seconds`.
        refused: puts that did not fit (OutOfMemory).
    """

    budget: int
    seconds: float
    requests: int
    reads: int
    hits: float
    from_pool: float
    from_store: float
    fault_p50_us: float
    fault_p99_us: float
    waited: int
    stalled: float
    refused: int


def need_of(trace: Trace, max_folio: int) -> int:
    """Return the bytes of all values that are there at once, at most, with what keys cost."""
    held: dict[int, int] = {}
    total = most = 0
    for op, key, size in trace:
        old = held.pop(key, 0)
        total -= old
        if op != DELETE and (size or old):
            cost = size + KEY_OVERHEAD + nr_pages(size, max_folio) * FOLIO_OVERHEAD
            held[key] = cost if op == PUT or not old else old
            total += held[key]
            most = max(most, total)
    return most


def budgets_for(trace: Trace, topology: Topology) -> list[int]:
    """Return the budgets that are tried where nobody names any: from far too small to ample."""
    need = need_of(trace, topology.max_folio)
    least = max(LEAST_BUDGET, 2 * max(trace.sizes))
    return sorted({max(least, int(share * need) // KIB * KIB) for share in SHARES})


def right_size(tried: Sequence[Replayed]) -> Replayed | None:
    """Return the smallest budget with which hardly anybody waits, None where none is enough."""
    for each in sorted(tried, key=lambda each: each.budget):
        waits = each.from_store > STORE_SHARE or each.stalled > STALL_SHARE
        if not (waits or each.refused):
            return each
    return None


async def replay(
    trace: Trace,
    topology: Topology,
    source: Input,
    on_step: Callable[[int, int], None] = lambda _done, _total: None,
) -> Replayed:
    """Replay a trace on a fresh memory of a topology.

    Args:
        trace: what is asked for.
        topology: with its budget.
        source: what values are cut from.
        on_step: called with (requests done, requests in all).

    Raises:
        ReclaimError: if a value comes back as another, or the memory cannot be opened.
    """
    async with open_memory(topology) as memory:
        replaying = _Replaying(memory, source)
        started = clock.perf_counter()
        for nr, (op, key, size) in enumerate(trace):
            if nr % _TELL == 0:
                on_step(nr, len(trace))
            await replaying.request(op, key, size)
        return replaying.result(trace, clock.perf_counter() - started)
    raise AssertionError("a memory that is left without an error has served its block")


def _share(part: int, whole: int) -> float:
    return round(part / whole, 4) if whole else 1.0


class _Replaying:
    """One memory under a trace."""

    def __init__(self, memory: Memory, source: Input) -> None:
        self._memory = memory
        self._vmstat = memory.vmstat
        self._data, self._sizes = source.data, dict[int, int]()
        self.hits = self.pool = self.store = self.waited = self.refused = 0
        self.faults = Histogram()
        memory.on_stall = self._stalled

    def _stalled(self, _seconds: float) -> None:
        self.waited += 1

    def result(self, trace: Trace, seconds: float) -> Replayed:
        """Return what a trace amounts to that took so many seconds."""
        reads = self.hits + self.pool + self.store
        stalled_s = self._memory.pressure().some.total / 1e6
        return Replayed(
            budget=self._memory.usage().budget,
            seconds=round(seconds, 3),
            requests=len(trace),
            reads=reads,
            hits=_share(self.hits, reads),
            from_pool=_share(self.pool, reads),
            from_store=_share(self.store, reads),
            fault_p50_us=round(self.faults.quantile(0.5) * 1e6, 1),
            fault_p99_us=round(self.faults.quantile(0.99) * 1e6, 1),
            waited=self.waited,
            stalled=round(stalled_s / max(trace.seconds, seconds), 4),
            refused=self.refused,
        )

    async def request(self, op: int, key: int, size: int) -> None:
        """Do one."""
        if op == DELETE:
            await self._memory.pop(key, None)
            self._sizes.pop(key, None)
        elif op == PUT:
            await self._put(key, size)
        elif key in self._sizes:
            await self._get(key)
        elif size:
            await self._put(key, size)

    async def _put(self, key: int, size: int) -> None:
        try:
            await self._memory.put(key, self._value(key, size))
        except OutOfMemory:
            self.refused += 1
        else:
            self._sizes[key] = size

    async def _get(self, key: int) -> None:
        vmstat = self._vmstat
        faults, from_store = vmstat["pgfault"], vmstat["pgmajfault"]
        started = clock.perf_counter()
        value: Any = await self._memory.get(key)
        if vmstat["pgfault"] == faults:
            self.hits += 1
        else:
            self.faults.add(clock.perf_counter() - started)
            if vmstat["pgmajfault"] == from_store:
                self.pool += 1
            else:
                self.store += 1
        if value != self._value(key, self._sizes[key]):
            raise ReclaimError(f"key {key} of the trace does not hold the bytes of its last put")

    def _value(self, key: int, size: int) -> bytes:
        """Return what a key holds: bytes of the input from a place of its own on."""
        data = self._data
        at = key * 4099 * 64 % len(data)
        value = data[at : at + size]
        while len(value) < size:
            value += data[: size - len(value)]
        return value
