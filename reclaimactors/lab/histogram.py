"""Samples in buckets: bounded in size however many there are."""

from __future__ import annotations

import math
from collections import Counter
from typing import TYPE_CHECKING

import attrs

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["Histogram"]

_STEPS = 50  # buckets per factor e
_ZERO = -(10**6)  # the bucket of values that are no more than 0


@attrs.define(eq=False)
class Histogram:
    """Samples of a positive quantity in buckets 2 % wide, with exact count, total and maximum."""

    count: int = 0
    total: float = 0.0
    max: float = 0.0
    buckets: Counter[int] = attrs.field(factory=Counter[int], repr=False)

    def add(self, sample: float) -> None:
        """Count one sample; one of 0 or less is counted as 0."""
        self.count += 1
        if sample <= 0:
            self.buckets[_ZERO] += 1
            return
        self.total += sample
        self.max = max(self.max, sample)
        self.buckets[math.floor(math.log(sample) * _STEPS)] += 1

    def add_zeros(self, nr: int) -> None:
        """Count `nr` samples of 0; none where it is less."""
        if nr > 0:
            self.count += nr
            self.buckets[_ZERO] += nr

    def quantile(self, share: float) -> float:
        """Return the value that a `share` (0 to 1) of the samples do not pass; 0.0 of none."""
        wanted = share * self.count
        for bucket in sorted(self.buckets):
            wanted -= self.buckets[bucket]
            if wanted <= 0 and bucket != _ZERO:
                return min(self.max, math.exp((bucket + 0.5) / _STEPS))
            if wanted <= 0:
                break
        return 0.0

    def merge(self, other: Histogram) -> None:
        """Add the samples of another histogram to these."""
        self.count += other.count
        self.total += other.total
        self.max = max(self.max, other.max)
        self.buckets.update(other.buckets)

    @property
    def zeros(self) -> int:
        """How many samples are 0."""
        return self.buckets[_ZERO]

    def items(self) -> Iterator[tuple[float, int]]:
        """Yield the middle of each bucket above 0, ascending, and how many samples it holds."""
        for bucket in sorted(self.buckets):
            if bucket != _ZERO:
                yield min(self.max, math.exp((bucket + 0.5) / _STEPS)), self.buckets[bucket]
