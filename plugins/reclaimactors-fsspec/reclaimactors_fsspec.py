"""A backing store on any file system that fsspec knows: an object for each slot.

In a topology: ``backend = { name = "fsspec", url = "s3://bucket/swap" }``.

Each store of a slot goes to a new object, so a write that lands late lands where nobody looks. The
objects have a folder of their own under `url`, which goes at the close.
"""

from __future__ import annotations

import errno
import itertools
import uuid
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from anyio import CapacityLimiter, to_thread
from fsspec.core import url_to_fs

import reclaimactors as ra

if TYPE_CHECKING:
    from collections.abc import Generator, Mapping, Sequence

__all__ = ["Fsspec"]

_THREADS = 8  # batches that are under way at once
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class Fsspec(ra.Backend):
    """Slots as objects.

    Args:
        url: where, as "s3://bucket/swap" or "file:///mnt/nfs"; "memory://" is refused.
        options: keyword arguments of the file system, as fsspec documents them.
    """

    rotational = True  # a round trip is dear: neighbours are better read with a slot

    def __init__(self, url: str, options: Mapping[str, Any] | None = None) -> None:
        if url.startswith("memory:"):
            raise ra.PluginError(f"fsspec: {url} is in this process: use the backend 'memory'")
        self._url, self._options = url, dict(options or {})
        self._root: str | None = None
        self._objects: dict[int, str] = {}  # by slot, what holds it now

    async def open(self, page_size: int) -> None:  # noqa: ARG002 - objects have any size
        """Make the folder.

        Raises:
            BackendError: if there is no such file system, or it cannot be written to.
        """
        self._limiter = CapacityLimiter(_THREADS)
        self._objects, self._names = {}, itertools.count()
        await to_thread.run_sync(self._open, limiter=self._limiter)

    async def aclose(self) -> None:
        """Remove the folder, with all that is in it."""
        root, self._root, self._objects = self._root, None, {}
        if root is not None:
            await to_thread.run_sync(self._remove, root, limiter=self._limiter)

    async def store_many(self, items: Sequence[tuple[int, bytes]]) -> None:
        """Write an object for each item.

        On failure: none of the items can be loaded; their slots may have lost what they held.

        Raises:
            BackendFull: if there is no room.
        """
        names = {slot: f"{self._root}/{next(self._names):x}" for slot, _ in items}
        objects = {names[slot]: bytes(data) for slot, data in items}
        # A thread's call is not abandoned when its caller is cancelled.
        await to_thread.run_sync(self._write, objects, limiter=self._limiter)
        await self.invalidate_many(list(names))
        self._objects |= names  # the last thing: nothing of a call that raises may be loaded

    async def load_many(self, slots: Sequence[int]) -> list[bytes]:
        """Return the bytes of each slot.

        Raises:
            BackendError: if one is not stored, or its object is gone.
        """
        try:
            names = [self._objects[slot] for slot in slots]
        except KeyError as exc:
            raise ra.BackendError(errno.ENOENT, f"fsspec: slot {exc} is not stored") from None
        return await to_thread.run_sync(self._read, names, limiter=self._limiter)

    async def invalidate_many(self, slots: Sequence[int]) -> None:
        """Delete the objects of the slots."""
        old = [self._objects.pop(slot) for slot in slots if slot in self._objects]
        if old:
            await to_thread.run_sync(self._delete, old, limiter=self._limiter)

    # -- what runs in a thread

    def _open(self) -> None:
        with self._told("opening"):
            self._fs, base = url_to_fs(self._url, **self._options)
            root = f"{base.rstrip('/')}/reclaimactors-{uuid.uuid4().hex}"
            self._fs.makedirs(root)
            self._root = root

    def _write(self, objects: dict[str, bytes]) -> None:
        if objects:
            with self._told("storing"):
                self._fs.pipe(objects)

    def _read(self, names: Sequence[str]) -> list[bytes]:
        if not names:
            return []
        with self._told("loading"):
            found = self._fs.cat(list(names))
            return [found[name] for name in names] if isinstance(found, dict) else [found]

    def _delete(self, names: Sequence[str]) -> None:
        with self._told("forgetting"):
            self._fs.rm(list(names))

    def _remove(self, root: str) -> None:
        with self._told("closing"):
            self._fs.rm(root, recursive=True)

    @contextmanager
    def _told(self, doing: str) -> Generator[None]:
        """Say in the words of a backing store what went wrong, where, and what helps."""
        where = f"fsspec: {doing} at {self._url}"
        try:
            yield
        except Exception as exc:  # each file system raises what its library does
            why = f"{where}: {type(exc).__name__}: {exc}"
            if isinstance(exc, OSError) and exc.errno in _FULL:
                raise ra.BackendFull(f"{why}; make room there") from exc
            raise ra.BackendError(errno.EIO, f"{why}; check that it can be reached") from exc
