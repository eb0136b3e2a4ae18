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
    from collections.abc import Mapping, Sequence

    from reclaimactors.mm.group import Group
    from reclaimactors.mm.padata import Reorder
    from reclaimactors.mm.page_io import Squeezed

__all__ = ["SWAP_CLUSTER_MAX", "FolioBatch", "Producer", "Reclaimer", "StoreBatch"]

SWAP_CLUSTER_MAX = 32  #: folios isolated at a time


class Reclaimer(enum.Enum):
    """Who asked: the suffix of pgscan_* and pgsteal_*."""

    KSWAPD = "kswapd"
    DIRECT = "direct"
    PROACTIVE = "proactive"


@attrs.define(eq=False)
class Producer:
    """Who sends batches to be compressed: a node's kswapd, or one call of `Memory.reclaim`."""

    who: Reclaimer  #: whose share of the FIFO it uses
    order: Reorder[tuple[FolioBatch, Squeezed | None]] | None = None  #: where padata keeps one
    in_flight: int = 0  #: bytes of its batches that were queued and have not ended
    ended: int = 0  #: batches that were queued and have ended
    freed: int = 0  #: bytes that its batches have really freed


@attrs.define(eq=False)
class FolioBatch:
    """Folios isolated together, at most SWAP_CLUSTER_MAX of them (a worker merges several)."""

    id: int
    group: Group  #: whose they are, all of them
    pfns: list[int]
    nr_bytes: int
    nr_pages: int
    who: Reclaimer
    producer: Producer | None = None  #: None: nobody asks what comes of it (direct reclaim)
    seq: int | None = None  #: turn in an ordered padata stream
    held: list[int] = attrs.Factory(list[int])  #: pfns whose bytes a worker looks at right now
    since: float = 0.0  #: when it was queued, in the clock of the actors
    queued: int = 0  #: what it adds to `Producer.in_flight`
    rows: list[int] | None = None  #: pages of each folio, where these are compressed one by one
    nr_clean: int = 0  #: folios that were isolated with these and dropped at once: `MemMap.clean`
    clean_bytes: int = 0  #: their bytes
    poor: bool = False  #: known not to compress: to a store, as they are
    ram_only: bool = False  #: nothing of it is written but to a store that compresses here and now

    @property
    def nr_rows(self) -> int:
        """What its folios are compressed as: one row each, or one for each page of them."""
        return len(self.pfns) if self.rows is None else sum(self.rows)

    @property
    def admitted_as(self) -> Reclaimer:
        """Whose share of the FIFO it takes: PAGEOUT counts as proactive, but kswapd sends it."""
        return self.who if self.producer is None else self.producer.who


@attrs.define(eq=False)
class StoreBatch:
    """Folios on their way to one swap device, each with the slots it was given."""

    id: int
    group: Group  #: whose they are, all of them
    device: int
    who: Reclaimer
    blobs: bool  #: True where they come from the zswap pool, False where they are resident
    producer: Producer | None = None  #: of the batch that they come from
    pfns: list[int] = attrs.Factory(list[int])
    slots: list[Sequence[int]] = attrs.Factory(list["Sequence[int]"])  #: of each folio
    lengths: list[int] = attrs.Factory(list[int])
    nr_bytes: int = 0
    kept: Mapping[int, Sequence[bytes | int]] | None = None
    """What a device that compresses is to keep of each page, by pfn (see `Backend.store_squeezed`);
    None: it compresses for itself."""
    failed: frozenset[int] = frozenset()  #: devices that did not take these folios
    moved: dict[int, bytes] | None = None
    """Bytes by pfn, once they are read, where they come from a store in the budget; else None."""
    leaving: int = 0  #: bytes of the budget that go with it, from the pool or such a store

    @property
    def reclaims(self) -> bool:
        """Whether its folios are resident, so that each of them is owed a verdict."""
        return not self.blobs and self.moved is None

    poor: bool = False  #: they are known not to compress
