"""A worker process as its parent holds it: what it was given, the link to it, and its end."""

from __future__ import annotations

import signal
from contextlib import suppress
from math import inf
from typing import TYPE_CHECKING

import anyio
import attrs

from reclaimactors.offload.backoff import Backoff
from reclaimactors.offload.pace import Pace
from reclaimactors.offload.worker import NUMBER, REFUSED

if TYPE_CHECKING:
    import socket

    from anyio.abc import Process

__all__ = [
    "Ticket",
    "Worker",
    "ends_within",
    "greet",
    "read",
    "refusal",
    "until_ended",
    "what_happened",
]


@attrs.define(eq=False)
class Ticket:
    """One batch in a slot, which a worker has."""

    done: anyio.Event = attrs.Factory(anyio.Event)
    died: str = ""  #: why there is no answer, once `done`
    begun: bool = False  #: whether the worker that died was at it, as far as can be told
    abandoned: bool = False  #: nobody waits any more; the slot is free once the worker is done
    lost: bool = False  #: the slot is not to be used again: a process that does not end has it


@attrs.define(eq=False)
class Worker:
    """One worker process, and those that come after it."""

    number: int
    up: bool = False
    process: Process | None = None
    link: socket.socket | None = None
    inbox: bytes = b""  #: the beginning of a message
    tickets: dict[int, Ticket] = attrs.Factory(dict[int, Ticket])  #: by slot, the oldest first
    given: anyio.Event = attrs.Factory(anyio.Event)  #: it has a batch
    answers: int = 0  #: messages from it
    silent_s: float = 0.0  #: loop time since the last one, while it starts or has a batch
    up_since: float = inf
    why: str = ""  #: why it is down, where that is more than one restart
    ended: str = ""  #: what the last process came to
    pace: Pace = attrs.Factory(Pace)
    backoff: Backoff = attrs.Factory(Backoff)

    @property
    def late(self) -> bool:
        """Whether it has a batch and has been silent for longer than is usual."""
        return self.pace.late(self.silent_s)

    def send(self, slot: int) -> Ticket:
        """Give it a batch; it is `up`."""
        ticket = Ticket()
        try:
            assert self.link is not None
            self.link.send(NUMBER.pack(slot))
        except OSError as exc:  # whoever reads sees the end of the link, and restarts it
            ticket.died = f"worker {self.number} has ended: {exc}"
            ticket.done.set()
        else:
            self.tickets[slot] = ticket
            self.given.set()
        return ticket

    def born(self, process: Process, link: socket.socket) -> None:
        """A process was started for it."""
        self.process, self.link = process, link
        self.inbox = b""
        self.ended = ""
        self.silent_s = 0.0

    def kill(self, why: str) -> None:
        """End the process at once; whoever reads sees the end of the link."""
        self.up = False
        self.ended = why
        assert self.process is not None
        with suppress(ProcessLookupError):
            self.process.kill()


async def greet(link: socket.socket, hello: bytes) -> None:
    """Send what a worker needs to know, however large that is."""
    left = memoryview(hello)
    try:
        while left:
            try:
                left = left[link.send(left) :]
            except BlockingIOError:
                await anyio.wait_writable(link)
    except OSError:  # it has ended: whoever reads sees that
        return


async def until_ended(process: Process, life: anyio.CancelScope) -> None:
    """End a life with its process, also where a forked child holds the other end of the link."""
    await process.wait()
    life.cancel()


async def ends_within(process: Process, seconds: float) -> bool:
    """Wait for the end of a process for so many seconds; return whether it has ended."""
    with anyio.move_on_after(seconds):
        await process.wait()
    return process.returncode is not None


def what_happened(process: Process) -> str:
    """Return how a process ended, in words."""
    status = process.returncode
    if status is None:
        return "was killed, and does not end"
    if status >= 0:
        return f"ended with status {status}"
    try:
        return f"was killed by {signal.Signals(-status).name}"
    except ValueError:  # a real-time signal
        return f"was killed by signal {-status}"


def read(link: socket.socket) -> bytes | None:
    """Return what has come, b"" at the end of the link, None where nothing has come."""
    try:
        return link.recv(65536)
    except BlockingIOError:
        return None
    except OSError:  # the other end was closed in the middle
        return b""


def refusal(message: bytes) -> bool:
    """Return whether a message of a worker says why it cannot work."""
    return message[: NUMBER.size] == NUMBER.pack(REFUSED)
