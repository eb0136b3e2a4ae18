"""`Memory.stats`, and what Prometheus and OpenTelemetry make of it."""

from __future__ import annotations

import gc
import re
import subprocess
import sys

import attrs
import pytest
from anyio import to_thread
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from prometheus_client import CollectorRegistry, generate_latest

import reclaimactors as ra
from reclaimactors.metrics.opentelemetry import observe
from reclaimactors.metrics.prometheus import MemoryCollector
from reclaimactors.stats import describe

SPEC = {"budget": "1MiB", "swap": [{"backend": "memory", "size": "8MiB"}],
        "compress": {"offload": "inline"}}  # fmt: skip


async def filled(memory):
    for i in range(600):
        await memory.put(i, b"%d " % i * 900)
    await memory.drain()
    for i in range(5):
        await memory.get(i)


def test_a_name_ends_in_its_unit_and_says_what_it_counts():
    units = "bytes|pages|seconds|keys|stalls|errors|restarts|deaths|parts|serving"
    for name, (words, _) in describe().items():
        assert re.fullmatch(rf"(\w+_)?({units})", name), name
        assert words[0].isupper(), name
        assert words.endswith("."), name


async def test_it_says_what_usage_pressure_and_vmstat_say():
    async with ra.open_memory(**SPEC) as memory:
        await filled(memory)
        async with memory.pin(5):
            stats = memory.stats()
        usage, vmstat = memory.usage(), memory.vmstat
        assert stats.keys == 600
        held = stats.resident_bytes + stats.compressed_bytes + stats.overhead_bytes
        assert stats.budget_bytes == held + stats.free_bytes == 1 << 20
        assert stats.resident_bytes == usage.resident > stats.pinned_bytes == len(b"5 " * 900)
        assert stats.pgsteal_pages == vmstat["pgsteal_anon"] > 0
        assert stats.pgscan_pages == vmstat["pgscan_anon"] >= stats.pgsteal_pages
        assert stats.refault_pages == vmstat["workingset_refault_anon"] > 0
        assert stats.zswpout_pages == vmstat["zswpout"] > 0
        assert stats.compress_cpu_seconds == vmstat["compress_usec"] / 1e6 > 0
        assert stats.stalled_full_seconds > 0
        assert (stats.serving, stats.degraded_parts) == (True, 0)
        with pytest.raises(attrs.exceptions.FrozenInstanceError):
            stats.keys = 0
    assert memory.stats().serving is False


async def test_a_group_says_its_own_and_any_thread_may_ask():
    async with ra.open_memory(**SPEC) as memory:
        group = memory.group("tenant", max="256KiB")
        await filled(group)
        of_group, of_all = await to_thread.run_sync(lambda: (group.stats(), memory.stats()))
        assert (of_group.keys, of_all.keys) == (600, 0)
        assert of_group.budget_bytes == 256 << 10
        assert of_all.pgsteal_pages == of_group.pgsteal_pages > 0
        assert of_group.direct_stalls == group.vmstat["max"]
        assert of_all.resident_bytes == of_group.resident_bytes


def lines(registry):
    return dict(
        line.rsplit(" ", 1)
        for line in generate_latest(registry).decode().splitlines()
        if not line.startswith("#")
    )


async def test_prometheus_sees_each_field_of_the_memory_and_of_its_groups():
    registry = CollectorRegistry()
    async with ra.open_memory(**SPEC) as memory:
        await filled(memory.group("a").group("b"))
        collector = MemoryCollector(memory)
        registry.register(collector)
        shown = await to_thread.run_sync(lines, registry)
        assert len(shown) == 3 * len(describe())
        stats = memory.groups["a"].groups["b"].stats()
        for name, (_, is_total) in describe().items():
            labels = '{group="a/b",memory="default"}'
            found = shown[f"reclaimactors_{name}{'_total' if is_total else ''}{labels}"]
            if not name.endswith("seconds"):
                assert float(found) == getattr(stats, name), name
    assert lines(registry)['reclaimactors_serving{group="",memory="default"}'] == "0.0"
    registry.unregister(collector)
    assert lines(registry) == {}


async def test_several_memories_have_one_collector_and_may_come_later():
    registry = CollectorRegistry()
    memories = {}
    registry.register(MemoryCollector(memories))
    with pytest.raises(ValueError, match="Duplicated"):
        registry.register(MemoryCollector(memories))
    async with ra.open_memory(**SPEC) as one, ra.open_memory(**SPEC) as other:
        memories |= {"one": one, "other": other}
        await other.put("key", b"value")
        shown = lines(registry)
    assert shown['reclaimactors_keys{group="",memory="one"}'] == "0.0"
    assert shown['reclaimactors_keys{group="",memory="other"}'] == "1.0"


def observed(reader):
    data = reader.get_metrics_data()
    if data is None:
        return {}
    metrics = data.resource_metrics[0].scope_metrics[0].metrics
    return {
        (metric.name, point.attributes["group"]): (metric.unit, point.value)
        for metric in metrics
        for point in metric.data.data_points
    }


async def test_opentelemetry_sees_each_field_until_the_memory_is_gone():
    reader = InMemoryMetricReader()
    provider = MeterProvider([reader])
    async with ra.open_memory(**SPEC) as memory:
        observe(memory, meter=provider.get_meter("mine"))
        await filled(memory.group("a"))
        shown = observed(reader)
        stats = memory.stats()
        assert len(shown) == 2 * len(describe())
        assert shown["reclaimactors.resident_bytes", ""] == ("By", stats.resident_bytes)
        assert shown["reclaimactors.pgsteal_pages", "a"] == ("{page}", stats.pgsteal_pages)
        assert shown["reclaimactors.keys", "a"] == ("1", 600)
    del memory
    gc.collect()
    assert observed(reader) == {}
    provider.shutdown()


@pytest.mark.parametrize(
    ("extra", "library"),
    [("prometheus", "prometheus_client"), ("opentelemetry", "opentelemetry.metrics")],
)
def test_a_missing_library_is_one_line_with_what_to_install(extra: str, library: str):
    program = (
        f"import sys; sys.modules[{library!r}] = None\n"
        f"try: import reclaimactors.metrics.{extra}\n"
        "except ImportError as exc: print(exc)"
    )
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True,
                           check=True)  # fmt: skip
    name = library.partition(".")[0]
    hint = f"to have it: pip install 'reclaimactors[{extra}]'"
    assert ended.stdout == f"{name} is missing; {hint}\n"
