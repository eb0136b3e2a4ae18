"""`MemoryCollector`: a memory for Prometheus. Needs the extra ``reclaimactors[prometheus]``."""

from __future__ import annotations

from typing import TYPE_CHECKING

try:
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
    from prometheus_client.registry import Collector
except ImportError as exc:
    msg = "prometheus_client is missing; to have it: pip install 'reclaimactors[prometheus]'"
    raise ImportError(msg, name="prometheus_client") from exc

from reclaimactors.metrics.samples import named, samples
from reclaimactors.stats import describe

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from prometheus_client import Metric

    from reclaimactors.memory import Memory
    from reclaimactors.stats import Stats

__all__ = ["MemoryCollector"]


class MemoryCollector(Collector):
    """The fields of `Memory.stats` as metrics ``reclaimactors_FIELD``, totals with ``_total``.

    Each has the labels ``memory``, and ``group``, which is empty for the memory itself::

        prometheus_client.REGISTRY.register(MemoryCollector(memory))

    A scrape may come from any thread. A closed memory goes on saying how it was at its end, with
    ``reclaimactors_serving`` 0, until it is taken out or the collector is unregistered.

    Args:
        memories: one, or several by name, which is looked at anew at each scrape: a registry takes
            one collector.
    """

    def __init__(self, memories: Memory | Mapping[str, Memory]) -> None:
        self._memories = named(memories)

    def collect(self) -> Iterator[Metric]:
        """Yield the metrics; those of one memory, or group, are of one instant."""
        return self._metrics(samples(self._memories))

    def describe(self) -> Iterator[Metric]:
        """Yield the metrics without values, for the registry: no other collector may have them."""
        return self._metrics(())

    def _metrics(self, found: Iterable[tuple[str, str, Stats]]) -> Iterator[Metric]:
        rows = list(found)
        for field, (words, is_total) in describe().items():
            family = CounterMetricFamily if is_total else GaugeMetricFamily
            metric = family(f"reclaimactors_{field}", words, labels=("memory", "group"))
            for name, group, stats in rows:
                metric.add_metric((name, group), float(getattr(stats, field)))
            yield metric
