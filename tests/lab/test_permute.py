from __future__ import annotations

import random

import pytest

from reclaimactors.lab.permute import ALPHA, chances, enough_rounds

NR_FIGURES = 10


def measured(rng: random.Random, levels: list[float], factor: float = 1.0) -> list[list[float]]:
    """Rounds of one topology: rates, times with a heavy tail, and counts that are mostly 0."""

    def figure(nr: int) -> float:
        return (rng.gauss(100, 10), rng.paretovariate(1.5), rng.choice((0, 0, 0, 7)))[nr % 3]

    return [[level * factor * figure(nr) for nr in range(NR_FIGURES)] for level in levels]


@pytest.mark.parametrize(("rounds", "drift"), [(4, 0.0), (4, 0.3), (8, 0.3)])
def test_the_same_against_the_same_claims_a_difference_in_less_than_5_percent(rounds, drift):
    rng, claims, nr = random.Random(7), 0, 200
    for _ in range(nr):
        levels = [rng.lognormvariate(0, drift) for _ in range(rounds)]
        claims += min(chances(measured(rng, levels), measured(rng, levels))) <= ALPHA
    assert claims / nr < 0.05


def test_with_many_rounds_what_slows_down_a_whole_round_cancels_out():
    rng = random.Random(7)
    levels = [rng.lognormvariate(0, 1.0) for _ in range(8)]
    assert chances(measured(rng, levels), measured(rng, levels, 1.5))[0] <= ALPHA


def test_a_difference_larger_than_the_spread_is_found_and_only_where_it_is():
    rng, found = random.Random(7), 0
    for _ in range(20):
        one, other = measured(rng, [1.0] * 6), measured(rng, [1.0] * 6)
        for figures in one:
            figures[0] *= 1.5
        by_chance = chances(one, other)
        found += by_chance[0] <= ALPHA
        assert by_chance[0] == min(by_chance)
    assert found == 20


def test_figures_without_any_spread_differ_in_nothing():
    assert chances([[3.0, 0.0]] * 5, [[3.0, 0.0]] * 5) == [1.0, 1.0]


def test_a_difference_can_be_told_only_where_few_deals_separate_the_rounds():
    assert [enough_rounds(pairs) for pairs in (1, 3, 4)] == [4, 5, 5]
    for rounds in (3, 4):
        one, other = [[9.0]] * rounds, [[1.0]] * rounds
        assert (chances(one, other)[0] <= ALPHA) == (rounds >= enough_rounds(1))


def test_of_many_rounds_a_sample_of_the_deals_is_looked_at_and_always_the_same():
    rng = random.Random(7)
    one, other = measured(rng, [1.0] * 12), measured(rng, [1.0] * 12, 1.2)
    assert chances(one, other) == chances(one, other)
    assert chances(one, other)[0] <= ALPHA
