"""How much may be in flight."""

from __future__ import annotations

__all__ = ["SHARE", "Pipeline", "least_batches"]

SHARE = 8  #: the part of the budget that may be in flight at most


def least_batches(workers: int) -> int:
    """Return how many batches are to be on their way, so that no worker waits for the next."""
    return max(2, workers)


class Pipeline:
    """How much may be in flight, fitted to what lies between *min* and *low*.

    Where that is less than the FIFO and the workers' batches, there are fewer batches, down to
    `least_batches`: each worker has one, and one alone has the next at hand. Then the FIFO shrinks,
    to half of what may be in flight at least, and batches share the rest: a batch of a quarter of
    the pages costs the event loop twice as much a page.

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
        limit, widest = max_bytes // page_size, widest_bytes // page_size
        in_flight = max(in_flight, workers)
        least = least_batches(workers)
        longest = max(widest // 2, widest - batch * least)
        while in_flight > least and fifo + batch * in_flight > limit:
            in_flight -= 1
        if fifo + batch * in_flight > limit:
            in_flight = max(1, min(in_flight, limit // 2))
            fifo = max(1, min(fifo, max(limit // 2, limit - batch * in_flight)))
            batch = max(1, min(batch, (limit - fifo) // in_flight))
        self.fifo_pages = fifo
        self.most_fifo_pages = max(fifo, longest)  #: what the FIFO may be made at run time
        self.batch_pages = batch
        self.batch_bytes = batch * page_size
        self.in_flight = in_flight
