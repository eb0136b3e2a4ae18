"""Proactive reclaim and the FIFO: its share, its account, its order, and that it always ends."""

import anyio
import anyio.lowlevel
import pytest

import reclaimactors as ra
from reclaimactors.actors.gates import enqueue, gate_of
from reclaimactors.actors.kcompressd import KcompressdActor
from reclaimactors.callers.reclaim import Proactive
from reclaimactors.compressors.lz4 import Lz4
from reclaimactors.cpu import clock
from reclaimactors.cpu.rates import Rates
from reclaimactors.mm.batch import SWAP_CLUSTER_MAX, Reclaimer
from reclaimactors.mm.folio import ZSWAP
from reclaimactors.mm.page_io import Gate
from reclaimactors.offload.process import WorkerDied
from reclaimactors.testing import Gate as StoreGate
from reclaimactors.testing import GatedCompressor, ThreadGate

virtual = pytest.mark.asyncio(loop_factories=["virtual"])
EVERYTHING = 1 << 30


def put_many(kit, memory, nr, make=None, size=None):
    for i in range(nr):
        memory.put_nowait(i, (make or kit.text)(i, size or kit.page))


class Answer:
    """What a call beside the test came to."""

    value = None

    async def of(self, call, *args):
        self.value = await call(*args)


# the worker compresses


async def test_reclaim_is_compressed_by_the_worker_and_returns_what_was_freed(kit):
    async with ra.open_memory(**kit.spec(fifo=64)) as memory:
        put_many(kit, memory, 400)
        before = memory.usage().free
        freed = await memory.reclaim(50 * kit.page)
        vm = memory.vmstat
        assert 50 * kit.page <= freed == memory.usage().free - before
        assert freed < 120 * kit.page, "far more than was asked for"
        assert vm["kcompressd_queued"] == vm["pgscan_proactive"] == vm["pgsteal_proactive"] > 0
        assert vm["kcompressd_bypassed"] == 0
        assert memory.usage().in_flight == 0


@pytest.mark.parametrize("topology", ["kswapd_only", "kcompressd", "padata", "padata_ordered"])
async def test_with_workers_or_without_the_pool_holds_the_same_bytes(kit, topology):
    async def blobs(name):
        async with ra.open_memory(name, **kit.spec(fifo=64, offload="inline")) as memory:
            for i in range(200):
                memory.put_nowait(i, [kit.text, kit.noise][i % 2](i, 100 + 37 * i % 2000))
            freed = await memory.reclaim(EVERYTHING)
            mm = memory._node.mm
            return freed, {i: (mm.state[pfn], mm.data.get(pfn)) for i, pfn in memory._small.items()}

    assert await blobs(topology) == await blobs("kswapd_only_inline")


async def test_what_is_not_worth_a_hop_is_compressed_in_the_caller(kit):
    async with ra.open_memory("padata", **kit.spec(fifo=64)) as memory:
        put_many(kit, memory, 40)
        assert await memory.reclaim(kit.page // 8) >= kit.page // 8
        vm = memory.vmstat
        assert (vm["kcompressd_queued"], vm["kcompressd_bypassed"]) == (0, vm["pgscan_proactive"])
        assert not memory._machine.background.awake


@pytest.mark.parametrize("narrow", [{"fifo": 1}, {"fifo": 16}, {"batch": 1, "in_flight": 2}])
async def test_where_few_pages_may_be_on_their_way_the_caller_compresses(kit, narrow):
    """Each few would pay for a whole round: beside a busy program, one a millisecond."""
    async with ra.open_memory(**kit.spec(**narrow) | {"budget": "16MiB"}) as memory:
        put_many(kit, memory, 400)
        freed = await memory.reclaim(200 * kit.page)
        vm = memory.vmstat
        assert freed >= 200 * kit.page
        assert vm["kcompressd_queued"] == 0
        assert vm["kcompressd_bypassed"] == vm["pgsteal_proactive"] > 200


@pytest.mark.parametrize("narrow", [{"fifo": 16}, {"batch": 1, "in_flight": 2}])
async def test_what_takes_the_loop_too_long_goes_to_the_worker_few_pages_at_a_time(
    kit, monkeypatch, narrow
):
    monkeypatch.setattr(Rates, "too_slow_to_compress", lambda *_: True)
    async with ra.open_memory(**kit.spec(**narrow) | {"budget": "16MiB"}) as memory:
        put_many(kit, memory, 400)
        assert await memory.reclaim(100 * kit.page) >= 100 * kit.page
        assert memory.vmstat["kcompressd_queued"] >= 100 - SWAP_CLUSTER_MAX
        assert memory.vmstat["kcompressd_bypassed"] < SWAP_CLUSTER_MAX  # the end of the call


async def test_two_calls_at_once_each_return_their_own(kit):
    async with ra.open_memory(**kit.spec(fifo=64)) as memory:
        put_many(kit, memory, 800)
        before = memory.usage().free
        one, two = Answer(), Answer()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(one.of, memory.reclaim, 40 * kit.page)
            tasks.start_soon(two.of, memory.reclaim, 80 * kit.page)
        assert one.value >= 40 * kit.page
        assert two.value >= 80 * kit.page
        assert one.value + two.value == memory.usage().free - before


async def test_clean_folios_count_for_the_call_that_drops_them(kit):
    swap = [{"backend": "file", "size": "4MiB"}]
    async with ra.open_memory(**kit.spec(fifo=64) | {"swap": swap}) as memory:
        put_many(kit, memory, 40, kit.noise)
        assert await memory.reclaim(EVERYTHING) == 40 * kit.page
        for i in range(40):
            await memory.get(i)
        assert memory.vmstat["nr_swapcached"] == 40
        assert await memory.reclaim(EVERYTHING) == 40 * kit.page
        assert memory.vmstat["kcompressd_queued"] == 40, "only the first time"


@virtual
async def test_it_ends_where_its_share_of_the_fifo_is_less_than_a_page(kit):
    async with ra.open_memory(**kit.spec(fifo=16, offload="thread")) as memory:
        memory.tune(fifo=1)
        put_many(kit, memory, 40)
        with anyio.fail_after(60):
            assert await memory.reclaim(EVERYTHING) > 0
        assert memory._node.nr_resident == 0


# its share


async def test_it_fills_its_share_of_the_fifo_and_leaves_the_rest_to_kswapd(
    kit, machine_of, running
):
    machine = await machine_of(fifo=64)
    machine.starter.started = True
    kit.fill(machine)
    async with running() as tasks:
        tasks.start_soon(Proactive(machine, EVERYTHING).run)
        await kit.settle()
        assert machine.fifo.waiting_pages == machine.fifo.left(Reclaimer.KSWAPD) == 32
        assert machine.fifo.left(Reclaimer.PROACTIVE) == 0
        kswapds = machine.swapout.isolate(
            32, EVERYTHING, Reclaimer.KSWAPD, machine.background.stream
        )
        assert gate_of(machine, machine.node.root, kswapds.admitted_as, 1) is Gate.QUEUED
        assert enqueue(machine, kswapds) is None
        assert machine.fifo.waiting_pages == 64
    for batch in machine.fifo.drain():
        machine.handover.hand_back(batch)
    assert machine.node.check()


async def test_in_one_turn_of_the_loop_it_sends_as_many_clusters_as_there_is_room_for(
    kit, machine_of, running, monkeypatch
):
    monkeypatch.setattr(clock, "perf_counter", lambda: 1.0)  # no work takes any time
    machine = await machine_of(fifo=200)
    machine.starter.started = True
    kit.fill(machine)
    async with running() as tasks:
        tasks.start_soon(Proactive(machine, EVERYTHING).run)
        await anyio.lowlevel.checkpoint()
        assert machine.fifo.waiting_pages == 3 * SWAP_CLUSTER_MAX
        assert machine.fifo.left(Reclaimer.PROACTIVE) < SWAP_CLUSTER_MAX
    for batch in machine.fifo.drain():
        machine.handover.hand_back(batch)


async def test_what_is_taken_from_the_fifo_gives_the_share_back(kit, machine_of, running):
    machine = await machine_of(fifo=64)
    machine.starter.started = True
    kit.fill(machine)
    async with running() as tasks:
        tasks.start_soon(Proactive(machine, EVERYTHING).run)
        await kit.settle()
        (batch,) = await machine.fifo.take(1)
        assert machine.fifo.left(Reclaimer.PROACTIVE) == 32
        machine.handover.hand_back(batch)
        await kit.settle()
        assert machine.fifo.left(Reclaimer.PROACTIVE) == 0


async def test_where_kswapd_has_filled_the_fifo_the_caller_compresses(kit, machine_of):
    machine = await machine_of(fifo=32)
    machine.starter.started = True
    kit.fill(machine)
    kswapds = machine.swapout.isolate(32, EVERYTHING, Reclaimer.KSWAPD, machine.background.stream)
    while kswapds is not None:
        kswapds = enqueue(machine, kswapds)
    assert await Proactive(machine, 10 * kit.page).run() >= 10 * kit.page
    vm = machine.node.vmstat
    assert vm["kcompressd_bypassed"] == vm["pgsteal_proactive"] > 0
    assert vm["kcompressd_queued"] == 32
    assert machine.node.check()


async def test_who_finds_the_fifo_full_gives_way_to_the_lane_that_takes_from_it(
    kit, machine_of, running, monkeypatch
):
    monkeypatch.setattr(clock, "perf_counter", lambda: 1.0)  # no slice is ever used up
    machine = await machine_of(fifo=32)
    machine.starter.started = True
    kit.fill(machine)
    kswapds = machine.swapout.isolate(32, EVERYTHING, Reclaimer.KSWAPD, machine.background.stream)
    while kswapds is not None:
        kswapds = enqueue(machine, kswapds)
    machine.fifo.takers += 1  # a lane whose turn has yet to come
    answer = Answer()
    async with running() as tasks:
        tasks.start_soon(answer.of, Proactive(machine, 10 * kit.page).run)
        await kit.settle()
        assert answer.value is None
        machine.fifo.takers -= 1  # it has gone elsewhere
        await kit.settle()
        assert answer.value is not None
        assert answer.value >= 10 * kit.page


async def test_a_folio_larger_than_the_share_still_goes(kit):
    async with ra.open_memory(**kit.spec(fifo=16)) as memory:
        put_many(kit, memory, 6, size=60 * kit.page)
        assert await memory.reclaim(EVERYTHING) > 0
        assert {memory._node.mm.state[pfn] for pfn in memory._small.values()} == {ZSWAP}


async def test_what_kswapd_does_for_pageout_takes_kswapds_share(kit, machine_of):
    machine = await machine_of(fifo=64)
    batch = None
    kit.fill(machine)
    batch = machine.swapout.isolate(4, EVERYTHING, Reclaimer.PROACTIVE, machine.background.stream)
    assert batch.admitted_as is Reclaimer.KSWAPD
    machine.handover.hand_back(batch)


# order


async def test_each_call_has_an_order_of_its_own(kit, machine_of, running):
    """kswapd's slow head of the line holds its own verdicts up, not those of the caller."""
    machine = await machine_of(topology="padata", ordered=True, workers=2, on_full="wait", fifo=64)
    machine.starter.started = True
    machine.pipeline.batch_pages = 4
    kit.fill(machine)
    steered = kit.steer(machine)
    steered.gates[1] = anyio.Event()
    kswapds = []
    for _ in range(2):
        batch = machine.swapout.isolate(4, EVERYTHING, Reclaimer.KSWAPD, machine.background.stream)
        kswapds += batch.pfns
        enqueue(machine, batch)
    mine = Answer()
    state = machine.node.mm.state
    async with running() as tasks:
        tasks.start_soon(KcompressdActor(machine).run)
        tasks.start_soon(mine.of, Proactive(machine, 8 * kit.page).run)
        await kit.settle(300)
        assert mine.value >= 8 * kit.page
        assert ZSWAP not in {state[pfn] for pfn in kswapds}, "the second is done, not in turn"
        steered.gates[1].set()
        await kit.settle()
        assert {state[pfn] for pfn in kswapds} == {ZSWAP}
    assert machine.node.check()


# it ends


async def test_a_worker_that_always_dies_ends_a_call_with_what_was_freed(kit):
    async with ra.open_memory(**kit.spec(fifo=64)) as memory:
        put_many(kit, memory, 200)
        kit.steer(memory._machine).error = WorkerDied("as told")
        with anyio.fail_after(20):
            assert await memory.reclaim(EVERYTHING) == 0
        vm = memory.vmstat
        assert vm["reclaim_keep"] == vm["reclaim_isolated"] > 0
        assert (
            vm["reclaim_isolated"] <= 2 * 200 + 512 + 4 * 32
        )  # twice as many as there are, and more
        assert memory._node.check()


async def test_values_that_nothing_can_free_end_a_call(kit):
    async with ra.open_memory(**kit.spec(fifo=64)) as memory:
        put_many(kit, memory, 300, kit.noise)
        with anyio.fail_after(20):
            assert await memory.reclaim(EVERYTHING) == 0
        assert memory.vmstat["reclaim_isolated"] == 300  # each once


@virtual
async def test_a_store_that_hangs_ends_a_call_after_its_timeout(kit):
    store = kit.store(store_gate=StoreGate())
    swap = [{"backend": store, "size": "4MiB", "timeout": 5.0}]
    async with ra.open_memory(**kit.spec(fifo=64) | {"swap": swap}) as memory:
        put_many(kit, memory, 20, kit.noise)
        started = anyio.current_time()
        assert await memory.reclaim(EVERYTHING) == 0
        assert 5 <= anyio.current_time() - started <= 5 * 20
        assert memory._node.check()


@virtual
async def test_it_waits_without_work_for_a_store_that_was_asked_to_take_what_is_compressed(kit):
    store = kit.store()
    swap = [{"backend": store, "size": "4MiB", "timeout": 5.0}]
    async with ra.open_memory(**kit.spec(fifo=64) | {"swap": swap}) as memory:
        put_many(kit, memory, 200)
        await memory.reclaim(EVERYTHING)
        node, machine = memory._node, memory._machine
        assert node.nr_resident == 0
        store.store_gate = StoreGate()
        node.writeback.want(50 * kit.page)  # as a put does that lacks so much
        await store.store_gate.entered.wait()
        rounds, reclaim_inline = [], machine.reclaim_inline

        def count(*args, **kwargs):
            rounds.append(anyio.current_time())
            assert len(rounds) < 100, "it looks again and again, and time does not pass"
            return reclaim_inline(*args, **kwargs)

        machine.reclaim_inline = count
        assert await memory.reclaim(EVERYTHING) == 0
        assert anyio.current_time() >= 5
        assert node.check()


async def test_a_memory_that_closes_ends_a_call_whose_batches_wait(kit):
    gate = ThreadGate(timeout=60)
    ends = []

    async def reclaim(memory):
        try:
            await memory.reclaim(EVERYTHING)
        except anyio.ClosedResourceError:
            ends.append("closed")

    spec = kit.spec(fifo=64, offload="thread", compressor=GatedCompressor(Lz4(), gate))
    try:
        async with anyio.create_task_group() as tasks, ra.open_memory(**spec) as memory:
            put_many(kit, memory, 400)
            tasks.start_soon(reclaim, memory)
            await gate.wait_entered()
            await kit.settle()
            assert memory._machine.fifo.waiting_pages > 0
        assert ends == ["closed"]
        assert memory._node.nr_in_flight == 0
        assert memory._node.check()
    finally:
        gate.open()


async def test_a_cancelled_call_leaves_its_batches_to_the_worker(kit):
    gate = ThreadGate(timeout=60)
    spec = kit.spec(fifo=64, offload="thread", compressor=GatedCompressor(Lz4(), gate))
    async with ra.open_memory(**spec) as memory:
        try:
            put_many(kit, memory, 400)
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(memory.reclaim, EVERYTHING)
                await gate.wait_entered()
                tasks.cancel_scope.cancel()
            assert memory.usage().in_flight > 0
        finally:
            gate.open()
        await memory.drain()
        vm = memory.vmstat
        assert vm["reclaim_isolated"] == vm["reclaim_stored"] > 0
        assert memory._node.check()


@pytest.mark.parametrize("offload", ["inline", "thread"])
async def test_several_calls_that_can_free_nothing_do_not_keep_each_other_going(kit, offload):
    spec = kit.spec(fifo=16, offload=offload) | {"budget": 256 << 10}
    async with ra.open_memory(**spec) as memory:
        put_many(kit, memory, 14, kit.noise, 32 * kit.page)
        freed = []

        async def reclaim():
            freed.append(await memory.reclaim(100 * kit.page))

        with anyio.fail_after(20):
            async with anyio.create_task_group() as tasks:
                for _ in range(3):
                    tasks.start_soon(reclaim)
        assert freed == [0, 0, 0]
        assert memory._node.check()


@pytest.mark.parametrize("topology", ["kcompressd", "padata_ordered"])
async def test_calls_that_find_nothing_to_free_do_not_keep_each_other_or_a_put_waiting(
    kit, topology
):
    spec = kit.spec(fifo=8, offload="thread") | {"swap": []}
    async with ra.open_memory(topology, **spec) as memory:
        node = memory._node

        async def put_until(room):
            while node.memcg.free > room:
                await memory.put(object(), kit.noise(len(memory), 2 * kit.page))

        await put_until(node.marks.high + 4 * kit.page)
        with anyio.fail_after(60):
            async with anyio.create_task_group() as tasks:
                for _ in range(4):
                    tasks.start_soon(memory.reclaim, EVERYTHING)
                with pytest.raises(ra.OutOfMemory):
                    await put_until(0)
        assert node.check()


# small windows


async def test_room_that_opens_by_a_page_is_not_filled_while_others_are_on_their_way(kit):
    async with ra.open_memory(**kit.spec(fifo=64)) as memory:
        machine = memory._machine
        machine.starter.started = True  # nobody takes anything
        put_many(kit, memory, 200)
        call = Proactive(machine, EVERYTHING)
        assert call._queue()  # nothing of it is on its way: a page would do
        least = machine.fifo.least(Reclaimer.PROACTIVE)
        assert 1 < least <= 16
        machine.fifo.left = lambda who: least - 1
        assert not call._queue()
        machine.fifo.left = lambda who: least
        assert call._queue()
        call._nbytes = call._mine.in_flight + 1  # a byte more than is on its way
        machine.node.root.gain = 1.0
        assert not call._queue()
