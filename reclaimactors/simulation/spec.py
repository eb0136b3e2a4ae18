"""A machine file: CPUs, who may run where, and what each thing costs, and who says so.

The file is TOML. Each cost is a table: ``{ value = 0.4, source = "assumed" }``. A source is
"assumed", "measured ..." or "stated by ...". Costs are of a CPU of capacity 1. There is no default
for a cost: what a machine file does not say, a simulation does not know.
"""

from __future__ import annotations

import tomllib
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import attrs

from reclaimactors.errors import ReclaimError
from reclaimactors.simulation.cpus import Cpu, Cpus

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

__all__ = [
    "ACTORS", "BUILT_IN", "CodecSpec", "Cost", "Costs", "CpuSpec", "Machine", "MachineError",
    "StoreSpec", "load",
]  # fmt: skip

BUILT_IN = ("phone", "laptop", "server")
ACTORS = ("loop", "threads")
_SOURCES = ("assumed", "measured", "stated by")
_OF_LOOP = ("submit_us", "copy_ns", "collect_us")  # what an event loop does for a batch
_US, _NS = 1e-6, 1e-9


class MachineError(ReclaimError, ValueError):
    """A machine file that cannot be used: it names the key, what was seen and what is allowed."""


@attrs.frozen
class Cost:
    """A figure, and where it is known from."""

    value: float
    source: str


@attrs.frozen
class CpuSpec:
    """CPUs of one kind.

    Attributes:
        count: how many.
        capacity: work that one does in a second, 1 for that which costs are of.
        watts: that one takes while it is busy.
    """

    count: int
    capacity: float
    watts: Cost


@attrs.frozen
class Costs:
    """What the core and whoever carries it out cost. `_us` is microseconds, `_ns` nanoseconds.

    Attributes:
        put_us: of a folio that is put.
        get_us: of one that is read in memory.
        fault_us: of one that comes back, without decompressing it.
        scan_us: of one that is taken off the lists.
        unmap_us: of one that has left memory.
        batch_us: of a batch, for the worker.
        wake_us: from when a batch is done until somebody notices: no work.
        submit_us: of a batch, for the event loop.
        copy_ns: of a byte that goes to a worker, for the event loop.
        collect_us: of a folio that comes back from one, for the event loop.
    """

    put_us: Cost
    get_us: Cost
    fault_us: Cost
    scan_us: Cost
    unmap_us: Cost
    batch_us: Cost
    wake_us: Cost
    submit_us: Cost = Cost(0.0, "assumed")
    copy_ns: Cost = Cost(0.0, "assumed")
    collect_us: Cost = Cost(0.0, "assumed")

    def seconds(self, name: str) -> float:
        """Return one of them in seconds."""
        value: float = getattr(self, name).value
        return value * (_NS if name.endswith("_ns") else _US)


@attrs.frozen
class CodecSpec:
    """What a compressor costs.

    Attributes:
        compress_call_us: of each call, as the kernel's crypto API has a fixed cost a page.
        compress_byte_ns: of each byte of the source.
        decompress_call_us: the same, back.
        decompress_byte_ns: the same, of each byte of the result.
        at_once: pages of a batch that an engine compresses at the same time; 1 for a CPU.
    """

    compress_call_us: Cost
    compress_byte_ns: Cost
    decompress_call_us: Cost
    decompress_byte_ns: Cost
    at_once: int = 1

    @property
    def compress_s(self) -> tuple[float, float]:
        """Seconds of a call, and of a byte."""
        return self.compress_call_us.value * _US, self.compress_byte_ns.value * _NS

    @property
    def decompress_s(self) -> tuple[float, float]:
        """Seconds of a call, and of a byte."""
        return self.decompress_call_us.value * _US, self.decompress_byte_ns.value * _NS


@attrs.frozen
class StoreSpec:
    """A block device, and what asking it costs.

    Attributes:
        latency_us: of a request, on the device.
        byte_ns: of a byte on its bus: 1 is 1 GB/s.
        depth: requests that it works on at the same time.
        call_us: work of whoever asks, for a call of several pages.
        page_us: the same, for a page.
    """

    latency_us: Cost
    byte_ns: Cost
    depth: Cost
    call_us: Cost
    page_us: Cost

    @property
    def places(self) -> int:
        """The depth, as a number of requests."""
        return max(1, int(self.depth.value))


@attrs.frozen
class Machine:
    """A machine that a simulation runs on.

    Attributes:
        name: that results have.
        actors: "loop", all but the workers are one thread, or "threads", each is its own.
        cpus: of each kind.
        slice_ms: for how long a thread runs while others wait for its CPU.
        switch_us: that it takes to move a CPU to another thread.
        costs: of the core.
        codec: of compressors by name.
        store: what stands in for any store outside the process.
        affinity: indexes of the CPUs that somebody may run on: "kswapd", "workers", "swapd",
            "callers", and "loop"; all CPUs for who is not in it.
    """

    name: str
    actors: str
    cpus: tuple[CpuSpec, ...]
    slice_ms: Cost
    switch_us: Cost
    costs: Costs
    codec: Mapping[str, CodecSpec]
    store: StoreSpec
    affinity: Mapping[str, tuple[int, ...]] = attrs.field(factory=dict[str, tuple[int, ...]])

    @property
    def nr_cpus(self) -> int:
        """How many CPUs it has."""
        return sum(spec.count for spec in self.cpus)

    def build(self) -> Cpus:
        """Return its CPUs, with the clock at 0."""
        kinds = [spec for spec in self.cpus for _ in range(spec.count)]
        cpus = [Cpu(i, spec.capacity, spec.watts.value) for i, spec in enumerate(kinds)]
        return Cpus(cpus, slice_s=self.slice_ms.value * 1e-3, switch_s=self.switch_us.value * _US)

    def allowed(self, who: str) -> tuple[int, ...]:
        """Return the CPUs that an actor, the workers or the callers may run on."""
        return self.affinity.get(who, tuple(range(self.nr_cpus)))

    def codec_of(self, compressor: str) -> CodecSpec:
        """Return what a compressor costs here.

        Raises:
            MachineError: if nobody has said it.
        """
        if compressor not in self.codec:
            known = ", ".join(self.codec) or "none"
            msg = f"machine {self.name!r} does not say what compressor {compressor!r} costs;"
            raise MachineError(f"{msg} known: {known}; add a table [codec.{compressor}]")
        return self.codec[compressor]

    def figures(self) -> Iterator[tuple[str, Cost]]:
        """Yield each figure by its key, with its source."""
        for i, spec in enumerate(self.cpus):
            yield f"cpu[{i}].watts", spec.watts
        yield "scheduler.slice_ms", self.slice_ms
        yield "scheduler.switch_us", self.switch_us
        tables: dict[str, Any] = {"costs": self.costs, "store": self.store}
        tables |= {f"codec.{name}": spec for name, spec in self.codec.items()}
        for where, table in tables.items():
            for field in attrs.fields(cast("Any", type(table))):
                cost = getattr(table, field.name)
                unused = where == "costs" and self.actors == "threads" and field.name in _OF_LOOP
                if isinstance(cost, Cost) and not unused:
                    yield f"{where}.{field.name}", cost

    def as_dict(self) -> dict[str, Any]:
        """Return what a result says of the machine that it is of."""
        return {
            "name": self.name,
            "actors": self.actors,
            "cpus": [{"count": spec.count, "capacity": spec.capacity} for spec in self.cpus],
            "affinity": {who: list(cpus) for who, cpus in self.affinity.items()},
            "figures": {name: attrs.asdict(cost) for name, cost in self.figures()},
        }


def load(name: str) -> Machine:
    """Return a built-in machine, or that of a TOML file.

    Raises:
        MachineError: if there is no such file, or it cannot be used.
    """
    if name in BUILT_IN:
        text = files("reclaimactors.simulation").joinpath(f"{name}.toml").read_text()
    else:
        try:
            text = Path(name).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as exc:
            why = exc.strerror if isinstance(exc, OSError) else "it is not UTF-8"
            msg = f"cannot read machine {name!r}: {why}; built in: {', '.join(BUILT_IN)}"
            raise MachineError(msg) from exc
    try:
        table = tomllib.loads(text)
    except tomllib.TOMLDecodeError as exc:
        raise MachineError(f"machine {name!r} is not TOML: {exc}") from exc
    try:
        return parse(table, name=Path(name).stem)
    except MachineError as exc:
        raise MachineError(f"machine {name!r}: {exc}") from None


def parse(table: Mapping[str, Any], *, name: str) -> Machine:
    """Return a machine from the tables of its file.

    Raises:
        MachineError: that names the key.
    """
    _known(table, "", "name actors cpu affinity scheduler costs codec store")
    actors = table.get("actors")
    if actors not in ACTORS:
        raise MachineError(f"actors is {actors!r}; allowed: {', '.join(map(repr, ACTORS))}")
    cpus = _cpus(table)
    scheduler = _table(table, "scheduler")
    _known(scheduler, "scheduler.", "slice_ms switch_us")
    codecs = _table(table, "codec")
    optional = _OF_LOOP if actors == "threads" else ()
    return Machine(
        name=str(table.get("name", name)),
        actors=actors,
        cpus=cpus,
        slice_ms=_cost(scheduler, "scheduler", "slice_ms", least=1e-3),
        switch_us=_cost(scheduler, "scheduler", "switch_us"),
        costs=Costs(**_costs(_table(table, "costs"), "costs", Costs, optional)),
        codec={
            codec: CodecSpec(**_costs(_table(codecs, codec, "codec."), f"codec.{codec}", CodecSpec))
            for codec in codecs
        },
        store=StoreSpec(**_costs(_table(table, "store"), "store", StoreSpec)),
        affinity=_affinity(table.get("affinity", {}), sum(spec.count for spec in cpus)),
    )


def _known(table: Mapping[str, Any], where: str, keys: str) -> None:
    for key in table:
        if key not in keys.split():
            raise MachineError(f"{where}{key} is not a key; known: {', '.join(keys.split())}")


def _table(table: Mapping[str, Any], key: str, where: str = "") -> Mapping[str, Any]:
    value = table.get(key)
    if not isinstance(value, dict):
        seen = "is missing" if value is None else f"is {value!r}"
        raise MachineError(f"{where}{key} {seen}; allowed: a table [{where}{key}]")
    return cast("Mapping[str, Any]", value)


def _list(value: Any) -> list[Any]:
    """Return a list; what is none is empty."""
    return [*value] if isinstance(value, list) else []


def _cpus(table: Mapping[str, Any]) -> tuple[CpuSpec, ...]:
    cpus = _list(table.get("cpu"))
    if not cpus:
        raise MachineError("cpu is missing; allowed: one table [[cpu]] for each kind of CPU")
    specs: list[CpuSpec] = []
    for i, cpu in enumerate(cpus):
        where = f"cpu[{i}]"
        if not isinstance(cpu, dict):
            raise MachineError(f"{where} is {cpu!r}; allowed: a table [[cpu]]")
        kind = cast("Mapping[str, Any]", cpu)
        _known(kind, f"{where}.", "count capacity watts")
        count, capacity = kind.get("count", 1), kind.get("capacity")
        if type(count) is not int or not 1 <= count <= 256:
            raise MachineError(f"{where}.count is {count!r}; allowed: 1 to 256")
        if type(capacity) not in (int, float) or not 0.001 <= float(capacity or 0) <= 1000:
            raise MachineError(f"{where}.capacity is {capacity!r}; allowed: 0.001 to 1000")
        specs.append(CpuSpec(count, float(capacity or 0), _cost(kind, where, "watts")))
    return tuple(specs)


def _costs(
    table: Mapping[str, Any], where: str, cls: type[Any], optional: tuple[str, ...] = ()
) -> dict[str, Any]:
    names = [field.name for field in attrs.fields(cls)]
    _known(table, f"{where}.", " ".join(names))
    found: dict[str, Any] = {}
    for name in names:
        if name == "at_once":
            found[name] = at_once = table.get(name, 1)
            if type(at_once) is not int or not 1 <= at_once <= 1024:
                raise MachineError(f"{where}.at_once is {at_once!r}; allowed: 1 to 1024 pages")
        elif name in table or name not in optional:
            found[name] = _cost(table, where, name)
    return found


def _cost(table: Mapping[str, Any], where: str, key: str, least: float = 0.0) -> Cost:
    given: Any = table.get(key)
    form = '{ value = NUMBER, source = "measured ..." or "stated by ..." or "assumed" }'
    if not isinstance(given, dict):
        seen = "is missing" if given is None else f"is {given!r}"
        raise MachineError(f"{where}.{key} {seen}; give {form}")
    cost = cast("Mapping[str, Any]", given)
    _known(cost, f"{where}.{key}.", "value source")
    value, source = cost.get("value"), cost.get("source")
    if type(value) not in (int, float) or not least <= float(value or 0) <= 1e9:
        raise MachineError(f"{where}.{key}.value is {value!r}; allowed: {least:g} to 1e9")
    if not isinstance(source, str) or not source.startswith(_SOURCES):
        raise MachineError(f"{where}.{key}.source is {source!r}; give {form}")
    return Cost(float(value or 0), source)


def _affinity(given: Any, nr_cpus: int) -> dict[str, tuple[int, ...]]:
    if not isinstance(given, dict):
        raise MachineError(f"affinity is {given!r}; allowed: a table [affinity]")
    table = cast("Mapping[str, Any]", given)
    _known(table, "affinity.", "kswapd workers swapd callers loop")
    affinity: dict[str, tuple[int, ...]] = {}
    for who, given_cpus in table.items():
        cpus = _list(given_cpus)
        if not cpus or not all(type(cpu) is int and 0 <= cpu < nr_cpus for cpu in cpus):
            allowed = f"a list of CPUs, 0 to {nr_cpus - 1}"
            raise MachineError(f"affinity.{who} is {given_cpus!r}; allowed: {allowed}")
        affinity[who] = tuple(cpus)
    return affinity
