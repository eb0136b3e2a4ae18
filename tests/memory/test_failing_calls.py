"""A plugin that raises once, at any of its calls: nothing is lost, nothing hangs, all goes on.

A small life is lived once to count the calls of one kind of plugin, then once for each of them,
which raises: before the plugin has done its work, or after it. Whoever asked gets the error, or an
actor does. In an ordinary run some forty of the calls raise, evenly spread;
``HYPOTHESIS_PROFILE=nightly`` has each of them raise.
"""

from __future__ import annotations

import asyncio
import os
import random
from contextlib import suppress

import anyio
import pytest
from anyio.lowlevel import checkpoint

import reclaimactors as ra
from reclaimactors.backends.zram import ZramBackend
from reclaimactors.compressors.lz4 import Lz4
from reclaimactors.mm.folio import RESIDENT, UNEVICTABLE
from reclaimactors.policies import mglru
from reclaimactors.testing import VirtualClockLoop
from reclaimactors.topology import builtin_names

PAGE = 512
BUDGET = 48 << 10
ALL = os.environ.get("HYPOTHESIS_PROFILE") == "nightly"
LIVES = 40  #: in an ordinary run, at most
POLICY = ("insert", "access", "remove", "isolate", "putback", "shadow", "age", "deactivate")


class Fuse:
    """Counts calls, and raises at one of them."""

    def __init__(self, blows_at: int = 0, *, before: bool = True) -> None:
        self.calls = 0
        self.blown = ""
        self.safe = False  # from then on it does neither
        self._blows_at = blows_at
        self._before = before

    def call(self, method, *args, **kwargs):
        if self.safe:
            return method(*args, **kwargs)
        self.calls += 1
        blows = self.calls == self._blows_at
        if blows:
            self.blown = method.__name__
            if self._before:
                raise RuntimeError(self.blown)
        result = method(*args, **kwargs)
        if blows:
            raise RuntimeError(self.blown)
        return result


class Fused:
    """A policy or a compressor, some of whose calls go through a fuse."""

    def __init__(self, inner, fuse: Fuse | None, *names: str) -> None:
        self.name = getattr(inner, "name", "policy")
        self._inner = inner
        self._fuse = fuse
        self._names = names if fuse is not None else ()

    def __getattr__(self, name: str):
        method = getattr(self._inner, name)
        if name not in self._names:
            return method
        return lambda *args, **kwargs: self._fuse.call(method, *args, **kwargs)

    def __reduce__(self):
        raise TypeError("it counts its calls in this process")


class Shelf(ra.Backend):
    """A store in a dict, outside the budget."""

    def __init__(self, fuse: Fuse) -> None:
        self.slots: dict[int, bytes] = {}
        self._fuse = fuse

    async def store_many(self, items):
        await checkpoint()
        self._fuse.call(self.slots.update, items)

    async def load_many(self, slots):
        await checkpoint()
        return self._fuse.call(list, map(self.slots.__getitem__, slots))

    async def invalidate_many(self, slots):
        await checkpoint()
        self._fuse.call(len, slots)
        for slot in slots:
            self.slots.pop(slot, None)

    def footprint(self, slots):
        return self._fuse.call(int)


class Zram(ZramBackend):
    """A zram whose calls go through a fuse."""

    def __init__(self, fuse: Fuse, compressor) -> None:
        super().__init__(compressor)
        self._fuse = fuse

    def store_squeezed(self, slots, sizes, kept):
        return self._fuse.call(super().store_squeezed, slots, sizes, kept)

    def load_now(self, slots):
        return self._fuse.call(super().load_now, slots)

    def footprint(self, slots):
        return self._fuse.call(super().footprint, slots)


def opening_of(topology: str, kind: str, fuse: Fuse):
    """Return a memory to open, whose plugins of one kind have the fuse."""
    spared = Fuse()
    spared.safe = True
    policy = Fused(mglru.Mglru(pages=BUDGET // PAGE), fuse if kind == "policy" else spared, *POLICY)
    of_it = fuse if kind == "compressor" else spared
    compressor = Fused(Lz4(), of_it, "compress", "decompress")
    store = fuse if kind == "store" else spared
    zram = topology == "zram"
    pool = {"enabled": False} if zram else {"max_pool_percent": 4}
    return ra.open_memory(
        topology,
        budget=BUDGET,
        page_size=PAGE,
        max_folio=2 * PAGE,
        policy=policy,
        compress={"offload": "inline", "compressor": compressor, "batch": 32},
        watermarks={"low": "10%", "high": "18%"},  # some pages may be in flight
        zswap=pool,
        swap=[{"backend": Zram(store, compressor) if zram else Shelf(store), "size": "24KiB"}],
    )


class Life:
    """A little of everything: three tasks, each with keys of its own."""

    def __init__(self, memory: ra.Memory, fuse: Fuse) -> None:
        self.memory = memory
        self.model: dict[int, bytes] = {}
        self._fuse = fuse

    async def live(self) -> None:
        async with anyio.create_task_group() as tasks:
            for number in range(3):
                tasks.start_soon(self._task, random.Random(number), number)

    async def _task(self, rng: random.Random, number: int) -> None:
        for step in range(90):
            key = 3 * rng.randrange(30) + number
            value = value_of(step, rng)
            try:
                with suppress(anyio.WouldBlock, ra.OutOfMemory):
                    await self._step(rng.random(), key, value, rng)
            except (RuntimeError, ra.ReclaimError):
                assert self._fuse.blown

    async def _step(self, what: float, key: int, value: bytes, rng: random.Random) -> None:
        memory, model = self.memory, self.model
        if what < 0.5:
            await memory.put(key, value)
            model[key] = value
        elif what < 0.6:
            memory.put_nowait(key, value)
            model[key] = value
        elif key in model:
            await self._use(what, key, rng)

    async def _use(self, what: float, key: int, rng: random.Random) -> None:
        memory, model = self.memory, self.model
        if what < 0.65:
            await memory.delete(key)
            del model[key]
        elif what < 0.7:
            memory.advise(key, rng.choice(list(ra.Advice)))
        elif what < 0.73:
            await memory.reclaim(4 * PAGE)
        elif what < 0.78:
            async with memory.pin(key) as view:
                assert view == model[key]
        else:
            assert await memory.get(key) == model[key]

    async def is_all_there(self) -> None:
        assert {key: await self.memory.get(key) for key in self.model} == self.model


def value_of(seed: int, rng: random.Random) -> bytes:
    size = rng.choice([0, 200, PAGE, PAGE, 2 * PAGE, 5 * PAGE])
    what = rng.random()
    if what < 0.25:
        return rng.randbytes(size)
    text = rng.randbytes(size // 3) + b"value %d, " % seed * (size // 8 + 1)
    return text[:size] if what < 0.9 else bytes(size)


async def lived(topology: str, kind: str, fuse: Fuse) -> dict[str, int]:
    """Live a life, look whether all is there, and return its counters."""
    with anyio.fail_after(60):
        async with opening_of(topology, kind, fuse) as memory:
            life, node = Life(memory, fuse), memory._node
            await life.live()
            await memory.drain()
            fuse.safe = True
            assert node.check()
            await life.is_all_there()
            await memory.drain()
            if fuse.blown != "isolate":  # nobody knows what it took off its lists before
                agree(node)
            await memory.reclaim(BUDGET)
            assert node.check()
            await life.is_all_there()
            for key in life.model:
                await memory.delete(key)
            await memory.drain()
            assert node.check()
            usage = memory.usage()
            assert usage.resident == usage.compressed == usage.overhead == 0
            return dict(memory.vmstat)


def agree(node) -> None:
    """Assert that reclaim finds each folio that is in memory, and no other."""
    policy = node.root.policy._inner
    policy.check()
    for pfn, state in enumerate(node.mm.state):
        where = policy._where[pfn] if pfn < len(policy._where) else mglru._GONE
        isolated, listed = where == mglru._ISOLATED, where < mglru._ISOLATED
        assert listed == (state == RESIDENT), f"pfn {pfn} in state {state}"
        assert isolated == (state == UNEVICTABLE), f"pfn {pfn} in state {state}"


def live_once(topology: str, kind: str, fuse: Fuse) -> dict[str, int]:
    """Live a life in no time, without asyncio's debug mode, which takes five times as long."""
    with asyncio.Runner(loop_factory=VirtualClockLoop, debug=False) as runner:
        return runner.run(lived(topology, kind, fuse))


@pytest.mark.timeout(3600)
@pytest.mark.parametrize("kind", ["policy", "compressor", "store"])
@pytest.mark.parametrize("topology", builtin_names())
def test_a_plugin_that_raises_at_any_call_loses_nothing(topology, kind):
    whole = Fuse()
    live_once(topology, kind, whole)
    assert whole.calls > 50
    for number in range(1, 2 * whole.calls, 1 if ALL else max(31, 2 * whole.calls // LIVES)):
        fuse = Fuse(number // 2 + 1, before=bool(number % 2))
        try:
            live_once(topology, kind, fuse)
        except BaseException as exc:
            exc.add_note(f"call {number // 2 + 1} of {whole.calls}, {fuse.blown}")
            raise


def test_the_life_goes_everywhere():
    vm = live_once("kcompressd", "policy", Fuse())
    ways = ["reclaim_stored", "reclaim_zero", "reclaim_device", "reclaim_cancelled", "zswpwb"]
    ways += ["zswpin", "pswpin", "swpin_zero", "kcompressd_queued", "allocstall_normal"]
    assert [way for way in ways if not vm[way]] == []
    ways = ["unevictable_pgs_culled", "unevictable_pgs_rescued", "reclaim_activate"]
    assert [way for way in ways if not vm[way]] == []
    assert live_once("zram", "policy", Fuse())["reclaim_device"]
