"""The `zram` backend: a compressed disk in RAM. Mirrors drivers/block/zram.

Slots are compressed in this process and charged to the budget by what they weigh. What is stored
through `store_many` is compressed here, in slices that leave the event loop free; where the machine
has workers with the same compressor they compress in front of it, and `store_squeezed` takes the
result at once. Same-filled slots hold a word, incompressible ones their bytes as they came (huge).

Cold or huge slots can be made smaller afterwards, when somebody says so: `recompress` with a second
compressor, `writeback` to a backing store. Those two are in `zram_passes`, the rows in
`zram_table`.
"""

from __future__ import annotations

import errno
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar

import anyio
from anyio.lowlevel import checkpoint

from reclaimactors import registry
from reclaimactors.abc import Backend
from reclaimactors.backends.zram_passes import BackingStore, Kind, recompress, writeback
from reclaimactors.backends.zram_table import HUGE, IDLE, SAME, SECONDARY, WB, SlotTable
from reclaimactors.cpu import clock
from reclaimactors.errors import BackendError, BackendFull, CorruptData
from reclaimactors.mm.page_io import SAME_FILLED, expand, squeeze
from reclaimactors.registry import PluginRef
from reclaimactors.units import format_size, parse_size

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

__all__ = ["ZramBackend"]

SLICE_S = 0.0005  #: of compressing or decompressing on end
MOST_AT_ONCE = 64  #: pages compressed in one go, however fast that is


class ZramBackend(Backend):
    """Slots compressed in this process.

    Args:
        compressor: a name or a table ``{name = ..., its options}``; default lz4. Where it is the
            topology's own, the topology's workers compress for it.
        recompressor: the same, for `recompress`; None = there is none.
        mem_limit: bytes in memory at most, as an int or "64MiB"; None or 0 = no limit of its own.
            What does not compress takes nothing of it, unless it can be made smaller later: it
            stays in memory, or goes to another store.
        backing: a backend, as a name or a table, that `writeback` writes to; opened and closed with
            this one. None = there is none.
        writeback_limit: bytes that may still be written back, whole pages; None = any number.
        writeback_batch: slots on their way to the backing store at a time.
    """

    synchronous: ClassVar[bool] = True

    def __init__(
        self,
        compressor: Any = "lz4",
        *,
        recompressor: Any = None,
        mem_limit: int | str | None = None,
        backing: Any = None,
        writeback_limit: int | str | None = None,
        writeback_batch: int = 32,
    ) -> None:
        self.compressor = PluginRef.parse(compressor, where="compressor")
        self.primary = registry.build("compressors", self.compressor)
        self.secondary = None
        if recompressor is not None:
            ref = PluginRef.parse(recompressor, where="recompressor")
            self.secondary = registry.build("compressors", ref)
        self.backing: BackingStore | None = None
        if backing is not None:
            self.backing = BackingStore(PluginRef.parse(backing, where="backing"))
        self.mem_limit = _size("mem_limit", mem_limit) or 0
        self.writeback_left = _size("writeback_limit", writeback_limit)
        if type(writeback_batch) is not int or not 1 <= writeback_batch <= 1024:
            raise ValueError(f"writeback_batch is {writeback_batch!r}; allowed: 1 to 1024 slots")
        self.writeback_batch = writeback_batch
        self.table = SlotTable()
        self.page_size = 0
        self.closed = False
        self._one_pass = anyio.Lock(
            fast_acquire=True
        )  # recompress and writeback exclude each other
        self._at_once = 8  # pages that take less than a slice to compress, as far as we know
        self._slot_s = 5e-6  # seconds to decompress a slot, as measured
        self._failed_reads = 0
        self._failed_writes = 0
        self._notify_free = 0

    # -- life -------------------------------------------------------------------------------------

    async def open(self, page_size: int) -> None:
        """Open the backing store, if there is one."""
        self.page_size = page_size
        self.closed = False
        smaller_later = self.secondary is not None or self.backing is not None
        self.takes_whole = not self.mem_limit or smaller_later
        if self.backing is not None:
            await self.backing.open(page_size)

    async def aclose(self) -> None:
        """End a pass that is under way, close the backing store, and drop every slot."""
        self.closed = True
        try:
            async with self._one_pass:
                self.table = SlotTable()
        finally:  # a pass that hangs in the backing store does not keep that from being closed
            if self.backing is not None:
                await self.backing.aclose()

    # -- store ------------------------------------------------------------------------------------

    async def store_many(self, items: Sequence[tuple[int, bytes]]) -> None:
        """Compress and store all of the items, or none of them.

        Raises:
            BackendFull: if they would pass `mem_limit`; every slot is as it was.
        """
        kept = await self._squeeze([data for _, data in items])
        slots = [slot for slot, _ in items]
        fit = self._fit(slots, kept)
        if fit < len(slots):
            self._refuse(len(slots))
            raise BackendFull(self.why_full)
        self.table.store(slots, [len(data) for _, data in items], kept)

    def store_squeezed(
        self, slots: Sequence[int], sizes: Sequence[int], kept: Sequence[bytes | int]
    ) -> int:
        """Store at once what was compressed with `compressor`; return how many rows fitted."""
        fit = self._fit(slots, kept)
        refused = len(slots) - fit
        if refused:
            slots, sizes, kept = slots[:fit], sizes[:fit], kept[:fit]
        self.table.store(slots, sizes, kept)
        if refused:
            self._refuse(refused)
        return fit

    def _fit(self, slots: Sequence[int], kept: Sequence[bytes | int]) -> int:
        """Return how many rows, one after the other, stay within `mem_limit`."""
        if not self.mem_limit:
            return len(slots)
        room = self.mem_limit - self.table.held_bytes
        for row, (slot, what) in enumerate(zip(slots, kept, strict=True)):
            room -= self.table.growth(slot, what)
            if room < 0:
                return row
        return len(slots)

    def _refuse(self, rows: int) -> None:
        self._failed_writes += rows
        limit, used = format_size(self.mem_limit), format_size(self.table.held_bytes)
        self.why_full = (
            f"zram: {rows} slots more would pass its mem_limit of {limit}, "
            f"of which {used} is used; mem_limit may be raised"
        )

    async def _squeeze(self, pages: Sequence[bytes]) -> list[bytes | int]:
        """Return what to keep of each page; what the compressor fails on is kept as it is."""
        kept: list[bytes | int] = []
        while len(kept) < len(pages):
            some = pages[len(kept) : len(kept) + self._at_once]
            started = clock.perf_counter()
            out = squeeze(self.primary, some, never=self.never_compress)
            took = clock.perf_counter() - started
            for page, kind, blob, word in zip(some, out.kinds, out.blobs, out.values, strict=True):
                kept.append(word if kind == SAME_FILLED else bytes(page) if blob is None else blob)
            if took > SLICE_S:
                self._at_once = max(1, self._at_once // 2)
            elif len(some) == self._at_once and took < SLICE_S / 4:
                self._at_once = min(MOST_AT_ONCE, 2 * self._at_once)
            if len(kept) < len(pages):
                await checkpoint()
        return kept

    # -- load -------------------------------------------------------------------------------------

    async def load_many(self, slots: Sequence[int]) -> list[bytes]:
        """Return what was stored, from the backing store where it has been written back.

        Raises:
            CorruptData: if a blob is damaged.
            BackendError: if a slot was never stored, or the backing store cannot give it.
        """
        self._must_be_stored(slots)
        try:
            return await self._load(slots)
        except Exception:  # whatever it was: the swapd translates it
            self._failed_reads += 1
            raise

    async def _load(self, slots: Sequence[int]) -> list[bytes]:
        flags = self.table.flags
        away = await self._read_back([slot for slot in slots if flags[slot] & WB])
        out: list[bytes] = []
        ends = clock.perf_counter() + SLICE_S
        for slot in slots:
            if flags[slot] & WB and slot not in away:  # it went while others were read
                away |= await self._read_back([slot])
            stored = away.get(slot)
            out.append(
                self._read(slot) if stored is None else self.decompress(slot, flags[slot], stored)
            )
            if clock.perf_counter() > ends and len(out) < len(slots):
                await checkpoint()
                ends = clock.perf_counter() + SLICE_S
        return out

    def load_now(self, slots: Sequence[int]) -> list[bytes] | None:
        """Return what was stored where it is in memory and not much; else None."""
        flags = self.table.flags_of
        if len(slots) > 1 and len(slots) * self._slot_s > 2 * SLICE_S:
            return None
        started = clock.perf_counter()
        self._must_be_stored(slots)
        if any(flags(slot) & WB for slot in slots):
            return None
        try:
            out = [self._read(slot) for slot in slots]
        except CorruptData:
            return None  # `load_many` says so, and counts it
        if len(slots) > 1:
            self._slot_s += ((clock.perf_counter() - started) / len(slots) - self._slot_s) * 0.1
        return out

    def _must_be_stored(self, slots: Sequence[int]) -> None:
        flags = self.table.flags_of
        for slot in slots:
            if not flags(slot):
                raise BackendError(errno.ENOENT, f"zram: slot {slot} was never stored")

    def _read(self, slot: int) -> bytes:
        """Return a slot that is in memory; it is accessed, so no longer idle."""
        table = self.table
        flags = table.flags[slot]
        if flags & IDLE:
            table.flags[slot] = flags & ~IDLE
        if flags & SAME:
            return expand(table.word[slot], table.size[slot])
        return self.decompress(slot, flags, table.bytes[slot])

    async def _read_back(self, slots: Sequence[int]) -> dict[int, bytes]:
        """Return what slots hold that have been written back."""
        if not slots:
            return {}
        assert self.backing is not None
        block, length = self.table.block, self.table.length
        stored = await self.backing.load([block[s] for s in slots], [length[s] for s in slots])
        return dict(zip(slots, stored, strict=True))

    def decompress(self, slot: int, flags: int, stored: bytes) -> bytes:
        """Return the source of what a slot holds, in memory or in a block.

        Raises:
            CorruptData: if it cannot be had.
        """
        size = self.table.size[slot]
        if flags & HUGE:
            return stored
        compressor = self.secondary if flags & SECONDARY else self.primary
        assert compressor is not None
        try:
            data = bytes(compressor.decompress(stored, size))
        except CorruptData as exc:
            raise CorruptData(f"zram: slot {slot} is damaged: {exc}") from exc
        except Exception as exc:
            msg = f"zram: compressor {compressor.name} raised on slot {slot}: {exc!r}"
            raise CorruptData(msg) from exc
        if len(data) != size:
            msg = f"zram: slot {slot} is damaged: it gives {len(data)} B, not {size}"
            raise CorruptData(msg)
        return data

    # -- forget -----------------------------------------------------------------------------------

    async def invalidate_many(self, slots: Sequence[int]) -> None:
        """Free the slots; a writeback in flight of one of them will be thrown away."""
        table = self.table
        ends = clock.perf_counter() + SLICE_S
        for slot in slots:
            self._notify_free += table.free(slot)
            if clock.perf_counter() > ends:
                await checkpoint()
                ends = clock.perf_counter() + SLICE_S
        if self.backing is not None:
            await self.backing.forget(table.dropped)

    def footprint(self, slots: Sequence[int]) -> int:
        """Return the bytes in memory of these stored slots."""
        table = self.table
        if len(slots) == 1 and not table.block:
            return table.held[slots[0]]
        nr_bytes = sum([table.held[slot] for slot in slots])
        if table.block and self.backing is not None:
            blocks = [table.block[slot] for slot in slots if slot in table.block]
            nr_bytes += self.backing.footprint(blocks)
        return nr_bytes

    # -- what an administrator asks for -----------------------------------------------------------

    def mark_idle(self, slots: Iterable[int] | None = None) -> None:
        """Mark slots, None = all of them: idle are those not accessed between this and a pass."""
        self.table.mark_idle(slots)

    async def recompress(
        self, kind: Kind = "idle", *, threshold: int | str = 0, max_slots: int | None = None
    ) -> int:
        """Compress slots again with `recompressor`, the biggest first; return the bytes gained.

        A slot on which it gains nothing is not tried again until it is stored anew.

        Args:
            kind: "idle", "huge" or "huge_idle" (both at once).
            threshold: only slots that hold so many bytes or more.
            max_slots: tried at most, with success or not; None = all.

        Raises:
            BackendError: if there is no recompressor, or (CorruptData) a slot that was met is
                damaged; all others have been tried then.
        """
        async with self._one_pass:
            return await recompress(self, kind, _size("threshold", threshold) or 0, max_slots)

    async def writeback(self, kind: Kind = "idle", *, max_slots: int | None = None) -> int:
        """Write slots to the backing store, as they are, and drop them here; return how many.

        It ends once `writeback_limit` is used up (each slot counts as a page). Nothing is in flight
        any more when it returns, raises, or is cancelled.

        Args:
            kind: "idle", "huge", "huge_idle" or "incompressible" (a failed recompression).
            max_slots: written at most; None = all.

        Raises:
            BackendError: if there is no backing store; or the last one of what failed, once all
                slots were tried. A slot that could not be written stays in memory.
        """
        async with self._one_pass:
            return await writeback(self, kind, max_slots)

    # -- counters ---------------------------------------------------------------------------------

    @property
    def mm_stat(self) -> Mapping[str, int]:
        """The fields of /sys/block/zram0/mm_stat: bytes, and slots where it says pages."""
        table = self.table
        return MappingProxyType({
            "orig_data_size": table.source_bytes,
            "compr_data_size": table.held_bytes,
            "mem_used_total": table.held_bytes,
            "mem_limit": self.mem_limit,
            "mem_used_max": table.most_held_bytes,
            "same_pages": table.same_slots,
            "pages_compacted": 0,  # malloc compacts nothing
            "huge_pages": table.huge_slots,
            "huge_pages_since": table.huge_since,
        })  # fmt: skip

    @property
    def io_stat(self) -> Mapping[str, int]:
        """The fields of io_stat: slots."""
        return MappingProxyType({
            "failed_reads": self._failed_reads,
            "failed_writes": self._failed_writes,
            "invalid_io": 0,  # a slot is always a page
            "notify_free": self._notify_free,
        })  # fmt: skip

    @property
    def bd_stat(self) -> Mapping[str, int]:
        """The fields of bd_stat: slots that are there, were read, were written."""
        backing = self.backing
        return MappingProxyType({
            "bd_count": len(self.table.block),
            "bd_reads": 0 if backing is None else backing.nr_reads,
            "bd_writes": 0 if backing is None else backing.nr_writes,
        })  # fmt: skip


def _size(what: str, value: int | str | None) -> int | None:
    if value is None:
        return None
    try:
        return parse_size(value)
    except ValueError as exc:
        raise ValueError(f"{what}: {exc}") from None
