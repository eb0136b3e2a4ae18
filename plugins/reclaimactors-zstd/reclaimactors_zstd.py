"""Zstandard: blobs a third smaller than lz4's, for values that stay cold.

In a topology: ``compressor = "zstd"``, or ``compressor = { name = "zstd", level = 9 }``.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from zstandard import ZstdCompressor, ZstdDecompressor, ZstdError, frame_content_size

from reclaimactors import CorruptData

if TYPE_CHECKING:
    from collections.abc import Sequence

    from reclaimactors import Buffer

__all__ = ["Zstd"]


class _Contexts(threading.local):
    """A thread's own compressor and decompressor: zstandard's may not be shared."""

    def __init__(self, level: int) -> None:
        self.compressor = ZstdCompressor(level)
        self.decompressor = ZstdDecompressor()


class Zstd:
    """Compress with `zstandard`, a frame a folio.

    Args:
        level: -131072 (fastest) to 22 (smallest), default 3, zstd's own.
    """

    name = "zstd"

    def __init__(self, level: int = 3) -> None:
        self.level = level  #: read by offloads that call zstd themselves
        self._contexts = _Contexts(level)

    def __reduce__(self) -> tuple[type[Zstd], tuple[int]]:
        return Zstd, (self.level,)

    def compress(self, data: Buffer) -> bytes:
        """Return the frame of `data`, which says its size."""
        return self._contexts.compressor.compress(data)

    def compress_many(self, pages: Sequence[Buffer]) -> list[bytes]:
        """Return the frame of each page; the GIL is released once for all of them."""
        if not pages:
            return []
        frames = self._contexts.compressor.multi_compress_to_buffer(list(pages), threads=0)
        return [frames[i].tobytes() for i in range(len(frames))]

    def decompress(self, blob: Buffer, size: int) -> bytes:
        """Return exactly `size` bytes, or raise CorruptData."""
        try:
            # The frame's own size is what zstandard allocates, so it is looked at before.
            if frame_content_size(blob) == size:
                return self._contexts.decompressor.decompress(blob, allow_extra_data=False)
        except ZstdError as exc:
            raise CorruptData(f"zstd: {exc}") from exc
        raise CorruptData(f"zstd: the blob does not hold {size} B")
