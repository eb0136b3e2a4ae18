"""Refault distance: was a folio that comes back part of the workingset?

Covers the shadow that stays behind when a folio is reclaimed and the test that is made of it at
its refault. Which list the folio then goes to is the policy's business (`lru`, `mglru`).

The theory, after the kernel's mm/workingset.c: a list that is read from the cold end moves on by
one place for each eviction and each activation. `nonresident_age` counts those moves, and a
shadow is a snapshot of that count, so *refault distance* = age now - snapshot is how many more
places the inactive list would have needed to keep the folio. If the active list has that many,
the folio was wrongly treated as the colder one: it is activated, to compete with them.

A counter wraps at 63 bits and the distance is taken modulo that, so no bucket order is needed. The
kernel's memcg id and node are the core's, and its workingset bit (a cost for file against anon)
has no use where all folios are anon.
"""

from __future__ import annotations

__all__ = ["EVICTION_MASK", "Workingset", "refault_distance"]

EVICTION_MASK = (1 << 63) - 1
"""A shadow is at least 0 and at most this."""


def refault_distance(now: int, shadow: int) -> int:
    """Return how far a counter has moved from the snapshot in `shadow` to `now`."""
    return (now - shadow) & EVICTION_MASK


class Workingset:
    """The counter of one lruvec and the decisions that are made of it."""

    __slots__ = ("nonresident_age",)

    def __init__(self) -> None:
        self.nonresident_age = 0

    def activation(self, nr: int = 1) -> None:
        """Count folios that left the inactive list for the active one."""
        self.nonresident_age += nr

    def eviction(self) -> int:
        """Count one reclaimed folio and return its shadow."""
        shadow = self.nonresident_age & EVICTION_MASK
        self.nonresident_age += 1
        return shadow

    def refault(self, shadow: int, workingset_size: int) -> bool:
        """Return whether a folio with that shadow is to be activated, which is then counted."""
        activate = refault_distance(self.nonresident_age, shadow) <= workingset_size
        self.nonresident_age += activate
        return activate
