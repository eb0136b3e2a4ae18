"""swapd as an actor: deadlines, failing and full stores, loads shared and never delayed."""

import asyncio
import errno

import anyio
import pytest
from anyio.lowlevel import checkpoint

import reclaimactors as ra
from reclaimactors.actors.backing import LATE_S
from reclaimactors.actors.forgets import FORGET_SLOTS
from reclaimactors.backends.memory import MemoryBackend
from reclaimactors.cpu.breath import Breath
from reclaimactors.mm.batch import SWAP_CLUSTER_MAX, Reclaimer
from reclaimactors.mm.folio import DEVICE, UNEVICTABLE
from reclaimactors.mm.page_io import squeeze
from reclaimactors.testing import Gate

virtual = pytest.mark.asyncio(loop_factories=["virtual"])
EIO = OSError(errno.EIO, "I/O error")
EVERYTHING = 1 << 30


@pytest.fixture
def open_over(kit):
    """Open a small memory over stores, with a deadline of 5 s each."""

    def opening(*stores, **compress):
        swap = [
            {"backend": store, "size": "4MiB", "timeout": 5.0, "priority": -i}
            for i, store in enumerate(stores)
        ]
        return ra.open_memory(**kit.spec(**compress) | {"swap": swap})

    return opening


async def swap_out(kit, memory, nr=1):
    """Put values that do not compress, and reclaim them; return them."""
    values = {i: kit.noise(i) for i in range(nr)}
    for key, value in values.items():
        await memory.put(key, value)
    await memory.reclaim(EVERYTHING)
    return values


def states(memory):
    return {memory._node.mm.state[pfn] for pfn in memory._node.values.small.values()}


def device(memory, index=0):
    return memory._machine.swapds[index].device


def stop(seconds):
    """As if the process had been stopped for so long at this very point."""
    asyncio.get_running_loop()._clock.now += seconds


# loads


async def test_a_value_comes_back_from_its_store(kit, open_over):
    async with open_over(kit.store()) as memory:
        values = await swap_out(kit, memory, 40)
        assert states(memory) == {DEVICE}
        assert {key: await memory.get(key) for key in values} == values
        await memory.drain()
        assert memory._node.check()


async def test_a_fault_asks_its_store_once_for_what_it_has_at_hand(kit, open_over):
    class Asked(MemoryBackend):
        asked = 0

        def load_now(self, slots):
            self.asked += 1

        async def load_many(self, slots):
            return super().load_now(slots)

    store = Asked()
    async with open_over(store) as memory:
        values = await swap_out(kit, memory, 3)
        assert {key: await memory.get(key) for key in values} == values
        assert store.asked == 3


async def test_concurrent_gets_of_one_key_share_one_load(kit, open_over):
    store = kit.store()
    async with open_over(store) as memory:
        await swap_out(kit, memory)
        store.load_gate = gate = Gate()
        got = []

        async def get():
            got.append(await memory.get(0))

        async with anyio.create_task_group() as tasks:
            for _ in range(8):
                tasks.start_soon(get)
            await gate.entered.wait()
            await kit.settle()
            gate.open()
        assert got == [kit.noise(0)] * 8
        assert store.nr_loads == 1
        assert len({id(value) for value in got}) == 1


async def test_a_get_that_is_cancelled_leaves_the_load_to_the_others(kit, open_over):
    store = kit.store()
    async with open_over(store) as memory:
        await swap_out(kit, memory)
        store.load_gate = gate = Gate()
        got = []

        async def get(scope):
            with scope:
                got.append(await memory.get(0))

        impatient, patient = anyio.CancelScope(), anyio.CancelScope()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(get, impatient)
            tasks.start_soon(get, patient)
            await gate.entered.wait()
            impatient.cancel()
            await kit.settle()
            gate.open()
        assert got == [kit.noise(0)]
        assert memory._node.check()


async def test_a_value_deleted_while_it_is_read_is_given_to_its_reader(kit, open_over):
    store = kit.store()
    async with open_over(store) as memory:
        await swap_out(kit, memory)
        store.load_gate = gate = Gate()
        got = []

        async def get():
            got.append(await memory.get(0))

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(get)
            await gate.entered.wait()
            await memory.delete(0)
            gate.open()
        assert got == [kit.noise(0)]
        assert 0 not in memory
        await memory.drain()
        assert device(memory).used == 0


async def test_one_slot_that_cannot_be_read_does_not_spoil_a_batch(kit, open_over):
    store = kit.store()
    async with open_over(store) as memory:
        values = await swap_out(kit, memory, 5)
        store.load_errors = {1: EIO}  # the batch; each of its folios is then tried alone
        machine = memory._machine
        tickets = machine.swapds[0].loads.request(
            list(memory._node.values.small.values()), promote=False
        )
        assert [await ticket.wait() for ticket in tickets] == list(values.values())
        assert store.nr_loads == 1 + 5


async def test_a_load_that_fails_is_tried_again_by_the_next_get(kit, open_over):
    store = kit.store()
    async with open_over(store) as memory:
        await swap_out(kit, memory)
        store.load_errors = {1: EIO}
        with pytest.raises(ra.BackendError, match=r"failed to load: OSError.*I/O error"):
            await memory.get(0)
        assert await memory.get(0) == kit.noise(0)


async def test_damaged_bytes_name_the_store_and_other_values_are_readable(kit, open_over):
    store = kit.store()
    async with open_over(store) as memory:
        values = await swap_out(kit, memory, 3)
        store.damage, store.damaged_slots = "flip", {1}
        with pytest.raises(ra.CorruptData, match=device(memory).name):
            await memory.get(1)
        assert await memory.get(0) == values[0]
        assert await memory.get(2) == values[2]


@virtual
async def test_a_load_that_hangs_ends_at_its_deadline_and_the_value_stays(kit, open_over):
    store = kit.store()
    async with open_over(store) as memory:
        await swap_out(kit, memory)
        store.load_gate = Gate()
        started = anyio.current_time()
        with pytest.raises(ra.BackendError, match="took longer than 5 s to load"):
            await memory.get(0)
        assert anyio.current_time() - started == pytest.approx(5.0)
        store.load_gate = None
        assert await memory.get(0) == kit.noise(0)
        assert memory._node.check()


@virtual
async def test_many_loads_that_hang_together_end_at_one_deadline(kit, open_over):
    store = kit.store()
    async with open_over(store) as memory:
        await swap_out(kit, memory, 20)
        store.load_gate = Gate()
        started = anyio.current_time()
        machine = memory._machine
        for ticket in machine.swapds[0].loads.request(
            list(memory._node.values.small.values()), promote=False
        ):
            with pytest.raises(ra.BackendError):
                await ticket.wait()
        assert anyio.current_time() - started == pytest.approx(5.0)


async def test_a_store_that_hangs_does_not_delay_loads(kit, open_over):
    store = kit.store()
    async with open_over(store) as memory:
        values = await swap_out(kit, memory, 5)
        store.store_gate = gate = Gate()
        await memory.put("more", kit.noise(99))
        memory.advise("more", ra.Advice.PAGEOUT)
        await gate.entered.wait()
        assert {key: await memory.get(key) for key in values} == values
        assert await memory.get("more") == kit.noise(99)
        gate.open()


# deadlines are of the time in which the loop ran


@virtual
@pytest.mark.parametrize("kind", ["load", "store"])
async def test_a_store_that_answers_after_a_stop_is_not_too_slow(kit, open_over, kind):
    store = kit.store()
    async with open_over(store) as memory:
        await swap_out(kit, memory)
        gate = Gate()
        setattr(store, f"{kind}_gate", gate)
        await memory.put("more", kit.noise(99))
        memory.advise("more", ra.Advice.PAGEOUT)
        got = []

        async def get():
            got.append(await memory.get(0))

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(get)
            await gate.entered.wait()
            for seconds in (1.0, 60.0, 5.0, 3600.0):
                await anyio.sleep(0.9)
                stop(seconds)
            await kit.settle(4)
            gate.open()
        await memory.drain()
        assert got == [kit.noise(0)]
        assert memory.vmstat["swapin_error"] == memory.vmstat["swapout_error"] == 0
        assert device(memory).failures == 0


@virtual
async def test_a_stop_while_a_store_opens_or_closes_is_none_of_its_time(kit, open_over, caplog):
    class Slow(MemoryBackend):
        async def open(self, page_size):
            await self._slowly()

        async def aclose(self):
            await self._slowly()

        async def _slowly(self):
            for _ in range(3):
                await anyio.sleep(0.1)
                stop(100.0)
                await kit.settle(4)

    async with open_over(Slow()) as memory:
        name = await memory.swapon(ra.SwapSpec(backend=Slow(), size=1 << 20, timeout=0.5))
        await memory.swapoff(name)
        assert len(memory.swaps()) == 1
    assert "close_timed_out" not in caplog.text


@virtual
async def test_a_store_is_late_while_a_write_has_no_answer(kit, open_over):
    store = kit.store()
    async with open_over(store) as memory:
        backing = memory._machine.swapds[0].backing
        await swap_out(kit, memory)
        store.store_gate = gate = Gate()
        await memory.put("more", kit.noise(99))
        memory.advise("more", ra.Advice.PAGEOUT)
        await gate.entered.wait()
        await anyio.sleep(LATE_S / 4)
        stop(100.0)  # nobody is late for that
        assert not backing.late
        await anyio.sleep(LATE_S)
        assert backing.late
        memory._machine.revive()
        assert device(memory).late
        await anyio.sleep(5.0)
        assert memory._node.writeback.nr_writes == 0
        assert not device(memory).late
        assert not device(memory).takes_writes  # it was given up
        store.store_gate = None
        await anyio.sleep(1.0)
        await memory.reclaim(EVERYTHING)
        assert device(memory).takes_writes
        assert device(memory).failures == 0


@virtual
async def test_a_load_that_takes_long_makes_no_store_late(kit, open_over):
    store = kit.store()
    async with open_over(store) as memory:
        await swap_out(kit, memory)
        store.load_gate = gate = Gate()

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(memory.get, 0)
            await anyio.sleep(4.0)
            assert not memory._machine.swapds[0].backing.late
            gate.open()


# stores


class Hangs(MemoryBackend):
    """Answers no write until told so, and never forgets some slots."""

    hung = True

    def __init__(self, *, never=()):
        super().__init__()
        self._never = frozenset(never)

    async def store_many(self, items):
        if self.hung:
            await anyio.sleep_forever()
        await super().store_many(items)

    async def invalidate_many(self, slots):
        if self.hung or not self._never.isdisjoint(slots):
            await anyio.sleep_forever()
        await super().invalidate_many(slots)


@virtual
async def test_a_store_that_hangs_is_a_failure_and_its_slots_are_set_aside_until_it_answers(
    kit, open_over
):
    store = Hangs()
    async with open_over(store) as memory:
        values = {i: kit.noise(i) for i in range(3)}
        for key, value in values.items():
            await memory.put(key, value)
            memory.advise(key, ra.Advice.PAGEOUT)
        await memory.drain()
        assert states(memory) == {UNEVICTABLE}
        assert memory.vmstat["swapout_error"] == 1
        assert (device(memory).used, device(memory).aside) == (0, 3)
        assert {key: await memory.get(key) for key in values} == values
        assert memory._node.check()
        await anyio.sleep(100.0)
        assert device(memory).aside == 3
        store.hung = False
        await anyio.sleep(100.0)
        assert device(memory).aside == 0
        await memory.reclaim(EVERYTHING)
        assert states(memory) == {DEVICE}


@virtual
async def test_a_store_that_keeps_failing_is_tried_less_and_less_and_is_still_read(
    kit, open_over, caplog
):
    store = kit.store()
    async with open_over(store) as memory:
        await swap_out(kit, memory, 2)
        store.store_errors = dict.fromkeys(range(2, 10_000), EIO)
        await memory.put("more", kit.noise(99))
        tried = []
        for _ in range(120):
            await memory.reclaim(EVERYTHING)
            tried.append(store.nr_stores)
            await anyio.sleep(1.0)
        assert tried[59] - tried[0] <= 11
        assert 1 <= tried[119] - tried[59] <= 3
        assert device(memory).lost
        assert memory.vmstat["swap_out_of_service"] == 1
        assert await memory.get(0) == kit.noise(0)
        assert await memory.get("more") == kit.noise(99)
        store.store_errors = {}
        await anyio.sleep(60.0)
        await memory.reclaim(EVERYTHING)
        assert memory._node.mm.state[memory._node.values.small["more"]] == DEVICE
        assert memory.health().state == "open"
    lines = [line.split()[0] for line in caplog.messages if "swapd." in line]
    assert lines == ["swapd.store_failed", "swapd.out_of_service", "swapd.back_in_service"]


@virtual
async def test_a_shrinker_that_was_asked_for_is_not_forgotten_with_what_waits(kit, open_over):
    async with open_over(kit.store()) as memory:
        (swapd,) = memory._machine.swapds.values()
        swapd.stores.wake_shrinker()
        assert swapd.stores._waiting() == []
        assert swapd.stores._mailbox.waiting, "no lane would look"


@virtual
async def test_slots_that_cannot_be_had_back_keep_no_others_set_aside(kit, open_over):
    store = Hangs(never=[0])
    async with open_over(store, fifo=256) as memory:
        for i in range(400):
            await memory.put(i, kit.noise(i))
        while device(memory).aside < 2 * FORGET_SLOTS:
            await memory.reclaim(EVERYTHING)
            await anyio.sleep(60.0)
        store.hung = False
        await anyio.sleep(200.0)
        assert 0 < device(memory).aside <= FORGET_SLOTS + 32
        assert memory._node.check()


@virtual
async def test_a_full_store_that_had_room_again_rests_as_at_first(kit, open_over):
    store = kit.store()
    async with open_over(store) as memory:
        service = memory._machine.swapds[0].backing.service
        rests = []
        for i in range(4):
            store.full_after = 0
            await memory.put(i, kit.noise(i))
            await memory.reclaim(EVERYTHING)
            assert device(memory).full
            rests.append(service.again_at - anyio.current_time())
            store.full_after = None
            await anyio.sleep(60)
            await memory.reclaim(EVERYTHING)
            assert states(memory) == {DEVICE}
        assert rests == pytest.approx([rests[0]] * 4)


@virtual
async def test_errors_of_one_burst_are_one_failure(kit, open_over):
    store = kit.store(error=EIO)
    async with open_over(store, fifo=64) as memory:
        machine = memory._machine
        writes = []
        for i in range(12):
            await memory.put(i, kit.noise(i))
            batch = machine.swapout.isolate(1, EVERYTHING, Reclaimer.DIRECT)
            pages, _ = machine.swapout.begin(batch, hold=False)
            writes += machine.swapout.complete(batch, squeeze(machine.node.compressor, pages))
        machine.handover.offer(writes)
        await memory.drain()
        assert store.nr_stores >= 12
        assert (device(memory).failures, memory.vmstat["swap_out_of_service"]) == (1, 0)
        store.error = None
        await anyio.sleep(0.1)
        await memory.reclaim(EVERYTHING)
        assert states(memory) == {DEVICE}
        assert device(memory).failures == 0


@virtual
async def test_one_write_at_a_time_tries_a_store_that_has_failed(kit, open_over):
    store = kit.store(error=EIO)
    async with open_over(store, fifo=64) as memory:
        await swap_out(kit, memory, 80)
        store.error, store.store_gate = None, Gate()
        before = store.nr_stores
        await anyio.sleep(0.1)
        machine = memory._machine
        machine.revive()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(memory.reclaim, EVERYTHING)
            await store.store_gate.entered.wait()
            await kit.settle()
            assert (store.nr_stores - before, machine.node.writeback.nr_writes) == (1, 1)
            store.store_gate.open()
        await memory.reclaim(EVERYTHING)
        assert states(memory) == {DEVICE}


async def test_what_the_first_store_refuses_goes_to_the_second(kit, open_over):
    first, second = kit.store(error=EIO), kit.store()
    async with open_over(first, second, fifo=64) as memory:
        values = await swap_out(kit, memory, 10)
        assert states(memory) == {DEVICE}
        assert (first.nr_stores, second.nr_stores) == (1, 1)
        assert {key: await memory.get(key) for key in values} == values
        await memory.drain()
        assert (device(memory, 0).used, device(memory, 1).used) == (0, 0)


@virtual
async def test_what_the_first_store_hangs_on_goes_to_the_second(kit, open_over):
    async with open_over(kit.store(store_gate=Gate()), kit.store()) as memory:
        values = await swap_out(kit, memory, 4)
        assert states(memory) == {DEVICE}
        assert {key: await memory.get(key) for key in values} == values


@virtual
async def test_a_full_store_is_tried_again_later(kit, open_over):
    store = kit.store(full_after=0)
    async with open_over(store) as memory:
        await swap_out(kit, memory)
        assert (states(memory), device(memory).full) == ({UNEVICTABLE}, True)
        assert device(memory).in_service
        store.full_after = None
        await anyio.sleep(60)
        await memory.reclaim(EVERYTHING)
        assert states(memory) == {DEVICE}


async def test_a_full_first_store_passes_on_to_the_second(kit, open_over):
    async with open_over(kit.store(full_after=3), kit.store()) as memory:
        values = await swap_out(kit, memory, 10)
        assert states(memory) == {DEVICE}
        assert {key: await memory.get(key) for key in values} == values


async def test_a_folio_read_while_its_write_waits_does_not_upset_a_store_in_this_process(
    kit, open_over
):
    store = kit.store(store_gate=Gate())
    async with open_over(store) as memory:
        machine = memory._machine
        for i in range(4):
            await memory.put(i, kit.noise(i))
        batch = machine.swapout.isolate(32, EVERYTHING, Reclaimer.DIRECT)
        pages, writes = machine.swapout.begin(batch, hold=False)
        writes += machine.swapout.complete(batch, squeeze(machine.node.compressor, pages))
        machine.handover.offer(writes)
        assert await memory.get(2) == kit.noise(2)
        store.store_gate.open()
        await memory.drain()
        assert memory.vmstat["actor_restarts"] == 0
        assert memory._node.check()


@pytest.mark.parametrize("footprint", [ValueError("as told"), -1, 0.5, None])
async def test_a_store_that_cannot_say_what_it_holds_has_not_taken_it(kit, open_over, footprint):
    class Unsure(MemoryBackend):
        unsure = True

        def footprint(self, slots):
            if not self.unsure:
                return super().footprint(slots)
            self.unsure = False
            if isinstance(footprint, Exception):
                raise footprint
            return footprint

    async with open_over(Unsure()) as memory:
        values = await swap_out(kit, memory, 3)
        await memory.drain()
        while states(memory) != {DEVICE}:
            await memory.reclaim(EVERYTHING)
        assert memory.vmstat["swapout_error"] == 1
        assert memory.vmstat["actor_restarts"] == 0
        assert {key: await memory.get(key) for key in values} == values
        assert memory._node.check()


async def test_a_swapd_that_crashes_as_it_stores_loses_nothing_and_fails_no_load(
    kit, open_over, monkeypatch
):
    async def broken():
        raise RuntimeError("a bug in a lane")

    store = kit.store()
    async with open_over(store) as memory:
        values = await swap_out(kit, memory, 3)
        await memory.drain()
        store.load_gate = Gate()
        async with anyio.create_task_group() as readers:
            read: dict[int, bytes] = {}

            async def reader(key):
                read[key] = await memory.get(key)

            for key in values:
                readers.start_soon(reader, key)
            await store.load_gate.entered.wait()
            stores = memory._machine.swapds[0].stores
            with monkeypatch.context() as patch:
                patch.setattr(stores, "_shrink", broken)  # what a lane does where it is asked to
                stores.wake_shrinker()
                while not memory.vmstat["actor_restarts"]:
                    await checkpoint()
            store.load_gate.open()
        assert read == values
        await swap_out(kit, memory, 3)
        assert memory._node.check()


async def test_a_mailbox_full_of_writes_leaves_folios_resident_and_throttles(kit, open_over):
    store = kit.store(store_gate=Gate())
    async with open_over(store) as memory:
        machine = memory._machine
        machine.starter.start()
        nr = kit.fill(machine, kit.noise, down_to=0.5)
        while not memory.vmstat["nr_throttled_written"]:
            machine.reclaim_inline(1, Reclaimer.DIRECT)
            await checkpoint()
        assert machine.kswapd.throttled
        for i in range(nr):
            assert await memory.get(("fill", i)) == kit.noise(i)
        store.store_gate.open()
        await memory.drain()
        assert memory._node.check()


# slots that nobody needs any more


async def test_deleted_values_are_forgotten_by_their_store(kit, open_over):
    backend = MemoryBackend()
    async with open_over(backend) as memory:
        values = await swap_out(kit, memory, 10)
        for key in values:
            await memory.delete(key)
        await memory.drain()
        assert device(memory).used == 0
        assert backend.footprint([]) == 0
        assert not backend._slots


class Recorder(MemoryBackend):
    """A store in this process that records what it is called for."""

    def __init__(self):
        super().__init__()
        self.calls = []

    def footprint(self, slots):
        return 0

    def load_now(self, slots):
        self.calls.append("load")
        return super().load_now(slots)

    async def invalidate_many(self, slots):
        self.calls.append("forget")
        await super().invalidate_many(slots)


class Asynchronous(Recorder):
    """One whose loads take some turns of the loop."""

    load_now = None

    async def load_many(self, slots):
        self.calls.append("load")
        for _ in range(5):
            await checkpoint()
        return MemoryBackend.load_now(self, slots)


@pytest.mark.parametrize("kind", [Recorder, Asynchronous])
@pytest.mark.parametrize("readers", [1, 4])
async def test_forgetting_never_stands_before_a_load(kit, open_over, monkeypatch, kind, readers):
    backend = kind()
    async with open_over(backend) as memory:
        device(memory).capacity = 23  # more than half of it is used: what is read is forgotten
        values = await swap_out(kit, memory, 12)
        await memory.drain()
        backend.calls.clear()
        read = {}

        async def reader(first):
            for key in range(first, 12, readers):
                read[key] = await memory.get(key)
                await checkpoint()

        async with anyio.create_task_group() as tasks:
            for first in range(readers):
                tasks.start_soon(reader, first)
        await memory.drain()
        assert read == values
        assert backend.calls == sorted(backend.calls, reverse=True)
        assert backend.calls.count("forget") == 1
        assert not backend._slots
        assert device(memory).used == 0


async def test_forgetting_is_not_put_off_where_slots_run_short(kit, open_over):
    backend = Recorder()
    async with open_over(backend) as memory:
        device(memory).capacity = 100
        await swap_out(kit, memory, 90)
        await memory.drain()
        backend.calls.clear()
        for key in range(90):
            await memory.get(key)
            await checkpoint()
        assert device(memory).free_slots > 45
        assert "".join(call[0] for call in backend.calls).rstrip("f").count("f") <= 3


@virtual
async def test_slots_whose_forgetting_hangs_are_set_aside_until_it_does_not(kit, open_over):
    class Hangs(MemoryBackend):
        hung = True

        async def invalidate_many(self, slots):
            if self.hung:
                await anyio.sleep_forever()
            await super().invalidate_many(slots)

    store = Hangs()
    async with open_over(store) as memory:
        await swap_out(kit, memory, 3)
        for key in range(3):
            await memory.delete(key)
        await memory.drain()
        assert (device(memory).used, device(memory).aside) == (0, 3)
        store.hung = False
        await anyio.sleep(60.0)
        assert device(memory).aside == 0
        assert not store._slots


async def test_a_full_pool_is_written_back_to_the_store(kit, open_over):
    async with open_over(MemoryBackend()) as memory:
        node = memory._node
        node.zswap.limit, node.zswap.accept_below = 10_000, 5_000
        values = {i: kit.noise(i, 200) + bytes(312) for i in range(100)}
        for key, value in values.items():
            await memory.put(key, value)
        await memory.reclaim(EVERYTHING)
        await memory.drain()
        assert memory.vmstat["zswpwb"] > 0
        assert node.zswap.total < 10_000
        assert {key: await memory.get(key) for key in values} == values


class Elsewhere(ra.Backend):
    """A store whose bytes are outside the budget."""

    def __init__(self):
        self.slots = {}

    async def store_many(self, items):
        await checkpoint()
        self.slots.update(items)

    async def load_many(self, slots):
        return [self.slots[slot] for slot in slots]

    async def invalidate_many(self, slots):
        for slot in slots:
            self.slots.pop(slot, None)


class TakesNoBlobs(MemoryBackend):
    """A store that refuses what is shorter than a page."""

    refused = 0

    async def store_many(self, items):
        if any(len(data) < self.page_size for _, data in items):
            self.refused += 1
            raise EIO
        await super().store_many(items)

    async def open(self, page_size):
        self.page_size = page_size
        await super().open(page_size)


@virtual
async def test_the_shrinker_gives_up_at_a_failure_until_it_is_woken_again(kit, open_over):
    backend = TakesNoBlobs()
    async with open_over(backend) as memory:
        machine, node = memory._machine, memory._node
        values = {i: kit.noise(i, 200) + bytes(312) for i in range(100)}
        for key, value in values.items():
            await memory.put(key, value)
        await memory.reclaim(EVERYTHING)
        assert (backend.refused, node.zswap.reached_full) == (0, False)
        vm = memory.vmstat
        for times in (1, 2):
            node.zswap.reached_full, node.zswap.accept_below = True, 0
            machine.revive()
            machine.wake_shrinkers()
            await kit.settle(400)
            machine.wake_shrinkers()  # it is to rest
            await kit.settle(400)
            assert vm["zswap_shrink_gave_up"] == times
            assert backend.refused == times
            await anyio.sleep(60)
        assert vm["written_back_pages"] == 0
        assert vm["reject_reclaim_fail"] == backend.refused * SWAP_CLUSTER_MAX
        node.zswap.wanted = 1
        machine.revive()
        machine.wake_shrinkers()
        await memory.drain()  # what is wanted is given up with it: nothing is pending for ever
        assert {key: await memory.get(key) for key in values} == values
        assert node.check()


async def test_a_shrinker_that_ends_between_two_writes_hands_both_back(kit, open_over, monkeypatch):
    async with open_over(MemoryBackend()) as memory:
        machine, node = memory._machine, memory._node
        values = {i: kit.noise(i, 200) + bytes(312) for i in range(100)}
        for key, value in values.items():
            await memory.put(key, value)
        await memory.reclaim(EVERYTHING)
        await memory.drain()
        node.zswap.wanted = node.zswap.total
        machine.shrinker.writeback(machine.swapds[0].device)  # every blob's second chance
        seen = []

        async def take(_):
            seen.append(node.writeback.nr_writes)
            if len(seen) == 2:
                raise KeyboardInterrupt

        monkeypatch.setattr(Breath, "take", take)
        with pytest.raises(KeyboardInterrupt):
            await machine.swapds[0].stores._coldest(4, Breath())
        monkeypatch.undo()
        node.zswap.wanted = 0
        assert seen == [1, 2]
        assert (node.writeback.nr_writes, node.zswap.leaving) == (0, 0)
        assert {key: await memory.get(key) for key in values} == values
        assert node.check()


@virtual
async def test_a_store_that_fails_now_and_then_gets_all_of_the_pool_in_the_end(kit, open_over):
    backend = kit.store(store_errors=dict.fromkeys((1, 3, 5), EIO))
    async with open_over(backend) as memory:
        machine, node = memory._machine, memory._node
        for i in range(100):
            await memory.put(i, kit.noise(i, 200) + bytes(312))
        await memory.reclaim(EVERYTHING)
        while node.zswap.total:
            node.zswap.reached_full, node.zswap.accept_below = True, 0
            machine.revive()
            machine.wake_shrinkers()
            await anyio.sleep(0.1)
        assert 0 < memory.vmstat["zswap_shrink_gave_up"] <= 3
        assert memory.vmstat["written_back_pages"] == 100


async def test_a_steady_stream_over_the_limit_costs_a_bounded_write_back(kit, open_over):
    """Each blob that was stored is passed over once and written back once, at most."""
    async with open_over(Elsewhere()) as memory:
        node, vm = memory._node, memory._node.vmstat
        node.zswap.limit, node.zswap.accept_below = 60_000, 54_000
        flips, full, stored_bytes, most = 0, False, 0, 0
        extend = node.zswap.extend

        def stored(pfns, nr_bytes, pages, *group):
            nonlocal stored_bytes
            stored_bytes += nr_bytes
            extend(pfns, nr_bytes, pages, *group)

        node.zswap.extend = stored
        for i in range(6000):
            await memory.put(i % 2500, kit.noise(i % 100, 200) + bytes(312))
            flips += node.zswap.reached_full and not full
            full = node.zswap.reached_full
            most = max(most, node.zswap.total)
        await memory.drain()
        assert min(vm["pool_limit_hit"], vm["written_back_pages"]) > 0
        assert vm["zswap_second_chance"] <= vm["reclaim_stored"]
        assert vm["written_back_pages"] <= vm["reclaim_stored"]
        assert flips <= 1 + stored_bytes / 6_000
        assert most < 60_000 + kit.page
        assert node.check()
