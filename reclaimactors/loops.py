"""What is particular to an event loop: which one runs, its clock, and a task that is nobody else's.

The one module that imports asyncio or trio, and only what runs: anyio has no task that outlives the
block that started it, and a memory must not depend on the task that opened it. On trio there is no
such task either, so there a memory lives in the block that opened it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import anyio
from anyio.lowlevel import current_token

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

__all__ = ["Body", "Loop", "current_loop"]

_spawned: set[Any] = set()  # asyncio itself refers to a task that waits only weakly


class Loop:
    """An event loop, as whoever calls from anywhere in its thread sees it.

    Attributes:
        native: asyncio's loop, None on trio.
        now: the loop's clock in seconds; it may be asked in callbacks and in other threads, too.
        is_running: whether it runs now, in this thread or in another: a loop cannot run within
            another one, so in its own thread that is the one that runs. It costs less than to ask
            asyncio which loop runs. On trio it is always true.
    """

    def __init__(self, native: Any) -> None:
        self.native = native
        self.now: Callable[[], float]
        self.is_running: Callable[[], bool] = lambda: True
        self._running: Callable[[], object] = lambda: None
        if native is not None:
            import asyncio  # noqa: PLC0415, TID251 - see above

            self.now = native.time
            self.is_running = native.is_running
            self._running = asyncio.get_running_loop
        else:
            import trio  # noqa: PLC0415 - see above

            self.now = trio.lowlevel.current_clock().current_time

    @property
    def another_runs(self) -> bool:
        """Whether another loop than this one runs in this thread now."""
        try:
            return self._running() is not self.native
        except RuntimeError:  # none runs
            return False

    @property
    def runs(self) -> bool:
        """Whether this loop runs in this thread; not where a task has forked and it is the child.

        There asyncio says that no loop runs, until somebody runs it anew.
        """
        try:
            return self._running() is self.native
        except RuntimeError:
            return False

    def spawn(self, main: Coroutine[Any, Any, None], name: str) -> Any:
        """Return a new task of its own, in a copy of the caller's context; it lives to its end."""
        task = self.native.create_task(main, name=name)
        _spawned.add(task)
        task.add_done_callback(_spawned.discard)
        return task

    def body(self) -> Body:
        """Return the task that runs now, as the body of a block that is entered."""
        import asyncio  # noqa: PLC0415, TID251 - see above

        return Body(asyncio.current_task(self.native))

    async def wait(self, task: Any) -> None:
        """Wait until a task has ended; its errors stay its own.

        Raises:
            CancelledError: after that, if the caller was cancelled meanwhile, or just before.
        """
        import asyncio  # noqa: PLC0415, TID251 - see above

        cancelled: asyncio.CancelledError | None = None
        with anyio.CancelScope(shield=True):
            while True:
                try:
                    await asyncio.wait({task})  # takes a turn of the loop even if it has ended
                except asyncio.CancelledError as exc:
                    cancelled = exc
                if task.done():
                    break
        try:
            if cancelled is not None:
                raise cancelled
        finally:
            cancelled = None  # its traceback holds this frame


class Body:
    """The task of a block that may be cancelled from inside, as `asyncio.timeout` does it.

    A task counts the requests to cancel it. Ours is taken back when the block is left; what is
    above the count at the entry then was asked by others, and goes on.
    """

    def __init__(self, task: Any) -> None:
        self._task = task
        self._before: int = task.cancelling()
        self._sent = False

    def cancel(self) -> None:
        """Cancel it, once, unless it has ended."""
        self._sent = self._sent or self._task.cancel()

    def take_back(self) -> bool:
        """Take our cancellation back; return whether there was one, and nobody else's.

        Only for the task itself, as it leaves the block; False in another task.
        """
        import asyncio  # noqa: PLC0415, TID251 - see above

        running: Any = asyncio.current_task()
        if not self._sent or running is not self._task:
            return False
        self._sent = False
        return int(self._task.uncancel()) <= self._before


def current_loop() -> Loop:
    """Return the event loop that runs here."""
    native = current_token().native_token
    return Loop(native if hasattr(native, "create_task") else None)
