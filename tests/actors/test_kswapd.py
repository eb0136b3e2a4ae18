"""kswapd as an actor: who compresses what it isolates, and the three rules for a full FIFO."""

import anyio
import pytest

import reclaimactors as ra
from reclaimactors.actors.kcompressd import KcompressdActor
from reclaimactors.actors.kswapd import KswapdActor
from reclaimactors.mm.folio import RESIDENT, WRITEBACK, ZSWAP
from reclaimactors.mm.vmscan import DEF_PRIORITY, Step
from reclaimactors.offload.process import WorkerDied

virtual = pytest.mark.asyncio(loop_factories=["virtual"])


def isolate(machine):
    """Return a kswapd that has isolated one cluster."""
    actor = KswapdActor(machine)
    assert actor.step() is Step.ISOLATE
    return actor


def states(machine, pfns):
    return {machine.node.mm.state[pfn] for pfn in pfns}


# the FIFO


async def test_a_cluster_that_fits_is_queued_as_one_batch(kit, machine_of):
    machine = await machine_of(fifo=64)
    kit.fill(machine)
    await isolate(machine).route()
    assert machine.fifo.waiting_pages == 32
    assert machine.node.vmstat["kcompressd_queued"] == 32
    assert machine.node.check()


async def test_nothing_is_compressed_by_queueing(kit, machine_of):
    machine = await machine_of(fifo=64)
    kit.fill(machine)
    await isolate(machine).route()
    assert machine.node.vmstat["pgsteal_anon"] == machine.node.vmstat["zswpout"] == 0


async def test_a_folio_larger_than_the_fifo_enters_when_it_is_empty(kit, machine_of):
    machine = await machine_of(fifo=16)
    kit.fill(machine, size=40 * kit.page)
    actor = isolate(machine)
    await actor.route()
    assert machine.fifo.waiting_pages == 40
    assert not machine.fifo.room(1)


# the rules for a full FIFO


async def test_inline_compresses_what_finds_the_fifo_full_and_leaves_the_older_waiting(
    kit, machine_of
):
    machine = await machine_of(fifo=16, on_full="inline")
    kit.fill(machine)
    actor = isolate(machine)
    oldest, newest = actor._batch.pfns[:16], actor._batch.pfns[16:]
    await actor.route()
    assert states(machine, oldest) == {WRITEBACK}
    assert states(machine, newest) == {ZSWAP}
    assert machine.node.vmstat["kcompressd_inline"] == 16
    assert machine.node.check()


@pytest.mark.parametrize("rule", ["inline", "steal_oldest"])
@pytest.mark.parametrize("why", ["free memory is at low", "verdicts wait for the loop"])
async def test_the_rules_are_for_workers_that_are_too_slow(why, rule, kit, machine_of, running):
    machine = await machine_of(fifo=16, on_full=rule)
    nr = kit.fill(machine)
    actor = isolate(machine)
    pfns = list(actor._batch.pfns)
    if why == "free memory is at low":
        machine.node.values.delete(("fill", nr - 1))
    else:
        machine.cpu.share.waiting = 1
    async with running() as tasks:
        tasks.start_soon(actor.route)
        await kit.settle()
        assert states(machine, pfns) == {WRITEBACK}
        assert machine.fifo.waiting_pages == 16
    actor._hand_back()
    vmstat = machine.node.vmstat
    assert vmstat["kcompressd_inline"] == vmstat["kcompressd_stolen"] == 0


@virtual
async def test_wait_does_not_wait_for_a_worker_that_stands_still(kit, machine_of):
    machine = await machine_of(fifo=16, on_full="wait")
    steered = kit.steer(machine)
    kit.fill(machine)
    actor = isolate(machine)
    oldest, newest = actor._batch.pfns[:16], actor._batch.pfns[16:]
    with anyio.fail_after(60):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(actor.route)
            await kit.settle()
            assert states(machine, oldest + newest) == {WRITEBACK}
            steered.late = True
    assert states(machine, oldest) == {WRITEBACK}
    assert states(machine, newest) == {ZSWAP}
    assert machine.node.check()


async def test_steal_oldest_compresses_the_oldest_and_queues_the_newest(kit, machine_of):
    machine = await machine_of(fifo=16, on_full="steal_oldest")
    kit.fill(machine)
    actor = isolate(machine)
    oldest, newest = actor._batch.pfns[:16], actor._batch.pfns[16:]
    await actor.route()
    assert states(machine, oldest) == {ZSWAP}
    assert states(machine, newest) == {WRITEBACK}
    assert machine.node.vmstat["kcompressd_stolen"] == 16
    assert machine.node.vmstat["kcompressd_inline"] == 0
    assert machine.node.check()


async def test_wait_compresses_nothing_and_goes_on_when_there_is_room(kit, machine_of, running):
    machine = await machine_of(fifo=16, on_full="wait")
    kit.fill(machine)
    actor = isolate(machine)
    pfns = list(actor._batch.pfns)
    async with running() as tasks:
        tasks.start_soon(actor.route)
        await kit.settle()
        assert states(machine, pfns) == {WRITEBACK}
        assert machine.fifo.waiting_pages == 16
        for batch in await machine.fifo.take(128):
            machine.handover.hand_back(batch)
        await kit.settle()
        assert machine.fifo.waiting_pages == 16
        assert actor._batch is None
    vm = machine.node.vmstat
    assert (vm["kcompressd_inline"], vm["kcompressd_stolen"], vm["kcompressd_queued"]) == (0, 0, 32)


@pytest.mark.parametrize("rule", ["inline", "steal_oldest"])
async def test_what_would_hold_the_loop_too_long_is_left_to_a_worker(
    kit, machine_of, running, rule
):
    machine = await machine_of(fifo=16, on_full=rule, offload="thread")
    kit.fill(machine)
    machine.cpu.rates.compress = 1.0  # a byte a second
    steered = kit.steer(machine)
    actor = isolate(machine)
    async with running() as tasks:
        tasks.start_soon(actor.route)
        await kit.settle()
        vm = machine.node.vmstat
        assert vm["kcompressd_inline"] == 0
        assert (vm["kcompressd_stolen"] > 0) == (rule == "steal_oldest")
    # stealing has the worker compress what was taken back; inline waits for room
    assert steered.started == (1 if rule == "steal_oldest" else 0)
    actor._hand_back()


# mode inline: kswapd has its batch compressed and waits for it


async def test_without_kcompressd_a_cluster_is_compressed_before_kswapd_goes_on(kit, machine_of):
    machine = await machine_of(topology="kswapd_only")
    kit.fill(machine)
    actor = isolate(machine)
    pfns = list(actor._batch.pfns)
    await actor.route()
    assert states(machine, pfns) == {ZSWAP}
    assert machine.fifo.waiting_pages == 0


async def test_without_compression_nothing_is_queued(kit, machine_of):
    machine = await machine_of()
    machine.node.zswap.enabled = False
    kit.fill(machine)
    actor = isolate(machine)
    await actor.route()
    assert machine.node.vmstat["kcompressd_queued"] == 0
    assert machine.node.vmstat["reclaim_activate"] == 32


async def test_a_worker_that_dies_with_kswapds_batch_hands_it_back(kit, machine_of):
    machine = await machine_of(topology="kswapd_only")
    kit.fill(machine)
    kit.steer(machine).error = WorkerDied("as told")
    actor = isolate(machine)
    pfns = list(actor._batch.pfns)
    await actor.route()
    assert states(machine, pfns) == {RESIDENT}
    assert machine.node.vmstat["reclaim_keep"] == 32
    assert machine.node.check()


async def test_a_kswapd_cancelled_while_it_waits_hands_its_batch_back(kit, machine_of, running):
    machine = await machine_of(topology="kswapd_only")
    kit.fill(machine)
    kit.steer(machine).gates[1] = anyio.Event()
    actor = isolate(machine)
    pfns = list(actor._batch.pfns)
    async with running() as tasks:
        tasks.start_soon(actor.route)
        await kit.settle()
        assert states(machine, pfns) == {WRITEBACK}
    assert states(machine, pfns) == {RESIDENT}
    assert machine.node.check()


async def test_a_kswapd_that_crashes_with_a_batch_in_its_hands_hands_it_back(
    kit, machine_of, running, monkeypatch
):
    machine = await machine_of()
    kit.fill(machine)

    def room(pages, who):
        raise ValueError("as told")

    monkeypatch.setattr(machine.fifo, "room", room)
    machine.wake_kswapd()
    with pytest.raises(ValueError, match="as told"):
        await KswapdActor(machine).run()
    assert machine.node.nr_in_flight == 0
    assert machine.node.check()


@virtual
async def test_a_drain_waits_for_a_kswapd_that_has_crashed_to_come_back(kit, monkeypatch):
    async with ra.open_memory(**kit.spec()) as memory:
        machine = memory._machine
        right, left = machine.fifo.room, [1]

        def room(pages, who):
            if left:
                left.pop()
                raise ValueError("as told")
            return right(pages, who)

        monkeypatch.setattr(machine.fifo, "room", room)
        kit.fill(machine)
        machine.wake_kswapd()
        await memory.drain()
        assert memory.vmstat["actor_restarts"] == 1
        assert memory.usage().free >= machine.node.marks.high
        assert memory.usage().in_flight == 0


@virtual
async def test_a_kswapd_that_comes_back_to_nothing_keeps_nobody_waiting(kit, monkeypatch):
    async with ra.open_memory(**kit.spec()) as memory:
        machine = memory._machine

        def room(pages, who):
            raise ValueError("as told")

        monkeypatch.setattr(machine.fifo, "room", room)
        kit.fill(machine)
        machine.wake_kswapd()
        await kit.settle()
        assert memory.vmstat["actor_restarts"] == 1
        assert machine.background.awake
        for key in memory.keys():  # noqa: SIM118 - a Memory is no dict
            await memory.delete(key)
        await memory.drain()
        assert not machine.background.awake


# the whole stay awake


async def test_kswapd_balances_the_node_and_sleeps(kit, machine_of):
    machine = await machine_of(topology="kswapd_only")
    kit.fill(machine)
    machine.background.awake = True
    await KswapdActor(machine).balance()
    assert machine.node.memcg.free >= machine.node.marks.high
    assert not machine.background.awake


async def test_the_policy_ages_once_a_pass(kit, machine_of, monkeypatch):
    machine = await machine_of(topology="kswapd_only")
    kit.fill(machine, kit.noise)
    aged = []
    monkeypatch.setattr(type(machine.node.root.policy), "age", lambda self, now: aged.append(now))
    await KswapdActor(machine).balance()
    # the last pass of all only finds the node hopeless
    assert machine.kswapd.hopeless
    assert len(aged) == machine.kswapd.passes


async def test_wake_ups_coalesce(kit, machine_of):
    machine = await machine_of()
    kit.fill(machine)
    for _ in range(5):
        machine.wake_kswapd()
    await machine.background.woken()
    assert machine.background._wakeups.statistics().current_buffer_used == 0


# a slow worker


class SlowWorker:
    """kswapd and kcompressd at work; each batch waits until the test lets it through."""

    def __init__(self, kit, machine, tasks):
        self._kit = kit
        self._steered = kit.steer(machine)
        self._steered.gates = {number: anyio.Event() for number in range(1, 5000)}
        self._let_through = 0
        self.trace = []  # kswapd's priority at each step
        core, ask = machine.kswapd, machine.kswapd.next

        def traced():
            step = ask()
            self.trace.append(core.priority)
            return step

        core.next = traced
        tasks.start_soon(KcompressdActor(machine).run)
        tasks.start_soon(KswapdActor(machine).run)

    async def work(self):
        """Let one batch through and everybody do what they can then; return whether there was."""
        await self._kit.settle(10)
        if self._let_through == self._steered.started:
            return False
        self._let_through += 1
        self._steered.gates[self._let_through].set()
        await self._kit.settle(10)
        return True


async def test_the_priority_stays_while_a_slow_worker_gets_on(kit, machine_of, running):
    machine = await machine_of(fifo=64, on_full="wait")
    kit.fill(machine)
    async with running() as tasks:
        worker = SlowWorker(kit, machine, tasks)
        nr = 0
        while await worker.work():
            nr += 1
        assert nr > 2
        assert set(worker.trace) == {DEF_PRIORITY}
        assert machine.node.memcg.free >= machine.node.marks.high
        assert not machine.background.awake


async def test_hopeless_comes_with_the_last_verdict_of_a_slow_worker_and_goes_with_room(
    kit, machine_of, running
):
    machine = await machine_of(fifo=128, batch=128, on_full="wait")
    core = machine.kswapd
    nr = kit.fill(machine, kit.noise, size=4 * kit.page)
    async with running() as tasks:
        worker = SlowWorker(kit, machine, tasks)
        await kit.settle()
        assert set(worker.trace) == {DEF_PRIORITY}  # nothing is known yet
        while not core.hopeless:
            assert machine.background.awake
            assert await worker.work()
        assert not machine.background.awake
        assert machine.node.vmstat["reclaim_isolated"] == nr  # each was looked at once
        machine.wake_kswapd()
        await kit.settle()
        assert not machine.background.awake
        for key in range(nr):
            if machine.node.memcg.free < machine.node.marks.high:
                assert core.hopeless
                machine.node.values.delete(("fill", key))
        worker.trace.clear()
        kit.fill(machine)
        assert not core.hopeless
        machine.wake_kswapd()
        while await worker.work():
            pass
        assert worker.trace
        assert machine.node.check()
