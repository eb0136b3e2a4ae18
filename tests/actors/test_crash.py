"""A memory that ends by a crash: whoever calls or waits is told why, by an error of its own."""

from __future__ import annotations

import asyncio
import errno
import gc
import traceback
import weakref
from contextlib import AsyncExitStack
from functools import partial

import anyio
import pytest

import reclaimactors as ra
from reclaimactors.testing import Gate
from reclaimactors.topology import builtin_names, resolve

virtual = pytest.mark.asyncio(loop_factories=["virtual"])


async def pin(memory):
    async with memory.pin("here"):
        pass


CALLS = {
    "get": lambda memory: memory.get("here"),
    "put": lambda memory: memory.put("new", b"n"),
    "delete": lambda memory: memory.delete("here"),
    "reclaim": lambda memory: memory.reclaim(1),
    "drain": lambda memory: memory.drain(),
    "pin": pin,
    "swapon": lambda memory: memory.swapon({"backend": "memory", "size": "1MiB"}),
    "swapoff": lambda memory: memory.swapoff("memory0"),
}
NOWAIT = {
    "get_nowait": lambda memory: memory.get_nowait("here"),
    "put_nowait": lambda memory: memory.put_nowait("new", b"n"),
    "advise": lambda memory: memory.advise("here", ra.Advice.COLD),
    "keys": lambda memory: memory.keys(),
    "tune": lambda memory: memory.tune(fifo=8),
}


def each_with(*actors):
    """Every built-in topology with its own kswapd and worker, and one of them with other actors."""
    of_all = [(name, "kswapd") for name in builtin_names()]
    modes = {name: resolve(name).compress.mode for name in builtin_names()}
    workers = [(name, mode) for name, mode in modes.items() if mode != "inline"]
    others = [("kcompressd", actor) for actor in actors]
    return pytest.mark.parametrize(("topology", "actor"), [*of_all, *workers, *others])


class Bug:
    """What an actor runs instead, once it is told to."""

    def __init__(self, machine, actor):
        self._inner = machine.starter.actors[actor]
        machine.starter.actors[actor] = self.run
        self.now = anyio.Event()

    async def run(self):
        if self.now.is_set():
            raise RuntimeError("a bug in my plugin")
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._inner)
            await self.now.wait()
            raise RuntimeError("a bug in my plugin")


def says_why(error, actor):
    told = f"this memory is closed: {actor} crashed 6 times within 10 s; "
    told += "the last: RuntimeError('a bug in my plugin')"
    assert type(error) is anyio.ClosedResourceError
    assert str(error) == told
    assert type(error.__cause__) is ra.ReclaimError
    leaf = error.__cause__.__cause__
    while isinstance(leaf, ExceptionGroup):
        [leaf] = leaf.exceptions
    assert (type(leaf), str(leaf)) == (RuntimeError, "a bug in my plugin")
    return True


async def ended_by(call):
    try:
        await call()
    except Exception as exc:  # noqa: BLE001 - what it is is asked
        return exc
    return None


async def crash_of(opening):
    """Leave an open memory as an `async with` does whose body an actor's crash ends."""
    stack = AsyncExitStack()
    stack.push_async_exit(opening)
    async with stack:
        await anyio.sleep(60)


@virtual
@each_with("swapd/memory0/stores", "swapd/memory0/loads", "prefetch")
async def test_every_call_after_a_crash_says_why(kit, topology, actor):
    spec = kit.spec() | {"swap": [{"backend": "memory", "size": "1MiB"}]}
    opening = ra.open_memory(topology, **spec)
    memory = await opening.__aenter__()
    await memory.put("here", b"h")
    Bug(memory._machine, actor).now.set()
    memory._machine.starter.start()
    with pytest.raises(ra.ReclaimError, match="crashed 6 times"):
        await crash_of(opening)
    errors = [await ended_by(partial(call, memory)) for call in CALLS.values()]
    for call in NOWAIT.values():
        with pytest.raises(anyio.ClosedResourceError) as caught:
            call(memory)
        errors.append(caught.value)
    assert all(says_why(error, actor) for error in errors)
    assert len({id(error) for error in errors}) == len(errors)


@virtual
@each_with("prefetch")
async def test_whoever_waits_as_it_crashes_is_told_why(kit, topology, actor):
    store = kit.store()
    spec = kit.spec() | {"swap": [{"backend": store}]}
    ends = {}

    async def waiter(name, call):
        ends[name] = await ended_by(call)

    async with anyio.create_task_group() as callers:
        opening = ra.open_memory(topology, **spec)
        memory = await opening.__aenter__()
        bug = Bug(memory._machine, actor)
        [device] = [info.name for info in memory.swaps()]
        await memory.put("away", kit.noise())
        await memory.reclaim(1 << 30)
        assert memory.usage().swapped
        store.load_gate = store.store_gate = Gate()
        kit.fill(memory._machine, kit.noise, down_to=0.99)
        big = kit.noise(1, 40 * kit.page)
        for name, call in {
            "get": lambda: memory.get("away"),
            "get too": lambda: memory.get("away"),
            "pin": lambda: memory.pin("away").__aenter__(),
            "swapoff": lambda: memory.swapoff(device),
            "put": lambda: memory.put("big", big),
            "put too": lambda: memory.put("other", big),
            "reclaim": lambda: memory.reclaim(1 << 20),
            "drain": memory.drain,
        }.items():
            callers.start_soon(waiter, name, call)
        await kit.settle(300)
        assert ends == {}
        bug.now.set()
        with pytest.raises(ra.ReclaimError, match="crashed 6 times"):
            await crash_of(opening)
    assert len(ends) == len({id(error) for error in ends.values()}) == 8
    assert all(says_why(error, actor) for error in ends.values())


@each_with("swapd/memory0/loads", "prefetch")
async def test_an_actor_that_somebody_else_cancels_is_no_silent_end(kit, topology, actor):
    spec = kit.spec() | {"swap": [{"backend": "memory", "size": "1MiB"}]}
    opening = ra.open_memory(topology, **spec)
    memory = await opening.__aenter__()
    memory._machine.starter.start()
    await kit.settle()
    [task] = [task for task in asyncio.all_tasks() if task.get_name() == actor]
    task.cancel()  # as test fixtures and shutdown code do to all tasks
    why = f"{actor} was cancelled by something outside this memory"
    with pytest.raises(ra.ReclaimError, match=why):
        await crash_of(opening)
    with pytest.raises(anyio.ClosedResourceError, match=f"this memory is closed: {why}"):
        await memory.get("here")
    assert memory.health().reason == why


@pytest.mark.parametrize("by", ["a scope around it", "its task"])
async def test_a_cancelled_owner_closes_it_as_ever(kit, by):
    memories = []

    async def live(scope):
        with scope:
            async with ra.open_memory(**kit.spec()) as memory:
                memory._machine.starter.start()
                memories.append(memory)
                await anyio.sleep_forever()

    scope = anyio.CancelScope()
    task = asyncio.create_task(live(scope))
    await kit.settle()
    (scope if by == "a scope around it" else task).cancel()
    await asyncio.wait([task])
    assert memories[0].health().state == "closed"


async def test_a_read_that_a_crash_of_its_swapd_ends_says_why(kit, monkeypatch):
    async def broken(_groups, _breath):
        raise RuntimeError("a bug in a lane")

    store, errors = kit.store(), []

    async def reader(key):
        errors.append(await ended_by(lambda: memory.get(key)))

    async with ra.open_memory(**kit.spec() | {"swap": [{"backend": store}]}) as memory:
        await memory.put("key", kit.noise())
        await memory.put("other", kit.noise(1))
        await memory.reclaim(1 << 30)
        store.load_gate = Gate()
        async with anyio.create_task_group() as readers:
            readers.start_soon(reader, "key")
            readers.start_soon(reader, "key")
            await store.load_gate.entered.wait()
            loads = memory._machine.swapds[0].loads
            monkeypatch.setattr(loads, "_load_each", broken)  # what a lane does next
            readers.start_soon(reader, "other")
    told = "swap 'FaultyBackend0' failed to load: RuntimeError: its swapd crashed: "
    told += "RuntimeError('a bug in a lane')"
    assert [error.strerror for error in errors] == [told] * 3


async def test_a_memory_that_was_closed_says_just_that(kit):
    async with ra.open_memory(**kit.spec()) as memory:
        await memory.put("here", b"h")
    for call in CALLS.values():
        error = await ended_by(partial(call, memory))
        assert str(error) == "this memory is closed"
        assert error.__cause__ is None


# one instance for each


class Held:
    """Something that a frame holds."""


@pytest.mark.parametrize(
    "error",
    [OSError(errno.EIO, "dead"), ra.BackendFull("as told"), ValueError("a bug")],
    ids=lambda error: type(error).__name__,
)
async def test_readers_of_one_folio_get_errors_of_their_own(kit, caplog, error):
    store = kit.store()
    errors, held = [], []

    async def reader(memory):
        mine = Held()
        held.append(weakref.ref(mine))
        try:
            await memory.get("key")
        except ra.BackendError as exc:
            errors.append(exc)

    async with ra.open_memory(**kit.spec() | {"swap": [{"backend": store}]}) as memory:
        await memory.put("key", kit.noise())
        await memory.reclaim(1 << 30)
        store.load_gate, store.error = Gate(), error
        async with anyio.create_task_group() as readers:
            for _ in range(5):
                readers.start_soon(reader, memory)
            await store.load_gate.entered.wait()
            await kit.settle()
            store.load_gate.open()
        assert store.nr_loads == 1
        store.error = None
        assert await memory.get("key") == kit.noise()
    [line] = [record for record in caplog.records if "load_failed" in record.getMessage()]
    assert traceback.extract_tb(line.exc_info[2])  # what was raised where is said once
    caplog.clear()
    del line
    assert len({id(exc) for exc in errors}) == 5
    assert len({(type(exc), exc.args, exc.errno, exc.strerror) for exc in errors}) == 1
    for exc in errors:
        tasks = [frame for frame, _ in traceback.walk_tb(exc.__traceback__)]
        assert [frame.f_code.co_name for frame in tasks].count("reader") == 1
        cause = exc.__cause__
        while cause is not None:
            assert cause.__traceback__ is None  # it holds no frame of a lane or of the store
            cause = cause.__cause__
    del exc, tasks, cause, errors[1:]  # the first is kept, say by a log: the others' frames are not
    gc.collect()
    assert [ref() is None for ref in held] == [False, True, True, True, True]
