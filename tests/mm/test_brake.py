"""The brake between min and low: a debt that reclaim pays, never time."""

import pytest

from reclaimactors.mm.brake import Brake
from reclaimactors.mm.memcg import Memcg
from reclaimactors.mm.watermark import Watermarks

MIN, LOW = 100, 300
BATCH = 80


class Group:
    """What a brake looks at, `free` as told."""

    freed_total = 0

    def __init__(self, free):
        self.marks = Watermarks(MIN, LOW, 600)
        self.free(free)

    def free(self, nr_bytes):
        self.memcg = Memcg(1000, resident=1000 - nr_bytes)


def brake(free):
    group = Group(free)
    return group, group, Brake(group, batch=BATCH)


def waits(it, size):
    """Owe for a put, and say whether it has to wait."""
    return not it.paid(it.owe(size))


@pytest.mark.parametrize("free", [LOW, LOW + 1, 900])
def test_nothing_is_owed_at_low(free):
    _, _, it = brake(free)
    assert not waits(it, 10_000)
    assert it.debt == 0


def test_who_owes_next_to_nothing_does_not_wait():
    _, _, it = brake(LOW - 2)
    assert not waits(it, 100)
    assert it.debt == 1


def test_puts_add_up_until_they_are_more_than_a_share_of_a_batch():
    _, _, it = brake(200)  # half way: half of each put is owed, half of a batch is allowed
    assert not waits(it, 40)
    assert not waits(it, 40)
    assert waits(it, 4)


def test_at_min_nothing_is_allowed():
    _, _, it = brake(MIN)
    assert waits(it, 1)


def test_what_reclaim_frees_pays():
    _, ledger, it = brake(MIN)
    mark = it.owe(50)
    ledger.freed_total += 49
    assert not it.paid(mark)
    ledger.freed_total += 1
    assert it.paid(mark)


def test_each_waits_for_his_own_share_and_for_those_before_him():
    _, ledger, it = brake(MIN)
    marks = [it.owe(size) for size in (50, 20, 30)]
    paid = []
    for _ in range(100):
        ledger.freed_total += 1
        paid.append([it.paid(mark) for mark in marks].count(True))
    assert [paid.index(nr) + 1 for nr in (1, 2, 3)] == [50, 70, 100]


def test_what_was_freed_before_pays_nothing():
    _, ledger, it = brake(MIN)
    ledger.freed_total += 1000
    mark = it.owe(50)
    assert it.debt == 50
    assert not it.paid(mark)


def test_memory_that_others_give_back_lets_go_only_at_low():
    node, _, it = brake(MIN)
    mark = it.owe(200)
    node.free(LOW - 1)
    assert not it.paid(mark)
    node.free(LOW)
    assert it.paid(mark)
    assert it.debt == 0


def test_a_reservation_that_is_given_back_pays_nothing():
    node, _, it = brake(MIN + 100)
    mark = it.owe(200)
    node.memcg.reserve(100)
    node.memcg.unreserve(100)
    assert not it.paid(mark)
    assert node.memcg.freed_total == 0


def test_where_nobody_is_at_work_the_debt_is_forgiven():
    _, _, it = brake(200)
    it.owe(200)
    it.forgive()
    assert it.debt == 0
    assert not waits(it, 10)


def test_a_put_that_may_go_on_owes_at_once_what_it_would_have_owed():
    _, _, it = brake(250)
    assert it.lets(50, 200, 50)  # half way after it: half is owed, half of a batch allowed
    _, _, other = brake(200)
    other.owe(50)
    it._group.free(200)
    assert it.debt == other.debt == 25


@pytest.mark.parametrize(
    ("free", "size"),
    [(200, 82), (MIN, 1), (MIN - 1, 0)],  # more than is allowed; nothing is; below min
)
def test_who_has_to_wait_or_to_reclaim_owes_nothing_yet(free, size):
    _, _, it = brake(free)
    assert not it.lets(size, free, 0)
    assert it.debt == 0


def test_nobody_overtakes_those_who_wait():
    _, _, it = brake(LOW)
    it.waiting = 1
    assert not it.lets(1, LOW, 0)


@pytest.mark.parametrize(("free", "goes_on"), [(LOW - 1, True), (MIN, True), (MIN - 1, False)])
def test_without_a_brake_nobody_owes_anything_above_min(free, goes_on):
    node = Group(free)
    it = Brake(node, batch=BATCH, on=False)
    assert it.lets(10_000, free, 0) is goes_on
    assert not waits(it, 10_000)
    assert it.debt == 0
