"""kcompressd and padata as actors: who ends a batch, in which order, whatever happens to a lane."""

import anyio
import pytest

import reclaimactors as ra
from reclaimactors.actors import supervision
from reclaimactors.actors.kcompressd import KcompressdActor
from reclaimactors.compressors.lz4 import Lz4
from reclaimactors.mm.batch import Reclaimer
from reclaimactors.offload.process import WorkerDied
from reclaimactors.testing import Gate, GatedCompressor, ThreadGate

virtual = pytest.mark.asyncio(loop_factories=["virtual"])


def send(machine, batches, nr=4):
    """Isolate batches and put them into the FIFO, one message each; return them."""
    sent = []
    for _ in range(batches):
        batch = machine.swapout.isolate(nr, 1 << 30, Reclaimer.KSWAPD)
        machine.handover.in_turn(batch)
        machine.fifo.send_nowait(batch)
        sent.append(batch)
    return sent


@pytest.fixture
def verdicts(monkeypatch):
    """Return the function that lists the ends of a machine's batches, in order."""

    def listen(machine):
        ends = []
        complete, hand_back = machine.swapout.complete, machine.swapout.hand_back

        def completed(batch, out):
            ends.append((batch.id, "done"))
            return complete(batch, out)

        def handed_back(batch, *verdict):
            ends.append((batch.id, "back"))
            return hand_back(batch, *verdict)

        monkeypatch.setattr(machine.swapout, "complete", completed)
        monkeypatch.setattr(machine.swapout, "hand_back", handed_back)
        return ends

    return listen


async def padata(machine_of, *, ordered):
    machine = await machine_of(
        topology="padata", ordered=ordered, workers=2, on_full="inline", fifo=64
    )
    machine.pipeline.batch_pages = 1  # so that a lane takes one message at a time
    machine.pipeline.in_flight = 4  # and each message has one
    return machine


# the work of a lane


async def test_a_lane_compresses_what_waits_as_one_batch(kit, machine_of, running):
    machine = await machine_of(fifo=64)
    kit.fill(machine)
    steered = kit.steer(machine)
    send(machine, 3)
    async with running() as tasks:
        tasks.start_soon(KcompressdActor(machine).run)
        await kit.settle()
        assert steered.started == 1
        assert machine.node.vmstat["reclaim_stored"] == 12
        assert machine.node.check()


async def test_as_many_batches_are_on_their_way_as_there_are_lanes(kit, machine_of, running):
    machine = await machine_of(fifo=64)
    kit.fill(machine)
    machine.pipeline.batch_pages = 1
    steered = kit.steer(machine)
    steered.gates = {number: anyio.Event() for number in range(1, 20)}
    send(machine, machine.pipeline.in_flight + 3)
    async with running() as tasks:
        tasks.start_soon(KcompressdActor(machine).run)
        await kit.settle()
        assert steered.started == machine.pipeline.in_flight
        assert machine.fifo.waiting_pages == 3 * 4


async def test_a_lane_drops_folios_that_were_faulted_while_they_waited(kit, machine_of, running):
    machine = await machine_of(fifo=64)
    kit.fill(machine)
    (batch,) = send(machine, 1)
    machine.swapin.fault(batch.pfns[0], promote=True)
    async with running() as tasks:
        tasks.start_soon(KcompressdActor(machine).run)
        await kit.settle()
    vm = machine.node.vmstat
    assert (vm["reclaim_cancelled"], vm["reclaim_stored"]) == (1, 3)


# order


async def test_unordered_a_slow_batch_holds_nobody_up(kit, machine_of, running, verdicts):
    machine = await padata(machine_of, ordered=False)
    kit.fill(machine)
    steered = kit.steer(machine)
    steered.gates[1] = anyio.Event()
    ends = verdicts(machine)
    slow, *others = send(machine, 4)
    async with running() as tasks:
        tasks.start_soon(KcompressdActor(machine).run)
        await kit.settle()
        assert sorted(ends) == [(batch.id, "done") for batch in others]
        steered.gates[1].set()
        await kit.settle()
        assert ends[-1] == (slow.id, "done")


async def test_ordered_verdicts_come_in_the_order_of_submission(kit, machine_of, running, verdicts):
    machine = await padata(machine_of, ordered=True)
    kit.fill(machine)
    steered = kit.steer(machine)
    steered.gates[1] = anyio.Event()
    ends = verdicts(machine)
    sent = send(machine, 4)
    async with running() as tasks:
        tasks.start_soon(KcompressdActor(machine).run)
        await kit.settle()
        assert ends == []  # the head of the line blocks all that are done
        since = machine.oldest_undelivered()
        assert since is not None
        assert since <= machine.loop.now()
        steered.gates[1].set()
        await kit.settle()
    assert ends == [(batch.id, "done") for batch in sent]
    assert machine.oldest_undelivered() is None


async def test_ordered_a_handed_back_batch_ends_in_its_turn(kit, machine_of, running, verdicts):
    machine = await padata(machine_of, ordered=True)
    kit.fill(machine)
    steered = kit.steer(machine)
    steered.gates[1] = anyio.Event()
    steered.errors[2] = WorkerDied("as told")
    ends = verdicts(machine)
    first, second, third = send(machine, 3)
    async with running() as tasks:
        tasks.start_soon(KcompressdActor(machine).run)
        await kit.settle()
        assert ends == []
        steered.gates[1].set()
        await kit.settle()
    assert ends == [(first.id, "done"), (second.id, "back"), (third.id, "done")]
    assert machine.node.check()


async def test_ordered_what_kswapd_compresses_itself_ends_in_its_turn(
    kit, machine_of, running, verdicts
):
    machine = await padata(machine_of, ordered=True)
    kit.fill(machine)
    steered = kit.steer(machine)
    steered.gates[1] = anyio.Event()
    ends = verdicts(machine)
    (slow,) = send(machine, 1)
    async with running() as tasks:
        tasks.start_soon(KcompressdActor(machine).run)
        await kit.settle()
        mine = machine.swapout.isolate(4, 1 << 30, Reclaimer.KSWAPD)
        machine.handover.in_turn(mine)
        machine.compress_inline(mine)
        assert ends == []
        steered.gates[1].set()
        await kit.settle()
    assert ends == [(slow.id, "done"), (mine.id, "done")]


# crashes


async def test_a_crash_in_a_lane_hands_every_batch_back(kit, machine_of, verdicts):
    machine = await machine_of(fifo=64)
    kit.fill(machine)
    machine.pipeline.batch_pages = 1
    machine.pipeline.in_flight = 4
    steered = kit.steer(machine)
    steered.gates = {number: anyio.Event() for number in (1, 2, 4)}
    steered.errors[3] = ValueError("as told")
    ends = verdicts(machine)
    sent = send(machine, 8)
    with pytest.raises(ExceptionGroup):
        await KcompressdActor(machine).run()
    assert sorted(ends) == [(batch.id, "back") for batch in sent]
    assert machine.node.nr_in_flight == machine.fifo.waiting_pages == 0
    assert machine.node.check()


@virtual
async def test_a_lane_that_crashed_is_running_again(kit, machine_of, running):
    machine = await machine_of(fifo=64)
    kit.fill(machine)
    kit.steer(machine).errors[1] = ValueError("as told")
    vmstat = machine.node.vmstat
    async with running() as tasks:
        tasks.start_soon(machine.supervisor.run, "kcompressd", KcompressdActor(machine).run)
        send(machine, 1)
        await anyio.sleep(60)
        assert vmstat["actor_restarts"] == 1
        send(machine, 1)
        await kit.settle()
        assert vmstat["reclaim_stored"] == 4


async def test_a_worker_that_dies_is_no_crash_of_the_lane(kit, machine_of, running):
    machine = await machine_of(fifo=64)
    kit.fill(machine)
    kit.steer(machine).errors[1] = WorkerDied("as told")
    async with running() as tasks:
        tasks.start_soon(KcompressdActor(machine).run)
        send(machine, 1)
        await kit.settle()
        send(machine, 1)
        await kit.settle()
    vm = machine.node.vmstat
    assert (vm["reclaim_keep"], vm["reclaim_stored"]) == (4, 4)


@virtual
async def test_a_memory_survives_a_crash_of_its_worker(kit):
    values = {i: kit.text(i) for i in range(1800)}
    async with ra.open_memory(**kit.spec()) as memory:
        kit.steer(memory._machine).errors[2] = ValueError("as told")
        for key, value in values.items():
            await memory.put(key, value)
        await memory.drain()
        assert memory.vmstat["actor_restarts"] == 1
        assert memory.usage().in_flight == 0
        assert memory._node.check()
        assert {key: await memory.get(key) for key in values} == values


@virtual
@pytest.mark.parametrize("topology", ["kswapd_only", "kcompressd", "padata", "padata_ordered"])
async def test_a_memory_whose_worker_crashes_again_and_again_closes_loudly(kit, topology):
    nodes = []

    async def live():
        async with ra.open_memory(topology, **kit.spec(on_full="wait")) as memory:
            nodes.append(memory._node)
            kit.steer(memory._machine).error = ValueError("as told")
            kit.fill(memory._machine, down_to=0.5)
            memory._machine.wake_kswapd()
            await anyio.sleep_forever()

    with pytest.raises(ra.ReclaimError, match=r"crashed 6 times within 10 s; .*as told"):
        await live()
    assert nodes[0].nr_in_flight == 0
    assert nodes[0].check()


@virtual
async def test_whoever_waits_for_room_when_the_memory_closes_loudly_is_told(kit, monkeypatch):
    # It shall crash for the last time before the caller has looked at everything himself.
    monkeypatch.setattr(supervision, "BACKOFF_S", 0.0)
    ended = []

    async def put(memory):
        try:
            await memory.put("big", kit.noise(0, 30 * kit.page))
        except anyio.ClosedResourceError:
            ended.append("closed")

    async def live(callers):
        swap = [{"backend": kit.store(store_gate=Gate())}]  # what is left could only go there
        async with ra.open_memory(**kit.spec(on_full="wait") | {"swap": swap}) as memory:
            machine = memory._machine
            kit.steer(machine).error = ValueError("as told")
            kit.fill(machine, kit.noise, down_to=0.9)
            callers.start_soon(put, memory)
            machine.wake_kswapd()
            await anyio.sleep_forever()

    async with anyio.create_task_group() as callers:
        with pytest.raises(ra.ReclaimError):
            await live(callers)
    assert ended == ["closed"]


# what a busy worker may not delay


async def test_every_key_in_a_full_slow_queue_is_read_at_once(kit):
    gate = ThreadGate(timeout=60)
    slow = GatedCompressor(Lz4(), gate)
    spec = kit.spec(offload="thread", on_full="wait", compressor=slow)
    async with ra.open_memory(**spec) as memory:
        try:
            machine = memory._machine
            nr = kit.fill(machine, down_to=0.9)
            machine.wake_kswapd()
            await gate.wait_entered()
            await kit.settle()
            assert not machine.fifo.room(1)
            for i in range(nr):
                assert await memory.get(("fill", i)) == kit.text(i)
            assert memory.usage().in_flight == 0  # every one of them was taken back by its reader
        finally:
            gate.open()
        await memory.drain()
        assert memory._node.check()


# what drain waits for


async def drained(kit, memory, let_go):
    """Drain; return whether that waited until `let_go`, and what was in the budget then."""
    ended = []

    async def drain():
        await memory.drain()
        ended.append(memory.usage())

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(drain)
        await kit.settle()
        waited = not ended
        let_go()
    return waited, ended[0]


@pytest.mark.parametrize("overwritten", [False, True], ids=["deleted", "overwritten"])
async def test_drain_waits_for_a_worker_that_has_values_that_are_gone(kit, overwritten):
    gate = ThreadGate(timeout=60)
    spec = kit.spec(offload="thread", compressor=GatedCompressor(Lz4(), gate))
    async with ra.open_memory(**spec) as memory:
        try:
            for i in range(8):
                await memory.put(i, kit.text(i))
                memory.advise(i, ra.Advice.PAGEOUT)
            await gate.wait_entered()
            for i in range(8):
                if overwritten:
                    await memory.put(i, b"")
                await memory.delete(i)
            assert memory._machine.idle
            waited, usage = await drained(kit, memory, gate.open)
        finally:
            gate.open()
    assert waited
    assert (usage.resident, usage.compressed, usage.overhead) == (0, 0, 0)


async def test_drain_waits_for_a_store_that_reads_a_value_that_is_gone(kit):
    store = kit.store()
    async with ra.open_memory(**kit.spec() | {"swap": [{"backend": store}]}) as memory:
        await memory.put("a", kit.noise())
        await memory.reclaim(1)
        store.load_gate = Gate()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(memory.get, "a")
            await store.load_gate.entered.wait()
            await memory.delete("a")
            waited, usage = await drained(kit, memory, store.load_gate.open)
    assert waited
    assert (usage.resident, usage.compressed, usage.overhead) == (0, 0, 0)


async def test_drain_does_not_wait_for_who_has_pinned_a_value_that_is_gone(kit):
    async with ra.open_memory(**kit.spec()) as memory:
        await memory.put("a", kit.text())
        async with memory.pin("a") as view:
            await memory.delete("a")
            await memory.drain()
            assert view == kit.text()
            assert memory.usage().resident == kit.page
