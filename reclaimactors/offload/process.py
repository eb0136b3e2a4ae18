"""Compress in worker processes over shared memory: as fast beside a busy event loop as beside none.

Workers are started as `interpreter` says, so they need no ``__main__`` guard. Staging memory is
anonymous from birth and passed as a descriptor: nothing is left behind, whatever dies. It is the
workers' reserve: of one size from their start to their end, so that compressing asks nothing of a
budget that has nothing to give, and never waits for reclaim.

They start at the first pressure; until one is up, and whenever none is, a batch is compressed in a
thread. A worker that dies loses nothing: its batches end in
`WorkerDied`, whoever sent them hands them back, and it is started again after a back-off. After
repeated deaths the event loop compresses, and a log line says so.
"""

from __future__ import annotations

import os
import pickle
import socket
import subprocess
import tempfile
from collections import deque
from contextlib import suppress
from typing import TYPE_CHECKING

import anyio
import attrs

from reclaimactors.errors import ReclaimError
from reclaimactors.log import log
from reclaimactors.mm.page_io import Squeezed
from reclaimactors.offload import interpreter
from reclaimactors.offload.breath import Breath
from reclaimactors.offload.inline import InlineOffload
from reclaimactors.offload.thread import ThreadOffload
from reclaimactors.offload.worker import NUMBER, READY, REFUSED, Slots

if TYPE_CHECKING:
    from anyio.abc import Process

    from reclaimactors.abc import Compressor
    from reclaimactors.registry import PluginRef

__all__ = ["ProcessOffload", "WorkerDied"]

DEATHS = 5  #: of workers within WINDOW_S, after which the event loop compresses
WINDOW_S = 10.0
BACKOFF_S = 0.05
BATCH_S = 10.0  #: without a batch done, after which a worker that has some is killed


class WorkerDied(ReclaimError):  # noqa: N818 - says what happened
    """The worker that had a batch has ended; nothing is lost, the batch is to be handed back."""


@attrs.define(eq=False)
class _Ticket:
    """One batch in a slot."""

    done: anyio.Event = attrs.Factory(anyio.Event)
    died: bool = False
    abandoned: bool = False  #: nobody waits any more; the slot is free once the worker is done


@attrs.define(eq=False)
class _Worker:
    """One worker process, from start to end."""

    number: int
    link: socket.socket | None = None
    process: Process | None = None
    refused: bool = False
    up: bool = False
    tickets: dict[int, _Ticket] = attrs.Factory(dict[int, _Ticket])
    answers: int = 0  #: batches that it has done

    def send(self, slot: int) -> _Ticket:
        """Give it a batch; it is `up`."""
        ticket = self.tickets[slot] = _Ticket()
        try:
            assert self.link is not None
            self.link.send(NUMBER.pack(slot))
        except OSError:
            ticket.died = True  # the reader sees the end of the link and restarts it
            ticket.done.set()
            del self.tickets[slot]
        return ticket

    async def answer(self, ticket: _Ticket) -> None:
        """Wait until a batch is done.

        Raises:
            WorkerDied: if the worker ends first, or does nothing at all for BATCH_S.
        """
        while not ticket.done.is_set():
            before = self.answers
            with anyio.move_on_after(BATCH_S):
                await ticket.done.wait()
            if not ticket.done.is_set() and self.answers == before:
                self._kill()
                raise WorkerDied(f"worker {self.number} did nothing for {BATCH_S:g} s")
        if ticket.died:
            raise WorkerDied(f"worker {self.number} died with a batch")

    def _kill(self) -> None:
        """It is stopped, or caught in the compressor: another one is started."""
        self.up = False
        if self.process is not None:
            log.warning("offload.worker_hung", worker=self.number, seconds=BATCH_S)
            with suppress(ProcessLookupError):
                self.process.kill()


class ProcessOffload:
    """`workers` processes that share one set of slots."""

    inline = False
    holds = False

    def __init__(
        self, ref: PluginRef, compressor: Compressor, *, workers: int, nice: int, slots: int,
        area: int, rows: int, end_s: float = 1.0,
    ) -> None:  # fmt: skip
        self.workers = workers
        self._nice = nice
        self._end_s = end_s  # how long a worker has to end by itself
        self._job = pickle.dumps(ref)
        self._shape = {"nr": slots, "area": area, "rows": rows}
        self._instead: ThreadOffload | InlineOffload = ThreadOffload(compressor, workers=workers)
        self._inline = InlineOffload(compressor)
        self._pool = [_Worker(number) for number in range(workers)]
        self._free = list(range(slots))
        self._slots: Slots | None = None
        self._fd = -1
        self._deaths: deque[float] = deque(maxlen=DEATHS + 1)

    @property
    def staging(self) -> int:
        """Bytes of shared memory."""
        return self._slots.nr_bytes if self._slots is not None else 0

    # -- a batch ----------------------------------------------------------------------------------

    async def squeeze(self, pages: list[bytes], *, of_sources: bool = False) -> Squeezed:
        """Compress a batch, in pieces that fit a slot.

        Raises:
            WorkerDied: if its worker ends first.
        """
        out: Squeezed | None = None
        while out is None or pages:
            piece = self._cut(pages)
            rows = await self._squeeze(piece, of_sources=of_sources)
            if out is None:
                out = rows
            else:
                out.extend(rows)
        return out

    def _cut(self, pages: list[bytes]) -> list[bytes]:
        """Take off the front of `pages` what fits a slot."""
        room, nr = self._shape["area"], 0
        for page in pages[: self._shape["rows"]]:
            room -= len(page)
            if room < 0 and nr:
                break
            nr += 1
        piece = pages[:nr]
        del pages[:nr]
        return piece

    async def _squeeze(self, pages: list[bytes], *, of_sources: bool) -> Squeezed:
        slots = self._slots
        fits = sum(map(len, pages)) <= self._shape["area"]
        if slots is None or not fits or not self._free or not any(w.up for w in self._pool):
            return await self._instead.squeeze(pages, of_sources=of_sources)
        slot = self._free.pop()
        ticket: _Ticket | None = None
        breath = Breath()
        try:
            for _ in slots.put(slot, pages, of_sources=of_sources):
                await self._breathe(breath, slots)
            pages.clear()  # the copy is what is compressed: a deleted folio is freed at once
            worker = min((w for w in self._pool if w.up), key=_load, default=None)
            if worker is None:
                raise WorkerDied("all workers died while a batch was copied")
            ticket = worker.send(slot)
            await worker.answer(ticket)
            out = Squeezed(bytearray(), [], [], of_sources)
            breath.begin()
            for rows in slots.rows_of(slot):
                out.extend(rows)
                await self._breathe(breath, slots)
            return out
        finally:
            if ticket is not None and not ticket.done.is_set():
                ticket.abandoned = True  # the slot is free once the worker has done it, or died
            elif self._slots is slots:
                self._free.append(slot)

    async def _breathe(self, breath: Breath, slots: Slots) -> None:
        """Let the event loop go on where that is due.

        Raises:
            WorkerDied: if the slots are gone afterwards.
        """
        await breath.take()
        if self._slots is not slots:
            raise WorkerDied("the workers were ended while a batch was copied")

    # -- workers ----------------------------------------------------------------------------------

    async def run(self) -> None:
        """Keep the workers up, for ever: the actor that owns the processes."""
        try:
            why_none = await interpreter.unusable()
            if why_none:
                log.warning("offload.refused", reason=why_none, instead="thread")
                return
            self._fd = _anonymous_memory()
            self._slots = Slots(self._fd, **self._shape)
        except (OSError, ValueError) as exc:  # no memfd, or less of it than is needed
            log.warning("offload.refused", reason=f"staging: {exc!r}", instead="thread")
            self._close_staging()
            return
        self._free = list(range(self._shape["nr"]))
        try:
            async with anyio.create_task_group() as tasks:
                for worker in self._pool:
                    tasks.start_soon(self._keep_up, worker)
        finally:
            self._close_staging()

    def _close_staging(self) -> None:
        if self._slots is not None:
            self._slots.close()
            self._slots = None
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    async def _keep_up(self, worker: _Worker) -> None:
        while True:
            refused = None
            try:
                refused = await self._life(worker)
            except OSError as exc:  # it cannot be started, or ended before it was told anything
                log.warning("offload.start_failed", worker=worker.number, error=str(exc))
            except Exception as exc:  # noqa: BLE001 - whatever it is about this host, threads do
                refused = f"it cannot be had: {exc!r}"
            finally:
                self._bury(worker)
            if refused:
                worker.refused = True
                log.warning(
                    "offload.refused", worker=worker.number, reason=refused, instead="thread"
                )
                return
            now = anyio.current_time()
            self._deaths.append(now)
            recent = sum(now - death < WINDOW_S for death in self._deaths)
            log.warning("offload.worker_died", worker=worker.number, deaths=recent)
            if recent > DEATHS:
                self._instead = self._inline
                self.inline = True
                log.error("offload.gave_up", deaths=recent, instead="inline")
                return
            await anyio.sleep(BACKOFF_S * 2**recent)

    async def _life(self, worker: _Worker) -> str | None:
        """Start one process and serve it to its end; return why it refused to start, if it did."""
        ours, theirs = socket.socketpair()
        with ours:
            with theirs:
                process = await self._spawn(theirs.fileno())
            try:
                worker.process = process
                ours.setblocking(False)
                hello = pickle.dumps((self._shape, self._job))
                ours.send(NUMBER.pack(len(hello)) + hello)
                worker.link = ours
                return await self._serve(worker, ours)
            finally:
                worker.up = False
                worker.link = worker.process = None
                ours.close()  # the end of its link is the end of the worker
                with anyio.CancelScope(shield=True):
                    with anyio.move_on_after(self._end_s) as scope:
                        await process.wait()
                    if scope.cancelled_caught:
                        process.kill()
                        await process.wait()

    async def _spawn(self, link: int) -> Process:
        return await anyio.open_process(
            interpreter.command(link, self._fd, self._nice),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            pass_fds=(link, self._fd),
            env=interpreter.environment(),
        )

    async def _serve(self, worker: _Worker, link: socket.socket) -> str | None:
        """Read which slots are done, up to the end of the link."""
        rest = b""
        while True:
            await anyio.wait_readable(link)
            try:
                data = link.recv(65536)
            except ConnectionError:
                data = b""
            if not data:
                return rest[NUMBER.size :].decode(errors="replace") if _refusal(rest) else None
            rest += data
            if _refusal(rest):
                continue
            whole = len(rest) // NUMBER.size * NUMBER.size
            for (number,) in NUMBER.iter_unpack(rest[:whole]):
                self._done(worker, number)
            rest = rest[whole:]

    def _done(self, worker: _Worker, number: int) -> None:
        if number == READY:
            worker.up = True
            log.debug("offload.worker_up", worker=worker.number)
            return
        worker.answers += 1
        ticket = worker.tickets.pop(number)
        if ticket.abandoned:
            self._free.append(number)
        else:
            ticket.done.set()

    def _bury(self, worker: _Worker) -> None:
        """Whoever waits for a dead worker hands back what it sent; its slots are free again."""
        for slot, ticket in worker.tickets.items():
            if ticket.abandoned:
                self._free.append(slot)
            else:
                ticket.died = True
                ticket.done.set()
        worker.tickets.clear()


def _load(worker: _Worker) -> int:
    return len(worker.tickets)


def _refusal(message: bytes) -> bool:
    return message[: NUMBER.size] == NUMBER.pack(REFUSED)


def _anonymous_memory() -> int:
    """Return a descriptor of memory that has no name, and so cannot be left behind."""
    if hasattr(os, "memfd_create"):
        return os.memfd_create("reclaimactors", os.MFD_CLOEXEC)
    fd, path = tempfile.mkstemp()
    os.unlink(path)  # noqa: PTH108 - a descriptor's file, not a Path
    return fd
