"""What a memory, or a group of it, says of itself: where its bytes are, what happened, who waits.

Any thread may ask, while the loop works as well: what is read here is read once, or is never
changed in place.
"""

from __future__ import annotations

from threading import get_ident
from time import sleep
from types import MappingProxyType
from typing import TYPE_CHECKING

import attrs

from reclaimactors.actors.health import health_of
from reclaimactors.cpu.clock import perf_counter
from reclaimactors.cpu.psi import Pressure
from reclaimactors.guard import Guard
from reclaimactors.stats import Stats

if TYPE_CHECKING:
    from collections.abc import Hashable, Mapping

    from reclaimactors.abc import Backend
    from reclaimactors.actors.health import Health
    from reclaimactors.actors.machine import Machine
    from reclaimactors.cpu.psi import Psi
    from reclaimactors.mm.group import Group

__all__ = ["Gauges", "SwapInfo", "Usage"]


@attrs.frozen
class Usage:
    """Where the budget is, in bytes: ``budget == resident + compressed + overhead + free``.

    Attributes:
        budget: what the memory was opened with.
        resident: source bytes, those in flight and those reserved by waiting puts included.
        in_flight: the part of `resident` that is on its way out: queued, or being compressed or
            written. It stays readable.
        compressed: blobs in the pool, and what stores in this process hold (memory, zram).
        overhead: a measured constant for each live key and folio, swapped ones too, and what long
            keys cost beside.
        free: what is left; the watermarks look at it.
        swapped: bytes on swap devices, outside the budget.
        staging: buffers shared with worker processes or an offload plugin, outside the budget.
        oldest_queued_s: how many seconds the oldest page in the FIFO has waited by now; 0.0 where
            nothing waits.
        oldest_undelivered_s: how many seconds the oldest batch of kswapd has waited by now that is
            compressed, and not in its turn; 0.0 unless the topology is `ordered`.
    """

    budget: int
    resident: int
    in_flight: int
    compressed: int
    overhead: int
    free: int
    swapped: int
    staging: int
    oldest_queued_s: float = 0.0
    oldest_undelivered_s: float = 0.0


@attrs.frozen
class SwapInfo:
    """One backing store, as a line of /proc/swaps.

    Attributes:
        name: its backend's name and a number, as ``file0``: what `swapoff` takes.
        size: bytes of its slots; None where nothing bounds it.
        used: bytes of slots in use, whole slots.
        priority: the highest is filled first.
        takes_writes: False where it is full, out of service after failures, or being swapped off;
            it can still be read.
        backend: the object that stores.
    """

    name: str
    size: int | None
    used: int
    priority: int
    takes_writes: bool
    backend: Backend


class Gauges(Guard):
    """The calls that only look."""

    def __init__(self, machine: Machine, group: Group) -> None:
        super().__init__(machine)
        self._node = machine.node
        self._group = group
        self._values = group.values

    def __contains__(self, key: Hashable) -> bool:
        values = self._values
        over = values.ends and self._machine.sweeper.is_over(values, key)
        return key in values and not over

    def __len__(self) -> int:
        """Return the number of keys, those included whose time is over and that wait for the sweep.

        That is within a second, or an eighth of the time that the value was given.
        """
        return len(self._values)

    def swaps(self) -> list[SwapInfo]:
        """Return the backing stores, as /proc/swaps does: in the order in which they are filled."""
        page = self._node.page_size
        devices = [(device, self._machine.swapds.get(device.index)) for device in self._node.swap]
        return [
            SwapInfo(
                name=device.name,
                size=None if device.capacity is None else device.capacity * page,
                used=device.used * page,
                priority=device.priority,
                takes_writes=device.takes_writes,
                backend=swapd.backend,
            )
            for device, swapd in devices
            if swapd is not None and swapd.device is device  # not swapped off since, in the loop
        ]

    @property
    def vmstat(self) -> Mapping[str, int]:
        """The kernel's counters, read-only; levels such as pool_total_size as of this access.

        A group has those of memory.stat and memory.events, of the groups in it as well. The mapping
        stays current in the thread of the loop; in others it is a copy.
        """
        node, group = self._node, self._group
        if group.parent is not None:
            stat = group.stat
            return MappingProxyType(stat if get_ident() == self._thread else stat.copy())
        if get_ident() != self._thread:
            return MappingProxyType({**node.vmstat, **node.levels()})
        return node.gauges().view

    def pressure(self) -> Pressure:
        """Return PSI: the share of time that some caller, or the whole loop, was stalled.

        *some*: a caller waited in the brake, in direct reclaim or for a store; *full*: the loop's
        thread itself was spent in reclaim or (de)compression. Each has `avg10`, `avg60` and
        `avg300`, percent of the last so many seconds, and `total`, microseconds. Of a group *some*
        is of its own callers, *full* of the event loop, which all groups share.
        """
        own = self._snapshot(self._machine.psi_of(self._group))
        if self._group.parent is None:
            return own
        return Pressure(some=own.some, full=self._snapshot(self._machine.cpu.psi).full)

    def _snapshot(self, psi: Psi) -> Pressure:
        if get_ident() != self._thread:
            while (copy := psi.copied()) is None:
                sleep(0.001)  # the loop's thread is in the middle of accounting
            psi = copy
        return psi.snapshot(self._machine.cpu.now())

    def usage(self) -> Usage:
        """Return where the budget is, in bytes, and the age of the oldest queued page."""
        memcg = self._group.memcg
        budget, compressed, overhead = memcg.budget, memcg.compressed, memcg.overhead
        # Another thread may look in the middle of a step, in which a folio is counted twice.
        resident = min(memcg.resident, budget - compressed - overhead)
        since = self._machine.fifo.oldest_since()
        early = self._machine.oldest_undelivered()
        now = self._machine.loop.now()
        return Usage(
            budget=budget,
            resident=resident,
            in_flight=min(memcg.in_flight, resident),
            compressed=compressed,
            overhead=overhead,
            free=budget - resident - compressed - overhead,
            swapped=sum([group.swapped for group in list(self._group.subtree())]),
            staging=self._machine.offload.staging,
            oldest_queued_s=now - since if since is not None else 0.0,
            oldest_undelivered_s=now - early if early is not None else 0.0,
        )

    def stats(self) -> Stats:
        """Return what there is and what has happened, as one record for a monitoring system.

        Any thread may ask, and at any time: after the end as well. It takes some 30 us.
        """
        usage, pressure, health = self.usage(), self.pressure(), self.health()
        whole, group = self._node.vmstat, self._group
        is_root = group.parent is None
        counted = whole if is_root else group.stat
        scan, steal = ("pgscan_anon", "pgsteal_anon") if is_root else ("pgscan", "pgsteal")
        return Stats(
            keys=len(self._values),
            budget_bytes=usage.budget,
            resident_bytes=usage.resident,
            in_flight_bytes=usage.in_flight,
            pinned_bytes=group.memcg.pinned,
            compressed_bytes=usage.compressed,
            overhead_bytes=usage.overhead,
            free_bytes=usage.free,
            swapped_bytes=usage.swapped,
            staging_bytes=usage.staging,
            oldest_queued_seconds=usage.oldest_queued_s,
            serving=health.state in {"open", "degraded"},
            degraded_parts=len(health.degraded),
            stalled_some_seconds=pressure.some.total / 1e6,
            stalled_full_seconds=pressure.full.total / 1e6,
            compress_cpu_seconds=counted["compress_usec"] / 1e6,
            direct_stalls=whole.allocstall if is_root else counted["max"],
            pgscan_pages=counted[scan] + (whole["pgscan_file"] if is_root else 0),
            pgsteal_pages=counted[steal] + (whole["pgsteal_file"] if is_root else 0),
            pglazyfreed_pages=counted["pglazyfreed"],
            expired_keys=counted["expired_keys"],
            pgfault_pages=counted["pgfault"],
            pgmajfault_pages=counted["pgmajfault"],
            refault_pages=counted["workingset_refault_anon"],
            zswpout_pages=counted["zswpout"],
            zswpin_pages=counted["zswpin"],
            zswpwb_pages=counted["zswpwb"],
            pswpout_pages=counted["pswpout"],
            pswpin_pages=counted["pswpin"],
            swapout_errors=whole["swapout_error"],
            swapin_errors=whole["swapin_error"],
            actor_restarts=whole["actor_restarts"],
            worker_deaths=whole["worker_deaths"],
        )

    def health(self) -> Health:
        """Return whether the memory serves, why if not, and what is not as configured.

        Any thread may ask, and at any time: after the end as well.
        """
        return health_of(self._machine, perf_counter())
