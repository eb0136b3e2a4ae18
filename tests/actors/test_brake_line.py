"""The line in the brake: first come first served, woken singly, when the share is paid."""

from __future__ import annotations

import anyio
import pytest

import reclaimactors as ra
from reclaimactors.callers.brake_line import BrakeLine
from reclaimactors.callers.stall import Stall
from reclaimactors.mm.brake import Brake

virtual = pytest.mark.asyncio(loop_factories=["virtual"])
SIZES = (500, 200, 300)


class Line:
    """A line over a machine whose kswapd is awake and does nothing; who went on is in `gone`."""

    def __init__(self, kit, machine):
        self.machine = machine
        kit.fill(machine, down_to=0.9)
        self.brake = Brake(machine.node.root, batch=0)
        self.line = BrakeLine(machine, self.brake, machine.background)
        self.gone = []
        machine.background.awake = True

    async def put(self, size):
        await self.line.wait(size, Stall(self.machine))
        self.gone.append(size)

    def freed(self, nr_bytes):
        self.machine.ledger.freed(self.machine.node.root, nr_bytes)
        self.machine.verdicts.notify()


async def test_each_goes_on_when_his_share_is_paid_in_the_order_in_which_they_came(
    kit, machine_of, running
):
    it = Line(kit, await machine_of())
    async with running() as tasks:
        paid = []
        for size in SIZES:
            tasks.start_soon(it.put, size)
            await kit.settle(2)
            paid.append(it.brake.debt)
        assert it.brake.waiting == 3
        for nr, debt in enumerate(paid):
            it.freed(debt - it.machine.node.root.freed_total - 1)
            await kit.settle(2)
            assert it.gone == [*SIZES[:nr]]
            it.freed(1)
            await kit.settle(2)
            assert it.gone == [*SIZES[: nr + 1]]
        assert it.brake.waiting == 0


async def test_one_who_leaves_the_line_holds_up_nobody(kit, machine_of, running):
    it = Line(kit, await machine_of())
    async with running() as tasks:
        with anyio.CancelScope() as scope:
            tasks.start_soon(it.put, SIZES[1])
            scope.cancel()
            await it.put(SIZES[0])
        await kit.settle(2)
        assert it.brake.waiting == 1
        it.freed(sum(SIZES))
        await kit.settle(2)
    assert it.gone == [SIZES[1]]


@pytest.mark.parametrize("why", ["low", "asleep", "held up by a store"])
async def test_all_go_on_where_nobody_is_to_wait_any_more(why, kit, machine_of, running):
    it = Line(kit, await machine_of())
    machine = it.machine
    async with running() as tasks:
        for size in SIZES:
            tasks.start_soon(it.put, size)
        await kit.settle(2)
        assert not it.gone
        if why == "low":
            machine.node.values.delete(("fill", 0))  # each delete is a verdict, too
            nr = 1
            while machine.node.memcg.free < machine.node.marks.low:
                machine.node.values.delete(("fill", nr))
                nr += 1
        elif why == "asleep":
            machine.background.awake = False
            machine.verdicts.notify()
        else:
            machine.kswapd.throttled = True
            machine.verdicts.notify()
        await kit.settle(2)
        assert it.gone == [*SIZES]


@virtual
async def test_the_first_reclaims_for_himself_where_nothing_is_paid_for_long(
    kit, machine_of, running
):
    it = Line(kit, await machine_of())
    async with running() as tasks:
        for size in SIZES:
            tasks.start_soon(it.put, size)
        await kit.settle(5)
        assert not it.gone
        await anyio.sleep(1.0)
        assert {*it.gone} == {*SIZES}
        assert it.machine.node.vmstat["pgsteal_direct"] > 0


@pytest.mark.parametrize("brake", [True, False])
async def test_a_topology_says_whether_anybody_waits_above_min(brake, kit):
    async with ra.open_memory(**kit.spec() | {"brake": brake}) as memory:
        kit.fill(memory._machine, down_to=0.2)
        put = memory.put("large", kit.text(0, 60 * kit.page))
        try:
            put.send(None)
        except StopIteration:
            assert not brake
        else:
            assert brake
            put.close()
