"""What actors hand to each other: a batch of folios to compress, a batch of slots to write.

A batch is the owner of its folios (`MemMap.owner` holds its id), and whoever holds the batch owes
each of them one verdict: `Swapout.complete`, `Swapout.hand_back`, or for a write
`Pageout.stored`, `store_failed` or `refuse`.
"""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING

import attrs

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["SWAP_CLUSTER_MAX", "FolioBatch", "Reclaimer", "StoreBatch"]

SWAP_CLUSTER_MAX = 32  #: folios isolated at a time


class Reclaimer(enum.Enum):
    """Who asked: the suffix of pgscan_* and pgsteal_*."""

    KSWAPD = "kswapd"
    DIRECT = "direct"
    PROACTIVE = "proactive"


@attrs.define(eq=False)
class FolioBatch:
    """Folios isolated together, at most SWAP_CLUSTER_MAX of them (a worker merges several)."""

    id: int
    pfns: list[int]
    nr_bytes: int
    nr_pages: int
    who: Reclaimer
    seq: int | None = None  #: turn in an ordered padata stream
    held: list[int] = attrs.Factory(list[int])  #: pfns whose bytes a worker looks at right now
    since: float = 0.0  #: when it was queued, in the clock of the actors
    nr_clean: int = 0  #: folios that were isolated with these and dropped at once: the swap cache
    clean_bytes: int = 0  #: their bytes


@attrs.define(eq=False)
class StoreBatch:
    """Folios on their way to one swap device, each with the slots it was given."""

    id: int
    device: int
    who: Reclaimer
    blobs: bool  #: True where they come from the zswap pool, False where they are resident
    pfns: list[int] = attrs.Factory(list[int])
    slots: list[Sequence[int]] = attrs.Factory(list["Sequence[int]"])  #: of each folio
    lengths: list[int] = attrs.Factory(list[int])
    nr_bytes: int = 0
    failed: frozenset[int] = frozenset()  #: devices that did not take these folios
