"""No compression: everything is poor, and goes to a device as it is."""

from __future__ import annotations

from typing import TYPE_CHECKING

from reclaimactors.errors import CorruptData

if TYPE_CHECKING:
    from reclaimactors.abc import Buffer

__all__ = ["Null"]


class Null:
    """Blob and data are the same."""

    name = "null"

    def compress(self, data: Buffer) -> bytes:
        """Return the data."""
        return bytes(data)

    def decompress(self, blob: Buffer, size: int) -> bytes:
        """Return the blob, which must be `size` bytes."""
        if len(blob) != size:
            raise CorruptData(f"null: the blob holds {len(blob)} B, not {size}")
        return bytes(blob)
