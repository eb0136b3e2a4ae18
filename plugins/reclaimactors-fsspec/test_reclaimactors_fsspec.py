"""The conformance suite on the local file system, and what is peculiar to objects."""
# ruff: noqa: D101, D102, D103 - a test's name is its sentence

from __future__ import annotations

import errno
import os
import random
import shutil
import tempfile
from typing import TYPE_CHECKING

import pytest

import reclaimactors as ra
from reclaimactors.testing import BackendTests

if TYPE_CHECKING:
    from pathlib import Path

_WHY = "pip install ./plugins/reclaimactors-fsspec"
fsspec = pytest.importorskip("reclaimactors_fsspec", reason=_WHY)


class TestFsspec(BackendTests):
    def make_backend(self) -> ra.Backend:
        return fsspec.Fsspec(f"file://{tempfile.gettempdir()}")


def test_memory_is_refused() -> None:
    with pytest.raises(ra.PluginError, match="use the backend 'memory'"):
        fsspec.Fsspec("memory://here")


async def test_an_unknown_file_system_is_named() -> None:
    with pytest.raises(ra.BackendError, match="opening at nosuch://x: ValueError"):
        await fsspec.Fsspec("nosuch://x").open(4096)


async def test_a_full_disk_is_said(tmp_path: Path) -> None:
    store = fsspec.Fsspec(f"file://{tmp_path}")
    await store.open(4096)

    def full(_objects: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    store._fs = type("Full", (), {"pipe": staticmethod(full), "rm": store._fs.rm})  # noqa: SLF001
    with pytest.raises(ra.BackendFull, match="make room there"):
        await store.store_many([(0, b"data")])
    with pytest.raises(ra.BackendError, match="slot 0 is not stored"):
        await store.load(0)
    await store.aclose()
    assert os.listdir(tmp_path) == []  # noqa: PTH208 - one look, which blocks nothing


async def test_a_store_that_comes_back_empty_is_detected_and_can_be_used_on(tmp_path: Path) -> None:
    values = {nr: random.Random(nr).randbytes(4096) for nr in range(350)}  # noqa: S311
    lost = 0
    swap = [{"backend": fsspec.Fsspec(f"file://{tmp_path}")}]
    async with ra.open_memory("kcompressd", budget="1MiB", swap=swap) as memory:
        for key, value in values.items():
            await memory.put(key, value)
        await memory.reclaim(1 << 20)
        (folder,) = (tmp_path / name for name in os.listdir(tmp_path))  # noqa: PTH208
        shutil.rmtree(folder)
        folder.mkdir()
        for key, value in values.items():
            try:
                assert await memory.get(key) == value
            except ra.BackendError as exc:
                assert "FileNotFoundError" in str(exc)  # noqa: PT017 - of hundreds
                lost += 1
        await memory.put("new", b"value")
        assert await memory.get("new") == b"value"
    assert lost > 50
    assert os.listdir(tmp_path) == []  # noqa: PTH208
