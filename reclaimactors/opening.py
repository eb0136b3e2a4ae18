"""`open_memory`: one task group around a `Memory`, and the way out of it.

Whatever happens in the body or in an actor, close refuses new calls, ends waiting ones, takes every
batch back, writes nothing, and ends within `close_timeout`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import anyio

from reclaimactors.memory import Memory
from reclaimactors.topology import resolve
from reclaimactors.topology.build import build, preload
from reclaimactors.topology.swapon import close_backends

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator, Mapping
    from pathlib import Path
    from types import TracebackType

    from anyio.abc import TaskGroup

    from reclaimactors.topology import Topology

__all__ = ["open_memory"]


class Opening:
    """What `open_memory` returns: ``async with`` it, or await it and call `Memory.aclose`.

    On asyncio the actors live in a task of the memory's own, so that any task may close it. On trio
    they live in the block that opened it.
    """

    def __init__(self, topology: Topology) -> None:
        self._topology = topology
        self._entered = False
        self._tasks: TaskGroup | None = None  # on trio
        self._life: Any = None  # the task, on asyncio
        self._body: Any = None  # the task of the block, which a crash ends
        self._leaving = False
        self._crash: BaseException | None = None

    def __await__(self) -> Generator[Any, Any, Memory]:
        return self._open().__await__()

    async def _open(self) -> Memory:
        memory = await self._build()
        if self._machine.loop.native is None:
            self._machine.close()
            await close_backends(self._machine.swapds.values(), self._topology.close_timeout)
            raise RuntimeError("on trio a memory is opened by `async with`, which also closes it")
        await self._begin()
        return memory

    async def __aenter__(self) -> Memory:
        memory = await self._build()
        loop = self._machine.loop
        if loop.native is None:
            self._tasks = anyio.create_task_group()
            await self._tasks.__aenter__()
            self._machine.attach(self._tasks)
        else:
            self._body = loop.current_task()
            await self._begin()
        return memory

    async def _build(self) -> Memory:
        if self._entered:
            raise RuntimeError("this opening was entered before: call open_memory once for each")
        self._entered = True
        self._machine = machine = await build(self._topology)
        self._memory = Memory(self._topology, machine)
        return self._memory

    # -- a task of its own ------------------------------------------------------------------------

    async def _begin(self) -> None:
        self._started = anyio.Event()
        loop = self._machine.loop
        self._life = loop.spawn(self._live(), "memory")
        self._memory.closer = self._aclose
        await self._started.wait()

    async def _live(self) -> None:
        """Run the actors until told to leave, or until one of them ends the memory; then close."""
        try:
            async with anyio.create_task_group() as tasks:
                self._machine.attach(tasks)
                self._actors = tasks.cancel_scope
                self._started.set()
                await anyio.sleep_forever()
        except BaseExceptionGroup as group:
            self._crash = _only(group, None)
        finally:
            self._memory.refuse_calls()
            self._crash = self._crash or self._machine.crash
            with anyio.CancelScope(shield=True):
                await self._end(self._topology.close_timeout)
            if self._crash is not None:
                self._told(self._crash)
                if self._body is not None and not self._leaving:
                    self._body.cancel()  # the block learns of it wherever it waits

    async def _aclose(self) -> None:
        """Close, and raise what ended the memory, if something did; once."""
        self._memory.refuse_calls()
        self._leaving = True
        self._actors.cancel()
        await self._machine.loop.wait(self._life)
        crash, self._crash = self._crash, None
        if crash is not None:
            raise crash from crash.__cause__

    async def _leave_block(self, error: BaseException | None) -> bool:
        cancelled = self._crash is not None and not self._leaving
        try:
            await self._aclose()
        except BaseException:
            if cancelled and isinstance(error, anyio.get_cancelled_exc_class()):
                self._body.uncancel()
            elif error is not None and not isinstance(error, anyio.ClosedResourceError):
                return False  # the body's own error goes on as it is
            raise
        return False

    async def _end(self, within_s: float) -> None:
        try:
            self._machine.close()
        finally:
            await close_backends(self._machine.swapds.values(), within_s)
        self._machine.ended = True

    # -- leaving the block ------------------------------------------------------------------------

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> bool | None:
        if self._tasks is None:
            return await self._leave_block(error)
        self._memory.refuse_calls()
        ends = anyio.current_time() + self._topology.close_timeout
        self._tasks.cancel_scope.cancel()
        try:
            handled = await self._tasks.__aexit__(kind, error, trace)
            crash = self._machine.crash
            if crash is None or (error is not None and not handled):
                return handled
            # To the group an actor's cancellation is no error.
            raise self._told(crash) from crash.__cause__
        except BaseExceptionGroup as group:
            crash = _only(group, error)
            if crash is None:
                return False  # the body's own error goes on as it is, not in a group
            raise self._told(crash) from crash.__cause__
        finally:
            # Not less than a quarter: the process may have been stopped while its tasks ended.
            left = max(self._topology.close_timeout / 4, ends - anyio.current_time())
            await self._end(left)

    def _told(self, crash: BaseException) -> BaseException:
        """Say in the log what ended the memory, for whoever raises it."""
        self._machine.log.error("memory.crashed", error=str(crash))
        return crash


def _only(
    group: BaseExceptionGroup[BaseException], body: BaseException | None
) -> BaseException | None:
    """Return the crash of an actor that a task group ended with; None if the body raised."""
    _, rest = group.split(lambda exc: exc is body)
    if rest is None:
        return None
    leaves = list(_leaves(rest))
    return leaves[0] if len(leaves) == 1 else rest


def _leaves(exc: BaseException) -> Iterator[BaseException]:
    if isinstance(exc, BaseExceptionGroup):
        for inner in cast("tuple[BaseException, ...]", exc.exceptions):  # pyright: ignore[reportUnknownMemberType] # isinstance drops the group's type argument
            yield from _leaves(inner)
    else:
        yield exc


def open_memory(
    topology: str | Path | Mapping[str, Any] | Topology = "kcompressd",
    *,
    budget: int | str | None = None,
    **overrides: Any,
) -> Opening:
    """Return an async context manager that gives a `Memory`; it may be awaited for one as well.

    Whoever awaits it calls `Memory.aclose` in the end, from any task (asyncio only).

    Args:
        topology: a built-in name, a path to a TOML file, its keys as a mapping, or a `Topology`.
        budget: bytes, or a string like "64MiB", for everything that is held in this process.
        overrides: the TOML's keys: a mapping merges into its table, a list replaces.

    Raises:
        TopologyError: if a key or value is wrong; it names the key, what was seen and allowed.
        BackendError: on entering, if a backing store cannot be opened.
        PluginError: on entering, if a plugin cannot be had.
    """
    resolved = resolve(topology, budget=budget, **overrides)
    preload(resolved)  # now, which may be before the loop runs
    return Opening(resolved)
