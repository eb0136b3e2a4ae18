"""The front end of swap-out: who compresses a folio, and what comes of it. Mirrors mm/page_io.c.

`gate` is the seed patch's list of conditions, in its order, with a share of the FIFO by class of
reclaimers where the seed lets in nobody but kswapd; `squeeze` is what a worker does with a
batch; `outcome` is the table of what becomes of a folio then. All three are plain functions: the
same ones run in kswapd, in the caller of a direct reclaim, in a thread and in a worker process, so
that a machine without workers gives the same bytes.
"""

from __future__ import annotations

import enum
from types import MappingProxyType
from typing import TYPE_CHECKING, Final
from zlib import crc32

from reclaimactors.abc import Verdict
from reclaimactors.mm.batch import Reclaimer
from reclaimactors.squeezed import BLOB, FAIL, NOMEM, POOR, SAME_FILLED, Squeezed

if TYPE_CHECKING:
    from collections.abc import Callable, Container, Mapping, Sequence

    from reclaimactors.abc import Buffer, Compressor

__all__ = [
    "BLOB",
    "FAIL",
    "NOMEM",
    "POOR",
    "QUEUE_SHARE",
    "SAME_FILLED",
    "WHY",
    "Gate",
    "Squeezed",
    "expand",
    "gate",
    "many_of",
    "outcome",
    "same_filled",
    "squeeze",
]


class Gate(enum.Enum):
    """Why a folio goes to kcompressd, or the first reason why it does not."""

    QUEUED = "queued"
    NO_KCOMPRESSD = "no kcompressd on this node"
    NOT_ADMITTED = "this class of reclaimers has no share of the FIFO"
    NOT_ANON = "not an anonymous folio"
    NO_WRITEBACK = "the group forbids zswap writeback: the verdict is needed at once"
    NO_COMPRESSION = "zswap is off and the swap device is not synchronous"
    FIFO_FULL = "the FIFO has no room"


QUEUE_SHARE: Final[Mapping[Reclaimer, float]] = MappingProxyType(
    {Reclaimer.KSWAPD: 1.0, Reclaimer.PROACTIVE: 0.5, Reclaimer.DIRECT: 0.0}
)
"""Whom kcompressd serves: the share of the FIFO that a class of reclaimers may fill.

kswapd may fill it. Proactive reclaim waits for its verdicts anyway, and leaves kswapd half, so that
it never crowds it out. Direct reclaim has none: its caller waits for memory *now*, and compresses
for himself rather than queue behind what kswapd sent. (The seed asks "is it kswapd?".)
"""


def gate(
    *,
    kcompressd: bool,
    who: Reclaimer,
    anon: bool,
    zswap_writeback: bool,
    zswap_enabled: bool,
    synchronous: bool,
    fifo_room: bool,
) -> Gate:
    """Return QUEUED, or the first gate of the seed's swap_sched_async_compress() that is shut."""
    if not kcompressd:
        return Gate.NO_KCOMPRESSD
    if not QUEUE_SHARE[who]:
        return Gate.NOT_ADMITTED
    if not anon:
        return Gate.NOT_ANON
    if not zswap_writeback:
        return Gate.NO_WRITEBACK
    if not (zswap_enabled or synchronous):
        return Gate.NO_COMPRESSION
    return Gate.QUEUED if fifo_room else Gate.FIFO_FULL


WHY: Final = 300  #: characters that are kept of what a compressor raised


def same_filled(data: bytes) -> int | None:
    """Return the 64-bit word that `data` repeats, None where it does not (or has 1 to 15 B).

    No bytes at all are a repeated word too: neither a compressor nor a store is ever given none.
    """
    word = data[:8]
    if word != data[8:16] or len(data) < 16:
        return None if data else 0
    whole, rest = divmod(len(data), 8)
    if data == word * whole + word[:rest]:
        return int.from_bytes(word, "little")
    return None


def expand(word: int, size: int) -> bytes:
    """Return the `size` bytes of a same-filled folio."""
    if word == 0:
        return bytes(size)
    return (word.to_bytes(8, "little") * (size // 8 + 1))[:size]


def squeeze(
    compressor: Compressor,
    pages: Sequence[bytes],
    *,
    checksum: bool = False,
    of_sources: bool = False,
    never: Container[bytes] = (),
) -> Squeezed:
    """Compress a batch. Never raises: what a compressor throws is a FAIL in that folio's row.

    Args:
        compressor: used for the whole batch at once if it can.
        pages: source bytes of each folio.
        checksum: whether to give the crc32 of what a store would get, as a worker process does.
        of_sources: that is the source of each, whatever becomes of it: the store compresses.
        never: pages that the compressor does not get: their rows are FAIL.
    """
    rows = len(pages)
    out = Squeezed(bytearray(rows), [None] * rows, [0] * rows, of_sources)
    todo: list[int] = []
    for i, page in enumerate(pages):
        word = same_filled(page)
        if word is None:
            todo.append(i)
        else:
            out.kinds[i] = SAME_FILLED
            out.values[i] = word
    if never:
        todo = _but_for(never, pages, todo, out)
    blobs = _compress(compressor, [pages[i] for i in todo])
    for i, blob in zip(todo, blobs, strict=True):
        size = len(pages[i])
        if isinstance(blob, int):
            out.kinds[i] = blob
        elif isinstance(blob, str):
            out.kinds[i] = FAIL
            out.why = out.why or blob
        elif len(blob) * 16 > size * 15:
            out.kinds[i] = POOR
            if checksum:
                out.values[i] = crc32(pages[i])
        else:
            out.blobs[i] = blob
            if checksum:
                out.values[i] = crc32(pages[i] if of_sources else blob)
    return out


def _but_for(
    never: Container[bytes], pages: Sequence[bytes], todo: list[int], out: Squeezed
) -> list[int]:
    """Return the rows to compress but for those of pages that the compressor does not get."""
    for i in todo:
        out.kinds[i] = FAIL if pages[i] in never else BLOB
    return [i for i in todo if out.kinds[i] == BLOB]


def many_of(compressor: Compressor) -> Callable[[Sequence[Buffer]], list[bytes]] | None:
    """Return what compresses a whole batch at once, None where a compressor has no such thing."""
    return getattr(compressor, "compress_many", None)


def _compress(compressor: Compressor, pages: list[bytes]) -> list[bytes | int | str]:
    """Return the blob of each page, NOMEM, or the words of what is a FAIL."""
    many = many_of(compressor)
    if many is not None and len(pages) > 1:
        try:
            blobs = [_checked(blob) for blob in many(pages)]
        except Exception:  # noqa: BLE001 - one bad page must not spoil the batch: page by page below
            blobs = []
        if len(blobs) == len(pages):
            return blobs
    return [_compress_one(compressor, page) for page in pages]


def _checked(blob: bytes | None) -> bytes | int | str:
    """Return a blob as bytes of its own: what is no bytes at all, or none of them, is a FAIL."""
    if not isinstance(blob, (bytes, bytearray, memoryview)):  # it is a plugin's word
        return f"compress gave {type(blob).__name__}, not bytes"
    # Else than bytes: a buffer that the library may use again.
    return (blob if type(blob) is bytes else bytes(blob)) or "compress gave no bytes"


def _compress_one(compressor: Compressor, page: bytes) -> bytes | int | str:
    try:
        return _checked(compressor.compress(page))
    except MemoryError:
        return NOMEM
    except Exception as exc:  # noqa: BLE001 - any fault of a plugin is a FAIL row, counted by the core
        try:
            return f"{type(exc).__name__}: {exc}"[:WHY]
        except Exception:  # noqa: BLE001 - of the error's own words
            return type(exc).__name__


def outcome(kind: int, *, pool_accepts: bool, swap_has_room: bool) -> Verdict:
    """Return what becomes of a folio: the one table of what is stolen, and what is really freed.

    | folio | swap has room | no swap, or full |
    |---|---|---|
    | same-filled | ZERO | ZERO |
    | compressible, pool accepts | STORED | STORED |
    | compressible, pool over its limit | DEVICE, as it is | ACTIVATE |
    | incompressible | DEVICE, as it is | ACTIVATE |
    | the compressor raised, or found no memory | DEVICE, as it is | ERROR |
    """
    if kind == SAME_FILLED:
        return Verdict.ZERO
    if kind == BLOB and pool_accepts:
        return Verdict.STORED
    if swap_has_room:
        return Verdict.DEVICE
    return Verdict.ERROR if kind in {FAIL, NOMEM} else Verdict.ACTIVATE
