"""Plugins that charge what they do: each wraps the one that a topology names.

The results are the real ones, byte for byte; only the time that they take is the machine's.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

    from reclaimactors.abc import Buffer, Compressor, Policy, Verdict
    from reclaimactors.simulation.loop import Meter
    from reclaimactors.simulation.spec import CodecSpec, Costs

__all__ = ["MeteredCompressor", "MeteredPolicy"]


class MeteredCompressor:
    """A compressor that charges each call and each byte.

    Args:
        real: what compresses.
        costs: of a call and of a byte, to compress and to decompress.
        meter: where it is charged.
    """

    def __init__(self, real: Compressor, costs: CodecSpec, meter: Meter) -> None:
        self.name = real.name
        self._compress = real.compress
        self._decompress = real.decompress
        self._meter = meter
        self._call_s, self._byte_s = costs.compress_s
        self._back_call_s, self._back_byte_s = costs.decompress_s
        self._at_once = costs.at_once
        if self._at_once > 1:
            self.compress_many = self._compress_many

    def compress(self, data: Buffer) -> bytes:
        """Return the blob of `data`."""
        self._meter.s += self._call_s + self._byte_s * len(data)
        return self._compress(data)

    def _compress_many(self, pages: Sequence[Buffer]) -> list[bytes]:
        """Return the blob of each page: an engine does so many of them at the same time."""
        for start in range(0, len(pages), self._at_once):
            part = pages[start : start + self._at_once]
            self._meter.s += len(part) * self._call_s + self._byte_s * max(map(len, part))
        return [self._compress(page) for page in pages]

    def decompress(self, blob: Buffer, size: int) -> bytes:
        """Return the data of a blob."""
        self._meter.s += self._back_call_s + self._back_byte_s * size
        return self._decompress(blob, size)


class MeteredPolicy:
    """A policy that charges what is done to a folio at the moment at which the policy hears of it.

    A put as a folio is inserted, a fault as it comes back, a hit as it is read, a scan as it is
    taken off the lists, the unmapping of it as it has left memory.
    """

    def __init__(self, real: Policy, costs: Costs, meter: Meter) -> None:
        self._real = real
        self._meter = meter
        self._put_s, self._fault_s = costs.seconds("put_us"), costs.seconds("fault_us")
        self._get_s, self._scan_s = costs.seconds("get_us"), costs.seconds("scan_us")
        self._unmap_s = costs.seconds("unmap_us")
        self.remove = real.remove
        self.age = real.age
        self._insert, self._access, self._isolate = real.insert, real.access, real.isolate
        self._shadow, self._putback = real.shadow, real.putback

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        return getattr(self._real, name)  # deactivate, where it has that

    def insert(self, pfn: int, *, refault: int | None) -> bool | None:
        """Put a folio on the lists."""
        self._meter.s += self._put_s if refault is None else self._fault_s
        return self._insert(pfn, refault=refault)

    def access(self, pfn: int) -> None:
        """Note that a folio was read."""
        self._meter.s += self._get_s
        self._access(pfn)

    def isolate(self, nr: int) -> list[int]:
        """Take folios off the lists."""
        pfns = self._isolate(nr)
        self._meter.s += self._scan_s * len(pfns)
        return pfns

    def putback(self, pfns: Sequence[int], verdict: Verdict) -> None:
        """Return folios to the lists."""
        self._putback(pfns, verdict)

    def shadow(self, pfn: int) -> int:
        """A folio has left memory."""
        self._meter.s += self._unmap_s
        return self._shadow(pfn)
