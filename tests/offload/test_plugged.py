"""Offload plugins: batches given, waited for and taken back, whatever the plugin does."""

import os
import sys
from contextlib import asynccontextmanager
from types import SimpleNamespace

import anyio
import pytest

import reclaimactors as ra
from reclaimactors import registry
from reclaimactors.mm.page_io import squeeze
from reclaimactors.offload.plugged import PluggedOffload
from reclaimactors.offload.process import WorkerDied
from reclaimactors.registry import PluginRef
from reclaimactors.squeezed import Squeezed
from reclaimactors.testing import ContractBroken, OffloadTests

LZ4 = registry.build("compressors", PluginRef("lz4"))
PAGES = [bytes([i]) * 2000 + bytes(range(256)) * 8 for i in range(40)]


class ByHand:
    """Compresses in the caller: at once, or where `held`, when `work` is called."""

    held = False
    refuses = 0  # times that `open` raises
    stubborn = 0  # times that `close` is not done

    def __init__(self, *, compressor, workers, nice):
        self.compressor = compressor
        self.given = (workers, nice)
        self.pipe = None
        self.todo, self.done = {}, {}
        self.number = 0
        self.closes = 0

    @property
    def staging(self):
        return 4096

    def open(self):
        if self.refuses:
            self.refuses -= 1
            raise OSError(11, "no thread")
        assert self.pipe is None
        self.pipe = os.pipe()
        return self.pipe[0]

    def submit(self, pages, *, of_sources):
        for page in pages:
            if type(page) is not bytes:
                raise TypeError(page)
        self.number += 1
        self.todo[self.number] = (list(pages), of_sources)
        if not self.held:
            self.work()
        return self.number

    def work(self):
        for number, (pages, of_sources) in self.todo.items():
            self.done[number] = squeeze(
                self.compressor, pages, checksum=True, of_sources=of_sources
            )
            os.write(self.pipe[1], b"x")
        self.todo.clear()

    def collect(self):
        if not self.done:
            return None
        os.read(self.pipe[0], 1)
        return self.done.popitem()

    def close(self):
        self.closes += 1
        if self.stubborn:
            self.stubborn -= 1
            return False
        if self.pipe is not None:
            os.close(self.pipe[0])
            os.close(self.pipe[1])
        self.pipe = None
        self.todo.clear()
        self.done.clear()
        return True


class TestByHand(OffloadTests):
    offload = ByHand

    def make_offload(self, compressor, workers):
        return self.offload(compressor=compressor, workers=workers, nice=10)


class LeavesOutChecksums(ByHand):
    def collect(self):
        done = super().collect()
        if done is not None:
            done[1].values = [0] * len(done[1].values)
        return done


class KeepsTheList(ByHand):
    def submit(self, pages, *, of_sources):
        number = super().submit(pages, of_sources=of_sources)
        self.kept = pages
        return number

    def collect(self):
        done = super().collect()
        if done is not None and not self.kept:
            done[1].blobs.clear()
        return done


class KeepsPages(ByHand):
    kept = ()

    def submit(self, pages, *, of_sources):
        self.kept += tuple(pages)
        return super().submit(pages, of_sources=of_sources)


class GivesTwice(ByHand):
    last = None

    def collect(self):
        done = super().collect()
        if done is None:
            done, self.last = self.last, None
        else:
            self.last = done
        return done


class TakesAnything(ByHand):
    def submit(self, pages, *, of_sources):
        return super().submit(list(map(bytes, pages)), of_sources=of_sources)


@pytest.mark.parametrize(
    ("broken", "caught_by"),
    [
        (LeavesOutChecksums, "rows_are_those_of_the_compressor"),
        (KeepsTheList, "holds_its_pages_and_lets_go_of_them"),
        (KeepsPages, "closes_with_batches_under_way_and_opens_again"),
        (GivesTwice, "several_batches_at_a_time"),
        (TakesAnything, "a_page_that_is_not_bytes_is_refused"),
    ],
)
def test_the_suite_catches_a_broken_one(broken, caught_by):
    suite = TestByHand()
    suite.offload = broken
    with pytest.raises(ContractBroken):
        getattr(suite, f"test_{caught_by}")()


@asynccontextmanager
async def running(plugin, **how):
    offload = PluggedOffload(plugin, LZ4, name="by_hand", workers=1, **how)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(offload.run)
        yield offload
        tasks.cancel_scope.cancel()


def by_hand(**ways):
    plugin = ByHand(compressor=LZ4, workers=1, nice=10)
    for name, value in ways.items():
        setattr(plugin, name, value)
    return plugin


async def until(condition):
    with anyio.fail_after(20):
        while not condition():
            await anyio.sleep(0)


def rows_of(out):
    return list(out.kinds), out.blobs, out.values


@pytest.mark.parametrize("of_sources", [False, True])
@pytest.mark.parametrize("loop", ["asyncio", "trio"])
def test_rows_are_those_of_the_plugin(of_sources, loop):
    async def main():
        plugin = by_hand()
        async with running(plugin) as offload:
            out = await offload.squeeze(PAGES, of_sources=of_sources)
            assert rows_of(out) == rows_of(
                squeeze(LZ4, PAGES, checksum=True, of_sources=of_sources)
            )
            assert (offload.staging, offload.inline, offload.degraded) == (4096, False, "")
            assert offload.holds
        assert plugin.pipe is None

    anyio.run(main, backend=loop)


async def test_batches_end_in_any_order():
    plugin = by_hand(held=True)
    async with running(plugin) as offload, anyio.create_task_group() as tasks:
        ended = []

        async def one(page):
            out = await offload.squeeze([page])
            assert out.blobs == [LZ4.compress(page)]
            ended.append(page)

        for page in PAGES[:5]:
            tasks.start_soon(one, page)
        await until(lambda: len(plugin.todo) == 5)
        assert not offload.late
        plugin.work()
        await until(lambda: len(ended) == 5)


async def test_the_rows_of_a_cancelled_batch_are_dropped():
    plugin = by_hand(held=True)
    async with running(plugin) as offload:
        with anyio.move_on_after(0):
            await offload.squeeze(PAGES[:3])
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(offload.squeeze, PAGES[3:5])
            await until(lambda: plugin.todo)
            tasks.cancel_scope.cancel()
        plugin.held = False
        out = await offload.squeeze(PAGES[5:7])
        assert rows_of(out) == rows_of(squeeze(LZ4, PAGES[5:7], checksum=True))
        assert not offload._tickets


async def test_a_plugin_that_does_not_answer_is_late(monkeypatch):
    now = [100.0]
    monkeypatch.setattr("reclaimactors.offload.plugged.current_time", lambda: now[0])
    plugin = by_hand(held=True)
    async with running(plugin) as offload, anyio.create_task_group() as tasks:
        tasks.start_soon(offload.squeeze, PAGES[:3])
        await until(lambda: plugin.todo)
        assert not offload.late
        now[0] += 0.2
        assert offload.late
        plugin.work()
        await until(lambda: not offload._tickets)
        now[0] += 10
        assert not offload.late


@pytest.mark.asyncio(loop_factories=["virtual"])
async def test_where_it_cannot_start_the_event_loop_compresses_and_it_is_tried_again(caplog):
    plugin = by_hand(refuses=2)
    async with running(plugin) as offload:
        out = await offload.squeeze(PAGES[:3])
        assert rows_of(out) == rows_of(squeeze(LZ4, PAGES[:3]))
        assert not plugin.number
        assert offload.inline
        assert "'by_hand' cannot start, the event loop compresses: [Errno 11]" in offload.degraded
        await anyio.sleep(0.25)
        assert offload.inline
        await anyio.sleep(0.1)
        assert not offload.inline
        await offload.squeeze(PAGES[:3])
        assert plugin.number == 1
    said = [record.message for record in caplog.records]
    assert len(said) == 2
    assert "offload.degraded" in said[0]
    assert "offload.recovered" in said[1]


async def test_where_it_has_no_memory_for_a_batch_the_event_loop_compresses_that_one():
    plugin = by_hand()

    def submit(pages, *, of_sources):
        del plugin.submit
        raise MemoryError

    plugin.submit = submit
    async with running(plugin) as offload:
        assert rows_of(await offload.squeeze(PAGES)) == rows_of(squeeze(LZ4, PAGES))
        assert (plugin.number, offload.degraded) == (0, "")
        await offload.squeeze(PAGES)
        assert plugin.number == 1


class Breaks(ByHand):
    how = "raises"

    def collect(self):
        done = super().collect()
        if done is None:
            return None
        number, rows = done
        if self.how == "raises":
            raise ZeroDivisionError
        return number, Squeezed(rows.kinds[1:], rows.blobs[1:], rows.values[1:])


@pytest.mark.parametrize(
    ("how", "error"), [("raises", ZeroDivisionError), ("lacks", ra.PluginError)]
)
async def test_where_it_breaks_its_batches_are_handed_back_and_it_is_opened_again(how, error):
    plugin = Breaks(compressor=LZ4, workers=1, nice=10)
    plugin.how = how
    offload = PluggedOffload(plugin, LZ4, name="breaks", workers=1)

    async def life():
        with pytest.raises(error) as caught:
            await offload.run()
        raised.append(str(caught.value))

    for _ in range(2):
        raised = []
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(life)
            with pytest.raises(WorkerDied, match="'breaks' was ended"):
                await offload.squeeze(PAGES)
        assert plugin.pipe is None
    if how == "lacks":
        assert raised == [
            "the offload 'breaks' gave 39 rows for 40 folios; see the contract in reclaimactors.abc"
        ]


async def test_close_is_asked_for_again_until_it_is_done(monkeypatch):
    monkeypatch.setattr("reclaimactors.offload.plugged.CLOSE_S", 0.0)
    plugin = by_hand(stubborn=3)
    async with running(plugin) as offload:
        await offload.squeeze(PAGES)
    assert (plugin.closes, plugin.pipe) == (4, None)


async def test_one_that_never_stops_holds_nobody_up(monkeypatch, caplog):
    monkeypatch.setattr("reclaimactors.offload.plugged.CLOSE_S", 0.0)
    plugin = by_hand(stubborn=10**9)
    async with running(plugin, end_s=0.01) as offload:
        await offload.squeeze(PAGES)
    assert "offload.hung" in caplog.text
    plugin.stubborn = 0
    plugin.close()


async def test_a_forked_child_closes_what_it_inherited_and_nothing_else():
    plugin = by_hand()
    async with running(plugin) as offload:
        await offload.squeeze(PAGES)
        child = os.fork()
        if not child:
            os._exit(plugin.closes + 10 * (plugin.pipe is None))
        _, status = os.waitpid(child, 0)  # noqa: ASYNC222 - it ends at once
        assert os.waitstatus_to_exitcode(status) == 11
        assert plugin.closes == 0
        await offload.squeeze(PAGES)


@pytest.fixture
def named(monkeypatch):
    monkeypatch.setitem(sys.modules, "by_hand", SimpleNamespace(ByHand=ByHand))
    return "by_hand:ByHand"


@pytest.mark.parametrize("topology", ["kswapd_only", "kcompressd", "padata_ordered"])
async def test_in_a_memory_every_value_survives(named, topology):
    values = {nr: bytes([nr % 251]) * 3000 + os.urandom(1000) for nr in range(600)}
    compress = {"offload": named, "nice": 7, "fifo": 32, "batch": 32}
    async with ra.open_memory(topology, budget="1MiB", compress=compress) as memory:
        for key, value in values.items():
            await memory.put(key, value)
        assert {key: await memory.get(key) for key in values} == values
        plugin = memory._machine.offload._plugin
        assert plugin.given == (memory._machine.offload.workers, 7)
        assert plugin.number > 0
        assert memory.usage().staging == 4096
        assert memory.health().state == "open"
    assert plugin.pipe is None


async def test_in_a_memory_one_that_always_breaks_ends_it_loudly(named, monkeypatch):
    memory = await ra.open_memory(budget="1MiB", compress={"offload": named})
    try:

        def collect():
            raise ZeroDivisionError("of the plugin")

        plugin = memory._machine.offload._plugin
        monkeypatch.setattr(plugin, "collect", collect)
        monkeypatch.setattr("reclaimactors.actors.supervision.BACKOFF_S", 0.0)
        says = r"workers crashed 6 times .*of the plugin"
        with pytest.raises(anyio.ClosedResourceError, match=says):  # noqa: PT012 - one of them
            for nr in range(10**6):
                await memory.put(nr, os.urandom(4096))
    finally:
        with pytest.raises(ra.ReclaimError, match="workers crashed 6 times"):
            await memory.aclose()
    assert plugin.pipe is None
