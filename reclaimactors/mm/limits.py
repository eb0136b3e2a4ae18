"""What a group may hold: its limits, and what they leave it. Mirrors a cgroup's memory.* files.

A limit holds for the group and all groups in it. The root has none of these: its limit is the
budget, and its pool and devices are bounded by themselves.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import attrs

if TYPE_CHECKING:
    from reclaimactors.mm.group import Group

__all__ = ["Limits", "closed_devices", "pool_left", "swap_left"]


@attrs.frozen
class Limits:
    """Limits of one group; None = none of its own.

    Attributes:
        max: bytes that it may hold of the budget, as memory.max.
        high: bytes above which it is reclaimed, and its callers brake, as memory.high.
        zswap_max: bytes of its blobs in the pool, as memory.zswap.max.
        swap_max: bytes of it that devices may hold, as memory.swap.max.
        zswap_writeback: whether any of it may go to a device, as memory.zswap.writeback.
        swap: names of the devices that it may use, as memory.swap.tiers.max.
    """

    max: int | None = None
    high: int | None = None
    zswap_max: int | None = None
    swap_max: int | None = None
    zswap_writeback: bool = True
    swap: frozenset[str] | None = None

    @property
    def on_devices(self) -> bool:
        """Whether any of these restricts what goes to devices."""
        return not self.zswap_writeback or self.swap_max is not None or self.swap is not None


def pool_left(group: Group) -> int:
    """Return the bytes that limits leave to the group's blobs in the pool; below 0 beyond them."""
    left = sys.maxsize
    for over in group.lineage:
        if over.limits.zswap_max is not None:
            left = min(left, over.limits.zswap_max - over.pool_bytes)
    return left


def swap_left(group: Group) -> int:
    """Return the bytes that limits leave to what devices hold of the group."""
    left = sys.maxsize
    for over in group.lineage:
        if not over.limits.zswap_writeback:
            return 0
        if over.limits.swap_max is not None:
            held = sum([each.swapped for each in over.subtree()]) + over.memcg.at_store
            left = min(left, over.limits.swap_max - held)
    return max(0, left)


def closed_devices(group: Group) -> frozenset[int]:
    """Return the indexes of the devices that the group may not be written to."""
    if not swap_left(group):
        return frozenset(device.index for device in group.node.swap)
    masks = [over.limits.swap for over in group.lineage if over.limits.swap is not None]
    return frozenset(
        device.index for device in group.node.swap if any(device.name not in mask for mask in masks)
    )
