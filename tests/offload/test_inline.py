"""Compressing in the event loop: in pieces that it can bear."""

import pytest

from reclaimactors import registry
from reclaimactors.cpu.breath import TURN_S
from reclaimactors.cpu.loop_thread import Cpu
from reclaimactors.mm.page_io import squeeze
from reclaimactors.offload import inline
from reclaimactors.offload.inline import MOST_AT_ONCE, InlineOffload
from reclaimactors.registry import PluginRef

LZ4 = registry.build("compressors", PluginRef("lz4"))
PAGES = [bytes([i]) * 2000 + bytes(range(256)) * 8 for i in range(40)]


@pytest.fixture
def pieces(monkeypatch):
    """The lengths of the pages of each piece; a byte takes a millionth of half a turn."""
    taken = []
    now = [100.0]

    def timed(compressor, pages, **how):
        taken.append([len(page) for page in pages])
        now[0] += sum(map(len, pages)) * TURN_S / 2e6
        return squeeze(compressor, pages, **how)

    monkeypatch.setattr(inline, "squeeze", timed)
    monkeypatch.setattr(inline.clock, "perf_counter", lambda: now[0])
    return taken


@pytest.mark.parametrize("of_sources", [False, True])
async def test_the_rows_are_those_of_the_batch_in_one_go(of_sources):
    expected = squeeze(LZ4, PAGES, checksum=of_sources, of_sources=of_sources)
    out = await InlineOffload(LZ4).squeeze(PAGES, of_sources=of_sources)
    assert (out.kinds, out.blobs, out.values) == (expected.kinds, expected.blobs, expected.values)
    assert not (await InlineOffload(LZ4).squeeze([])).kinds


async def test_the_first_page_says_how_many_go_at_once(pieces):
    offload = InlineOffload(LZ4)
    await offload.squeeze([bytes(1000)] * 20)
    assert list(map(len, pieces)) == [1, MOST_AT_ONCE, MOST_AT_ONCE, 3]


async def test_a_piece_is_half_a_turns_work_or_one_page(pieces):
    offload = InlineOffload(LZ4)
    sizes = [300_000, 300_000, 300_000, 500_000, 400_000, 200_000, 2_000_000, 100, 100]
    await offload.squeeze([bytes(size) for size in sizes])
    assert pieces == [
        [300_000],
        [300_000, 300_000],
        [500_000, 400_000],
        [200_000],
        [2_000_000],
        [100, 100],
    ]


async def test_what_the_loop_compresses_is_pressure():
    cpu = Cpu(4096)
    before = cpu.psi.snapshot(cpu.now()).full.total
    await InlineOffload(LZ4, cpu=cpu).squeeze(PAGES * 50)
    assert cpu.psi.snapshot(cpu.now()).full.total > before
