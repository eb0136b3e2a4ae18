from __future__ import annotations

import itertools
import random
from collections import Counter

import anyio
import pytest

from reclaimactors.lab.catalog import WORKLOADS
from reclaimactors.lab.measure import Measurement
from reclaimactors.lab.workload import CLIENTS, SET_BUDGETS, Keys, ValueDiffers, zipf

CLOSED = [name for name, workload in WORKLOADS.items() if not workload.scheduled]


async def worked(memory, source, name, *, seed=1, operations=600) -> Keys:
    """Run a workload until the memory was asked so many things."""
    stop = lambda: len(memory.asked) >= operations  # noqa: E731
    keys = Keys(memory, source, memory.budget, seed, Measurement(), stop)
    await WORKLOADS[name].run(keys)
    return keys


@pytest.mark.parametrize("name", CLOSED)
async def test_the_seed_decides_what_clients_do(name, make_memory, source):
    first, again, other = make_memory(), make_memory(), make_memory()
    await worked(first, source, name, seed=1)
    await worked(again, source, name, seed=1)
    await worked(other, source, name, seed=2)
    assert first.asked == again.asked
    if name not in {"scan", "writer"}:  # which have nothing to decide
        assert first.asked != other.asked


@pytest.mark.parametrize("name", CLOSED)
async def test_every_value_is_verified_at_the_end(name, make_memory, source):
    memory = make_memory()
    keys = await worked(memory, source, name)
    await keys.verify()
    lied_about = memory.asked[0][1]
    memory.values[lied_about] = memory.values[lied_about][:-1] + b"?"
    with pytest.raises(ExceptionGroup) as caught:
        await keys.verify()
    assert caught.group_contains(ValueDiffers, match=f"key {lied_about} ")


@pytest.mark.parametrize("name", CLOSED)
async def test_a_client_gets_what_it_put(name, make_memory, source):
    memory = make_memory()
    await worked(memory, source, name)
    put = set()
    for what, key in memory.asked:
        assert what == "put" or key in put
        put.add(key)


async def test_a_lost_key_is_found(make_memory, source):
    memory = make_memory()
    keys = await worked(memory, source, "eater")
    value = memory.values.pop(3)
    with pytest.raises(ValueDiffers, match="keys"):
        await keys.verify()
    memory.values["a stranger"] = value
    with pytest.raises(ExceptionGroup) as caught:
        await keys.verify()
    assert caught.group_contains(ValueDiffers, match="key 3 ")


async def test_the_set_is_four_budgets_and_each_put_a_fresh_copy(make_memory, source):
    memory = make_memory()
    keys = await worked(memory, source, "eater")
    assert len(keys.versions) * source.value_size >= SET_BUDGETS * memory.budget
    assert len(memory.values) == len(keys.versions)
    assert len({id(value) for value in memory.values.values()}) == len(memory.values)


async def test_a_stale_value_is_found(make_memory, source):
    memory = make_memory()
    keys = await worked(memory, source, "eater")
    await keys.put(5)
    stale = memory.values[5]
    await keys.put(5)
    memory.values[5] = stale
    with pytest.raises(ValueDiffers):
        await keys.get(5)


async def test_phases_stay_in_one_app_then_change(make_memory, source):
    memory = make_memory(budget=64 * 4096)
    await worked(memory, source, "phases", operations=2000)
    app_size = 64 * 3 // 4
    apps = [key // app_size for _, key in memory.asked]
    switches = sum(a != b for a, b in itertools.pairwise(apps))
    assert len(set(apps)) > 2
    assert switches <= 2000 // app_size


async def test_a_cancelled_put_leaves_the_version_it_was(make_memory, source):
    memory = make_memory()
    keys = await worked(memory, source, "eater")
    with anyio.CancelScope() as scope:
        scope.cancel()
        await keys.put(5)
    await keys.verify()


def test_zipf_prefers_the_first_and_reaches_the_last():
    rng = random.Random(1)
    drawn = Counter(zipf(rng, 10) for _ in range(20_000))
    assert set(drawn) == set(range(10))
    assert drawn[0] > 2 * drawn[2] > 2 * drawn[9]
    assert zipf(rng, 1) == 0


def test_clients_that_outnumber_keys_are_none(make_memory, source):
    keys = Keys(make_memory(budget=1), source, 1, 0, Measurement(), lambda: True)
    assert len(keys.versions) == CLIENTS
