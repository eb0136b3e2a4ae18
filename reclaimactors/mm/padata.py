"""padata's two forms: serialized jobs, and chunks of one job. Mirrors kernel/padata.c.

Serialized: jobs run in parallel in any order and come out in the order of submission; one slow job
holds up those behind it (head-of-line blocking), and every job that was given a turn must come out.
Multithreaded: one job is cut into chunks, which threads take one after the other.
"""

from __future__ import annotations

from typing import Generic, TypeVar

from reclaimactors.errors import ProtocolViolation

__all__ = ["Reorder", "chunks"]

T = TypeVar("T")

LOAD_BALANCE_FACTOR = 4  #: chunks per worker, so that a slow one does not delay the end


class Reorder(Generic[T]):
    """One ordered stream: `next_seq` gives a turn, `push` gives back what is in turn."""

    def __init__(self) -> None:
        self._given = 0
        self._emitted = 0
        self._early: dict[int, tuple[float, T]] = {}  # when it was finished, and what

    @property
    def pending(self) -> int:
        """Turns that were given and have not come out."""
        return self._given - self._emitted

    def next_seq(self) -> int:
        """Return the next turn."""
        self._given += 1
        return self._given - 1

    @property
    def oldest_early(self) -> float | None:
        """When the job was handed in that has waited longest for its turn, None where none does."""
        return next((at for at, _ in list(self._early.values())), None)

    def push(self, seq: int, item: T, now: float = 0.0) -> list[T]:
        """Hand in a job that is finished `now`; return all that are in turn then, in order.

        Raises:
            ProtocolViolation: if that turn was never given, or was handed in before.
        """
        if not self._emitted <= seq < self._given or seq in self._early:
            msg = f"turn {seq} handed in twice or never given (given {self._given})"
            raise ProtocolViolation(msg)
        self._early[seq] = now, item
        ready: list[T] = []
        while self._emitted in self._early:
            ready.append(self._early.pop(self._emitted)[1])
            self._emitted += 1
        return ready

    def check(self) -> None:
        """Assert that what waits is ahead of its turn, and was given one."""
        assert self._emitted <= self._given, f"{self._emitted} out of {self._given} came out"
        stray = [seq for seq in self._early if not self._emitted < seq < self._given]
        assert not stray, f"turns {stray} wait although {self._emitted} is next"


def chunks(size: int, *, workers: int, min_chunk: int) -> list[tuple[int, int]]:
    """Return (start, end) pieces of a job of `size` units; one piece means: one thread is enough.

    Args:
        size: units of work, 0 or more.
        workers: threads that could take part.
        min_chunk: units below which a piece is not worth a hop.
    """
    workers = max(1, min(workers, size // max(min_chunk, 1)))
    if workers == 1:
        return [(0, size)] if size > 0 else []
    chunk = max(size // (workers * LOAD_BALANCE_FACTOR), min_chunk)
    return [(start, min(start + chunk, size)) for start in range(0, size, chunk)]
