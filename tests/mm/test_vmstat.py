import pytest

import reclaimactors as ra
from reclaimactors.abc import Verdict
from reclaimactors.mm.vmstat import KERNEL, OURS, ZSWAP, Vmstat

VMSTAT = """
pgscan_kswapd pgscan_direct pgscan_khugepaged pgscan_proactive pgsteal_kswapd pgsteal_direct
pgsteal_khugepaged pgsteal_proactive pgscan_anon pgscan_file pgsteal_anon pgsteal_file pgrefill
pgactivate pgdeactivate pgrotated pageoutrun allocstall_dma allocstall_dma32 allocstall_normal
allocstall_movable pgscan_direct_throttle kswapd_low_wmark_hit_quickly
kswapd_high_wmark_hit_quickly unevictable_pgs_culled unevictable_pgs_rescued nr_unevictable
nr_vmscan_write nr_vmscan_immediate_reclaim nr_throttled_written
nr_writeback nr_swapcached pswpin pswpout swap_ra swap_ra_hit
zswpin zswpout zswpwb swpin_zero swpout_zero thp_swpout thp_swpout_fallback
pgfault pgmajfault pglazyfree pglazyfreed oom_kill workingset_refault_anon workingset_refault_file
workingset_activate_anon workingset_activate_file workingset_restore_anon workingset_restore_file
workingset_nodereclaim
"""
DEBUGFS = """
pool_limit_hit written_back_pages reject_reclaim_fail reject_compress_fail reject_compress_poor
reject_alloc_fail reject_kmemcache_fail decompress_fail pool_total_size stored_pages
stored_incompressible_pages
"""


def test_the_names_are_the_kernels():
    assert sorted(KERNEL) == sorted(VMSTAT.split())
    assert sorted(ZSWAP) == sorted(DEBUGFS.split())


def test_all_are_there_from_the_start_at_zero():
    vmstat = Vmstat()
    assert {*KERNEL, *ZSWAP, *OURS} <= vmstat.keys()
    assert set(vmstat.values()) == {0}
    vmstat.check()


def test_no_name_has_two_meanings():
    names = [*KERNEL, *ZSWAP, *OURS]
    assert len(names) == len(set(names))


def test_each_verdict_has_its_counter():
    assert {f"reclaim_{verdict.value}" for verdict in Verdict} <= set(OURS)


def test_a_typo_fails():
    vmstat = Vmstat()
    with pytest.raises(KeyError):
        vmstat["pgfualt"] += 1
    vmstat.check()
    vmstat["pgfualt"] = 1
    with pytest.raises(AssertionError, match="pgfualt"):
        vmstat.check()


def test_a_counter_below_zero_fails_the_check():
    vmstat = Vmstat()
    vmstat["stored_pages"] -= 1
    with pytest.raises(AssertionError, match="stored_pages"):
        vmstat.check()


def test_the_view_stays_current_and_cannot_be_written():
    vmstat = Vmstat()
    view = vmstat.view
    vmstat["pgfault"] += 3
    assert view["pgfault"] == 3
    with pytest.raises(TypeError):
        view["pgfault"] = 0


def test_allocstall_is_the_sum_of_the_zones():
    vmstat = Vmstat()
    vmstat["allocstall_normal"] += 2
    vmstat["allocstall_movable"] += 1
    assert vmstat.allocstall == 3


def test_orders_go_up_to_the_largest_folio():
    names = [name for name in Vmstat(max_order=6) if name.startswith("zswpout_order_")]
    assert names == [f"zswpout_order_{order}" for order in range(7)]
    assert "zswpout_order_18" in Vmstat()


async def test_a_topology_counts_the_largest_folio_that_it_allows():
    async with ra.open_memory(
        "kswapd_only_inline", budget="4GiB", page_size="512B", max_folio="1GiB", swap=[]
    ) as memory:
        memory._machine.swapout._count_zswpout([1 << 30, 140 << 20])
        assert memory.vmstat["zswpout_order_21"] == memory.vmstat["zswpout_order_19"] == 1
        assert memory._node.check()
