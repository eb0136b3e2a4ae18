"""How much may be in flight."""

from __future__ import annotations

from reclaimactors.mm.batch import SWAP_CLUSTER_MAX

__all__ = ["Pipeline"]


class Pipeline:
    """How much may be in flight, fitted to the budget.

    All that is in flight stays under 1/8 of the budget. Where that is less than the FIFO and the
    worker's batches, the batches shrink first (to 32 pages, then to fewer), then the FIFO, so that
    a full FIFO stays reachable.
    """

    def __init__(
        self, *, budget: int, page_size: int, fifo: int, batch: int, in_flight: int, workers: int
    ) -> None:
        self.max_bytes = budget // 8
        limit = self.max_bytes // page_size
        in_flight = max(in_flight, workers)
        while fifo + batch * in_flight > limit:
            if batch > SWAP_CLUSTER_MAX:
                batch = max(SWAP_CLUSTER_MAX, batch // 2)
            elif in_flight > 1:
                in_flight -= 1
            else:
                batch = min(batch, max(1, limit // 4))
                fifo = max(1, limit - batch)
                break
        self.fifo_pages = fifo
        self.most_fifo_pages = max(fifo, limit - batch * in_flight)  #: what the budget allows
        self.batch_pages = batch
        self.batch_bytes = batch * page_size
        self.in_flight = in_flight
