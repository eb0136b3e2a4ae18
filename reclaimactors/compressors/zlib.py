"""zlib from the standard library: slower, smaller."""

from __future__ import annotations

import zlib
from typing import TYPE_CHECKING

from reclaimactors.errors import CorruptData

if TYPE_CHECKING:
    from reclaimactors.abc import Buffer

__all__ = ["Zlib"]


class Zlib:
    """zlib streams.

    Args:
        level: 0 (store) to 9 (smallest), default 1: what is cold is compressed often, so be quick.
    """

    name = "zlib"

    def __init__(self, level: int = 1) -> None:
        if type(level) is not int or level not in range(10):
            raise ValueError(f"level is {level!r}; it is 0 to 9")
        self._level = level

    def compress(self, data: Buffer) -> bytes:
        """Return the stream."""
        return zlib.compress(data, self._level)

    def decompress(self, blob: Buffer, size: int) -> bytes:
        """Return exactly `size` bytes, or raise CorruptData; a bomb is not unpacked."""
        stream = zlib.decompressobj()
        try:
            data = stream.decompress(blob, size + 1)  # one more byte, so that a longer blob shows
        except zlib.error as exc:
            raise CorruptData(f"zlib: {exc}") from exc
        if len(data) != size or not stream.eof or stream.unused_data:
            raise CorruptData(f"zlib: the blob does not hold {size} B")
        return data
