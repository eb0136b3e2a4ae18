"""Give memory back that malloc keeps: the budget is of the process, not of a counter.

glibc keeps the pages between what is left on its heap. So the heap is trimmed

- each time overhead has grown by a sixteenth of the budget: early on, when few keys are known,
  nearly all of the budget is bytes of values, and the heap grows as large as that; as keys come,
  their overhead takes the place of bytes, but it lies in other mappings (columns, dicts);
- each time what is held has fallen by a quarter of the most that was held since the last trim;
- when a memory that ever held a MiB or more is closed.

A trim takes milliseconds (1 to 9 were seen), so it runs in a thread.
"""

from __future__ import annotations

import ctypes
from contextlib import contextmanager
from typing import TYPE_CHECKING

from anyio import CapacityLimiter, to_thread

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

    from reclaimactors.mm.memcg import Memcg

__all__ = ["MallocTrim", "never"]

STEP = 16  #: parts of the budget that overhead grows by
_never: list[None] = []  # one for each block of `never` that is entered
FALL = 4  #: parts of the most that was held, by which it falls
WORTH = 1 << 20  #: bytes that are worth a trim


class MallocTrim:
    """When to trim, and how."""

    def __init__(self, memcg: Memcg) -> None:
        self._memcg = memcg
        self._limiter = CapacityLimiter(1)  # nobody who hangs has it
        self._next = memcg.budget // STEP
        self._most = 0  # bytes that were held, since the last trim
        self._held_much = False  # at any time
        self._trim = None if _never else _malloc_trim()

    def due(self) -> bool:
        """Return whether it is to be trimmed now; once for each reason."""
        memcg = self._memcg
        held = memcg.budget - memcg.free
        grew = memcg.overhead >= self._next
        fell = self._most - held >= max(WORTH, self._most // FALL)
        if grew:
            self._next = memcg.overhead + memcg.budget // STEP
        self._most = held if fell else max(held, self._most)
        self._held_much = self._held_much or held >= WORTH
        return grew or fell

    def worth_it(self) -> bool:
        """Return whether a trim is worth it at the end: whether much was ever held."""
        return self.due() or self._held_much

    async def trim(self) -> None:
        """Give back what is free, where the C library can be told to."""
        if self._trim is None:
            return
        try:
            await to_thread.run_sync(self._trim, 0, limiter=self._limiter)
        except RuntimeError:  # this process may not start another thread
            self._trim(0)


@contextmanager
def never() -> Generator[None]:
    """Have no memory that is opened within the block trim the heap: its threads take real time."""
    _never.append(None)
    try:
        yield
    finally:
        _never.pop()


def _malloc_trim() -> Callable[[int], int] | None:
    """Return glibc's malloc_trim; None where the C library has no such thing."""
    try:
        return ctypes.CDLL(None).malloc_trim
    except (AttributeError, OSError, TypeError):  # musl, macOS, Windows
        return None
