"""A backing store in a map of LMDB's: a batch is one transaction, and readers never wait for it.

In a topology: ``backend = "lmdb"``, or
``backend = { name = "lmdb", path = "/mnt/disk", map_bytes = 4_294_967_296 }``.

The map is a file of its own that has no name any more once it is open: nothing is left of it
however the process ends, and nothing of an earlier one is ever read. So it is not synced either.
LMDB's rooms are pages too, and each value of more than about half a page has a header: a slot of
4 KiB takes two of them, which is why a map holds about 7/16 of its size.
"""

from __future__ import annotations

import errno
import shutil
import tempfile
from contextlib import contextmanager
from typing import TYPE_CHECKING

import lmdb
from anyio import CapacityLimiter, to_thread

import reclaimactors as ra

if TYPE_CHECKING:
    from collections.abc import Generator, Sequence

__all__ = ["Lmdb"]

_HEADER = 16  # bytes that LMDB puts before a value with pages of its own
_SPARE_PART = 8  # one in so many pages is left to the tree, and to what transactions copy
_READERS = 4  # threads
_NO_ROOM = 1 << 20  # bytes free on the disk, below which a failed write is one for want of room:
# LMDB says "Input/output error" of a batch that is cut off in the middle


class Lmdb(ra.Backend):
    """Slots as keys of eight bytes.

    Args:
        path: the folder to make the map in, on a disk; None = /var/tmp.
        map_bytes: the most that the map's file may grow to, from 1 MiB; default 1 GiB.
    """

    def __init__(self, path: str | None = None, map_bytes: int = 1 << 30) -> None:
        if map_bytes < 1 << 20:
            raise ra.PluginError(
                f"lmdb: map_bytes is {map_bytes}; allowed is 1 MiB (1048576) or more"
            )
        self._path = path or "/var/tmp"  # noqa: S108 - a folder of its own is made there
        self._map_bytes = map_bytes
        self._map: lmdb.Environment | None = None

    async def open(self, page_size: int) -> None:
        """Make the map.

        Raises:
            BackendError: if there is no such folder, or no map can be made there.
        """
        self._writer, self._readers = CapacityLimiter(1), CapacityLimiter(_READERS)
        await to_thread.run_sync(self._open, page_size, limiter=self._writer)

    async def aclose(self) -> None:
        """Close the map, which gives its space back."""
        opened, self._map = self._map, None
        if opened is not None:
            await to_thread.run_sync(opened.close, limiter=self._writer)

    async def store_many(self, items: Sequence[tuple[int, bytes]]) -> None:
        """Store all items in one transaction, or none of them.

        On failure: every slot holds what it held before.

        Raises:
            BackendFull: if the map, or the disk under it, has no room.
        """
        # A thread's call is not abandoned when its caller is cancelled, so no write comes late.
        await to_thread.run_sync(self._store, items, limiter=self._writer)

    async def load_many(self, slots: Sequence[int]) -> list[bytes]:
        """Return the bytes of each slot, as the last transaction left them."""
        return await to_thread.run_sync(self._load, slots, limiter=self._readers)

    async def invalidate_many(self, slots: Sequence[int]) -> None:
        """Forget the slots, in one transaction."""
        await to_thread.run_sync(self._forget, slots, limiter=self._writer)

    # -- what runs in a thread

    def _open(self, page_size: int) -> None:
        with self._told("opening"):
            folder = tempfile.mkdtemp(prefix="reclaimactors-", dir=self._path)
            try:
                self._map = lmdb.open(
                    folder, map_size=self._map_bytes, mode=0o600, readahead=False,
                    sync=False, metasync=False,
                )  # fmt: skip
            finally:
                shutil.rmtree(folder)
            psize = int(self._map.stat()["psize"])
        pages = self._map_bytes // psize
        each = -(-(page_size + _HEADER) // psize)
        self.capacity = max(1, (pages - pages // _SPARE_PART) // each)

    def _store(self, items: Sequence[tuple[int, bytes]]) -> None:
        with self._told("storing"), self._begin(write=True) as transaction:
            for slot, data in items:
                transaction.put(_key(slot), data)

    def _load(self, slots: Sequence[int]) -> list[bytes]:
        found = self._get(slots)
        missing = [slot for slot, data in zip(slots, found, strict=True) if data is None]
        if missing:
            raise ra.BackendError(errno.ENOENT, f"lmdb: slot {missing[0]} is not stored")
        return [bytes(data) for data in found if data is not None]

    def _get(self, slots: Sequence[int]) -> list[ra.Buffer | None]:
        # A function of its own: a transaction has its place among LMDB's readers until nobody knows
        # it any more, and an error knows the names of all the functions that it came through.
        with self._told("loading"), self._begin(write=False) as transaction:
            return [transaction.get(_key(slot)) for slot in slots]

    def _forget(self, slots: Sequence[int]) -> None:
        with self._told("forgetting"), self._begin(write=True) as transaction:
            for slot in slots:
                transaction.delete(_key(slot))

    def _begin(self, *, write: bool) -> lmdb.Transaction:
        if self._map is None:
            raise ra.BackendError(errno.EBADF, "lmdb: the map is not open")
        return self._map.begin(write=write)

    @contextmanager
    def _told(self, doing: str) -> Generator[None]:
        """Say in the words of a backing store what went wrong, where, and what helps."""
        where = f"lmdb: {doing} in a map in {self._path!r}"
        try:
            yield
        except lmdb.MapFullError as exc:
            full = f"{where}: it is full; give a larger map_bytes than {self._map_bytes}"
            raise ra.BackendFull(full) from exc
        except lmdb.Error as exc:
            if shutil.disk_usage(self._path).free < _NO_ROOM:
                raise ra.BackendFull(f"{where}: {exc}; free space there, or give a `path`") from exc
            raise ra.BackendError(errno.EIO, f"{where}: {exc}; check that disk") from exc
        except OSError as exc:
            why = f"{where}: {exc.strerror}; give a `path` that this process may write to"
            raise ra.BackendError(exc.errno or errno.EIO, why) from exc


def _key(slot: int) -> bytes:
    return slot.to_bytes(8, "big")
