"""`open_memory`: one task group around a `Memory`, and the way out of it.

Whatever happens in the body or in an actor, close refuses new calls, ends waiting ones, takes every
batch back, writes nothing, and ends within `close_timeout`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import anyio

from reclaimactors.memory import Memory
from reclaimactors.topology import resolve
from reclaimactors.topology.build import build
from reclaimactors.topology.swapon import close_backends

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from contextlib import AbstractAsyncContextManager
    from pathlib import Path
    from types import TracebackType

    from anyio.abc import TaskGroup

    from reclaimactors.topology import Topology

__all__ = ["open_memory"]


class _Opening:
    """The context manager of `open_memory`: one task group, closed within `close_timeout`."""

    def __init__(self, topology: Topology) -> None:
        self._topology = topology
        self._memory: Memory | None = None
        self._tasks: TaskGroup | None = None

    async def __aenter__(self) -> Memory:
        if self._tasks is not None:
            raise RuntimeError("this opening was entered before: call open_memory once for each")
        machine = await build(self._topology)
        self._machine = machine
        self._tasks = anyio.create_task_group()
        await self._tasks.__aenter__()
        machine.attach(self._tasks)
        self._memory = Memory(self._topology, machine)
        return self._memory

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> bool | None:
        assert self._memory is not None
        assert self._tasks is not None
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
            try:
                self._machine.close()
            finally:
                # Not less than a quarter: the process may have been stopped while its tasks ended.
                left = max(self._topology.close_timeout / 4, ends - anyio.current_time())
                await close_backends(self._machine.swapds.values(), left)
            self._machine.ended = True

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
) -> AbstractAsyncContextManager[Memory]:
    """Return an async context manager that gives a `Memory`.

    Args:
        topology: a built-in name, a path to a TOML file, its keys as a mapping, or a `Topology`.
        budget: bytes, or a string like "64MiB", for everything that is held in this process.
        overrides: the TOML's keys: a mapping merges into its table, a list replaces.

    Raises:
        TopologyError: if a key or value is wrong; it names the key, what was seen and allowed.
        BackendError: on entering, if a backing store cannot be opened.
        PluginError: on entering, if a plugin cannot be had.
    """
    return _Opening(resolve(topology, budget=budget, **overrides))
