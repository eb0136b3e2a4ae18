"""What a topology may say: one frozen class a table, one field a key.

The TOML key is the field name. Each field checks its own value; what concerns several keys is
checked in `Topology`. Every error is a `TopologyError` that names the key, what was seen and what is
allowed.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, TypeVar

import attrs

from reclaimactors.errors import TopologyError
from reclaimactors.registry import PluginRef
from reclaimactors.units import MIB, PAGE_SIZE, format_size, parse_size

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

__all__ = ["CompressSpec", "SwapSpec", "Topology", "WatermarksSpec", "ZswapSpec"]

MODES = ("inline", "kcompressd", "padata")
OFFLOADS = ("inline", "thread")
ON_FULL = ("inline", "steal_oldest", "wait")
DEFAULT_OFFLOAD = "thread"
MIN_BUDGET_PAGES = 16

S = TypeVar("S")


# -- fields: each is a converter that knows what is allowed ------------------------------------------


def _field(check: Callable[[Any, str], Any], default: Any, *, doc: str) -> Any:
    """Return an attrs field whose value `check(value, key)` has seen and converted."""
    return attrs.field(
        default=default,
        metadata={"doc": doc},
        converter=attrs.Converter(_named(check), takes_field=True),  # type: ignore[misc] # attrs' stubs
    )


def _named(check: Callable[[Any, str], Any]) -> Callable[[Any, Any], Any]:
    def convert(value: Any, field: Any) -> Any:
        return check(value, field.name)

    return convert


def _bad(key: str, value: Any, allowed: str) -> TopologyError:
    return TopologyError(f"{key} is {value!r}; {allowed}")


def _size(value: Any, key: str) -> int:
    try:
        return parse_size(value)
    except (ValueError, OverflowError) as exc:
        raise TopologyError(f"{key}: {exc}") from exc


def _optional_size(value: Any, key: str) -> int | None:
    return None if value is None else _size(value, key)


def _int(least: int, most: int = 1 << 40) -> Callable[[Any, str], int]:
    def check(value: Any, key: str) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
            allowed = f"{least} to {most}" if most < 1 << 40 else f"{least} or more"
            raise _bad(key, value, f"it is a whole number, {allowed}")
        return value

    return check


def _number(least: float, most: float, unit: str) -> Callable[[Any, str], float]:
    def check(value: Any, key: str) -> float:
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise _bad(key, value, f"it is a number of {unit}")
        if not least <= value <= most:
            raise _bad(key, value, f"it is {least:g} to {most:g} {unit}")
        return float(value)

    return check


def _choice(allowed: Sequence[str]) -> Callable[[Any, str], str]:
    def check(value: Any, key: str) -> str:
        if value not in allowed:
            raise _bad(key, value, f"it is one of {', '.join(allowed)}")
        return str(value)

    return check


def _offload(value: Any, key: str) -> str:
    if value == "process":
        raise _bad(key, value, f"worker processes do not exist yet; use {' or '.join(OFFLOADS)}")
    return _choice(OFFLOADS)(value, key)


def _bool(value: Any, key: str) -> bool:
    if not isinstance(value, bool):
        raise _bad(key, value, "it is true or false")
    return value


def _optional(check: Callable[[Any, str], Any]) -> Callable[[Any, str], Any]:
    return lambda value, key: None if value is None else check(value, key)


def _plugin(value: Any, key: str) -> PluginRef:
    return PluginRef.parse(value, where=key)


def _text(value: Any, key: str) -> str:
    if not isinstance(value, str) or not value:
        raise _bad(key, value, "it is a name")
    return value


# -- tables ----------------------------------------------------------------------------------------


@attrs.frozen(kw_only=True)
class WatermarksSpec:
    """Free memory, as percent of the budget ("2%") or a size: 0 < min < low < high < budget."""

    min: Any = "2%"
    low: Any = "6%"
    high: Any = "12%"

    def resolve(self, budget: int) -> tuple[int, int, int]:
        """Return min, low and high in free bytes of `budget`."""
        marks = [self._bytes(name, budget) for name in ("min", "low", "high")]
        low, mid, high = marks
        if not 0 < low < mid < high < budget:
            seen = ", ".join(
                f"{name} {format_size(mark)}"
                for name, mark in zip(("min", "low", "high"), marks, strict=True)
            )
            msg = f"watermarks are {seen} of {format_size(budget)}; 0 < min < low < high < budget"
            raise TopologyError(msg)
        return low, mid, high

    def _bytes(self, name: str, budget: int) -> int:
        value = getattr(self, name)
        key = f"watermarks.{name}"
        if isinstance(value, str) and value.strip().endswith("%"):
            try:
                share = float(value.strip()[:-1])
            except ValueError:
                raise _bad(key, value, "it is a percentage like '2%' or a size") from None
            if not 0 <= share <= 100:
                raise _bad(key, value, "a percentage is 0% to 100%")
            return int(budget * share / 100)
        return _size(value, key)


@attrs.frozen(kw_only=True)
class CompressSpec:
    """Who compresses, on whose CPU, and what happens when the queue in front of it is full."""

    mode: str = _field(
        _choice(MODES), "kcompressd", doc="who: kswapd itself, one worker, or a pool"
    )
    workers: int | None = _field(
        _optional(_int(1, 1024)), None, doc="absent: the usable CPUs for padata, 1 for kcompressd"
    )
    offload: str = _field(_offload, DEFAULT_OFFLOAD, doc="on whose CPU: the loop's, or a thread's")
    fifo: int = _field(_int(1, 1 << 20), 256, doc="base pages waiting, the seed's bound")
    on_full: str = _field(
        _choice(ON_FULL), "inline", doc="kswapd compresses the newest, or the oldest, or waits"
    )
    ordered: bool = _field(_bool, default=False, doc="padata: verdicts in submission order")
    compressor: PluginRef = _field(_plugin, "lz4", doc="a plugin's name, or a table with options")
    batch: int = _field(_int(1, 1 << 16), 128, doc="pages that a worker takes at a time")
    in_flight: int = _field(_int(1, 1024), 4, doc="batches on their way at a time")
    nice: int = _field(_int(0, 19), 10, doc="of worker processes")

    def __attrs_post_init__(self) -> None:
        if self.workers is not None and self.mode == "inline":
            raise _bad(
                "workers", self.workers, "with mode 'inline' kswapd compresses: leave it out"
            )
        if self.mode == "kcompressd" and self.workers not in {None, 1}:
            raise _bad("workers", self.workers, "kcompressd is one worker; use mode 'padata'")
        if self.ordered and self.mode != "padata":
            raise _bad("ordered", self.ordered, f"only padata has an order, not {self.mode!r}")
        if self.ordered and self.on_full == "steal_oldest":
            raise _bad("on_full", self.on_full, "an ordered stream cannot be stolen from")

    @property
    def nr_workers(self) -> int:
        """Workers that compress at the same time."""
        if self.workers is not None:
            return self.workers
        return usable_cpus() if self.mode == "padata" else 1


@attrs.frozen(kw_only=True)
class ZswapSpec:
    """The compressed pool."""

    enabled: bool = _field(_bool, default=True, doc="off: folios go to a device as they are")
    max_pool_percent: float = _field(
        _number(0, 100, "percent of the budget"), 20, doc="the kernel's default"
    )
    accept_threshold_percent: float = _field(
        _number(0, 100, "percent of that limit"), 90, doc="once full, takes nothing until here"
    )
    shrinker: bool = _field(_bool, default=True, doc="cold blobs are written back to a device")


@attrs.frozen(kw_only=True)
class SwapSpec:
    """One backing store."""

    backend: PluginRef = _field(_plugin, "file", doc="a plugin's name, or a table with options")
    size: int | None = _field(_optional_size, None, doc="bytes; absent: 16 x the budget")
    priority: int = _field(_int(-32768, 32767), 10, doc="highest is filled first")
    timeout: float = _field(_number(0.001, 1e6, "seconds"), 30.0, doc="of one call of the store")


def _tables(value: Any, key: str) -> tuple[SwapSpec, ...]:
    if not isinstance(value, (list, tuple)):
        raise _bad(key, value, "it is a list of tables: [[swap]]")
    items: Sequence[Any] = value  # pyright: ignore[reportUnknownVariableType] # TOML
    return tuple(table(SwapSpec, item, f"{key}[{i}]") for i, item in enumerate(items))


def _table(cls: type[Any]) -> Callable[[Any, str], Any]:
    return lambda value, key: table(cls, value, key)


def table(cls: type[S], value: Any, where: str) -> S:
    """Return a spec from a TOML table; errors carry the path `where`.

    Raises:
        TopologyError: for a value that is no table, an unknown key, or a bad value.
    """
    if isinstance(value, cls):
        return value
    if not isinstance(value, dict):
        raise _bad(where, value, "it is a table")
    keys: dict[str, Any] = dict(value)  # pyright: ignore[reportUnknownArgumentType] # TOML
    reject_unknown(cls, keys, where)
    try:
        return cls(**keys)
    except TopologyError as exc:
        raise TopologyError(f"{where}.{exc}" if where else str(exc)) from exc.__cause__


def reject_unknown(cls: type[Any], keys: Mapping[str, Any], where: str) -> None:
    """Raise for a key that the table does not have, suggesting the nearest one."""
    import difflib  # noqa: PLC0415 - only an error needs it

    names = [field.name for field in attrs.fields(cls)]
    for key in keys:
        if key not in names:
            path = f"{where}.{key}" if where else str(key)
            near = difflib.get_close_matches(str(key), names, 1)
            hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(names)}"
            raise TopologyError(f"{path} is not a key; {hint}")


@attrs.frozen(kw_only=True)
class Topology:
    """A whole machine. Sizes are ints of bytes once constructed."""

    name: str = _field(_text, "custom", doc="what output calls it")
    budget: int = _field(_size, 64 * MIB, doc="bytes for everything held in this process")
    page_size: int = _field(_size, PAGE_SIZE, doc="bytes, a power of two; a slot's size")
    max_folio: int = _field(_size, "256KiB", doc="bytes; a larger value is several folios")
    policy: PluginRef = _field(_plugin, "mglru", doc="a plugin's name, or a table with options")
    watermarks: WatermarksSpec = _field(_table(WatermarksSpec), WatermarksSpec(), doc="free bytes")
    nodes: int = _field(_int(1, 1024), 1, doc="1 in this version")
    close_timeout: float = _field(
        _number(0.001, 1e6, "seconds"), 5.0, doc="after which close ends whatever hangs"
    )
    compress: CompressSpec = _field(_table(CompressSpec), CompressSpec(), doc="[compress]")
    zswap: ZswapSpec = _field(_table(ZswapSpec), ZswapSpec(), doc="[zswap]")
    swap: tuple[SwapSpec, ...] = _field(_tables, (), doc="[[swap]], absent = none")

    def __attrs_post_init__(self) -> None:
        page = self.page_size
        if page < 512 or page & (page - 1) or page > 1 << 20:
            raise _bad("page_size", page, "it is a power of two, 512B to 1MiB")
        if self.max_folio < page:
            raise _bad("max_folio", self.max_folio, f"it is at least page_size, {page}")
        if self.budget < MIN_BUDGET_PAGES * page:
            least = format_size(MIN_BUDGET_PAGES * page)
            raise _bad("budget", self.budget, f"it is at least {MIN_BUDGET_PAGES} pages: {least}")
        if self.nodes != 1:
            raise _bad("nodes", self.nodes, "more than one node is not available yet; it is 1")
        for i, spec in enumerate(self.swap):
            if spec.size is not None and spec.size < page:
                raise _bad(f"swap[{i}].size", spec.size, f"it is at least one page, {page}")
        self.watermarks.resolve(self.budget)

    def swap_bytes(self, spec: SwapSpec) -> int:
        """Return the size of one of its backing stores: 16 x the budget where none is given."""
        return 16 * self.budget if spec.size is None else spec.size


def usable_cpus() -> int:
    """Return how many CPUs this process may run on."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # macOS
        return os.cpu_count() or 1
