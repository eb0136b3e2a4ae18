"""The life of worker processes: how they start, are watched, and end, whatever happens."""

from __future__ import annotations

import asyncio
import errno
import os
import signal
import socket
import subprocess
import sys
import textwrap
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import pytest
from anyio import to_thread

import reclaimactors as ra
from reclaimactors import registry
from reclaimactors.mm.lethal import Lethal
from reclaimactors.mm.page_io import BLOB
from reclaimactors.mm.vmstat import Vmstat
from reclaimactors.offload import backoff, interpreter, pace, workers
from reclaimactors.offload.process import ProcessOffload
from reclaimactors.offload.thread import ThreadOffload
from reclaimactors.registry import PluginRef

REF = PluginRef("lz4")
LZ4 = registry.build("compressors", REF)
PAGE = b"a page of text " * 200

pytestmark = pytest.mark.skipif(not Path("/proc").exists(), reason="looks for children in /proc")


def offload_of(ref=REF, *, workers=1, slots=5, end_s=1.0):
    return ProcessOffload(
        ref, LZ4, workers=workers, nice=0, slots=slots, area=256 * 1024, rows=160,
        vmstat=Vmstat(), lethal=Lethal(4096), end_s=end_s,
    )  # fmt: skip


async def until(condition):
    with anyio.fail_after(30):
        while not condition():
            await anyio.sleep(0.005)


@asynccontextmanager
async def running(offload, *, up=True):
    """The offload runs; gives its first worker."""
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(offload.run)
        (first, *_) = offload._crew.all
        if up:
            await until(lambda: first.up)
        yield first
        tasks.cancel_scope.cancel()


def alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] not in "ZX"
    except OSError:
        return False


def wait_dead(pid):
    for _ in range(1000):
        if not alive(pid):
            return
        signal.sigtimedwait([], 0.01)
    pytest.fail(f"process {pid} is still alive")


# the start


@pytest.fixture
def big(tmp_path, monkeypatch):
    """A compressor that pickles to more than a socket takes at once."""
    code = """
        from reclaimactors.compressors.lz4 import Lz4

        class Big(Lz4):
            def __init__(self, table):
                super().__init__()
                self.table = table
    """
    (tmp_path / "big_compressor.py").write_text(textwrap.dedent(code))
    monkeypatch.syspath_prepend(tmp_path)
    import big_compressor

    yield big_compressor.Big(os.urandom(1 << 20))
    del sys.modules["big_compressor"]


async def test_a_compressor_larger_than_the_buffer_of_a_socket_reaches_its_worker(big):
    offload = offload_of(PluginRef("big", instance=big))
    async with running(offload):
        assert (await offload.squeeze([PAGE])).kinds[0] == BLOB


@pytest.mark.usefixtures("at_once")
async def test_a_worker_that_does_not_start_in_time_is_killed_said_and_counted(monkeypatch, caplog):
    real, started = interpreter.command, []

    def command(*arguments):
        """Return one that sleeps, and then those of workers, which may start slowly here."""
        monkeypatch.setattr(workers, "READY_S", 60 if started else 0.2)
        started.append(1)
        sleeps = [sys.executable, "-S", "-c", "import time; time.sleep(600)"]
        return real(*arguments) if len(started) > 1 else sleeps

    monkeypatch.setattr(interpreter, "command", command)
    offload = offload_of()
    async with running(offload, up=False) as first:
        await until(lambda: first.process)
        process = first.process
        await until(lambda: first.up)
        assert process.returncode == -signal.SIGKILL
        assert "did not start for 0.2 s and was killed" in caplog.text
        assert offload._crew._vmstat["worker_deaths"] == 1


@pytest.fixture
def at_once(monkeypatch):
    """What has failed is tried again at once."""
    monkeypatch.setattr(backoff, "FIRST_S", 0.001)


@pytest.mark.usefixtures("at_once")
@pytest.mark.parametrize("lacks", ["sockets", "staging", "processes"])
async def test_what_is_out_for_a_moment_is_tried_again(monkeypatch, caplog, lacks):
    def none_left(*_args, **_kwargs):
        raise OSError(errno.EMFILE, "Too many open files")

    offload = offload_of()
    with monkeypatch.context() as out:
        where, name = {
            "sockets": (socket, "socketpair"),
            "staging": (workers, "anonymous_memory"),
            "processes": (subprocess, "Popen"),
        }[lacks]
        out.setattr(where, name, none_left)
        async with running(offload, up=False) as first:
            await until(lambda: offload.degraded)
            assert "Too many open files" in offload.degraded
            assert (await offload.squeeze([PAGE])).kinds[0] == BLOB  # by a thread
            out.undo()
            await until(lambda: first.up)
            assert offload.degraded == ""
    assert "offload.recovered" in caplog.text
    assert offload._crew._vmstat["worker_deaths"] == 0


@pytest.mark.usefixtures("at_once")
async def test_a_thread_that_could_not_start_is_tried_again(monkeypatch, caplog):
    async def none_left(*_args, **_kwargs):
        raise RuntimeError("can't start new thread")

    offload = ThreadOffload(LZ4, workers=1)
    with monkeypatch.context() as out:
        out.setattr(to_thread, "run_sync", none_left)
        assert (await offload.squeeze([PAGE])).kinds[0] == BLOB
        assert offload.inline
        assert "can't start new thread" in offload.degraded
    await anyio.sleep(0.01)
    assert (await offload.squeeze([PAGE])).kinds[0] == BLOB
    assert not offload.inline
    assert offload.degraded == ""
    lines = [record.getMessage().split()[0] for record in caplog.records]
    assert lines == ["offload.degraded", "offload.recovered"]


async def test_meanwhile_the_event_loop_compresses_without_trying(monkeypatch):
    tries = []

    async def none_left(*_args, **_kwargs):
        tries.append(1)
        raise RuntimeError("can't start new thread")

    offload = ThreadOffload(LZ4, workers=1)
    monkeypatch.setattr(to_thread, "run_sync", none_left)
    monkeypatch.setattr(backoff, "FIRST_S", 60)
    for _ in range(5):
        assert (await offload.squeeze([PAGE])).kinds[0] == BLOB
    assert tries == [1]


# who is late, in the loop's own time


async def test_a_stopped_worker_is_late_and_no_longer_once_it_goes_on():
    offload = offload_of()
    async with running(offload) as first:
        await offload.squeeze([PAGE])
        assert not offload.late
        os.kill(first.process.pid, signal.SIGSTOP)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(offload.squeeze, [PAGE])
            await until(lambda: offload.late)
            os.kill(first.process.pid, signal.SIGCONT)
        assert not offload.late


async def test_one_of_two_is_late_and_the_other_gets_the_batches():
    offload = offload_of(workers=2)
    async with running(offload):
        one, two = offload._crew.all
        await until(lambda: one.up and two.up)
        os.kill(one.process.pid, signal.SIGSTOP)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(offload.squeeze, [PAGE])
            await until(lambda: one.late)
            assert not offload.late
            for _ in range(3):
                assert (await offload.squeeze([PAGE])).kinds[0] == BLOB
            assert len(one.tickets) == 1
            os.kill(one.process.pid, signal.SIGCONT)


async def test_an_idle_worker_is_never_late_or_hung(monkeypatch):
    monkeypatch.setattr(workers, "STEP_S", 0.001)
    monkeypatch.setattr(workers, "BATCH_S", 0.01)
    offload = offload_of()
    async with running(offload) as first:
        pid = first.process.pid
        await anyio.sleep(0.1)
        assert not offload.late
        assert first.process.pid == pid


async def test_a_loop_that_was_held_or_stopped_loses_one_step(monkeypatch):
    """As SIGSTOP and SIGCONT of this process: the clock went on, the loop did not."""
    monkeypatch.setattr(workers, "BATCH_S", 2 * workers.STEP_S)
    offload = offload_of()
    loop = asyncio.get_running_loop()
    async with running(offload) as first:
        pid = first.process.pid
        os.kill(pid, signal.SIGSTOP)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(offload.squeeze, [PAGE])
            await until(lambda: first.tickets)
            real = loop.time
            monkeypatch.setattr(loop, "time", lambda: real() + 3600)
            for _ in range(20):
                await anyio.sleep(0)
            assert first.silent_s <= workers.STEP_S
            os.kill(pid, signal.SIGCONT)
        assert first.process.pid == pid
        monkeypatch.undo()


def test_a_slow_compressor_is_not_late_once_that_is_known():
    slow = pace.Pace()
    assert slow.late(0.5)
    for _ in range(30):
        slow.answered(0.5)
    assert not slow.late(0.5)
    assert slow.late(2.5)
    for _ in range(30):
        slow.answered(0.0)
    assert slow.late(0.5)


def test_one_long_silence_does_not_make_the_next_usual():
    stopped = pace.Pace()
    stopped.answered(3600)
    assert stopped.late(0.2)


async def test_a_thread_that_hangs_is_late():
    release = anyio.Event()

    class Slow:
        name = "slow"

        @staticmethod
        def compress(data):
            anyio.from_thread.run(release.wait)
            return b"x"

    offload = ThreadOffload(Slow, workers=1)
    assert not offload.late
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(offload.squeeze, [PAGE])
        await until(lambda: offload.late)
        release.set()
    assert not offload.late


async def test_what_falls_back_to_a_thread_holds_the_source():
    offload = offload_of()
    assert offload.holds
    async with running(offload) as first:
        assert not offload.holds
        first.process.kill()
        await until(lambda: not first.up)
        assert offload.holds
        await until(lambda: first.up)
        assert not offload.holds
        free, offload._crew.free = offload._crew.free, []
        assert offload.holds
        offload._crew.free = free


# the end


async def test_the_slots_of_a_process_that_does_not_die_are_not_used_again(monkeypatch, caplog):
    """As one that waits for a disk, which not even SIGKILL ends."""

    async def never(_process, _seconds):
        return False

    monkeypatch.setattr(workers, "BATCH_S", 0.1)
    offload = offload_of(slots=3)
    async with running(offload) as first:
        process = first.process
        os.kill(process.pid, signal.SIGSTOP)
        with monkeypatch.context() as undying:
            undying.setattr(workers, "ends_within", never)
            with pytest.raises(ra.ReclaimError):
                await offload.squeeze([PAGE])
            assert sorted(offload._crew.free) == [0, 1]
        await until(lambda: first.up)
        assert first.process is not process
        assert (await offload.squeeze([PAGE])).kinds[0] == BLOB
        assert sorted(offload._crew.free) == [0, 1]
        await process.wait()


PARENT = """
import asyncio, os, signal, sys
import reclaimactors as ra

async def main():
    compress = {"offload": "process"}
    async with ra.open_memory("kcompressd", budget="1MiB", compress=compress) as memory:
        for key in range(600):
            await memory.put(key, b"%d " % key * 900)
        (worker,) = memory._machine.offload._crew.all
        while not worker.up:
            await asyncio.sleep(0.01)
        child = os.fork()
        if not child:
            os.close(1)
            while True:
                signal.pause()
        print(worker.process.pid, child, flush=True)
        STEPS
        loop = asyncio.get_running_loop()
        began = loop.time()
    print(loop.time() - began, flush=True)

asyncio.run(main())
"""


def parent_of(steps):
    """Start a program with a worker and a forked child, which has all descriptors."""
    program = PARENT.replace("STEPS", steps)
    parent = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    pid, child = map(int, parent.stdout.readline().split())
    return parent, pid, child


def test_a_worker_dies_with_its_killed_parent_also_where_a_forked_child_lives():
    parent, pid, child = parent_of("await asyncio.sleep(3600)")
    with parent:
        try:
            assert alive(pid)
            parent.kill()
            wait_dead(pid)
            assert alive(child)
        finally:
            os.kill(child, signal.SIGKILL)


def test_and_where_no_descriptor_tells_of_the_end_of_a_parent(monkeypatch):
    """The worker's side, in a process of its own; the "parent" is another one."""
    program = textwrap.dedent(
        """
        import os, sys, time
        from reclaimactors.offload import worker
        worker.PARENT_S = 0.01
        def refuse(pid): raise PermissionError
        os.pidfd_open = refuse
        parent = os.getpid()
        child = os.fork()
        if child:
            print(child, flush=True)
            sys.stdin.read()
            os._exit(0)
        os.close(0)
        worker._end_with(parent)
        """
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    with parent:
        child = int(parent.stdout.readline())
        assert alive(child)
        parent.stdin.close()
        wait_dead(child)


def test_closing_beside_a_forked_child_does_not_wait_for_it():
    """Its worker ends by itself: nobody waits for `close_timeout` / 4, and nobody is killed."""
    steps = """
        import reclaimactors.offload.workers as module
        ends = []
        gone = module.ends_within
        async def watched(process, seconds):
            ends.append(await gone(process, seconds))
            return ends[-1]
        module.ends_within = watched
        import atexit
        atexit.register(lambda: print(ends, process.returncode, flush=True))
        process = worker.process
    """
    parent, pid, child = parent_of(steps.strip())
    with parent:
        try:
            _took, ends = parent.stdout.read().splitlines()
        finally:
            os.kill(child, signal.SIGKILL)
    assert ends == "[True] 0"
    assert not alive(pid)


def test_a_child_that_leaves_through_the_memory_leaves_the_worker_to_its_parent():
    """What the child inherited is ended there: the link is its parent's still."""
    steps = """
        other = os.fork()
        if not other:
            os.close(1)
            raise SystemExit
        os.waitpid(other, 0)
        await asyncio.sleep(0.2)
        assert worker.up and not worker.backoff.failures
    """
    parent, _pid, child = parent_of(steps.strip())
    with parent:
        try:
            assert float(parent.stdout.read()) >= 0
        finally:
            os.kill(child, signal.SIGKILL)
    assert parent.returncode == 0


async def test_a_worker_is_seen_to_die_while_somebody_else_holds_its_end_of_the_link(monkeypatch):
    """As a child that another thread forked just as the worker was started."""
    held = []
    real = socket.socketpair

    def both():
        ours, theirs = real()
        held.append(theirs.dup())
        return ours, theirs

    monkeypatch.setattr(socket, "socketpair", both)
    offload = offload_of()
    async with running(offload) as first:
        pid = first.process.pid
        first.process.kill()
        await until(lambda: first.up and first.process.pid != pid)
    for theirs in held:
        theirs.close()


@pytest.mark.parametrize("backend", ["asyncio", "uvloop", "trio"])
def test_on_every_loop(backend):
    async def main():
        offload = offload_of()
        async with running(offload) as first:
            pid = first.process.pid
            assert (await offload.squeeze([PAGE])).kinds[0] == BLOB
            os.kill(pid, signal.SIGKILL)
            await until(lambda: first.up and first.process.pid != pid)
            assert (await offload.squeeze([PAGE])).kinds[0] == BLOB

    options = {"use_uvloop": True} if backend == "uvloop" else {}
    anyio.run(main, backend="trio" if backend == "trio" else "asyncio", backend_options=options)


async def test_a_close_while_a_worker_is_being_started_waits_for_its_end(monkeypatch):
    offload, started, begun = offload_of(), [], anyio.Event()
    open_process = anyio.open_process

    async def slowly(*args, **kwargs):
        process = await open_process(*args, **kwargs)
        started.append(process)
        begun.set()
        for _ in range(3):
            await anyio.lowlevel.checkpoint()
        return process

    monkeypatch.setattr(anyio, "open_process", slowly)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(offload.run)
        await begun.wait()
        tasks.cancel_scope.cancel()
    assert [process.returncode is not None for process in started] == [True]
