"""Close: it refuses, ends, takes back and returns, whatever hangs."""

import asyncio
import gc
import os
import tracemalloc

import anyio
import pytest
from anyio.lowlevel import checkpoint

import reclaimactors as ra
from reclaimactors.actors import malloc_trim as malloc_trim_module
from reclaimactors.backends.memory import MemoryBackend
from reclaimactors.backends.zram import ZramBackend
from reclaimactors.compressors.lz4 import Lz4
from reclaimactors.mm.batch import Reclaimer
from reclaimactors.testing import Gate, GatedCompressor, ThreadGate

virtual = pytest.mark.asyncio(loop_factories=["virtual"])


class Callers:
    """Tasks that call a memory beside the test, and how each of them ended."""

    def __init__(self):
        self.tasks = []
        self.ends = []

    def call(self, function, *arguments):
        self.tasks.append(asyncio.ensure_future(self._call(function, *arguments)))

    async def _call(self, function, *arguments):
        try:
            await function(*arguments)
        except Exception as exc:  # noqa: BLE001 - how it ended is what is asked
            self.ends.append(type(exc))
        else:
            self.ends.append(None)


@pytest.fixture
async def callers():
    callers = Callers()
    yield callers
    for task in callers.tasks:
        task.cancel()
    await asyncio.gather(*callers.tasks, return_exceptions=True)


def nothing_in_flight(memory):
    node = memory._node
    assert node.check()
    assert (node.nr_in_flight, node.writeback.nr_writes, node.memcg.in_flight) == (0, 0, 0)
    assert memory._machine.fifo.waiting_pages == 0
    return True


CLOSED = anyio.ClosedResourceError


# refusing


@pytest.mark.parametrize(
    "call",
    [
        lambda memory: memory.get("a"),
        lambda memory: memory.put("a", b"b"),
        lambda memory: memory.delete("a"),
        lambda memory: memory.reclaim(1),
        lambda memory: memory.drain(),
        lambda memory: memory.pin("a").__aenter__(),
    ],
    ids=["get", "put", "delete", "reclaim", "drain", "pin"],
)
async def test_a_closed_memory_refuses_calls(kit, call):
    async with ra.open_memory(**kit.spec()) as memory:
        await memory.put("a", b"a")
    with pytest.raises(CLOSED, match="this memory is closed"):
        await call(memory)


@pytest.mark.parametrize(
    "call",
    [
        lambda memory: memory.get_nowait("a"),
        lambda memory: memory.put_nowait("a", b"b"),
        lambda memory: memory.advise("a", ra.Advice.COLD),
        lambda memory: memory.keys(),
    ],
    ids=["get_nowait", "put_nowait", "advise", "keys"],
)
async def test_a_closed_memory_refuses_synchronous_calls(kit, call):
    async with ra.open_memory(**kit.spec()) as memory:
        await memory.put("a", b"a")
    with pytest.raises(CLOSED, match="this memory is closed"):
        call(memory)


async def test_a_closed_memory_can_be_looked_at(kit):
    async with ra.open_memory(**kit.spec()) as memory:
        await memory.put("a", b"a")
    assert "a" in memory
    assert len(memory) == 1
    assert memory.usage().resident == 1
    assert len(memory.swaps()) == len(memory._node.swap)
    assert memory.pressure().full.total == 0
    assert memory.vmstat["pgfault"] == 0


async def test_a_memory_that_never_felt_pressure_has_started_nothing(kit):
    async with ra.open_memory(**kit.spec()) as memory:
        await memory.put("a", b"a")
        assert not memory._machine.starter.started
    assert nothing_in_flight(memory)


async def test_idle_actors_end_at_once(kit):
    async with ra.open_memory(**kit.spec() | {"swap": [{"backend": kit.store()}]}) as memory:
        memory._machine.starter.start()
        await kit.settle()
    assert nothing_in_flight(memory)


async def test_the_bodys_own_error_goes_on_as_it_is(kit):
    async def live():
        async with ra.open_memory(**kit.spec()) as memory:
            memory._machine.starter.start()
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await live()


# ending those who wait


async def test_a_put_that_waits_for_room_is_told(kit, callers):
    store = kit.store(store_gate=Gate())
    spec = kit.spec() | {"swap": [{"backend": store}]}
    async with ra.open_memory(**spec) as memory:
        kit.fill(memory._machine, kit.noise, down_to=0.99)
        for i in range(3):  # the first is admitted, the others queue behind it
            callers.call(memory.put, i, kit.noise(i, 40 * kit.page))
        await kit.settle(300)
        assert callers.ends == []
    await kit.settle()
    assert callers.ends == [CLOSED] * 3
    assert nothing_in_flight(memory)


async def test_a_put_that_queues_for_its_turn_is_told_though_there_is_room_for_it(kit, callers):
    store = kit.store(store_gate=Gate())
    async with ra.open_memory(**kit.spec() | {"swap": [{"backend": store}]}) as memory:
        kit.fill(memory._machine, kit.noise, down_to=0.5)
        callers.call(memory.put, "big", kit.noise(0, 60 * kit.page))
        await kit.settle(300)
        callers.call(memory.put, "small", b"s")
        await kit.settle(300)
        assert callers.ends == []
    await kit.settle()
    assert callers.ends == [CLOSED] * 2
    assert "small" not in memory


async def test_a_put_in_the_brake_is_told(kit, callers):
    store = kit.store(store_gate=Gate())
    async with ra.open_memory(**kit.spec() | {"swap": [{"backend": store}]}) as memory:
        kit.fill(memory._machine, kit.noise, down_to=0.99)
        callers.call(memory.put, "a", kit.noise(1))
        await kit.settle(300)
        assert callers.ends == []
    await kit.settle()
    assert callers.ends == [CLOSED]
    assert nothing_in_flight(memory)


async def test_a_get_that_waits_for_a_store_is_told(kit, callers):
    store = kit.store()
    async with ra.open_memory(**kit.spec() | {"swap": [{"backend": store}]}) as memory:
        await memory.put("a", kit.noise())
        await memory.reclaim(1 << 30)
        store.load_gate = Gate()
        for _ in range(3):
            callers.call(memory.get, "a")
        await store.load_gate.entered.wait()
    await kit.settle()
    assert callers.ends == [CLOSED] * 3
    assert nothing_in_flight(memory)


async def test_gets_behind_a_full_mailbox_of_loads_are_told(kit, callers):
    store = kit.store()
    async with ra.open_memory(**kit.spec(fifo=64) | {"swap": [{"backend": store}]}) as memory:
        for i in range(400):
            await memory.put(i, kit.noise(i))
        await memory.reclaim(1 << 30)
        store.load_gate = Gate()
        for i in range(400):
            callers.call(memory.get, i)
        await kit.settle(300)
        assert memory._machine.swapds[0].loads.full
    await kit.settle()
    assert callers.ends == [CLOSED] * 400
    assert nothing_in_flight(memory)


@pytest.mark.parametrize("verb", ["drain", "reclaim"])
async def test_whoever_waits_for_reclaim_is_told(kit, callers, verb):
    store = kit.store(store_gate=Gate())
    async with ra.open_memory(**kit.spec() | {"swap": [{"backend": store}]}) as memory:
        await memory.put("a", kit.noise())
        callers.call(memory.reclaim, 1 << 30)
        await store.store_gate.entered.wait()
        callers.call(*([memory.drain] if verb == "drain" else [memory.reclaim, 1]))
        await kit.settle()
    await kit.settle()
    assert callers.ends == [CLOSED] * 2


async def test_a_pin_that_waits_is_told_and_lets_go(kit, callers):
    store = kit.store()

    async def pin(memory):
        async with memory.pin("a"):
            pass

    async with ra.open_memory(**kit.spec() | {"swap": [{"backend": store}]}) as memory:
        await memory.put("a", kit.noise())
        await memory.reclaim(1 << 30)
        store.load_gate = Gate()
        callers.call(pin, memory)
        await store.load_gate.entered.wait()
    await kit.settle()
    assert callers.ends == [CLOSED]
    assert memory._node.memcg.pinned == 0
    assert nothing_in_flight(memory)


# taking back, in bounded time


async def test_a_hanging_store_a_full_fifo_and_a_held_batch_end_with_nothing_in_flight(kit):
    gate, store = ThreadGate(timeout=60), kit.store(store_gate=Gate())
    spec = kit.spec(offload="thread", on_full="wait", compressor=GatedCompressor(Lz4(), gate))
    try:
        async with ra.open_memory(**spec | {"swap": [{"backend": store}]}) as memory:
            machine = memory._machine
            await memory.put("noise", kit.noise())
            memory._node.zswap.enabled = False
            machine.starter.start()
            machine.reclaim_inline(1, Reclaimer.DIRECT)
            await store.store_gate.entered.wait()
            memory._node.zswap.enabled = True
            kit.fill(machine, down_to=0.9)
            machine.wake_kswapd()
            await gate.wait_entered()
            await kit.settle()
            assert not machine.fifo.room(1)
            assert memory._node.writeback.nr_writes == 1
        assert nothing_in_flight(memory)
    finally:
        gate.open()


@virtual
async def test_a_store_that_hangs_in_aclose_ends_at_the_close_timeout(kit):
    class Hangs(MemoryBackend):
        async def aclose(self):
            await anyio.sleep_forever()

    started = anyio.current_time()
    async with ra.open_memory(
        **kit.spec() | {"swap": [{"backend": Hangs()}, {"backend": Hangs()}]}, close_timeout=3.0
    ):
        await checkpoint()
    assert anyio.current_time() - started == pytest.approx(3.0)


async def test_a_store_that_raises_in_aclose_does_not_keep_the_others_open(kit):
    closed = []

    class Raises(MemoryBackend):
        async def aclose(self):
            closed.append(True)
            raise OSError("as told")

    spec = kit.spec() | {"swap": [{"backend": Raises()}, {"backend": Raises()}]}
    async with ra.open_memory(**spec):
        await checkpoint()
    assert closed == [True, True]


async def test_close_writes_nothing(kit):
    store = kit.store()
    async with ra.open_memory(**kit.spec() | {"swap": [{"backend": store}]}) as memory:
        for i in range(20):
            await memory.put(i, kit.noise(i))
        memory._machine.starter.start()
    assert store.nr_stores == 0


@pytest.mark.parametrize("turns", range(0, 60, 3))
@pytest.mark.parametrize("topology", ["kcompressd", "padata_ordered", "kswapd_only"])
async def test_a_close_at_any_instant_takes_everything_back(kit, topology, turns):
    spec = kit.spec() | {"swap": [{"backend": kit.store()}]}
    async with ra.open_memory(topology, **spec) as memory:
        machine = memory._machine
        nr = kit.fill(machine, lambda i, size: (kit.noise if i % 3 else kit.text)(i, size))
        machine.wake_kswapd()
        await kit.settle(turns)
        isolated = memory.vmstat["reclaim_isolated"]
    assert nothing_in_flight(memory)
    verdicts = sum(memory.vmstat[f"reclaim_{verdict.value}"] for verdict in ra.Verdict)
    assert verdicts == memory.vmstat["reclaim_isolated"] == isolated
    assert len(memory) == nr


@virtual
async def test_a_store_that_does_not_close_in_time_is_named_in_the_log(kit, caplog):
    class Hangs(MemoryBackend):
        async def aclose(self):
            await anyio.sleep_forever()

    swap = [{"backend": Hangs()}, {"backend": MemoryBackend()}]
    async with ra.open_memory("padata", **kit.spec() | {"swap": swap}):
        await checkpoint()
    [line] = [record.getMessage() for record in caplog.records]
    assert line == "swapd.close_timed_out memory='padata' nid=0 device='Hangs0' timeout_s=5.0"


# letting go


@pytest.mark.parametrize("make", [MemoryBackend, ZramBackend, None])
async def test_a_closed_memory_holds_no_value_though_it_and_its_store_are_named(make):
    store = make() if make else "file"
    zswap = {"enabled": make is not ZramBackend, "max_pool_percent": 20}
    spec = {"budget": "8MiB", "zswap": zswap, "swap": [{"backend": store, "size": "64MiB"}]}
    size, nr = 4096, 1900
    async with ra.open_memory(**spec) as memory:
        tracemalloc.start()
        try:
            for key in range(nr):
                noise = os.urandom(size // 2 if key % 3 else size)
                await memory.put(key, noise + bytes(size - len(noise)))
            await memory.drain()
            used = memory.usage()
            held = used.resident + used.compressed
            assert held > 3 << 20
            assert memory.vmstat["pswpout"] > 0
            await memory.aclose()
            gc.collect()
            mine = tracemalloc.Filter(True, __file__)
            left = tracemalloc.take_snapshot().filter_traces([mine])
            of_values = sum(trace.size for trace in left.traces)
            total, _ = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
    assert of_values < nr * 32 + 2 * size  # the keys
    assert total < held / 2  # columns and dicts
    assert memory.usage().resident == used.resident
    assert memory._node.check()


async def test_after_the_end_the_counters_of_clean_folios_still_add_up(kit):
    swap = [{"backend": "file", "size": "4MiB"}]
    async with ra.open_memory(**kit.spec() | {"swap": swap}) as memory:
        for key in range(40):
            await memory.put(key, kit.noise(key))
        await memory.reclaim(1 << 30)
        for key in range(40):
            await memory.get(key)
        assert memory.vmstat["nr_swapcached"] == 40
    assert not memory._node.mm.data
    assert memory._node.check()


async def test_a_view_that_is_open_at_the_end_stays_valid(kit):
    async with ra.open_memory(**kit.spec()) as memory:
        for key in ("live", "deleted"):
            await memory.put(key, key.encode() * 100)
        async with memory.pin("live") as live, memory.pin("deleted") as deleted:
            await memory.delete("deleted")
            await memory.aclose()
            assert live == b"live" * 100
            assert deleted == b"deleted" * 100
    assert memory._node.check()
    assert memory._node.memcg.pinned == 0


@pytest.mark.parametrize(("nr", "times"), [(300, 1), (200, 0)])
async def test_the_heap_is_trimmed_where_it_held_a_mib(monkeypatch, nr, times):
    trims = []
    monkeypatch.setattr(malloc_trim_module, "_malloc_trim", lambda: trims.append)
    async with ra.open_memory(budget="32MiB", swap=[]) as memory:
        for key in range(nr):
            await memory.put(key, os.urandom(4096))
        assert trims == []
    assert trims == [0] * times
