"""What a topology means, in words: for ``reclaimactors check``."""

from __future__ import annotations

from typing import TYPE_CHECKING

import attrs

from reclaimactors.actors.pipeline import SHARE
from reclaimactors.mm.demotion import NEAR_SHARE
from reclaimactors.registry import known
from reclaimactors.topology.capacity import (
    by_priority,
    capacity,
    disk_free,
    is_outside,
    keys,
    takes_ram,
    zram_of,
)
from reclaimactors.topology.cpus import usable_cpus
from reclaimactors.topology.fit import ENOUGH, fit
from reclaimactors.topology.memory_limit import too_large
from reclaimactors.topology.spec import CompressSpec
from reclaimactors.units import format_size

if TYPE_CHECKING:
    from reclaimactors.topology.spec import SenpaiSpec, SwapSpec, Topology

__all__ = ["explain"]

_CPU = {
    "inline": "in the event loop, in slices of about 1 ms",
    "thread": "in worker threads",
    "process": "in worker processes",
}

_NATIVE = {"lz4", "zstd"}  # compressors that the offload "native" knows

_OF_THE_QUEUE = ("fifo", "on_full", "in_flight")  # keys that mean nothing with mode "inline"


def explain(topology: Topology) -> list[str]:
    """Return lines that say who compresses where, what happens when full, and what fits."""
    marks, _ = fit(topology)
    lines = [
        (
            f"{topology.name}: a budget of {format_size(topology.budget)} "
            f"in pages of {format_size(topology.page_size)}, policy {topology.policy.name}"
        ),
        (
            f"free below {format_size(marks.low)}: kswapd wakes, and sleeps again at "
            f"{format_size(marks.high)}; puts {_above_min(topology)} {format_size(marks.min)}, and "
            "reclaim for themselves below it"
        ),
        _who(topology),
    ]
    lines += _tight(topology) + _offered(topology)
    why = too_large(topology.budget)
    if why:
        lines.append(f"the budget is more than this process may have: {why}")
    if usable_cpus() == 1:
        lines.append('one CPU is usable here: the default of `offload` is "inline"')
    if topology.compress.mode != "inline" and _workers_compress(topology):
        lines.append(_when_full(topology))
    if topology.compress.mode == "inline":
        lines += _not_used(topology)
    if topology.senpai.enabled:
        lines.append(_ahead(topology.senpai))
    lines += _tiers(topology)
    lines += [capacity(topology, ratio) for ratio in (1, 2, 3)]
    return lines + keys(topology)


def _above_min(topology: Topology) -> str:
    return "are slowed down to" if topology.brake else "do not wait down to"


def _who(topology: Topology) -> str:
    compress = topology.compress
    where = _CPU.get(compress.offload, f"in the threads of offload {compress.offload!r}")
    name = compress.compressor.name
    if not _workers_compress(topology):
        return "kswapd compresses nothing: folios go to swap as they are"
    if compress.mode == "inline":
        return f"kswapd compresses with {name} itself, {where}, and waits for each batch"
    if compress.mode == "kcompressd":
        return f"kcompressd compresses with {name}, {where}, while kswapd goes on"
    order = ", verdicts in submission order" if compress.ordered else ""
    return f"padata: {compress.nr_workers} workers compress with {name}, {where}{order}"


def _tight(topology: Topology) -> list[str]:
    """Return a line where watermarks that were given leave little to be in flight."""
    marks, pipeline = fit(topology)
    enough = ENOUGH * topology.page_size
    if pipeline.max_bytes >= min(enough, topology.budget // SHARE):
        return []
    gap = format_size(marks.low - marks.min)
    return [
        (
            f"watermarks: only {gap} lies between min and low, and no more than that is compressed "
            f"at a time; {format_size(enough)} keep a worker busy"
        )
    ]


def _offered(topology: Topology) -> list[str]:
    """Return a line for the offload plugin that could compress here instead, where there is one."""
    compress = topology.compress
    if compress.offload not in {"process", "thread"} or compress.compressor.name not in _NATIVE:
        return []
    if "native" not in dict(known("offloads")):
        return []
    threads = "threads that want no lock of the interpreter, faster than worker processes"
    return [f'offload = "native" is installed: {threads}, but a fault in C ends this process']


def _when_full(topology: Topology) -> str:
    compress = topology.compress
    rule = {
        "inline": (
            "kswapd compresses the newest folio itself, in the event loop, as the kernel patch does"
        ),
        "steal_oldest": "kswapd takes the oldest batch back and compresses it in the event loop",
        "wait": "kswapd waits for room",
    }[compress.on_full]
    marks, pipeline = fit(topology)
    holds = pipeline.fifo_pages
    cut = ""
    if holds < compress.fifo:
        gap = format_size(marks.low - marks.min)
        cut = (
            f" (of the {compress.fifo} of `fifo`: no more is in flight than an eighth of the "
            f"budget, nor than lies between min and low, {gap})"
        )
    when = "it is full" if compress.on_full == "wait" else "it is full and memory below low"
    return f"the FIFO holds {holds} pages{cut}; when {when}, {rule}"


def _ahead(senpai: SenpaiSpec) -> str:
    return (
        f"senpai: every {senpai.interval:g} s, {senpai.percent:g} % of what is resident is "
        f"reclaimed, less the more callers stall, and nothing from {senpai.pressure:g} % on"
    )


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
    free = disk_free(topology)
    for i, spec in sorted(enumerate(topology.swap), key=lambda nr_spec: -nr_spec[1].priority):
        nr_bytes = topology.swap_bytes(spec)
        within = "" if is_outside(spec) else _within(topology)
        how = _how_it_compresses(topology, spec)
        disk = ""
        if free.get(i, nr_bytes) < nr_bytes:
            disk = f"; the disk has only {format_size(free[i])} free for it"
        if takes_ram(spec):
            disk += "; its folder is a tmpfs: what it holds takes RAM, and is in no budget"
        size = format_size(nr_bytes)
        lines.append(
            f"swap {spec.backend.name}{i}: {size}{within}, priority {spec.priority}{how}{disk}"
        )
    if not topology.swap:
        lines.append("no swap: what the pool does not take stays in memory")
    return lines


def _within(topology: Topology) -> str:
    """Return that a store is in the budget, and how much of that it takes beside one outside."""
    if not any(is_outside(spec) for spec in topology.swap):
        return ", within the budget"
    return f", within the budget: {NEAR_SHARE:.0%} of it at most while others have room"


def _workers_compress(topology: Topology) -> bool:
    """Whether the topology's compressor has anything to do: for the pool, or for a zram."""
    if topology.zswap.enabled:
        return True
    first = zram_of(by_priority(topology)[0]) if topology.swap else None
    return first is not None and first.compressor == topology.compress.compressor


def _how_it_compresses(topology: Topology, spec: SwapSpec) -> str:
    """Return who compresses for a store, "" for one that does not."""
    zram = zram_of(spec)
    if zram is None:
        return ""
    limit = f", at most {format_size(zram.mem_limit)} of blobs" if zram.mem_limit else ""
    if zram.compressor == topology.compress.compressor:
        return f"{limit}; its pages are compressed with the folios of kswapd"
    return f"{limit}; it compresses with {zram.compressor.name} itself, in the event loop"
