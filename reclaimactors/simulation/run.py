"""One topology on a modelled machine: the lab's own round, in virtual time.

What is not the same in two runs of one seed: nothing that is printed. What makes results differ
between hosts: the input, which by default is the running Python's own library, the versions of the
compressors, and where a topology does not say `offload`, the number of CPUs of the host.
"""

from __future__ import annotations

import asyncio  # noqa: TID251 - the modelled loop is one of asyncio's
import contextlib
from typing import TYPE_CHECKING, Any

import attrs

from reclaimactors import registry
from reclaimactors.actors import malloc_trim
from reclaimactors.cpu import breath, clock
from reclaimactors.lab.catalog import WORKLOADS
from reclaimactors.lab.measure import Measurement
from reclaimactors.lab.run import Result, RunFailed, limit_of, measure_round
from reclaimactors.registry import PluginRef
from reclaimactors.simulation.loop import ModelledLoop, NothingHappens
from reclaimactors.simulation.plugins import MeteredCompressor, MeteredPolicy
from reclaimactors.simulation.store import ModelledStore
from reclaimactors.units import nr_pages

if TYPE_CHECKING:
    from collections.abc import Generator

    from reclaimactors.lab.run import Load
    from reclaimactors.memory import Memory
    from reclaimactors.simulation.spec import Machine
    from reclaimactors.topology import Topology

__all__ = ["CANNOT", "DIFFERS", "Simulated", "modelled", "simulate"]

DIFFERS = (
    "the input, where none is named: the running Python's own library",
    "the versions of Python and of the compressor: their real results are used",
    "offload, where the topology does not say it: by default it depends on the CPUs of the host",
)
CANNOT = (
    "memory bandwidth and caches: work takes as long beside other work as alone",
    "the GIL: a worker thread never waits for the event loop",
    "what Python's collector and malloc do: no RSS, no trims",
)
# Figures of a real process that a modelled machine does not have.
_REAL = ("rss_bytes", "workers_cpu_s")


@attrs.frozen
class Simulated:
    """What a simulation measured.

    Attributes:
        result: as of a real run; its CPU seconds are those of the machine.
        cpus: of each CPU, seconds that it was busy, times that it changed threads, and joules.
        threads: seconds that each thread ran, for those that did.
        limit: requests a second that scheduled ones were a share of.
    """

    result: Result
    cpus: list[dict[str, Any]]
    threads: dict[str, float]
    limit: float = 0.0

    def as_dict(self) -> dict[str, Any]:
        """Return what is printed as JSON."""
        figures = attrs.asdict(self.result)
        for name in _REAL:
            del figures[name]
        return figures | {"modelled_cpus": self.cpus, "threads_s": self.threads}


class _Measurement(Measurement):
    """A round on a modelled machine: what its CPUs did meanwhile."""

    def __init__(self, loop: ModelledLoop) -> None:
        super().__init__()
        self.loop = loop
        self.cpus: list[dict[str, Any]] = []
        self.threads: dict[str, float] = {}

    @contextlib.contextmanager
    def measuring(self, memory: Memory) -> Generator[None]:
        """Measure the body."""
        cpus = self.loop.cpus.cpus
        busy = [(cpu.busy_s, cpu.switches) for cpu in cpus]
        worked = {thread: thread.work_s for thread in self.loop.threads}
        try:
            with super().measuring(memory):
                yield
        finally:
            self.cpus = [
                {
                    "capacity": cpu.capacity,
                    "busy_s": round(cpu.busy_s - busy_s, 6),
                    "switches": cpu.switches - switches,
                    "joules": round((cpu.busy_s - busy_s) * cpu.watts, 6),
                }
                for cpu, (busy_s, switches) in zip(cpus, busy, strict=True)
            ]
            for thread in self.loop.threads:
                ran = thread.work_s - worked.get(thread, 0.0)
                name = thread.name if not thread.name.startswith("caller") else "callers"
                if ran > 0:
                    self.threads[name] = self.threads.get(name, 0.0) + ran
            self.threads = {name: round(ran, 6) for name, ran in self.threads.items()}
            self.cpu_s = sum(cpu["busy_s"] for cpu in self.cpus)
            self.workers_cpu_s = 0.0


def modelled(topology: Topology, machine: Machine, loop: ModelledLoop) -> Topology:
    """Return a topology whose plugins charge what they do on a machine.

    Raises:
        MachineError: if it does not say what the topology's compressor costs.
        PluginError: if a plugin cannot be had.
    """
    compress = topology.compress
    real = registry.build("compressors", compress.compressor)
    metered = MeteredCompressor(real, machine.codec_of(real.name), loop.meter)
    pages = nr_pages(topology.budget, topology.page_size)
    policy = registry.build("policies", topology.policy, pages=pages)
    offload, workers = compress.offload, compress.workers
    if offload != "inline":
        offload = "reclaimactors.simulation.offload:Modelled"
    if machine.actors == "threads" and compress.mode == "inline":
        offload = "inline"  # kswapd compresses, and kswapd is a thread
    if compress.mode == "padata" and workers is None:
        workers = len(machine.allowed("workers"))
    return attrs.evolve(
        topology,
        compress=attrs.evolve(
            compress,
            compressor=PluginRef(real.name, instance=metered),
            offload=offload,
            workers=workers,
        ),
        policy=PluginRef(
            topology.policy.name, instance=MeteredPolicy(policy, machine.costs, loop.meter)
        ),
        swap=tuple(
            spec
            if registry.is_in_this_process(spec.backend)
            else attrs.evolve(
                spec,
                backend=PluginRef("modelled", instance=ModelledStore(machine.store, loop.meter)),
            )
            for spec in topology.swap
        ),
    )


def simulate(
    topology: Topology, machine: Machine, load: Load, *, seconds: float, name: str
) -> Simulated:
    """Run one topology on a modelled machine for some of its seconds.

    Args:
        topology: what to build.
        machine: what it runs on.
        load: what is done to it; `load.limit` is found out where the workload has a schedule and
            none is given.
        seconds: how long clients work, in virtual time.
        name: what the result calls the topology.

    Raises:
        RunFailed: as in a real run, and where all wait for something that never comes.
    """

    async def find_limit(loop: ModelledLoop) -> float:
        return await limit_of(modelled(topology, machine, loop), load)

    if WORKLOADS[load.workload].scheduled and not load.limit:
        limit = _run(machine, find_limit)
        load = attrs.evolve(load, limit=limit)

    async def measure(loop: ModelledLoop) -> _Measurement:
        measured = _Measurement(loop)
        await measure_round(modelled(topology, machine, loop), load, seconds, measured)
        return measured

    measured = _run(machine, measure)
    result = Result.of(name, load, measured)
    result = attrs.evolve(result, cpus=machine.nr_cpus)
    return Simulated(result, measured.cpus, measured.threads, load.limit)


def _run(machine: Machine, main: Any) -> Any:
    """Run a coroutine on a machine of its own, and return what it returns."""
    loop = ModelledLoop(machine)
    try:
        with (
            asyncio.Runner(loop_factory=lambda: loop) as runner,
            clock.modelled(loop.look),
            breath.anew(),
            malloc_trim.never(),
        ):
            return runner.run(main(loop))
    except NothingHappens as exc:
        raise RunFailed(str(exc)) from exc
