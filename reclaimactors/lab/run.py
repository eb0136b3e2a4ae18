"""One topology on one workload: a round, and the result that its rounds amount to.

A round opens a fresh memory, runs the workload for its time, verifies every value, closes the
memory, and calls the compressor alone on the same pages. Several topologies are in `compare.py`.
"""

from __future__ import annotations

import gc
import itertools
import platform
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, cast

import anyio
import attrs

from reclaimactors import __version__, registry
from reclaimactors.cpu import clock
from reclaimactors.errors import OutOfMemory, ReclaimError
from reclaimactors.lab.catalog import WORKLOADS
from reclaimactors.lab.measure import Measurement, rss_bytes
from reclaimactors.lab.ramp import Rate, in_time
from reclaimactors.lab.requests import limit
from reclaimactors.lab.workload import SET_BUDGETS, Keys, all_in_ram
from reclaimactors.log import log
from reclaimactors.opening import open_memory
from reclaimactors.topology.cpus import usable_cpus
from reclaimactors.units import MIB, PAGE_SIZE

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Mapping, Sequence

    from reclaimactors.lab.data import Input
    from reclaimactors.lab.histogram import Histogram
    from reclaimactors.memory import Memory
    from reclaimactors.topology import Topology

__all__ = [
    "Load", "Result", "RunFailed", "limit_of", "machine", "measure_round", "run_topology",
]  # fmt: skip

LIMIT_S = 0.7  # how long it is measured what a topology serves at its limit
BARE_S = 0.1  # how long the compressor runs alone in each round
GRACE_S = 30.0  # how much later than its time a round's workload may end


class RunFailed(ReclaimError):  # noqa: N818 - it says what happened
    """A run lost or changed a value, ran out of memory, or did not end."""


@attrs.frozen
class Load:
    """What is done to each topology: the same for all that are compared.

    Args:
        input: what the values are made of.
        workload: a name of `WORKLOADS`.
        seed: decides what clients do.
        budgets: the size of the set of keys, in budgets.
        limit: requests a second of which scheduled ones are a share; 0 where none are.
    """

    input: Input
    workload: str = attrs.field(default="eater", validator=attrs.validators.in_(WORKLOADS))
    seed: int = 0
    budgets: float = SET_BUDGETS
    limit: float = 0.0


@attrs.frozen
class Stalls:
    """Milliseconds that puts waited, over all puts; one that did not wait counts 0."""

    total: float
    p50: float
    p99: float
    max: float


@attrs.frozen
class Lag:
    """Milliseconds by which a timer of the event loop was late."""

    p50: float
    p99: float
    max: float


@attrs.frozen
class Late:
    """Milliseconds from when a request was due until it was served; 0 where none was scheduled."""

    p50: float
    p99: float
    max: float


@attrs.frozen
class Faults:
    """Microseconds of a get that found its value reclaimed; pure hits do not count."""

    p50: float
    p99: float


@attrs.frozen
class PsiShares:
    """Percent of the time in which somebody waited for memory, and in which nobody could run."""

    some: float
    full: float


@attrs.frozen
class Rss:
    """Resident bytes less shared ones, of the round that grew most."""

    start: int
    peak: int


@attrs.frozen
class Result:
    """What the rounds of one topology measured: sums, and rates over the sum of their seconds."""

    topology: str
    workload: str
    seconds: float
    input_pages: int
    vmstat: Mapping[str, int] = attrs.field(repr=False)
    pgsteal_anon_per_s: float
    refaults_per_s: float
    freed_mib_per_s: float
    ops_per_s: float
    puts_per_s: float
    gets_per_s: float
    allocstall: int
    psi: PsiShares
    stall_ms: Stalls
    late_ms: Late
    in_time_per_s: float
    ramp: Sequence[Rate]
    loop_lag_ms: Lag
    fault_us: Faults
    in_loop_percent: float
    cpu_s: float
    workers_cpu_s: float
    cpus: int
    rss_bytes: Rss
    compression_ratio: float
    same_filled_share: float
    bare_pages_per_s: float
    efficiency: float

    @classmethod
    def of(cls, topology: str, load: Load, measured: Measurement) -> Result:
        """Return the result of what was measured, of however little."""
        vmstat, seconds = measured.vmstat, measured.seconds or 1.0
        bare_per_s = measured.bare_pages / measured.bare_s if measured.bare_s else 0.0
        blob_bytes = measured.bare_bytes / measured.bare_pages if measured.bare_pages else 0.0
        ramp = [Rate.of(step) for step in measured.steps]
        page_bytes = min(load.input.value_size, PAGE_SIZE)
        compressed = vmstat["zswpout"] + (vmstat["pswpout"] if measured.all_in_ram else 0)
        freed = vmstat["pgsteal_anon"] * page_bytes - compressed * blob_bytes
        return cls(
            topology=topology,
            workload=load.workload,
            seconds=round(measured.seconds, 3),
            input_pages=len(load.input),
            vmstat=dict(vmstat),
            pgsteal_anon_per_s=round(measured.pgsteal_anon_per_s, 1),
            refaults_per_s=round(vmstat["workingset_refault_anon"] / seconds, 1),
            freed_mib_per_s=round(freed / seconds / MIB, 2),
            ops_per_s=round((measured.puts + measured.gets) / seconds, 1),
            puts_per_s=round(measured.puts / seconds, 1),
            gets_per_s=round(measured.gets / seconds, 1),
            allocstall=sum(nr for name, nr in vmstat.items() if name.startswith("allocstall")),
            psi=PsiShares(
                some=round(100 * measured.psi_some_s / seconds, 2),
                full=round(100 * measured.psi_full_s / seconds, 2),
            ),
            stall_ms=Stalls(round(measured.stalls.total * 1e3, 3), *_points(measured.stalls, 1e3)),
            late_ms=Late(*_points(measured.late, 1e3)),
            in_time_per_s=in_time(ramp),
            ramp=ramp,
            loop_lag_ms=Lag(*_points(measured.lag, 1e3)),
            fault_us=Faults(*_points(measured.faults, 1e6)[:2]),
            in_loop_percent=round(100 * _share_in_loop(measured), 1),
            cpu_s=round(measured.cpu_s, 3),
            workers_cpu_s=round(measured.workers_cpu_s, 3),
            cpus=usable_cpus(),
            rss_bytes=Rss(measured.rss_start, measured.rss_peak),
            compression_ratio=round(page_bytes / blob_bytes, 3) if blob_bytes else 0.0,
            same_filled_share=round(load.input.same_filled_share, 4),
            bare_pages_per_s=round(bare_per_s, 1),
            efficiency=round(measured.pgsteal_anon_per_s / bare_per_s, 3) if bare_per_s else 0.0,
        )


def _share_in_loop(measured: Measurement) -> float:
    """Return the share, 0 to 1, of kswapd's pages that it compressed in the event loop itself."""
    if measured.kswapd_in_loop:
        return 1.0
    vmstat = measured.vmstat
    here = vmstat["kcompressd_inline"] + vmstat["kcompressd_stolen"]
    routed = vmstat["kcompressd_queued"] + vmstat["kcompressd_inline"]
    return here / max(1, here, routed, vmstat["pgsteal_kswapd"])


def _points(samples: Histogram, unit: float) -> tuple[float, float, float]:
    """Return p50, p99 and the maximum, times `unit`."""
    points = (samples.quantile(0.5), samples.quantile(0.99), samples.max)
    p50, p99, most = (round(point * unit, 3) for point in points)
    return p50, p99, most


async def measure_round(
    topology: Topology, load: Load, seconds: float, measured: Measurement
) -> None:
    """Run one round; cancelled or failed, `measured` holds what there was until then.

    Args:
        topology: what is built for this round, and torn down after it.
        load: what is done to it.
        seconds: how long clients work; opening, verifying and closing come on top.
        measured: where everything goes.

    Raises:
        RunFailed: if a value differs, memory runs out, or the workload does not end.
        ReclaimError: what opening the memory raises.
    """
    gc.collect()  # the last round's values are not this round's RSS
    measured.rss_start = measured.rss_peak = rss_bytes()
    async with _opened(topology, load) as memory:
        compress = topology.compress
        measured.all_in_ram = all_in_ram(topology)
        measured.kswapd_in_loop = compress.mode == compress.offload == "inline"
        await _drive(memory, load, seconds, measured)
    _measure_bare(topology, load.input, measured)
    measured.finished = True


async def limit_of(topology: Topology, load: Load) -> float:
    """Return how many requests a second a topology serves where some are always waiting.

    Raises:
        RunFailed, ReclaimError: as `measure_round`.
    """
    async with _opened(topology, load) as memory:
        keys = _keys(memory, load, LIMIT_S, Measurement())
        with anyio.fail_after(LIMIT_S + GRACE_S):
            await WORKLOADS[load.workload].prepare(keys)
            return await limit(keys)


@asynccontextmanager
async def _opened(topology: Topology, load: Load) -> AsyncGenerator[Memory]:
    """Open a memory; what fails in the body is a failed run, what fails before is not."""
    opened = False
    try:
        async with open_memory(topology) as memory:
            opened = True
            yield memory
    except (ReclaimError, TimeoutError, ExceptionGroup) as exc:
        cause = _first(exc)
        if not opened:
            raise cause from exc
        raise RunFailed(_why(cause, load)) from exc


def _keys(memory: Memory, load: Load, seconds: float, measured: Measurement) -> Keys:
    ends = clock.perf_counter() + seconds
    budget = memory.usage().budget
    stop = lambda: clock.perf_counter() >= ends  # noqa: E731 - it is asked after each operation
    return Keys(
        memory, load.input, budget, load.seed, measured, stop, load.budgets, seconds, load.limit
    )


async def _drive(memory: Memory, load: Load, seconds: float, measured: Measurement) -> None:
    """Let the workload's clients loose on a memory for a time, then verify every value."""
    workload = WORKLOADS[load.workload]
    with anyio.fail_after(seconds + GRACE_S):
        before = _keys(memory, load, seconds, Measurement())
        await workload.prepare(before)
        with measured.measuring(memory):
            keys = _keys(memory, load, seconds, measured)
            keys.versions = before.versions
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(measured.tick, memory)
                await workload.run(keys)
                tasks.cancel_scope.cancel()
    await keys.verify()


def _measure_bare(topology: Topology, source: Input, measured: Measurement) -> None:
    """Call the topology's compressor alone on the same pages."""
    compress = registry.build("compressors", topology.compress.compressor).compress
    pages = itertools.cycle(source.values())
    while measured.bare_s < BARE_S:
        batch = list(itertools.islice(pages, 128))
        started = clock.perf_counter()
        blobs = [compress(page) for page in batch]
        measured.bare_s += clock.perf_counter() - started
        measured.bare_bytes += sum(map(len, blobs))
        measured.bare_pages += len(blobs)


def _first(exc: Exception) -> Exception:
    """Return the first plain exception in groups of groups."""
    if isinstance(exc, ExceptionGroup):
        return _first(cast("ExceptionGroup[Exception]", exc).exceptions[0])
    return exc


def _why(cause: Exception, load: Load) -> str:
    match cause:
        case OutOfMemory():
            return f"out of memory (clients put {load.budgets:g} x the budget): {cause}"
        case TimeoutError():
            return f"the clients did not end within {GRACE_S:.0f} s of their time"
        case ReclaimError():
            return str(cause)
        case _:
            log.error("run.failed", exc_info=cause)
            return f"a plugin raised what it may not: {cause!r}"


async def run_topology(topology: Topology, load: Load, *, seconds: float, name: str) -> Result:
    """Run one topology for one round and return its result.

    Args:
        topology: what to build.
        load: what to do to it.
        seconds: how long clients work.
        name: what the result calls the topology.
    """
    measured = Measurement()
    await measure_round(topology, load, seconds, measured)
    return Result.of(name, load, measured)


def machine() -> dict[str, Any]:
    """Return what a reader must know of the machine that the figures come from."""
    return {
        "system": platform.system(),
        "release": platform.release(),
        "machine": platform.machine(),
        "cpus": usable_cpus(),
        "python": platform.python_version(),
        "reclaimactors": __version__,
    }
