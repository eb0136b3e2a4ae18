"""Whether other processes of this program have a memory open, too: each has keys of its own.

A web server with several worker processes is where that surprises: what one request has put, the
next one does not find. Of the processes that one parent has started with the same arguments, the
first to open a memory takes a name (an abstract Unix socket: no file, no port; Linux only), and the
others see that it is taken. It is free again once that process has ended or its last memory is
closed.
"""

from __future__ import annotations

import errno
import os
import socket
import sys
from hashlib import sha256
from threading import Lock

__all__ = ["memory_closed", "memory_opened"]

_NR_WORKERS = "WEB_CONCURRENCY"  # what uvicorn, gunicorn and hosting services agree on


class _Name:
    """The name of this program, which this process has while it has a memory open."""

    def __init__(self) -> None:
        self.lock = Lock()
        self.memories = 0
        self.taken_by_another = False
        self.told = False
        self._socket: socket.socket | None = None

    def take(self) -> None:
        """Take it, if no other process has it; where that cannot be known it is free."""
        if sys.platform != "linux":
            return
        who = repr((os.getuid(), os.getppid(), os.path.realpath("."), sys.argv))
        digest = sha256(who.encode(errors="surrogatepass")).hexdigest()
        taking = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        try:
            taking.bind(f"\0reclaimactors-{digest}")
        except OSError as exc:
            self.taken_by_another = exc.errno == errno.EADDRINUSE
            taking.close()
        else:
            self._socket = taking

    def give(self) -> None:
        """Let others have it."""
        self.taken_by_another = False
        if self._socket is not None:
            self._socket.close()
            self._socket = None


_name = _Name()


def _forked() -> None:
    """In a child process: the name is its parent's, and so are the memories."""
    global _name  # noqa: PLW0603
    _name.give()
    _name = _Name()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forked)


def memory_opened() -> str:
    """A memory was opened in this process; `memory_closed` follows.

    Return, once in a process, why there are several with a memory each; "" where none is known.
    """
    with _name.lock:
        _name.memories += 1
        if _name.memories == 1:
            try:
                _name.take()
            except (OSError, ValueError):  # no descriptor is left, or a sandbox has no sockets
                return ""
        why = "" if _name.told else _several()
        _name.told = _name.told or why != ""
        return why


def memory_closed() -> None:
    """A memory was closed."""
    with _name.lock:
        _name.memories -= 1
        if not _name.memories:
            _name.give()


def _several() -> str:
    workers = os.environ.get(_NR_WORKERS, "")
    if workers.isdecimal() and int(workers) > 1:
        return f"{_NR_WORKERS} is {workers}"
    if _name.taken_by_another:
        return "another process of this program, with the same parent, has a memory open"
    return ""
