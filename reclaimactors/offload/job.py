"""Jobs in threads: one in chunks on several of them (padata_do_multithreaded()), and long copies.

For what needs an answer in the same process, such as reading a large value back: the threads run
where the library releases the GIL, and results come in order. A job that is not worth a hop runs in
the caller. The event loop itself takes no chunk, for it is what must not be held.
"""

from __future__ import annotations

from mmap import MAP_ANONYMOUS, MAP_PRIVATE, mmap
from typing import TYPE_CHECKING, TypeVar

import anyio
from anyio.lowlevel import checkpoint

from reclaimactors.cpu.breath import Breath
from reclaimactors.mm.padata import chunks
from reclaimactors.threads import hop

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from anyio import CapacityLimiter

__all__ = ["COPY_BYTES", "join", "join_in_map", "multithreaded"]

COPY_BYTES = 1 << 20  #: of a large value that are copied in one go
T = TypeVar("T")
R = TypeVar("R")
_MAP_BYTES = 1 << 18  #: that are copied into a map in one go: each page of it is a fault


async def multithreaded(
    work: Callable[[T], R], items: Sequence[T], *, limiter: CapacityLimiter, min_chunk: int
) -> list[R]:
    """Return ``[work(item) for item in items]``.

    Args:
        work: must not raise, and may run in several threads at a time.
        items: the job.
        limiter: threads at most (`threads.hop`).
        min_chunk: items that are worth a hop.
    """
    if len(items) < min_chunk:
        return [work(item) for item in items]
    workers = int(limiter.total_tokens)
    pieces = chunks(len(items), workers=workers, min_chunk=min_chunk)
    results: dict[int, list[R]] = {}
    left = list(reversed(pieces))

    def run(start: int, stop: int) -> list[R]:
        return [work(item) for item in items[start:stop]]

    async def helper() -> None:
        while left:
            start, stop = left.pop()
            try:
                results[start] = await hop(run, start, stop, limiter=limiter)
            except RuntimeError:  # this process may not start another thread
                results[start] = run(start, stop)

    async with anyio.create_task_group() as helpers:
        for _ in range(min(workers, len(pieces))):
            helpers.start_soon(helper)
    return [result for start, _ in pieces for result in results[start]]


async def join(parts: Sequence[bytes], *, limiter: CapacityLimiter) -> bytes:
    """Return ``b"".join(parts)``: in a thread if it is long, for it lets go of the GIL then."""
    if sum(map(len, parts)) > COPY_BYTES:
        try:
            return await hop(b"".join, parts, limiter=limiter)
        except RuntimeError:  # this process may not start another thread
            await checkpoint()
    return b"".join(parts)


async def join_in_map(parts: Sequence[bytes]) -> mmap | bytes:
    """Return the parts joined in memory of their own, which can be given back in pieces.

    A map is never empty: that is b"".

    Raises:
        MemoryError: if the system refuses that much.
    """
    size = sum(map(len, parts))
    if not size:
        return b""
    try:
        joined = mmap(-1, size, flags=MAP_PRIVATE | MAP_ANONYMOUS)
    except OSError as exc:
        raise MemoryError(str(exc)) from exc
    breath = Breath()
    for part in parts:
        for start in range(0, len(part), _MAP_BYTES):
            joined.write(memoryview(part)[start : start + _MAP_BYTES])
            await breath.take()
    return joined
