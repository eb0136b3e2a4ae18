"""How the swap file is read, written and made smaller: the best system calls that are allowed here.

A sandbox answers a call that it does not know with EPERM or ENOSYS, a file system one that it does
not have with EOPNOTSUPP or EINVAL. Each call but pread and pwrite is optional: it is tried on the
empty file, and what it wrote is read back. One that is refused later is not asked again either.
"""

from __future__ import annotations

import ctypes
import errno
import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

__all__ = ["FileCalls"]

_REFUSED = {errno.EPERM, errno.EACCES, errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP}
_KEEP_SIZE, _PUNCH_HOLE = 1, 2  # FALLOC_FL_*
_BLOCK = 4096


class FileCalls:
    """The calls on one file, by its descriptor, in any thread."""

    def __init__(self) -> None:
        self.nowait: int = getattr(os, "RWF_NOWAIT", 0)  #: 0: what is cached cannot be told
        self.vectored = hasattr(os, "pwritev")
        self._fallocate = _fallocate()
        self._truncates = True

    @property
    def punches(self) -> bool:
        """Whether a part in the middle of the file can be given back to the file system."""
        return self._fallocate is not None

    def probe(self, fd: int) -> None:
        """Try each call on the empty file, and leave that empty."""
        sample = [os.urandom(_BLOCK), os.urandom(_BLOCK)]
        both = b"".join(sample)
        try:
            self.write(fd, sample, 0)
            if os.pread(fd, len(both), 0) != both:
                self.vectored = False
                self.write(fd, sample, 0)
            cached = self.read_cached(fd, 0, len(both))
            if cached not in {None, both}:
                self.nowait = 0
            self.punch(fd, 0, _BLOCK)
            if self.punches and os.pread(fd, len(both), 0) != bytes(_BLOCK) + sample[1]:
                self._fallocate = None
        except OSError:  # say, the disk is full: whoever writes will be told
            pass
        self.truncate(fd, 0)

    def write(self, fd: int, buffers: Sequence[bytes | memoryview], offset: int) -> None:
        """Write buffers, one after the other."""
        size = sum(map(len, buffers))
        done = 0
        if self.vectored:
            try:
                done = os.pwritev(fd, buffers, offset)
            except OSError as exc:
                if exc.errno not in _REFUSED:
                    raise
                self._write_plainly(fd, buffers, offset, 0)  # which raises what is wrong with it
                self.vectored = False
                return
        if done < size:
            self._write_plainly(fd, buffers, offset, done)

    def _write_plainly(
        self, fd: int, buffers: Sequence[bytes | memoryview], offset: int, done: int
    ) -> None:
        """Write what is left: it was cut short by a signal, or just before the disk is full."""
        data = memoryview(b"".join(buffers))
        while done < len(data):
            more = os.pwrite(fd, data[done:], offset + done)
            if not more:
                raise OSError(errno.EIO, "it takes nothing more")
            done += more

    def read_cached(self, fd: int, offset: int, size: int) -> bytes | None:
        """Return what the page cache is known to have, without waiting for a disk; else None."""
        if not self.nowait:
            return None
        buffer = bytearray(size)
        try:
            got = os.preadv(fd, [buffer], offset, self.nowait)
        except BlockingIOError:
            return None
        except OSError as exc:
            if exc.errno not in _REFUSED:
                raise
            self.nowait = 0
            return None
        return bytes(buffer) if got == size else None

    def read(self, fd: int, offset: int, size: int) -> bytes:
        """Read so many bytes, waiting for the disk.

        Raises:
            OSError: if they cannot be read, or are not there.
        """
        data = b""
        while len(data) < size:
            more = os.pread(fd, size - len(data), offset + len(data))
            if not more:
                raise OSError(errno.EIO, "the file is shorter than what was stored in it")
            data += more
        return data

    def punch(self, fd: int, offset: int, size: int) -> None:
        """Give a part of the file back; it reads as zeros afterwards.

        On failure it stays as it is, and no hole is punched any more.
        """
        fallocate = self._fallocate
        if fallocate is not None and fallocate(fd, _KEEP_SIZE | _PUNCH_HOLE, offset, size):
            self._fallocate = None

    def truncate(self, fd: int, size: int) -> None:
        """Give back what lies beyond `size`. On failure it stays, and is not tried again."""
        if self._truncates:
            try:
                os.ftruncate(fd, size)
            except OSError:
                self._truncates = False


def _fallocate() -> Callable[[int, int, int, int], int] | None:
    """Return fallocate(2), which returns 0 on success; None where the C library has it not."""
    try:
        libc = ctypes.CDLL(None)
        call = getattr(libc, "fallocate64", None) or libc.fallocate
    except (AttributeError, OSError, TypeError):  # macOS, Windows
        return None
    call.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)
    call.restype = ctypes.c_int
    return call
