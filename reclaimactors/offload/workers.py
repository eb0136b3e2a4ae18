"""Worker processes as their parent sees them: started, watched, buried, and started again.

A worker that dies, hangs or cannot be started is tried again after a wait, which grows with each
failure in a row (`Backoff`). More than DEATHS failures in a row are a change of state: one line in
the log says so, another one when a worker is up again, and `Workers.degraded` tells it meanwhile.

How long a worker has been silent is counted in steps of the event loop's own time: where this
process was stopped, or its loop was held, no worker has lost more than one step.
"""

from __future__ import annotations

import os
import pickle
import socket
import subprocess
from contextlib import suppress
from itertools import islice
from math import inf
from typing import TYPE_CHECKING
from weakref import WeakSet

import anyio

from reclaimactors.cpu.loop_clock import current_time
from reclaimactors.offload import interpreter
from reclaimactors.offload.backoff import Backoff
from reclaimactors.offload.link import (
    Worker,
    ends_within,
    greet,
    read,
    refusal,
    until_ended,
    what_happened,
)
from reclaimactors.offload.slots import Slots, anonymous_memory
from reclaimactors.offload.worker import NUMBER, READY

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from anyio.abc import Process

    from reclaimactors.log import Log
    from reclaimactors.mm.vmstat import Vmstat

__all__ = ["Workers"]

DEATHS = 5  #: failures of a worker in a row that are not worth more than a line each
PROVEN_S = 10.0  #: how long a worker is up before its next death is the first in a row
STEP_S = 0.0625  #: of loop time, in which a silent worker is watched
BATCH_S = 10.0  #: without an answer, after which it is killed
READY_S = 30.0  #: for it to start; it takes some 0.1 s on an idle machine


_crews: WeakSet[Workers] = WeakSet()


def _forked() -> None:
    """In a child process: the workers are the parent's, and so is what it shares with them."""
    for crew in _crews:
        crew.forked()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forked)


class Workers:
    """All workers of one memory, and the slots that they share.

    Args:
        job: what they unpickle to get their compressor.
        shape: of the slots: nr, area, rows.
        nr: workers.
        nice: niceness to add.
        end_s: seconds that one has to end by itself.
        vmstat: where deaths and retries are counted.
        log: of the memory.
    """

    def __init__(
        self, job: bytes, shape: Mapping[str, int], *, nr: int, nice: int, end_s: float,
        vmstat: Vmstat, log: Log,
    ) -> None:  # fmt: skip
        self.all = [Worker(number) for number in range(nr)]
        self.slots: Slots | None = None
        self.free: list[int] = []  #: slots that nobody uses
        self._shape = dict(shape)
        hello = pickle.dumps((self._shape, job))
        self._hello = NUMBER.pack(len(hello)) + hello
        self._nice = nice
        self._end_s = end_s
        self._vmstat = vmstat
        self._log = log
        self._fd = -1
        self._pid = -1
        self._why_none = ""
        _crews.add(self)

    def forked(self) -> None:
        """In a forked child: close our copies of the links, and let go of the staging memory.

        A link is closed, not only left alone: an event loop that the child goes on with takes it
        out of the selector, which parent and child share, where it is still open. The descriptor
        of the memory is left open: the child may be about to become a worker (uvloop starts a
        process by a fork in which this is called).
        """
        for worker in self.all:
            worker.up = False
            if worker.link is not None:
                worker.link.close()
        self.slots = None

    @property
    def up(self) -> list[Worker]:
        """Those that take batches."""
        return [worker for worker in self.all if worker.up]

    @property
    def degraded(self) -> str:
        """Why there are fewer workers than configured, for longer than a restart takes; or ""."""
        down = [why for why in [worker.why for worker in self.all] if why]  # read once: any thread
        if not down or self._why_none:
            return self._why_none
        return f"{len(down)} of {len(self.all)} workers are down: {down[0]}"

    @property
    def restarting(self) -> bool:
        """Whether no worker is up, but one will be as soon as a restart takes."""
        return not (self.up or self._why_none or all(worker.why for worker in self.all))

    async def restarted(self) -> None:
        """Wait until a worker is up, or until none will be soon."""
        while self.restarting:  # noqa: ASYNC110 - too rare for an event of its own
            await anyio.sleep(STEP_S)

    def excuse(self) -> None:
        """A page may be to blame for the last death: the next one is the first in a row."""
        for worker in self.all:
            worker.backoff.worked()

    # -- what all of them need --------------------------------------------------------------------

    async def run(self) -> None:
        """Keep the workers up, for ever; return where no worker can ever be had."""
        self._pid = os.getpid()
        if not await self._prepare():
            return
        try:
            async with anyio.create_task_group() as tasks:
                for worker in self.all:
                    tasks.start_soon(self._keep_up, worker)
            raise RuntimeError("one of its tasks was cancelled by something outside this memory")
        finally:
            self._close_staging()

    async def _prepare(self) -> bool:
        """Get what all workers need, later where it is not to be had now; False for never."""
        backoff = Backoff()
        while True:
            try:
                never = await interpreter.unusable()
                if not never:
                    self._open_staging()
            except (OSError, ValueError) as exc:  # too few descriptors, too little memory
                wait = backoff.failed()
                self._no_workers(f"no worker can be started: {exc!r}", wait)
                await anyio.sleep(wait)
            else:
                if never:
                    self._no_workers(never, None)
                elif self._why_none:
                    self._why_none = ""
                    self._say_recovered()
                return not never

    def _no_workers(self, why: str, again_s: float | None) -> None:
        if not self._why_none:
            self._log.warning("offload.refused", reason=why, instead="thread", again_s=again_s)
        self._why_none = why

    def _open_staging(self) -> None:
        self._fd = anonymous_memory()
        try:
            self.slots = Slots(self._fd, **self._shape)
        except BaseException:  # Ctrl-C too: nobody else has the memory
            self._close_staging()
            raise
        self.free = list(range(self._shape["nr"]))

    def _close_staging(self) -> None:
        if self.slots is not None:
            self.slots.close()
            self.slots = None
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    # -- one worker, life after life --------------------------------------------------------------

    async def _keep_up(self, worker: Worker) -> None:
        while True:
            worker.up_since = inf
            lasting = await self._one_life(worker)
            if current_time() - worker.up_since > PROVEN_S:
                worker.backoff.worked()
            wait = worker.backoff.failed(lasting=lasting)
            self._say_down(worker, wait, self._log.warning if lasting else self._log.error)
            await anyio.sleep(wait)
            self._vmstat["worker_retries"] += 1

    async def _one_life(self, worker: Worker) -> bool:
        """Start a process and serve it to its end; return whether the next would end like it."""
        try:
            refused = await self._life(worker)
        except OSError as exc:
            worker.ended = f"it cannot be started: {exc}"
            return False
        except Exception as exc:  # noqa: BLE001 - whatever it is about this host, threads do
            worker.ended = f"it cannot be had: {exc!r}"
            return True
        if refused:
            worker.ended = refused
        else:
            self._vmstat["worker_deaths"] += 1
        return refused != ""

    def _say_down(self, worker: Worker, again_s: float, say: Callable[..., None]) -> None:
        """One line for each of the first failures in a row, then one for all that follow."""
        nr = worker.backoff.failures
        facts = {"worker": worker.number, "reason": worker.ended, "again_s": again_s}
        if nr > DEATHS:
            if not self.degraded:
                say("offload.degraded", **facts, instead="thread")
            worker.why = worker.ended
        elif not worker.why:
            self._log.warning("offload.worker_down", **facts)

    def _say_recovered(self) -> None:
        self._log.warning("offload.recovered", workers=len(self.all))

    async def _life(self, worker: Worker) -> str:
        """Start one process and serve it to its end; return why it refused to work, "" otherwise.

        Raises:
            OSError: if it cannot be started.
        """
        ours, theirs = socket.socketpair()
        with ours:
            ours.setblocking(False)
            with theirs:
                process = await self._spawn(theirs.fileno())
            worker.born(process, ours)
            try:
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(greet, ours, self._hello)
                    tasks.start_soon(self._watch, worker, tasks.cancel_scope)
                    tasks.start_soon(until_ended, process, tasks.cancel_scope)
                    await self._serve(worker, ours)
                    tasks.cancel_scope.cancel()
            finally:
                worker.up = False
                await self._end(worker, process, ours)
        inbox = worker.inbox
        return inbox[NUMBER.size :].decode(errors="replace") if refusal(inbox) else ""

    async def _spawn(self, link: int) -> Process:
        """Start a process; a close waits for that, some ms, or nobody would wait for its end."""
        started: list[Process] = []
        with anyio.CancelScope(shield=True):
            process = await anyio.open_process(
                interpreter.command(link, self._fd, self._nice, self._pid),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                pass_fds=(link, self._fd),
                env=interpreter.environment(),
            )
            started.append(process)
        return started[0]

    async def _serve(self, worker: Worker, link: socket.socket) -> None:
        """Read what it says, up to the end of the link."""
        while True:
            await anyio.wait_readable(link)
            data = read(link)
            if data == b"":
                return
            self._hear(worker, data or b"")

    def _hear(self, worker: Worker, data: bytes) -> None:
        worker.inbox += data
        if refusal(worker.inbox):
            return
        whole = len(worker.inbox) // NUMBER.size * NUMBER.size
        messages, worker.inbox = worker.inbox[:whole], worker.inbox[whole:]
        for (number,) in NUMBER.iter_unpack(messages):
            worker.answers += 1
            if number == READY:
                self._ready(worker)
            else:
                worker.pace.answered(worker.silent_s)
                self._done(worker, number)
            worker.silent_s = 0.0

    def _ready(self, worker: Worker) -> None:
        worker.up = True
        worker.up_since = current_time()
        self._log.debug("offload.worker_up", worker=worker.number)
        if worker.why:
            worker.why = ""
            if not self.degraded:
                self._say_recovered()

    def _done(self, worker: Worker, slot: int) -> None:
        ticket = worker.tickets.pop(slot)
        if ticket.abandoned:
            self.free.append(slot)
        else:
            ticket.done.set()

    async def _watch(self, worker: Worker, life: anyio.CancelScope) -> None:
        """Count for how long it is silent while there is something to say; kill it in the end."""
        while True:
            if worker.up and not worker.tickets:
                worker.silent_s = 0.0
                worker.given = anyio.Event()
                await worker.given.wait()
            heard, was_up = worker.answers, worker.up
            await anyio.sleep(STEP_S)
            if worker.answers == heard:
                worker.silent_s += STEP_S
            most = BATCH_S if was_up else READY_S
            if worker.silent_s >= most:
                what = "did nothing with a batch" if was_up else "did not start"
                why = f"worker {worker.number} {what} for {most:g} s and was killed"
                self._log.warning("offload.worker_hung", worker=worker.number, reason=why)
                worker.kill(why)
                life.cancel()
                return

    # -- its end ----------------------------------------------------------------------------------

    async def _end(self, worker: Worker, process: Process, link: socket.socket) -> None:
        """Tell a worker to end, or kill it, and settle what it leaves.

        The link is shut down, which a worker sees also where a forked child holds it open; only a
        child that runs this itself, as it leaves, leaves the worker to its parent.
        """
        if os.getpid() != self._pid:
            return
        with suppress(OSError):
            link.shutdown(socket.SHUT_WR)
        gone = False
        with anyio.CancelScope(shield=True):
            gone = await ends_within(process, self._end_s)
            if not gone:
                with suppress(ProcessLookupError):
                    process.kill()
                gone = await ends_within(process, self._end_s)
        while data := read(link):
            self._hear(worker, data)
        worker.up = False
        worker.process = worker.link = None
        worker.ended = worker.ended or f"worker {worker.number} {what_happened(process)}"
        self._bury(worker, gone=gone)

    def _bury(self, worker: Worker, *, gone: bool) -> None:
        """Whoever waits for an answer gets none. What a process may still write to is not free."""
        for ticket in islice(worker.tickets.values(), 1):  # batches are done one after the other
            ticket.begun = True
        for slot, ticket in worker.tickets.items():
            if not gone:
                ticket.lost = True
            elif ticket.abandoned:
                self.free.append(slot)
            ticket.died = worker.ended
            ticket.done.set()
        worker.tickets.clear()
        worker.silent_s = 0.0
