"""On whose CPU a batch is compressed: the loop's own, a thread's, a worker process's, a plugin's.

A `Squeezer` takes the bytes of a batch and gives the rows of `reclaimactors.squeezed`; it knows
nothing of folios, budgets or actors. Blobs that stay are allocated in the event loop's
thread, so that they share one malloc arena with everything else that the program holds.

Nothing is imported here: a worker process loads this package on its way to `worker`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from reclaimactors.squeezed import Squeezed

__all__ = ["Squeezer"]


class Squeezer(Protocol):
    """Where batches are compressed."""

    workers: int
    """How many batches are compressed at the same instant."""

    @property
    def inline(self) -> bool:
        """Whether the event loop itself compresses, so that no worker exists."""
        ...

    @property
    def holds(self) -> bool:
        """Whether the source bytes are looked at while the event loop goes on."""
        ...

    @property
    def degraded(self) -> str:
        """Why batches are not compressed as configured, "" where they are."""
        ...

    @property
    def late(self) -> bool:
        """Whether no worker has answered for a while, although they have work."""
        ...

    @property
    def staging(self) -> int:
        """Bytes of shared buffers, outside the budget."""
        ...

    async def squeeze(self, pages: list[bytes], *, of_sources: bool = False) -> Squeezed:
        """Compress a batch; `of_sources` asks for the crc32 of each source as well.

        Cancelling is safe at any time; a fault of the compressor is a row.
        """
        ...
