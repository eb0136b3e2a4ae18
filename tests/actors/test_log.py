"""What is said when a compressor fails: once for each time that it stops working."""

import logging
from itertools import count
from random import Random

import pytest
from anyio.lowlevel import checkpoint

import reclaimactors as ra
from reclaimactors.actors.handover import RECOVERED
from reclaimactors.compressors.lz4 import Lz4
from reclaimactors.testing import FaultyCompressor

KEYS = count()


def lines(caplog):
    return [record for record in caplog.records if "compressor.failed" in record.message]


async def put_noise(memory, nr, *, nowait):
    for key in range(nr):
        if nowait:
            memory.put_nowait(key, Random(key).randbytes(4096))
        else:
            await memory.put(key, Random(key).randbytes(4096))


async def reclaim_pages(memory, nr):
    """Put and reclaim so many values, as batches of whatever size."""
    for _ in range(nr):
        key = next(KEYS)
        await memory.put(key, Random(key).randbytes(1024) + b"x" * 3072)
        memory.advise(key, ra.Advice.COLD)
        await memory.reclaim(1)
        await memory.drain()
        await memory.delete(key)


@pytest.mark.parametrize("nowait", [False, True])
async def test_a_compressor_that_fails_is_said_once(caplog, nowait):
    caplog.set_level(logging.WARNING, "reclaimactors")
    compress = {"compressor": FaultyCompressor(Lz4(), every=1), "offload": "thread"}
    async with ra.open_memory(budget="1MiB", compress=compress, swap=[]) as memory:
        with pytest.raises(ra.OutOfMemory):
            await put_noise(memory, 300, nowait=nowait)
        assert memory.vmstat["reject_compress_fail"] > 100
    [line] = lines(caplog)
    assert line.levelno == logging.WARNING
    assert "lz4" in line.message
    assert "error='CorruptData: this compressor fails as told'" in line.message


async def test_it_is_said_again_only_after_it_had_worked(caplog):
    caplog.set_level(logging.WARNING, "reclaimactors")
    broken = True
    compressor = FaultyCompressor(Lz4(), when=lambda _page: broken)
    compress = {"compressor": compressor, "offload": "inline", "mode": "inline"}
    async with ra.open_memory(budget="1MiB", compress=compress, swap=[]) as memory:
        await reclaim_pages(memory, 1)
        broken = False
        await reclaim_pages(memory, RECOVERED - 1)
        broken = True
        await reclaim_pages(memory, 1)
        assert len(lines(caplog)) == 1  # it had hardly worked
        broken = False
        await reclaim_pages(memory, RECOVERED)
        broken = True
        await reclaim_pages(memory, 1)
        assert len(lines(caplog)) == 2


async def test_a_line_says_of_which_memory_it_is(caplog):
    caplog.set_level(logging.DEBUG, "reclaimactors")
    for topology in ("padata", "kcompressd"):
        async with ra.open_memory(topology, budget="1MiB", swap=[]) as memory:
            memory._machine.starter.start()
            await checkpoint()
    lines = [record.message for record in caplog.records]
    started = [line for line in lines if line.startswith("actors.started ")]
    assert ["memory='padata' nid=0" in line for line in started] == [True, False]
    assert ["memory='kcompressd' nid=0" in line for line in started] == [False, True]
