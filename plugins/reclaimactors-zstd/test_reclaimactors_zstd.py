"""The conformance suite, and what is peculiar to zstd."""
# ruff: noqa: D101, D102, D103 - a test's name is its sentence

from __future__ import annotations

import pickle
import tomllib
from pathlib import Path

import pytest
import zstandard

import reclaimactors as ra
from reclaimactors.registry import PluginRef, build
from reclaimactors.testing import CompressorTests
from reclaimactors_zstd import Zstd

PAGE = b"kswapd0: order:0, mode:0x400dc0 " * 128


class TestZstd(CompressorTests):
    def make_compressor(self) -> Zstd:
        return Zstd()


class TestFastZstd(CompressorTests):
    def make_compressor(self) -> Zstd:
        return Zstd(level=-5)


def entry_point() -> str:
    project = tomllib.loads(Path(__file__).with_name("pyproject.toml").read_text())["project"]
    return str(project["entry-points"]["reclaimactors.compressors"]["zstd"])


def test_the_entry_point_names_the_factory() -> None:
    zstd = build("compressors", PluginRef(entry_point(), {"level": 19}))
    assert (type(zstd), zstd.name) == (Zstd, "zstd")


@pytest.mark.parametrize("level", [23, 2.5, "fast"])
def test_a_bad_level_is_refused_where_it_is_built(level: object) -> None:
    with pytest.raises(ra.PluginError, match="refused its options"):
        build("compressors", PluginRef(entry_point(), {"level": level}))


def test_a_copy_for_a_worker_has_the_same_level() -> None:
    source = Path(__file__).read_bytes()
    blobs = [Zstd(level).compress(source) for level in (19, -9)]
    copy = pickle.loads(pickle.dumps(Zstd(19)))  # noqa: S301 - made here
    assert copy.compress(source) == blobs[0] != blobs[1]


@pytest.mark.parametrize(
    "blob",
    [
        Zstd().compress(PAGE) + b"x",
        Zstd().compress(PAGE) * 2,
        zstandard.ZstdCompressor(write_content_size=False).compress(PAGE),
    ],
    ids=["trailing", "two frames", "no size"],
)
def test_a_frame_that_is_not_ours_is_corrupt(blob: bytes) -> None:
    with pytest.raises(ra.CorruptData, match=r"^zstd: "):
        Zstd().decompress(blob, len(PAGE))


async def test_it_works_as_a_topologys_compressor() -> None:
    compressor = {"name": entry_point(), "level": 1}
    values = {nr: PAGE + b"%d" % nr for nr in range(300)}
    async with ra.open_memory(
        "kcompressd",
        budget="1MiB",
        swap=[],
        compress={"compressor": compressor, "offload": "thread"},
    ) as memory:
        for key, value in values.items():
            await memory.put(key, value)
        assert {key: await memory.get(key) for key in values} == values
        assert memory.usage().compressed > 0
