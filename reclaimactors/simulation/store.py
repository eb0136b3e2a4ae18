"""A backing store of a modelled machine: a device with a latency, a bandwidth and a depth."""

from __future__ import annotations

import heapq
from typing import TYPE_CHECKING

import anyio

from reclaimactors.abc import Backend
from reclaimactors.cpu import clock
from reclaimactors.errors import BackendError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from reclaimactors.simulation.loop import Meter
    from reclaimactors.simulation.spec import StoreSpec

__all__ = ["Device", "ModelledStore"]


class Device:
    """A block device: `depth` requests at a time, each of which takes its latency.

    Data pass one after the other, at the bandwidth.
    """

    def __init__(self, spec: StoreSpec) -> None:
        self._latency_s = spec.latency_us.value * 1e-6
        self._byte_s = spec.byte_ns.value * 1e-9
        self._free_at = [0.0] * spec.places  # when each place in its queue is free
        self._bus_free_at = 0.0

    def io(self, now: float, sizes: Iterable[int]) -> float:
        """Return when requests of these sizes, all of which are made now, are done."""
        done = now
        for size in sizes:
            begins = max(now, heapq.heappop(self._free_at))
            self._bus_free_at = max(self._bus_free_at, begins) + size * self._byte_s
            ends = max(begins + self._latency_s, self._bus_free_at)
            heapq.heappush(self._free_at, ends)
            done = max(done, ends)
        return done


class ModelledStore(Backend):
    """A store on such a device; what it holds is in a dict, outside the budget."""

    def __init__(self, spec: StoreSpec, meter: Meter) -> None:
        self._call_s = spec.call_us.value * 1e-6
        self._page_s = spec.page_us.value * 1e-6
        self._meter = meter
        self._device = Device(spec)
        self._slots: dict[int, bytes] = {}
        self._page_size = 0

    async def open(self, page_size: int) -> None:
        """Get ready."""
        self._page_size = page_size
        self._slots.clear()

    async def aclose(self) -> None:
        """Forget everything."""
        self._slots.clear()

    async def _io(self, nr: int) -> None:
        """Wait until the device has done a request of a page for each of `nr` slots."""
        self._meter.s += self._call_s + nr * self._page_s
        now = clock.perf_counter()
        done = self._device.io(now, [self._page_size] * nr)
        await anyio.sleep(done - now)

    async def store_many(self, items: Sequence[tuple[int, bytes]]) -> None:
        """Store slots, with a request each."""
        await self._io(len(items))
        self._slots.update((slot, bytes(data)) for slot, data in items)

    async def load_many(self, slots: Sequence[int]) -> list[bytes]:
        """Return slots, with a request each."""
        await self._io(len(slots))
        try:
            return [self._slots[slot] for slot in slots]
        except KeyError as exc:
            raise BackendError(f"slot {exc} was never stored, or was forgotten") from exc

    async def invalidate_many(self, slots: Sequence[int]) -> None:
        """Forget slots."""
        for slot in slots:
            self._slots.pop(slot, None)
