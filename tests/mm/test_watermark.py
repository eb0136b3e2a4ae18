"""The brake between low and min: work owed for a put, never time."""

from hypothesis import given
from hypothesis import strategies as st

from reclaimactors.mm.watermark import AT_EASE, AT_LOW, AT_MIN, Watermarks

MARKS = Watermarks(min=100, low=300, high=600)


def test_nothing_is_owed_at_low():
    assert MARKS.brake(300, 1000) == 0


def test_nothing_is_owed_above_low():
    assert MARKS.brake(10_000, 1000) == 0


def test_at_min_a_put_owes_its_whole_size():
    assert MARKS.brake(100, 1000) == 1000


def test_half_way_down_a_put_owes_half_its_size():
    assert MARKS.brake(200, 1000) == 500


def test_a_put_of_nothing_owes_nothing():
    assert MARKS.brake(150, 0) == 0


@given(st.integers(100, 299), st.integers(0, 1 << 40))
def test_a_put_below_low_owes_its_share_of_the_slope(free, size):
    assert MARKS.brake(free, size) == size * (300 - free) // 200


@given(st.integers(100, 400), st.integers(100, 400), st.integers(0, 1 << 30))
def test_deeper_owes_no_less(one, other, size):
    deep, shallow = sorted((one, other))
    assert MARKS.brake(deep, size) >= MARKS.brake(shallow, size)


@given(st.integers(100, 1000), st.integers(0, 1 << 30))
def test_nobody_owes_more_than_he_puts(free, size):
    assert 0 <= MARKS.brake(free, size) <= size


def test_reclaim_gives_way_above_low_and_the_less_the_nearer_to_min():
    assert MARKS.weight(1000) == MARKS.weight(300) == AT_EASE
    assert AT_LOW < MARKS.weight(299) < MARKS.weight(200) < MARKS.weight(101)
    assert MARKS.weight(100) == MARKS.weight(0) == AT_MIN
