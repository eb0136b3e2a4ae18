"""Watermarks, and how much may be in flight: each is fitted to the other.

What is being compressed is still charged, so callers would meet *min* while reclaim is at work, not
too slow, if more of it were in flight than lies between *min* and *low*. So what is in flight
shrinks to that; and where neither *low* nor *high* was given, both go up for a FIFO that was asked
for, and the workers behind it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import attrs

from reclaimactors.actors.pipeline import SHARE, Pipeline, least_batches
from reclaimactors.mm.batch import SWAP_CLUSTER_MAX
from reclaimactors.mm.watermark import Watermarks
from reclaimactors.topology.spec import CompressSpec, WatermarksSpec

if TYPE_CHECKING:
    from reclaimactors.topology.spec import Topology

__all__ = ["ENOUGH", "fit"]

ENOUGH = 3 * SWAP_CLUSTER_MAX  #: pages in flight that keep a worker busy

_FIFO = attrs.fields(CompressSpec).fifo.default
_MARKS = WatermarksSpec()


def fit(topology: Topology, *, fifo: int | None = None) -> tuple[Watermarks, Pipeline]:
    """Return the watermarks of a topology, and how much may be in flight.

    Args:
        topology: whose they are.
        fifo: pages that may wait, if that was changed since the opening.
    """
    compress, spec, page = topology.compress, topology.watermarks, topology.page_size
    least, low, high = spec.resolve(topology.budget)
    most = topology.budget // SHARE
    in_flight = widest = min(most, low - least)
    if (spec.low, spec.high) == (_MARKS.low, _MARKS.high):
        widest = most
        if fifo is not None or compress.fifo != _FIFO:
            asked = fifo or compress.fifo
            asked += min(asked, least_batches(compress.nr_workers) * compress.batch)
            in_flight = max(in_flight, min(widest, asked * page))
            more = max(0, least + in_flight - low)
            low, high = low + more, high + more
    pipeline = Pipeline(
        max_bytes=in_flight,
        share_bytes=most,
        widest_bytes=widest,
        page_size=page,
        fifo=fifo or compress.fifo,
        batch=compress.batch,
        in_flight=compress.in_flight,
        workers=compress.nr_workers,
    )
    return Watermarks(least, low, high), pipeline
