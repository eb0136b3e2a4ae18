"""The event loop of a modelled machine: its tasks' steps take what they cost there.

A task runs in steps, from one wait to the next. Whatever is charged while a step runs (`Meter`) is
work of the thread that the task belongs to. There are two kinds of machine.

- ``actors = "loop"``: all tasks are one thread, that of an asyncio program. After each step the
  clock goes on until that thread has done the work; workers go on meanwhile on their CPUs.
- ``actors = "threads"``: each actor and each caller is a thread of its own, as in a kernel. A task
  whose step had a cost goes on once its thread has done the work, and others go on meanwhile.

Within a step the clock says when what was done so far is done, so that whoever measures how long
something takes, or stops after a time slice, does so here as well. What a step changes is seen by
the others at the beginning of the work rather than at its end.

When nothing is left to do at an instant, the clock goes to the next thing that happens. Nothing
depends on the real time, nor on the order in which a set of tasks is gone through, but for the
order of the very last steps of tasks that are cancelled together.
"""

from __future__ import annotations

import asyncio  # noqa: TID251 - a clock is part of one kind of loop; anyio has none to replace
import math
import selectors
from collections.abc import Coroutine
from typing import TYPE_CHECKING, Any

from reclaimactors.cpu.breath import TURN_S, Share
from reclaimactors.cpu.loop_thread import Cpu as LoopCpu
from reclaimactors.errors import ReclaimError
from reclaimactors.simulation.cpus import Thread

if TYPE_CHECKING:
    from collections.abc import Callable, Generator
    from contextvars import Context

    from reclaimactors.simulation.spec import Machine

__all__ = ["Meter", "ModelledLoop", "NothingHappens"]


# Tasks that are threads of their own, and the threads of whose affinity they have; what is not here
# is a part of who starts it.
_ACTORS = {
    "kswapd": "kswapd", "kcompressd": "workers", "padata": "workers", "workers": "workers",
    "starter": "kswapd", "lender": "kswapd",
}  # fmt: skip


LOOKS = 1000  #: at the clock in one step, after which each costs LOOK_S: somebody spins
LOOK_S = 1e-6
YIELD_S = 5e-6  #: until a thread that yields, and has done nothing, goes on


class NothingHappens(ReclaimError):  # noqa: N818 - it says what happened
    """Every task waits, and nothing is left to happen that would wake one."""


class Meter:
    """What was charged since the running step began.

    Attributes:
        s: seconds of work.
    """

    __slots__ = ("s",)

    def __init__(self) -> None:
        self.s = 0.0


class ModelledLoop(asyncio.SelectorEventLoop):
    """An event loop on a modelled machine.

    Args:
        machine: what its CPUs and costs are.
    """

    virtual = True  #: a memory's pressure is measured by this clock, too

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self.cpus = machine.build()
        self.meter = Meter()  #: where the work of the running step is charged
        self._threads = machine.actors == "threads"
        self.cpu: type[LoopCpu] = _OfThreads if self._threads else LoopCpu
        self.threads: list[Thread] = []  #: all that there were
        self._actors: dict[str, Thread] = {}
        main, where = ("callers", "callers") if self._threads else ("loop", "loop")
        self._main = self._new_thread(main, where)
        self.running: Thread = self._main  #: whose step runs
        self._looks = 0  # at the clock, in this step
        super().__init__(_Selector(self))

    def time(self) -> float:
        """Return the seconds since this loop was made, when what was charged so far is done."""
        return self.cpus.now + self.meter.s / self.running.speed

    def look(self) -> float:
        """Return `time`, to who looks at the clock: whoever does nothing else spends time so."""
        self._looks += 1
        if self._looks > LOOKS:
            self.meter.s += LOOK_S
        return self.time()

    def create_task(
        self, coro: Any, *, name: Any = None, context: Context | None = None, **more: Any
    ) -> asyncio.Task[Any]:
        """Return a task whose steps take what they cost."""
        charged = _Charged(coro, self, self._thread_of(name))
        return super().create_task(charged, name=name, context=context, **more)

    def _thread_of(self, name: str | None) -> Thread:
        """Return the thread that a new task belongs to: by its name, or the one that starts it."""
        if not self._threads:
            return self._main
        where = "swapd" if (name or "").startswith("swapd") else _ACTORS.get(name or "")
        if name is not None and where is not None:
            if name not in self._actors:
                self._actors[name] = self._new_thread(name, where)
            return self._actors[name]
        if self.running in self._actors.values():
            return self.running
        return self._new_thread(f"caller {len(self.threads)}", "callers")

    def worker(self, name: str, weight: float) -> Thread:
        """Return a new thread that compresses."""
        return self._new_thread(name, "workers", weight)

    def _new_thread(self, name: str, where: str, weight: float = 1.0) -> Thread:
        thread = Thread(name, self.machine.allowed(where), weight)
        self.threads.append(thread)
        return thread

    def step(self, thread: Thread, send: Callable[[Any], Any], value: Any) -> Any:
        """Run a step of a task, charged to its thread."""
        self.running = thread
        self.meter.s = 0.0
        self._looks = 0
        return send(value)

    def pay(self, thread: Thread, *, yields: bool = False) -> asyncio.Future[None] | None:
        """Have a thread do the work of the step that has ended; return what to wait for, if any.

        Args:
            thread: whose step it was.
            yields: whether the task only lets others go first.
        """
        work, self.meter.s = self.meter.s, 0.0
        if not work:
            return self._later() if yields and self._threads else None
        if not self._threads:
            self.cpus.run(thread, work)
            return None
        paid = self.create_future()
        self.cpus.submit(thread, work, lambda: _set(paid))
        return paid

    def _later(self) -> asyncio.Future[None]:
        """Return what comes after YIELD_S: who waits for a thread at work asks again and again."""
        later = self.create_future()
        self.call_at(self.cpus.now + YIELD_S, _set, later)
        return later

    def idle(self, timeout: float | None) -> None:
        """Let time pass until something happens, `timeout` seconds at most."""
        until = math.inf if timeout is None else self.cpus.now + timeout
        if not self.cpus.advance(until) and timeout is None:
            raise NothingHappens("every task waits, and nothing is left to happen: a lost wake-up")


def _set(future: asyncio.Future[None]) -> None:
    if not future.done():  # cancelled meanwhile
        future.set_result(None)


class _Selector(selectors.DefaultSelector):
    """The selector in which the loop would sleep: it lets modelled time pass instead."""

    def __init__(self, loop: ModelledLoop) -> None:
        super().__init__()
        self._loop = loop

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        ready = super().select(0)
        if ready or (timeout is not None and timeout <= 0):
            return ready
        self._loop.idle(timeout)
        return super().select(0)


class _Nothing:
    """No step is held back."""


class _Charged(Coroutine[Any, Any, Any]):
    """A coroutine whose steps take what they cost.

    Where its thread works on, what the step ended in (a wait, or the end) is held back until that
    is done.
    """

    __slots__ = ("_held", "_loop", "_of", "_thread")

    def __init__(self, of: Coroutine[Any, Any, Any], loop: ModelledLoop, thread: Thread) -> None:
        self._of = of
        self._loop = loop
        self._thread = thread
        self._held: Any = _Nothing

    def __getattr__(self, name: str) -> Any:
        return getattr(self._of, name)  # cr_frame and the like

    def __await__(self) -> Generator[Any, Any, Any]:
        raise RuntimeError("a task's coroutine is not awaited")

    def close(self) -> None:
        self._of.close()

    def send(self, value: Any) -> Any:
        held = self._held
        if held is not _Nothing:
            self._held = _Nothing
            if isinstance(held, StopIteration):
                raise held
            if held is not None:
                return held
        return self._step(self._of.send, value)

    def throw(self, kind: Any, value: Any = None, trace: Any = None) -> Any:  # noqa: ARG002 - as a coroutine's
        held, self._held = self._held, _Nothing
        if isinstance(held, StopIteration):
            raise held
        if isinstance(held, asyncio.Future):
            held.cancel()  # as the task would have done, had it been told of it
        exc = kind if value is None else value
        return self._step(self._of.throw, exc)

    def _step(self, send: Callable[[Any], Any], value: Any) -> Any:
        loop, thread = self._loop, self._thread
        try:
            ended: Any = loop.step(thread, send, value)
        except StopIteration as end:
            ended = end
        except BaseException:
            loop.pay(thread)
            raise
        paid = loop.pay(thread, yields=ended is None)
        if paid is not None:
            self._held = ended
            paid._asyncio_future_blocking = True  # noqa: SLF001 # as `await` does it
            return paid
        if isinstance(ended, StopIteration):
            raise ended
        return ended


class _Alone(Share):
    """The time slices of threads that have no event loop to share: each ends a step as it can.

    What a step changes is seen at its beginning, so steps are to be short.
    """

    def __init__(self, loop: ModelledLoop) -> None:
        super().__init__()
        self._meter = loop.meter

    def begin(self, now: float) -> float:  # noqa: ARG002 - as of any share
        """Return the slice of whoever begins."""
        return TURN_S

    def worked(self, now: float, seconds: float) -> bool:  # noqa: ARG002 - the same
        """Return whether the step has no cost yet that it could end with."""
        return not self._meter.s

    async def turn(self) -> None:
        """End the step."""
        await asyncio.sleep(0)


class _OfThreads(LoopCpu):
    """What accounts the work of a memory whose actors are threads: nobody holds up all others."""

    def __init__(self, page_size: int, loop: Any = None) -> None:
        super().__init__(page_size, loop)
        self.share = _Alone(loop)

    def worked(self, started: float) -> float:
        return self.now() - started
