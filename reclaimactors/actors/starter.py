"""Who starts the tasks of one memory: its actors at the first pressure, and small jobs.

Whoever wants something started may be a callback of the loop, where no task can be started, or a
request whose context is not to be theirs. So he only sets an event.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

import anyio

from reclaimactors.actors.malloc_trim import MallocTrim
from reclaimactors.cpu.breath import let_go

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from mmap import mmap

    from anyio.abc import TaskGroup

    from reclaimactors.actors.machine import Machine

__all__ = ["Starter"]


class Starter:
    """The actors of one machine by name, and the task group that they run in."""

    def __init__(self, machine: Machine) -> None:
        self._m = machine
        self._log = machine.log
        self._supervisor = machine.supervisor
        self.malloc = MallocTrim(machine.node.memcg)
        self.started = False  #: the actors, by somebody under pressure
        self.actors: dict[str, Callable[[], Awaitable[None]]] = {}
        self._tasks: TaskGroup | None = None
        self._early: set[str] = set()  # those of `start_one`
        self._to_start: deque[str] = deque()
        self._to_free: deque[list[bytes] | mmap] = deque()
        self._to_trim = False
        self._start_now = anyio.Event()
        self._at_once = False  # one of the actors does not wait for pressure

    def add(self, name: str, run: Callable[[], Awaitable[None]], *, at_once: bool = False) -> None:
        """Name an actor that starts at the first pressure, or now where that has been.

        Args:
            name: of its own.
            run: what it does, for ever.
            at_once: whether all actors start as the memory is opened, because of this one.
        """
        self.actors[name] = run
        self._at_once = self._at_once or at_once
        if self.started:
            self._start(name)

    def start_one(self, name: str, run: Callable[[], Awaitable[None]]) -> None:
        """Name an actor and start it, whether there has been pressure or not."""
        self._early.add(name)
        self.actors[name] = run
        self._start(name)

    def remove(self, name: str) -> None:
        """Forget an actor that ends by itself, has ended, or was never started."""
        del self.actors[name]

    def _start(self, name: str) -> None:
        self._to_start.append(name)
        self._start_now.set()

    def attach(self, tasks: TaskGroup) -> None:
        """Give the task group that the actors run in."""
        self._tasks = tasks
        tasks.start_soon(self._supervisor.run, "starter", lambda: self._run(tasks), name="starter")
        if self._at_once:
            self.start()

    async def _run(self, tasks: TaskGroup) -> None:
        """Start the actors as they are wanted.

        Whoever meets the first pressure only sets an event: it may be a callback of the loop, where
        no task can be started, and the actors are to run in the context of the opening rather than
        in that of a request.

        On failure: what could not be started is tried again, as the supervisor runs this again.
        """
        while True:
            self._start_now = anyio.Event()
            started: list[str] = []
            while self._to_start:
                name = self._to_start[0]
                if name in self.actors:  # swapped off meanwhile, if not
                    tasks.start_soon(self._supervisor.run, name, self.actors[name], name=name)
                    started.append(name)
                self._to_start.popleft()
            if started:
                self._log.debug("actors.started", actors=started)
            while self._to_free:
                tasks.start_soon(self._let_go, self._to_free.popleft(), name="let_go")
            if self._to_trim:
                self._to_trim = False
                tasks.start_soon(self.malloc.trim, name="trim")
            await self._start_now.wait()

    def start(self) -> None:
        """Start the actors, once. Nothing runs before the first pressure."""
        if self.started or self._tasks is None or self._m.closing:
            return
        self.started = True
        for name in [name for name in self.actors if name not in self._early]:
            self._start(name)

    def let_go(self, held: list[bytes] | mmap) -> None:
        """Free a large value in slices, if it is one; nobody waits for that."""
        if held and self._tasks is not None and not self._m.closing:
            self._to_free.append(held)
            self._start_now.set()

    async def _let_go(self, held: list[bytes] | mmap) -> None:
        await let_go(held)
        self.look_at_malloc()

    def look_at_malloc(self) -> None:
        """Have the heap trimmed, in a thread, if that is due; nobody waits for that."""
        if self.malloc.due():
            self._to_trim = True
            self._start_now.set()
