"""The embedding API: `open_memory`, and the `Memory` that it gives.

The synchronous half decides (`put_nowait`, `get_nowait`), the asynchronous half adds the waiting.
The brake is here: a put is admitted first come first served, waits between *low* and *min* for work
done since, reclaims for itself below *min*, and commits in one step after that. A get never waits
for room. What the core does with a folio is in `reclaimactors.mm`.
"""

from __future__ import annotations

from contextlib import asynccontextmanager
from threading import get_ident
from time import perf_counter
from typing import TYPE_CHECKING, Any

import anyio
import attrs
from anyio.lowlevel import checkpoint

from reclaimactors.advice import Advice
from reclaimactors.errors import OutOfMemory
from reclaimactors.log import log
from reclaimactors.mm.batch import Reclaimer
from reclaimactors.mm.folio import DEVICE, RESIDENT, WRITEBACK
from reclaimactors.mm.memcg import FOLIO_OVERHEAD
from reclaimactors.mm.swapout import SWAP_CLUSTER_MAX
from reclaimactors.mm.vmscan import MAX_RECLAIM_RETRIES
from reclaimactors.topology import resolve
from reclaimactors.topology.build import build, close_backends
from reclaimactors.units import format_size

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Hashable, Mapping, Sequence
    from types import TracebackType

    from anyio.abc import TaskGroup

    from reclaimactors.actors.machine import Machine
    from reclaimactors.actors.swapd import Swapd, Ticket
    from reclaimactors.mm.psi import Pressure
    from reclaimactors.topology import Topology

__all__ = ["Memory", "Usage", "open_memory"]

BUDGET_CALLS = 200  #: calls of the fast paths between two checkpoints
BUDGET_BYTES = 64 * 1024  #: or bytes copied or decompressed
_BYTES_PER_CALL = BUDGET_BYTES // BUDGET_CALLS


@attrs.frozen
class Usage:
    """Where the budget is, in bytes: ``budget == resident + compressed + overhead + free``."""

    budget: int
    resident: int  #: source bytes, reservations included
    in_flight: int  #: the part of `resident` on its way out
    compressed: int  #: blobs in the pool, and what in-process stores hold
    overhead: int  #: a constant per live key and folio
    free: int
    swapped: int  #: on swap devices, outside the budget
    staging: int  #: fixed shared buffers of workers, outside the budget


class Memory:
    """Values under keys, within a budget of bytes. Made by `open_memory`; not persistent.

    It belongs to the event loop and thread that opened it. Every call raises RuntimeError in
    another thread and `anyio.ClosedResourceError` after close.
    """

    def __init__(self, topology: Topology, machine: Machine) -> None:
        self._topology = topology
        self._machine = machine
        self._node = node = machine.node
        self._thread = get_ident()
        self._closed = False
        self._turn = anyio.Lock(fast_acquire=True)  # puts below min, first come first served
        self._credit = BUDGET_CALLS
        # The path of a hit looks at these directly.
        self._small = node.small
        self._state = node.mm.state
        self._data = node.mm.data
        self._access = node.policy.access

    # -- reading ----------------------------------------------------------------------------------

    async def get(self, key: Hashable) -> bytes:
        """Return the value of `key`; it never waits for room.

        A resident value of one folio is the very object that is held. Once in about 200 calls, or
        64 KiB decompressed, it yields to the event loop.

        Raises:
            KeyError: if the key is absent.
            CorruptData: if what a store or the pool gave back is not what it was given.
            BackendError: if the store that has the only copy cannot read it; it is tried again by
                the next get.
        """
        if self._closed or get_ident() != self._thread:
            self._refuse()
        self._credit -= 1
        if self._credit < 0:
            await self._yield()
        pfn = self._small.get(key)
        if pfn is None or self._state[pfn] != RESIDENT:
            return await self._get(key)
        self._access(pfn)
        return self._data[pfn]  # type: ignore[return-value] # a RESIDENT folio has its bytes

    def get_nowait(self, key: Hashable) -> bytes:
        """Return the value of `key` if it is in memory, compressed or not.

        Raises:
            KeyError: if the key is absent.
            WouldBlock: if only a store has it.
            CorruptData: if a blob of the pool is damaged.
        """
        if self._closed or get_ident() != self._thread:
            self._refuse()
        pfn = self._small.get(key)
        if pfn is not None and self._state[pfn] == RESIDENT:
            self._access(pfn)
            return self._data[pfn]  # type: ignore[return-value] # a RESIDENT folio has its bytes
        pfns = self._node.pfns(key)
        if any(self._state[pfn] == DEVICE for pfn in pfns):
            raise anyio.WouldBlock
        return _join(self._fault(pfns, promote=self._machine.swapin.may_promote(pfns)))

    async def _get(self, key: Hashable) -> bytes:
        """The path of a fault: from the pool at once, from a store through its swapd."""
        while True:
            pfns = self._node.pfns(key)
            # All or nothing: what is asked for is reserved before the first load goes out.
            promote = self._machine.swapin.may_promote(pfns)
            tickets = self._request(pfns, promote=promote)
            if tickets is None:
                await self._wait(self._full_swapd(pfns).room_for_loads)
                continue
            parts = self._fault(pfns, promote=promote)
            if tickets:
                with _Stalled(self._machine):
                    for ticket in tickets:
                        parts[pfns.index(ticket.load.pfn)] = await ticket.wait()
            value = _join(parts)
            self._credit -= len(value) // _BYTES_PER_CALL
            return value

    def _request(self, pfns: Sequence[int], *, promote: bool) -> list[Ticket] | None:
        """Ask the stores for the folios that only they have; None where a mailbox is full."""
        away = [pfn for pfn in pfns if self._state[pfn] == DEVICE]
        if not away:
            return []
        machine = self._machine
        tickets: list[Ticket] = []
        for swapd in machine.swapds:
            mine = [pfn for pfn in away if self._node.mm.device[pfn] == swapd.device.index]
            if mine:
                got = swapd.request(mine, promote=promote)
                if got is None:
                    return None
                tickets += got
        return tickets

    def _full_swapd(self, pfns: Sequence[int]) -> Swapd:
        """Return the swapd whose mailbox for loads was full."""
        swapds, device = self._machine.swapds, self._node.mm.device
        wanted = [swapds[device[pfn]] for pfn in pfns if self._state[pfn] == DEVICE]
        return next((swapd for swapd in wanted if swapd.loads_full), wanted[0])

    def _fault(self, pfns: Sequence[int], *, promote: bool) -> list[bytes]:
        """Return the bytes of each folio, b"" for those that a store must give."""
        machine = self._machine
        started = perf_counter()
        parts = [machine.swapin.fault(pfn, promote=promote) or b"" for pfn in pfns]
        machine.psi.stall_full(started, perf_counter())
        return parts

    def __contains__(self, key: Hashable) -> bool:
        return key in self._node

    def __len__(self) -> int:
        return len(self._node.small) + len(self._node.large)

    def keys(self) -> list[Hashable]:
        """Return a snapshot of the keys."""
        self._check()
        return [*self._node.small, *self._node.large]

    # -- writing ----------------------------------------------------------------------------------

    async def put(self, key: Hashable, data: bytes | bytearray | memoryview) -> None:
        """Make `data` the value of `key`.

        With free memory at or above *low* it does not wait. Below, it waits for memory to be freed
        in proportion; below *min* it reclaims for itself first. The old value is readable until the
        new one replaces it in one step; a cancelled put leaves the old value.

        Raises:
            OutOfMemory: if the value can never fit, at once; or if reclaim freed nothing for it.
            TypeError: if `data` is not bytes-like.
        """
        self._check()
        if self._credit < 0:
            await self._yield()  # before anything is changed: a cancelled put is no put
        parts = self._split(data)
        size = sum(map(len, parts))
        self._credit -= 1 + size // _BYTES_PER_CALL
        node = self._node
        if not self._turn.locked():
            need = node.need(key, size, len(parts))
            if node.memcg.free - need >= node.marks.low:
                node.commit(key, parts, 0)
                return
        self._must_fit(key, size, len(parts))
        await self._put(key, parts, size)

    async def _put(self, key: Hashable, parts: list[bytes], size: int) -> None:
        node = self._node
        reserved = 0
        braked = False

        def short() -> int:
            return node.need(key, size, len(parts)) - reserved

        try:
            while short() > 0 or not braked:
                reserved += await self._admit(short)
                if not braked:
                    braked = True
                    await self._brake(node.marks.brake(node.memcg.free, size))
            node.commit(key, parts, reserved)
            reserved = 0
        finally:
            node.memcg.unreserve(reserved)

    def put_nowait(self, key: Hashable, data: bytes | bytearray | memoryview) -> None:
        """Make `data` the value of `key` without waiting; below *min* it compresses here and now.

        Raises:
            WouldBlock: if room is being made, or a store could make it, or puts wait already.
            OutOfMemory: as `put`.
            TypeError: if `data` is not bytes-like.
        """
        self._check()
        parts = self._split(data)
        size = sum(map(len, parts))
        node, machine = self._node, self._machine
        self._must_fit(key, size, len(parts))
        if self._turn.locked():
            raise anyio.WouldBlock
        stalled = False
        fruitless = 0
        while True:
            need = node.need(key, size, len(parts))
            if not need or node.memcg.free - need >= node.marks.min:
                break
            if not stalled:
                stalled = True
                node.vmstat["allocstall_normal"] += 1
                machine.wake_kswapd()
            if machine.reclaim_inline(SWAP_CLUSTER_MAX, Reclaimer.DIRECT, ram_only=True):
                fruitless = 0
                continue
            fruitless += 1
            if fruitless >= MAX_RECLAIM_RETRIES:
                if not machine.idle or node.swap.has_room:
                    machine.wake_kswapd()
                    raise anyio.WouldBlock
                raise self._out_of_memory(size, need)
        node.commit(key, parts, 0)
        if node.memcg.free < node.marks.low:
            machine.wake_kswapd()

    async def delete(self, key: Hashable) -> None:
        """Forget `key` and its value, wherever it is.

        Raises:
            KeyError: if the key is absent.
        """
        self._check()
        self._credit -= 1
        if self._credit < 0:
            await self._yield()
        self._node.delete(key)

    def _split(self, data: bytes | bytearray | memoryview) -> list[bytes]:
        """Return the folios of a value: the caller's own object if it is bytes and fits in one."""
        if not isinstance(data, (bytes, bytearray, memoryview)):  # pyright: ignore[reportUnnecessaryIsInstance] # callers are not always typed
            msg = f"a value is bytes, bytearray or memoryview, not {type(data).__name__}"
            raise TypeError(msg)
        size = data.nbytes if isinstance(data, memoryview) else len(data)
        limit = self._topology.max_folio
        if size <= limit:
            return [data if type(data) is bytes else bytes(data)]
        view = memoryview(data).cast("B") if isinstance(data, memoryview) else memoryview(data)
        return [bytes(view[start : start + limit]) for start in range(0, size, limit)]

    # -- room -------------------------------------------------------------------------------------

    def _must_fit(self, key: Hashable, size: int, nr_folios: int) -> None:
        if not self._node.fits(key, size, nr_folios):
            raise self._out_of_memory(size, self._node.need(key, size, nr_folios))

    def _out_of_memory(self, size: int, need: int) -> OutOfMemory:
        node = self._node
        memcg = node.memcg
        msg = (
            f"a value of {format_size(size)} does not fit: {format_size(need)} more is needed, "
            f"{format_size(memcg.free)} of the budget of {format_size(memcg.budget)} is free "
            f"({format_size(node.marks.min)} stays free, {format_size(memcg.pinned)} is pinned, "
            f"{format_size(memcg.overhead)} is overhead of {len(self)} keys); "
            "delete keys, raise the budget or add swap"
        )
        return OutOfMemory(msg)

    async def _admit(self, need_of: Callable[[], int]) -> int:
        """Reserve what `need_of` says, first come first served; return how much that was."""
        async with self._turn:
            stall: _Stalled | None = None
            fruitless = 0
            try:
                while True:
                    self._check()
                    need = max(0, need_of())
                    memcg, marks = self._node.memcg, self._node.marks
                    if not need or memcg.free - need >= marks.min:
                        memcg.reserve(need)
                        return need
                    if stall is None:
                        stall = _Stalled(self._machine)
                        stall.__enter__()
                        self._node.vmstat["allocstall_normal"] += 1
                    fruitless = await self._direct_reclaim(need, fruitless)
            finally:
                if stall is not None:
                    stall.__exit__()

    async def _direct_reclaim(self, need: int, fruitless: int) -> int:
        """One round below min; return how many rounds in a row freed nothing.

        Raises:
            OutOfMemory: after MAX_RECLAIM_RETRIES such rounds, with nothing in flight.
        """
        machine, node = self._machine, self._node
        machine.revive()
        machine.wake_kswapd()
        missing = need - (node.memcg.free - node.marks.min)
        if node.memcg.in_flight * machine.swapout.gain >= missing:
            await self._wait(machine.verdicts.wait)
            return fruitless
        if machine.reclaim_inline(SWAP_CLUSTER_MAX, Reclaimer.DIRECT):
            fruitless = 0
        elif not machine.idle:
            await self._wait(machine.verdicts.wait)
            return fruitless
        else:
            fruitless += 1
            if fruitless >= MAX_RECLAIM_RETRIES:
                raise self._out_of_memory(need, need)
        await checkpoint()
        self._check()
        return fruitless

    async def _brake(self, owed: int) -> None:
        """Wait until `owed` bytes more were freed, or until nobody is at work to free them."""
        machine, memcg = self._machine, self._node.memcg
        if memcg.free < self._node.marks.low:
            machine.wake_kswapd()
        target = memcg.freed_total + owed
        if not owed:
            return
        with _Stalled(machine):
            while memcg.freed_total < target and not machine.kswapd.throttled:
                if not machine.awake and machine.idle:
                    return
                await self._wait(machine.verdicts.wait)

    async def _wait(self, something: Callable[[], Any]) -> None:
        await something()
        self._check()

    # -- pins, advice, proactive reclaim ------------------------------------------------------------

    @asynccontextmanager
    async def pin(self, key: Hashable) -> AsyncIterator[memoryview]:
        """Keep the value of `key` resident: a read-only contiguous view, valid until the exit.

        A value of several folios is pinned as a joined copy, charged to the budget. The key may be
        overwritten or deleted meanwhile; the view keeps the old value.

        Raises:
            KeyError: if the key is absent.
            OutOfMemory: as `put`, if it does not fit beside what is pinned.
        """
        self._check()
        pfns = self._node.pfns(key)
        if len(pfns) > 1:
            async with self._pin_copy(key) as view:
                yield view
            return
        pfn = await self._pin_folio(key)
        try:
            yield memoryview(self._data[pfn] or b"").toreadonly()
        finally:
            self._node.unpin(pfn)

    async def _pin_folio(self, key: Hashable) -> int:
        """Make a value of one folio resident, and pin it; return its pfn."""
        node, machine = self._node, self._machine
        while True:
            pfns = node.pfns(key)
            if not node.pins.get(pfns[0]):
                self._must_pin(node.mm.size[pfns[0]] + FOLIO_OVERHEAD)
            reserved = await self._admit(lambda: machine.swapin.shortfall(node.pfns(key)))
            if node.pfns(key) != pfns:  # it was overwritten while we waited
                node.memcg.unreserve(reserved)
                continue
            break
        pfn = pfns[0]
        node.pin(pfn)
        try:
            while self._state[pfn] == DEVICE:
                node.memcg.unreserve(reserved)
                reserved = 0
                swapd = machine.swapds[node.mm.device[pfn]]
                tickets = swapd.request([pfn], promote=node.memcg.free >= node.mm.size[pfn])
                if tickets is None:
                    await self._wait(swapd.room_for_loads)
                    continue
                await tickets[0].wait()
            if self._state[pfn] in {RESIDENT, WRITEBACK} or not self._data[pfn]:
                node.memcg.unreserve(reserved)
                reserved = 0
            machine.swapin.fault(pfn, promote=True, reserved=reserved)
            reserved = 0
        except BaseException:
            node.memcg.unreserve(reserved)
            node.unpin(pfn)
            raise
        return pfn

    @asynccontextmanager
    async def _pin_copy(self, key: Hashable) -> AsyncIterator[memoryview]:
        memcg = self._node.memcg
        size = sum(self._node.mm.size[pfn] for pfn in self._node.pfns(key))
        self._must_pin(size)
        reserved = await self._admit(lambda: size)
        memcg.pinned += reserved
        try:
            value = await self.get(key)
            yield memoryview(value).toreadonly()
        finally:
            memcg.pinned -= reserved
            memcg.unreserve(reserved)

    def _must_pin(self, size: int) -> None:
        memcg = self._node.memcg
        if size + memcg.pinned + memcg.overhead > memcg.budget - self._node.marks.min:
            raise self._out_of_memory(size, size)

    async def reclaim(self, nbytes: int) -> int:
        """Reclaim proactively, as writing to a cgroup's memory.reclaim; return the bytes freed.

        What counts is really freed: folio sizes less the blobs that are kept.
        """
        self._check()
        machine = self._machine
        freed = machine.swapout.freed_by
        start = freed[Reclaimer.PROACTIVE]
        fruitless = 0
        while freed[Reclaimer.PROACTIVE] - start < nbytes and fruitless < MAX_RECLAIM_RETRIES:
            left = nbytes - (freed[Reclaimer.PROACTIVE] - start)
            expected = max(1.0, left / max(machine.swapout.gain, 0.05))
            if machine.reclaim_inline(
                SWAP_CLUSTER_MAX, Reclaimer.PROACTIVE, max_bytes=int(expected)
            ):
                fruitless = 0
            elif not machine.idle:
                await self._wait(machine.verdicts.wait)
            else:
                fruitless += 1
            await checkpoint()
            self._check()
        return freed[Reclaimer.PROACTIVE] - start

    async def drain(self) -> None:
        """Wait until nothing is in flight."""
        self._check()
        await checkpoint()
        while not self._machine.idle:
            await self._wait(self._machine.verdicts.wait)

    def advise(self, key: Hashable, advice: Advice) -> None:
        """Say what is coming for a value, as madvise does; it never waits.

        COLD makes it the next to be reclaimed, PAGEOUT has kswapd reclaim it now, WILLNEED
        promotes it as `get` does.

        Raises:
            KeyError: if the key is absent.
        """
        self._check()
        pfns = self._node.pfns(key)
        machine = self._machine
        if advice is Advice.WILLNEED:
            if machine.swapin.may_promote(pfns):
                self._request(pfns, promote=True)
                self._fault(pfns, promote=True)
            return
        resident = [pfn for pfn in pfns if self._state[pfn] == RESIDENT]
        deactivate = getattr(self._node.policy, "deactivate", None)
        if deactivate is not None:
            for pfn in reversed(resident):
                deactivate(pfn)
        if advice is Advice.PAGEOUT and resident:
            machine.kswapd.request(sum(self._node.mm.size[pfn] for pfn in resident))
            machine.wake_kswapd()

    # -- gauges -----------------------------------------------------------------------------------

    @property
    def vmstat(self) -> Mapping[str, int]:
        """The kernel's counters, a read-only view that stays current."""
        return self._node.vmstat.view

    def pressure(self) -> Pressure:
        """Return PSI: the share of time that some caller, or the whole loop, was stalled."""
        return self._machine.psi.snapshot(perf_counter())

    def usage(self) -> Usage:
        """Return where the budget is, in bytes."""
        memcg = self._node.memcg
        return Usage(
            budget=memcg.budget,
            resident=memcg.resident,
            in_flight=memcg.in_flight,
            compressed=memcg.compressed,
            overhead=memcg.overhead,
            free=memcg.free,
            swapped=self._node.swapped,
            staging=0,
        )

    def __repr__(self) -> str:
        used = self._node.memcg.budget - self._node.memcg.free
        held = f"{format_size(used)} of {format_size(self._node.memcg.budget)}"
        return f"<Memory {self._topology.name!r}: {len(self)} keys, {held}>"

    # -- guards -----------------------------------------------------------------------------------

    def _check(self) -> None:
        if self._closed or get_ident() != self._thread:
            self._refuse()

    def _refuse(self) -> None:
        if get_ident() != self._thread:
            msg = "a Memory belongs to the thread that opened it; use anyio.from_thread.run there"
            raise RuntimeError(msg)
        raise anyio.ClosedResourceError

    async def _yield(self) -> None:
        self._credit = BUDGET_CALLS
        await checkpoint()
        self._check()

    def _close(self) -> None:
        """Refuse new calls from now on; the actors are told by cancellation."""
        self._closed = True
        self._machine.closing = True


class _Stalled:
    """A caller waits: that is PSI's *some*."""

    def __init__(self, machine: Machine) -> None:
        self._psi = machine.psi

    def __enter__(self) -> None:
        self._psi.enter_some(perf_counter())

    def __exit__(self, *_: object) -> None:
        self._psi.leave_some(perf_counter())


def _join(parts: list[bytes]) -> bytes:
    return parts[0] if len(parts) == 1 else b"".join(parts)


class _Opening:
    """The context manager of `open_memory`: one task group, closed within `close_timeout`."""

    def __init__(self, topology: Topology) -> None:
        self._topology = topology
        self._memory: Memory | None = None
        self._tasks: TaskGroup | None = None

    async def __aenter__(self) -> Memory:
        machine = await build(self._topology)
        self._machine = machine
        self._tasks = anyio.create_task_group()
        await self._tasks.__aenter__()
        machine.attach(self._tasks)
        self._memory = Memory(self._topology, machine)
        return self._memory

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> bool | None:
        assert self._memory is not None
        assert self._tasks is not None
        self._memory._close()  # noqa: SLF001 - the other half of this class
        self._tasks.cancel_scope.cancel()
        try:
            return await self._tasks.__aexit__(kind, error, trace)
        except BaseExceptionGroup as group:
            crash = _only(group, error)
            if crash is None:
                return False  # the body's own error goes on as it is, not in a group
            log.error("memory.crashed", error=str(crash))
            raise crash from crash.__cause__
        finally:
            self._machine.close()
            await close_backends(self._machine, self._topology.close_timeout)


def _only(group: BaseExceptionGroup[BaseException], body: BaseException | None) -> Any:
    """Return the crash of an actor that a task group ended with; None if the body raised."""
    _, rest = group.split(lambda exc: exc is body)
    if rest is None:
        return None
    crash: BaseException = rest
    while isinstance(crash, BaseExceptionGroup) and len(crash.exceptions) == 1:
        crash = crash.exceptions[0]
    return crash


def open_memory(
    topology: str | Topology = "kcompressd",
    *,
    budget: int | str | None = None,
    **overrides: Any,
) -> _Opening:
    """Return an async context manager that gives a `Memory`.

    Args:
        topology: a built-in name, a path to a TOML file, or a `Topology`.
        budget: bytes, or a string like "64MiB", for everything that is held in this process.
        overrides: the TOML's keys: a mapping merges into its table, a list replaces.

    Raises:
        TopologyError: if a key or value is wrong; it names the key, what was seen and allowed.
        BackendError: on entering, if a backing store cannot be opened.
        PluginError: on entering, if a plugin cannot be had.
    """
    return _Opening(resolve(topology, budget=budget, **overrides))


