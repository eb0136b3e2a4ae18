"""What a topology may say: one frozen class a table, one field a key.

The TOML key is the field name. Each field takes what TOML can say and checks it (`checks.py`);
what concerns several keys is checked when all of them are there. Every error is a `TopologyError`
that names the key with its path, what was seen and what is allowed. What depends on the budget or
on this machine stays as it was asked (None, "2%") and is worked out by a method, so that another
budget moves it too. Where specs come from is in `load.py`, what is built of them in `build.py`.
"""

# mypy asks for annotations inside converters that are lambdas; the fields themselves have them.
# mypy: disable-error-code="var-annotated, no-untyped-def"

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar, cast

import attrs

from reclaimactors.errors import TopologyError
from reclaimactors.mm.swap import MAX_SWAPFILES
from reclaimactors.registry import PluginRef, elsewhere, known
from reclaimactors.topology import checks
from reclaimactors.topology.checks import bad
from reclaimactors.topology.cpus import usable_cpus
from reclaimactors.units import KIB, MIB, PAGE_SIZE, format_size

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["CompressSpec", "SenpaiSpec", "SwapSpec", "Topology", "WatermarksSpec", "ZswapSpec"]

MODES = ("inline", "kcompressd", "padata")
OFFLOADS = ("inline", "thread", "process")
ON_FULL = ("inline", "steal_oldest", "wait")
MIN_BUDGET_PAGES = 16
SWAP_TO_BUDGET = 16
PAGES = "a power of two, 512B to 1MiB"

S = TypeVar("S", bound=attrs.AttrsInstance)


@attrs.frozen(kw_only=True)
class WatermarksSpec:
    """When reclaim starts and stops, as free memory: 0 < min < low < high < budget.

    Each is a percentage of the budget ("2%"), or a size in bytes ("4MiB").
    """

    min: int | str = attrs.field(default="2%", converter=lambda value: checks.mark("min", value))
    """Below it a put reclaims for itself. Default 2%: a reserve that bursts seldom reach."""

    low: int | str = attrs.field(default="6%", converter=lambda value: checks.mark("low", value))
    """Below it kswapd wakes and puts are slowed. Default 6%, or as much more as a `fifo` that is
    not the default needs between min and low. One that is given, or a `high`, stays; then less is
    in flight."""

    high: int | str = attrs.field(default="12%", converter=lambda value: checks.mark("high", value))
    """kswapd sleeps from here on. Default 12%, twice low: it wakes seldom, for long. It goes
    up with low."""

    def resolve(self, budget: int) -> tuple[int, int, int]:
        """Return min, low and high in bytes.

        Args:
            budget: bytes that percentages are of.

        Raises:
            TopologyError: if they are not in order.
        """
        low, mid, high = (_share(mark, budget) for mark in (self.min, self.low, self.high))
        if not 0 < low < mid < high < budget:
            marks = f"min {self.min}, low {self.low}, high {self.high} of {format_size(budget)}"
            raise TopologyError(f"watermarks are {marks}; allowed: 0 < min < low < high < budget")
        return low, mid, high


def _offload(value: Any) -> str:
    """Return one of OFFLOADS, the name of a plugin that is installed, or a "module:attr"."""
    if isinstance(value, str) and (value in OFFLOADS or ":" in value):
        return value
    words = [*OFFLOADS, *(name for name, _ in known("offloads"))]
    if isinstance(value, str) and value in words:
        return value
    apart = elsewhere("offloads")
    allowed = ", ".join(words + [f"{name} (pip install {other})" for name, other in apart])
    raise bad(
        "offload", value, allowed + checks.suggest(value, words + [name for name, _ in apart])
    )


def _share(mark: int | str, budget: int) -> int:
    return int(budget * float(mark.removesuffix("%")) / 100) if isinstance(mark, str) else mark


@attrs.frozen(kw_only=True)
class CompressSpec:
    """Who compresses, on whose CPU, and what happens when the FIFO in front of it is full."""

    mode: str = attrs.field(
        default="kcompressd", converter=lambda value: checks.choice("mode", value, MODES)
    )
    """Who: "inline" (kswapd, which waits for it), "kcompressd" (one worker; default, the patch) or
    "padata" (several)."""

    workers: int | None = attrs.field(
        default=None,
        converter=lambda value: None if value is None else checks.integer("workers", value, 1, 256),
    )
    """Workers, 1 to 256, with padata. Default: one for each usable CPU (affinity and cgroup quota);
    kcompressd always has 1."""

    offload: str = attrs.field(
        default=attrs.Factory(lambda: "process" if usable_cpus() > 1 else "inline"),
        converter=_offload,
    )
    """On whose CPU: "inline" (the event loop's, in slices), "thread" (a worker thread's, which
    wants the GIL back after each page), "process" (a worker process's; default where there are two
    CPUs: a busy loop does not slow it down, and it may die without harm), or an offload plugin's:
    "native" is threads that never want the GIL. Where one CPU is usable the default is "inline": a
    worker would only take turns with the loop."""

    fifo: int = attrs.field(
        default=256,
        converter=lambda value: checks.integer("fifo", value, 1, 1 << 20, "(base pages)"),
    )
    """Base pages that may wait for a worker, 1 to 1048576. Default 256, as in the patch: 1 MiB of
    4 KiB pages is what a burst may run ahead. Never more than an eighth of the budget, nor than
    lies between min and low; the default shrinks to that, another one moves low and high up."""

    on_full: str = attrs.field(
        default="inline", converter=lambda value: checks.choice("on_full", value, ON_FULL)
    )
    """When the FIFO is full, kswapd: "inline" (compresses the newest folio itself; default, as the
    patch does), "steal_oldest" (takes back what has waited longest) or "wait". It waits anyway as
    long as free memory is at low, or it is the event loop that is short of time."""

    ordered: bool = attrs.field(
        default=False, converter=lambda value: checks.flag("ordered", value)
    )
    """With padata: verdicts in the order of submission. Default false: a slow page holds nobody
    up."""

    compressor: PluginRef = attrs.field(
        default=PluginRef("lz4"), converter=lambda value: PluginRef.parse(value, where="compressor")
    )
    """A compressor's name, a table with its name and options, or an object. Default "lz4"."""

    batch: int = attrs.field(
        default=128, converter=lambda value: checks.integer("batch", value, 1, 4096, "(pages)")
    )
    """Base pages that a worker takes at a time, 1 to 4096. Default 128: from there on what a hop
    costs no longer shows."""

    in_flight: int = attrs.field(
        default=4, converter=lambda value: checks.integer("in_flight", value, 1, 64, "(batches)")
    )
    """Batches on their way at a time, 1 to 64. Default 4: a worker never waits for the loop."""

    nice: int = attrs.field(
        default=10, converter=lambda value: checks.integer("nice", value, 0, 19)
    )
    """Niceness of worker processes, and of the threads of "native" on Linux, 0 to 19. Default 10:
    the event loop goes first."""

    def __attrs_post_init__(self) -> None:
        if self.workers is not None and self.mode == "inline":
            raise bad("workers", self.workers, "no such key with mode 'inline', which has none")
        if self.workers not in {None, 1} and self.mode == "kcompressd":
            raise bad("workers", self.workers, "1 with mode 'kcompressd'; mode 'padata' has more")
        if self.ordered and self.mode != "padata":
            raise bad("ordered", self.ordered, f"false with mode {self.mode!r}, true with 'padata'")
        if self.ordered and self.on_full == "steal_oldest":
            raise bad("on_full", self.on_full, "inline, wait (stealing would break `ordered`)")

    @property
    def nr_workers(self) -> int:
        """Workers that compress at the same time."""
        return self.workers or (usable_cpus() if self.mode == "padata" else 1)


@attrs.frozen(kw_only=True)
class ZswapSpec:
    """The pool of blobs in RAM, in front of the backing stores."""

    enabled: bool = attrs.field(default=True, converter=lambda value: checks.flag("enabled", value))
    """Default true. Without it folios go to the backing stores as they are."""

    max_pool_percent: int = attrs.field(
        default=20,
        converter=lambda value: checks.integer(
            "max_pool_percent", value, 1, 100, "(percent of the budget)"
        ),
    )
    """The pool's limit, 1 to 100 percent of the budget. Default 20, the kernel's."""

    accept_threshold_percent: int = attrs.field(
        default=90,
        converter=lambda value: checks.integer(
            "accept_threshold_percent", value, 1, 100, "(percent of the pool's limit)"
        ),
    )
    """A pool that was full takes blobs again below this, 1 to 100 percent of its limit. Default 90,
    the kernel's: hysteresis, so that it does not flap."""

    shrinker: bool = attrs.field(
        default=True, converter=lambda value: checks.flag("shrinker", value)
    )
    """Whether the coldest blobs are written back: from a full pool down to its threshold, and under
    pressure before it is full. Default true."""


@attrs.frozen(kw_only=True)
class SenpaiSpec:
    """Reclaim ahead of pressure, a little at a time, for as long as callers hardly stall."""

    enabled: bool = attrs.field(
        default=False, converter=lambda value: checks.flag("enabled", value)
    )
    """Whether there is such an actor. Default false."""

    interval: float = attrs.field(
        default=6.0,
        converter=lambda value: checks.number("interval", value, 0.001, 1e6, "seconds"),
    )
    """Seconds between two looks, 0.001 to 1000000. Default 6, as in TMO."""

    percent: float = attrs.field(
        default=0.05,
        converter=lambda value: checks.number("percent", value, 1e-6, 100, "percent"),
    )
    """Of what is resident, reclaimed in an interval without pressure, up to 100. Default 0.05."""

    pressure: float = attrs.field(
        default=0.1,
        converter=lambda value: checks.number("pressure", value, 1e-6, 100, "percent"),
    )
    """Percent of an interval that callers stall (PSI's some) from which nothing is reclaimed, up to
    100; half of it halves what is. Default 0.1."""


@attrs.frozen(kw_only=True)
class SwapSpec:
    """One backing store."""

    backend: PluginRef = attrs.field(
        default=PluginRef("file"), converter=lambda value: PluginRef.parse(value, where="backend")
    )
    """A backend's name, a table with its name and options, or an object. Default "file"."""

    size: int | None = attrs.field(
        default=None,
        converter=lambda value: (
            None if value is None else checks.size("size", value, "one page to 1PiB")
        ),
    )
    """Bytes it may take, one page to 1PiB. Default 16 x the budget: the file is sparse."""

    priority: int = attrs.field(
        default=10, converter=lambda value: checks.integer("priority", value, -32768, 32767)
    )
    """The highest is filled first, -32768 to 32767. Default 10."""

    timeout: float = attrs.field(
        default=30.0, converter=lambda value: checks.number("timeout", value, 0.001, 1e6, "seconds")
    )
    """Seconds that one call may take, 0.001 to 1000000; later it has failed. Default 30: what a
    disk may take that spins up, and no caller waits for ever."""


def _swaps(value: Any) -> tuple[SwapSpec, ...]:
    if not isinstance(value, (list, tuple)):
        raise bad("swap", value, "a list of tables: [[swap]]")
    tables = cast("Sequence[Any]", value)
    if len(tables) > MAX_SWAPFILES:
        raise bad("swap", tables, f"at most {MAX_SWAPFILES} tables")
    items = enumerate(tables)
    return tuple(table(SwapSpec, item, f"swap[{i}]") for i, item in items)


@attrs.frozen(kw_only=True)
class Topology:
    """A whole machine."""

    name: str = attrs.field(default="custom", converter=lambda value: checks.text("name", value))
    """What results call it. Default: the built-in's name, or the file's without ".toml"."""

    budget: int = attrs.field(
        default=64 * MIB,
        converter=lambda value: checks.size("budget", value, f"{MIN_BUDGET_PAGES} pages to 1PiB"),
    )
    """Bytes for all that is held in this process, 16 pages to 1PiB. Default 64MiB."""

    page_size: int = attrs.field(
        default=PAGE_SIZE, converter=lambda value: checks.size("page_size", value, PAGES)
    )
    """Bytes of a base page and of a swap slot, a power of two, 512B to 1MiB. Default 4KiB, as in
    the kernel: vmstat and the FIFO count them."""

    max_folio: int = attrs.field(
        default=256 * KIB,
        converter=lambda value: checks.size("max_folio", value, "page_size to 1GiB"),
    )
    """Bytes, page_size to 1GiB; a larger value is several folios. Default 256KiB: what lz4
    compresses in less than a millisecond."""

    policy: PluginRef = attrs.field(
        default=PluginRef("mglru"), converter=lambda value: PluginRef.parse(value, where="policy")
    )
    """A policy's name, a table with its name and options, or an object. Default "mglru"."""

    watermarks: WatermarksSpec = attrs.field(
        default=WatermarksSpec(), converter=lambda value: table(WatermarksSpec, value, "watermarks")
    )
    """When reclaim starts and stops."""

    brake: bool = attrs.field(default=True, converter=lambda value: checks.flag("brake", value))
    """Whether puts between low and min wait once they owe more than reclaim has freed. Default
    true; false is the kernel's rule: nobody waits above min."""

    nodes: int = attrs.field(
        default=1,
        converter=lambda value: checks.integer("nodes", value, 1, 1, "(there are no more yet)"),
    )
    """Memory nodes, each with its own kswapd: 1 in this version."""

    close_timeout: float = attrs.field(
        default=5.0,
        converter=lambda value: checks.number("close_timeout", value, 0.001, 1e6, "seconds"),
    )
    """Seconds within which close ends whatever hangs, 0.001 to 1000000. Default 5."""

    compress: CompressSpec = attrs.field(
        factory=CompressSpec, converter=lambda value: table(CompressSpec, value, "compress")
    )
    """Who compresses, on whose CPU."""

    zswap: ZswapSpec = attrs.field(
        default=ZswapSpec(), converter=lambda value: table(ZswapSpec, value, "zswap")
    )
    """The pool of blobs."""

    senpai: SenpaiSpec = attrs.field(
        default=SenpaiSpec(), converter=lambda value: table(SenpaiSpec, value, "senpai")
    )
    """Reclaim ahead of pressure."""

    swap: tuple[SwapSpec, ...] = attrs.field(default=(), converter=_swaps)
    """Backing stores; default none, and the pool is the last tier."""

    def __attrs_post_init__(self) -> None:
        page = self.page_size
        if page & (page - 1) or not 512 <= page <= MIB:
            raise bad("page_size", page, PAGES)
        if not page <= self.max_folio <= 1024 * MIB:
            raise bad("max_folio", self.max_folio, f"page_size, {format_size(page)}, to 1GiB")
        if self.budget < MIN_BUDGET_PAGES * page:
            least = format_size(MIN_BUDGET_PAGES * page)
            raise bad("budget", self.budget, f"{MIN_BUDGET_PAGES} pages, {least}, to 1PiB")
        for i, spec in enumerate(self.swap):
            if spec.size is not None and spec.size < page:
                raise bad(f"swap[{i}].size", spec.size, f"one page, {format_size(page)}, to 1PiB")
        self.watermarks.resolve(self.budget)

    def swap_bytes(self, spec: SwapSpec) -> int:
        """Return the size of one of its backing stores: 16 x the budget where none is given."""
        return SWAP_TO_BUDGET * self.budget if spec.size is None else spec.size


def table(cls: type[S], value: Any, where: str) -> S:
    """Return a spec from a table; an error of one of its keys gets the path `where` in front.

    Args:
        cls: the spec.
        value: a mapping, or a `cls`, which stays as it is.
        where: the table's key, "" for the topology itself.

    Raises:
        TopologyError: if it is no table, or has an unknown key or a bad value.
    """
    if isinstance(value, cls):
        return value
    if not checks.is_table(value):
        raise bad(where or "topology", value, "a table")
    path = f"{where}." if where else ""
    known = list(attrs.fields_dict(cls))
    for key in value:
        if key not in known:
            near = checks.suggest(key, known)
            raise TopologyError(f"{path}{key!s:.50} is not a key{near}; known: {', '.join(known)}")
    try:
        return cls(**value)
    except TopologyError as exc:
        raise TopologyError(f"{path}{exc}") from None
