import pytest
from hypothesis import given
from hypothesis import strategies as st

from reclaimactors.errors import ProtocolViolation
from reclaimactors.mm.padata import Reorder, chunks


def test_a_slow_job_holds_up_those_behind_it():
    order = Reorder[str]()
    first, second, third = (order.next_seq() for _ in range(3))
    assert order.oldest_early is None
    assert order.push(third, "c", 7.0) == []
    assert order.push(second, "b", 8.0) == []
    assert order.pending == 3
    assert order.oldest_early == 7.0
    assert order.push(first, "a", 9.0) == ["a", "b", "c"]
    assert order.pending == 0
    assert order.oldest_early is None


@given(st.permutations(range(12)))
def test_jobs_come_out_as_they_were_submitted(finished):
    order = Reorder[int]()
    turns = [order.next_seq() for _ in finished]
    out = []
    for job in finished:
        out += order.push(turns[job], job)
        order.check()
        assert order.pending == len(finished) - len(out)
    assert out == list(range(12))


@given(st.lists(st.one_of(st.none(), st.integers(0, 100)), max_size=60))
def test_turns_and_completions_may_interleave(plan):
    order = Reorder[int]()
    running, out, given_ = [], [], 0
    for pick in [*plan, *[0] * len(plan)]:
        if pick is None:
            running.append(order.next_seq())
            given_ += 1
        elif running:
            seq = running.pop(pick % len(running))
            out += order.push(seq, seq)
        order.check()
    assert out == list(range(given_))
    assert order.pending == 0


@pytest.mark.parametrize("seq", [-1, 0, 2, 3, 99])
def test_a_turn_is_handed_in_once_and_only_if_given(seq):
    order = Reorder[str]()
    for _ in range(3):
        order.next_seq()
    order.push(0, "a")
    order.push(2, "c")
    with pytest.raises(ProtocolViolation):
        order.push(seq, "x")
    order.check()
    assert order.pending == 2
    assert order.push(1, "b") == ["b", "c"]


def test_one_worker_or_a_tiny_job_is_one_piece():
    assert chunks(1000, workers=1, min_chunk=1) == [(0, 1000)]
    assert chunks(31, workers=8, min_chunk=16) == [(0, 31)]
    assert chunks(0, workers=8, min_chunk=16) == []


def test_four_pieces_a_worker_for_balance():
    assert chunks(128, workers=2, min_chunk=1) == [(at, at + 16) for at in range(0, 128, 16)]


def test_pieces_are_no_smaller_than_worth_it():
    assert chunks(100, workers=4, min_chunk=10) == [(at, at + 10) for at in range(0, 100, 10)]


@given(st.integers(0, 5000), st.integers(1, 64), st.integers(1, 600))
def test_pieces_cover_the_job_once_and_in_order(size, workers, min_chunk):
    pieces = chunks(size, workers=workers, min_chunk=min_chunk)
    assert [unit for start, end in pieces for unit in range(start, end)] == list(range(size))
    for start, end in pieces[:-1]:
        assert end - start >= min_chunk
    if workers == 1:
        assert len(pieces) <= 1
