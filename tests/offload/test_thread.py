"""Threads: the event loop helps where one starves, and only there."""

import threading
import time

import anyio
import pytest

from reclaimactors import registry
from reclaimactors.mm.page_io import squeeze
from reclaimactors.offload.race import LEAST, LOST, MOST, PIECE, Patience
from reclaimactors.offload.thread import ThreadOffload
from reclaimactors.registry import PluginRef

LZ4 = registry.build("compressors", PluginRef("lz4"))
PAGES = [bytes([i]) * 2000 + bytes(range(256)) * 8 for i in range(40)]


class Starving:
    """Of each batch but the first, a thread compresses `gets` pages, and then waits for `go`."""

    name = "starving"

    def __init__(self, gets=0):
        self.go = threading.Event()
        self.gets = gets
        self.starves = False
        self.by_loop = 0
        self.by_thread = 0

    def compress(self, data):
        if threading.current_thread() is threading.main_thread():
            self.by_loop += 1
        else:
            self.by_thread += 1
            if self.starves and self.by_thread > self.gets:
                self.go.wait()
        return LZ4.compress(data)


class Slow:
    """Two milliseconds of CPU a page."""

    name = "slow"
    by_loop = 0

    def compress(self, data):
        self.by_loop += threading.current_thread() is threading.main_thread()
        ends = time.thread_time() + 0.002
        while time.thread_time() < ends:
            pass
        return data[:1]


def rows_of(out):
    return list(out.kinds), out.blobs, out.values


@pytest.mark.parametrize("gets", [0, 1, PIECE, PIECE + 1, 2 * PIECE + 3, len(PAGES) - 1])
@pytest.mark.parametrize("of_sources", [False, True])
async def test_a_batch_ends_where_its_thread_starves(gets, of_sources):
    starving = Starving(gets)
    offload = ThreadOffload(starving, workers=1)
    expected = squeeze(LZ4, PAGES, checksum=of_sources, of_sources=of_sources)
    try:
        first = await offload.squeeze(PAGES, of_sources=of_sources)
        assert rows_of(first) == rows_of(expected)
        assert starving.by_loop == 0  # it is not known yet what a page takes
        starving.starves = True
        starving.by_thread = 0
        with anyio.fail_after(20):
            out = await offload.squeeze(PAGES, of_sources=of_sources)
    finally:
        starving.go.set()
    assert rows_of(out) == rows_of(expected)
    assert starving.by_loop >= len(PAGES) - gets
    assert not offload.late


async def test_a_thread_that_starves_no_longer_gets_its_batches_again():
    starving = Starving()
    offload = ThreadOffload(starving, workers=1)
    await offload.squeeze(PAGES)
    starving.starves = True
    with anyio.fail_after(20):
        for _ in range(8):
            await offload.squeeze(PAGES)
    starving.starves = False
    starving.go.set()
    with anyio.fail_after(20):
        while True:
            starving.by_loop = 0
            await offload.squeeze(PAGES)
            if not starving.by_loop:
                return


def test_a_thread_that_keeps_losing_is_waited_for_at_times():
    patience = Patience()
    waits = []
    for _ in range(3 * LOST):
        waits.append(patience.times)
        patience.learn(kept_up=False)
    assert [i for i, times in enumerate(waits) if times == MOST] == [0, LOST, 2 * LOST]
    assert min(waits) == LEAST
    for _ in range(6):
        patience.learn(kept_up=True)
    assert patience.times == MOST


async def test_the_first_batch_of_a_thread_that_starves_ends_too():
    starving = Starving(gets=1)
    starving.starves = True
    offload = ThreadOffload(starving, workers=1)
    try:
        with anyio.fail_after(20):
            out = await offload.squeeze(PAGES)
    finally:
        starving.go.set()
    assert rows_of(out) == rows_of(squeeze(LZ4, PAGES))
    assert starving.by_loop == len(PAGES) - 1


async def test_the_event_loop_never_helps_with_what_takes_it_too_long():
    slow = Slow()
    offload = ThreadOffload(slow, workers=1)
    for _ in range(4):
        await offload.squeeze(PAGES[:12])
    assert slow.by_loop == 0


async def test_a_thread_whose_batch_was_cancelled_stops_at_the_next_piece():
    starving = Starving(gets=PIECE)
    starving.starves = True
    offload = ThreadOffload(starving, workers=1)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(offload.squeeze, PAGES)
        while starving.by_thread <= PIECE:
            await anyio.sleep(0.001)
        tasks.cancel_scope.cancel()
    starving.go.set()
    starving.starves = False
    starving.by_thread = 0
    await offload.squeeze(PAGES)  # the one thread has come to its end before
    assert starving.by_thread - len(PAGES) < PIECE


async def test_what_needs_no_compressor_says_nothing_of_how_slow_it_is():
    slow = Slow()
    offload = ThreadOffload(slow, workers=1)
    for _ in range(4):
        await offload.squeeze([bytes(4096)] * 200)
        await offload.squeeze(PAGES[:8])
    assert slow.by_loop == 0
