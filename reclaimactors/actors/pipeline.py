"""How much may be in flight."""

from __future__ import annotations

from reclaimactors.mm.batch import SWAP_CLUSTER_MAX

__all__ = ["SHARE", "Pipeline", "least_batches"]

SHARE = 8  #: the part of the budget that may be in flight at most


def least_batches(workers: int) -> int:
    """Return how many batches are to be on their way, so that no worker waits for the next."""
    return max(2, workers)


class Pipeline:
    """How much may be in flight, fitted to what lies between *min* and *low*.

    Where that is less than the FIFO and the workers' batches, batches shrink to 32 pages, then
    there are fewer of them: `least_batches`, so that each worker has one, and one alone has the
    next at hand. Then both shrink, the FIFO to half at least of what may be in flight.

    Args:
        max_bytes: that may be queued or compressed at a time.
        share_bytes: an eighth of the budget: `max_bytes` is never more. So much may one store be
            writing, and so much may one step take.
        widest_bytes: what `max_bytes` may become, for a longer FIFO.
        page_size: bytes.
        fifo: pages that may wait for a worker.
        batch: pages that a worker takes at a time.
        in_flight: such batches at a time.
        workers: that compress.
    """

    def __init__(
        self,
        *,
        max_bytes: int,
        share_bytes: int,
        widest_bytes: int,
        page_size: int,
        fifo: int,
        batch: int,
        in_flight: int,
        workers: int,
    ) -> None:
        self.max_bytes = max_bytes
        self.share_bytes = share_bytes
        limit = max_bytes // page_size
        in_flight = max(in_flight, workers)
        least = least_batches(workers)
        while fifo + batch * in_flight > limit:
            if batch > SWAP_CLUSTER_MAX:
                batch = max(SWAP_CLUSTER_MAX, batch // 2)
            elif in_flight > least:
                in_flight -= 1
            else:
                in_flight = min(in_flight, max(1, limit // 2))
                batch = min(batch, max(1, limit // 2 // in_flight))
                fifo = min(fifo, max(1, limit - batch * in_flight))
                break
        self.fifo_pages = fifo
        longest = widest_bytes // page_size - least * SWAP_CLUSTER_MAX
        self.most_fifo_pages = max(fifo, longest)  #: what the FIFO may be made at run time
        self.batch_pages = batch
        self.batch_bytes = batch * page_size
        self.in_flight = in_flight
