"""A backing store comes: swapon. Mirrors the system call of mm/swapfile.c."""

from __future__ import annotations

import errno
from contextlib import suppress
from itertools import count
from typing import TYPE_CHECKING

import anyio
from anyio.lowlevel import checkpoint

from reclaimactors import registry
from reclaimactors.actors.swapd import Swapd
from reclaimactors.backends.file import FileBackend
from reclaimactors.deadline import within
from reclaimactors.errors import BackendError
from reclaimactors.mm.swap_device import SwapDevice

if TYPE_CHECKING:
    from collections.abc import Iterable

    from reclaimactors.actors.machine import Machine
    from reclaimactors.topology.spec import SwapSpec, Topology

__all__ = ["close_backends", "swapon"]


async def swapon(machine: Machine, topology: Topology, spec: SwapSpec) -> str:
    """Open one backing store and give it its swapd; return its name. One call at a time.

    Raises:
        PluginError: if the backend cannot be had.
        BackendError: if it cannot be opened; it is closed again. Or if that very backend is in use
            already, here or in another memory.
        ClosedResourceError: if the memory closes meanwhile; it is closed again.
    """
    machine.check_open()
    node = machine.node
    backend = registry.build("backends", spec.backend)
    index = node.swap.free_index()
    name = _free_name(machine, spec.backend.name, index)
    registry.take(backend, f"swap {name!r} of memory {topology.name!r}")
    device = SwapDevice(index, name, spec.priority, None)
    swapd = Swapd(machine, device, backend, timeout=spec.timeout)
    try:
        await _open_backend(machine, swapd, spec.timeout)
        machine.check_open()
    except BaseException:  # cancelled too: what is open is closed
        swapd.close()
        await close_backends([swapd], topology.close_timeout)
        raise
    slots = topology.swap_bytes(spec) // node.page_size
    own = backend.capacity
    device.capacity = slots if own is None else min(slots, own)
    device.takes_squeezed = backend.compressor == topology.compress.compressor
    device.takes_poor = not device.takes_squeezed or backend.takes_whole
    if backend.rotational:
        swapd.read_ahead()
    machine.swapds[index] = swapd
    node.swap.add(device)
    for actor, run in swapd.actors.items():
        machine.starter.add(actor, run)
    if isinstance(backend, FileBackend) and backend.folder_in_memory:
        machine.log.warning(
            "swapon.in_memory", device=name,
            effect="its folder is a tmpfs: what it holds takes RAM, and is in no budget",
            instead="give `path` a folder on a disk",
        )  # fmt: skip
    return name


def _free_name(machine: Machine, backend: str, index: int) -> str:
    """Return a name that no device has: `x1` number 0 and `x` number 10 would both be `x10`."""
    taken = {swapd.device.name for swapd in machine.swapds.values()}
    names = (f"{backend}{number}" for number in count(index))
    return next(name for name in names if name not in taken)


async def _open_backend(machine: Machine, swapd: Swapd, timeout_s: float) -> None:
    """Open it within so many seconds; it returns early where the memory closes."""
    name = swapd.device.name
    try:
        with anyio.CancelScope() as machine.opening:
            await within(timeout_s, lambda: swapd.backend.open(swapd.page_size))
    except Exception as exc:
        machine.check_open()  # whatever it makes of being cancelled
        if isinstance(exc, BackendError):
            msg = f"swap {name!r} cannot be opened: {exc.strerror or exc}"
            raise BackendError(exc.errno or errno.EIO, msg) from exc
        if isinstance(exc, TimeoutError):
            raise BackendError(f"swap {name!r} did not open within {timeout_s:g} s") from exc
        raise BackendError(f"swap {name!r} cannot be opened: {exc!r}") from exc


async def close_backends(swapds: Iterable[Swapd], within_s: float) -> None:
    """Close backing stores within `within_s` seconds in all, whatever they do."""
    late = list(swapds)

    async def close() -> None:
        async with anyio.create_task_group() as tasks:
            for swapd in tuple(late):
                tasks.start_soon(_close_backend, swapd, late)

    with suppress(TimeoutError), anyio.CancelScope(shield=True):
        await within(within_s, close)
    for swapd in late:
        log, name = swapd.backing.log, swapd.device.name
        log.error("swapd.close_timed_out", device=name, timeout_s=within_s)


async def _close_backend(swapd: Swapd, late: list[Swapd]) -> None:
    log = swapd.backing.log
    try:
        if swapd.backing.ours:
            await swapd.backend.aclose()
    except Exception as exc:  # the others still have to be closed
        log.error("swapd.close_failed", device=swapd.device.name, exc_info=exc)  # noqa: TRY400
    except anyio.get_cancelled_exc_class() as exc:
        await checkpoint()  # goes on up where it is we who are cancelled
        log.error("swapd.close_failed", device=swapd.device.name, exc_info=exc)  # noqa: TRY400
    finally:
        registry.let_go(swapd.backend)
    late.remove(swapd)
