"""swapoff: everything that a device holds comes back, or it stays on. Mirrors try_to_unuse().

The device takes nothing new from the start. What it holds is read a batch at a time, and each batch
waits for room as a put would: so other values may be compressed, or go to another device, to make
that room. A copy that the swap cache keeps on it is simply dropped.
"""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

import anyio
from anyio.lowlevel import checkpoint

from reclaimactors.cpu.breath import Breath
from reclaimactors.deadline import within
from reclaimactors.errors import BackendError, CorruptData, OutOfMemory
from reclaimactors.topology.swapon import close_backends
from reclaimactors.units import KIB

if TYPE_CHECKING:
    from collections.abc import Sequence

    from reclaimactors.actors.machine import Machine
    from reclaimactors.actors.swapd import Swapd
    from reclaimactors.callers.admission import Admission
    from reclaimactors.mm.folio import MemMap
    from reclaimactors.topology.spec import Topology

__all__ = ["swapoff"]

SCAN = 1024  #: rows of the mem_map looked at in one go: about 60 us
BATCH = 8  #: folios read at a time
BATCH_BYTES = 256 * KIB  #: of them, as much as is read, checked and decompressed in half a slice


async def swapoff(machine: Machine, topology: Topology, admission: Admission, swapd: Swapd) -> None:
    """Bring back what a backing store holds, let go of it and close it.

    Raises:
        OutOfMemory: if there is no room for what it holds; it stays, in service as before.
        BackendError: if it cannot give something back; the same.
        CorruptData: the same.
    """
    await _empty(machine, admission, swapd)
    index = swapd.device.index
    machine.node.swap.remove(index)  # no way back: even if cancelled, it is off
    del machine.swapds[index]
    machine.node.writeback.device_left(index)
    machine.verdicts.notify()
    for actor in swapd.actors:
        machine.starter.remove(actor)
    try:
        # Cancelled or not, its calls have ended before the store is closed, or have had their time.
        with anyio.CancelScope(shield=True), suppress(TimeoutError):
            await within(topology.close_timeout, swapd.end)
    finally:
        await close_backends([swapd], topology.close_timeout)


async def _empty(machine: Machine, admission: Admission, swapd: Swapd) -> None:
    """Empty a device. Whatever ends this early, the device goes on as before, nothing is lost.

    Raises:
        OutOfMemory: if there is no room for what is left on it.
        BackendError: if it cannot give something back.
        CorruptData: the same.
        ClosedResourceError: if the memory closes.
    """
    device = swapd.device
    device.leaving = True  # from here on the swap cache takes nothing of it either
    machine.node.swapcache.shed(device, device.used)
    machine.log.info("swapoff.started", device=device.name, slots=device.used)
    empty = False
    try:
        while device.used:
            found = await _walk(machine, admission, swapd)
            if device.used and not found:  # writes, reads and slots to forget are on their way
                await machine.verdicts.wait()
            machine.check_open()
        empty = True
    except (OutOfMemory, BackendError, CorruptData) as exc:
        machine.log.warning(
            "swapoff.refused", device=device.name, slots=device.used, error=str(exc)
        )
        raise
    finally:
        device.leaving = empty  # a cancelled one stays on, whatever it still holds


async def _walk(machine: Machine, admission: Admission, swapd: Swapd) -> bool:
    """Walk over all folios once; return whether any of them was on the device."""
    mm, index = machine.node.mm, swapd.device.index
    found = False
    for start in range(0, len(mm), SCAN):
        pfns = mm.on(index, start, start + SCAN)
        found = found or bool(pfns)
        for at in range(0, len(pfns), BATCH):
            await _bring_back(machine, admission, swapd, pfns[at : at + BATCH])
        await checkpoint()
    return found


async def _bring_back(
    machine: Machine, admission: Admission, swapd: Swapd, pfns: Sequence[int]
) -> None:
    """Make folios resident that are still on the device, some of one group at a time."""
    node, mm, device = machine.node, machine.node.mm, swapd.device
    limit = min(BATCH_BYTES, machine.pipeline.share_bytes)

    def still_there() -> list[int]:
        return [pfn for pfn in pfns if mm.is_on(pfn, device.index)]

    while left := still_there():
        group = node.group_of(left[0])
        some = _up_to(limit, [pfn for pfn in left if node.group_of(pfn) is group], mm)
        its_own = admission.of(group)
        if its_own is None:  # it is ending, and they are to be its parent's
            await checkpoint()
            continue
        try:
            reserved = await _reserve(machine, its_own, swapd, some)
        except anyio.ClosedResourceError:
            machine.check_open()
            continue  # it has ended meanwhile
        group.memcg.unreserve(reserved)  # the loads reserve the same, in this very step
        waiting = _load_now(swapd, [pfn for pfn in still_there() if pfn in some])
        tickets = swapd.loads.request(waiting, promote=True)
        if tickets is None:
            await swapd.loads.room()
            machine.check_open()
        else:
            for ticket in tickets:
                await ticket.wait()
            await checkpoint()


def _load_now(swapd: Swapd, pfns: Sequence[int]) -> list[int]:
    """Read what the store has at hand, for one breath; return what it must be asked for."""
    breath = Breath()
    waiting: list[int] = []
    for pfn in pfns:
        if breath.due:
            break
        if swapd.loads.load_now(pfn, promote=True) is None:
            waiting.append(pfn)
    return waiting


async def _reserve(
    machine: Machine, admission: Admission, swapd: Swapd, pfns: Sequence[int]
) -> int:
    try:
        return await admission.reserve(lambda: machine.swapin.shortfall(pfns))
    except OutOfMemory as exc:
        name, used = swapd.device.name, swapd.device.used
        raise OutOfMemory(f"swap {name!r} stays on, {used} slots of it are in use: {exc}") from exc


def _up_to(limit: int, pfns: Sequence[int], mm: MemMap) -> list[int]:
    """Return the first folios of at most `limit` bytes in all, at least one if there is one."""
    some: list[int] = []
    for pfn in pfns:
        limit -= mm.bytes_of((pfn,))
        if limit < 0 and some:
            break
        some.append(pfn)
    return some
