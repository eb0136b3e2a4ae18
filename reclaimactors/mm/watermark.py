"""Watermarks: at which free memory reclaim begins and ends.

Free memory at or above *low*: nobody waits. Between *low* and *min*: kswapd is awake, and puts owe
work (`brake`). Below *min*: the caller reclaims himself.
"""

from __future__ import annotations

import attrs

__all__ = ["Watermarks"]


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
