"""Pages that kill a worker: tried once more alone, and never compressed in this process."""

from __future__ import annotations

import os
import sys
import textwrap
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import pytest

import reclaimactors as ra
from reclaimactors.backends.zram import ZramBackend
from reclaimactors.mm import lethal as lethal_module
from reclaimactors.mm.batch import Reclaimer
from reclaimactors.mm.lethal import AGAIN, Lethal
from reclaimactors.mm.page_io import BLOB, FAIL, POOR, SAME_FILLED, squeeze
from reclaimactors.mm.vmstat import Vmstat
from reclaimactors.offload import backoff, interpreter, workers
from reclaimactors.offload.inline import InlineOffload
from reclaimactors.offload.process import ProcessOffload, WorkerDied
from reclaimactors.offload.thread import ThreadOffload
from reclaimactors.registry import PluginRef

pytestmark = pytest.mark.skipif(not Path("/proc").exists(), reason="needs worker processes")

CODE = """
    import os, signal, time
    from reclaimactors.compressors.lz4 import Lz4

    class Deadly(Lz4):
        '''Dies of some pages; in the process that made it, it takes note of them instead.'''

        name = "deadly"

        def __init__(self, folder):
            super().__init__()
            self.host, self.folder, self.seen = os.getpid(), str(folder), []

        def compress(self, data):
            if b"KILL" in data or b"HANG" in data or b"ONCE" in data:
                if os.getpid() == self.host:
                    self.seen.append(bytes(data))
                elif b"KILL" in data:
                    os.kill(os.getpid(), signal.SIGSEGV)
                elif b"HANG" in data:
                    time.sleep(3600)
                else:
                    try:
                        os.close(os.open(self.folder + "/once", os.O_CREAT | os.O_EXCL))
                    except FileExistsError:
                        pass
                    else:
                        os.kill(os.getpid(), signal.SIGKILL)
            return super().compress(data)
"""


def page(word: bytes, number=0, size=4096) -> bytes:
    return (b"%s, page %d; " % (word, number) * size)[:size]


@pytest.fixture
def deadly(tmp_path, monkeypatch):
    (tmp_path / "deadly_compressor.py").write_text(textwrap.dedent(CODE))
    monkeypatch.syspath_prepend(tmp_path)
    import deadly_compressor

    monkeypatch.setattr(backoff, "FIRST_S", 0.001)
    yield deadly_compressor.Deadly(tmp_path)
    del sys.modules["deadly_compressor"]


@asynccontextmanager
async def running(compressor, **spec):
    """An offload with a worker that is up."""
    offload = ProcessOffload(
        PluginRef("deadly", instance=compressor), compressor, workers=1, nice=0, slots=3,
        area=256 * 1024, rows=160, vmstat=Vmstat(), lethal=Lethal(4096), **spec,
    )  # fmt: skip
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(offload.run)
        await up(offload)
        yield offload
        tasks.cancel_scope.cancel()


async def up(offload):
    with anyio.fail_after(30):
        while not offload._crew.up:
            await anyio.sleep(0.005)


async def tried_twice(offload, pages, **how):
    """Compress a batch that kills its worker, and again as kswapd finds it once more."""
    with pytest.raises(WorkerDied):
        await offload.squeeze(list(pages), **how)
    return await offload.squeeze(list(pages), **how)


def deaths(offload):
    return offload._crew._vmstat["worker_deaths"]


async def test_the_page_that_kills_twice_fails_and_its_neighbours_are_compressed(deadly):
    batch = [page(b"good", 1), bytes(4096), page(b"KILL"), page(b"good", 2), os.urandom(4096), b""]
    async with running(deadly) as offload:
        out = await tried_twice(offload, batch)
        assert list(out.kinds) == [BLOB, SAME_FILLED, FAIL, BLOB, POOR, SAME_FILLED]
        clean = squeeze(deadly, batch[:2] + batch[3:], checksum=True)
        assert out.blobs[:2] + out.blobs[3:] == clean.blobs
        assert out.values[:2] + out.values[3:] == clean.values
        assert out.values[2] == 0
        assert deaths(offload) == 2
        assert sorted(offload._crew.free) == [0, 1, 2]

        again = await offload.squeeze([page(b"KILL"), page(b"good", 3)])
        assert list(again.kinds) == [FAIL, BLOB]
        assert deaths(offload) == 2
        assert page(b"good", 1) not in offload._lethal
    assert deadly.seen == []


async def test_so_it_is_with_one_that_hangs(deadly, monkeypatch):
    monkeypatch.setattr(workers, "BATCH_S", 0.2)
    async with running(deadly) as offload:
        out = await tried_twice(offload, [page(b"good"), page(b"HANG"), page(b"good", 2)])
        assert list(out.kinds) == [BLOB, FAIL, BLOB]


async def test_pages_that_were_there_when_a_worker_was_killed_are_acquitted(deadly):
    batch = [page(b"good"), page(b"ONCE"), page(b"good", 2)]
    async with running(deadly) as offload:
        out = await tried_twice(offload, batch, of_sources=True)
        clean = squeeze(deadly, batch, checksum=True, of_sources=True)
        assert (out.kinds, out.blobs, out.values) == (clean.kinds, clean.blobs, clean.values)
        assert not offload._lethal
        assert deaths(offload) == 1


async def test_an_innocent_page_that_was_condemned_is_compressed_again_in_the_end(deadly):
    async with running(deadly) as offload:
        offload._lethal.killed(page(b"good"))
        offload._lethal.killed(page(b"good"))
        assert list((await offload.squeeze([page(b"good")])).kinds) == [FAIL]
        offload._lethal.batches += AGAIN
        assert list((await offload.squeeze([page(b"good")])).kinds) == [BLOB]
        assert not offload._lethal


async def test_only_the_batch_that_the_worker_was_at_is_suspected(deadly, monkeypatch):
    monkeypatch.setattr(workers, "BATCH_S", 0.2)
    async with running(deadly) as offload:

        async def dies(batch):
            with pytest.raises(WorkerDied):
                await offload.squeeze(batch)

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(dies, [page(b"HANG")])
            tasks.start_soon(dies, [page(b"good")])
        assert page(b"HANG") in offload._lethal
        assert page(b"good") not in offload._lethal


async def test_any_number_of_them_never_makes_threads_stand_in(deadly, monkeypatch, caplog):
    monkeypatch.setattr(workers, "DEATHS", 2)
    async with running(deadly) as offload:
        batch = [page(b"KILL", i) for i in range(5)]
        out = await tried_twice(offload, [*batch, page(b"good")])
        assert list(out.kinds) == [FAIL] * 5 + [BLOB]
        for i in range(5, 9):
            out = await tried_twice(offload, [page(b"good", i), page(b"KILL", i)])
            assert list(out.kinds) == [BLOB, FAIL]
        assert not offload.degraded
    assert deadly.seen == []
    assert "offload.degraded" not in caplog.text


async def test_where_every_page_kills_its_worker_threads_stand_in(deadly, monkeypatch, caplog):
    monkeypatch.setattr(lethal_module, "MANY", 2)
    async with running(deadly) as offload:
        out = await tried_twice(offload, [page(b"KILL", i) for i in range(20)])
        assert list(out.kinds) == [FAIL] * 20
        assert offload.degraded
        assert deaths(offload) < 20
        assert list((await offload.squeeze([page(b"good")])).kinds) == [BLOB]
    assert deadly.seen == []
    assert caplog.text.count("offload.degraded") == 1


async def test_where_workers_are_down_for_long_threads_do_all_but_the_suspects(deadly, monkeypatch):
    async with running(deadly) as offload:
        with monkeypatch.context() as broken:
            broken.setattr(interpreter, "command", lambda *_: ["/bin/false"])
            out = await tried_twice(offload, [page(b"KILL"), page(b"good")])
            assert list(out.kinds) == [FAIL, FAIL]
            assert offload.degraded
            assert list((await offload.squeeze([page(b"good", 2), page(b"KILL")])).kinds) == [
                BLOB,
                FAIL,
            ]
        await up(offload)
        out = await offload.squeeze([page(b"good"), page(b"KILL")])
        assert list(out.kinds) == [BLOB, FAIL]
    assert deadly.seen == []


async def test_cancelled_in_its_second_try_the_slot_is_free_again(deadly, monkeypatch):
    monkeypatch.setattr(workers, "BATCH_S", 0.2)
    async with running(deadly) as offload:
        with pytest.raises(WorkerDied):
            await offload.squeeze([page(b"HANG")])
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(offload.squeeze, [page(b"HANG")])
            with anyio.fail_after(30):
                while not offload._crew.all[0].tickets:
                    await anyio.sleep(0.005)
            tasks.cancel_scope.cancel()
        with anyio.fail_after(30):
            while len(offload._crew.free) < 3:
                await anyio.sleep(0.005)
        assert page(b"HANG") in offload._lethal


async def test_a_thread_and_the_event_loop_do_not_get_what_is_known(deadly):
    lethal = Lethal(4096)
    lethal.killed(page(b"KILL"))
    for offload in (
        ThreadOffload(deadly, workers=1, never=lethal),
        InlineOffload(deadly, never=lethal),
    ):
        out = await offload.squeeze([page(b"KILL"), page(b"good")])
        assert list(out.kinds) == [FAIL, BLOB]
    assert deadly.seen == []


# the whole machine


@pytest.mark.parametrize("topology", ["kcompressd", "padata_ordered"])
@pytest.mark.parametrize("swap", [[], [{"backend": "memory", "size": "64MiB"}]])
async def test_no_value_is_lost_the_host_lives_and_the_key_is_named(deadly, caplog, topology, swap):
    compress = {"offload": "process", "compressor": deadly}
    values = {i: page(b"good", i, 1500) for i in range(300)}
    values |= {f"killer {i}": page(b"KILL", i, 3000 + 9000 * i) for i in range(2)}
    async with ra.open_memory(topology, budget="8MiB", compress=compress, swap=swap) as memory:
        memory._machine.starter.start()
        await up(memory._machine.offload)
        for key, value in values.items():
            await memory.put(key, value)
        with anyio.fail_after(60):
            while memory.vmstat["reject_compress_fail"] < 2:
                await memory.reclaim(1 << 30)
                await memory.drain()
                assert {key: await memory.get(key) for key in values} == values
                assert memory._node.check()
        for _ in range(20):  # whoever compresses in the event loop keeps off it, too
            memory._machine.reclaim_inline(32, Reclaimer.DIRECT)
        await memory.drain()
        assert {key: await memory.get(key) for key in values} == values
        assert memory._node.check()
    assert deadly.seen == []
    assert caplog.text.count("compressor.killed_workers") == 2
    for key in ("killer 0", "killer 1"):
        assert repr(key) in caplog.text


async def test_so_it_is_where_workers_compress_for_a_zram(deadly, caplog):
    values = {i: page(b"good", i, 1500) for i in range(300)}
    values["killer"] = page(b"good", 7, 4096) + page(b"KILL", 0, 3000)  # in its second slot
    spec = {
        "compress": {"offload": "process", "compressor": deadly},
        "swap": [{"backend": {"name": "zram", "compressor": deadly, "recompressor": deadly}}],
    }
    async with ra.open_memory("zram", budget="8MiB", **spec) as memory:
        memory._machine.starter.start()
        await up(memory._machine.offload)
        for key, value in values.items():
            await memory.put(key, value)
        with anyio.fail_after(60):
            while not memory.vmstat["pswpout"] or "killed_workers" not in caplog.text:
                await memory.reclaim(1 << 30)
                await memory.drain()
                assert {key: await memory.get(key) for key in values} == values
                assert memory._node.check()
        await memory.reclaim(1 << 30)
        await memory._machine.swapds[0].backing.backend.recompress("huge")
        assert {key: await memory.get(key) for key in values} == values
    assert deadly.seen == []
    assert "key=\"'killer'\"" in caplog.text


async def test_a_store_that_compresses_keeps_such_a_page_as_it_is(deadly):
    store = ZramBackend()
    store.primary = deadly
    store.never_compress = Lethal(4096)
    store.never_compress.killed(page(b"KILL"))
    await store.open(4096)
    await store.store_many([(0, page(b"KILL")), (1, page(b"good"))])
    assert await store.load_many([0, 1]) == [page(b"KILL"), page(b"good")]
    await store.aclose()
    assert deadly.seen == []


async def test_the_core_tells_it_which_these_are():
    store = ZramBackend()
    async with ra.open_memory("zram", budget="1MiB", swap=[{"backend": store}]) as memory:
        assert store.never_compress is memory._node.lethal
