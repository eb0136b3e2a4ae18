"""zarr's own StoreTests, and what is peculiar to this store.

Of the suite 5 tests do not apply, and it skips them: `test_get_sync`, `test_get_sync_missing`,
`test_set_sync`, `test_delete_sync`, `test_delete_sync_missing`. The store has no synchronous
surface: each of its calls may wait.
"""
# ruff: noqa: D101, D102, D103 - a test's name is its sentence

from __future__ import annotations

import pickle
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import zarr
from zarr.core.buffer import Buffer, cpu, default_buffer_prototype
from zarr.testing.store import StoreTests

import reclaimactors as ra
from reclaimactors_zarr import ReclaimStore

if TYPE_CHECKING:
    from collections.abc import Iterator

MIB = 1 << 20
SPEC = {"budget": "1MiB", "swap": [], "compress": {"offload": "inline"}}


@pytest.fixture
def memory() -> Iterator[ra.BlockingMemory]:
    with ra.open_blocking(**SPEC) as memory:
        yield memory


class TestReclaimStore(StoreTests[ReclaimStore, cpu.Buffer]):
    store_cls = ReclaimStore
    buffer_cls = cpu.Buffer

    @pytest.fixture
    def store_kwargs(self, memory: ra.BlockingMemory) -> dict[str, Any]:
        return {"memory": memory}

    async def set(self, store: ReclaimStore, key: str, value: Buffer) -> None:
        store._memory[key] = value.to_bytes()

    async def get(self, store: ReclaimStore, key: str) -> Buffer:
        return self.buffer_cls.from_bytes(store._memory[key])

    def test_store_repr(self, store: ReclaimStore) -> None:
        assert repr(store) == f"ReclaimStore({store._memory!r})"

    def test_store_supports_writes(self, store: ReclaimStore) -> None:
        assert store.supports_writes

    def test_store_supports_listing(self, store: ReclaimStore) -> None:
        assert store.supports_listing


def pattern(row: int, size: int) -> Any:
    """Bytes that compress by half, other ones for each row."""
    noise = np.random.default_rng(row).integers(0, 256, size // 2, dtype="u1")
    return np.concatenate([noise, np.full(size - size // 2, row % 256, "u1")])


def test_an_array_of_many_times_the_budget_is_read_back_as_it_was() -> None:
    rows, size = 60, MIB // 4
    with ra.open_blocking(budget="4MiB", compress={"offload": "inline"}) as memory:
        array = zarr.create_array(
            ReclaimStore(memory), shape=(rows, size), chunks=(1, size), dtype="u1", compressors=None
        )
        for row in range(rows):
            array[row] = pattern(row, size)
            assert memory.memory.stats().free_bytes >= 0
        stats = memory.memory.stats()
        assert stats.swapped_bytes > 4 * MIB
        for row in range(rows):
            assert np.array_equal(array[row], pattern(row, size))


async def test_the_asynchronous_surface_of_zarr(memory: ra.BlockingMemory) -> None:
    group = await zarr.api.asynchronous.create_group(store=ReclaimStore(memory))
    array = await group.create_array("a", shape=(8,), chunks=(2,), dtype="i4")
    await array.setitem(slice(None), np.arange(8, dtype="i4"))
    assert (await array.getitem(slice(2, 5))).tolist() == [2, 3, 4]
    assert [name async for name in ReclaimStore(memory).list_dir("a")] == ["zarr.json", "c"]


async def test_a_value_that_never_fits_raises_and_the_old_one_stays(
    memory: ra.BlockingMemory,
) -> None:
    store = ReclaimStore(memory)
    await store.set("key", cpu.Buffer.from_bytes(b"old"))
    with pytest.raises(ra.OutOfMemory):
        await store.set("key", cpu.Buffer.from_bytes(bytes(2 * MIB)))
    found = await store.get("key", default_buffer_prototype())
    assert found is not None
    assert found.to_bytes() == b"old"


def test_another_process_is_told_that_it_has_no_part_in_it(memory: ra.BlockingMemory) -> None:
    data = pickle.dumps(ReclaimStore(memory))
    program = "import pickle, sys; pickle.loads(sys.stdin.buffer.read())"
    ended = subprocess.run(
        [sys.executable, "-c", program], input=data, capture_output=True, check=False
    )
    assert b"open one in each, or read the array where it is" in ended.stderr
