"""`Memory.health`: whether it serves, why if not, and what is not as configured."""

from __future__ import annotations

import errno
import json
import sys
from time import perf_counter

import anyio
import attrs
import pytest
from anyio import to_thread

import reclaimactors as ra
from reclaimactors.actors.handover import RECOVERED
from reclaimactors.actors.health import health_of
from reclaimactors.actors.supervision import WINDOW_S
from reclaimactors.backends.memory import MemoryBackend
from reclaimactors.compressors.lz4 import Lz4
from reclaimactors.policies.mglru import Mglru
from reclaimactors.testing import FaultyBackend, FaultyCompressor, Gate

virtual = pytest.mark.asyncio(loop_factories=["virtual"])
SPEC = {"budget": "1MiB", "compress": {"offload": "inline"}, "zswap": {"enabled": False}}


class Buggy(Mglru):
    """A policy that raises so many times when it is to isolate."""

    def __init__(self, times: int) -> None:
        super().__init__(pages=256)
        self.left = times

    def isolate(self, nr):
        if self.left:
            self.left -= 1
            raise RuntimeError("a bug in my policy")
        return super().isolate(nr)


def store(**faults):
    return FaultyBackend(MemoryBackend(), **faults)


def swap(backend):
    return [{"backend": backend, "size": "16MiB"}]


async def test_an_open_memory_is_well():
    async with ra.open_memory(**SPEC, swap=swap(store())) as memory:
        assert memory.health() == ra.Health("open", "", ())


async def test_workers_that_cannot_be_had_are_named(monkeypatch):
    monkeypatch.setattr(sys, "executable", "/opt/an/application")
    async with ra.open_memory(budget="1MiB", compress={"offload": "process"}) as memory:
        await memory.reclaim(1)
        for key in range(600):
            await memory.put(key, b"%d " % key * 900)
        health = memory.health()
    assert health.state == "degraded"
    assert "/opt/an/application is not named like a Python" in health.reason


async def test_a_compressor_that_stays_in_threads_is_named():
    class Here(Lz4):
        __module__ = "__main__"

    async with ra.open_memory(
        budget="1MiB", compress={"offload": "process", "compressor": Here()}
    ) as memory:
        assert "defined in __main__" in memory.health().reason


@pytest.mark.parametrize("offload", ["inline", "thread"])
async def test_a_compressor_that_fails_is_named_with_its_own_words(offload, caplog):
    bad = FaultyCompressor(Lz4(), every=1, error=ValueError("it does not like this"))
    spec = SPEC | {"zswap": {}, "compress": {"offload": offload, "compressor": bad}}
    async with ra.open_memory(**spec, swap=swap(store())) as memory:
        await memory.put("key", b"text " * 800)
        memory.advise("key", ra.Advice.PAGEOUT)
        await memory.drain()
        failing = memory.health()
        bad.every = None
        for i in range(RECOVERED):
            await memory.put("key", b"%4d " % i * 800)
            await memory.reclaim(1)
        assert memory.health().state == "open"
    assert failing.state == "degraded"
    assert failing.degraded == (failing.reason,)
    assert failing.reason == (
        "compressor 'lz4' failed within the last 1024 pages; "
        "the last error: ValueError: it does not like this"
    )
    [line] = [record.message for record in caplog.records if "compressor." in record.message]
    assert "error='ValueError: it does not like this'" in line


async def test_a_full_store_is_named_with_its_own_words():
    async with ra.open_memory(**SPEC, swap=swap(store(full_after=4))) as memory:
        await memory.reclaim(1)
        for key in range(64):
            await memory.put(key, b"%4096d" % key)
        await memory.reclaim(1 << 19)
        health = memory.health()
    assert health.state == "degraded"
    [told] = health.degraded
    assert health.reason == told
    assert told.startswith("swap 'FaultyBackend0' is full: ")
    assert "full after 4 slots, as told" in told


@virtual
async def test_a_store_out_of_service_is_named_with_its_last_error():
    broken = store(error=OSError(errno.EIO, "dead"))
    async with ra.open_memory(**SPEC, swap=swap(broken)) as memory:
        for key in range(64):
            await memory.put(key, b"%4096d" % key)
        while not memory.vmstat["swap_out_of_service"]:
            await memory.reclaim(1 << 16)
            await anyio.sleep(1)
        health = memory.health()
    assert health.state == "degraded"
    [told] = health.degraded
    assert told.startswith("swap 'FaultyBackend0' is out of service; its last error: ")
    assert "dead" in told


async def test_a_store_that_does_not_answer_or_did_not_take_a_write_is_named():
    async with ra.open_memory(**SPEC, swap=swap(store())) as memory:
        [swapd] = memory._machine.swapds.values()
        swapd.backing.last_error = "swap 'FaultyBackend0' failed to store: OSError: dead"
        assert memory.health().degraded == (swapd.backing.last_error,)
        swapd.device.late = True
        assert memory.health().degraded == (
            "swap 'FaultyBackend0' has not answered for a while and gets no new writes",
        )


async def test_a_store_that_cannot_give_or_forget_is_named_until_it_can_and_said_once(caplog):
    class Broken(MemoryBackend):
        error = OSError(errno.EIO, "dead")

        def load_now(self, slots):
            return None

        async def load_many(self, slots):
            if self.error is not None:
                raise self.error.with_traceback(None)
            return list(super().load_now(slots))

        async def invalidate_many(self, slots):
            if self.error is not None:
                raise self.error.with_traceback(None)
            await super().invalidate_many(slots)

    broken = Broken()
    async with ra.open_memory(**SPEC, swap=swap(broken)) as memory:
        for key in range(8):
            await memory.put(key, b"%4096d" % key)
        await memory.reclaim(1 << 19)
        for key in range(4):
            with pytest.raises(ra.BackendError):
                await memory.get(key)
            await memory.delete(key)
            await memory.drain()
        failing = memory.health()
        broken.error = None
        assert await memory.get(7) == b"%4096d" % 7
        await memory.delete(7)
        await memory.drain()
        assert memory.health().state == "open"
    assert failing.state == "degraded"
    assert sorted(failing.degraded) == [
        "[Errno 5] swap 'Broken0' failed to forget: OSError: [Errno 5] dead",
        "[Errno 5] swap 'Broken0' failed to load: OSError: [Errno 5] dead",
    ]
    said = [record.message.split()[0] for record in caplog.records]
    assert sorted(said) == ["swapd.forget_failed", "swapd.load_failed"]


@virtual
async def test_an_actor_that_was_started_again_lately_is_named():
    async with ra.open_memory(**SPEC, policy=Buggy(2), swap=swap(store())) as memory:
        for key in range(200):
            await memory.put(key, b"%4096d" % key)
        memory.advise(0, ra.Advice.PAGEOUT)
        await memory.drain()
        assert memory.health() == ra.Health(
            "degraded",
            "kswapd crashed 2 times within the last 10 s and was started again; "
            "the last: RuntimeError('a bug in my policy')",
            (memory.health().reason,),
        )
        assert health_of(memory._machine, perf_counter() + WINDOW_S).state == "open"


class Crash:
    """A memory whose policy crashes kswapd for good."""

    async def __aenter__(self):
        self.opening = ra.open_memory(**SPEC, policy=Buggy(100), swap=swap(store()))
        return await self.opening.__aenter__()

    async def __aexit__(self, kind, error, trace):
        with pytest.raises(ra.ReclaimError, match="crashed 6 times"):
            await self.opening.__aexit__(kind, error, trace)
        return True


@virtual
async def test_a_crash_is_the_reason_for_good():
    async with Crash() as memory:
        await memory.put("key", bytes(4096))
        memory.advise("key", ra.Advice.PAGEOUT)
        await anyio.sleep(60)
    assert memory.health() == ra.Health(
        "crashed",
        "kswapd crashed 6 times within 10 s; the last: RuntimeError('a bug in my policy')",
        (),
    )


async def test_a_close_is_told_from_its_beginning_to_its_end():
    class Slow(MemoryBackend):
        gate = Gate()

        async def aclose(self):
            await self.gate.wait()

    backend = Slow()
    async with anyio.create_task_group() as tasks:
        left = anyio.Event()

        async def live():
            async with ra.open_memory(**SPEC, swap=swap(backend)) as memory:
                memories.append(memory)
                await left.wait()

        memories = []
        tasks.start_soon(live)
        while not memories:
            await anyio.sleep(0)
        left.set()
        await backend.gate.entered.wait()
        assert memories[0].health() == ra.Health("closing", "it is being closed", ())
        backend.gate.open()
    assert memories[0].health() == ra.Health("closed", "it was closed", ())


async def test_any_thread_may_ask_and_gets_what_json_takes():
    async with ra.open_memory(**SPEC, swap=swap(store())) as memory:
        asked = await to_thread.run_sync(memory.health)
    closed = await to_thread.run_sync(memory.health)
    assert (asked.state, closed.state) == ("open", "closed")
    assert json.loads(json.dumps(attrs.asdict(asked))) == {
        "state": "open",
        "reason": "",
        "degraded": [],
    }
