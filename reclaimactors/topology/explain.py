"""What a topology means, in words: for ``reclaimactors check``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import attrs

from reclaimactors import registry
from reclaimactors.topology.build import pipeline_of
from reclaimactors.topology.cpus import usable_cpus
from reclaimactors.topology.spec import CompressSpec
from reclaimactors.units import format_size

if TYPE_CHECKING:
    from reclaimactors.topology.spec import SwapSpec, Topology

__all__ = ["IN_THIS_PROCESS", "explain"]

_CPU = {
    "inline": "in the event loop, in slices of about 1 ms",
    "thread": "in worker threads",
    "process": "in worker processes",
}

_OF_THE_QUEUE = ("fifo", "on_full", "in_flight")  # keys that mean nothing with mode "inline"

IN_THIS_PROCESS = ("memory", "zram")  # stores whose bytes count within the budget


def explain(topology: Topology) -> list[str]:
    """Return lines that say who compresses where, what happens when full, and what fits."""
    low, mid, high = topology.watermarks.resolve(topology.budget)
    lines = [
        (
            f"{topology.name}: a budget of {format_size(topology.budget)} "
            f"in pages of {format_size(topology.page_size)}, policy {topology.policy.name}"
        ),
        (
            f"free below {format_size(mid)}: kswapd wakes, and sleeps again at "
            f"{format_size(high)}; puts are slowed down to {format_size(low)}, and reclaim for "
            "themselves below it"
        ),
        _who(topology),
    ]
    if usable_cpus() == 1:
        lines.append('one CPU is usable here: the default of `offload` is "inline"')
    if topology.compress.mode != "inline" and _workers_compress(topology):
        lines.append(_when_full(topology))
    if topology.compress.mode == "inline":
        lines += _not_used(topology)
    lines += _tiers(topology)
    lines += [_capacity(topology, ratio) for ratio in (1, 2, 3)]
    return lines


def _who(topology: Topology) -> str:
    compress = topology.compress
    where = _CPU[compress.offload]
    name = compress.compressor.name
    if not _workers_compress(topology):
        return "kswapd compresses nothing: folios go to swap as they are"
    if compress.mode == "inline":
        return f"kswapd compresses with {name} itself, {where}, and waits for each batch"
    if compress.mode == "kcompressd":
        return f"kcompressd compresses with {name}, {where}, while kswapd goes on"
    order = ", verdicts in submission order" if compress.ordered else ""
    return f"padata: {compress.nr_workers} workers compress with {name}, {where}{order}"


def _when_full(topology: Topology) -> str:
    compress = topology.compress
    rule = {
        "inline": (
            "kswapd compresses the newest folio itself, in the event loop, as the kernel patch does"
        ),
        "steal_oldest": "kswapd takes the oldest batch back and compresses it in the event loop",
        "wait": "kswapd waits for room",
    }[compress.on_full]
    holds = pipeline_of(topology).fifo_pages
    cut = (
        f" (of the {compress.fifo} of `fifo`: an eighth of the budget may be in flight)"
        if holds < compress.fifo
        else ""
    )
    return f"the FIFO holds {holds} pages{cut}; when it is full, {rule}"


def _not_used(topology: Topology) -> list[str]:
    """Return a line for what is set, but means nothing where there is no queue."""
    compress, fields = topology.compress, attrs.fields_dict(CompressSpec)
    keys = [key for key in _OF_THE_QUEUE if getattr(compress, key) != fields[key].default]
    return [f"not used with mode 'inline': {', '.join(keys)}"] if keys else []


def _tiers(topology: Topology) -> list[str]:
    zswap = topology.zswap
    lines: list[str] = []
    if zswap.enabled:
        pool = int(topology.budget * zswap.max_pool_percent / 100)
        lines.append(
            f"zswap: up to {format_size(pool)} of blobs; once full, nothing more until it is at "
            f"{zswap.accept_threshold_percent:g}% of that"
        )
    else:
        lines.append("zswap is off: folios go to a store at once")
    for i, spec in sorted(enumerate(topology.swap), key=lambda nr_spec: -nr_spec[1].priority):
        size = format_size(topology.swap_bytes(spec))
        within = ", within the budget" if spec.backend.name in IN_THIS_PROCESS else ""
        how = _how_it_compresses(topology, spec)
        lines.append(f"swap {spec.backend.name}{i}: {size}{within}, priority {spec.priority}{how}")
    if not topology.swap:
        lines.append("no swap: what the pool does not take stays in memory")
    return lines


def _by_priority(topology: Topology) -> list[SwapSpec]:
    return sorted(topology.swap, key=lambda spec: -spec.priority)


def _zram(spec: SwapSpec) -> Any:
    """Return the store if it is one that compresses its slots, else None; it is not opened."""
    return registry.build("backends", spec.backend) if spec.backend.name == "zram" else None


def _workers_compress(topology: Topology) -> bool:
    """Whether the topology's compressor has anything to do: for the pool, or for a zram."""
    if topology.zswap.enabled:
        return True
    first = _zram(_by_priority(topology)[0]) if topology.swap else None
    return first is not None and first.compressor == topology.compress.compressor


def _how_it_compresses(topology: Topology, spec: SwapSpec) -> str:
    """Return who compresses for a store, "" for one that does not."""
    zram = _zram(spec)
    if zram is None:
        return ""
    limit = f", at most {format_size(zram.mem_limit)} of blobs" if zram.mem_limit else ""
    if zram.compressor == topology.compress.compressor:
        return f"{limit}; its pages are compressed with the folios of kswapd"
    return f"{limit}; it compresses with {zram.compressor.name} itself, in the event loop"


def _in_zram(topology: Topology, room: int, ratio: int) -> int:
    """Return the bytes of `room` that zram would fill with blobs of this ratio."""
    nr_bytes = 0
    for spec in _by_priority(topology):
        zram = _zram(spec)
        if zram is not None and ratio > 1:
            most = min(zram.mem_limit or room, topology.swap_bytes(spec) // ratio)
            nr_bytes += min(most, room - nr_bytes)
    return nr_bytes


def _capacity(topology: Topology, ratio: int) -> str:
    """Values that fit, less what keys cost: as they are, in the pool, in zram, on stores."""
    _, _, high = topology.watermarks.resolve(topology.budget)
    percent = topology.zswap.max_pool_percent if topology.zswap.enabled and ratio > 1 else 0
    pool = int(topology.budget * percent / 100)
    room = max(0, topology.budget - high - pool)
    zram = _in_zram(topology, room, ratio)
    resident = room - zram
    swap = sum(
        topology.swap_bytes(spec)
        for spec in topology.swap
        if spec.backend.name not in IN_THIS_PROCESS
    )
    total = resident + (pool + zram) * ratio + swap
    in_zram = f"{format_size(zram * ratio)} in zram, " if zram else ""
    return (
        f"at {ratio}:1 it holds about {format_size(total)}: {format_size(resident)} as they are, "
        f"{format_size(pool * ratio)} in the pool, {in_zram}{format_size(swap)} on swap"
    )
