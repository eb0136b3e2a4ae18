"""kcompressd switched off and on, and its FIFO cut and widened, while work is in flight."""

import anyio
import pytest

import reclaimactors as ra
from reclaimactors.compressors.lz4 import Lz4
from reclaimactors.mm.batch import Reclaimer
from reclaimactors.testing import GatedCompressor, ThreadGate

virtual = pytest.mark.asyncio(loop_factories=["virtual"])
PAGE = 512
EVERYTHING = 1 << 30


def text(seed):
    return (b"value %d of the tuning, " % seed * (PAGE // 8 + 1))[:PAGE]


def open_memory(topology="kcompressd", budget=1 << 21, **compress):
    compress = {"offload": "inline", "fifo": 32, "batch": 32} | compress
    return ra.open_memory(topology, budget=budget, page_size=PAGE, swap=[], compress=compress)


def pressure(memory):
    """Put values until kswapd is wanted; return them."""
    node = memory._node
    values = {}
    while node.memcg.free >= node.marks.low:
        values[len(values)] = text(len(values))
        memory.put_nowait(len(values) - 1, text(len(values) - 1))
    memory._machine.wake_kswapd()
    return values


def all_is_there(memory, values):
    vm = memory.vmstat
    ended = sum(vm[f"reclaim_{verdict.value}"] for verdict in ra.Verdict)
    assert vm["reclaim_isolated"] == ended
    assert {key: memory.get_nowait(key) for key in values} == values
    return memory._node.check()


@pytest.mark.parametrize("topology", ["kcompressd", "kcompressd_steal", "padata_ordered"])
async def test_switched_off_kswapd_and_reclaim_compress_for_themselves(topology):
    async with open_memory(topology) as memory:
        memory.tune(kcompressd=False)
        values = pressure(memory)
        await memory.drain()
        assert await memory.reclaim(20 * PAGE) >= 20 * PAGE
        vm = memory.vmstat
        assert vm["pgsteal_kswapd"] > 0
        assert vm["pgsteal_proactive"] > 0
        assert vm["kcompressd_queued"] == vm["kcompressd_bypassed"] == 0
        assert all_is_there(memory, values)


async def test_switched_on_again_it_takes_folios_again():
    async with open_memory() as memory:
        memory.tune(kcompressd=False)
        memory.tune(kcompressd=True)
        values = pressure(memory)
        await memory.drain()
        assert memory.vmstat["kcompressd_queued"] > 0
        assert all_is_there(memory, values)


async def test_off_and_off_again_where_there_is_none_changes_nothing():
    async with open_memory("kswapd_only_inline") as memory:
        memory.tune(kcompressd=False)
        memory.tune()
        values = pressure(memory)
        await memory.drain()
        assert all_is_there(memory, values)


async def test_what_waits_when_it_is_switched_off_ends_as_it_would_have():
    gate = ThreadGate(timeout=60)
    async with open_memory(
        offload="thread", on_full="wait", compressor=GatedCompressor(Lz4(), gate)
    ) as memory:
        try:
            values = pressure(memory)
            await gate.wait_entered()
            while memory._machine.fifo.waiting_pages < 32:
                await anyio.lowlevel.checkpoint()
            queued = memory.vmstat["kcompressd_queued"]
            memory.tune(kcompressd=False)
            assert memory._machine.fifo.waiting_pages == 32
        finally:
            gate.open()
        await memory.drain()
        vm = memory.vmstat
        assert vm["kcompressd_queued"] == queued
        assert vm["reclaim_stored"] == vm["reclaim_isolated"] > queued
        assert vm["kcompressd_handed_back"] == 0
        assert all_is_there(memory, values)


async def test_a_fifo_cut_below_what_waits_drops_nothing_and_takes_nothing():
    async with open_memory(on_full="wait") as memory:
        machine = memory._machine
        machine.starter.started = True  # nobody takes anything yet
        values = pressure(memory)
        actor = machine.starter.actors["kswapd"]
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(actor)
            while machine.fifo.waiting_pages < 32:
                await anyio.lowlevel.checkpoint()
            memory.tune(fifo=4)
            for _ in range(50):
                await anyio.lowlevel.checkpoint()
            assert machine.fifo.waiting_pages == 32
            assert not machine.fifo.room(1)
            most = []
            take = machine.fifo.take

            async def watched(max_pages):
                most.append(machine.fifo.waiting_pages)
                return await take(max_pages)

            machine.fifo.take = watched
            tasks.start_soon(machine.starter.actors["kcompressd"])
            await memory.drain()
            assert max(most[2:]) <= 4
            tasks.cancel_scope.cancel()
        assert all_is_there(memory, values)


async def test_a_kswapd_that_waits_for_room_goes_on_when_the_fifo_is_widened():
    async with open_memory(on_full="wait", fifo=4) as memory:
        machine = memory._machine
        machine.starter.started = True
        pressure(memory)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(machine.starter.actors["kswapd"])
            for _ in range(50):
                await anyio.lowlevel.checkpoint()
            assert machine.fifo.waiting_pages == 4
            memory.tune(fifo=100)
            for _ in range(50):
                await anyio.lowlevel.checkpoint()
            assert 4 < machine.fifo.waiting_pages <= 100
            tasks.cancel_scope.cancel()


async def test_switching_at_any_time_loses_nothing():
    async with open_memory("padata_ordered", workers=2, fifo=8) as memory:
        values = {}
        async with anyio.create_task_group() as tasks:
            for i in range(2500):
                values[i] = text(i)
                await memory.put(i, values[i])
                if i % 50 == 0:
                    memory.tune(kcompressd=i % 100 == 0, fifo=1 + i % 64)
                if i % 400 == 0:
                    tasks.start_soon(memory.reclaim, 30 * PAGE)
        await memory.drain()
        assert memory._machine.fifo.waiting_pages == 0
        assert memory._machine.fifo.left(Reclaimer.KSWAPD) == memory._machine.fifo.limit
        assert all_is_there(memory, values)


async def test_the_depth_that_the_budget_allows_is_taken_and_no_more():
    async with open_memory() as memory:
        most = memory._machine.fifo.most
        memory.tune(fifo=most)
        pipeline, marks = memory._machine.pipeline, memory._node.marks
        assert (most + pipeline.batch_pages * pipeline.in_flight) * PAGE <= (1 << 21) // 8
        assert pipeline.max_bytes <= marks.low - marks.min
        assert memory._machine.kswapd.max_in_flight == pipeline.max_bytes
        with pytest.raises(
            ra.TopologyError, match=rf"fifo is {most + 1}; .*1 to {most} .*in flight"
        ):
            memory.tune(fifo=most + 1)
        assert memory._machine.fifo.limit == most


@pytest.mark.parametrize("fifo", [0, -1, 1.5, True, "8"])
async def test_a_depth_that_is_none_is_refused(fifo):
    async with open_memory() as memory:
        with pytest.raises(ra.TopologyError, match="fifo"):
            memory.tune(fifo=fifo)
        assert memory._machine.fifo.limit == 32


async def test_a_switch_is_true_or_false():
    async with open_memory() as memory:
        with pytest.raises(ra.TopologyError, match="kcompressd"):
            memory.tune(kcompressd=1)


@pytest.mark.parametrize("change", [{"kcompressd": True}, {"fifo": 8}])
async def test_what_the_topology_does_not_have_cannot_be_switched_on(change):
    async with open_memory("kswapd_only") as memory:
        with pytest.raises(ra.TopologyError, match="inline"):
            memory.tune(**change)


async def test_a_closed_memory_cannot_be_tuned():
    async with open_memory() as memory:
        pass
    with pytest.raises(anyio.ClosedResourceError):
        memory.tune(kcompressd=False)


# the age of what waits


@virtual
async def test_the_age_of_the_oldest_queued_page_is_a_gauge():
    async with open_memory(on_full="wait") as memory:
        machine = memory._machine
        machine.starter.started = True  # nobody takes anything
        pressure(memory)
        assert memory.usage().oldest_queued_s == 0.0
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(machine.starter.actors["kswapd"])
            await anyio.sleep(3)
            assert memory.usage().oldest_queued_s == pytest.approx(3)
            await anyio.sleep(4)
            assert memory.usage().oldest_queued_s == pytest.approx(7)
            (oldest,) = await machine.fifo.take(1)
            machine.handover.hand_back(oldest)
            await anyio.sleep(2)
            assert memory.usage().oldest_queued_s == pytest.approx(2)
            tasks.cancel_scope.cancel()
    assert memory.usage().oldest_queued_s == 0.0
