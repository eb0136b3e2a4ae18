"""An error of a plugin ends the one item that it is about: its neighbours have their verdicts."""

import anyio
import pytest

import reclaimactors as ra
from reclaimactors.actors.kcompressd import KcompressdActor
from reclaimactors.cpu.breath import Breath
from reclaimactors.mm.batch import SWAP_CLUSTER_MAX, Reclaimer
from reclaimactors.mm.folio import DEVICE, RESIDENT
from reclaimactors.mm.page_io import squeeze
from reclaimactors.testing import Gate


class Wary:
    """A policy that raises once at each of some pfns, by the name of the method."""

    def __init__(self, policy):
        self._policy = policy
        self.raises = {"insert": set(), "shadow": set(), "putback": set()}

    def __getattr__(self, name):
        return getattr(self._policy, name)

    def _look(self, name, pfns):
        for pfn in self.raises[name] & set(pfns):
            self.raises[name].remove(pfn)
            raise RuntimeError(f"{name} of {pfn}")

    def insert(self, pfn, *, refault):
        self._look("insert", [pfn])
        return self._policy.insert(pfn, refault=refault)

    def shadow(self, pfn):
        self._look("shadow", [pfn])
        return self._policy.shadow(pfn)

    def putback(self, pfns, verdict):
        self._look("putback", pfns)
        self._policy.putback(pfns, verdict)


def wary(machine):
    machine.node.root.policy = Wary(machine.node.root.policy)
    return machine.node.root.policy


def isolated(machine, batches, nr=4, *, queued=False):
    out = []
    for _ in range(batches):
        out.append(machine.swapout.isolate(nr, 1 << 30, Reclaimer.KSWAPD))
        machine.handover.in_turn(out[-1])
        if queued:
            machine.fifo.send_nowait(out[-1])
    return out


def all_end(machine, *, resident=None):
    node = machine.node
    assert node.check()
    assert node.idle
    assert resident is None or {node.mm.state[pfn] for pfn in resident} == {RESIDENT}
    return True


def reclaimed(machine):
    """Reclaim until nothing is found; return how many folios are still resident."""
    while batch := machine.swapout.isolate(SWAP_CLUSTER_MAX, 1 << 30, Reclaimer.KSWAPD):
        machine.compress_inline(batch)
    return machine.node.nr_resident


@pytest.mark.parametrize("ordered", [False, True])
async def test_batches_that_were_compressed_together(kit, machine_of, running, ordered):
    machine = await machine_of(topology="padata", ordered=ordered, workers=2, on_full="inline",
                               fifo=64)  # fmt: skip
    kit.fill(machine)
    policy = wary(machine)
    first, second, third = isolated(machine, 3, queued=True)
    policy.raises["shadow"] = {first.pfns[1], third.pfns[0]}

    async def crashes():
        async with running() as tasks:
            tasks.start_soon(KcompressdActor(machine).run)
            await kit.settle()

    with pytest.raises(ExceptionGroup) as caught:
        await crashes()
    assert caught.group_contains(RuntimeError, match=f"shadow of {third.pfns[0]}")
    assert all_end(machine, resident=first.pfns + third.pfns)
    assert machine.node.vmstat["reclaim_stored"] == len(second.pfns)
    assert reclaimed(machine) == 0


async def test_batches_that_wait_for_their_turn(kit, machine_of):
    machine = await machine_of(topology="padata", ordered=True, workers=2, on_full="inline")
    kit.fill(machine)
    policy = wary(machine)
    first, second, third = isolated(machine, 3)
    for batch in (third, second):
        machine.handover.finish(
            batch, squeeze(machine.node.compressor, machine.handover.begin(batch))
        )
    policy.raises["shadow"] = {second.pfns[0]}
    policy.raises["putback"] = {first.pfns[0]}
    with pytest.raises(RuntimeError, match=f"putback of {first.pfns[0]}") as caught:
        machine.handover.hand_back(first)
    assert f"shadow of {second.pfns[0]}" in "".join(caught.value.__notes__)
    assert all_end(machine, resident=first.pfns + second.pfns)
    assert machine.node.vmstat["reclaim_stored"] == len(third.pfns)
    assert reclaimed(machine) == 0


async def test_batches_in_a_fifo_that_closes(kit, machine_of):
    machine = await machine_of()
    kit.fill(machine)
    policy = wary(machine)
    batches = isolated(machine, 3, queued=True)
    policy.raises["putback"] = {batches[0].pfns[0], batches[1].pfns[0]}
    with pytest.raises(RuntimeError, match="putback"):
        machine.close()
    assert all_end(machine, resident=[pfn for batch in batches for pfn in batch.pfns])
    assert reclaimed(machine) == 0


async def test_a_batch_that_the_loop_compresses_itself(kit, machine_of):
    machine = await machine_of()
    machine.node.zswap.enabled = False  # so that `begin` gives the verdicts
    machine.node.values.commit("zeros", [bytes(kit.page)], 0)
    policy = wary(machine)
    [batch] = isolated(machine, 1)
    policy.raises["shadow"] = set(batch.pfns)
    with pytest.raises(RuntimeError, match="shadow"):
        machine.compress_inline(batch)
    assert all_end(machine, resident=batch.pfns)
    assert reclaimed(machine) == 0


async def test_writes_of_one_call_of_a_store(kit, machine_of):
    store = kit.store()
    machine = await machine_of(swap=[{"backend": store}])
    kit.fill(machine, kit.noise)
    policy = wary(machine)
    stores = machine.swapds[0].stores
    machine.starter.start = lambda: None
    batches = isolated(machine, 3)
    for batch in batches:
        machine.handover.finish(
            batch, squeeze(machine.node.compressor, machine.handover.begin(batch))
        )
    policy.raises["shadow"] = {batches[0].pfns[0], batches[2].pfns[1]}
    writes = [stores._mailbox.receive_nowait() for _ in batches]
    with pytest.raises(RuntimeError, match="shadow"):
        await stores.store(writes, Breath())
    state = machine.node.mm.state
    assert {state[pfn] for pfn in batches[1].pfns} == {DEVICE}
    assert {state[pfn] for batch in batches[::2] for pfn in batch.pfns} == {RESIDENT}
    assert machine.node.writeback.nr_writes == machine.node.nr_in_flight == 0
    assert machine.node.check()
    assert device_of(machine).aside == 0


async def test_writes_that_wait_as_their_swapd_stops(kit, machine_of):
    machine = await machine_of(swap=[{"backend": kit.store()}])
    kit.fill(machine)
    machine.node.zswap.enabled = False
    policy = wary(machine)
    machine.starter.start = lambda: None
    batches = isolated(machine, 3)
    policy.raises["putback"] = {batches[0].pfns[0], batches[1].pfns[0]}
    for batch in batches:
        machine.compress_inline(batch)
    with pytest.raises(RuntimeError, match="putback"):
        machine.swapds[0].close()
    assert machine.node.writeback.nr_writes == machine.node.nr_in_flight == 0
    assert machine.node.check()


def device_of(machine):
    return machine.swapds[0].device


async def swapped(kit, memory, nr):
    values = {key: kit.noise(key) for key in range(nr)}
    for key, value in values.items():
        await memory.put(key, value)
    await memory.reclaim(1 << 30)
    assert memory.usage().swapped
    return values


async def test_folios_that_were_read_together(kit, caplog):
    store = kit.store(load_gate=Gate())
    spec = kit.spec() | {"swap": [{"backend": store}]}
    async with ra.open_memory(**spec) as memory:
        values = await swapped(kit, memory, 3)
        wary(memory._machine).raises["insert"] = set(memory._node.values.pfns(1))
        got = {}

        async def reader(key):
            try:
                got[key] = await memory.get(key)
            except RuntimeError as exc:
                got[key] = str(exc)

        async with anyio.create_task_group() as readers:
            for key in values:
                readers.start_soon(reader, key)
            await store.load_gate.entered.wait()
            store.load_gate.open()
        [pfn] = memory._node.values.pfns(1)
        assert got == values | {1: f"insert of {pfn}"}
        assert "swapd.load_failed" in caplog.text
        assert memory._node.memcg.reserved == 0
        assert list(memory._node.mm.refs) == [0] * len(memory._node.mm)
        assert memory._node.check()
        assert memory.vmstat["actor_restarts"] == 0
        assert await memory.get(1) == values[1]
        await memory.reclaim(1 << 30)
        assert memory._node.nr_resident == 0


async def test_what_a_put_nowait_had_reserved_for_it(kit):
    async with ra.open_memory(**kit.spec()) as memory:
        memory.put_nowait("old", b"old")
        [pfn] = memory._node.values.pfns("old")
        wary(memory._machine).raises["insert"] = set(range(pfn + 1, pfn + 9))
        with pytest.raises(RuntimeError, match="insert"):
            memory.put_nowait("new", bytes(100))
        assert memory._node.memcg.reserved == 0
        assert memory.keys() == ["old"]
        assert memory._node.check()


async def test_pages_read_along_that_are_no_bytes(kit):
    class Junk(ra.Backend):
        rotational = True
        junk = False

        def __init__(self):
            self.slots = {}

        async def store_many(self, items):
            self.slots.update(items)

        async def load_many(self, slots):
            wanted, *others = (self.slots[slot] for slot in slots)
            return [wanted, *([None] * len(others) if self.junk else others)]

        async def invalidate_many(self, slots):
            pass

    store = Junk()
    async with ra.open_memory(**kit.spec() | {"swap": [{"backend": store}]}) as memory:
        values = await swapped(kit, memory, 8)
        for key, value in values.items():
            store.junk = key < 7
            assert await memory.get(key) == value
        assert memory.vmstat["actor_restarts"] == 0
        assert memory._node.check()
