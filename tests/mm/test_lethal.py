"""Pages that kill workers: what is remembered of them, and for how long."""

from __future__ import annotations

import random

import pytest

from reclaimactors.mm import lethal as lethal_module
from reclaimactors.mm.lethal import AGAIN, Lethal

A, B, C = (random.Random(seed).randbytes(512) for seed in range(3))


@pytest.fixture
def lethal():
    return Lethal(512)


def test_a_suspect_is_tried_alone_and_forgotten_if_it_goes_well(lethal):
    assert not lethal
    lethal.killed(A)
    lethal.killed(B)
    assert A in lethal
    assert B in lethal
    assert C not in lethal
    assert not lethal.condemned(A)
    lethal.survived(A)
    assert A not in lethal
    assert B in lethal


def test_what_ends_two_workers_is_condemned_and_told_once(lethal):
    lethal.killed(A)
    assert not lethal.to_tell(A)
    lethal.killed(A)
    assert lethal.condemned(A)
    assert lethal.to_tell(A)
    assert not lethal.to_tell(A)
    lethal.killed(A)
    assert not lethal.to_tell(A)


def test_it_is_tried_again_each_time_later_and_forgotten_if_it_was_innocent(lethal):
    for nth in range(3):
        lethal.killed(A)
        lethal.killed(A) if nth == 0 else None
        lethal.batches += AGAIN * 2**nth - 1
        assert lethal.condemned(A)
        lethal.went_well()
        assert not lethal.condemned(A)
        assert A in lethal
    lethal.survived(A)
    assert not lethal


def test_many_deaths_in_a_row_are_no_page_s_fault(lethal, monkeypatch):
    monkeypatch.setattr(lethal_module, "MANY", 2)
    assert [lethal.explains() for _ in range(3)] == [True, True, False]
    lethal.went_well()
    assert lethal.explains()


def test_a_large_page_is_known_by_its_pieces_and_they_by_it(lethal):
    large = A + B + C[:276]
    lethal.killed(large)
    for page in (large, A, B, C[:276], A + C):
        assert page in lethal
    assert large[100:612] not in lethal
    lethal.survived(large)
    assert not lethal


def test_a_folio_is_told_of_for_a_piece_of_it(lethal):
    large = A + B
    lethal.killed(B)
    lethal.killed(B)
    assert large in lethal
    assert not lethal.condemned(large)
    assert lethal.to_tell(large)
    assert not lethal.to_tell(large)


def test_the_oldest_are_forgotten_where_there_are_very_many(lethal, monkeypatch):
    monkeypatch.setattr(lethal_module, "MOST", 2)
    for page in (A, B, C):
        lethal.killed(page)
    assert [page in lethal for page in (A, B, C)] == [False, True, True]
