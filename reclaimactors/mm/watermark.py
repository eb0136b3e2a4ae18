"""Watermarks: at which free memory reclaim begins and ends.

Free memory at or above *low*: nobody waits. Between *low* and *min*: kswapd is awake, and puts owe
work (`brake`). Below *min*: the caller reclaims himself. Reclaim gives way to callers: the nearer
to *min*, the less (`weight`).
"""

from __future__ import annotations

import attrs

__all__ = ["Watermarks"]

AT_EASE = 0.25  #: of what others work: what reclaim works beside them above *low*
AT_LOW = 1.5  #: the same just below *low*
AT_MIN = 8.0  #: the same at *min*; to reclaim a page takes some three times as long as to put one


@attrs.frozen
class Watermarks:
    """Free bytes: 0 < min < low < high < budget."""

    min: int
    low: int
    high: int

    def brake(self, free: int, size: int) -> int:
        """Return how many bytes a put of `size` bytes owes.

        Args:
            free: free bytes as they will be after the put, at least `min`.
            size: bytes of the put.
        """
        if free >= self.low:
            return 0
        return size * (self.low - free) // (self.low - self.min)

    def weight(self, free: int) -> float:
        """Return for how long reclaim is to work, in parts of the time that others work.

        Args:
            free: free bytes.
        """
        if free >= self.low:
            return AT_EASE
        depth = (self.low - max(free, self.min)) / (self.low - self.min)
        return AT_LOW + (AT_MIN - AT_LOW) * depth
