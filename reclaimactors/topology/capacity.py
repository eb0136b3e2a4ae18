"""How much a topology holds: in bytes, and in keys, whose overhead stays in the budget."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from reclaimactors import registry
from reclaimactors.backends.swapfile import disk_of, in_memory
from reclaimactors.mm.demotion import NEAR_SHARE
from reclaimactors.mm.memcg import FOLIO_OVERHEAD, KEY_OVERHEAD
from reclaimactors.topology.fit import fit
from reclaimactors.units import KIB, format_size, nr_pages

if TYPE_CHECKING:
    from reclaimactors.topology.spec import SwapSpec, Topology

__all__ = [
    "by_priority", "capacity", "disk_free", "is_outside", "keys", "keys_that_fit", "takes_ram",
    "zram_of",
]  # fmt: skip

SIZES = (100, KIB, 4 * KIB, 64 * KIB)  # of values whose keys are counted


def by_priority(topology: Topology) -> list[SwapSpec]:
    """Return the swap specs in the order in which they are filled."""
    return sorted(topology.swap, key=lambda spec: -spec.priority)


def is_outside(spec: SwapSpec) -> bool:
    """Return whether what a store holds is outside the budget, as far as its class says."""
    return not registry.is_in_this_process(spec.backend)


def zram_of(spec: SwapSpec) -> Any:
    """Return the store if it is one that compresses its slots, else None; it is not opened."""
    return registry.build("backends", spec.backend) if spec.backend.name == "zram" else None


def disk_free(topology: Topology) -> dict[int, int]:
    """Return by the index of each swap file the bytes that are free on its disk for it.

    What others of a higher priority may take there is not free. A folder that cannot be looked at
    is left out: opening the store says what is wrong.
    """
    left: dict[int, int] = {}
    found: dict[int, int] = {}
    order = sorted(enumerate(topology.swap), key=lambda nr_spec: -nr_spec[1].priority)
    for index, spec in order:
        if not _is_file(spec):
            continue
        try:
            disk, free = disk_of(_folder(spec))
        except (OSError, ValueError):
            continue
        found[index] = left.setdefault(disk, free)
        left[disk] = max(0, left[disk] - topology.swap_bytes(spec))
    return found


def takes_ram(spec: SwapSpec) -> bool:
    """Return whether a swap file is put on a tmpfs: what it holds is in RAM, and in no budget.

    False where that cannot be found out. No folder of one's own choice is one on a disk.
    """
    folder = _folder(spec) if _is_file(spec) else None
    try:
        return folder is not None and in_memory(folder)
    except (OSError, ValueError):
        return False


def _is_file(spec: SwapSpec) -> bool:
    return spec.backend.name == "file" and spec.backend.instance is None


def _folder(spec: SwapSpec) -> str | None:
    path: object = spec.backend.options.get("path")
    return None if path is None else str(path)


def capacity(topology: Topology, ratio: int) -> str:
    """Values that fit, less what keys cost: as they are, in the pool, in zram, on stores."""
    high = fit(topology)[0].high
    pool = _pool(topology, ratio)
    room = max(0, topology.budget - high - pool)
    zram = _in_zram(topology, room, ratio)
    resident = room - zram
    swap = _outside(topology)
    total = resident + (pool + zram) * ratio + swap
    in_zram = f"{format_size(zram * ratio)} in zram, " if zram else ""
    return (
        f"at {ratio}:1 it holds about {format_size(total)}: {format_size(resident)} as they are, "
        f"{format_size(pool * ratio)} in the pool, {in_zram}{format_size(swap)} on swap"
    )


def keys(topology: Topology) -> list[str]:
    """Return lines that say how many keys fit, for values of some sizes."""
    each = KEY_OVERHEAD + FOLIO_OVERHEAD
    overhead = f"a key costs {each} B of overhead in the budget, wherever its value is"
    lines = [f"{overhead}; a long one costs what it is longer, too"]
    for ratio in (1, 3):
        counts = [f"{keys_that_fit(topology, n, ratio):,} of {format_size(n)}" for n in SIZES]
        lines.append(f"keys that fit, with values at {ratio}:1: {', '.join(counts)}")
    return lines


def keys_that_fit(topology: Topology, size: int, ratio: float) -> int:
    """Return about how many values of `size` bytes fit, all of them compressible at this ratio."""
    least, _, _ = topology.watermarks.resolve(topology.budget)
    usable = topology.budget - least
    folios = nr_pages(size, topology.max_folio)
    overhead = KEY_OVERHEAD + folios * FOLIO_OVERHEAD
    slots = folios * nr_pages(-(-size // folios), topology.page_size)
    on_swap = _outside(topology) // (slots * topology.page_size)
    blob = math.ceil(size / ratio)
    pool = _pool(topology, ratio)

    def fits(nr: int) -> bool:
        left = usable - nr * overhead
        in_ram = max(0, nr - on_swap)
        squeezed = min(in_ram, (pool + _in_zram(topology, max(0, left - pool), ratio)) // blob)
        return left >= squeezed * blob + (in_ram - squeezed) * size

    low, high = 0, usable // overhead + 1  # the first fits, the second does not
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


def _pool(topology: Topology, ratio: float) -> int:
    percent = topology.zswap.max_pool_percent if topology.zswap.enabled and ratio > 1 else 0
    return int(topology.budget * percent / 100)


def _outside(topology: Topology) -> int:
    """Return the bytes of stores outside the budget, no more than their disks have free."""
    free = disk_free(topology)
    return sum(
        min(topology.swap_bytes(spec), free.get(index, topology.swap_bytes(spec)))
        for index, spec in enumerate(topology.swap)
        if is_outside(spec)
    )


def _in_zram(topology: Topology, room: int, ratio: float) -> int:
    """Return the bytes of `room` that zram would fill with blobs of this ratio."""
    outside = any(is_outside(spec) for spec in topology.swap)
    share = int(topology.budget * NEAR_SHARE) if outside else room
    nr_bytes = 0
    for spec in by_priority(topology):
        zram = zram_of(spec)
        if zram is not None and ratio > 1:
            most = min(zram.mem_limit or room, share, int(topology.swap_bytes(spec) / ratio))
            nr_bytes += min(most, room - nr_bytes)
    return nr_bytes
