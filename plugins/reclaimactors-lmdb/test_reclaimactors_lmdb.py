"""The conformance suite, and what is peculiar to LMDB."""
# ruff: noqa: D101, D102, D103 - a test's name is its sentence

from __future__ import annotations

import os
import random
import resource
import tomllib
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING

import pytest

import reclaimactors as ra
from reclaimactors.registry import PluginRef, build
from reclaimactors.testing import BackendTests
from reclaimactors_lmdb import Lmdb

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Generator

MIB = 1 << 20


class TestLmdb(BackendTests):
    def make_backend(self) -> Lmdb:
        return Lmdb(map_bytes=64 * MIB)

    def make_small_backend(self) -> Lmdb:
        return Lmdb(map_bytes=MIB)


class TestOverfullLmdb(BackendTests):
    """More is stored than its capacity, until LMDB itself says that it is full."""

    def make_backend(self) -> Lmdb:
        return Lmdb(map_bytes=64 * MIB)

    def make_small_backend(self) -> Lmdb:
        backend = Lmdb(map_bytes=2 * MIB)
        open_it = backend.open

        async def unbounded(page_size: int) -> None:
            await open_it(page_size)
            backend.capacity = None

        vars(backend)["open"] = unbounded
        return backend


def pages(slots: range, seed: int = 0) -> list[tuple[int, bytes]]:
    return [(slot, random.Random(slot + seed).randbytes(4096)) for slot in slots]  # noqa: S311


@pytest.fixture
async def store() -> AsyncGenerator[Lmdb]:
    backend = Lmdb(map_bytes=16 * MIB)
    await backend.open(4096)
    yield backend
    await backend.aclose()


def test_the_entry_point_names_the_factory() -> None:
    project = tomllib.loads(Path(__file__).with_name("pyproject.toml").read_text())["project"]
    name = str(project["entry-points"]["reclaimactors.backends"]["lmdb"])
    assert isinstance(build("backends", PluginRef(name)), Lmdb)
    with pytest.raises(ra.PluginError, match=r"map_bytes is 4096; allowed is 1 MiB \(1048576\)"):
        build("backends", PluginRef(name, {"map_bytes": 4096}))


async def test_a_folder_that_is_not_there_is_named() -> None:
    with pytest.raises(ra.BackendError, match=r"'/no/such': No such file .* give a `path`"):
        await Lmdb("/no/such").open(4096)


async def test_nothing_has_a_name_while_it_is_open(tmp_path: Path) -> None:
    backend = Lmdb(str(tmp_path))
    await backend.open(4096)
    try:
        await backend.store_many(pages(range(10)))
        assert os.listdir(tmp_path) == []  # noqa: PTH208 - one look, which blocks nothing
        assert dict(enumerate(await backend.load_many(range(10)))) == dict(pages(range(10)))
    finally:
        await backend.aclose()


async def test_a_full_map_of_any_history_can_be_emptied(store: Lmdb) -> None:
    """Forgetting takes pages too, of which a map that is filled to its capacity has enough."""
    assert store.capacity is not None
    rng = random.Random(1)  # noqa: S311 - reproducible
    held = dict(pages(range(store.capacity)))
    for first in range(0, store.capacity, 32):
        last = min(store.capacity, first + 32)
        await store.store_many([(slot, held[slot]) for slot in range(first, last)])
    for turn in range(40):
        slots = rng.sample(sorted(held), 32)
        await store.invalidate_many(slots)
        again = {slot: random.Random(slot + turn).randbytes(4096) for slot in slots}  # noqa: S311
        await store.store_many(list(again.items()))
        held |= again
    assert await store.load_many(list(held)) == list(held.values())
    for slot in sorted(held):
        if slot % 64 == 0:
            await store.invalidate_many(range(slot, slot + 64))
    with pytest.raises(ra.BackendError, match="is not stored"):
        await store.load(0)


@pytest.fixture
def no_larger_files() -> Generator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4 * MIB, hard))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.usefixtures("no_larger_files")
async def test_a_disk_without_room_is_full_and_loses_nothing(
    store: Lmdb, monkeypatch: pytest.MonkeyPatch
) -> None:
    stored = 0
    with pytest.raises(ra.BackendError, match="check that disk") as cut:  # noqa: PT012
        while True:
            await store.store_many(pages(range(stored, stored + 32)))
            stored += 32
    assert not isinstance(cut.value, ra.BackendFull), "there is room on the disk"
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=4096))
    with pytest.raises(ra.BackendFull, match="free space there, or give a `path`"):
        await store.store_many(pages(range(stored, stored + 32)))
    assert stored >= 320
    assert await store.load_many(range(stored)) == [data for _, data in pages(range(stored))]
    for first in (0, 64, 128):  # LMDB uses the pages of a transaction again in the next but one
        await store.invalidate_many(range(first, first + 64))
    await store.store_many(pages(range(32), seed=7))
    assert await store.load_many(range(32)) == [data for _, data in pages(range(32), seed=7)]


async def test_what_does_not_compress_goes_there_and_comes_back() -> None:
    swap = [{"backend": Lmdb(map_bytes=8 * MIB)}]
    values = dict(pages(range(900)))
    async with ra.open_memory("kcompressd", budget="1MiB", swap=swap) as memory:
        for key, value in values.items():
            await memory.put(key, value)
        assert memory.vmstat["pswpout"] > 400
        assert {key: await memory.get(key) for key in values} == values


async def test_a_store_that_comes_back_empty_is_detected() -> None:
    backend = Lmdb(map_bytes=16 * MIB)
    values = dict(pages(range(600)))
    lost = 0
    swap = [{"backend": backend}]
    async with ra.open_memory("kcompressd", budget="1MiB", swap=swap) as memory:
        for key, value in values.items():
            await memory.put(key, value)
        await memory.reclaim(MIB)
        assert backend._map is not None  # noqa: SLF001 - as somebody else would empty it
        with backend._map.begin(write=True) as transaction:  # noqa: SLF001
            transaction.drop(backend._map.open_db(), delete=False)  # noqa: SLF001
        for key, value in values.items():
            try:
                assert await memory.get(key) == value
            except ra.BackendError as exc:
                assert "is not stored" in str(exc)  # noqa: PT017 - of hundreds
                lost += 1
    assert lost > 100
