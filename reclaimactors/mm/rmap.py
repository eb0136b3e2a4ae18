"""From a slot of one device to the folio that was stored there last. Mirrors the reverse map.

Only for stores that need it: one that may make a slot lighter afterwards knows slots, while what is
charged is a folio; and readahead looks for what lies beside a slot. A slot may have been freed
since; whoever asks looks whether the folio still lies there.
"""

from __future__ import annotations

from array import array
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

__all__ = ["Rmap"]


class Rmap:
    """One column by slot."""

    def __init__(self) -> None:
        self._pfns = array("I")  # the pfn plus one, 0 where nothing was ever stored

    def note(self, pfns: Iterable[int], slots: Iterable[Sequence[int]]) -> None:
        """Each folio was stored in its slots."""
        for pfn, own in zip(pfns, slots, strict=True):
            missing = max(own) + 1 - len(self._pfns)
            if missing > 0:
                self._pfns.frombytes(bytes(self._pfns.itemsize * (missing + len(self._pfns) // 2)))
            for slot in own:
                self._pfns[slot] = pfn + 1

    def folio(self, slot: int) -> int | None:
        """Return the folio that was stored in a slot last, None where none was."""
        return self._pfns[slot] - 1 if slot < len(self._pfns) and self._pfns[slot] else None
