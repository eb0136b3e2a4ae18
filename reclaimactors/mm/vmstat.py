"""Counters with the kernel's names. Mirrors mm/vmstat.c, and zswap's debugfs directory.

All are present from the start, at 0. Adding to a name that is not listed here raises KeyError, so
that a typo in the core fails; setting one is caught by `check`, because a Python ``__setitem__``
would make every count five times as slow. Pages are base pages unless the name says otherwise.
`pool_total_size` is in bytes, and with `stored_pages`, `stored_incompressible_pages`,
`nr_writeback` and `nr_swapcached` goes down as well as up; everything else only grows.

zswap's own, which count folios where they do not say pages: `pool_limit_hit` is a folio that the
pool did not take because it was full, at its limit or not yet back at its threshold;
`reject_compress_poor` one whose blob would be more than 15/16 of it, `reject_compress_fail` one
whose compressor raised, `reject_alloc_fail` one for whose blob it found no memory (MemoryError);
`reject_reclaim_fail` is a blob that a store refused when the shrinker wrote it back,
`decompress_fail` one that did not come back as it was.

Three stay 0, because what they count does not happen here. `pgrotated`: the kernel's completion
moves a written folio to the cold end, for the next scan to free; here the completion itself frees
it. `reject_kmemcache_fail`: an entry is a row that the folio has had since its put.
`stored_incompressible_pages`: what does not compress goes to a device, or stays as it is.
"""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING

from reclaimactors.abc import Verdict

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["KERNEL", "MAX_ORDER", "OURS", "ZSWAP", "Vmstat", "order_of"]

_ZONES = ("dma", "dma32", "normal", "movable")
_VMSTAT = """
pgscan_kswapd pgscan_direct pgscan_khugepaged pgscan_proactive pgscan_anon pgscan_file
pgsteal_kswapd pgsteal_direct pgsteal_khugepaged pgsteal_proactive pgsteal_anon pgsteal_file
pgrefill pgactivate pgdeactivate pgrotated pageoutrun
allocstall_dma allocstall_dma32 allocstall_normal allocstall_movable pgscan_direct_throttle
kswapd_low_wmark_hit_quickly kswapd_high_wmark_hit_quickly
unevictable_pgs_culled unevictable_pgs_rescued nr_unevictable
nr_vmscan_write nr_vmscan_immediate_reclaim nr_throttled_written nr_writeback nr_swapcached
pswpin pswpout swap_ra swap_ra_hit
zswpin zswpout zswpwb swpin_zero swpout_zero thp_swpout thp_swpout_fallback
pgfault pgmajfault pglazyfree pglazyfreed oom_kill
workingset_refault_anon workingset_activate_anon workingset_restore_anon
workingset_refault_file workingset_activate_file workingset_restore_file workingset_nodereclaim
"""
_DEBUGFS = """
pool_limit_hit written_back_pages decompress_fail
reject_reclaim_fail reject_compress_fail reject_compress_poor reject_alloc_fail
reject_kmemcache_fail pool_total_size stored_pages stored_incompressible_pages
"""
KERNEL = tuple(_VMSTAT.split())  #: /proc/vmstat
ZSWAP = tuple(_DEBUGFS.split())  #: /sys/kernel/debug/zswap
OURS = (
    # each folio that was isolated ends in one of the seven verdicts (folios, not pages):
    # reclaim_isolated = their sum + what is in flight
    "reclaim_isolated",
    *(f"reclaim_{verdict.value}" for verdict in Verdict),
    "same_filled",  # pages of one word that is not zero
    "kcompressd_queued",  # pages sent to the FIFO
    "kcompressd_inline",  # pages that found it full: compressed by kswapd
    "kcompressd_stolen",  # pages taken from its head to make room: compressed by kswapd
    "kcompressd_bypassed",  # pages that direct or proactive reclaim compressed beside it
    "kcompressd_handed_back",  # folios that a crash or the close took back
    "zswap_second_chance",  # blobs that the shrinker passed over once
    "zswap_shrink_gave_up",  # shrink workers that failed 16 times in a row
    "zswpwb_proactive",  # of zswpwb: somebody asked for just that (proposed for the kernel)
    "compress_usec",  # microseconds of CPU that compressing took, whoever's
    "expired_keys",  # keys whose time was over
    "senpai_freed",  # bytes that senpai has freed
    "swap_demoted",  # pages that moved from a store in the budget to one outside it
    "swapout_error",  # writes that a store did not take
    "swapin_error",  # folios that a store did not give back
    "swap_out_of_service",  # devices that get no more stores
    "actor_restarts",
    "worker_deaths",  # worker processes that ended by themselves, or were killed because they hung
    "worker_retries",  # starts of one after a death, or after a start that failed
)

OF_GROUPS = (  # as memory.stat and memory.events
    "pgscan",
    "pgscan_kswapd",
    "pgscan_direct",
    "pgscan_proactive",
    "pgsteal",
    "pgsteal_kswapd",
    "pgsteal_direct",
    "pgsteal_proactive",
    "pgfault",
    "pgmajfault",
    "pgactivate",
    "pglazyfree",
    "pglazyfreed",
    "workingset_refault_anon",
    "workingset_activate_anon",
    "zswpin",
    "zswpout",
    "zswpwb",
    "zswpwb_proactive",
    "pswpin",
    "pswpout",
    "compress_usec",
    "expired_keys",
    "high",  # times that it was above its high, and reclaim of it was woken
    "max",  # times that a caller had to reclaim or to wait for its max
    "oom",  # times that nothing of it was left to reclaim
)

MAX_ORDER = 18  #: of the largest folio there is, 1 GiB, in pages of 4 KiB; smaller ones have more


def order_of(pages: int) -> int:
    """Return the order of a folio of so many pages: 0 for one, 1 for two, 2 for three or four."""
    return (pages - 1).bit_length()


class Vmstat(dict[str, int]):
    """The counters: ``vmstat["pgfault"] += 1``, at the speed of a plain dict.

    Args:
        max_order: the order of the largest folio; ``zswpout_order_N`` go from 0 to it.
    """

    def __init__(self, max_order: int = MAX_ORDER) -> None:
        orders = (f"zswpout_order_{order}" for order in range(max_order + 1))
        super().__init__(dict.fromkeys((*KERNEL, *ZSWAP, *OURS, *orders), 0))
        self._names = frozenset(self)

    @property
    def view(self) -> Mapping[str, int]:
        """A read-only mapping that stays current."""
        return MappingProxyType(self)

    @property
    def allocstall(self) -> int:
        """Stalled allocations of all zones."""
        return sum(self[f"allocstall_{zone}"] for zone in _ZONES)

    def check(self) -> None:
        """Assert that no name was added or lost, and that all count from 0.."""
        assert self.keys() == self._names, f"counters {sorted(self.keys() ^ self._names)}"
        negative = {name: nr for name, nr in self.items() if nr < 0}
        assert not negative, f"negative counters: {negative}"
