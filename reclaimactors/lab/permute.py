"""Is it more than chance? A permutation test on the rounds of a pair of topologies.

Theory. If both topologies were the same, their names could be dealt anew to their rounds, and
nothing would look different. So the names are dealt anew, in every way that there is or in many,
and each time the largest difference is noted that any figure shows; a measured difference counts
where few deals show one as large anywhere. The largest of all figures is what corrects for looking
at many; where several pairs are looked at, each may claim `ALPHA` divided by their number. So where
nothing differs, at most `ALPHA` of all comparisons claim something. No figure needs to be normally
distributed, and how much other topologies differ or vary does not matter.

The two ran side by side in each round. With many rounds names are swapped within rounds only, and
what slows down a whole round cancels out. With few there are not enough ways to do that, and names
are dealt to all rounds of both: then what slows down a whole round makes claims rarer.

How large a difference is: that of the means over the spread, 0 to 1, in logarithms, so that one
very slow round does not decide. It orders deals as Student's t does, for pairs or for two samples.
"""

from __future__ import annotations

import math
import random
from itertools import combinations, product
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

__all__ = ["ALPHA", "chances", "enough_rounds"]

ALPHA = 0.04  #: at most this share of comparisons of the same with the same claims a difference
LEAST = 2  # rounds: of one there is no spread
PAIRED_DEALS = 4  # so many as large may be by chance, or swapping within rounds tells too little
MOST_DEALS = 4000
_SAME = 1e-9  # sizes that differ by less are rounding


def enough_rounds(nr_pairs: int) -> int:
    """Return how many rounds it takes at least to tell a difference in one of so many pairs.

    Two deals of all, as measured and with the names swapped, are always as large.
    """
    rounds = LEAST
    while math.comb(2 * rounds, rounds) * ALPHA < 2 * nr_pairs:
        rounds += 1
    return rounds


def chances(
    one: Sequence[Sequence[float]], other: Sequence[Sequence[float]], *, nr_pairs: int = 1
) -> list[float]:
    """Return, for each figure, how likely chance alone shows as large a difference in any of them.

    Args:
        one: the figures, at least 0, of each round of one topology.
        other: the same of the other, of the same rounds.
        nr_pairs: how many such pairs are looked at.
    """
    nr_rounds = len(one)
    paired = 2 ** (nr_rounds - 1) * ALPHA >= PAIRED_DEALS * nr_pairs
    figures = [
        _standardized([math.log1p(value) for value in values], paired=paired)
        for values in zip(*one, *other, strict=True)
    ]
    measured = [_size(figure, range(nr_rounds)) for figure in figures]
    reached, deals = [0] * len(figures), 0
    for deal in _deals_within(nr_rounds) if paired else _deals_among(nr_rounds):
        deals += 1
        largest = max(_size(figure, deal) for figure in figures) + _SAME
        for number, size in enumerate(measured):
            reached[number] += largest >= size
    return [count / deals for count in reached]


def _standardized(values: Sequence[float], *, paired: bool) -> list[float]:
    """Return values less their mean, that of each round if paired, with a mean square of 1."""
    half = len(values) // 2
    if paired:
        means = [(a + b) / 2 for a, b in zip(values[:half], values[half:], strict=True)] * 2
    else:
        means = [math.fsum(values) / len(values)] * len(values)
    rest = [value - mean for value, mean in zip(values, means, strict=True)]
    spread = math.sqrt(math.fsum(value * value for value in rest) / len(rest))
    return [value / spread if spread > _SAME else 0.0 for value in rest]


def _size(figure: Sequence[float], deal: Iterable[int]) -> float:
    """Return how far apart the rounds of a deal are from the rest, 0 to 1."""
    return abs(sum([figure[number] for number in deal])) * 2 / len(figure)


def _deals_within(nr_rounds: int) -> Iterable[Sequence[int]]:
    """Yield which rounds one of two has, names swapped within rounds: as measured, and others.

    A deal and the same with all names swapped are as large, so one of them is looked at.
    """
    if 2 ** (nr_rounds - 1) <= MOST_DEALS:
        for swaps in product((0, nr_rounds), repeat=nr_rounds - 1):
            yield 0, *(number + swap for number, swap in enumerate(swaps, 1))
        return
    rng = _rng()
    yield range(nr_rounds)
    for _ in range(MOST_DEALS - 1):
        yield [number + rng.choice((0, nr_rounds)) for number in range(nr_rounds)]


def _deals_among(nr_rounds: int) -> Iterable[Sequence[int]]:
    """Yield the same, names dealt to all rounds of both."""
    if math.comb(2 * nr_rounds, nr_rounds) <= 2 * MOST_DEALS:
        for rest in combinations(range(1, 2 * nr_rounds), nr_rounds - 1):
            yield 0, *rest
        return
    rng = _rng()
    yield range(nr_rounds)
    for _ in range(MOST_DEALS - 1):
        yield rng.sample(range(2 * nr_rounds), nr_rounds)


def _rng() -> random.Random:
    return random.Random(0)  # noqa: S311 - the same rounds have the same verdict
