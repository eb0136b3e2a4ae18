"""A worker's results in a memory: by hand, and in a cluster of two workers on loopback."""
# ruff: noqa: D103 - a test's name is its sentence

from __future__ import annotations

import gc
import logging
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from distributed import Client, LocalCluster

from reclaimactors_dask import ReclaimBuffer, reclaim_buffer

if TYPE_CHECKING:
    from collections.abc import Iterator

    import reclaimactors as ra

KIB = 1 << 10
SPEC: dict[str, Any] = {"budget": "2MiB", "swap": [], "compress": {"offload": "inline"}}


@pytest.fixture
def buffer() -> Iterator[ReclaimBuffer]:
    buffer = reclaim_buffer(100 * KIB, **SPEC)
    yield buffer
    buffer.close()


def array(i: int, size: int = 30 * KIB) -> Any:
    return np.full(size, i, "u1")


def in_memory(buffer: ReclaimBuffer) -> ra.Memory:
    return buffer._slow_uncached.d.memory.memory


def test_the_coldest_are_evicted_and_come_back_as_they_were(buffer: ReclaimBuffer) -> None:
    keys = [("x", 1), "y", *(f"z{i}" for i in range(8))]
    for i, key in enumerate(keys):
        buffer[key] = array(i)
    assert set(buffer) == set(keys)
    assert 0 < len(buffer.fast) < 4
    assert len(in_memory(buffer)) == len(buffer.slow) == 10 - len(buffer.fast)
    assert buffer.spilled_total.memory >= len(buffer.slow) * 30 * KIB
    for i, key in enumerate(keys):
        value = buffer[key]
        assert (value == array(i)).all()
        value[0] = 99  # it is the caller's own
    del buffer["y"]
    assert "y" not in buffer
    assert buffer.cumulative_metrics["disk-write", "count"] >= 7


def test_what_is_in_use_is_not_made_twice(buffer: ReclaimBuffer) -> None:
    buffer["key"] = array(1)
    value = buffer["key"]
    while buffer.fast:
        assert buffer.evict() > 0
    assert buffer["key"] is value
    del value
    gc.collect()
    assert (buffer["key"] == array(1)).all()


def test_evict_never_raises(buffer: ReclaimBuffer, caplog: pytest.LogCaptureFixture) -> None:
    buffer["bad"] = Unpicklable
    buffer["bad"] = Unpicklable()
    with caplog.at_level(logging.ERROR):
        assert buffer.evict() == -1
    assert isinstance(buffer["bad"], Unpicklable)
    assert "bad" in buffer.fast


class Unpicklable:
    """It cannot be spilled."""

    def __reduce__(self) -> Any:
        raise TypeError("not me")

    def __sizeof__(self) -> int:
        return 10


def test_where_the_memory_is_full_a_result_stays_as_it_is() -> None:
    buffer = reclaim_buffer(100 * KIB, **SPEC | {"budget": "256KiB"})
    try:
        values = {f"{i}": np.random.default_rng(i).bytes(60 * KIB) for i in range(10)}
        for key, value in values.items():
            buffer[key] = value
        assert sum(len(value) for value in buffer.fast.values()) > 200 * KIB
        assert {key: buffer[key] for key in values} == values
    finally:
        buffer.close()


def make(i: int) -> Any:
    return np.full(1 << 18, i, "u4")


def total(parts: list[Any]) -> int:
    return int(sum(int(part.sum()) for part in parts))


def test_a_cluster_of_two_workers_holds_more_than_their_targets() -> None:
    spec = SPEC | {"budget": "8MiB", "target": 4 << 20}
    with (
        LocalCluster(
            n_workers=2, threads_per_worker=1, processes=False, dashboard_address=None,
            data=(reclaim_buffer, spec), memory_limit=0,
        ) as cluster,
        Client(cluster) as client,
    ):  # fmt: skip
        parts = client.map(make, range(40))  # 40 MiB, each worker has 12
        client.gather(client.map(np.sum, parts))
        buffers = [worker.data for worker in cluster.workers.values()]
        assert sum(len(buffer.slow) for buffer in buffers) >= 30
        assert all(isinstance(buffer, ReclaimBuffer) for buffer in buffers)
        expected = sum(range(40)) << 18
        assert client.submit(total, parts).result() == expected
        for i, part in enumerate(client.gather(parts)):
            assert (part == make(i)).all()
    for buffer in buffers:
        buffer.close()
