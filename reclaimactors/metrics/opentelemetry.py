"""`observe`: a memory for OpenTelemetry. Needs the extra ``reclaimactors[opentelemetry]``."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING
from weakref import WeakValueDictionary

try:
    from opentelemetry.metrics import Observation, get_meter
except ImportError as exc:
    msg = "opentelemetry is missing; to have it: pip install 'reclaimactors[opentelemetry]'"
    raise ImportError(msg, name="opentelemetry") from exc

from reclaimactors.metrics.samples import named, samples
from reclaimactors.stats import describe

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from opentelemetry.metrics import CallbackOptions, Meter

    from reclaimactors.memory import Memory

__all__ = ["observe"]

_UNITS = {"bytes": "By", "pages": "{page}", "seconds": "s"}  # as UCUM has them


def observe(memories: Memory | Mapping[str, Memory], *, meter: Meter | None = None) -> None:
    """Make an observable instrument ``reclaimactors.FIELD`` of each field of `Memory.stats`.

    Totals are counters, levels are gauges. Each observation has the attributes ``memory`` and
    ``group``, which is empty for the memory itself. Observing goes on after the close, with
    ``reclaimactors.serving`` 0, and ends once nothing else refers to the memory.

    Args:
        memories: one, or several by name; a meter takes one call.
        meter: that makes the instruments; None: that of the global provider.
    """
    meter = meter or get_meter("reclaimactors")
    seen = WeakValueDictionary(named(memories))
    for field, (words, is_total) in describe().items():
        make = meter.create_observable_counter if is_total else meter.create_observable_gauge
        unit = _UNITS.get(field.rpartition("_")[2], "1")
        make(f"reclaimactors.{field}", [partial(_observed, seen, field)], unit, words)


def _observed(
    seen: WeakValueDictionary[str, Memory], field: str, options: CallbackOptions
) -> Iterator[Observation]:
    del options
    for name, group, stats in samples(seen):
        yield Observation(getattr(stats, field), {"memory": name, "group": group})
