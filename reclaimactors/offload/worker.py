"""A worker process, which `interpreter.command` starts.

It compresses batches that lie in shared memory, and says on its socket which slot is done. It ends
at the end of its socket, and with its parent: a forked child of that may hold the socket open. The
other side is `workers`; the memory, which both use, is `slots`.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import select
import signal
import socket
import struct
from threading import Thread
from time import sleep
from typing import TYPE_CHECKING

from reclaimactors.cpu.clock import thread_time
from reclaimactors.mm.page_io import squeeze
from reclaimactors.offload.slots import Slots

if TYPE_CHECKING:
    from reclaimactors.abc import Compressor

__all__ = ["NUMBER", "READY", "REFUSED", "main"]

NUMBER = struct.Struct("<I")  #: every message on the socket: a slot's number, or one of these
READY = 0xFFFF_FFFF  #: the worker is up
PARENT_S = 1.0  #: between two looks at a parent, where no descriptor tells of its end
REFUSED = 0xFFFF_FFFE  #: it cannot build the compressor; the reason follows up to the end


def main(fd: int, memory: int, nice: int, parent: int) -> int:
    """Run until the parent closes the socket, or ends; return an exit status.

    Args:
        fd: the socket.
        memory: descriptor of the staging memory.
        nice: niceness to add.
        parent: pid of the process that started it.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    with contextlib.suppress(OSError):
        os.nice(nice)
    Thread(target=_end_with, args=(parent,), daemon=True).start()
    with socket.socket(fileno=fd) as link, link.makefile("rb") as stream:
        hello = stream.read(NUMBER.size)
        if len(hello) < NUMBER.size:
            return 0
        shape, job = pickle.loads(stream.read(NUMBER.unpack(hello)[0]))  # noqa: S301 - from our parent alone
        try:
            compressor = build(job)
        except Exception as exc:  # noqa: BLE001 - whatever it is, the parent says it and falls back
            link.sendall(NUMBER.pack(REFUSED) + f"{type(exc).__name__}: {exc}".encode())
            return 1
        slots = Slots(memory, **shape)
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            link.sendall(NUMBER.pack(READY))
            while len(message := stream.read(NUMBER.size)) == NUMBER.size:
                (slot,) = NUMBER.unpack(message)
                started = thread_time()
                out = squeeze(
                    compressor,
                    slots.pages(slot),
                    checksum=True,
                    of_sources=slots.of_sources(slot),
                )
                out.cpu_s = thread_time() - started
                slots.answer(slot, out)
                link.sendall(message)
    return 0


def _end_with(parent: int) -> None:
    """End this process with its parent, also in the middle of a batch."""
    try:
        ended = select.poll()
        ended.register(os.pidfd_open(parent), select.POLLIN)
    except (AttributeError, OSError):  # macOS, or a sandbox
        ended = None
    while os.getppid() == parent:  # asked after the pidfd was opened: it is the parent's
        if ended is None:
            sleep(PARENT_S)
        else:
            ended.poll()
    os._exit(0)


def build(job: bytes) -> Compressor:
    """Return the compressor that a pickled reference names."""
    from reclaimactors import registry  # noqa: PLC0415 - above this room; only a worker needs it

    return registry.build("compressors", pickle.loads(job))  # noqa: S301 - from our parent alone
