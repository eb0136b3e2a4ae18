"""Deadlines in loop time: seconds in which the event loop ran.

A process that was stopped (Ctrl-Z, a frozen container, a host that slept), or whose loop somebody
held, gave nobody a chance to answer. So a deadline is counted in slices: a timer is set for one
after the other, and one that fires late counts only for what it was set to. A deadline passes at
the end of a slice that was on time, or of every fourth late one in a row: what became ready while
the process was stopped is delivered first.

`Deadlines` is for many calls, under one timer; `within` and `happens` are for one.
"""

from __future__ import annotations

from math import inf
from typing import TYPE_CHECKING, TypeVar

import anyio

from reclaimactors.cpu.loop_clock import current_time

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

__all__ = ["Deadlines", "happens", "within"]

T = TypeVar("T")

SLICES = 8  #: of a deadline
SLICE_S = 1.0  #: at most
TURNS = 4  #: of the loop, in which an answer that a thread has given reaches the task that waits
_SAME_S = 1e-9  # loop times that differ by less are equal: sums of slices are not exact


class _LoopTime:
    """Counts seconds of loop time, from the outcome of one timer after the other."""

    def __init__(self, slice_s: float) -> None:
        self.ran = 0.0  #: seconds so far
        self._slice_s = slice_s
        self._late = 0  # timers in a row
        self._set_at = self._set_to = 0.0

    def now(self) -> float:
        """Return the loop time by now; between two timers, that of the last one's end."""
        return self.ran + min(self._set_to, current_time() - self._set_at)

    def set(self, until: float) -> float:
        """Begin a slice that ends at the loop time `until` at the latest; return its seconds.

        What has passed already has a whole slice as grace.
        """
        left = until - self.ran
        self._set_to = min(self._slice_s, left) if left > _SAME_S else self._slice_s
        self._set_at = current_time()
        return self._set_to

    def fired(self) -> bool:
        """Count the slice that has ended; return whether a deadline may pass now."""
        nominal, took = self._set_to, current_time() - self._set_at
        self._set_to = 0.0
        if took > nominal + self._slice_s / 2:
            self._late += 1
            self.ran += nominal
        else:
            self._late = 0
            self.ran += max(nominal, took)
        return self._late % TURNS == 0

    def passed(self, until: float) -> bool:
        """Whether the loop time `until` has passed."""
        return until - self.ran <= _SAME_S


def _slice_of(seconds: float) -> float:
    return min(SLICE_S, seconds / SLICES)


class Deadlines:
    """The deadlines of calls that have so many seconds each, under one timer.

    A call has no timer and no task of its own, only a scope that `run` cancels.

    Args:
        seconds: of each call.
        on_slice: called at the end of each slice in which a call was under way.
    """

    def __init__(self, seconds: float, on_slice: Callable[[], object] = lambda: None) -> None:
        self._seconds = seconds
        self._on_slice = on_slice
        self._time = _LoopTime(_slice_of(seconds))
        self._ends: dict[anyio.CancelScope, float] = {}  # inf: it has passed
        self._begun: anyio.Event | None = None  # `run` waits for a call

    def now(self) -> float:
        """Return the loop time. It stands still while no call is under way."""
        return self._time.now()

    @property
    def overdue(self) -> bool:
        """Whether a call goes on although its deadline has passed."""
        return inf in self._ends.values()

    def begin(self) -> anyio.CancelScope:
        """Return the scope for a call that begins now; `end` follows."""
        scope = anyio.CancelScope()
        self._ends[scope] = self._time.now() + self._seconds
        if self._begun is not None:
            self._begun.set()
            self._begun = None
        return scope

    def end(self, scope: anyio.CancelScope) -> None:
        """The call has ended, however."""
        del self._ends[scope]

    async def run(self) -> None:
        """Keep time, for ever: no deadline passes where this does not run."""
        while True:
            if not self._ends:
                self._begun = anyio.Event()
                await self._begun.wait()
            await anyio.sleep(self._time.set(min(self._ends.values(), default=inf)))
            if self._time.fired():
                for scope, ends in self._ends.items():
                    if self._time.passed(ends):
                        self._ends[scope] = inf
                        scope.cancel()
            self._on_slice()


async def within(seconds: float, call: Callable[[], Awaitable[T]]) -> T:
    """Return what a call gives within so many seconds of loop time. It costs a task.

    Raises:
        TimeoutError: if it takes longer; it was cancelled then.
    """
    deadlines = Deadlines(seconds)
    answer: list[T] = []
    error: Exception | None = None
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(deadlines.run)
        with deadlines.begin():
            try:
                answer.append(await call())
            except Exception as exc:  # noqa: BLE001 - raised below: the group would wrap it
                error = exc
        tasks.cancel_scope.cancel()
    if error is not None:
        raise error
    if not answer:
        raise TimeoutError
    return answer[0]


async def happens(event: anyio.Event, seconds: float) -> bool:
    """Return whether an event happens within so many seconds of loop time."""
    time = _LoopTime(_slice_of(seconds))
    while not event.is_set():
        with anyio.move_on_after(time.set(seconds)):
            await event.wait()
        if not event.is_set() and time.fired() and time.passed(seconds):
            break
    return event.is_set()
