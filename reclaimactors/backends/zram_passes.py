"""What makes slots of zram smaller afterwards: recompression, and writeback to a backing store.

A pass notes its candidates, then walks them, the biggest first; a slot that was freed, overwritten
or accessed meanwhile no longer is one when its turn comes. Both passes leave the event loop free,
and what a slot held stays readable until something better has taken its place.
"""

from __future__ import annotations

import errno
from array import array
from contextlib import suppress
from typing import TYPE_CHECKING, Literal

import anyio
from anyio.lowlevel import checkpoint

from reclaimactors import registry
from reclaimactors.backends.zram_table import (
    HUGE,
    IDLE,
    INCOMPRESSIBLE,
    OWNED,
    SAME,
    SECONDARY,
    WB,
)  # fmt: skip
from reclaimactors.cpu import clock
from reclaimactors.deadline import within
from reclaimactors.errors import BackendError, CorruptData
from reclaimactors.mm.page_io import squeeze
from reclaimactors.mm.swap_device import SwapDevice

if TYPE_CHECKING:
    from collections.abc import Sequence

    from reclaimactors.backends.zram import ZramBackend
    from reclaimactors.registry import PluginRef

__all__ = ["BackingStore", "Kind", "recompress", "writeback"]

Kind = Literal["idle", "huge", "huge_idle", "incompressible"]

SLICE_S = 0.0005  #: of a pass on end
SCAN = 4096  #: rows looked at in one go
CLASS_BYTES = 64  #: slots of sizes that differ by less are taken in any order, as in the kernel
WRITE_S = 30.0  #: of loop time, after which a write to the backing store is given up

_WANTED = {"idle": IDLE, "huge": HUGE, "huge_idle": HUGE | IDLE, "incompressible": INCOMPRESSIBLE}


class BackingStore:
    """A backend, and which of its slots (blocks) are in use."""

    def __init__(self, ref: PluginRef) -> None:
        self.backend = registry.build("backends", ref)
        self.blocks = SwapDevice(0, ref.name, 0, None)
        self.nr_reads = 0
        self.nr_writes = 0
        self._mine = False

    async def open(self, page_size: int) -> None:
        """Open it, with every block free.

        Raises:
            BackendError: if somebody else uses it.
        """
        registry.take(self.backend, f"zram (backing {self.blocks.name!r})")
        self._mine = True
        self.blocks = SwapDevice(0, self.blocks.name, 0, None)
        await self.backend.open(page_size)
        self.blocks.capacity = self.backend.capacity

    async def aclose(self) -> None:
        """Close it, unless it was never opened here."""
        if self._mine:
            try:
                await self.backend.aclose()
            finally:
                self._mine = False
                registry.let_go(self.backend)

    def footprint(self, blocks: Sequence[int]) -> int:
        """Return what these blocks weigh in this process."""
        return self.backend.footprint(blocks) if self.backend.in_this_process and blocks else 0

    async def load(self, blocks: Sequence[int], lengths: Sequence[int]) -> list[bytes]:
        """Return what each block holds.

        Raises:
            BackendError: if they cannot be read.
            CorruptData: if one is too short.
        """
        name = self.blocks.name
        try:
            stored = await self.backend.load_many(blocks)
        except Exception as exc:
            msg = f"zram: its backing store {name!r} failed to load: {exc}"
            raise BackendError(getattr(exc, "errno", None) or errno.EIO, msg) from exc
        self.nr_reads += len(blocks)
        for data, length in zip(stored, lengths, strict=True):
            if len(data) < length:
                raise CorruptData(
                    f"zram: its backing store {name!r} gave {len(data)} B of {length}"
                )
        return [bytes(data[:length]) for data, length in zip(stored, lengths, strict=True)]

    async def write(self, items: Sequence[tuple[int, bytes]]) -> Exception | None:
        """Write blocks; return why not. Whoever cancels waits until it is known which it was."""

        async def write() -> Exception | None:
            try:
                await self.backend.store_many(items)
            except Exception as exc:  # noqa: BLE001 - whatever a store raises, it has not stored
                return exc
            self.nr_writes += len(items)
            return None

        with suppress(TimeoutError), anyio.CancelScope(shield=True):
            return await within(WRITE_S, write)
        return _TooSlow(errno.ETIMEDOUT, f"it took longer than {WRITE_S:g} s")

    async def forget(self, dropped: list[int]) -> None:
        """Forget blocks, which may be used again then. Those not forgotten stay in `dropped`."""
        if not dropped:
            return
        blocks = dropped[:]
        dropped.clear()
        try:
            await self.backend.invalidate_many(blocks)
        except BaseException:  # cancelled too: it may still happen, so nobody may use them yet
            dropped += blocks
            raise
        for block in blocks:
            self.blocks.free(block, 1)

    async def forget_aside(self) -> None:
        """Have blocks forgotten that a write which was given up may still reach, if there are any.

        On failure they stay aside: the next pass tries it again, and its writes say what is wrong.
        """
        blocks = self.blocks.first_aside(self.blocks.aside)
        if blocks:
            with suppress(OSError, TimeoutError):
                await within(WRITE_S, lambda: self.backend.invalidate_many(blocks))
                self.blocks.take_back(len(blocks))


class _TooSlow(BackendError):  # noqa: N818 - says what happened
    """The deadline passed; what was asked may still happen."""


async def _candidates(zram: ZramBackend, wanted: int, skip: int, threshold: int) -> array[int]:
    """Return the slots with all of the flags `wanted` and none of `skip`, biggest first."""
    table = zram.table
    classes: dict[int, array[int]] = {}
    for start in range(0, len(table), SCAN):
        for slot, flags in enumerate(table.flags[start : start + SCAN], start):
            if flags & wanted == wanted and not flags & skip and table.held[slot] >= threshold:
                size = table.held[slot] // CLASS_BYTES
                classes.setdefault(size, array("Q")).append(slot)
        await checkpoint()
    slots = array("Q")
    for size in sorted(classes, reverse=True):
        slots += classes[size]
    return slots


def _is_candidate(zram: ZramBackend, slot: int, wanted: int, skip: int) -> bool:
    flags = zram.table.flags_of(slot)
    return flags & wanted == wanted and not flags & skip


async def recompress(zram: ZramBackend, kind: Kind, threshold: int, max_slots: int | None) -> int:
    """Compress candidates again; return the bytes gained. See `ZramBackend.recompress`."""
    secondary = zram.secondary
    if secondary is None:
        raise BackendError("zram: there is no recompressor; give the backend the option")
    if kind not in ("idle", "huge", "huge_idle"):
        raise ValueError(f"kind is {kind!r}; allowed: idle, huge, huge_idle")
    wanted, skip = _WANTED[kind], SAME | WB | SECONDARY | INCOMPRESSIBLE
    gained = tried = 0
    damaged: CorruptData | None = None
    ends = clock.perf_counter() + SLICE_S
    for slot in await _candidates(zram, wanted, skip, threshold):
        if tried == max_slots or zram.closed:
            break
        if _is_candidate(zram, slot, wanted, skip):
            tried += 1
            try:
                gained += _recompress(zram, slot)
            except CorruptData as exc:
                damaged = exc
        if clock.perf_counter() > ends:
            await checkpoint()
            ends = clock.perf_counter() + SLICE_S
    if damaged is not None:
        raise damaged
    return gained


def _recompress(zram: ZramBackend, slot: int) -> int:
    """Try the secondary compressor on one slot; return the bytes gained, 0 where it failed."""
    table = zram.table
    assert zram.secondary is not None
    source = zram.decompress(slot, table.flags[slot], table.bytes[slot])
    out = squeeze(zram.secondary, (source,), never=zram.never_compress)
    blob = out.blobs[0]
    gained = table.held[slot] - len(blob) if blob is not None else 0
    if gained <= 0 or blob is None:
        table.flags[slot] |= INCOMPRESSIBLE
        return 0
    table.recompressed(slot, blob)
    zram.on_shrunk(slot)
    return gained


async def writeback(zram: ZramBackend, kind: Kind, max_slots: int | None) -> int:
    """Write candidates to the backing store; return how many. See `ZramBackend.writeback`."""
    if zram.backing is None:
        raise BackendError("zram: there is no backing store; give the backend the option")
    if kind not in _WANTED:
        raise ValueError(f"kind is {kind!r}; allowed: {', '.join(_WANTED)}")
    backing, table = zram.backing, zram.table
    await backing.forget_aside()
    wanted, skip = _WANTED[kind], SAME | WB
    candidates = await _candidates(zram, wanted, skip, 0)
    written, left = 0, len(candidates) if max_slots is None else max_slots
    failed: Exception | None = None
    for start in range(0, len(candidates), zram.writeback_batch):
        slots = candidates[start : start + zram.writeback_batch][: left - written]
        rows = _submit(zram, [slot for slot in slots if _is_candidate(zram, slot, wanted, skip)])
        done, exc = await _write(zram, rows)
        written += done
        failed = exc or failed
        await backing.forget(table.dropped)
        if zram.closed or written >= left or isinstance(exc, _TooSlow) or not _has_room(zram):
            break
        await checkpoint()
    if failed is not None:
        msg = f"zram: {written} slots went to its backing store {backing.blocks.name!r}: {failed}"
        raise BackendError(getattr(failed, "errno", None) or errno.EIO, msg) from failed
    return written


def _has_room(zram: ZramBackend) -> bool:
    """Whether another slot may be written back."""
    assert zram.backing is not None
    within = zram.writeback_left is None or zram.writeback_left >= zram.page_size
    return within and zram.backing.blocks.free_slots > 0


def _submit(zram: ZramBackend, slots: Sequence[int]) -> list[tuple[int, int]]:
    """Take blocks for slots, while there are some, charge the limit, and mark the slots."""
    assert zram.backing is not None
    rows: list[tuple[int, int]] = []
    for slot in slots:
        block = zram.backing.blocks.alloc(1) if _has_room(zram) else None
        if block is None:
            break
        _charge(zram, -zram.page_size)
        zram.table.flags[slot] |= OWNED
        rows.append((slot, block))
    return rows


def _charge(zram: ZramBackend, nr_bytes: int) -> None:
    if zram.writeback_left is not None:
        zram.writeback_left += nr_bytes


async def _write(
    zram: ZramBackend, rows: Sequence[tuple[int, int]]
) -> tuple[int, Exception | None]:
    """Write (slot, block) rows, together, or where that fails one by one: one may be bad.

    Returns:
        How many slots are in the backing store now, and the last error.
    """
    left, done = list(rows), 0
    failed: Exception | None = None
    try:
        if left:
            failed = await _attempt(zram, left)
        if failed is None or isinstance(failed, _TooSlow):
            rest, left = left, []
            return _settle(zram, rest, failed), failed
        last = failed
        while left:
            row = left[:1]
            exc = await _attempt(zram, row) if _owns(zram, row[0][0]) else failed
            last = exc or last
            done += _settle(zram, row, exc)
            del left[0]
            if isinstance(exc, _TooSlow):
                break
    except BaseException:  # an interrupt: nobody knows whether these will still be written
        _settle(zram, left, _TooSlow())
        raise
    return done + _settle(zram, left, last), last


async def _attempt(zram: ZramBackend, rows: Sequence[tuple[int, int]]) -> Exception | None:
    assert zram.backing is not None
    return await zram.backing.write([(block, zram.table.bytes[slot]) for slot, block in rows])


def _owns(zram: ZramBackend, slot: int) -> bool:
    """Whether the write in flight is still of what the slot holds."""
    return bool(zram.table.flags_of(slot) & OWNED)


def _settle(zram: ZramBackend, rows: Sequence[tuple[int, int]], failed: Exception | None) -> int:
    """End writes: a slot that was freed or overwritten meanwhile leaves its block to be forgotten.

    Returns:
        How many slots are in the backing store now.
    """
    assert zram.backing is not None
    table, blocks = zram.table, zram.backing.blocks
    done = 0
    for slot, block in rows:
        owned = _owns(zram, slot)
        if owned:
            table.flags[slot] &= ~OWNED
        if failed is not None:
            _charge(zram, zram.page_size)
            if isinstance(failed, _TooSlow):
                blocks.set_aside(block, 1)
            else:
                blocks.free(block, 1)
        elif owned:
            table.written_back(slot, block)
            zram.on_shrunk(slot)
            done += 1
        else:
            table.dropped.append(block)
    return done
