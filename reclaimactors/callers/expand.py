"""Decompressing what the pool holds, off the event loop where it takes long."""

from __future__ import annotations

from typing import TYPE_CHECKING

from anyio.lowlevel import checkpoint

from reclaimactors.mm.page_io import expand
from reclaimactors.offload.job import multithreaded

if TYPE_CHECKING:
    from collections.abc import Sequence

    from reclaimactors.actors.machine import Machine
    from reclaimactors.mm.swapin import Held

__all__ = ["Expander"]


class Expander:
    """Of one machine."""

    def __init__(self, machine: Machine) -> None:
        self._m = machine

    def takes_long(self, pfns: Sequence[int]) -> bool:
        """Whether decompressing these folios would hold the loop for longer than a slice."""
        mm = self._m.node.mm
        if len(pfns) == 1 and mm.bytes_of(pfns) <= self._m.node.page_size:
            return False
        return self._m.cpu.rates.too_slow_to_expand(mm.bytes_of(mm.pooled(pfns)))

    async def expand(self, held: Sequence[Held]) -> list[bytes | None]:
        """Decompress what the pool held off the loop; None for what fails, to fail in turn.

        Nothing changes hands: whether a blob is still there is for the fault to see.
        """
        decompress = self._m.compressor.decompress
        same: dict[tuple[int, int], bytes] = {}  # a value of zeros is one folio, many times

        def work(one: Held) -> bytes | None:
            try:
                if isinstance(one.what, int):
                    known = same.get(key := (one.what, one.size))
                    return known or same.setdefault(key, expand(one.what, one.size))
                return decompress(one.what, one.size)
            except Exception:  # noqa: BLE001 - the fault itself will meet it, and say whose blob
                return None

        if self._m.offload.inline:
            results: list[bytes | None] = []
            for one in held:  # as slow as it is, but others get their turn
                results.append(work(one))
                await checkpoint()
            return results
        folio = sum(one.size for one in held) // max(1, len(held))
        min_chunk = max(1, round(self._m.cpu.rates.worth_a_hop() / max(1, folio)))
        return await multithreaded(work, held, limiter=self._m.readers, min_chunk=min_chunk)
