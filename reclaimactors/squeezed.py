"""What compressing a batch gives: the rows that every offload answers with."""

from __future__ import annotations

from typing import Final

import attrs

__all__ = ["BLOB", "FAIL", "NOMEM", "POOR", "SAME_FILLED", "Squeezed"]

BLOB: Final = 0  #: compressed to at most 15/16
SAME_FILLED: Final = 1  #: one machine word repeated
POOR: Final = 2  #: incompressible: the blob would free next to nothing
FAIL: Final = 3  #: the compressor raised
NOMEM: Final = 4  #: the compressor raised MemoryError: there was none for the blob


@attrs.define(eq=False)
class Squeezed:
    """What compressing a batch gave, in columns: folio i is row i.

    A blob of more than 15/16 of its source is POOR, one of no bytes is FAIL; neither is kept. Where
    the kind is NOMEM or FAIL there is no value.
    """

    kinds: bytearray  #: 0 BLOB, 1 SAME_FILLED, 2 POOR, 3 FAIL or 4 NOMEM, as `squeezed` names them
    blobs: list[bytes | None]  #: the blob where the kind is BLOB
    values: list[int]  #: the word of a SAME_FILLED folio; else a crc32 of what a store gets, or 0
    of_sources: bool = False  #: whether those are of the sources, also where there is a blob
    why: str = ""  #: what the compressor raised on the first row that is a FAIL, if it raised
    cpu_s: float = 0.0  #: seconds of CPU that all of this took, as far as is known

    def extend(self, other: Squeezed) -> None:
        """Put the rows of another one behind these."""
        self.why = self.why or other.why
        self.kinds += other.kinds
        self.blobs += other.blobs
        self.values += other.values
        self.cpu_s += other.cpu_s

    def rows(self, start: int, stop: int) -> Squeezed:
        """Return rows `start` to `stop` as columns of their own; what they took is not known."""
        rows = slice(start, stop)
        kinds = self.kinds[rows]
        why = self.why if FAIL in kinds else ""
        return Squeezed(kinds, self.blobs[rows], self.values[rows], self.of_sources, why)
