"""Requests that are due at their times, whatever became of those before them."""

from __future__ import annotations

from itertools import chain, islice, pairwise, repeat

import anyio
import pytest
from anyio.lowlevel import checkpoint

from reclaimactors.lab import arrivals
from reclaimactors.lab.arrivals import open_loop, steady

NEVER = repeat(float("inf"))


def test_requests_come_at_the_rate_that_was_asked_for_in_an_order_that_the_seed_decides():
    due = list(islice(steady(500.0, 1), 20_000))
    assert all(a <= b for a, b in pairwise(due))
    assert due[-1] == pytest.approx(20_000 / 500, rel=0.03)
    gaps = [b - a for a, b in pairwise(due)]
    assert sum(gap > 1 / 500 for gap in gaps) / len(gaps) == pytest.approx(0.368, abs=0.02)
    assert due[:100] == list(islice(steady(500.0, 1), 100))
    assert due[:100] != list(islice(steady(500.0, 2), 100))


async def test_who_waits_in_line_is_late_by_that_too(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(arrivals.clock, "perf_counter", lambda: now[0])

    async def slowly():
        now[0] += 0.01

    due = chain([0.0, 0.0, 0.005], NEVER)
    served = await open_loop(due, slowly, seconds=0.03, clients=1)
    assert served.late.count == 3
    assert served.late.total == pytest.approx(0.01 + 0.02 + 0.025)
    assert served.per_s == pytest.approx(3 / served.seconds)


async def test_a_full_line_keeps_no_request_from_being_due(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(arrivals.clock, "perf_counter", lambda: now[0])
    monkeypatch.setattr(arrivals, "LINE", 2)
    monkeypatch.setattr(arrivals, "LOOK_S", 0.0)
    asked = 0

    async def serve():
        nonlocal asked
        asked += 1
        await checkpoint()
        if asked == 50:
            now[0] += 1.0

    served = await open_loop(chain(repeat(0.0, 50), NEVER), serve, seconds=0.01, clients=1)
    assert asked == served.late.count == 50


async def test_what_is_not_served_by_the_end_is_not_counted():
    async def serve():
        await anyio.sleep_forever()

    served = await open_loop(steady(10_000.0, 1), serve, seconds=0.01)
    assert served.late.count == 0
