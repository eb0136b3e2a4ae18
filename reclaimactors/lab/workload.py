"""Workloads: what clients put and get, decided by a seed and nothing else.

Every value is a function of (key, version) into the input, so that each get, and each key at the
end, is verified byte for byte. A key belongs to one client task: clients race for memory, never
for a key. Each put hands over a fresh copy, since a value that the input still holds frees nothing.
"""

from __future__ import annotations

import random
from array import array
from itertools import count
from typing import TYPE_CHECKING, Any

import anyio
import attrs

from reclaimactors.cpu import clock
from reclaimactors.errors import ReclaimError
from reclaimactors.topology.capacity import is_outside

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterable

    from reclaimactors.lab.data import Input
    from reclaimactors.lab.measure import Measurement
    from reclaimactors.memory import Memory
    from reclaimactors.topology import Topology

__all__ = [
    "CLIENTS", "Keys", "ValueDiffers", "all_in_ram", "eater", "phases", "scan", "set_budgets",
    "writer", "zipf",
]  # fmt: skip

CLIENTS = 8
VERIFIERS = 64  # so that loads from a store come in batches
SET_BUDGETS = 4.0  # the set of all keys, in budgets
RAM_SET_BUDGETS = 1.25  # the same where there is nothing but RAM to hold it


def all_in_ram(topology: Topology) -> bool:
    """Whether it has no store outside this process."""
    return not any(is_outside(spec) for spec in topology.swap)


def set_budgets(topologies: Iterable[Topology]) -> float:
    """Return how large a set of keys, in budgets, all of these topologies can hold.

    One with a store outside this process holds `SET_BUDGETS`; without, what is compressed is all
    that there is, in the pool or in zram.
    """
    return RAM_SET_BUDGETS if any(map(all_in_ram, topologies)) else SET_BUDGETS


class ValueDiffers(ReclaimError):  # noqa: N818 - it says what happened
    """A value that was read is not the value that was put last."""


@attrs.define(eq=False)
class Keys:
    """The keys of one run: which version each holds, and the only way to put and get them.

    Args:
        memory: the memory under test.
        input: what the values are made of.
        budget: the memory's budget in bytes.
        seed: decides everything that clients do.
        measured: where waits and faults are counted.
        stop: says that clients shall end after the operation in hand.
        budgets: the size of the set of keys, in budgets.
        seconds: how long clients work.
        limit: requests a second of which scheduled ones are a share.
    """

    memory: Memory
    input: Input
    budget: int
    seed: int
    measured: Measurement
    stop: Callable[[], bool]
    budgets: float = SET_BUDGETS
    seconds: float = 0.0
    limit: float = 0.0
    versions: array[int] = attrs.field(init=False, repr=False)

    def __attrs_post_init__(self) -> None:
        self.memory.on_stall = self.measured.stalls.add
        set_bytes = int(self.budgets * self.budget)
        nr_keys = max(CLIENTS, -(-set_bytes // self.input.value_size))
        self.versions = array("L", bytes(array("L").itemsize * nr_keys))  # 0 = not put yet

    async def put(self, key: int) -> None:
        """Put the next version of a key."""
        version = self.versions[key] + 1
        value = self.input.value(key, version)
        await self.memory.put(key, value)
        self.measured.puts += 1
        self.versions[key] = version

    async def get(self, key: int) -> None:
        """Get a key that was put, and verify it.

        Raises:
            ValueDiffers: if it is not the value that was put last.
        """
        vmstat = self.memory.vmstat
        faults = vmstat["pgfault"]
        started = clock.perf_counter()
        value = await self._read(key)
        self.measured.gets += 1
        if vmstat["pgfault"] != faults:
            self.measured.faults.add(clock.perf_counter() - started)
        self._compare(key, value)

    async def _read(self, key: int) -> bytes | None:
        try:
            return await self.memory.get(key)
        except KeyError:
            return None

    def _compare(self, key: int, value: bytes | None) -> None:
        version = self.versions[key]
        if value != self.input.value(key, version):
            msg = f"key {key} does not hold the bytes of its last put, number {version}"
            raise ValueDiffers(msg)

    async def verify(self) -> None:
        """Get every key that was put.

        Raises:
            ValueDiffers: if a value differs, or there are more or fewer keys than were put.
        """
        held = len(self.versions) - self.versions.count(0)
        if len(self.memory) != held:
            msg = f"the memory holds {len(self.memory)} keys, and {held} were put"
            raise ValueDiffers(msg)

        async def verify_share(keys: range, _: random.Random) -> None:
            for key in keys:
                if self.versions[key]:
                    self._compare(key, await self._read(key))
                    self.measured.verified += 1

        await self.each_client(verify_share, range(len(self.versions)), VERIFIERS)

    async def each_client(
        self,
        client: Callable[[range, random.Random], Coroutine[Any, Any, None]],
        keys: range,
        nr: int = CLIENTS,
    ) -> None:
        """Run clients together, each with its share of the keys and its own randomness."""
        async with anyio.create_task_group() as tasks:
            for number in range(nr):
                if share := keys[number::nr]:
                    # A string, so that keys and seed count and the order of clients does not.
                    rng = random.Random(f"{self.seed} {keys} {number}")  # noqa: S311 - no secret
                    tasks.start_soon(client, share, rng)


def zipf(rng: random.Random, nr: int) -> int:
    """Return 0 to nr - 1, the k-th about 1/k as often as the first."""
    return int((nr + 1) ** rng.random()) - 1


async def eater(keys: Keys) -> None:
    """Put as fast as the memory takes it, round and round; a get for every three puts, by zipf."""

    async def eat(share: range, rng: random.Random) -> None:
        for turn in count():
            await keys.put(share[turn % len(share)])
            if turn % 3 == 2:
                await keys.get(share[zipf(rng, min(turn + 1, len(share)))])
            if keys.stop():
                return

    await keys.each_client(eat, range(len(keys.versions)))


async def writer(keys: Keys) -> None:
    """Put as fast as the memory takes it, round and round, and read nothing."""

    async def write(share: range, _: random.Random) -> None:
        for turn in count():
            await keys.put(share[turn % len(share)])
            if keys.stop():
                return

    await keys.each_client(write, range(len(keys.versions)))


async def scan(keys: Keys) -> None:
    """Put every key once, then read them all in order again and again."""

    async def read(share: range, _: random.Random) -> None:
        for turn in count():
            if keys.stop():
                return
            key = share[turn % len(share)]
            await (keys.put if turn < len(share) else keys.get)(key)

    await keys.each_client(read, range(len(keys.versions)))


async def phases(keys: Keys) -> None:
    """Work in one app's keys, 3/4 of the budget, then switch to another, as a phone's user does."""
    nr_keys = len(keys.versions)
    app_size = max(CLIENTS, int(nr_keys * 3 / (4 * keys.budgets)))
    rng = random.Random(f"{keys.seed} apps")  # noqa: S311 - no secret

    async def use(share: range, rng: random.Random) -> None:
        for turn in range(3 * len(share)):  # once all of it, then what it likes best
            if keys.stop():
                return
            key = share[turn] if turn < len(share) else share[zipf(rng, len(share))]
            fresh = not keys.versions[key] or (turn >= len(share) and rng.random() < 0.2)
            await (keys.put if fresh else keys.get)(key)

    while not keys.stop():
        start = rng.randrange(0, nr_keys, app_size)
        await keys.each_client(use, range(nr_keys)[start : start + app_size])
