"""What a value may be given as, and its folios: buffers of any kind, cut at `max_folio`."""

from __future__ import annotations

from pickle import PickleBuffer
from typing import TYPE_CHECKING, cast

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from typing_extensions import Buffer

__all__ = ["Pieces", "Source", "bytes_of", "flat", "size_of", "split"]


class Pieces:
    """Several buffers that are one value, and are not joined before they are cut into folios."""

    __slots__ = ("nbytes", "views")

    def __init__(self, buffers: Iterable[Buffer]) -> None:
        self.views = [memoryview(flat(data)) for data in buffers]
        self.nbytes = sum(map(len, self.views))

    def __len__(self) -> int:
        return self.nbytes

    def split(self, limit: int) -> Iterable[bytes]:
        """Yield the bytes, `limit` at a time; each is copied once."""
        parts: list[memoryview] = []
        room = limit
        for view in self.views:
            at = 0
            while at < len(view):
                part = view[at : at + room]
                parts.append(part)
                at += len(part)
                room -= len(part)
                if not room:
                    yield b"".join(parts)
                    parts, room = [], limit
        if parts or not self.nbytes:
            yield b"".join(parts)


Source = bytes | memoryview | Pieces


def bytes_of(data: Buffer | Sequence[Buffer]) -> Source:
    """Return the bytes of a buffer: itself if it is bytes, else a view; `Pieces` of several.

    One item of the view is one byte, unless it is not contiguous.

    Raises:
        TypeError: if it has no buffer, or holds references to objects.
    """
    if type(data) is bytes:
        return data
    if isinstance(data, (list, tuple)):
        return Pieces(cast("Sequence[Buffer]", data))
    try:
        view = memoryview(cast("Buffer", data))
    except TypeError:
        hint = "; encode it: put(key, text.encode())" if isinstance(data, str) else ""
        msg = (
            "a value is bytes, bytearray or memoryview, or another buffer (array, ndarray, mmap), "
            f"not {type(data).__name__}{hint}"
        )
        raise TypeError(msg) from None
    if "O" in view.format:
        raise TypeError(f"this {type(data).__name__} holds references to objects, not their bytes")
    if not view.nbytes:
        return b""
    return PickleBuffer(view).raw() if view.c_contiguous else view


def flat(data: Buffer | Sequence[Buffer]) -> bytes | memoryview:
    """As `bytes_of`, in one piece of whose bytes `len` is the number: that may take a copy."""
    source = bytes_of(data)
    if isinstance(source, Pieces):
        return b"".join(source.views)
    if isinstance(source, memoryview) and not source.c_contiguous:
        return source.tobytes()
    return source


def size_of(source: Source) -> int:
    """Return the bytes of what `bytes_of` gave."""
    return source.nbytes if isinstance(source, memoryview) else len(source)


def split(source: Source, limit: int) -> Iterable[bytes]:
    """Return the folios of a value: the caller's own object if it is bytes and fits in one.

    Args:
        source: what `bytes_of` gave.
        limit: bytes of a folio (`max_folio`).
    """
    if isinstance(source, Pieces):
        return source.split(limit)
    if size_of(source) <= limit:
        return (bytes(source),)  # of bytes that is no copy
    view = memoryview(source)
    if not view.c_contiguous:
        return _gathered(view, limit)
    return (bytes(view[start : start + limit]) for start in range(0, len(view), limit))


def _gathered(view: memoryview, limit: int) -> Iterable[bytes]:
    """Yield the bytes of a view that is not contiguous, in C order, `limit` at a time."""
    rows = max(1, limit * len(view) // view.nbytes)
    left = b""
    for start in range(0, len(view), rows):
        left += view[start : start + rows].tobytes()
        whole = len(left) // limit * limit
        for at in range(0, whole, limit):
            yield left[at : at + limit]
        left = left[whole:]
    if left:
        yield left
