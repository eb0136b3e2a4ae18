"""Give memory back that malloc keeps: the budget is of the process, not of a counter.

Early on, when few keys are known, nearly all of the budget is bytes of values, and the heap grows
as large as that. As keys come, their overhead takes the place of bytes; but it lies in other
mappings (columns, dicts), while glibc keeps the pages between what is left on the heap. So the heap
is trimmed each time overhead has grown by a sixteenth of the budget: rarely, for it costs
milliseconds (1 to 9 were seen).
"""

from __future__ import annotations

import ctypes
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from reclaimactors.mm.memcg import Memcg

__all__ = ["Heap"]

STEP = 16  #: parts of the budget


class Heap:
    """When to trim."""

    def __init__(self, memcg: Memcg) -> None:
        self._memcg = memcg
        self._next = memcg.budget // STEP
        self._trim = _malloc_trim()

    def overhead_grew(self) -> None:
        """Trim the heap if overhead has grown by a part of the budget since."""
        if self._trim is not None and self._memcg.overhead >= self._next:
            self._next = self._memcg.overhead + self._memcg.budget // STEP
            self._trim(0)


def _malloc_trim() -> Callable[[int], int] | None:
    """Return glibc's malloc_trim; None where the C library has no such thing."""
    try:
        return ctypes.CDLL(None).malloc_trim
    except (AttributeError, OSError, TypeError):  # musl, macOS, Windows
        return None
