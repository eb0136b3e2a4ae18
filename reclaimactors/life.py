"""How a memory lives and ends: its actors run until it is closed, or until something else ends it.

On asyncio they run in a task of the memory's own (`OwnTask`), so that any task may close it. On
trio, which has no such task, they run in the block that opened it (`InBlock`).

Whatever the end is, it goes the same way: calls are refused, the block's body is cancelled if it
was no close, the actors are ended, and last the queues and the stores are closed (`close`), within
`close_timeout`. Nothing is written. What ended it is `Machine.crash`; each caller that it is
raised to gets an instance of its own.
"""

from __future__ import annotations

from contextvars import ContextVar
from typing import TYPE_CHECKING, cast

import anyio
from anyio.lowlevel import cancel_shielded_checkpoint

from reclaimactors.actors.supervision import unraised, why_of, words_of
from reclaimactors.cpu.breath import Breath
from reclaimactors.cpu.loop_clock import current_time
from reclaimactors.errors import ReclaimError
from reclaimactors.topology import processes
from reclaimactors.topology.swapon import close_backends

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import TracebackType

    from reclaimactors.actors.machine import Machine
    from reclaimactors.loops import Body
    from reclaimactors.memory import Memory

__all__ = ["InBlock", "OwnTask", "close"]

# The memories of whose actors this task is one, or was started by one.
_inside: ContextVar[tuple[OwnTask, ...]] = ContextVar("reclaimactors_inside", default=())


class OwnTask:
    """A memory on asyncio: a task of its own runs the actors, and closes everything in the end."""

    def __init__(self, memory: Memory, machine: Machine, close_timeout: float) -> None:
        self._memory = memory
        self._machine = machine
        self._close_timeout = close_timeout
        self._scope = anyio.CancelScope()  # of the actors
        self._started = anyio.Event()
        self._leaving = False
        self._body: Body | None = None
        self._cancelled = False  # the task was, by others
        self._told = False  # somebody was told what ended it
        machine.on_crash = self._crashed
        memory.life = self

    async def begin(self) -> None:
        """Start.

        On failure: it is closed. That is if the caller, or the new task, is cancelled meanwhile.
        """
        self._task = self._machine.loop.spawn(self._live(), "memory")
        self._task.add_done_callback(self._has_ended)
        try:
            await self._started.wait()
            if self._task.done() and not self._machine.closing:  # cancelled before its first step
                self._machine.crashed(_cancelled("the task that runs its actors"))
            self._machine.check_open()
        except BaseException:  # cancelled too: nobody else would close it
            try:
                await self._end()
            finally:
                if not self._machine.ended:
                    with anyio.CancelScope(shield=True):
                        await close(self._machine, self._close_timeout)
            raise

    def _has_ended(self, _task: object) -> None:
        self._started.set()  # whoever waits for it waits no more

    def guard(self, body: Body) -> None:
        """Cancel the body of a block when anything but a close ends the memory."""
        self._body = body

    async def _live(self) -> None:
        _inside.set((*_inside.get(), self))
        machine = self._machine
        try:
            with self._scope:
                async with anyio.create_task_group() as tasks:
                    machine.starter.attach(tasks)
                    self._started.set()
                    await anyio.sleep_forever()
        except BaseExceptionGroup as group:
            machine.crashed(_only(group, None))  # where that is not said yet
        except Exception:  # in a forked child it is of a copy, and the parent's own is told there
            if machine.ours:
                raise
        except anyio.get_cancelled_exc_class():
            self._cancelled = not self._leaving
        finally:
            if machine.ours:
                await self._close()

    async def _close(self) -> None:
        machine = self._machine
        if not self._leaving:
            machine.crashed(
                _cancelled("the task that runs its actors" if self._cancelled else "an actor")
            )
        try:
            if self._cancelled:
                machine.log.warning("memory.cancelled", hint="close it before its event loop ends")
            elif machine.crash is not None:
                machine.log.error("memory.crashed", error=why_of(machine.crash))
        finally:  # a host's handler may exit the program
            with anyio.CancelScope(shield=True):
                await close(machine, self._close_timeout)

    def _crashed(self) -> None:
        """Something that is no close ends the memory."""
        self._memory.refuse_calls()
        if self._body is not None and not self._leaving:
            self._body.cancel()  # the block learns of it wherever it waits

    def forked(self) -> None:
        """In a forked child: end the actors as soon as its loop runs, and close nothing."""
        loop = self._machine.loop.native
        if not self._task.done() and not loop.is_closed():
            loop.call_soon(self._end_here)

    def _end_here(self) -> None:
        if self._machine.loop.runs:
            self._task.cancel()

    # -- leaving ----------------------------------------------------------------------------------

    async def aclose(self) -> None:
        """Close, and raise what else ended the memory; once, or to each who waited for the end.

        Inside one of its actors (a plugin's code) it asks for the end and does not wait for it.
        """
        ended = self._task.done()
        if self in _inside.get():
            self._leave()
            return
        await self._end()
        self._tell(late=ended)

    def _leave(self) -> None:
        self._memory.refuse_calls()
        self._leaving = True
        self._scope.cancel()

    async def _end(self) -> None:
        """Ask for the end and wait for it; a cancellation of the caller is raised after that."""
        self._leave()
        if self._task.done():
            await cancel_shielded_checkpoint()  # the caller's loop may be another one by now
        else:
            await self._machine.loop.wait(self._task)

    def _tell(self, *, late: bool) -> None:
        """Raise what ended the memory to whoever waited for the end, to others once."""
        if not self._cancelled and not (late and self._told):
            self._raise()

    def _raise(self) -> None:
        crash = self._machine.crash
        if crash is not None:
            self._told = True
            raise unraised(crash)

    async def leave_block(self, error: BaseException | None) -> None:
        """Close, as the block is left; return for the body's own error to go on as it is.

        Raises:
            ReclaimError: what ended the memory, in place of the cancellation that it sent, or of
                the ClosedResourceError that told the body.
            CancelledError: if others have cancelled the caller.
        """
        if not self._machine.ours:
            return
        ended = self._task.done()
        cancelled: BaseException | None = None
        try:
            await self._end()
        except anyio.get_cancelled_exc_class() as exc:
            cancelled = exc
        body, self._body = self._body, None
        ours = body is not None and body.take_back()
        try:
            if cancelled is not None and not ours:
                raise cancelled
        finally:
            cancelled = None  # its traceback holds this frame
        if isinstance(error, anyio.get_cancelled_exc_class()):
            if ours:
                self._raise()
        elif error is None or isinstance(error, anyio.ClosedResourceError):
            self._tell(late=ended)


class InBlock:
    """A memory on trio: the block that opened it runs the actors."""

    def __init__(self, memory: Memory, machine: Machine, close_timeout: float) -> None:
        self._memory = memory
        self._machine = machine
        self._close_timeout = close_timeout
        self._tasks = anyio.create_task_group()
        machine.on_crash = memory.refuse_calls
        memory.life = self

    async def begin(self) -> None:
        """Start."""
        await self._tasks.__aenter__()
        self._machine.starter.attach(self._tasks)

    async def aclose(self) -> None:
        """Refuse that."""
        raise RuntimeError("on trio a memory is closed by leaving the block that opened it")

    def forked(self) -> None:
        """In a forked child the actors do nothing; they end with the block."""

    async def leave_block(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> bool:
        """Close; return whether the error was the cancellation of this block alone.

        Raises:
            ReclaimError: what else ended the memory, unless an error of the body goes on.
        """
        machine = self._machine
        self._memory.refuse_calls()
        ends = current_time() + self._close_timeout
        self._tasks.cancel_scope.cancel()
        goes_on = error
        try:
            if await self._tasks.__aexit__(kind, error, trace):
                goes_on = None
        except BaseExceptionGroup as group:
            crash = _only(group, error)
            if crash is not error:
                goes_on = None
                machine.crashed(crash)
        finally:
            try:
                if machine.crash is not None and machine.ours:
                    machine.log.error("memory.crashed", error=why_of(machine.crash))
            finally:
                # Not less than a quarter: the process may have been stopped while its tasks ended.
                await close(machine, max(self._close_timeout / 4, ends - current_time()))
        if goes_on is None and machine.crash is not None:
            raise unraised(machine.crash)
        return goes_on is not error


async def close(machine: Machine, within_s: float) -> None:
    """Close the queues and the stores of a memory whose actors have ended.

    In a forked child nothing is closed: it is the parent's.

    On failure: all of it is closed; what a plugin raised is logged, and ended the memory.
    """
    if not machine.ours:
        return
    try:
        machine.close()
    except Exception as exc:
        error = ReclaimError(f"a plugin failed as the memory was closed: {words_of(exc)}")
        error.__cause__ = exc
        machine.crashed(error)
        machine.log.error("memory.close_failed", error=words_of(exc), exc_info=exc)  # noqa: TRY400
    finally:
        try:
            await close_backends(machine.swapds.values(), within_s)
        finally:
            machine.ended = True
            processes.memory_closed()
            with anyio.CancelScope(shield=True):
                await _let_go(machine)


async def _let_go(machine: Machine) -> None:
    """Let go of every value, whoever still names the memory or one of its stores."""
    breath = Breath()
    for _ in machine.node.mm.let_go():
        await breath.take()
    if machine.starter.malloc.worth_it():
        await machine.starter.malloc.trim()


def _cancelled(what: str) -> ReclaimError:
    return ReclaimError(f"{what} was cancelled by something outside this memory")


def _only(group: BaseExceptionGroup[BaseException], body: BaseException | None) -> BaseException:
    """Return the crash of an actor that a task group ended with; `body` if only that raised."""
    _, rest = group.split(lambda exc: exc is body)
    if rest is None:
        assert body is not None
        return body
    leaves = list(_leaves(rest))
    return leaves[0] if len(leaves) == 1 else rest


def _leaves(exc: BaseException) -> Iterator[BaseException]:
    if isinstance(exc, BaseExceptionGroup):
        for inner in cast("tuple[BaseException, ...]", exc.exceptions):  # pyright: ignore[reportUnknownMemberType] # isinstance drops the group's type argument
            yield from _leaves(inner)
    else:
        yield exc
