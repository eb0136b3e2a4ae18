"""Virtual time: the CPUs of a modelled machine, what steps cost, and the same result twice."""

from __future__ import annotations

import asyncio
import json
import math
from pathlib import Path

import anyio
import pytest

from reclaimactors.lab.data import Input
from reclaimactors.lab.run import Load, RunFailed
from reclaimactors.simulation import spec
from reclaimactors.simulation.cpus import Cpu, Cpus, Thread
from reclaimactors.simulation.loop import ModelledLoop, NothingHappens
from reclaimactors.simulation.run import Simulated, simulate
from reclaimactors.simulation.store import Device
from reclaimactors.topology import resolve

US = 1e-6
PHONE = spec.load("phone")


def cpus(*capacities: float, slice_s: float = 1.0, switch_s: float = 0.0) -> Cpus:
    return Cpus(
        [Cpu(i, capacity, 1.0) for i, capacity in enumerate(capacities)],
        slice_s=slice_s, switch_s=switch_s,
    )  # fmt: skip


def ends_of(machine: Cpus, *jobs: tuple[Thread, float]) -> dict[str, float]:
    """Return when the last job of each thread is done."""
    ends: dict[str, float] = {}
    for thread, work in jobs:
        machine.submit(
            thread, work, lambda name=thread.name: ends.__setitem__(name, round(machine.now, 9))
        )
    while machine.advance(math.inf):
        pass
    return ends


def test_a_thread_runs_on_the_fastest_idle_cpu_that_it_may():
    machine = cpus(1.0, 2.0)
    assert ends_of(machine, (Thread("any", (0, 1)), 4.0), (Thread("slow", (0,)), 4.0)) == {
        "any": 2.0, "slow": 4.0,
    }  # fmt: skip
    assert [cpu.busy_s for cpu in machine.cpus] == [4.0, 2.0]


def test_two_threads_of_one_cpu_take_turns_by_their_weights():
    heavy, light = Thread("heavy", (0,)), Thread("light", (0,), weight=0.25)
    ends = ends_of(cpus(1.0, slice_s=0.01), (heavy, 4.0), (light, 4.0))
    assert ends["heavy"] == pytest.approx(5.0, abs=0.05)  # four fifths of the CPU
    assert ends["light"] == pytest.approx(8.0)


def test_each_change_of_threads_costs_a_switch():
    machine = cpus(1.0, slice_s=1.0, switch_s=0.1)
    ends_of(machine, (Thread("a", (0,)), 2.0), (Thread("b", (0,)), 2.0))
    cpu = machine.cpus[0]
    assert cpu.switches >= 3
    assert cpu.busy_s == pytest.approx(4.0 + 0.1 * cpu.switches)


def test_an_idle_fast_cpu_takes_over_what_runs_on_a_slower_one():
    machine = cpus(1.0, 2.0)
    first, second = Thread("first", (0, 1)), Thread("second", (0, 1))
    ends = ends_of(machine, (first, 2.0), (second, 3.0))
    assert ends == {"first": 1.0, "second": 2.0}  # a second at 1, then one at 2


def test_a_device_works_on_as_many_requests_as_its_depth():
    store = PHONE.store
    one = Device(spec.StoreSpec(**{**_costs(store), "depth": spec.Cost(1, "assumed")}))
    four = Device(spec.StoreSpec(**{**_costs(store), "depth": spec.Cost(4, "assumed")}))
    latency = store.latency_us.value * US
    assert one.io(0.0, [0] * 8) == pytest.approx(8 * latency)
    assert four.io(0.0, [0] * 8) == pytest.approx(2 * latency)


def _costs(store: spec.StoreSpec) -> dict[str, spec.Cost]:
    return {
        name: getattr(store, name)
        for name in ("latency_us", "byte_ns", "depth", "call_us", "page_us")
    }


def on(machine: spec.Machine, main) -> float:
    """Run a coroutine on a machine, and return how long it took there."""
    loop = ModelledLoop(machine)
    with asyncio.Runner(loop_factory=lambda: loop) as runner:
        runner.run(main(loop))
        return round(loop.time(), 9)


async def works(loop: ModelledLoop, seconds: float) -> None:
    loop.meter.s += seconds
    await anyio.lowlevel.checkpoint()


def test_on_one_loop_tasks_work_one_after_the_other():
    async def main(loop):
        async with anyio.create_task_group() as tasks:
            for _ in range(3):
                tasks.start_soon(works, loop, 1.0)

    assert on(spec.load("laptop"), main) == pytest.approx(3.0, abs=1e-4)


def test_threads_work_side_by_side():
    async def main(loop):
        async with anyio.create_task_group() as tasks:
            for _ in range(3):
                tasks.start_soon(works, loop, 1.0)

    assert on(PHONE, main) == pytest.approx(1.3125, abs=1e-4)  # two at 0.75, which take turns at 1


def test_the_clock_says_in_the_middle_of_a_step_when_what_was_done_is_done():
    async def main(loop):
        before = loop.time()
        loop.meter.s += 0.5
        assert loop.time() - before == pytest.approx(0.5)

    on(spec.load("laptop"), main)


def test_a_task_that_waits_for_ever_is_said_rather_than_waited_for():
    async def main(loop):
        await anyio.Event().wait()

    with pytest.raises(NothingHappens, match="lost wake-up"):
        on(PHONE, main)


def test_a_task_is_cancelled_while_its_thread_works():
    async def main(loop):
        with anyio.move_on_after(0.1) as scope:
            await works(loop, 5.0)
        assert scope.cancelled_caught
        assert loop.time() == pytest.approx(0.1)

    on(PHONE, main)


@pytest.fixture(scope="module")
def pages() -> Input:
    """Pages of which half is random enough to be worth compressing."""
    return Input(
        b"".join(b"%016x" % (nr * 0x9E3779B97F4A7C15 % 2**64) * 256 for nr in range(500)), 4096
    )


@pytest.mark.parametrize("machine", spec.BUILT_IN)
def test_two_runs_of_a_seed_are_the_same_and_another_seed_is_not(pages, machine):
    topology = resolve("kcompressd", budget="512KiB")

    def run(seed: int) -> str:
        load = Load(pages, "eater", seed, budgets=2.0)
        seconds = 0.002 if machine == "server" else 0.01
        done = simulate(topology, spec.load(machine), load, seconds=seconds, name="it")
        return json.dumps(done.as_dict())

    first = run(0)
    assert json.loads(first)["vmstat"]["pgsteal_kswapd"] > 30
    assert run(0) == first
    assert run(1) != first


def test_what_is_compressed_is_charged_to_who_compresses(pages):
    load = Load(pages, "eater", budgets=2.0)

    def run(name: str) -> Simulated:
        topology = resolve(name, budget="512KiB")
        return simulate(topology, PHONE, load, seconds=0.01, name=name)

    alone, beside = run("kswapd_only"), run("padata")
    assert not [name for name in alone.threads if name.startswith("worker")]
    assert beside.threads["worker 0"] > 0.001


def test_a_topology_whose_compressor_has_no_cost_is_refused(pages):
    with pytest.raises(spec.MachineError, match=r"what compressor 'zlib' costs.*codec\.zlib"):
        simulate(
            resolve("kcompressd", compress={"compressor": "zlib"}), PHONE, Load(pages),
            seconds=0.01, name="it",
        )  # fmt: skip


def test_a_run_that_fails_is_a_run_that_fails(pages):
    topology = resolve("kcompressd", budget="512KiB", swap=[], zswap={"enabled": False})
    with pytest.raises(RunFailed, match="out of memory"):
        simulate(topology, PHONE, Load(pages, "eater"), seconds=0.05, name="it")


LINES = (
    ("scan_us = {", "#", r"costs.scan_us is missing; give \{ value"),
    ("scan_us = {", "scan_us = 3 #", r"costs.scan_us is 3; give"),
    ('actors = "threads"', 'actors = "thread"', r"actors is 'thread'; allowed: 'loop', 'threads'"),
    ("capacity = 0.35", "capacity = 0", r"cpu\[0\].capacity is 0; allowed"),
    ("kswapd = [0, 1, 2, 3]", "kswapd = [8]", r"affinity.kswapd is \[8\]; allowed: .* 0 to 7"),
    ("[scheduler]", "[schedule]", "schedule is not a key; known: .*scheduler"),
    ('source = "assumed"', 'source = "I think"', "watts.source is 'I think'; give"),
    ("[[cpu]]", "[[cpu]", "is not TOML"),
)


@pytest.mark.parametrize(("line", "instead", "says"), LINES)
def test_a_machine_file_that_cannot_be_used_is_said_in_one_line(tmp_path, line, instead, says):
    text = (Path(spec.__file__).parent / "phone.toml").read_text()
    assert line in text
    path = tmp_path / "mine.toml"
    path.write_text(text.replace(line, instead, 1))
    with pytest.raises(spec.MachineError, match=says) as refused:
        spec.load(str(path))
    assert "\n" not in str(refused.value)


def test_a_machine_that_is_not_there_is_said(tmp_path):
    with pytest.raises(spec.MachineError, match=r"No such file.*built in: phone, laptop, server"):
        spec.load(str(tmp_path / "none"))


def test_each_figure_of_a_built_in_machine_has_a_source():
    for name in spec.BUILT_IN:
        figures = dict(spec.load(name).figures())
        assert len(figures) > 20
        assert all(cost.source for cost in figures.values())
