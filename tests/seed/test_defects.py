"""One test for each defect of the seed and its relatives that must not come back here.

The numbers are those of the table in README.md beside this file, which also says what the kernel
does and where D19 will be.
"""

import random
import threading
from contextlib import asynccontextmanager

import anyio
import pytest
from anyio.lowlevel import checkpoint

import reclaimactors as ra
from reclaimactors.actors.gates import gate_of
from reclaimactors.actors.kcompressd import KcompressdActor
from reclaimactors.actors.kswapd import KswapdActor
from reclaimactors.callers.admission import Admission
from reclaimactors.callers.level import Level
from reclaimactors.compressors.lz4 import Lz4
from reclaimactors.mm.batch import Reclaimer
from reclaimactors.mm.folio import RESIDENT, WRITEBACK, ZSWAP
from reclaimactors.mm.page_io import Gate, squeeze
from reclaimactors.mm.vmscan import DEF_PRIORITY, Step
from reclaimactors.offload.thread import ThreadOffload
from reclaimactors.testing import GatedCompressor, ThreadGate

virtual = pytest.mark.asyncio(loop_factories=["virtual"])
PAGE = 512
BUDGET = 1 << 20


def text(seed, size=PAGE):
    return (b"value %d of the seed, " % seed * (size // 8 + 1))[:size]


def noise(seed, size=PAGE):
    return random.Random(seed).randbytes(size)


def open_memory(topology="kcompressd", *, swap=(), **compress):
    return ra.open_memory(
        topology,
        budget=BUDGET,
        page_size=PAGE,
        max_folio=64 * PAGE,
        swap=list(swap),
        compress={"offload": "inline", "fifo": 16, "batch": 32} | compress,
    )


@asynccontextmanager
async def driven(topology="kcompressd", **compress):
    """Open a memory whose actors do not start: the test drives its machine."""
    async with open_memory(topology, **compress) as memory:
        machine = memory._machine
        machine.starter.started = True
        machine.cpu.rates.compress = 1e15
        yield machine


@asynccontextmanager
async def slow(**compress):
    """Open a memory whose worker thread is stuck with its first batch."""
    gate = ThreadGate(timeout=60)
    try:
        async with open_memory(
            offload="thread", compressor=GatedCompressor(Lz4(), gate), **compress
        ) as memory:
            yield memory, gate
    finally:
        gate.open()


def fill(machine, make=text, *, size=PAGE, free=None):
    """Put values until free memory is below *low*, or so much is free; return how many."""
    node, nr = machine.node, 0
    while node.memcg.free >= (node.marks.low if free is None else free):
        node.values.commit(nr, [make(nr, size)], 0)
        nr += 1
    return nr


async def settle():
    for _ in range(60):
        await checkpoint()


def states(machine, pfns):
    return {machine.node.mm.state[pfn] for pfn in pfns}


async def start_slow_reclaim(memory, gate):
    """Have kswapd fill the FIFO behind a worker that is stuck; return the number of values."""
    nr = fill(memory._machine)
    memory._machine.wake_kswapd()
    await gate.wait_entered()
    await settle()
    return nr


@virtual
async def test_d01_stop_wakes_an_idle_worker():
    started = anyio.current_time()
    async with open_memory(swap=[{"backend": "memory"}]) as memory:
        memory._machine.starter.start()
        await settle()
    assert anyio.current_time() == started  # nobody had to be waited for


async def test_d02_stop_with_items_queued_strands_no_folio():
    async with slow(on_full="wait") as (memory, gate):
        nr = await start_slow_reclaim(memory, gate)
        assert memory._machine.fifo.waiting_pages
        pfns = list(memory._node.values.small.values())
    assert memory._node.nr_in_flight == memory._machine.fifo.waiting_pages == 0
    assert states(memory._machine, pfns) == {RESIDENT}
    assert len(memory) == nr


async def test_d03_stop_in_the_middle_of_a_batch_drops_nothing_of_it():
    async with driven() as machine:
        fill(machine)
        batch = machine.swapout.isolate(8, 1 << 30, Reclaimer.KSWAPD)
        taken = list(batch.pfns)

        async def never(pages, **_):
            await anyio.sleep_forever()

        machine.offload.squeeze = never
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(KcompressdActor(machine).compress, [batch])
            await settle()
            assert states(machine, taken) == {WRITEBACK}
            tasks.cancel_scope.cancel()
        assert states(machine, taken) == {RESIDENT}
        assert machine.node.check()


async def test_d04_many_producers_share_a_queue_without_loss():
    async with open_memory("padata", workers=2) as memory:
        values = {}

        async def produce(name):
            for i in range(150):
                values[name, i] = text(hash((name, i)) % 9999)
                await memory.put((name, i), values[name, i])
                if i % 10 == 0:
                    await memory.reclaim(10 * PAGE)

        async with anyio.create_task_group() as tasks:
            for name in range(10):
                tasks.start_soon(produce, name)
        await memory.drain()
        vm = memory.vmstat
        ended = sum(vm[f"reclaim_{verdict.value}"] for verdict in ra.Verdict)
        assert vm["reclaim_isolated"] == ended
        assert {key: await memory.get(key) for key in values} == values


@pytest.mark.parametrize(
    ("rule", "oldest", "newest"),
    [("inline", WRITEBACK, ZSWAP), ("steal_oldest", ZSWAP, WRITEBACK)],
)
async def test_d05_a_full_queue_follows_its_declared_rule(rule, oldest, newest):
    async with driven(on_full=rule) as machine:
        fill(machine)
        actor = KswapdActor(machine)
        actor.step()
        pfns = list(actor._batch.pfns)
        await actor.route()
        assert states(machine, pfns[:16]) == {oldest}
        assert states(machine, pfns[16:]) == {newest}


@virtual
async def test_d05_the_age_of_the_oldest_is_known():
    async with open_memory() as memory:
        machine = memory._machine
        machine.starter.started = True  # nobody takes from the FIFO
        fill(machine)
        actor = KswapdActor(machine)
        actor.step()
        await actor.route()
        await anyio.sleep(5)
        assert memory.usage().oldest_queued_s == 5


async def test_d06_a_fault_on_a_queued_folio_never_waits_for_the_queue():
    async with slow(on_full="wait") as (memory, gate):
        nr = await start_slow_reclaim(memory, gate)
        for i in reversed(range(nr)):  # the newest first; the gate stays shut
            assert memory.get_nowait(i) == text(i)


async def test_d07_completion_frees_the_folio_without_a_second_scan():
    async with open_memory(swap=[{"backend": "memory"}]) as memory:
        fill(memory._machine)
        memory._machine.wake_kswapd()
        await memory.drain()
        vm = memory.vmstat
        assert vm["pgsteal_kswapd"] == vm["pgscan_kswapd"] > 0


@pytest.mark.parametrize("policy", ["mglru", "active_inactive"])
async def test_d08_folios_in_flight_neither_age_nor_are_promoted(policy):
    async with ra.open_memory(policy=policy, budget=BUDGET, page_size=PAGE, swap=[]) as memory:
        machine = memory._machine
        machine.starter.started = True
        fill(machine)
        batch = machine.swapout.isolate(32, 1 << 30, Reclaimer.KSWAPD)
        taken = list(batch.pfns)
        for now in range(5):
            machine.node.root.policy.age(float(now))
        machine.handover.hand_back(batch)
        assert machine.swapout.isolate(32, 1 << 30, Reclaimer.KSWAPD).pfns == taken


async def test_d09_what_is_in_flight_is_pending_progress():
    async with slow(on_full="wait") as (memory, gate):
        await start_slow_reclaim(memory, gate)
        kswapd = memory._machine.kswapd
        assert {kswapd.next() for _ in range(100)} <= {Step.WAIT, Step.ISOLATE}
        assert kswapd.priority == DEF_PRIORITY


async def test_d10_nothing_is_counted_as_written_before_it_is():
    async with driven(fifo=64) as machine:
        fill(machine)
        actor = KswapdActor(machine)
        actor.step()
        await actor.route()
        vm = machine.node.vmstat
        assert vm["kcompressd_queued"] > 0  # that has a counter of its own
        (batch,) = await machine.fifo.take(128)
        pages, _ = machine.swapout.begin(batch, hold=False)
        assert vm["zswpout"] == vm["pswpout"] == vm["nr_vmscan_write"] == 0
        machine.handover.finish(batch, squeeze(Lz4(), pages))
        assert vm["zswpout"] == len(pages)


async def test_d11_a_worker_needs_no_room_and_never_reclaims():
    async with driven() as machine:
        fill(machine, free=PAGE + 400)  # far below min
        assert machine.node.memcg.free < machine.node.marks.min
        batch = machine.swapout.isolate(8, 1 << 30, Reclaimer.KSWAPD)
        await KcompressdActor(machine).compress([batch])
        vm = machine.node.vmstat
        assert vm["reclaim_stored"] == 8
        assert vm["allocstall_normal"] == vm["pgscan_direct"] == 0
        assert machine.node.check()


async def test_d11_staging_is_fixed_from_the_start_and_no_worker_asks_for_more():
    async with open_memory(offload="process") as memory:
        machine = memory._machine
        machine.starter.start()
        with anyio.fail_after(30):
            while not memory.usage().staging:
                await anyio.sleep(0.01)
        reserve = memory.usage().staging
        fill(machine, free=PAGE + 400)  # far below min
        free = memory.usage().free
        await memory.reclaim(100 * PAGE)
        machine.wake_kswapd()
        await memory.drain()
        assert memory.usage().staging == reserve
        assert memory.usage().free > free
        assert memory.vmstat["allocstall_normal"] == memory.vmstat["pgscan_direct"] == 0


@pytest.mark.parametrize("swap", [(), ({"backend": "memory"},)])
async def test_d12_the_pools_limit_is_looked_at_again_at_execution(swap):
    async with open_memory(swap=swap) as memory:
        machine = memory._machine
        machine.starter.started = True  # the test takes from the FIFO
        nr = fill(machine)
        actor = KswapdActor(machine)
        actor.step()
        await actor.route()
        assert machine.fifo.waiting_pages == 16  # the pool took all when they were queued
        pool = machine.node.zswap
        pool.limit = pool.accept_below = pool.total - 1
        (batch,) = await machine.fifo.take(1)
        queued = list(batch.pfns)
        stored = memory.vmstat["reclaim_stored"]
        await KcompressdActor(machine).compress([batch])
        vm = memory.vmstat
        assert (vm["reclaim_stored"], vm["pool_limit_hit"]) == (stored, 16)
        if swap:
            assert machine.node.writeback.nr_writes > 0
        else:
            assert vm["reclaim_activate"] == vm["pgactivate"] == 16
            assert states(machine, queued) == {RESIDENT}
        machine.starter.started = False
        machine.starter.start()
        await memory.drain()
        assert [await memory.get(i) for i in range(nr)] == [text(i) for i in range(nr)]


async def test_d12_a_groups_permission_to_write_is_looked_at_again_at_execution():
    async with open_memory(swap=[{"backend": "file", "size": "16MiB"}]) as memory:
        machine = memory._machine
        machine.starter.started = True  # no actor runs: the test drives them
        group = memory.group("group")
        for i in range(8):
            await group.put(i, noise(i))
        batch = machine.swapout.isolate(8, 1 << 30, Reclaimer.KSWAPD, within=group._group)
        assert gate_of(machine, group._group, Reclaimer.KSWAPD, 1) is Gate.QUEUED
        await group.set_limits(zswap_writeback=False)
        await KcompressdActor(machine).compress([batch])
        vm = memory.vmstat
        assert (vm["reclaim_activate"], vm["pswpout"]) == (8, 0)
        assert group._group.nr_resident == 8
        assert gate_of(machine, group._group, Reclaimer.KSWAPD, 1) is Gate.NO_WRITEBACK
        assert gate_of(machine, machine.node.root, Reclaimer.KSWAPD, 1) is Gate.QUEUED


async def test_d13_a_verdict_of_the_worker_reaches_the_lists():
    async with driven() as machine:
        nr = fill(machine, noise)
        seen = set()
        for _ in range(nr // 32 // 2):  # half of all: none of them twice
            batch = machine.swapout.isolate(32, 1 << 30, Reclaimer.KSWAPD)
            assert seen.isdisjoint(batch.pfns)
            seen.update(batch.pfns)
            await KcompressdActor(machine).compress([batch])
        vm = machine.node.vmstat
        assert vm["reclaim_activate"] == vm["unevictable_pgs_culled"] == len(seen)


async def test_d14_each_class_of_producers_has_a_declared_share_of_the_queue():
    async with slow(fifo=64, on_full="wait") as (memory, gate):
        machine = memory._machine
        for i in range(600):
            memory.put_nowait(i, text(i))
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(memory.reclaim, 1 << 30)
            await gate.wait_entered()
            await settle()
            assert machine.fifo.waiting_pages == 32  # proactive reclaim: half, and waits
            assert memory.vmstat["kcompressd_bypassed"] == 0
            fill(machine)
            machine.wake_kswapd()
            await settle()
            assert machine.fifo.waiting_pages == 64  # kswapd: all that is left
            gate.open()
            tasks.cancel_scope.cancel()


async def test_d14_direct_reclaim_never_queues():
    async with driven() as machine:
        level = Level(machine, machine.background, brake=True)
        admission = Admission(machine, machine.node.root, [level])
        fill(machine, free=machine.node.marks.min)
        reserved = await admission.reserve(lambda: 10 * PAGE)
        machine.node.memcg.unreserve(reserved)
        vm = machine.node.vmstat
        assert vm["kcompressd_bypassed"] == vm["pgscan_direct"] == vm["pgsteal_direct"] > 0
        assert vm["kcompressd_queued"] == machine.fifo.waiting_pages == 0


async def test_d15_nothing_runs_before_the_first_pressure():
    async with open_memory("padata", offload="thread", workers=2) as memory:
        for i in range(100):
            await memory.put(i, text(i))
        tasks = {task.name for task in anyio.get_running_tasks()}
        assert not any("kswapd" in (name or "") or "padata" in (name or "") for name in tasks)


async def test_d15_the_queue_can_be_switched_off():
    async with open_memory("kswapd_only") as memory:
        fill(memory._machine)
        memory._machine.wake_kswapd()
        await memory.drain()
        assert memory.vmstat["pgsteal_kswapd"] > 0
        assert memory.vmstat["kcompressd_queued"] == 0


async def test_d15_the_queue_can_be_switched_off_and_on_and_resized_at_run_time():
    async with open_memory() as memory:
        for on, depth in ((False, 8), (True, 8), (True, 40)):
            memory.tune(kcompressd=on, fifo=depth)
            before = memory.vmstat["kcompressd_queued"]
            fill(memory._machine)
            memory._machine.wake_kswapd()
            await memory.drain()
            assert (memory.vmstat["kcompressd_queued"] > before) == on
            assert memory._machine.fifo.limit == depth
            left = memory.keys()
            for key in left:
                await memory.delete(key)


async def test_d16_several_workers_compress_at_the_same_time(monkeypatch):
    # Workers that wait for each other are not late, however long that takes: the event loop, which
    # would compress in their place, would be the one who is met.
    monkeypatch.setattr(ThreadOffload, "late", False)

    class Meets(Lz4):
        """The first two workers wait in their first page until the other is there too."""

        def __init__(self):
            super().__init__()
            self.barrier = threading.Barrier(2, timeout=30)
            self.to_meet = threading.Semaphore(2)  # there may be more threads that take turns

        def compress(self, data):
            if self.to_meet.acquire(blocking=False):
                self.barrier.wait()
            return super().compress(data)

    meets = Meets()
    async with open_memory(
        "padata", workers=2, offload="thread", compressor=meets, on_full="wait"
    ) as memory:
        machine = memory._machine
        machine.pipeline.batch_pages = 1
        fill(machine)
        machine.wake_kswapd()
        await memory.drain()
        assert memory.vmstat["pgsteal_kswapd"] > 0
    assert not meets.barrier.broken


@pytest.mark.parametrize("size", [PAGE, 8 * PAGE, 64 * PAGE])
async def test_d17_what_is_in_flight_is_bounded_in_bytes(size):
    async with slow(on_full="wait") as (memory, gate):
        fill(memory._machine, size=size)
        memory._machine.wake_kswapd()
        await gate.wait_entered()
        await settle()
        assert 0 < memory.usage().in_flight < BUDGET // 8 + size


@virtual
async def test_d18_a_worker_that_fails_to_start_leaves_the_queue_to_the_next():
    async with open_memory(on_full="wait") as memory:
        machine = memory._machine
        real, calls = machine.fifo.take, []

        async def take(max_pages):
            calls.append(max_pages)
            if len(calls) <= machine.pipeline.in_flight:
                raise RuntimeError("no thread to be had")
            return await real(max_pages)

        machine.fifo.take = take
        nr = fill(machine)
        machine.wake_kswapd()
        await memory.drain()
        assert memory.vmstat["actor_restarts"] == 1
        assert memory.vmstat["pgsteal_kswapd"] > 0
        assert [memory.get_nowait(i) for i in range(nr)] == [text(i) for i in range(nr)]


async def test_d18_a_source_is_let_go_of_only_after_its_verdict():
    async with driven() as machine:
        fill(machine)
        batch = machine.swapout.isolate(1, 1 << 30, Reclaimer.KSWAPD)
        pages, _ = machine.swapout.begin(batch, hold=True)
        pfn = batch.pfns[0]
        key = next(key for key, value in machine.node.values.small.items() if value == pfn)
        machine.node.values.delete(key)
        assert machine.node.mm.data[pfn] is pages[0]  # the worker still reads it
        machine.handover.finish(batch, squeeze(Lz4(), pages))
        assert pfn not in machine.node.mm.data
        assert machine.node.check()


async def test_d19_the_cpu_of_a_worker_is_charged_to_who_caused_it():
    async with open_memory(offload="thread", batch=64) as memory:
        machine = memory._machine
        machine.starter.started = True
        shares = {memory.group("much"): 48, memory.group("little"): 16}
        batches = []
        for group, nr in shares.items():
            for i in range(nr):
                await group.put(i, noise(i))
            batches.append(
                machine.swapout.isolate(nr, 1 << 30, Reclaimer.KSWAPD, within=group._group)
            )
        await KcompressdActor(machine).compress(batches)  # as one
        usec = [group.vmstat["compress_usec"] for group in shares]
        assert sum(usec) == memory.vmstat["compress_usec"] > 0
        assert usec[0] == pytest.approx(3 * usec[1], abs=3)
