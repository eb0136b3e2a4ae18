"""The file under `FileBackend`: where it is made, and when its descriptor may be closed.

It is anonymous from birth: O_TMPFILE where the file system has it, else created and unlinked at
once, so that nothing is left behind however the process ends. All of this may block on the disk
and belongs in a worker thread. How it is read and written is in `file_calls`.
"""

from __future__ import annotations

import contextlib
import errno
import os
import tempfile
import threading
from pathlib import Path
from typing import TYPE_CHECKING

from reclaimactors.backends.file_calls import FileCalls
from reclaimactors.errors import BackendError, BackendFull

if TYPE_CHECKING:
    from collections.abc import Generator

__all__ = ["SwapFile", "disk_of", "in_memory"]

_OF_RAM = {"tmpfs", "ramfs", "devtmpfs"}  # file systems, by their names in mountinfo
_NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


class SwapFile:
    """One open file that several threads share.

    A thread whose caller was cancelled goes on using the descriptor, so `close` only says that
    nobody may start: the last user closes. A number closed too early would be reused, and the
    late write would land in someone else's file.

    Args:
        path: the folder to make it in; None = the first of /var/tmp and $TMPDIR that is on a disk.
    """

    def __init__(self, path: str | None) -> None:
        self.folder = path or "(no folder yet)"
        self.fd = -1  #: for the thread that will call `close`, which knows that it has not yet
        self.rotational = False  #: whether it lies on a disk that turns, known once it is open
        self.in_memory = False  #: whether it lies on a tmpfs, known once it is open
        self.calls = FileCalls()
        self._pid = os.getpid()
        self._path = path
        self._lock = threading.Lock()
        self._users = 0
        self._closed = False

    def open(self) -> None:
        """Make the file.

        Raises:
            BackendError: naming the folder, the option and what to do.
        """
        self.folder = _default_folder() if self._path is None else self._path
        try:
            self.in_memory = in_memory(self.folder)
            fd = _create(self.folder)
        except OSError as exc:
            why = f"cannot make a swap file in path = {self.folder!r}: {exc.strerror}"
            todo = "give `path` a folder that this process may write to"
            raise BackendError(exc.errno, f"{why}; {todo}") from exc
        self.rotational = _rotational(fd)
        self.calls.probe(fd)
        with self._lock:
            self.fd = fd
            self._close_if_unused()

    @contextlib.contextmanager
    def use(self) -> Generator[int]:
        """Hold the descriptor open for a block, in any thread."""
        with self._lock:
            if self._closed:
                raise OSError(errno.EBADF, "it is closed")
            self._users += 1
        try:
            yield self.fd
        finally:
            with self._lock:
                self._users -= 1
                self._close_if_unused()

    def close(self) -> None:
        """Let nobody start any more, give the space back, and close as soon as nobody uses it."""
        with self._lock:
            self._closed = True
            if self.fd >= 0:
                self._empty()
            self._close_if_unused()

    def _close_if_unused(self) -> None:
        if self._closed and not self._users and self.fd >= 0:
            self._empty()  # again, after the last write
            fd, self.fd = self.fd, -1
            os.close(fd)

    def _empty(self) -> None:
        """Truncate the file: a forked child may have its descriptor for long after the close."""
        if os.getpid() == self._pid:  # it is the parent's, and in use, where this is the child
            with contextlib.suppress(OSError):  # it is closed all the same
                os.ftruncate(self.fd, 0)

    def error(self, exc: OSError, doing: str) -> BackendError:
        """Return `exc` as the error of a backing store, with the folder and what to do."""
        where = f"{doing} the swap file in {self.folder!r}: {exc.strerror}"
        if exc.errno in _NO_ROOM:
            return BackendFull(f"{where}; free space there, or give another `path`")
        return BackendError(exc.errno, f"{where}; check that disk, or give another `path`")


def disk_of(path: str | None) -> tuple[int, int]:
    """Return the disk that a swap file would be made on (`st_dev`), and the bytes free there.

    Raises:
        OSError: if there is no such folder, or (BackendError) none at all.
    """
    folder = _default_folder() if path is None else path
    disk = os.statvfs(folder)
    return Path(folder).stat().st_dev, disk.f_bavail * disk.f_frsize


def _create(folder: str) -> int:
    """Return a descriptor of a new file of ours alone (0600) that has no name."""
    flag = getattr(os, "O_TMPFILE", 0)
    if flag:
        # O_EXCL: it can never be linked into the file system. Whatever it is refused with, mkstemp
        # is tried, and what that raises is the reason.
        with contextlib.suppress(OSError):
            return os.open(folder, flag | os.O_RDWR | os.O_CLOEXEC | os.O_EXCL, 0o600)
    fd, name = tempfile.mkstemp(prefix="reclaimactors-", dir=folder)
    try:
        Path(name).unlink()
    except BaseException:  # Ctrl-C too: nobody else has the descriptor
        os.close(fd)
        raise
    return fd


def _default_folder() -> str:
    """Return the first folder for big temporary files that is not itself memory."""
    passed_over: list[str] = []
    for folder in ("/var/tmp", os.environ.get("TMPDIR")):  # noqa: S108 - the file made there has no name
        if not folder:
            passed_over.append("TMPDIR is not set")
        elif not Path(folder).is_dir() or not os.access(folder, os.W_OK | os.X_OK):
            passed_over.append(f"{folder} is no folder that this process may write to")
        elif in_memory(folder):
            passed_over.append(f"{folder} is memory itself (a tmpfs)")
        else:
            return folder
    msg = f"no folder for the swap file: {'; '.join(passed_over)}; give `path` a folder on a disk"
    raise BackendError(errno.ENOENT, msg)


def _rotational(fd: int) -> bool:
    """Return whether a file lies on a disk that turns; False where that cannot be found out."""
    device = os.fstat(fd).st_dev
    disk = Path(f"/sys/dev/block/{os.major(device)}:{os.minor(device)}")
    for queue in (disk / "queue", disk.resolve().parent / "queue"):  # of a partition: its disk's
        try:
            return (queue / "rotational").read_text().strip() == "1"
        except OSError:
            continue
    return False


def in_memory(folder: str) -> bool:
    """Return whether what is written to a folder is kept in RAM, as on a tmpfs.

    False where that cannot be found out.
    """
    try:
        mounts = Path("/proc/self/mountinfo").read_text(errors="replace").splitlines()
    except OSError:
        return False  # no Linux: nothing there mounts /var/tmp in memory by default
    device = Path(folder).stat().st_dev
    number = f"{os.major(device)}:{os.minor(device)}"
    for mount in mounts:
        place, _, kind = mount.partition(" - ")
        if place.split()[2] == number:
            return kind.split()[0] in _OF_RAM
    return False
