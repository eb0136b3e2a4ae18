"""Random topologies, requests, faults and cancellations by seed, in virtual time.

Each seed ends with every value right and nothing in flight. A seed that fails names the command
that repeats it. How many are tried is RECLAIMACTORS_SEEDS, from RECLAIMACTORS_SEED on::

    RECLAIMACTORS_SEEDS=10000 python -m pytest -o timeout=0 tests/lab/test_virtual_faults.py
"""

from __future__ import annotations

import asyncio
import os
import random

import anyio
import pytest

import reclaimactors as ra
from reclaimactors.actors import malloc_trim
from reclaimactors.cpu import breath, clock
from reclaimactors.simulation import spec
from reclaimactors.simulation.loop import ModelledLoop
from reclaimactors.simulation.run import modelled
from reclaimactors.simulation.store import ModelledStore
from reclaimactors.topology import resolve

FIRST = int(os.environ.get("RECLAIMACTORS_SEED", "0"))
SEEDS = int(os.environ.get("RECLAIMACTORS_SEEDS", "300"))
AT_ONCE = 50
MACHINES = [spec.load(name) for name in spec.BUILT_IN]


class Faulty:
    """What a store does with writes at random: it fails, is full or slow."""

    def __init__(self, rng: random.Random, store: ModelledStore) -> None:
        self.rate = rng.choice([0.0, 0.1, 0.5])
        store_many = store.store_many

        async def fails(items):
            what = rng.random()
            if what < self.rate:
                if what < self.rate / 3:
                    raise ra.BackendFull("full, by seed")
                if what < 2 * self.rate / 3:
                    await anyio.sleep(rng.random())
                raise ra.BackendError("EIO, by seed")
            if what < 2 * self.rate:
                await anyio.sleep(rng.random() / 10)
            await store_many(items)

        store.store_many = fails


class Sometimes:
    """A compressor that raises at random, by what it is given, so that a retry may fail as well."""

    def __init__(self, rng: random.Random, real: object) -> None:
        self.name, self.decompress = real.name, real.decompress
        self._real, self._rate = real.compress, rng.choice([0, 0, 20])

    def compress(self, data):
        if self._rate and sum(data[:64]) % 256 < self._rate:
            raise ValueError("by seed")
        return self._real(data)


def value_of(rng: random.Random, key: int, version: int) -> bytes:
    size = rng.choice([0, 1, 100, 4096, 4096, 4096, 9000, 70_000])
    part = b"%d:%d:" % (key, version) + rng.randbytes(rng.choice([8, 64, 4096]))
    return (part * (size // len(part) + 1))[:size]


def topology_of(rng: random.Random) -> ra.Topology:
    mode = rng.choice(["inline", "kcompressd", "padata"])
    compress = {
        "mode": mode, "offload": rng.choice(["inline", "process"]),
        "on_full": rng.choice(["inline", "wait", "steal_oldest"]),
        "fifo": rng.choice([1, 8, 64]), "batch": rng.choice([1, 16, 64]),
    }  # fmt: skip
    if mode == "padata":
        compress |= {"workers": rng.randint(1, 3)}
    return resolve(
        {
            "budget": "512KiB", "compress": compress, "brake": rng.random() < 0.5,
            "policy": rng.choice(["mglru", "active_inactive"]),
            "zswap": {"enabled": rng.random() < 0.8, "max_pool_percent": rng.choice([5, 20, 60])},
            "swap": [{"backend": "memory", "timeout": 0.5}] if rng.random() < 0.2 else
            [{"backend": "file", "timeout": 0.5, "size": rng.choice(["64KiB", "8MiB"])}],
        }
    )  # fmt: skip


async def work(
    rng: random.Random, memory: ra.Memory, keys: range, values: dict[int, bytes]
) -> None:
    """Do a client's requests: what was cancelled or refused has left the key as it was."""
    for version in range(12):
        key = rng.choice(keys)
        if rng.random() < 0.6:
            value = value_of(rng, key, version)
            with anyio.move_on_after(rng.choice([1e-6, 1e-4, 10.0])) as scope:
                try:
                    await memory.put(key, value)
                    values[key] = value
                except ra.OutOfMemory:
                    pass
            if scope.cancelled_caught:
                found = await memory.get(key, None)
                assert found in (values.get(key), value), f"key {key} after a cancelled put"
                values.pop(key, None)
                if found is not None:
                    values[key] = found
        elif key in values and rng.random() < 0.2:
            await memory.delete(key)
            del values[key]
        elif key in values:
            with anyio.move_on_after(rng.choice([1e-6, 10.0])):
                assert await memory.get(key) == values[key], f"key {key}"
        if rng.random() < 0.02:
            await memory.reclaim(rng.randrange(200_000))


async def one(seed: int, loop: ModelledLoop, machine: spec.Machine) -> None:
    rng = random.Random(f"{seed} faults")
    topology = modelled(topology_of(rng), machine, loop)
    for swap in topology.swap:
        if isinstance(swap.backend.instance, ModelledStore):
            Faulty(rng, swap.backend.instance)
    metered = topology.compress.compressor.instance
    failing = Sometimes(rng, metered)
    metered._compress = failing.compress if failing._rate else metered._compress
    values: dict[int, bytes] = {}
    with anyio.fail_after(600):
        async with ra.open_memory(topology) as memory:
            async with anyio.create_task_group() as tasks:
                for client in range(4):
                    own = random.Random(f"{seed} {client}")
                    tasks.start_soon(
                        work, own, memory, range(client * 20, client * 20 + 20), values
                    )
            await memory.drain()
            assert memory.usage().in_flight == 0
            assert sorted(memory.keys()) == sorted(values)
            for key, value in values.items():
                assert await memory.get(key) == value, f"key {key} at the end"


def try_seed(seed: int) -> None:
    machine = MACHINES[seed % len(MACHINES)]
    loop = ModelledLoop(machine)
    try:
        with (
            asyncio.Runner(loop_factory=lambda: loop) as runner, clock.modelled(loop.look),
            breath.anew(), malloc_trim.never(),
        ):  # fmt: skip
            runner.run(one(seed, loop, machine))
    except BaseException as exc:
        again = f"RECLAIMACTORS_SEED={seed} RECLAIMACTORS_SEEDS=1"
        exc.add_note(f"again: {again} python -m pytest tests/lab/test_virtual_faults.py")
        raise


@pytest.mark.parametrize("first", range(FIRST, FIRST + SEEDS, AT_ONCE))
def test_whatever_happens_every_value_is_right_and_nothing_is_in_flight(first):
    for seed in range(first, min(first + AT_ONCE, FIRST + SEEDS)):
        try_seed(seed)
