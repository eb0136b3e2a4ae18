"""What `Memory.advise` may be told, named as in madvise(2)."""

from __future__ import annotations

import enum

__all__ = ["Advice"]


class Advice(enum.Enum):
    """What is coming for a value.

    Attributes:
        COLD: it is not needed soon: reclaim it before others, once memory is short.
        PAGEOUT: it is not needed soon: have kswapd reclaim it now, short or not.
        WILLNEED: it will be read soon: bring it back, as `Memory.get` would, without waiting.
    """

    COLD = "cold"
    PAGEOUT = "pageout"
    WILLNEED = "willneed"
