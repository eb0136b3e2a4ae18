"""zlib from the standard library: slower, smaller."""

from __future__ import annotations

import zlib

from reclaimactors.abc import Buffer
from reclaimactors.errors import CorruptData

__all__ = ["Zlib"]


class Zlib:
    """zlib streams.

    Args:
        level: 0 (store) to 9 (smallest).
    """

    name = "zlib"

    def __init__(self, level: int = 1) -> None:
        if not 0 <= level <= 9:
            raise ValueError(f"level is {level}; it is 0 to 9")
        self._level = level

    def compress(self, data: Buffer) -> bytes:
        """Return the stream."""
        return zlib.compress(data, self._level)

    def decompress(self, blob: Buffer, size: int) -> bytes:
        """Return exactly `size` bytes, or raise CorruptData; a bomb is not unpacked."""
        stream = zlib.decompressobj()
        try:
            data = stream.decompress(blob, size + 1)
        except zlib.error as exc:
            raise CorruptData(f"zlib: {exc}") from exc
        if len(data) != size or not stream.eof:
            raise CorruptData(f"zlib: the blob does not hold {size} B")
        return data
