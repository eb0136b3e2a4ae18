"""What `Memory.advise` may be told, named as in madvise(2)."""

from __future__ import annotations

import enum

__all__ = ["Advice"]


class Advice(enum.Enum):
    """What is coming for a value."""

    COLD = "cold"  #: reclaim it before others
    PAGEOUT = "pageout"  #: reclaim it now
    WILLNEED = "willneed"  #: it will be read soon
