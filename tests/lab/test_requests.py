"""Workloads whose requests are due by a schedule."""

from __future__ import annotations

from itertools import islice

import anyio
import pytest

from reclaimactors.lab import requests
from reclaimactors.lab.arrivals import Served
from reclaimactors.lab.catalog import WORKLOADS
from reclaimactors.lab.measure import Measurement
from reclaimactors.lab.workload import Keys

LIMIT = 1000.0


@pytest.fixture
def make_keys(make_memory, source):
    def make(seed=1) -> Keys:
        memory = make_memory()
        keys = Keys(memory, source, memory.budget, seed, Measurement(), lambda: False)
        keys.seconds, keys.limit = 10.0, LIMIT
        return keys

    return make


@pytest.fixture
def due(monkeypatch):
    """What the open loop is asked to do: 400 requests at once, by eight clients."""
    schedules = []

    async def open_loop(due, serve, *, seconds):
        assert seconds == 10.0
        schedules.append(due)

        async def client():
            for _ in range(50):
                await serve()

        async with anyio.create_task_group() as tasks:
            for _ in range(8):
                tasks.start_soon(client)
        served = Served(seconds=2.0)
        for late in (0.001, 0.003):
            served.late.add(late)
        return served

    monkeypatch.setattr(requests, "open_loop", open_loop)
    return schedules


async def work(keys: Keys, name: str = "launch") -> Keys:
    await WORKLOADS[name].prepare(keys)
    assert keys.versions.count(0) == 0
    await WORKLOADS[name].run(keys)
    return keys


@pytest.mark.parametrize("name", ["launch", "steady"])
async def test_every_value_is_right_though_clients_share_the_keys(make_keys, due, name):
    keys = await work(make_keys(), name)
    await keys.verify()
    assert keys.measured.puts - len(keys.versions) == 300
    assert keys.measured.gets == 100
    assert keys.measured.late.max == 0.003


async def test_no_key_is_asked_for_twice_at_the_same_time(make_keys, due):
    keys, busy = make_keys(), set()
    put = keys.memory.put

    async def watched(key, value):
        assert key not in busy
        busy.add(key)
        await put(key, value)
        busy.remove(key)

    keys.memory.put = watched
    await work(keys)


async def test_the_seed_decides_what_is_asked(make_keys, due):
    first, again, other = [await work(make_keys(seed)) for seed in (1, 1, 2)]
    assert first.memory.asked == again.memory.asked != other.memory.asked


async def test_a_launch_is_bursts_above_the_limit_and_calm_between_them(make_keys, due):
    await work(make_keys())
    period = requests.BURST_S + requests.CALM_S
    at = [late % period for late in islice(due[0], 20_000)]
    seconds = 20_000 / (
        requests.BURST * LIMIT * requests.BURST_S + requests.CALM * LIMIT * requests.CALM_S
    )
    in_bursts = sum(late < requests.BURST_S for late in at)
    assert in_bursts / seconds == pytest.approx(requests.BURST * LIMIT * requests.BURST_S, rel=0.05)
    assert (len(at) - in_bursts) / seconds == pytest.approx(
        requests.CALM * LIMIT * requests.CALM_S, rel=0.1
    )


async def test_steady_is_a_share_of_the_limit(make_keys, due):
    await work(make_keys(), "steady")
    *_, last = islice(due[0], 20_000)
    assert last == pytest.approx(20_000 / (requests.STEADY * LIMIT), rel=0.05)


async def test_a_ramp_is_one_rate_after_another(make_keys, due):
    keys = make_keys()
    keys.seconds *= len(requests.RAMP)
    await work(keys, "ramp")
    await keys.verify()
    assert [step.share for step in keys.measured.steps] == list(requests.RAMP)
    for schedule, step in zip(due, keys.measured.steps, strict=True):
        assert step.due == step.share * LIMIT * step.seconds
        *_, last = islice(schedule, 20_000)
        assert last == pytest.approx(20_000 / (step.share * LIMIT), rel=0.05)


async def test_the_limit_is_what_is_served_of_more_than_can_be(make_keys, due):
    keys = make_keys()
    await requests.fill(keys)
    assert await requests.limit(keys) == 1.0
    *_, last = islice(due[0], 1000)
    assert last < 0.01
