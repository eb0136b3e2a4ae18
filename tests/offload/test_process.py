"""Worker processes: the same rows as inline, whatever dies."""

from __future__ import annotations

import asyncio
import errno
import os
import random
import signal
import subprocess
import sys
import tempfile
import textwrap
import threading
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import anyio
import pytest

import reclaimactors as ra
from reclaimactors import registry
from reclaimactors.cpu.breath import Breath, Share
from reclaimactors.mm.lethal import Lethal
from reclaimactors.mm.page_io import BLOB, POOR, SAME_FILLED, squeeze
from reclaimactors.mm.vmstat import Vmstat
from reclaimactors.offload import backoff, inline, interpreter, process, workers
from reclaimactors.offload.process import ProcessOffload, WorkerDied
from reclaimactors.offload.slots import PIECE
from reclaimactors.registry import PluginRef

REF = PluginRef("lz4")
LZ4 = registry.build("compressors", REF)
PAGES = [
    b"compressible " * 300,
    bytes(4096),
    random.Random(1).randbytes(4096),
    b"\xff" * 4095,
    b"x",
    b"",
    b"large " * 40_000,
]


def offload_of(
    ref: PluginRef = REF, *, compressor=LZ4, workers: int = 1, slots: int = 5, end_s: float = 1.0
) -> ProcessOffload:
    return ProcessOffload(ref, compressor, workers=workers, nice=0, slots=slots, area=256 * 1024,
        rows=160, vmstat=Vmstat(), lethal=Lethal(4096), end_s=end_s)  # fmt: skip


async def until_up(offload: ProcessOffload) -> None:
    with anyio.fail_after(30):
        while not all(worker.up for worker in offload._crew.all):
            await anyio.sleep(0.01)


async def until(condition):
    with anyio.fail_after(30):
        while not condition():
            await anyio.sleep(0.005)


@asynccontextmanager
async def running(offload: ProcessOffload):
    """Its one worker is up; gives the pid, and ends it all at the end."""
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(offload.run)
        await until_up(offload)
        (pid,) = worker_pids()
        yield pid
        tasks.cancel_scope.cancel()


def worker_pids() -> set[int]:
    """Our children that are workers."""
    pids = set()
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            parent = (entry.parent / "stat").read_text().rsplit(")", 1)[1].split()[1]
            if b"offload.worker" in entry.read_bytes() and int(parent) == os.getpid():
                pids.add(int(entry.parent.name))
        except (OSError, IndexError):
            continue
    return pids


pytestmark = pytest.mark.skipif(not Path("/proc").exists(), reason="looks for children in /proc")


async def test_rows_are_those_of_inline_with_checksums():
    offload = offload_of()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(offload.run)
        await until_up(offload)

        out = await offload.squeeze(list(PAGES))

        inline = squeeze(LZ4, PAGES, checksum=True)
        assert out.kinds == inline.kinds
        assert out.blobs == inline.blobs
        assert out.values == inline.values
        assert set(out.kinds) == {BLOB, SAME_FILLED, POOR}
        tasks.cancel_scope.cancel()
    assert not worker_pids()


@pytest.mark.parametrize("cost", [0.0, 1e-9, 1.0])  # seconds a byte, as far as is known
async def test_before_a_worker_is_up_the_loop_compresses_what_is_quick_a_thread_the_rest(
    monkeypatch, cost
):
    threads = []

    class Seen:
        def compress(self, data):
            threads.append(threading.current_thread() is threading.main_thread())
            return LZ4.compress(data)

    offload = offload_of(compressor=Seen())
    offload._meanwhile._cost = cost

    out = await offload.squeeze(list(PAGES))

    assert out.blobs == squeeze(LZ4, PAGES).blobs
    assert set(threads) == {cost < 1}


async def test_a_compressor_that_turns_out_slow_is_left_to_a_thread(monkeypatch):
    monkeypatch.setattr(inline, "SLICE_S", 0.0)
    offload = offload_of()
    await offload.squeeze(list(PAGES))
    assert not offload._meanwhile.quick(PAGES)


async def test_killed_with_a_batch_the_sender_is_told_and_a_new_worker_comes():
    offload = offload_of()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(offload.run)
        await until_up(offload)
        (pid,) = worker_pids()
        os.kill(pid, signal.SIGSTOP)  # so that it dies with the batch, not before or after it

        async def kill():
            while not offload._crew.all[0].tickets:
                await anyio.sleep(0)
            os.kill(pid, signal.SIGKILL)

        tasks.start_soon(kill)
        with pytest.raises(WorkerDied):
            await offload.squeeze([b"lost and found " * 200])
        await until_up(offload)
        out = await offload.squeeze([b"lost and found " * 200])

        assert worker_pids() != {pid}
        assert out.kinds[0] == BLOB
        assert sorted(offload._crew.free) == list(range(5))
        tasks.cancel_scope.cancel()


async def test_a_cancelled_batch_keeps_its_slot_until_the_worker_is_done():
    offload = offload_of(slots=1)
    async with running(offload) as pid:
        os.kill(pid, signal.SIGSTOP)

        with anyio.move_on_after(0):
            await offload.squeeze([b"abandoned " * 300])
        during = list(offload._crew.free)
        os.kill(pid, signal.SIGCONT)
        with anyio.fail_after(30):
            while not offload._crew.free:
                await anyio.sleep(0.001)

        assert during == []
        assert (await offload.squeeze([b"next " * 500])).kinds[0] == BLOB


@pytest.fixture
def at_once(monkeypatch):
    """What has failed is tried again at once."""
    monkeypatch.setattr(backoff, "FIRST_S", 0)


@pytest.mark.usefixtures("at_once")
async def test_after_repeated_deaths_threads_compress_until_a_worker_is_up_again(
    monkeypatch, caplog
):
    monkeypatch.setattr(interpreter, "command", lambda *_: ["/bin/false"])
    offload = offload_of()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(offload.run)
        await until(lambda: offload.degraded)
        assert offload.degraded == "1 of 1 workers are down: worker 0 ended with status 1"
        assert not offload.inline
        assert offload.holds
        out = await offload.squeeze(list(PAGES))
        assert out.blobs == squeeze(LZ4, PAGES).blobs
        assert offload._crew._vmstat["worker_deaths"] > workers.DEATHS

        monkeypatch.undo()
        await until_up(offload)
        assert offload.degraded == ""
        assert not offload.holds
        deaths = offload._crew._vmstat["worker_deaths"]
        assert offload._crew._vmstat["worker_retries"] == deaths
        tasks.cancel_scope.cancel()
    lines = [record.getMessage().split()[0] for record in caplog.records]
    assert lines.count("offload.worker_down") == workers.DEATHS
    assert lines[-2:] == ["offload.degraded", "offload.recovered"]


async def test_a_worker_that_was_up_for_long_dies_for_the_first_time_in_a_row(monkeypatch):
    monkeypatch.setattr(workers, "PROVEN_S", 0)
    offload = offload_of()
    async with running(offload):
        (worker,) = offload._crew.all
        for deaths in range(1, 4):
            worker.process.kill()
            await until(lambda deaths=deaths: offload._crew._vmstat["worker_retries"] == deaths)
            await until_up(offload)
            assert worker.backoff.failures == 1


def test_waits_double_up_to_five_minutes():
    waits = backoff.Backoff()
    assert [round(waits.failed(), 1) for _ in range(5)] == [0.1, 0.2, 0.4, 0.8, 1.6]
    assert [round(waits.failed()) for _ in range(20)][-9:] == [300] * 9
    waits.worked()
    assert waits.failed() == 0.1
    assert waits.failed(lasting=True) > 10


async def test_a_compressor_that_no_worker_can_build_falls_back_to_a_thread():
    offload = offload_of(PluginRef("no_such_module:compressor"))
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(offload.run)
        await until(lambda: offload.degraded)

        out = await offload.squeeze(list(PAGES))

        assert "no_such_module" in offload.degraded
        assert out.blobs == squeeze(LZ4, PAGES).blobs
        assert offload._crew._vmstat["worker_deaths"] == 0
        tasks.cancel_scope.cancel()


async def test_kills_under_load_lose_nothing():
    """SIGKILL at any moment: every value is right, and nobody is left behind."""
    model = {}
    rng = random.Random(7)
    compress = {"offload": "process", "mode": "padata", "workers": 2}
    async with ra.open_memory("padata", budget="4MiB", compress=compress) as memory:
        kills = 0
        for step in range(4000):
            key = rng.randrange(2000)
            model[key] = (b"%d " % rng.randrange(1 << 40)) * rng.randrange(1, 500)
            await memory.put(key, model[key])
            if step % 40 == 0:
                for pid in worker_pids():
                    with suppress(ProcessLookupError):  # the last one of it had its effect just now
                        os.kill(pid, signal.SIGKILL)
                    kills += 1
                await anyio.sleep(0.002)
        for key, value in model.items():
            assert await memory.get(key) == value
        await memory.drain()
        assert memory._node.check()
    assert kills > 0
    assert not worker_pids()


def test_workers_do_not_outlive_a_killed_parent(tmp_path):
    program = textwrap.dedent(
        """
        import anyio, sys
        import reclaimactors as ra

        async def main():
            async with ra.open_memory("kcompressd", budget="1MiB") as memory:
                for key in range(1000):
                    await memory.put(key, b"%d " % key * 900)
                pool = memory._machine.offload._crew.all
                while not pool[0].up:
                    await anyio.sleep(0.01)
                print("up", flush=True)
                await anyio.sleep_forever()

        anyio.run(main)
        """
    )
    parent = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE)
    with parent:
        assert parent.stdout is not None
        assert parent.stdout.readline() == b"up\n"
        children = _children(parent.pid)
        parent.kill()
    assert children
    deadline = 500
    while any(Path(f"/proc/{pid}").exists() and not _zombie(pid) for pid in children):
        deadline -= 1
        assert deadline, "a worker outlives its parent"
        signal.sigtimedwait([], 0.01)


def _children(parent: int) -> list[int]:
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            if int(stat.read_text().rsplit(")", 1)[1].split()[1]) == parent:
                found.append(int(stat.parent.name))
        except OSError:
            continue
    return found


def _zombie(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z"
    except OSError:
        return True


async def test_a_batch_done_and_cancelled_in_one_turn_gives_its_slot_back():
    offload = offload_of(slots=1)
    async with running(offload) as pid:
        os.kill(pid, signal.SIGSTOP)
        sender = asyncio.ensure_future(offload.squeeze([b"done and cancelled " * 300]))
        while not offload._crew.all[0].tickets:
            await anyio.sleep(0)
        offload._crew._done(offload._crew.all[0], 0)
        sender.cancel()
        await asyncio.wait([sender])

        assert sender.cancelled()
        assert offload._crew.free == [0]
        assert not offload._crew.all[0].tickets
        os.kill(pid, signal.SIGKILL)


async def test_a_hung_worker_is_killed_and_its_batch_handed_back(monkeypatch):
    monkeypatch.setattr(workers, "BATCH_S", 0.1)
    offload = offload_of()
    async with running(offload) as pid:
        os.kill(pid, signal.SIGSTOP)

        with pytest.raises(WorkerDied, match="did nothing with a batch"):
            await offload.squeeze([b"never done " * 200])
        monkeypatch.setattr(workers, "BATCH_S", 60)
        await until_up(offload)
        out = await offload.squeeze([b"done " * 200])

        assert worker_pids() != {pid}
        assert out.kinds[0] == BLOB
        assert sorted(offload._crew.free) == list(range(5))


# between the pieces of a copy: others have their turn, and anything may happen


class Hungry(Share):
    """Has used up its turn after each step."""

    def worked(self, now, seconds):
        return False

    async def turn(self):
        await anyio.lowlevel.checkpoint()


@pytest.fixture
def in_pieces(monkeypatch):
    """A copy gives way after each of its pieces; returns a batch of three."""
    monkeypatch.setattr(process, "Breath", lambda _: Breath(Hungry()))
    return [b"page %d " % i * 400 for i in range(2 * PIECE + 1)]


async def copying(offload: ProcessOffload, pages: list[bytes]) -> asyncio.Task:
    """Return a task that has copied a piece in, and no more."""
    sender = asyncio.ensure_future(offload.squeeze(list(pages)))
    while offload._crew.free:
        await anyio.sleep(0)
    assert not offload._crew.all[0].tickets
    return sender


async def test_a_batch_in_pieces_gives_the_same_rows(in_pieces):
    offload = offload_of()
    async with running(offload):
        out = await offload.squeeze(list(in_pieces))
        inline = squeeze(LZ4, in_pieces, checksum=True)
        assert (out.kinds, out.blobs, out.values) == (inline.kinds, inline.blobs, inline.values)


async def test_cancelled_while_it_is_copied_in_its_slot_is_free(in_pieces):
    offload = offload_of(slots=1)
    async with running(offload):
        sender = await copying(offload, in_pieces)
        sender.cancel()
        await asyncio.wait([sender])

        assert sender.cancelled()
        assert offload._crew.free == [0]
        assert (await offload.squeeze([b"next " * 200])).kinds[0] == BLOB


async def test_cancelled_while_it_is_copied_out_its_slot_is_free(in_pieces):
    offload = offload_of(slots=1)
    async with running(offload):
        sender = await copying(offload, in_pieces)
        while not (tickets := offload._crew.all[0].tickets):
            await anyio.sleep(0)
        await tickets[0].done.wait()
        await anyio.sleep(0)
        assert not sender.done()
        sender.cancel()
        await asyncio.wait([sender])

        assert sender.cancelled()
        assert offload._crew.free == [0]
        assert (await offload.squeeze([b"next " * 200])).kinds[0] == BLOB


async def test_the_worker_dies_while_a_batch_is_copied_in(in_pieces):
    offload = offload_of(slots=1)
    async with running(offload) as pid:
        sender = await copying(offload, in_pieces)
        os.kill(pid, signal.SIGKILL)
        offload._crew.all[0].up = False  # as its reader would say, had it had its turn

        with pytest.raises(WorkerDied, match="died while a batch was copied"):
            await sender
        await until_up(offload)
        assert offload._crew.free == [0]
        assert (await offload.squeeze([b"next " * 200])).kinds[0] == BLOB


async def test_the_staging_is_gone_while_a_batch_is_copied_in(in_pieces):
    offload = offload_of(slots=1)
    async with running(offload):
        sender = await copying(offload, in_pieces)
        offload._crew._close_staging()

        with pytest.raises(WorkerDied, match="were ended"):
            await sender


async def test_paths_in_sys_path_are_no_obstacle(monkeypatch):
    monkeypatch.setattr(sys, "path", [*sys.path, Path("/nowhere"), None])
    offload = offload_of()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(offload.run)
        await until_up(offload)
        tasks.cancel_scope.cancel()


@pytest.mark.parametrize("without", ["executable", "staging"])
async def test_where_no_worker_can_be_had_threads_compress(monkeypatch, without):
    def too_large(_fd, **_shape):
        raise OSError(errno.EFBIG, "File too large")

    if without == "executable":
        monkeypatch.setattr(sys, "executable", None)
    else:
        monkeypatch.setattr(workers, "Slots", too_large)
    async with ra.open_memory("kcompressd", budget="1MiB") as memory:
        for key in range(600):
            await memory.put(key, b"%d " % key * 900)
        assert await memory.get(0) == b"0 " * 900
        assert memory.vmstat["actor_restarts"] == 0
        assert memory.vmstat["pgsteal_anon"] > 0
    assert not worker_pids()


KILLS = 100 if os.environ.get("RECLAIMACTORS_FULL") else 12


@pytest.mark.usefixtures("at_once")
@pytest.mark.parametrize("memfd", [True, False])
async def test_many_kills_of_workers_that_came_up_again(monkeypatch, tmp_path, memfd):
    """``RECLAIMACTORS_FULL=1`` makes it a hundred. Nothing is lost, and nothing is left behind."""
    if not memfd:
        monkeypatch.delattr(os, "memfd_create", raising=False)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    swap = [{"backend": {"name": "file", "path": str(tmp_path)}}]
    compress = {"workers": 2}
    monkeypatch.setattr(workers, "DEATHS", 10**6)
    model: dict[int, bytes] = {}
    rng = random.Random(11)
    killed: set[int] = set()
    async with ra.open_memory("padata", budget="4MiB", compress=compress, swap=swap) as memory:
        with anyio.fail_after(100):
            while len(killed) < KILLS:
                for _ in range(20):
                    key = rng.randrange(2000)
                    model[key] = (b"%d " % rng.randrange(1 << 40)) * rng.randrange(1, 500)
                    await memory.put(key, model[key])
                pool = memory._machine.offload._crew.all
                for worker in pool:
                    if worker.up and worker.process is not None:
                        killed.add(worker.process.pid)
                        with suppress(ProcessLookupError):  # an earlier kill has just worked
                            worker.process.kill()
                await anyio.sleep(0)
        assert {key: await memory.get(key) for key in model} == model
        await memory.drain()
        assert memory._node.check()
        assert memory.vmstat["actor_restarts"] == 0
    assert not worker_pids()
    assert not list(tmp_path.iterdir())
