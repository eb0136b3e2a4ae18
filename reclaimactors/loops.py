"""What is particular to asyncio: which event loop runs, and a task that belongs to nobody else.

The one module that imports asyncio, and only where that is what runs: anyio has no task that
outlives the block that started it, and a memory must not depend on the task that opened it. On trio
there is no such task either, so there a memory lives in the block that opened it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import anyio
from anyio.lowlevel import current_token

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

__all__ = ["Loop", "current_loop"]


class Loop:
    """An event loop, as whoever calls from anywhere in its thread sees it.

    Attributes:
        native: asyncio's loop, None on trio.
        now: the loop's clock in seconds; it may be asked in callbacks and in other threads, too.
    """

    def __init__(self, native: Any) -> None:
        self.native = native
        self.now: Callable[[], float] = anyio.current_time
        self._running: Callable[[], object] = lambda: None
        if native is not None:
            import asyncio  # noqa: PLC0415, TID251 - see above

            self.now = native.time
            self._running = asyncio.get_running_loop

    @property
    def another_runs(self) -> bool:
        """Whether another loop than this one runs in this thread now."""
        try:
            return self._running() is not self.native
        except RuntimeError:  # none runs
            return False

    def spawn(self, main: Coroutine[Any, Any, None], name: str) -> Any:
        """Return a new task of its own, in a copy of the caller's context."""
        return self.native.create_task(main, name=name)

    def current_task(self) -> Any:
        """Return the task that runs now."""
        import asyncio  # noqa: PLC0415, TID251 - see above

        return asyncio.current_task(self.native)

    async def wait(self, task: Any) -> None:
        """Wait until a task has ended, whatever becomes of the caller; its errors stay its own."""
        import asyncio  # noqa: PLC0415, TID251 - see above

        with anyio.CancelScope(shield=True):
            await asyncio.wait({task})


def current_loop() -> Loop:
    """Return the event loop that runs here."""
    native = current_token().native_token
    return Loop(native if hasattr(native, "create_task") else None)
