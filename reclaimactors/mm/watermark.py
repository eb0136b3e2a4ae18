"""Watermarks, and the brake that a put meets between low and min.

Free memory at or above *low*: nobody waits. Between *low* and *min*: kswapd is awake and a put
waits for work done in proportion to how deep it went: ``size x (low - free) / (low - min)`` bytes
freed by anybody since. Below *min*: the caller reclaims himself. It is work that is waited for,
never time, so an idle machine never brakes and a slow one brakes harder. (The kernel has no such
slope; its allocators fall from the fast path straight into direct reclaim. The slope is what keeps
a burst from ever getting there.)
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
        """Return how many bytes must be freed before a put of `size` bytes may return.

        Args:
            free: free bytes as they will be after the put, at least `min`.
            size: bytes of the put.
        """
        if free >= self.low:
            return 0
        return size * (self.low - free) // (self.low - self.min)
