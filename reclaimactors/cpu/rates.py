"""How fast a compressor works in the event loop, measured as it goes, and what fits a slice."""

from __future__ import annotations

from reclaimactors.cpu.breath import SLICE_S

__all__ = ["Rates"]


class Rates:
    """Bytes a second, of values that are compressed and of blobs that are expanded.

    Args:
        page_size: in bytes; less than a page says nothing about how fast work goes.
    """

    def __init__(self, page_size: int) -> None:
        self._page_size = page_size
        self.compress = 200e6  #: bytes a second, a guess at first
        self.expand = 500e6  #: the same

    def compressed(self, nr_bytes: int, seconds: float) -> None:
        """Learn from what was compressed in the loop."""
        if nr_bytes >= self._page_size and seconds > 0:
            self.compress += (nr_bytes / seconds - self.compress) * 0.2

    def expanded(self, nr_bytes: int, seconds: float) -> None:
        """Learn from blobs of more than a page that were decompressed in the loop."""
        if nr_bytes > self._page_size and seconds > 0:
            self.expand += (nr_bytes / seconds - self.expand) * 0.05

    def too_slow_to_compress(self, nr_bytes: int) -> bool:
        """Whether compressing so much in the loop would hold it for longer than a slice."""
        return nr_bytes > self.compress * SLICE_S

    def slice_bytes(self) -> int:
        """Return how many bytes to compress in one go: a quarter of a slice, others work too."""
        return max(1, int(self.compress * SLICE_S / 4))

    def too_slow_to_expand(self, nr_bytes: int) -> bool:
        """Whether decompressing so much in the loop would hold it for longer than a slice."""
        return nr_bytes > self.expand * SLICE_S

    def worth_a_hop(self) -> float:
        """Return how many bytes are worth a hop to a thread: half of a slice's."""
        return self.expand * SLICE_S / 2
