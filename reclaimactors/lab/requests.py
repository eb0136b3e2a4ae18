"""Workloads in an open loop: requests that are due by a schedule, whoever waits.

Memory holds all keys before time begins. Rates are shares of a limit: what the first of the
topologies that are compared serves where requests are always waiting. Latency counts from when a
request was due.
"""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

import attrs

from reclaimactors.lab.arrivals import bursts, open_loop, steady
from reclaimactors.lab.ramp import Step
from reclaimactors.lab.workload import zipf

if TYPE_CHECKING:
    from collections.abc import Iterator

    from reclaimactors.lab.workload import Keys

__all__ = ["fill", "launch", "limit", "ramp", "steadily"]

BURST, BURST_S = 1.6, 0.15  # an app starts: of the limit, and for how long
CALM, CALM_S = 0.2, 0.25  # and then is used
STEADY = 0.75
RAMP = (0.5, 0.75, 1.0, 1.25, 1.5, 2.0)
ALWAYS = 1e6  # requests a second: more than anybody serves
PUTS_PER_GET = 3


@attrs.define(eq=False)
class _Requests:
    """Puts of all keys in turn, and gets by zipf; no key is asked for twice at the same time."""

    keys: Keys
    _rng: random.Random = attrs.field(init=False)
    _busy: set[int] = attrs.field(init=False, factory=set[int])
    _turn: int = attrs.field(init=False, default=0)
    _next: int = attrs.field(init=False, default=0)

    def __attrs_post_init__(self) -> None:
        self._rng = random.Random(f"{self.keys.seed} requests")  # noqa: S311 - no secret

    async def serve(self) -> None:
        """Do the next one."""
        nr_keys = len(self.keys.versions)
        self._turn += 1
        is_get = self._turn % (PUTS_PER_GET + 1) == 0
        key = zipf(self._rng, nr_keys) if is_get else self._next
        while key in self._busy:
            key = (key + 1) % nr_keys
        if not is_get:
            self._next = (key + 1) % nr_keys
        self._busy.add(key)
        try:
            await (self.keys.get if is_get else self.keys.put)(key)
        finally:
            self._busy.discard(key)


async def fill(keys: Keys) -> None:
    """Put every key once, as fast as the memory takes it."""

    async def put(share: range, _: random.Random) -> None:
        for key in share:
            await keys.put(key)

    await keys.each_client(put, range(len(keys.versions)))


async def launch(keys: Keys) -> None:
    """Apps start: bursts of requests above what is served, and less than it between them."""
    await _serve(keys, bursts(BURST * keys.limit, BURST_S, CALM * keys.limit, CALM_S, keys.seed))


async def steadily(keys: Keys) -> None:
    """Requests come at one rate."""
    await _serve(keys, steady(STEADY * keys.limit, keys.seed))


async def ramp(keys: Keys) -> None:
    """Requests come at one rate after another, each higher than the last."""
    requests, seconds = _Requests(keys), keys.seconds / len(RAMP)
    for share in RAMP:
        rate = share * keys.limit
        served = await open_loop(steady(rate, keys.seed), requests.serve, seconds=seconds)
        keys.measured.steps.append(
            Step(share, due=rate * served.seconds, seconds=served.seconds, late=served.late)
        )


async def limit(keys: Keys) -> float:
    """Return how many requests a second are served where some are always waiting."""
    return await _serve(keys, steady(ALWAYS, keys.seed))


async def _serve(keys: Keys, due: Iterator[float]) -> float:
    served = await open_loop(due, _Requests(keys).serve, seconds=keys.seconds)
    keys.measured.late.merge(served.late)
    return served.per_s
