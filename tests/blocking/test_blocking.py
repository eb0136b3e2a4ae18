"""A memory for threads: what a hit costs, what is atomic, how it ends."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress

import anyio
import pytest

import reclaimactors as ra
from reclaimactors.blocking import store as blocking_store
from reclaimactors.mm.folio import RESIDENT
from reclaimactors.policies.mglru import Mglru

PAGE = 4096
SMALL = {"budget": "1MiB", "swap": [], "compress": {"offload": "inline"}}


class Slots(ra.Backend):
    """A store that is asked in a lane; `held` keeps its loads until it is set, `asked` tells."""

    def __init__(self):
        self.slots = {}
        self.asked = threading.Event()
        self.held: anyio.Event | None = None

    async def store_many(self, items):
        self.slots.update(items)

    async def load_many(self, slots):
        self.asked.set()
        if self.held is not None:
            await self.held.wait()
        return [self.slots[slot] for slot in slots]

    async def invalidate_many(self, slots):
        for slot in slots:
            self.slots.pop(slot, None)


def noise(seed=0, size=PAGE):
    return random.Random(seed).randbytes(size)


@contextmanager
def opened(**overrides):
    with ra.open_blocking(**SMALL | overrides) as store:
        yield store
        store.run(checked)


async def checked(memory):
    await memory.drain()
    assert memory._node.check()
    assert not memory._node.memcg.reserved


async def reclaim(memory):
    await memory.reclaim(1 << 30)
    await memory.drain()


@pytest.fixture
def no_hops(monkeypatch):
    def forbid(store):
        monkeypatch.setattr(store, "_call", lambda *_: pytest.fail("it was sent to the loop"))

    return forbid


def test_a_hit_and_a_look_are_answered_without_a_hop(no_hops):
    with opened() as store:
        value = noise()
        store["a"] = value
        call = store._call
        no_hops(store)
        assert store["a"] is value
        assert store.get("a") is value
        assert store.get("b") is None
        assert "a" in store
        assert len(store) == 1
        assert store.memory.usage().resident == PAGE
        assert store.memory.health().state == "open"
        store._call = call


def test_without_a_gil_all_goes_to_the_loop(monkeypatch):
    monkeypatch.setattr(blocking_store, "_has_gil", lambda: False)
    with opened() as store:
        store["a"] = b"value"
        calls = []
        call = store._call
        store._call = lambda *args: calls.append(args) or call(*args)
        assert store["a"] == b"value"
        assert len(calls) == 1


@pytest.mark.parametrize("size", [0, 100, PAGE, 300_000])
@pytest.mark.parametrize("where", ["here", "pool", "store"])
def test_a_value_comes_back_from_wherever_it_is(where, size):
    make = noise if where == "store" else lambda _, size: (b"value %d, " % size * size)[:size]
    kinds = {"zswap": {"enabled": False}, "swap": [{"backend": Slots(), "size": "4MiB"}]}
    with opened(**kinds if where == "store" else {}) as store:
        store["a"] = make(1, size)
        if where != "here":
            store.run(reclaim)
        assert store["a"] == make(1, size)
        assert store.get_many(["b", "a"]) == {"a": make(1, size)}
        store["a"] = bytearray(b"another")
        assert store["a"] == b"another"
        del store["a"]
        with pytest.raises(KeyError, match="a"):
            store["a"]
        with pytest.raises(KeyError, match="a"):
            del store["a"]


def test_threads_put_more_than_the_budget_and_get_it_back():
    with opened(swap=[{"backend": Slots(), "size": "16MiB"}]) as store:

        def work(first):
            for i in range(first, first + 150):
                store[i] = noise(i)
                assert store[random.Random(i).randrange(first, i + 1)]

        with ThreadPoolExecutor(4) as threads:
            list(threads.map(work, range(0, 4000, 1000)))
        usage = store.memory.usage()
        assert usage.resident + usage.compressed + usage.overhead <= usage.budget == 1 << 20
        assert len(store) == 600
        assert {key: value == noise(key) for key, value in store.items()} == dict.fromkeys(
            store, True
        )


def test_a_reader_beside_writers_never_gets_what_is_anothers():
    """Keys are overwritten, deleted, reclaimed and read at once, threads change at every step."""
    keys = range(8)
    done = threading.Event()
    errors = []

    def read(seed):
        rng = random.Random(seed)
        hits = 0
        while not done.is_set():
            key = rng.choice(keys)
            with suppress(KeyError):
                value = store[key]
                hits += 1
                if value[0] != key or len(value) != 100 + value[1] * 40:
                    errors.append((key, value[:2], len(value)))
        return hits

    def write(seed):
        rng = random.Random(seed)
        for _ in range(150):
            key, nr = rng.choice(keys), rng.randrange(100)
            match rng.randrange(8):
                case 0:
                    store.pop(key, None)
                case 1:
                    store.run(reclaim)
                case _:
                    store[key] = bytes([key, nr]) + b"x" * (98 + nr * 40)

    before = sys.getswitchinterval()
    with opened(max_folio="8KiB") as store, ThreadPoolExecutor(4) as threads:
        sys.setswitchinterval(1e-6)
        try:
            readers = [threads.submit(read, seed) for seed in range(2)]
            for writer in [threads.submit(write, seed) for seed in range(2)]:
                writer.result()
            done.set()
            assert sum(reader.result() for reader in readers) > 100
        finally:
            done.set()
            sys.setswitchinterval(before)
    assert not errors


def test_what_threads_read_stays_what_they_do_not_read_goes():
    with opened(policy=Mglru(pages=256)) as store:
        for i in range(100):
            store[i] = noise(i, 2000) if i % 2 else (b"%d, " % i * 1000)[:2000]
        for _ in range(3):
            for i in range(0, 100, 4):
                store[i]
            store.run(reclaim_some)
        node = store.memory._node
        state = {i: node.mm.state[node.values.small[i]] for i in range(0, 100, 2)}
        read = [state[i] == RESIDENT for i in range(0, 100, 4)]
        unread = [state[i] == RESIDENT for i in range(2, 100, 4)]
        assert sum(read) > sum(unread)


async def reclaim_some(memory):
    await memory.reclaim(20_000)


def test_batches_are_one_hop():
    with opened() as store:
        calls = []
        call = store._call
        store._call = lambda *args: calls.append(1) or call(*args)
        store.put_many({i: b"%d" % i for i in range(500)})
        assert store.get_many(range(-5, 500)) == {i: b"%d" % i for i in range(500)}
        store.update({"a": b"1"}, b=b"2")
        assert store.delete_many([*range(500), "absent"]) == 500
        assert len(calls) == 4
        assert dict(store) == {"a": b"1", "b": b"2"}
        store._call = call


def test_compare_and_swap_by_threads_counts_each():
    with opened() as store:
        assert store.setdefault("n", b"0") == b"0"
        assert store.setdefault("n", b"7") == b"0"

        def add(_):
            while not store.put_if("n", b"%d" % (int(seen := store["n"]) + 1), seen):
                pass

        with ThreadPoolExecutor(4) as threads:
            list(threads.map(add, range(40)))
        assert store["n"] == b"40"
        assert not store.put_if("n", b"", None)


def test_popitem_by_threads_gives_each_once():
    with opened() as store:
        store.put_many({i: b"%d" % i for i in range(60)})

        def take(_):
            return [store.popitem() for _ in range(20)]

        with ThreadPoolExecutor(3) as threads:
            got = [pair for pairs in threads.map(take, range(3)) for pair in pairs]
        assert len(got) == 60
        assert dict(got) == {i: b"%d" % i for i in range(60)}
        with pytest.raises(KeyError, match="without keys"):
            store.popitem()


def test_a_step_has_the_memory_and_one_hop():
    async def move(memory, old, new, *, times):
        for _ in range(times):
            await memory.put(new, await memory.pop(old))
            old, new = new, old
        return memory.keys()

    async def fails(memory):
        await memory.get("absent")

    with opened() as store:
        store["a"] = b"value"
        assert store.run(move, "a", "b", times=3) == ["b"]
        assert store["b"] == b"value"
        with pytest.raises(KeyError, match="absent"):
            store.run(fails)


def test_a_step_that_waits_for_its_own_thread_is_told():
    async def deadlock(_):
        return store["absent"]

    with opened() as store, pytest.raises(RuntimeError, match="the memory that the step was given"):
        store.run(deadlock)


def test_errors_are_those_of_a_memory():
    with opened() as store:
        store["a"] = b"old"
        with pytest.raises(ra.OutOfMemory, match="never fits"):
            store["a"] = bytes(2 << 20)
        with pytest.raises(TypeError, match="encode it"):
            store["a"] = "text"
        with pytest.raises(TypeError, match="unhashable"):
            store[[]] = b"value"
        with pytest.raises(TypeError, match="unhashable"):
            store[[]]
        assert store["a"] == b"old"


def test_what_cannot_be_opened_says_why():
    with pytest.raises(ra.TopologyError, match="topolgy"):
        ra.open_blocking("topolgy")

    class Broken(Slots):
        async def open(self, page_size):
            raise ra.BackendError("told")

    with pytest.raises(ra.BackendError, match="told"):
        ra.open_blocking(**SMALL | {"swap": [{"backend": Broken(), "size": "1MiB"}]})
    assert not [t for t in threading.enumerate() if t.name == "reclaimactors"]


@contextmanager
def interrupted_once(event):
    """Send this thread a SIGINT once the event is set, though this process may ignore those."""
    main = threading.main_thread().ident
    before = signal.signal(signal.SIGINT, signal.default_int_handler)

    def interrupt():
        event.wait(10)
        signal.pthread_kill(main, signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    try:
        yield
    finally:
        thread.join()
        signal.signal(signal.SIGINT, before)


@pytest.mark.skipif(not hasattr(signal, "pthread_kill"), reason="no signals for threads here")
@pytest.mark.parametrize("call", ["get", "pop", "get_many"])
def test_a_call_that_is_interrupted_has_ended_and_lost_nothing(call):
    slots = Slots()
    spec = {"zswap": {"enabled": False}, "swap": [{"backend": slots, "size": "4MiB"}]}
    with opened(**spec) as store:
        store["a"] = noise()
        store.run(reclaim)
        store.run(hold, slots)
        calls = {"get": lambda: store["a"], "pop": lambda: store.pop("a"),
                 "get_many": lambda: store.get_many(["a"])}  # fmt: skip
        with interrupted_once(slots.asked), pytest.raises(KeyboardInterrupt):
            calls[call]()
        assert not store._close.peek()[1].__self__._tasks
        store.run(let_go, slots)
        assert store["a"] == noise()


async def hold(_, slots):
    slots.asked.clear()
    slots.held = anyio.Event()


async def let_go(_, slots):
    slots.held.set()
    slots.held = None


def test_what_an_interrupted_pop_has_taken_is_put_back():
    with opened() as store:
        store["a"] = b"value"
        call = store._call

        def interrupted(now, later, *args):
            store._call = call
            call(now, later, *args)
            raise KeyboardInterrupt

        store._call = interrupted
        with pytest.raises(KeyboardInterrupt):
            store.pop("a")
        assert store["a"] == b"value"


def test_after_close_every_call_says_so():
    store = ra.open_blocking(**SMALL)
    store["a"] = b"value"
    store.close()
    store.close()
    for call in (lambda: store["a"], lambda: store.pop("a"), lambda: list(store),
                 lambda: store.update(a=b"1"), lambda: store.run(reclaim)):  # fmt: skip
        with pytest.raises(anyio.ClosedResourceError):
            call()
    assert store.memory.health().state == "closed"
    assert not [t for t in threading.enumerate() if t.name == "reclaimactors"]


def test_whoever_waits_as_it_is_closed_is_told():
    slots = Slots()
    spec = {"zswap": {"enabled": False}, "swap": [{"backend": slots, "size": "4MiB"}]}
    with ra.open_blocking(**SMALL | spec) as store, ThreadPoolExecutor(2) as threads:
        store["a"] = noise()
        store.run(reclaim)
        store.run(hold, slots)
        waits = threads.submit(lambda: store["a"])
        assert slots.asked.wait(10)
        threads.submit(store.close).result()
        with pytest.raises(anyio.ClosedResourceError):
            waits.result()


def test_a_crash_ends_it_and_every_call_says_what_it_was():
    async def crash(memory):
        memory._machine.crashed(ra.ReclaimError("told"))

    store = ra.open_blocking(**SMALL)
    store["a"] = b"value"
    with suppress(anyio.ClosedResourceError):
        store.run(crash)
    for _ in range(2):
        with pytest.raises(anyio.ClosedResourceError) as caught:
            store["a"]
        assert "told" in str(caught.value.__cause__)
    with pytest.raises(ra.ReclaimError, match="told"):
        store.close()
    store.close()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_forked_child_is_refused_and_the_parent_goes_on():
    with opened() as store:
        store["a"] = b"value"
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # of a fork with threads, 3.12
            pid = os.fork()
        if not pid:
            refused = 0
            for call in (lambda: store["a"], lambda: store.update(a=b"1"), lambda: list(store)):
                try:
                    call()
                except RuntimeError as exc:
                    refused += "before the fork" in str(exc)
            store.close()
            os._exit(refused)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 3
        assert store["a"] == b"value"
        store["a"] = b"another"


def test_a_program_that_does_not_close_it_ends_quietly():
    program = """
import reclaimactors as ra
store = ra.open_blocking(budget="1MiB", swap=[])
store["a"] = b"value"
assert store["a"] == b"value"
other = ra.open_blocking(budget="1MiB", swap=[])
del other
"""
    ended = subprocess.run(
        [sys.executable, "-W", "error", "-c", program],
        capture_output=True, text=True, timeout=50, check=False,
    )  # fmt: skip
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "", "")
