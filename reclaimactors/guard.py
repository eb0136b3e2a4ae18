"""Who may call a memory: the thread, the loop and the process that opened it, until its end."""

from __future__ import annotations

import os
from threading import get_ident
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import anyio

    from reclaimactors.actors.machine import Machine

__all__ = ["NOBODY", "Guard"]

NOBODY = -1  #: no thread's ident


class Guard:
    """What a memory, and each group of it, asks before it serves a call."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self._is_running = machine.loop.is_running
        self._thread = get_ident()
        self._process = os.getpid()
        self._callers = self._thread  # whose calls are served: nobody's once it is closed

    def serve_nobody(self) -> None:
        """Refuse every call from now on but those that only look."""
        self._callers = NOBODY

    def _closed(self) -> anyio.ClosedResourceError:
        """Return what a call gets once nobody is served."""
        return self._machine.closed()

    def _check(self) -> None:
        if get_ident() != self._callers or not self._is_running():
            self._refuse()

    def _refuse(self) -> None:
        """Raise why a call is not served, if there is a reason."""
        if os.getpid() != self._process:
            msg = (
                f"this memory was opened in process {self._process}, before the fork: its store "
                "and its workers are that one's; open a memory in each process, after the fork"
            )
            raise RuntimeError(msg)
        if get_ident() != self._thread:
            msg = (
                "a Memory belongs to the thread that opened it; from another one use "
                "asyncio.run_coroutine_threadsafe(memory.get(key), loop).result(), or in a thread "
                "that anyio started anyio.from_thread.run(memory.get, key)"
            )
            raise RuntimeError(msg)
        if not self._machine.ended and self._machine.loop.another_runs:
            msg = (
                "a Memory belongs to the event loop that opened it, and another one runs now; open "
                "one in each loop, or give fixtures and tests the same loop scope"
            )
            raise RuntimeError(msg)
        if self._callers == NOBODY:
            raise self._closed()
        # Else no loop runs here: a program that steps its loop by hand is between two steps.
