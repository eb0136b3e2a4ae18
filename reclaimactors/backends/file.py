"""The `file` backend: one file of slots, written in clusters and read without blocking the loop.

Each slot is a whole page in the file, a shorter item being padded with zeros: consecutive slots
go down in one call whatever they hold, the kernel never has to read a page in order to change a
part of it, and a short read can only mean "not in the page cache".

Theory. What a slot is stands in `FileSlots`, which only the loop's thread touches. A store makes
its slots WRITING first and STORED after the write has succeeded, so a write that failed or was
abandoned left nothing that a load may return. A thread cannot be cancelled: a job whose caller has
gone is a *stray*, which stops at its next cluster. Until it ends, a later write of one of its slots
waits for it in its own thread, or old bytes could land on new ones; and forgetting such a slot
waits for it too, so that nobody is given the slot before.

Space. Slots that were forgotten are LEFT with the file. Once more was forgotten, beyond what was
written meanwhile, than the file holds (and SPARE_BYTES), the end of the file is cut off, and holes
are punched where the file system has such a thing. A hole costs 13 us in the page cache and 2.6 ms
once the file was written to a disk (ext4), so a store of steady size, whose slots are used again,
punches none. A file that holds nothing is empty.

Not covered: what is on the disk is not synced, as nothing outlives this process.
"""

from __future__ import annotations

import errno
import os
from contextlib import suppress
from itertools import chain
from operator import itemgetter
from typing import TYPE_CHECKING

from anyio import CancelScope, CapacityLimiter, sleep

from reclaimactors.abc import Backend
from reclaimactors.backends.file_jobs import GiveBack, Job, Write
from reclaimactors.backends.file_slots import FREE, STORED, WRITING, FileSlots, runs_of
from reclaimactors.backends.swapfile import SwapFile
from reclaimactors.deadline import within
from reclaimactors.errors import BackendError
from reclaimactors.threads import hop
from reclaimactors.units import KIB, MIB

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

__all__ = ["FileBackend"]

SPARE_BYTES = MIB  #: of forgotten slots that the file may keep, or as much as it holds
HOLES = 256  #: punched in one job at most

_INLINE_BYTES = 256 * KIB  # copying these out of the page cache holds the loop for some 60 us
_CLOSE_S = 1.0  # that somebody waits for the close: freeing gigabytes takes a while
_STRAY_S = 0.02  # between two looks whether a stray has ended
_THREADS = 4  # of each kind at once; reads have their own, so that no slow write delays them


class FileBackend(Backend):
    """Keeps slots in an unnamed file of its own, mode 0600.

    Args:
        path: the folder to make the file in. None = the first of /var/tmp and $TMPDIR that is
            not a tmpfs; a tmpfs is used only when named here.

    Attributes:
        folder_in_memory: whether the file is on a tmpfs, known once it is open: what it holds is in
            RAM then, and in no budget.
    """

    folder_in_memory = False

    def __init__(self, path: str | os.PathLike[str] | None = None) -> None:
        self._path = None if path is None else os.fspath(path)
        self._file: SwapFile | None = None
        self._slots = FileSlots()
        self._writes: set[Job] = set()  # under way
        self._strays: list[Job] = []
        self._giving: GiveBack | None = None  # under way
        self._surplus = 0  # LEFT slots, less those written since they were forgotten

    async def open(self, page_size: int) -> None:
        """Make the file.

        Raises:
            BackendError: if `path` is missing, is no folder or cannot be written to, or if none
                was given and every usual folder is memory itself.
        """
        self._page_size = page_size
        self._writers, self._readers = CapacityLimiter(_THREADS), CapacityLimiter(_THREADS)
        self._giver = CapacityLimiter(1)
        self._slots = FileSlots()
        self._file = SwapFile(self._path)
        await hop(self._file.open, limiter=self._writers)
        self.rotational = self._file.rotational
        self.folder_in_memory = self._file.in_memory

    async def aclose(self) -> None:
        """Close the file, which frees its space; a thread still writing closes it when it ends."""
        file, self._file = self._file, None
        self._slots = FileSlots()
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
        runs = runs_of(slot for slot, _ in items)
        write = Write(file, runs, [data for _, data in items], self._page_size)
        write.after = self._before(runs)
        for run in runs:
            self._slots.set(run, WRITING)
        self._writes.add(write)
        try:
            await hop(write.run, limiter=self._writers)
        except OSError as exc:
            self._forget(runs)
            raise file.error(exc, "cannot write to") from exc
        except BaseException:  # cancelled: the thread goes on, and is a stray from here on
            self._abandon(write)
            raise
        finally:
            self._writes.discard(write)
        for run in runs:
            self._slots.set(run, STORED)
        self._surplus = max(0, self._surplus - len(items))

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
            chunks = self._read_cached(file, runs)
            if rest := runs[len(chunks) :]:
                chunks += await hop(_read, file, rest, self._page_size, limiter=self._readers)
        except OSError as exc:
            raise file.error(exc, "cannot read from") from exc
        return self._pages(chunks)

    def load_now(self, slots: Sequence[int]) -> list[bytes] | None:
        """Return a whole page for each slot, if the page cache is known to have them all.

        Raises:
            BackendError: if a slot is not stored, or cannot be read.
        """
        file = self._opened()
        if not file.calls.nowait:
            return None
        runs = self._stored_runs(slots)
        try:
            chunks = self._read_cached(file, runs)
        except OSError as exc:
            raise file.error(exc, "cannot read from") from exc
        return self._pages(chunks) if len(chunks) == len(runs) else None

    def _stored_runs(self, slots: Sequence[int]) -> list[range]:
        """Return the slots as ranges, if all of them are stored."""
        runs = runs_of(slots)
        for run in runs:
            missing = self._slots.missing(run)
            if missing is not None:
                folder = self._opened().folder
                msg = f"slot {missing} of the swap file in {folder!r} was never stored"
                raise BackendError(errno.ENOENT, msg)
        return runs

    def _pages(self, chunks: list[bytes]) -> list[bytes]:
        # Cut here and not in a thread: what stays must not come out of a thread's malloc arena.
        size = self._page_size
        return [chunk[i : i + size] for chunk in chunks for i in range(0, len(chunk), size)]

    async def invalidate_many(self, slots: Sequence[int]) -> None:
        """Forget the slots, and give space back where much has been forgotten.

        It waits for writes of these slots that were given up, and still are in their threads.
        """
        runs = runs_of(slots)
        while self._strays_of(runs):  # noqa: ASYNC110 - a thread ends them, which has no loop
            await sleep(_STRAY_S)
        before = self._slots.nr_left
        self._forget(runs)
        self._surplus += self._slots.nr_left - before
        while self._file is not None and self._giving is None and self._spare():
            await self._give_back(self._file)
            if self._slots.nr_stored:
                break  # whoever forgets one of these goes on

    def _opened(self) -> SwapFile:
        if self._file is None:
            raise BackendError(errno.EBADF, "the file backend is not open")
        return self._file

    def _forget(self, runs: list[range]) -> None:
        for run in runs:
            self._slots.forget(run)

    def _read_cached(self, file: SwapFile, runs: list[range]) -> list[bytes]:
        """Return the leading runs that are in the page cache, without waiting for a disk."""
        chunks: list[bytes] = []
        page = self._page_size
        if not file.calls.nowait or sum(map(len, runs)) * page > _INLINE_BYTES:
            return chunks
        for run in runs:
            chunk = file.calls.read_cached(file.fd, run.start * page, len(run) * page)
            if chunk is None:
                break
            chunks.append(chunk)
        return chunks

    # -- space ------------------------------------------------------------------------------------

    def _spare(self) -> bool:
        """Whether so much was forgotten that space is given back."""
        slots, page = self._slots, self._page_size
        enough = max(SPARE_BYTES // page, slots.nr_stored) if slots.nr_stored else 0
        self._surplus = min(self._surplus, slots.nr_left)
        if self._surplus <= enough:
            return False
        return self._opened().calls.punches or len(slots) - self._end() > enough

    def _end(self) -> int:
        """Return the slot from which on nothing is stored, or being written."""
        jobs = chain(self._writes, self._strays)
        return max(self._slots.end(), max((job.end for job in jobs), default=0))

    async def _give_back(self, file: SwapFile) -> None:
        """Cut off the end of the file, and punch some holes. Writes meanwhile wait if they must."""
        end = self._end()
        size = len(self._slots)
        self._slots.cut(end)
        holes = self._slots.left_runs(HOLES) if file.calls.punches else []
        if not holes and end == size:
            return
        for run in holes:
            self._slots.set(run, FREE)
        self._giving = job = GiveBack(file, end, holes, self._page_size)
        try:
            with suppress(OSError):  # it is closed
                await hop(job.run, limiter=self._giver)
        except BaseException:  # cancelled, as a write
            self._abandon(job)
            raise
        finally:
            self._giving = None
            for run in holes[job.nr_punched :]:
                self._slots.take_back(run)

    # -- jobs that later ones wait for ------------------------------------------------------------

    def _abandon(self, job: Job) -> None:
        job.abandon()
        self._strays.append(job)

    def _strays_of(self, runs: list[range]) -> list[Job]:
        """Return the jobs that were given up and may still change these slots."""
        self._strays = [stray for stray in self._strays if not stray.done.is_set()]
        return [stray for stray in self._strays if stray.touches(runs)]

    def _before(self, runs: list[range]) -> list[Job]:
        """Return the jobs that must be done before a write to these slots."""
        giving = [self._giving] if self._giving is not None and self._giving.touches(runs) else []
        return self._strays_of(runs) + giving


async def _off_the_loop(call: Callable[[], None]) -> None:
    await hop(call, limiter=CapacityLimiter(1))


def _read(file: SwapFile, runs: list[range], page_size: int) -> list[bytes]:
    with file.use() as fd:
        return [file.calls.read(fd, run.start * page_size, len(run) * page_size) for run in runs]
