"""The event loop of the checks: it sees who holds it, and what goes on behind a call's back."""

from __future__ import annotations

import asyncio  # noqa: TID251 - what holds a loop shows in the loop itself; anyio has none
import selectors
import sys
import threading
import traceback
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar, TypeVarTuple, Unpack, cast

import anyio
import anyio.lowlevel

from reclaimactors.cpu.clock import perf_counter

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Generator
    from contextvars import Context
    from types import FrameType

__all__ = [
    "HOLDS_S",
    "Stepped",
    "WatchedLoop",
    "frames_of_threads",
    "settled",
    "threads_at_work",
    "waits_at",
]

HOLDS_S = 0.005  #: a turn of the event loop that takes longer holds up everybody else
_LOOK_S = 0.002  # between two looks at where a turn is
_LATE_S = 0.25  # how long what goes on behind a call's back is waited for

_T = TypeVar("_T")
_Ts = TypeVarTuple("_Ts")


class WatchedLoop(asyncio.SelectorEventLoop):
    """An event loop that measures its turns and knows its timers."""

    def __init__(self) -> None:
        self.turns = _Turns()
        self.timers: list[asyncio.TimerHandle] = []
        super().__init__(self.turns)

    def call_at(
        self,
        when: float,
        callback: Callable[[Unpack[_Ts]], object],
        *args: *_Ts,
        context: Context | None = None,
    ) -> asyncio.TimerHandle:
        """Note a timer."""
        handle = super().call_at(when, callback, *args, context=context)
        self.timers.append(handle)
        return handle

    @staticmethod
    def current() -> WatchedLoop | None:
        """Return the loop that runs here, if it is one of these."""
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            return None
        return loop if isinstance(loop, WatchedLoop) else None

    @staticmethod
    def this_task() -> object:
        """Return the asyncio task that runs here, None in other loops."""
        try:
            return asyncio.current_task()
        except RuntimeError:
            return None

    def tasks(self) -> set[object]:
        """Return the tasks that have not ended."""
        return set(asyncio.all_tasks(self))

    def going_on(self) -> set[object]:
        """Return what will go on although nobody waits for it: tasks, timers, threads at work."""
        me, now = asyncio.current_task(self), self.time()
        self.timers = [t for t in self.timers if not t.cancelled() and t.when() >= now]
        soon = [timer for timer in self.timers if timer.when() <= now + _LATE_S]
        return {*(asyncio.all_tasks(self) - {me}), *soon, *threads_at_work()}

    @contextmanager
    def watching(self) -> Generator[_Turns]:
        """Note the longest turn within the block, and the line that was running in it."""
        turns = self.turns
        turns.longest_s, turns.line = 0.0, ""
        turns.begun = perf_counter()  # what ran in this turn before does not count
        done = threading.Event()
        thread = threading.get_ident()
        watch = threading.Thread(target=turns.look, args=(thread, done), daemon=True)
        watch.start()
        try:
            yield turns
        finally:
            turns.end()
            done.set()
            watch.join()


class _Turns(selectors.DefaultSelector):
    """The selector that a loop waits in: between two waits is a turn."""

    def __init__(self) -> None:
        super().__init__()
        self.begun: float | None = None
        self.longest_s = 0.0
        self.line = ""  #: where the turn was that last took longer than HOLDS_S

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        self.end()
        try:
            return super().select(timeout)
        finally:
            self.begun = perf_counter()

    def end(self) -> None:
        if self.begun is not None:
            self.longest_s = max(self.longest_s, perf_counter() - self.begun)
            self.begun = None

    def look(self, thread: int, done: threading.Event) -> None:
        """Note where the loop's thread is while a turn takes too long."""
        while not done.wait(_LOOK_S):
            begun = self.begun
            if begun is not None and perf_counter() - begun > HOLDS_S:
                frame = frames_of_threads().get(thread)
                if frame is not None:
                    last = traceback.extract_stack(frame)[-1]
                    self.line = f"{Path(last.filename).name}:{last.lineno} `{last.line}`"


class Stepped(Generic[_T]):
    """Awaits a coroutine, and calls `then` as it waits for the `nr`-th time.

    Attributes:
        waits: how often it waited so far.
        interrupted: whether it was told to end while it waited.
    """

    def __init__(self, call: Coroutine[Any, Any, _T], nr: int, then: Callable[[], object]) -> None:
        self._call = call
        self._nr = nr
        self._then = then
        self.waits = 0
        self.interrupted = False

    def __await__(self) -> Generator[Any, Any, _T]:
        error: BaseException | None = None
        while True:
            try:
                awaited: Any = self._call.send(None) if error is None else self._call.throw(error)
            except StopIteration as end:
                return cast("_T", end.value)
            self.waits += 1
            if self.waits == self._nr:
                self._then()
            error = None
            try:
                yield awaited
            except BaseException as exc:  # noqa: BLE001 - it is the coroutine's to deal with
                error = exc
                self.interrupted = True


def waits_at(task: object) -> traceback.StackSummary:
    """Return the frames of a task that waits, the innermost last."""
    step = getattr(task, "get_coro", lambda: None)()
    frames: list[tuple[FrameType, int]] = []
    while step is not None:
        frame = getattr(step, "cr_frame", None) or getattr(step, "gi_frame", None)
        if frame is not None:
            frames.append((frame, frame.f_lineno))
        step = getattr(step, "cr_await", None) or getattr(step, "gi_yieldfrom", None)
    return traceback.StackSummary.extract(iter(frames))


def frames_of_threads() -> dict[int, FrameType]:
    """Return what each thread runs, by its ident: there is no public way to see it."""
    return sys._current_frames()  # noqa: SLF001 # pyright: ignore[reportPrivateUsage]


def threads_at_work() -> set[object]:
    """Return the other threads that do something else than wait for something to do."""
    frames = frames_of_threads()
    me = threading.current_thread()
    return {
        thread
        for thread in threading.enumerate()
        if thread is not me and _works(frames.get(thread.ident or 0))
    }


def _works(frame: FrameType | None) -> bool:
    if frame is None:
        return False
    code = frame.f_code
    file = Path(code.co_filename).name
    pool = file == "thread.py" and code.co_name == "_worker"  # of concurrent.futures
    return not pool and file not in ("threading.py", "queue.py", "selectors.py")


async def settled(before: set[object]) -> None:
    """Wait for what was begun since `going_on` returned `before`, a quarter of a second at most."""
    loop = WatchedLoop.current()
    until = perf_counter() + _LATE_S
    for _ in range(20):
        await anyio.lowlevel.checkpoint()
    await anyio.sleep(_LOOK_S)  # a thread that was given something may not have begun
    while (  # noqa: ASYNC110 - what goes on there tells nobody
        loop is not None and perf_counter() < until and loop.going_on() - before
    ):
        await anyio.sleep(_LOOK_S)
