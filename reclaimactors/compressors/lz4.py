"""lz4's block format: the kernel's default for zram, and ours."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lz4.block import LZ4BlockError
from lz4.block import compress as lz4_compress
from lz4.block import decompress as lz4_decompress

from reclaimactors.errors import CorruptData

if TYPE_CHECKING:
    from reclaimactors.abc import Buffer

__all__ = ["Lz4"]


class Lz4:
    """lz4.block without its size header.

    Args:
        acceleration: 1 to 65537, default 1; more is faster and compresses less.
    """

    name = "lz4"

    def __init__(self, acceleration: int = 1) -> None:
        if type(acceleration) is not int or acceleration not in range(1, 65538):
            raise ValueError(f"acceleration is {acceleration!r}; it is 1 to 65537")
        self.acceleration = acceleration  #: read by offloads that call lz4 themselves

    def compress(self, data: Buffer) -> bytes:
        """Return the block."""
        return lz4_compress(data, mode="fast", acceleration=self.acceleration, store_size=False)

    def decompress(self, blob: Buffer, size: int) -> bytes:
        """Return exactly `size` bytes, or raise CorruptData."""
        try:
            data = lz4_decompress(blob, uncompressed_size=size)
        except LZ4BlockError as exc:
            raise CorruptData(f"lz4: {exc}") from exc
        if len(data) != size:
            raise CorruptData(f"lz4: the blob holds {len(data)} B, not {size}")
        return data
