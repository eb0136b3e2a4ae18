"""The pool by itself: its limit, its second chances, and what pressure may take from it."""

from hypothesis import given
from hypothesis import strategies as st

from reclaimactors.mm.batch import SWAP_CLUSTER_MAX
from reclaimactors.mm.zswap import Zswap


def pool(*lengths, budget=1 << 20, **other):
    """Return a pool with blobs of these sizes, one page each, numbered from 0."""
    made = Zswap(budget, enabled=True, max_pool_percent=20, accept_threshold_percent=90, **other)
    made.extend(range(len(lengths)), sum(lengths), len(lengths))
    made.check()
    return made


# second chance


def test_the_first_visit_of_a_blob_makes_it_the_hottest_and_the_second_lets_it_go():
    zswap = pool(100, 100, 100)
    assert zswap.second_chance(0)
    assert [*zswap.coldest(3)] == [1, 2, 0]
    assert not zswap.second_chance(0)
    assert [*zswap.coldest(3)] == [1, 2, 0]
    zswap.check()


def test_a_blob_that_is_stored_again_has_a_second_chance_again():
    zswap = pool(100)
    zswap.second_chance(0)
    zswap.remove(0, 100, 1)
    zswap.extend([0], 100, 1)
    assert zswap.second_chance(0)


def test_pfns_far_apart_have_their_bits():
    zswap = pool(100)
    zswap.extend([5000, 17], 200, 2)
    assert [zswap.second_chance(pfn) for pfn in (0, 17, 5000, 5000)] == [True, True, True, False]


# the dynamic shrinker


def test_without_swap_ins_from_a_disk_the_whole_pool_may_be_written_back():
    assert pool(*[100] * 200).freeable() == 200 * 100


def test_recent_swap_ins_from_a_disk_protect_as_many_pages_at_their_compressed_size():
    zswap = pool(*[1000] * 200)
    zswap.swapped_in(50)
    assert zswap.freeable() == (200 - 50) * 1000


def test_asking_uses_the_protection_up():
    zswap = pool(*[100] * 200)
    zswap.swapped_in(50)
    zswap.freeable()
    assert zswap.freeable() == 200 * 100


def test_no_number_of_swap_ins_keeps_the_last_cluster_from_being_offered():
    zswap = pool(*[100] * 200)
    zswap.swapped_in(1_000_000)
    assert zswap.freeable() == SWAP_CLUSTER_MAX * 100
    assert zswap.freeable() == 200 * 100, "a burst of long ago protects nothing"


def test_an_empty_pool_offers_nothing_and_remembers_no_swap_ins():
    zswap = pool()
    zswap.swapped_in(10)
    assert (zswap.freeable(), zswap.disk_swapins) == (0, 0)


@given(st.lists(st.integers(1, 4000), max_size=60), st.lists(st.integers(0, 80), max_size=5))
def test_what_is_offered_is_there_and_never_nothing_of_something(lengths, swapins):
    zswap = pool(*lengths)
    for pages in swapins:
        zswap.swapped_in(pages)
        assert 0 <= zswap.disk_swapins <= zswap.pages
        assert min(1, zswap.total) <= zswap.freeable() <= zswap.total


# the limit


def test_the_pool_swings_once_for_a_tenth_of_its_limit_not_with_each_blob():
    zswap = pool()
    step = zswap.limit // 100
    flips, full, stored = 0, False, 0
    blobs: list[int] = []
    for pfn in range(5000):
        if zswap.room_for([step]):
            zswap.extend([pfn], step, 1)
            blobs.append(pfn)
            stored += step
        elif blobs:
            zswap.remove(blobs.pop(0), step, 1)
        flips += zswap.reached_full and not full
        full = zswap.reached_full
        assert zswap.total < zswap.limit + step
    assert 1 < flips <= 1 + (stored - zswap.limit) / (zswap.limit - zswap.accept_below) + 1
