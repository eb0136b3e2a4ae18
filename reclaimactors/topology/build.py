"""From a topology to a machine: plugins, the core, the actors, wired together."""

from __future__ import annotations

import pickle
from typing import TYPE_CHECKING

import anyio

from reclaimactors import registry
from reclaimactors.actors.kcompressd import KcompressdActor
from reclaimactors.actors.kswapd import KswapdActor
from reclaimactors.actors.machine import Machine, Pipeline
from reclaimactors.actors.swapd import Swapd
from reclaimactors.errors import BackendError
from reclaimactors.log import log
from reclaimactors.mm.memcg import Memcg
from reclaimactors.mm.node import Node
from reclaimactors.mm.swap import SwapDevice, SwapDevices
from reclaimactors.mm.watermark import Watermarks
from reclaimactors.mm.zswap import Zswap
from reclaimactors.offload import InlineOffload, ProcessOffload, ThreadOffload
from reclaimactors.units import nr_pages

if TYPE_CHECKING:
    from reclaimactors.abc import Compressor
    from reclaimactors.offload import Offload
    from reclaimactors.registry import PluginRef
    from reclaimactors.topology.spec import SwapSpec, Topology

__all__ = ["build", "close_backends", "try_plugins"]


async def build(topology: Topology) -> Machine:
    """Return a machine whose backing stores are open and whose actors have not started yet.

    Raises:
        PluginError: if a plugin cannot be had.
        BackendError: if a store cannot be opened; those opened before are closed again.
    """
    machine = _machine(topology)
    try:
        for index, spec in enumerate(topology.swap):
            await _swapon(machine, index, spec, topology.swap_bytes(spec))
    except BaseException:  # cancelled too: what is open is closed
        machine.close()
        await close_backends(machine, topology.close_timeout)
        raise
    return machine


def try_plugins(topology: Topology) -> None:
    """Build each plugin that a topology names and let it go; nothing is opened.

    Raises:
        PluginError: if one cannot be had, or refuses its options.
    """
    registry.build("compressors", topology.compress.compressor)
    pages = nr_pages(topology.budget, topology.page_size)
    registry.build("policies", topology.policy, pages=pages)
    for spec in topology.swap:
        registry.build("backends", spec.backend)


def _machine(topology: Topology) -> Machine:
    compress = topology.compress
    workers = compress.nr_workers
    compressor = registry.build("compressors", compress.compressor)
    pipeline = Pipeline(
        budget=topology.budget,
        page_size=topology.page_size,
        fifo=compress.fifo,
        batch=compress.batch,
        in_flight=compress.in_flight,
        workers=workers,
    )
    offload = _offload(topology, compressor, pipeline)
    machine = Machine(
        _node(topology, compressor),
        compressor,
        offload,
        pipeline,
        mode=compress.mode,
        on_full=compress.on_full,
        ordered=compress.ordered,
    )
    if isinstance(offload, ProcessOffload):
        machine.add_actor("workers", offload.run)
    machine.add_actor("kswapd", KswapdActor(machine).run)
    if compress.mode != "inline":
        machine.add_actor(compress.mode, KcompressdActor(machine).run)
    return machine


def _offload(topology: Topology, compressor: Compressor, pipeline: Pipeline) -> Offload:
    compress = topology.compress
    workers = compress.nr_workers
    if compress.offload == "inline":
        return InlineOffload(compressor)
    if compress.offload == "process":
        why_not = _stays_here(compress.compressor)
        if why_not is None:
            pages = nr_pages(topology.max_folio, topology.page_size)
            rows = pipeline.batch_pages + max(pipeline.batch_pages, pages)
            return ProcessOffload(
                compress.compressor,
                compressor,
                workers=workers,
                nice=compress.nice,
                end_s=topology.close_timeout / 4,
                slots=pipeline.in_flight + 1,  # one more for kswapd, which may compress for itself
                area=rows * topology.page_size,
                rows=rows,
            )
        log.warning("offload.refused", reason=why_not, instead="thread")
    return ThreadOffload(compressor, workers=workers)


def _stays_here(ref: PluginRef) -> str | None:
    """Return why no worker process can have this compressor, None where it can."""
    module = type(ref.instance).__module__ if ref.instance is not None else ref.name.split(":")[0]
    if module == "__main__":
        return f"compressor {ref.name!r} is defined in __main__, which a worker cannot import"
    try:
        pickle.dumps(ref)
    except Exception as exc:  # noqa: BLE001 - pickling runs code of the plugin
        return f"compressor {ref.name!r} cannot be pickled: {exc}"
    return None


def _node(topology: Topology, compressor: Compressor) -> Node:
    pages = nr_pages(topology.budget, topology.page_size)
    low, mid, high = topology.watermarks.resolve(topology.budget)
    zswap = topology.zswap
    return Node(
        page_size=topology.page_size,
        memcg=Memcg(topology.budget),
        marks=Watermarks(low, mid, high),
        policy=registry.build("policies", topology.policy, pages=pages),
        zswap=Zswap(
            topology.budget,
            enabled=zswap.enabled,
            shrinker=zswap.shrinker,
            max_pool_percent=zswap.max_pool_percent,
            accept_threshold_percent=zswap.accept_threshold_percent,
        ),
        swap=SwapDevices(),
        compressor=compressor,
    )


async def _swapon(machine: Machine, index: int, spec: SwapSpec, size: int) -> None:
    """Open one backing store and give it its swapd."""
    page_size = machine.node.page_size
    backend = registry.build("backends", spec.backend)
    name = f"{spec.backend.name}{index}"
    device = SwapDevice(index, name, spec.priority, None)
    swapd = Swapd(machine, device, backend, timeout=spec.timeout)
    machine.swapds.append(swapd)
    try:
        with anyio.fail_after(spec.timeout):
            await backend.open(page_size)
    except TimeoutError as exc:
        raise BackendError(f"swap {name!r} did not open within {spec.timeout:g} s") from exc
    except BackendError:
        raise
    except Exception as exc:
        raise BackendError(f"swap {name!r} cannot be opened: {exc!r}") from exc
    slots = size // page_size
    own = getattr(backend, "capacity", None)
    device.capacity = slots if own is None else min(slots, own)
    machine.node.swap.add(device)
    machine.add_actor(f"swapd/{name}", swapd.run)


async def close_backends(machine: Machine, within_s: float) -> None:
    """Close every backing store within `within_s` seconds in all, whatever they do."""
    with anyio.move_on_after(within_s, shield=True) as scope:
        async with anyio.create_task_group() as tasks:
            for swapd in machine.swapds:
                tasks.start_soon(_close_backend, swapd)
    if scope.cancelled_caught:
        log.error("swapd.close_timed_out", timeout_s=within_s)


async def _close_backend(swapd: Swapd) -> None:
    try:
        await swapd.backend.aclose()
    except Exception as exc:  # noqa: BLE001 - the others still have to be closed
        log.error("swapd.close_failed", device=swapd.device.name, exc_info=exc)
