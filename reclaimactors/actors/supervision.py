"""Supervision: a crash is logged and counted, and the actor is started again after a back-off.

What the actor owned is handed back by the actor's own ``finally``. More than `INTENSITY` crashes
within `WINDOW_S` are not survived: the error leaves through the task group, and the memory closes
loudly. Every call from then on is told of that error (`closed`), by an instance of its own
(`unraised`).
"""

from __future__ import annotations

import math
from collections import deque
from copy import copy
from typing import TYPE_CHECKING, cast

import anyio

from reclaimactors.cpu.clock import perf_counter
from reclaimactors.cpu.loop_clock import current_time
from reclaimactors.errors import ReclaimError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from reclaimactors.log import Log
    from reclaimactors.mm.vmstat import Vmstat

__all__ = ["INTENSITY", "WINDOW_S", "Supervisor", "closed", "unraised", "why_of", "words_of"]

INTENSITY = 5  #: crashes of one actor that are survived within WINDOW_S
WINDOW_S = 10.0
BACKOFF_S = 0.01  #: before the first restart; doubles with each crash in the window


def closed(crash: BaseException | None = None) -> anyio.ClosedResourceError:
    """Return what a call gets after close, or as it waits while the memory closes.

    Args:
        crash: what ended the memory, where that was no close: the error's words and its cause.
    """
    if crash is None:
        return anyio.ClosedResourceError("this memory is closed")
    error = anyio.ClosedResourceError(f"this memory is closed: {why_of(crash)}")
    error.__cause__ = unraised(crash)
    return error


def why_of(crash: BaseException) -> str:
    """Return why a memory has ended, in the words of what ended it."""
    return str(crash) if isinstance(crash, ReclaimError) else words_of(crash)


def unraised(error: BaseException) -> BaseException:
    """Return a copy of an error and of its causes, without the frames in which they were raised.

    An error that several tasks are to raise is copied for each: one instance would collect the
    frames of all of them, and keep alive the bytes that these hold.

    On failure: an error whose class cannot be made from its `args` becomes a `ReclaimError` that
    names the class and says the same.
    """
    chain: list[BaseException] = []
    cause: BaseException | None = error
    while cause is not None and cause not in chain:
        chain.append(cause)
        cause = cause.__cause__
    copies = [_copied(link) for link in chain]
    for i, link in enumerate(copies[1:]):
        copies[i].__cause__ = link
    return copies[0]


def _copied(error: BaseException) -> BaseException:
    try:
        members = members_of(error)
        if members:
            group = cast("BaseExceptionGroup[BaseException]", error)
            copied: BaseException = group.derive([unraised(member) for member in members])
            vars(copied).update(vars(error))
        else:
            copied = copy(error)
            copied.args = error.args  # its __init__ may have made words of words
    except Exception:  # noqa: BLE001 - it is somebody else's class
        return ReclaimError(f"{type(error).__name__}: {_said(str, error)}")
    return copied


def members_of(error: BaseException) -> Sequence[BaseException]:
    """Return the errors that a task group wrapped in one, none if it is no such group."""
    if isinstance(error, BaseExceptionGroup):
        return cast("BaseExceptionGroup[BaseException]", error).exceptions
    return ()


def words_of(error: BaseException) -> str:
    """Return what a crash is told by: the one error in it where a task group wrapped it."""
    while len(members := members_of(error)) == 1:
        error = members[0]
    return _said(repr, error)


def _said(how: Callable[[object], str], error: BaseException) -> str:
    """Return an error's own words, or its class where these raise: telling of it must not."""
    try:
        return how(error)
    except Exception as exc:  # noqa: BLE001 - it is somebody else's class
        return f"<{type(error).__name__}, whose {how.__name__} raises {type(exc).__name__}>"


class Supervisor:
    """Runs the actors of one machine, and remembers which of them crashed lately."""

    def __init__(self, vmstat: Vmstat, log: Log, on_end: Callable[[ReclaimError], None]) -> None:
        self._vmstat = vmstat
        self._log = log
        self._on_end = on_end
        self._crashes: dict[str, deque[tuple[float, str]]] = {}  # when and what, by actor
        self.quiet = False  #: an actor that crashes ends, and nobody is told (in a forked child)

    async def run(self, name: str, run: Callable[[], Awaitable[None]]) -> None:
        """Run an actor until it returns, restarting it when it crashes.

        `on_end` is told what ends the memory before anybody else wakes.

        Raises:
            ReclaimError: when it crashed more than INTENSITY times within WINDOW_S.
        """
        try:
            await self._run(name, run)
        except anyio.get_cancelled_exc_class():
            if anyio.current_effective_deadline() > -math.inf:  # no scope of ours, or around us
                self._on_end(ReclaimError(f"{name} was cancelled by something outside this memory"))
            raise

    async def _run(self, name: str, run: Callable[[], Awaitable[None]]) -> None:
        crashes: deque[float] = deque(maxlen=INTENSITY + 1)
        while True:
            try:
                await run()
            except Exception as exc:
                if self.quiet:
                    return
                now = current_time()
                crashes.append(now)
                recent = sum(now - crash < WINDOW_S for crash in crashes)
                self._crashed(name, exc, recent)
                if recent > INTENSITY:
                    msg = f"{name} crashed {recent} times within {WINDOW_S:g} s; the last: "
                    error = ReclaimError(msg + words_of(exc))
                    error.__cause__ = exc
                    self._on_end(error)
                    raise error from exc
                await anyio.sleep(BACKOFF_S * 2**recent)
            else:
                return

    def _crashed(self, name: str, exc: Exception, recent: int) -> None:
        self._vmstat["actor_restarts"] += 1
        crashes = self._crashes.setdefault(name, deque(maxlen=INTENSITY + 1))
        crashes.append((perf_counter(), words_of(exc)))
        self._log.error("actor.crashed", actor=name, crashes=recent, exc_info=exc)

    def lately(self, now: float) -> list[str]:
        """Return a sentence for each actor that crashed within the last WINDOW_S; any thread may.

        Args:
            now: `time.perf_counter`, which a thread without an event loop can read as well.
        """
        told: list[str] = []
        for name, crashes in self._crashes.copy().items():
            recent = [what for when, what in crashes.copy() if now - when < WINDOW_S]
            if recent:
                times = "once" if len(recent) == 1 else f"{len(recent)} times"
                told.append(
                    f"{name} crashed {times} within the last {WINDOW_S:g} s and was started again; "
                    f"the last: {recent[-1]}"
                )
        return told
