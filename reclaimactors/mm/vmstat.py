"""Counters with the kernel's names. Mirrors mm/vmstat.c, and zswap's debugfs directory.

All are present from the start, at 0; a name that is not listed here raises KeyError, so that a typo
in the core fails. Pages are base pages unless the name says otherwise.
"""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["KERNEL", "OURS", "ZSWAP", "Vmstat"]

_WHO = ("kswapd", "direct", "khugepaged", "proactive")
KERNEL = (
    *(f"pgscan_{who}" for who in _WHO),
    *(f"pgsteal_{who}" for who in _WHO),
    *"pgscan_anon pgscan_file pgsteal_anon pgsteal_file pgrefill pgactivate pgdeactivate".split(),
    *"pgrotated pageoutrun allocstall_dma allocstall_dma32 allocstall_normal".split(),
    *"allocstall_movable pgscan_direct_throttle kswapd_low_wmark_hit_quickly".split(),
    *"kswapd_high_wmark_hit_quickly nr_vmscan_write nr_vmscan_immediate_reclaim".split(),
    *"nr_throttled_written nr_writeback nr_swapcached pswpin pswpout zswpin zswpout zswpwb".split(),
    *"swpin_zero swpout_zero thp_swpout thp_swpout_fallback pgfault pgmajfault oom_kill".split(),
    *"workingset_refault_anon workingset_refault_file workingset_activate_anon".split(),
    *"workingset_activate_file workingset_restore_anon workingset_restore_file".split(),
    "workingset_nodereclaim",
)
ZSWAP = (
    *"pool_limit_hit written_back_pages reject_reclaim_fail reject_compress_fail".split(),
    *"reject_compress_poor reject_alloc_fail reject_kmemcache_fail decompress_fail".split(),
    *"pool_total_size stored_pages stored_incompressible_pages".split(),
)
ORDERS = 19  #: zswpout_order_N: folios of 2^N pages stored, N = 0 to 18
OURS = (
    # each folio that was isolated ends in one of these (folios, not pages)
    *"reclaim_isolated reclaim_stored reclaim_zero reclaim_device reclaim_activate".split(),
    *"reclaim_keep reclaim_cancelled reclaim_error".split(),
    "same_filled",  # pages of one word that is not zero
    # pages sent to the FIFO; full: compressed by kswapd, stolen from its head; and handed back
    *"kcompressd_queued kcompressd_inline kcompressd_stolen kcompressd_handed_back".split(),
    *"swapout_error swapin_error actor_restarts swap_out_of_service".split(),
    *(f"zswpout_order_{order}" for order in range(ORDERS)),
)


class Vmstat(dict[str, int]):
    """The counters: ``vmstat["pgfault"] += 1``."""

    def __init__(self) -> None:
        super().__init__(dict.fromkeys((*KERNEL, *ZSWAP, *OURS), 0))

    def __setitem__(self, name: str, value: int) -> None:
        if name not in self:
            raise KeyError(name)
        super().__setitem__(name, value)

    @property
    def view(self) -> Mapping[str, int]:
        """A read-only mapping that stays current."""
        return MappingProxyType(self)

    @property
    def allocstall(self) -> int:
        """Stalled allocations of all zones."""
        return sum(self[f"allocstall_{zone}"] for zone in ("dma", "dma32", "normal", "movable"))
