"""Who may queue, and how a batch gets into the FIFO: the seed's swap_sched_async_compress().

The gates and the shares are those of `reclaimactors.mm.page_io`. Both producers come through here:
kswapd, and each call of `Memory.reclaim`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from reclaimactors.mm.page_io import gate
from reclaimactors.units import nr_pages

if TYPE_CHECKING:
    from reclaimactors.actors.machine import Machine
    from reclaimactors.mm.batch import FolioBatch, Reclaimer
    from reclaimactors.mm.group import Group
    from reclaimactors.mm.page_io import Gate

__all__ = ["enqueue", "first_pages", "gate_of"]


def gate_of(machine: Machine, group: Group, who: Reclaimer, pages: int) -> Gate:
    """Return what the seed's gates say to a folio of a group, of so many pages, from this class."""
    return gate(
        kcompressd=machine.kcompressd,
        who=who,
        anon=True,
        zswap_writeback=all(over.limits.zswap_writeback for over in group.lineage),
        zswap_enabled=machine.node.zswap.enabled,
        synchronous=any(swapd.synchronous for swapd in machine.swapds.values()),
        fifo_room=machine.fifo.room(pages, who),
    )


def first_pages(machine: Machine, batch: FolioBatch) -> int:
    """Return the pages of a batch's first folio: where it may enter, some of the batch may."""
    return nr_pages(machine.swapout.first_bytes(batch), machine.node.page_size)


def enqueue(machine: Machine, batch: FolioBatch) -> FolioBatch | None:
    """Put a batch whose gate said QUEUED into the FIFO, as much of it as there is room for.

    Returns:
        The rest, which is still the caller's.
    """
    node, fifo = machine.node, machine.fifo
    machine.starter.start()
    producer = machine.handover.in_turn(batch)
    limit = min(machine.pipeline.batch_pages, fifo.left(batch.admitted_as))
    rest = None
    if batch.nr_pages > limit:
        rest = machine.swapout.cut(batch, pages=max(1, limit))
    batch.since = machine.loop.now()
    batch.queued = max(1, batch.nr_bytes)
    producer.in_flight += batch.queued
    node.vmstat["kcompressd_queued"] += batch.nr_pages
    fifo.send_nowait(batch)
    return rest
