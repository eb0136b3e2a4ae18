"""The `file` backend: one file of slots, written in clusters and read without blocking the loop.

Each slot is a whole page in the file, a shorter item being padded with zeros: consecutive slots
go down in one call whatever they hold, the kernel never has to read a page in order to change a
part of it, and a short read can only mean "not in the page cache".

Theory. A slot is stored or it is not: one byte each in `_stored`, which only the loop's thread
touches. A store clears its slots first and sets them after the write has succeeded, so a write
that failed or was abandoned left nothing that a load may return. A thread cannot be cancelled: a
write whose caller has gone is a *stray*, which stops at its next cluster, and until it ends a
later write of one of its slots waits for it in its own thread; otherwise old bytes could land on
new ones.

Not covered: space of invalidated slots stays with the file until it is closed. What is on the
disk is not synced, as nothing outlives this process.
"""

from __future__ import annotations

import errno
import os
import threading
from contextlib import suppress
from itertools import chain
from operator import itemgetter
from typing import TYPE_CHECKING

from anyio import CancelScope, CapacityLimiter, to_thread

from reclaimactors.abc import Backend
from reclaimactors.backends.swapfile import SwapFile
from reclaimactors.deadline import within
from reclaimactors.errors import BackendError
from reclaimactors.units import KIB

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

__all__ = ["FileBackend"]

_CLUSTER = 256  # slots a call: the thread asks for the interpreter again after each of them
_INLINE_BYTES = 256 * KIB  # copying these out of the page cache holds the loop for some 60 us
_CLOSE_S = 1.0  # that somebody waits for the close: freeing gigabytes takes a while
_THREADS = 4  # of each kind at once; reads have their own, so that no slow write delays them
_NO_NOWAIT = {errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS}


class FileBackend(Backend):
    """Keeps slots in an unnamed file of its own, mode 0600.

    Args:
        path: the folder to make the file in. None = the first of /var/tmp and $TMPDIR that is
            not a tmpfs; a tmpfs is used only when named here.
    """

    def __init__(self, path: str | os.PathLike[str] | None = None) -> None:
        self._path = None if path is None else os.fspath(path)
        self._file: SwapFile | None = None
        self._stored = bytearray()  # 1 where the slot holds something
        self._strays: list[_Write] = []
        self._nowait: int = getattr(os, "RWF_NOWAIT", 0)

    async def open(self, page_size: int) -> None:
        """Make the file.

        Raises:
            BackendError: if `path` is missing, is no folder or cannot be written to, or if none
                was given and every usual folder is memory itself.
        """
        self._page_size = page_size
        self._writers, self._readers = CapacityLimiter(_THREADS), CapacityLimiter(_THREADS)
        self._file = SwapFile(self._path)
        await to_thread.run_sync(self._file.open, abandon_on_cancel=True, limiter=self._writers)
        self.rotational = self._file.rotational

    async def aclose(self) -> None:
        """Close the file, which frees its space; a thread still writing closes it when it ends."""
        file, self._file = self._file, None
        self._stored.clear()
        if file is not None:
            with CancelScope(shield=True), suppress(TimeoutError):
                await within(_CLOSE_S, lambda: _off_the_loop(file.close))

    async def store_many(self, items: Sequence[tuple[int, bytes]]) -> None:
        """Write the items, in one hop to a thread, neighbours in one call.

        On failure: none of the slots can be loaded, whatever they held; the others are as before.

        Raises:
            BackendFull: if the disk, the quota or the file size limit has no room.
            BackendError: if the system refuses the write, or an item is longer than a page.
        """
        file = self._opened()
        items = sorted(items, key=itemgetter(0))
        if not items:
            return
        self._strays = [stray for stray in self._strays if stray.busy.locked()]
        runs = _runs(slot for slot, _ in items)
        write = _Write(file, runs, [data for _, data in items], self._page_size, self._strays)
        self._forget(runs)
        try:
            await to_thread.run_sync(write.run, abandon_on_cancel=True, limiter=self._writers)
        except OSError as exc:
            raise file.error(exc, "cannot write to") from exc
        except BaseException:  # cancelled: the thread goes on, and is a stray from here on
            write.cancelled = True
            self._strays.append(write)
            raise
        self._stored.extend(bytes(max(0, runs[-1].stop - len(self._stored))))
        for run in runs:
            self._stored[run.start : run.stop] = b"\1" * len(run)

    async def load_many(self, slots: Sequence[int]) -> list[bytes]:
        """Return a whole page for each slot.

        What the page cache has comes at once and without a checkpoint; from the first run of
        slots that it lacks on, the rest comes from a thread, in one hop.

        Raises:
            BackendError: if a slot is not stored, or cannot be read.
        """
        file = self._opened()
        runs = self._stored_runs(slots)
        try:
            chunks = self._read_cached(file.fd, runs) if self._nowait else []
            if rest := runs[len(chunks) :]:
                chunks += await to_thread.run_sync(
                    _read,
                    file,
                    rest,
                    self._page_size,
                    abandon_on_cancel=True,
                    limiter=self._readers,
                )
        except OSError as exc:
            raise file.error(exc, "cannot read from") from exc
        return self._pages(chunks)

    def load_now(self, slots: Sequence[int]) -> list[bytes] | None:
        """Return a whole page for each slot, if the page cache is known to have them all.

        Raises:
            BackendError: if a slot is not stored, or cannot be read.
        """
        if not self._nowait:
            return None
        file = self._opened()
        runs = self._stored_runs(slots)
        try:
            chunks = self._read_cached(file.fd, runs)
        except OSError as exc:
            raise file.error(exc, "cannot read from") from exc
        return self._pages(chunks) if len(chunks) == len(runs) else None

    def _stored_runs(self, slots: Sequence[int]) -> list[range]:
        """Return the slots as ranges, if all of them are stored."""
        runs = _runs(slots)
        for run in runs:
            if self._stored.count(1, run.start, run.stop) != len(run):
                missing = next(slot for slot in run if not self._stored.count(1, slot, slot + 1))
                folder = self._opened().folder
                msg = f"slot {missing} of the swap file in {folder!r} was never stored"
                raise BackendError(errno.ENOENT, msg)
        return runs

    def _pages(self, chunks: list[bytes]) -> list[bytes]:
        # Cut here and not in a thread: what stays must not come out of a thread's malloc arena.
        size = self._page_size
        return [chunk[i : i + size] for chunk in chunks for i in range(0, len(chunk), size)]

    async def invalidate_many(self, slots: Sequence[int]) -> None:
        """Forget the slots; nothing is written."""
        self._forget(_runs(slots))

    def _opened(self) -> SwapFile:
        if self._file is None:
            raise BackendError(errno.EBADF, "the file backend is not open")
        return self._file

    def _forget(self, runs: list[range]) -> None:
        for run in runs:
            known = range(max(run.start, 0), min(run.stop, len(self._stored)))
            self._stored[known.start : known.stop] = bytes(len(known))

    def _read_cached(self, fd: int, runs: list[range]) -> list[bytes]:
        """Return the leading runs that are in the page cache, without waiting for a disk."""
        chunks: list[bytes] = []
        if sum(map(len, runs)) * self._page_size > _INLINE_BYTES:
            return chunks
        for run in runs:
            buffer = bytearray(len(run) * self._page_size)
            try:
                got = os.preadv(fd, [buffer], run.start * self._page_size, self._nowait)
            except BlockingIOError:
                break
            except OSError as exc:
                if exc.errno not in _NO_NOWAIT:
                    raise
                self._nowait = 0  # this file system never can; do not ask again
                break
            if got < len(buffer):
                break
            chunks.append(bytes(buffer))
        return chunks


class _Write:
    """One `store_many` in its thread; `busy` is held for as long as it may touch the file."""

    def __init__(
        self,
        file: SwapFile,
        runs: list[range],
        data: list[bytes],
        page_size: int,
        strays: list[_Write],
    ) -> None:
        lengths = list(map(len, data))
        if runs[0].start < 0 or min(lengths) < 1 or max(lengths) > page_size:
            msg = f"an item is 1 to {page_size} bytes on a slot of at least 0"
            raise BackendError(errno.EINVAL, msg)
        self.busy = threading.Lock()
        self.cancelled = False
        self._file = file
        self._runs = runs
        self._data = data
        self._page_size = page_size
        slots = set(self.slots()) if strays else set[int]()
        self._after = [stray for stray in strays if not slots.isdisjoint(stray.slots())]

    def slots(self) -> Iterator[int]:
        return chain.from_iterable(self._runs)

    def run(self) -> None:
        # Order matters: `busy` is taken before `cancelled` is read, and the loop sets `cancelled`
        # before it looks at `busy`; a write that it sees idle then never starts.
        with self.busy, self._file.use() as fd:
            for stray in self._after:
                stray.busy.acquire()
                stray.busy.release()
            at = 0
            for run in self._runs:
                for start in range(run.start, run.stop, _CLUSTER):
                    stop = min(start + _CLUSTER, run.stop)
                    self._flush(fd, self._pages(at, at + stop - start), start)
                    at += stop - start

    def _pages(self, start: int, stop: int) -> Sequence[bytes | memoryview]:
        """Return the bytes of whole pages. While this thread runs Python, the loop cannot."""
        data, page = self._data[start:stop], self._page_size
        if min(map(len, data)) == page:
            return data
        zeros = memoryview(bytes(page))
        return [part for item in data for part in (item, zeros[len(item) :])]

    def _flush(self, fd: int, buffers: Sequence[bytes | memoryview], slot: int) -> None:
        if self.cancelled:
            return
        offset, size = slot * self._page_size, sum(map(len, buffers))
        done = os.pwritev(fd, buffers, offset)
        while done < size:  # cut short by a signal, or just before the disk is full
            done += os.pwrite(fd, memoryview(b"".join(buffers))[done:], offset + done)


async def _off_the_loop(call: Callable[[], None]) -> None:
    await to_thread.run_sync(call, abandon_on_cancel=True, limiter=CapacityLimiter(1))


def _runs(slots: Iterable[int]) -> list[range]:
    """Return the slots, in their order, as ranges of neighbours."""
    runs: list[range] = []
    start = stop = -1
    for slot in slots:
        if slot != stop:
            if stop >= 0:
                runs.append(range(start, stop))
            start = slot
        stop = slot + 1
    if stop >= 0:
        runs.append(range(start, stop))
    return runs


def _read(file: SwapFile, runs: list[range], page_size: int) -> list[bytes]:
    with file.use() as fd:
        return [_read_run(fd, run.start * page_size, len(run) * page_size) for run in runs]


def _read_run(fd: int, offset: int, size: int) -> bytes:
    data = b""
    while len(data) < size:
        more = os.pread(fd, size - len(data), offset + len(data))
        if not more:
            raise OSError(errno.EIO, "the file is shorter than what was stored in it")
        data += more
    return data
