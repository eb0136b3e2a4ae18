"""The event loop in a thread of its own, and calls that other threads send to it.

A call waits in a queue until the loop's thread takes it; the caller waits for a lock that is
released when the call has ended. Calls that come together are taken together: the loop is woken
once. A caller who is interrupted (KeyboardInterrupt) has the call cancelled, and waits for its end:
so what was asked for is done or not done, and not under way, when the exception goes on.
"""

from __future__ import annotations

import os
from collections import deque
from contextlib import suppress
from contextvars import copy_context
from functools import partial
from threading import Event, Lock, Thread, get_ident
from typing import TYPE_CHECKING, Any

import anyio

from reclaimactors.blocking.published import PublishedMemory
from reclaimactors.loops import current_loop
from reclaimactors.opening import Opening

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable

    from reclaimactors.topology import Topology

__all__ = ["LoopThread"]

TURN_CALLS = 32  #: that are carried out in one turn of the loop


class Call:
    """One call of another thread.

    Args:
        now: does it in a callback of the loop, or raises WouldBlock; None where that cannot be.
        later: does it in a task.
        args: of either.
    """

    __slots__ = ("args", "begun", "done", "ended", "error", "later", "now", "task", "value")

    def __init__(
        self,
        now: Callable[..., Any] | None,
        later: Callable[..., Awaitable[Any]],
        args: tuple[Any, ...],
    ) -> None:
        self.now = now
        self.later = later
        self.args = args
        self.ended = Lock()
        self.ended.acquire()
        self.begun = False
        self.done = False
        self.task: Any = None
        self.value: Any = None
        self.error: BaseException | None = None

    def end(self, error: BaseException | None = None) -> None:
        """Let the caller go on."""
        self.error = error
        self.done = True
        self.ended.release()

    async def run(self) -> Any:
        """Do it in a task."""
        return await self.later(*self.args)


class LoopThread:
    """A thread that opens a memory, carries out calls on it, and closes it.

    Args:
        topology: of the memory.
        reads: pfns that other threads have read, in their order; emptied here.
    """

    def __init__(self, topology: Topology, reads: deque[int]) -> None:
        self._topology = topology
        self._reads = reads
        self._calls: deque[Call] = deque()
        self._tasks: set[Any] = set()  # asyncio itself refers to a task only weakly
        self._woken = False
        self._ended = False
        self._process = os.getpid()
        self._ready = Event()
        self._failed: BaseException | None = None
        self._loop: Any = None
        self._stop: anyio.Event
        self.memory: PublishedMemory
        context = copy_context()  # the actors run in that of the opening
        self._thread = Thread(
            target=context.run, args=(self._run,), name="reclaimactors", daemon=True
        )

    # -- its life ---------------------------------------------------------------------------------

    def open(self) -> PublishedMemory:
        """Start it; return the memory once that is open.

        Raises:
            BackendError, PluginError: as `open_memory`, on entering.
        """
        self._thread.start()
        try:
            self._ready.wait()
        except BaseException:  # KeyboardInterrupt
            self._ready.wait()
            with suppress(RuntimeError):
                self.close()
            raise
        if self._loop is None or self._failed is not None:
            self._thread.join()
            assert self._failed is not None
            raise self._failed
        return self.memory

    def _run(self) -> None:
        try:
            anyio.run(self._main)
        except BaseException as exc:  # noqa: BLE001 - it is raised to whoever closes
            self._failed = exc
        finally:
            self._ended = True
            self._refuse_all()
            self._ready.set()

    async def _main(self) -> None:
        self._stop = anyio.Event()
        async with _Opening(self._topology) as self.memory:
            self._loop = current_loop().native
            self._ready.set()
            await self._stop.wait()

    def close(self) -> None:
        """End it, and wait for that; in a forked child it does nothing, as it is the parent's.

        Raises:
            ReclaimError: what else ended the memory; once.
        """
        if os.getpid() != self._process:
            return
        if get_ident() == self._thread.ident:
            raise RuntimeError("the loop's own thread cannot wait for its own end")
        with suppress(RuntimeError):  # it has ended
            self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join()
        failed, self._failed = self._failed, None
        if failed is not None:
            raise failed

    # -- calls ------------------------------------------------------------------------------------

    def call(
        self,
        now: Callable[..., Any] | None,
        later: Callable[..., Awaitable[Any]],
        *args: Any,
    ) -> Any:
        """Have the loop's thread do something, and return what comes of it, or raise that.

        Raises:
            RuntimeError: in a forked child, and in the loop's own thread.
            ClosedResourceError: once the memory has ended.
        """
        if os.getpid() != self._process:
            msg = (
                f"this memory was opened in process {self._process}, before the fork: its thread "
                "and its store are that one's; open a memory in each process, after the fork"
            )
            raise RuntimeError(msg)
        if get_ident() == self._thread.ident:
            msg = "this is the memory's own thread: use the memory that the step was given"
            raise RuntimeError(msg)
        call = Call(now, later, args)
        try:
            self._send(call)
            call.ended.acquire()
        except BaseException:  # KeyboardInterrupt, in the main thread, at any point
            self._give_up(call)
            raise
        try:
            if call.error is not None:
                raise call.error
            return call.value
        finally:
            del call  # its error has this frame in its traceback

    def _send(self, call: Call) -> None:
        self._calls.append(call)
        if not self._woken:
            self._woken = True
            try:
                self._loop.call_soon_threadsafe(self._take)
            except RuntimeError:  # the loop is closed
                self._refuse_all()
        if self._ended:
            self._refuse_all()

    def _give_up(self, call: Call) -> None:
        """Have a call cancelled, and wait for its end."""
        try:
            self._loop.call_soon_threadsafe(self._cancel, call)
        except RuntimeError:  # the loop is closed: nothing is under way
            return
        if not call.done:
            call.ended.acquire()

    def _cancel(self, call: Call) -> None:
        """In the loop: end a call whose caller has given up, wherever it is."""
        if call.task is not None:
            call.task.cancel()
        elif not call.begun:
            with suppress(ValueError):  # it was not sent yet
                self._calls.remove(call)
            call.end()
        self._take()  # the caller may have been interrupted before it woke the loop

    def _take(self) -> None:
        """In the loop: begin what waits, a turn's worth of it."""
        self._woken = False
        for _ in range(TURN_CALLS):
            try:
                call = self._calls.popleft()
            except IndexError:
                return
            self._begin(call)
        if not self._woken:
            self._woken = True
            self._loop.call_soon(self._take)

    def _begin(self, call: Call) -> None:
        call.begun = True
        try:
            if self._reads:
                self.memory.note_reads(self._read())
            if call.now is not None:
                call.value = call.now(*call.args)
                call.end()
                return
        except anyio.WouldBlock:
            pass
        except BaseException as exc:  # noqa: BLE001 - the caller's
            call.end(exc)
            return
        call.task = self._loop.create_task(call.run(), name="reclaimactors.call")
        self._tasks.add(call.task)
        call.task.add_done_callback(partial(self._done, call))

    def _read(self) -> Iterable[int]:
        """Return what other threads have read since, each once."""
        reads: dict[int, None] = {}
        with suppress(IndexError):
            for _ in range(len(self._reads)):
                reads[self._reads.popleft()] = None
        return reads

    def _done(self, call: Call, task: Any) -> None:
        self._tasks.discard(task)
        if task.cancelled():
            call.end(self.memory.closed())  # unless its caller has given up, it is the loop's end
            return
        error = task.exception()
        if error is None:
            call.value = task.result()
        call.end(error)

    def _refuse_all(self) -> None:
        """The loop has ended: nobody is to wait for it."""
        while self._calls:
            with suppress(IndexError):  # another thread does the same
                self._calls.popleft().end(self.memory.closed())


class _Opening(Opening):
    """Opens a memory that other threads may read."""

    kind = PublishedMemory

    async def __aenter__(self) -> PublishedMemory:
        memory = await super().__aenter__()
        assert isinstance(memory, PublishedMemory)
        return memory
