"""`open_memory`: from a topology to a `Memory` that is open. How it ends is in `life`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from reclaimactors.life import InBlock, OwnTask
from reclaimactors.loops import current_loop
from reclaimactors.memory import Memory
from reclaimactors.record import RecordedMemory, Recorder
from reclaimactors.topology import processes, resolve
from reclaimactors.topology.build import build, preload

if TYPE_CHECKING:
    from collections.abc import Generator, Mapping
    from types import TracebackType

    from reclaimactors.actors.machine import Machine
    from reclaimactors.topology import Topology

__all__ = ["open_memory"]


class Opening:
    """What `open_memory` returns: ``async with`` it, or await it and call `Memory.aclose`.

    On asyncio the actors live in a task of the memory's own, so that any task may close it. On trio
    they live in the block that opened it.
    """

    kind: type[Memory] = Memory  #: what it gives

    def __init__(self, topology: Topology, record: Path | None = None) -> None:
        self._topology = topology
        self._record = record
        self._entered = False
        self._life: OwnTask | InBlock

    def __await__(self) -> Generator[Any, Any, Memory]:
        return self._open().__await__()

    async def _open(self) -> Memory:
        if current_loop().native is None:
            raise RuntimeError("on trio a memory is opened by `async with`, which also closes it")
        return await self._begin()

    async def __aenter__(self) -> Memory:
        memory = await self._begin()
        if isinstance(self._life, OwnTask):
            self._life.guard(current_loop().body())
        return memory

    async def _begin(self) -> Memory:
        if self._entered:
            raise RuntimeError("this opening was entered before: call open_memory once for each")
        self._entered = True
        recorder = None if self._record is None else Recorder(self._record)
        try:
            machine = await build(self._topology)
        except BaseException:
            if recorder is not None:
                recorder.abandon()
            raise
        _say_if_not_alone(machine)
        if recorder is None:
            memory = self.kind(self._topology, machine)
        else:
            memory = RecordedMemory(self._topology, machine, recorder)
        life = InBlock if machine.loop.native is None else OwnTask
        self._life = life(memory, machine, self._topology.close_timeout)
        await self._life.begin()
        return memory

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> bool:
        if isinstance(self._life, InBlock):
            return await self._life.leave_block(kind, error, trace)
        await self._life.leave_block(error)
        return False


def _say_if_not_alone(machine: Machine) -> None:
    why = processes.memory_opened()
    if why:
        machine.log.warning(
            "memory.one_of_several", reason=why,
            effect="each process has a memory of its own: what one puts, the others do not find",
            instead="one process that serves all clients, or Redis as far memory",
        )  # fmt: skip


def open_memory(
    topology: str | Path | Mapping[str, Any] | Topology = "kcompressd",
    *,
    budget: int | str | None = None,
    record: str | Path | None = None,
    **overrides: Any,
) -> Opening:
    """Return an async context manager that gives a `Memory`; it may be awaited for one as well.

    Whoever awaits it calls `Memory.aclose` in the end, from any task (asyncio only).

    A memory is of one process. A server with several worker processes has several memories, and one
    does not find what another has put: serve all clients from one process, or keep what they share
    in Redis or the like. A line in the log says so where it is noticed.

    Args:
        topology: a built-in name, a path to a TOML file, its keys as a mapping, or a `Topology`.
        budget: bytes, or a string like "64MiB", for everything that is held in this process.
        record: a file to write a trace of all requests to: hashes of keys, sizes and times, no
            values, 256 MiB at most; ``reclaimactors replay`` says what other budgets would do.
        overrides: the TOML's keys: a mapping merges into its table, a list replaces.

    Raises:
        TopologyError: if a key or value is wrong; it names the key, what was seen and allowed. On
            entering, if `record` cannot be written.
        BackendError: on entering, if a backing store cannot be opened.
        PluginError: on entering, if a plugin cannot be had.
    """
    resolved = resolve(topology, budget=budget, **overrides)
    preload(resolved)  # now, which may be before the loop runs
    return Opening(resolved, None if record is None else Path(record))
