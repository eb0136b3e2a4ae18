"""From a topology to a machine: plugins, the core, the actors, wired together."""

from __future__ import annotations

import pickle
from typing import TYPE_CHECKING

from reclaimactors import registry
from reclaimactors.actors.kcompressd import KcompressdActor
from reclaimactors.actors.kswapd import KswapdActor
from reclaimactors.actors.machine import Machine
from reclaimactors.cpu.loop_thread import cpu_of
from reclaimactors.log import log
from reclaimactors.loops import current_loop
from reclaimactors.mm.ending import undo
from reclaimactors.mm.memcg import Memcg
from reclaimactors.mm.node import Node
from reclaimactors.mm.swap import SwapDevices
from reclaimactors.mm.vmstat import MAX_ORDER, Vmstat, order_of
from reclaimactors.mm.zswap import Zswap
from reclaimactors.offload.inline import InlineOffload
from reclaimactors.offload.plugged import PluggedOffload
from reclaimactors.offload.process import ProcessOffload
from reclaimactors.offload.thread import ThreadOffload
from reclaimactors.registry import PluginRef
from reclaimactors.threads import lend
from reclaimactors.topology import checks
from reclaimactors.topology.fit import fit
from reclaimactors.topology.memory_limit import too_large
from reclaimactors.topology.spec import OFFLOADS
from reclaimactors.topology.swapon import close_backends, swapon
from reclaimactors.units import format_size, nr_pages

if TYPE_CHECKING:
    from reclaimactors.abc import Compressor, Offload, Policy
    from reclaimactors.actors.pipeline import Pipeline
    from reclaimactors.cpu.loop_thread import Cpu
    from reclaimactors.log import Log
    from reclaimactors.mm.watermark import Watermarks
    from reclaimactors.offload import Squeezer
    from reclaimactors.topology.spec import Topology

__all__ = ["build", "preload", "try_plugins"]


async def build(topology: Topology) -> Machine:
    """Return a machine whose backing stores are open and whose actors have not started yet.

    Raises:
        PluginError: if a plugin cannot be had.
        BackendError: if a store cannot be opened; those opened before are closed again.
    """
    machine = _machine(topology)
    why = too_large(topology.budget)
    if why:
        machine.log.warning(
            "memory.budget_too_large", budget=format_size(topology.budget), limit=why,
            hint="the system may kill this process before its budget is full",
        )  # fmt: skip
    try:
        for i, spec in enumerate(topology.swap):
            with checks.within(f"swap[{i}].backend"):
                await swapon(machine, topology, spec)
        if topology.policy.instance is not None:
            with checks.within("policy"):
                registry.use_up(topology.policy.instance)
    except BaseException as exc:  # cancelled too: what is open is closed
        undo(exc, machine.close)
        await close_backends(machine.swapds.values(), topology.close_timeout)
        raise
    return machine


def preload(topology: Topology) -> None:
    """Import the plugins that a topology names; what is wrong with one is for `build` to say."""
    registry.preload("compressors", topology.compress.compressor)
    registry.preload("policies", topology.policy)
    for spec in topology.swap:
        registry.preload("backends", spec.backend)
    if topology.compress.offload not in OFFLOADS:
        registry.preload("offloads", PluginRef(topology.compress.offload))


def try_plugins(topology: Topology) -> None:
    """Build each plugin that a topology names and let it go; nothing is opened.

    Raises:
        PluginError: if one cannot be had, or refuses its options.
    """
    compressor = _compressor(topology)
    if topology.compress.offload not in OFFLOADS:
        _plugin_offload(topology, compressor)
    _policy(topology)
    for i, spec in enumerate(topology.swap):
        with checks.within(f"swap[{i}].backend"):
            registry.build("backends", spec.backend)


def _compressor(topology: Topology) -> Compressor:
    with checks.within("compress.compressor"):
        return registry.build("compressors", topology.compress.compressor)


def _plugin_offload(topology: Topology, compressor: Compressor) -> Offload:
    compress = topology.compress
    with checks.within("compress.offload"):
        return registry.build(
            "offloads",
            PluginRef(compress.offload),
            compressor=compressor,
            workers=compress.nr_workers,
            nice=compress.nice,
        )


def _policy(topology: Topology) -> Policy:
    pages = nr_pages(topology.budget, topology.page_size)
    with checks.within("policy"):
        return registry.build("policies", topology.policy, pages=pages)


def _machine(topology: Topology) -> Machine:
    compress = topology.compress
    compressor = _compressor(topology)
    marks, pipeline = fit(topology)
    node = _node(topology, compressor, marks)
    its_log = log.bind(memory=topology.name, nid=0)
    cpu = cpu_of(topology.page_size, current_loop().native)
    offload = _offload(topology, compressor, pipeline, node, cpu=cpu, log=its_log)
    machine = Machine(
        node,
        offload,
        pipeline,
        mode=compress.mode,
        on_full=compress.on_full,
        ordered=compress.ordered,
        cpu=cpu,
        log=its_log,
    )
    if isinstance(offload, (ProcessOffload, PluggedOffload)):
        machine.starter.add("workers", offload.run)
    machine.starter.add("lender", lend)
    machine.starter.add("kswapd", KswapdActor(machine).run)
    if compress.mode != "inline":
        machine.starter.add(compress.mode, KcompressdActor(machine).run)
    return machine


def _offload(
    topology: Topology,
    compressor: Compressor,
    pipeline: Pipeline,
    node: Node,
    *,
    cpu: Cpu,
    log: Log,
) -> Squeezer:
    compress = topology.compress
    workers = compress.nr_workers
    if compress.offload == "inline":
        return InlineOffload(compressor, cpu=cpu)
    if compress.offload not in OFFLOADS:
        return PluggedOffload(
            _plugin_offload(topology, compressor),
            compressor,
            name=compress.offload,
            workers=workers,
            end_s=topology.close_timeout / 4,
            cpu=cpu,
            log=log,
        )
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
                vmstat=node.vmstat,
                lethal=node.lethal,
                cpu=cpu,
                log=log,
            )
        log.warning("offload.refused", reason=why_not, instead="thread")
        return ThreadOffload(compressor, workers=workers, cpu=cpu, log=log, why=why_not)
    return ThreadOffload(compressor, workers=workers, cpu=cpu, log=log)


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


def _node(topology: Topology, compressor: Compressor, marks: Watermarks) -> Node:
    zswap = topology.zswap
    most_pages = nr_pages(topology.max_folio, topology.page_size)
    return Node(
        page_size=topology.page_size,
        memcg=Memcg(topology.budget),
        marks=marks,
        policy=_policy(topology),
        zswap=Zswap(
            topology.budget,
            enabled=zswap.enabled,
            shrinker=zswap.shrinker,
            max_pool_percent=zswap.max_pool_percent,
            accept_threshold_percent=zswap.accept_threshold_percent,
        ),
        swap=SwapDevices(),
        compressor=compressor,
        vmstat=Vmstat(max(MAX_ORDER, order_of(most_pages))),
    )
