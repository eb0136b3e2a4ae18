"""The built-in backing stores: the contract, and what only a file can get wrong."""

import errno
import fcntl
import os
import platform
import random
import resource
import stat
import subprocess
import sys
import threading
from pathlib import Path

import anyio
import anyio.lowlevel
import pytest
import uvloop

from reclaimactors import BackendError, BackendFull
from reclaimactors.backends import file as file_module
from reclaimactors.backends import file_jobs, swapfile
from reclaimactors.backends.file import FileBackend
from reclaimactors.backends.memory import MemoryBackend
from reclaimactors.backends.zram import ZramBackend
from reclaimactors.mm.swap_device import SwapDevice
from reclaimactors.testing import BackendTests
from reclaimactors.units import KIB

PAGE = 4096


class TestMemory(BackendTests):
    def make_backend(self):
        return MemoryBackend()


class TestSmallMemory(BackendTests):
    def make_backend(self):
        return MemoryBackend(capacity=256)


class TestZram(BackendTests):
    def make_backend(self):
        return ZramBackend()


class TestZramOfZlib(BackendTests):
    def make_backend(self):
        return ZramBackend({"name": "zlib", "level": 1}, mem_limit="64MiB", backing="memory")


class TestFile(BackendTests):
    def make_backend(self):
        return FileBackend()


class TestFileOnUvloop(TestFile):
    make_loop = staticmethod(uvloop.new_event_loop)


class TestFileWithoutNowait(TestFile):
    @pytest.fixture(autouse=True)
    def _no_nowait(self, monkeypatch):
        monkeypatch.delattr(os, "RWF_NOWAIT", raising=False)


class TestFileWithoutTmpfile(TestFile):
    @pytest.fixture(autouse=True)
    def _no_tmpfile(self, monkeypatch):
        monkeypatch.delattr(os, "O_TMPFILE", raising=False)


class TestFileThatGivesBackAtOnce(TestFile):
    @pytest.fixture(autouse=True)
    def _at_once(self, monkeypatch):
        monkeypatch.setattr(FileBackend, "_spare", lambda self: self._slots.nr_left > 0)


def page(seed):
    return bytes([seed % 256]) * PAGE


def pages(slots, seed=0):
    return [(slot, page(slot + seed)) for slot in slots]


@pytest.fixture
async def backend(tmp_path):
    backend = FileBackend(str(tmp_path))
    await backend.open(PAGE)
    yield backend
    await backend.aclose()


# the memory backend


async def test_memory_is_charged_with_what_it_holds():
    backend = MemoryBackend()
    await backend.store_many([(1, b"abc"), (2, bytes(100))])
    assert backend.footprint([1, 2]) == 103
    assert backend.synchronous


async def test_memory_beyond_its_capacity_stores_nothing():
    backend = MemoryBackend(capacity=2)
    await backend.store(1, b"one")
    with pytest.raises(BackendFull, match="all 2 slots"):
        await backend.store_many([(2, b"two"), (3, b"three")])
    with pytest.raises(BackendError):
        await backend.load(2)
    await backend.store_many([(1, b"ONE"), (2, b"two")])
    assert await backend.load_many([1, 2]) == [b"ONE", b"two"]


# where and how the file is made


@pytest.mark.parametrize("tmpfile", [True, False])
async def test_file_is_nameless_private_and_not_inherited(tmp_path, monkeypatch, tmpfile):
    if not tmpfile:
        monkeypatch.delattr(os, "O_TMPFILE", raising=False)
    backend = FileBackend(str(tmp_path))
    await backend.open(PAGE)
    fd = backend._file.fd
    info = os.fstat(fd)
    assert list(tmp_path.iterdir()) == []
    assert info.st_nlink == 0
    assert info.st_dev == tmp_path.stat().st_dev
    assert stat.S_IMODE(info.st_mode) == 0o600
    assert fcntl.fcntl(fd, fcntl.F_GETFD) & fcntl.FD_CLOEXEC
    await backend.aclose()
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fd)


@pytest.mark.parametrize("name", ["missing", "file"])
async def test_bad_path_is_one_clear_error(tmp_path, name):
    (tmp_path / "file").touch()
    bad = str(tmp_path / name)
    backend = FileBackend(bad)
    with pytest.raises(BackendError) as caught:
        await backend.open(PAGE)
    assert f"path = {bad!r}" in str(caught.value)
    assert caught.value.errno in {errno.ENOENT, errno.ENOTDIR}
    await backend.aclose()


@pytest.mark.skipif(not Path("/sys/kernel").is_dir(), reason="root can write to all other folders")
async def test_unwritable_path_is_one_clear_error():
    backend = FileBackend("/sys/kernel")
    with pytest.raises(BackendError, match=r"path = '/sys/kernel'.*may write to"):
        await backend.open(PAGE)


def test_default_folder_is_the_first_on_a_disk(monkeypatch, tmp_path):
    in_memory = set()
    monkeypatch.setattr(swapfile, "in_memory", in_memory.__contains__)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    assert swapfile._default_folder() == "/var/tmp"
    in_memory.add("/var/tmp")
    assert swapfile._default_folder() == str(tmp_path)
    in_memory.add(str(tmp_path))
    with pytest.raises(BackendError, match=r"/var/tmp is memory.*give `path`"):
        swapfile._default_folder()
    monkeypatch.delenv("TMPDIR")
    with pytest.raises(BackendError, match="TMPDIR is not set"):
        swapfile._default_folder()
    monkeypatch.setenv("TMPDIR", str(tmp_path / "missing"))
    with pytest.raises(BackendError, match="missing is no folder"):
        swapfile._default_folder()


@pytest.mark.skipif(sys.platform != "linux", reason="/proc/self/mountinfo is Linux's")
def test_tmpfs_is_recognised(tmp_path):
    assert swapfile.in_memory("/dev/shm")
    assert swapfile.in_memory("/dev")  # a devtmpfs, or a tmpfs in a container
    assert not swapfile.in_memory("/proc")


@pytest.mark.skipif(sys.platform != "linux", reason="/dev/shm is Linux's")
async def test_tmpfs_is_used_when_named():
    backend = FileBackend("/dev/shm")
    await backend.open(PAGE)
    await backend.store_many(pages(range(3)))
    assert backend.folder_in_memory
    assert await backend.load_many([2, 0]) == [page(2), page(0)]
    await backend.aclose()


# what is read and written


async def test_neighbours_go_down_in_one_call(backend, monkeypatch):
    calls = []
    pwritev = os.pwritev

    def counted(fd, buffers, offset):
        calls.append(offset // PAGE)
        return pwritev(fd, buffers, offset)

    monkeypatch.setattr(os, "pwritev", counted)
    items = [(slot, b"x" * (1 + slot)) for slot in [*range(500, 100, -1), 7]]
    await backend.store_many(items)
    assert calls == [7, 101, 357]
    loaded = await backend.load_many([slot for slot, _ in items])
    assert [got.rstrip(b"\0") for got in loaded] == [data for _, data in items]


async def test_short_writes_are_finished(backend, monkeypatch):
    pwritev, pwrite = os.pwritev, os.pwrite
    monkeypatch.setattr(os, "pwritev", lambda fd, b, o: pwritev(fd, [b"".join(b)[:5000]], o))
    monkeypatch.setattr(os, "pwrite", lambda fd, b, o: pwrite(fd, b[:3000], o))
    await backend.store_many(pages(range(5)))
    assert await backend.load_many(range(5)) == [page(i) for i in range(5)]


async def test_cached_reads_stay_in_the_loop_and_others_share_one_hop(backend, monkeypatch):
    if not backend._file.calls.nowait:
        pytest.skip("no RWF_NOWAIT here")
    hops = []
    hop = file_module.hop

    async def counted(*args, **kwargs):
        hops.append(args)
        return await hop(*args, **kwargs)

    slots = [0, 1, 2, 10, 11, 20]
    await backend.store_many(pages(slots))
    monkeypatch.setattr(file_module, "hop", counted)
    assert await backend.load_many(slots) == [page(i) for i in slots]
    assert not hops
    preadv = os.preadv

    def half_cached(fd, buffers, offset, flags):
        if offset // PAGE == 20:
            raise BlockingIOError(errno.EAGAIN, "not cached")
        if offset // PAGE == 10:  # its first page is there, the second is not
            return preadv(fd, [memoryview(buffers[0])[:PAGE]], offset, flags)
        return preadv(fd, buffers, offset, flags)

    monkeypatch.setattr(os, "preadv", half_cached)
    assert await backend.load_many(slots) == [page(i) for i in slots]
    assert len(hops) == 1
    assert await backend.load_many([20]) == [page(20)]
    assert len(hops) == 2


async def test_file_system_without_nowait_is_asked_once(backend, monkeypatch):
    asked = []

    def unsupported(fd, buffers, offset, flags):
        asked.append(offset)
        raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))

    monkeypatch.setattr(os, "preadv", unsupported)
    backend._file.calls.nowait = 8
    await backend.store_many(pages([1, 5]))
    for _ in range(3):
        assert await backend.load_many([1, 5]) == [page(1), page(5)]
    assert len(asked) == 1


@pytest.mark.parametrize(("slot", "data"), [(-1, b"x"), (0, b""), (0, bytes(PAGE + 1))])
async def test_item_against_the_rules_touches_nothing(backend, slot, data):
    await backend.store_many(pages(range(3)))
    with pytest.raises(BackendError, match="1 to 4096 bytes"):
        await backend.store_many([(1, page(9)), (slot, data)])
    await backend.invalidate_many([-1, -5])
    assert await backend.load_many([0, 1, 2]) == [page(0), page(1), page(2)]
    with pytest.raises(BackendError, match="never stored"):
        await backend.load_many([-1])


async def test_closed_backend_says_so(tmp_path):
    backend = FileBackend(str(tmp_path))
    await backend.open(PAGE)
    await backend.store(0, page(0))
    await backend.aclose()
    await backend.aclose()
    for call in (backend.load(0), backend.store(0, page(0))):
        with pytest.raises(BackendError, match="not open"):
            await call


# what fails


@pytest.mark.parametrize("error", [errno.EIO, errno.EROFS, errno.ENOSPC, errno.EDQUOT])
async def test_failed_write_leaves_nothing_to_load(backend, monkeypatch, error):
    await backend.store_many(pages(range(400)))
    pwritev = os.pwritev

    def fail_second(fd, buffers, offset):
        if offset:
            raise OSError(error, os.strerror(error))
        return pwritev(fd, buffers, offset)

    with monkeypatch.context() as patch:
        patch.setattr(os, "pwritev", fail_second)
        with pytest.raises(BackendError, match=r"swap file in .*`path`") as caught:
            await backend.store_many(pages(range(300), seed=50))
    assert isinstance(caught.value, BackendFull) == (error in {errno.ENOSPC, errno.EDQUOT})
    for slot in range(300):
        with pytest.raises(BackendError, match="never stored"):
            await backend.load(slot)
    assert await backend.load_many([300, 399]) == [page(300), page(399)]
    await backend.store_many(pages(range(300), seed=50))
    assert await backend.load(299) == page(349)


@pytest.mark.parametrize("call", ["preadv", "pread"])
async def test_failed_read_names_the_folder(backend, monkeypatch, tmp_path, call):
    def fail(*args):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    await backend.store_many(pages(range(3)))
    if call == "pread":
        backend._file.calls.nowait = 0
    elif not backend._file.calls.nowait:
        pytest.skip("no RWF_NOWAIT here")
    with monkeypatch.context() as patch:
        patch.setattr(os, call, fail)
        with pytest.raises(BackendError) as caught:
            await backend.load(1)
    assert caught.value.errno == errno.EIO
    assert str(tmp_path) in str(caught.value)
    assert await backend.load(1) == page(1)


async def test_truncated_file_is_an_error_not_short_bytes(backend):
    await backend.store_many(pages(range(3)))
    os.truncate(backend._file.fd, PAGE + 100)
    assert await backend.load(0) == page(0)
    with pytest.raises(BackendError, match="shorter than what was stored"):
        await backend.load(1)


async def test_file_size_limit_is_full(backend):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (64 * PAGE + 100, hard))
    try:
        with pytest.raises(BackendFull, match="free space there"):
            await backend.store_many(pages(range(100)))
        with pytest.raises(BackendError):
            await backend.load(0)
        await backend.store_many(pages(range(20)))
        assert await backend.load(19) == page(19)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.fixture
def small_disk(tmp_path):
    command = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(tmp_path)]
    try:
        subprocess.run(command, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("cannot mount a tmpfs here")
    yield str(tmp_path)
    subprocess.run(["umount", str(tmp_path)], check=True)


async def test_full_disk_is_survived(small_disk):
    backend = FileBackend(small_disk)
    await backend.open(PAGE)
    await backend.store_many(pages(range(200)))
    with pytest.raises(BackendFull):
        await backend.store_many(pages(range(200, 400)))
    assert await backend.load_many([0, 199]) == [page(0), page(199)]
    with pytest.raises(BackendError, match="never stored"):
        await backend.load(200)
    await backend.store_many(pages(range(200), seed=7))
    assert await backend.load_many([0, 199]) == [page(7), page(206)]
    await backend.aclose()


# cancelled stores, and threads that nobody waits for any more


class HeldWrites:
    """The first `pwritev` waits until it is let go; what it writes then is on record."""

    def __init__(self, monkeypatch):
        self.entered, self.go = threading.Event(), threading.Event()
        self.written = []
        self._pwritev = os.pwritev
        monkeypatch.setattr(os, "pwritev", self)

    def __call__(self, fd, buffers, offset):
        if not self.entered.is_set():
            self.entered.set()
            assert self.go.wait(10)
        done = self._pwritev(fd, buffers, offset)
        self.written.append((fd, offset // PAGE))
        return done


@pytest.fixture
def held(monkeypatch):
    held = HeldWrites(monkeypatch)
    yield held
    held.go.set()


async def cancel_inside(held, backend, items):
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(backend.store_many, items)
        assert await anyio.to_thread.run_sync(held.entered.wait, 10)
        tasks.cancel_scope.cancel()


async def test_later_store_waits_for_an_abandoned_one_of_its_slots(backend, held):
    await cancel_inside(held, backend, pages(range(100)))
    with pytest.raises(BackendError, match="never stored"):
        await backend.load(0)
    await backend.store_many(pages(range(200, 210)))  # others need not wait
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(backend.store_many, pages([5, 6], seed=100))
        await anyio.sleep(0.05)  # long enough for a thread that does not wait
        assert [slot for _, slot in held.written] == [200]
        held.go.set()
    assert [slot for _, slot in held.written] == [200, 0, 5]  # and its second cluster never went
    assert await backend.load_many([5, 6]) == [page(105), page(106)]


async def test_store_cancelled_before_its_thread_starts_writes_nothing(backend, monkeypatch):
    written = []
    monkeypatch.setattr(os, "pwritev", lambda *args: written.append(args))
    with anyio.CancelScope() as scope:
        scope.cancel()
        await backend.store_many(pages(range(3)))
    await anyio.to_thread.run_sync(int)
    assert not written


async def test_descriptor_outlives_the_abandoned_write(tmp_path, monkeypatch):
    close = os.close
    backend = FileBackend(str(tmp_path))
    await backend.open(PAGE)
    held = HeldWrites(monkeypatch)
    fd = backend._file.fd
    inode = os.fstat(fd).st_ino
    await cancel_inside(held, backend, pages(range(3)))
    await backend.aclose()
    assert os.fstat(fd).st_ino == inode  # nobody else can have been given the number
    closed = threading.Event()
    monkeypatch.setattr(os, "close", lambda number: (close(number), closed.set()))
    held.go.set()
    assert await anyio.to_thread.run_sync(closed.wait, 10)
    assert held.written == [(fd, 0)]
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fd)


async def test_file_opened_after_the_close_is_closed_at_once(tmp_path):
    file = swapfile.SwapFile(str(tmp_path))
    file.close()
    file.open()
    assert file.fd == -1
    with pytest.raises(OSError, match="it is closed"), file.use():
        pass


async def test_slow_stores_do_not_delay_loads(backend, monkeypatch):
    await backend.store_many(pages(range(3)))
    go = threading.Event()
    pwritev = os.pwritev

    def slow(fd, buffers, offset):
        assert go.wait(10)
        return pwritev(fd, buffers, offset)

    monkeypatch.setattr(os, "pwritev", slow)
    backend._file.calls.nowait = 0
    async with anyio.create_task_group() as tasks:
        for slot in range(100, 120):
            tasks.start_soon(backend.store, slot, page(slot))
        await anyio.lowlevel.checkpoint()
        with anyio.fail_after(5):
            assert await backend.load_many([0, 1, 2]) == [page(0), page(1), page(2)]
        go.set()
    assert await backend.load(119) == page(119)


async def test_forgetting_waits_for_an_abandoned_write_of_the_slot(backend, held):
    await cancel_inside(held, backend, pages(range(100)))
    async with anyio.create_task_group() as tasks:
        forgotten = anyio.Event()

        async def forget():
            await backend.invalidate_many([99])
            forgotten.set()

        tasks.start_soon(forget)
        await backend.invalidate_many([200])  # others need not wait
        await anyio.sleep(3 * file_module._STRAY_S)
        assert not forgotten.is_set()
        held.go.set()
        await forgotten.wait()
    assert len(held.written) == 1


# calls that a sandbox or a file system does not allow

NOT_ALLOWED = [errno.EPERM, errno.EACCES, errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP]


def refuses(number):
    def refuse(*_):
        raise OSError(number, os.strerror(number))

    return refuse


def lies(_fd, buffers, *_):
    return sum(map(len, buffers))


def does_nothing(*_):
    return 0  # as a filter may tell the kernel to


async def stores_and_loads(backend, nr=300):
    for seed in (0, 7):
        await backend.store_many(pages(range(nr), seed))
        assert await backend.load_many(range(nr)) == [page(i + seed) for i in range(nr)]
        for i in range(0, nr, 7):
            assert await backend.load(i) == page(i + seed)
    await backend.invalidate_many(range(0, nr, 2))
    assert await backend.load_many(range(1, nr, 2)) == [page(i + 7) for i in range(1, nr, 2)]
    await backend.invalidate_many(range(nr))


@pytest.mark.parametrize("since", ["the start", "later"])
@pytest.mark.parametrize("call", ["pwritev", "preadv", "ftruncate", "both"])
@pytest.mark.parametrize("number", [*NOT_ALLOWED, 0])
async def test_a_call_that_is_not_allowed_has_a_plain_one_instead(
    tmp_path, monkeypatch, since, call, number
):
    answer = refuses(number) if number else does_nothing
    backend = FileBackend(str(tmp_path))
    if since == "later":
        await backend.open(PAGE)
    for name in ("pwritev", "preadv") if call == "both" else (call,):
        monkeypatch.setattr(os, name, answer)
    if since == "the start":
        await backend.open(PAGE)
    await stores_and_loads(backend)
    await backend.aclose()


@pytest.mark.parametrize("call", ["pwritev", "preadv"])
async def test_a_call_that_lies_is_found_out_at_the_opening(tmp_path, monkeypatch, call):
    monkeypatch.setattr(os, call, lies)
    backend = FileBackend(str(tmp_path))
    await backend.open(PAGE)
    await stores_and_loads(backend)
    await backend.aclose()


@pytest.mark.parametrize("number", [*NOT_ALLOWED, errno.EISDIR, errno.ENOENT])
async def test_a_nameless_file_that_is_refused_is_made_with_a_name_and_loses_it(
    tmp_path, monkeypatch, number
):
    if not hasattr(os, "O_TMPFILE"):
        pytest.skip("no O_TMPFILE here")
    opened = os.open

    def refuse(path, flags, *args, **kwargs):
        if flags & os.O_TMPFILE == os.O_TMPFILE:
            raise OSError(number, os.strerror(number))
        return opened(path, flags, *args, **kwargs)

    monkeypatch.setattr(os, "open", refuse)
    backend = FileBackend(str(tmp_path))
    await backend.open(PAGE)
    assert list(tmp_path.iterdir()) == []
    await stores_and_loads(backend)
    await backend.aclose()


@pytest.mark.skipif(platform.machine() != "x86_64", reason="the numbers are those of x86_64")
@pytest.mark.parametrize("number", [errno.EPERM, errno.EACCES, errno.ENOSYS])
def test_a_sandbox_that_refuses_them_all_loses_no_value(number):
    """With a real filter: preadv2, pwritev2, preadv, pwritev, fallocate, ftruncate, memfd_create"""
    program = Path(__file__).with_name("seccomp_child.py")
    command = [sys.executable, program, str(number), "327,328,295,296,285,77,319"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=50, check=False)
    assert (done.returncode, done.stdout.strip()) == (0, "all readable"), done.stdout + done.stderr


# space is given back


def held_bytes(backend):
    return os.fstat(backend._file.fd).st_blocks * 512


ORDERS = {
    "from the start": lambda slots: slots,
    "from the end": lambda slots: slots[::-1],
    "at random": lambda slots: random.Random(1).sample(slots, len(slots)),
    "every other one first": lambda slots: slots[::2] + slots[1::2],
}


@pytest.mark.parametrize("punches", [True, False])
@pytest.mark.parametrize("order", ORDERS)
async def test_a_file_takes_at_most_twice_what_it_holds_and_a_mib(backend, order, punches):
    if not punches:
        backend._file.calls._fallocate = None
    elif not backend._file.calls.punches:
        pytest.skip("no holes here")
    slots = list(range(4096))
    for start in range(0, len(slots), 512):
        await backend.store_many(pages(slots[start : start + 512]))
    full = held_bytes(backend)
    assert full >= 4096 * PAGE
    left = ORDERS[order](slots)
    while left:
        gone, left = left[:64], left[64:]
        await backend.invalidate_many(gone)
        if punches and len(left) % 512 == 0:
            held = held_bytes(backend)
            assert held <= 2 * len(left) * PAGE + file_module.SPARE_BYTES + 128 * KIB
            if left:
                some = left[:: max(1, len(left) // 50)]
                assert await backend.load_many(some) == [page(slot) for slot in some]
    assert held_bytes(backend) <= 128 * KIB  # blocks of the file system's own
    assert os.fstat(backend._file.fd).st_size == 0
    await stores_and_loads(backend)


async def test_without_holes_the_end_of_the_file_is_cut_off(backend):
    backend._file.calls._fallocate = None
    await backend.store_many(pages(range(2048)))
    await backend.invalidate_many(range(100, 2048))
    assert os.fstat(backend._file.fd).st_size == 100 * PAGE
    assert await backend.load_many(range(100)) == [page(slot) for slot in range(100)]


@pytest.mark.parametrize("nr", [1000, 5000])
async def test_a_steady_store_punches_no_hole(backend, monkeypatch, nr):
    """Not even where its slots are so scattered that the file becomes several times as large."""
    monkeypatch.setattr(file_module, "SPARE_BYTES", 64 * PAGE)
    given = []

    async def give_back(self, file):
        given.append(file)

    monkeypatch.setattr(FileBackend, "_give_back", give_back)
    rng = random.Random(nr)
    device = SwapDevice(0, "file", 0, None)
    live = [device.alloc(1) for _ in range(nr)]
    await backend.store_many(pages(live))
    for _ in range(nr // 8):
        at = rng.sample(range(nr), 32)
        run = device.alloc(32)
        await backend.store_many(pages(range(run, run + 32)))
        old = [live[i] for i in at]
        await backend.invalidate_many(old)
        for slot in old:
            device.free(slot, 1)
        for slot, i in enumerate(at, run):
            live[i] = slot
    assert len(backend._slots) > 2 * nr
    assert not given


class HeldTruncate:
    """The next `ftruncate` waits until it is let go."""

    def __init__(self, monkeypatch):
        self.entered, self.go = threading.Event(), threading.Event()
        self._truncate = os.ftruncate
        monkeypatch.setattr(os, "ftruncate", self)

    def __call__(self, fd, size):
        self.entered.set()
        assert self.go.wait(10)
        self._truncate(fd, size)


@pytest.mark.parametrize("cancelled", [False, True])
async def test_a_write_waits_for_the_space_that_is_given_back_meanwhile(
    backend, monkeypatch, cancelled
):
    await backend.store_many(pages(range(2048)))
    held = HeldTruncate(monkeypatch)
    forgets = anyio.CancelScope()

    async def forget():
        with forgets:
            await backend.invalidate_many(range(2, 2048))

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(forget)
        assert await anyio.to_thread.run_sync(held.entered.wait, 10)
        if cancelled:
            forgets.cancel()
        stored = anyio.Event()

        async def store():
            await backend.store_many(pages([1000, 5000], seed=3))
            stored.set()

        tasks.start_soon(store)
        await backend.store_many(pages([0], seed=9))  # which is not given back
        await anyio.sleep(0.05)  # long enough for a thread that does not wait
        assert not stored.is_set()
        held.go.set()
        await stored.wait()
    assert await backend.load_many([0, 1, 1000, 5000]) == [page(9), page(1), page(1003), page(5003)]


async def test_what_is_forgotten_while_space_is_given_back_is_given_back_too(backend, monkeypatch):
    await backend.store_many(pages(range(4096)))
    held = HeldTruncate(monkeypatch)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(backend.invalidate_many, range(1024, 4096))
        assert await anyio.to_thread.run_sync(held.entered.wait, 10)
        await backend.invalidate_many(range(1024))  # nothing is stored any more
        held.go.set()
    assert os.fstat(backend._file.fd).st_blocks == 0


@pytest.mark.parametrize("give_s", [0.0, 0.05])
async def test_whatever_is_given_back_meanwhile_values_stay(tmp_path, monkeypatch, give_s):
    """Tasks store, load, forget and give up stores at random, each in slots of its own."""
    monkeypatch.setattr(file_jobs, "GIVE_S", give_s)
    monkeypatch.setattr(FileBackend, "_spare", lambda self: self._slots.nr_left > 8)
    backend = FileBackend(str(tmp_path))
    await backend.open(PAGE)

    async def use(mine, rng):
        there = {}
        for turn in range(60):
            some = rng.sample(mine, rng.randrange(1, 24))
            what = rng.random()
            if what < 0.5:
                there.update(pages(some, turn))
                await backend.store_many(pages(some, turn))
            elif what < 0.6:
                with anyio.move_on_after(0):
                    await backend.store_many(pages(some, turn))
                await backend.invalidate_many(some)
                there = {slot: data for slot, data in there.items() if slot not in some}
            else:
                await backend.invalidate_many(some)
                there = {slot: data for slot, data in there.items() if slot not in some}
            assert await backend.load_many(list(there)) == list(there.values())
        await backend.invalidate_many(mine)

    async with anyio.create_task_group() as tasks:
        for nr in range(6):
            tasks.start_soon(use, list(range(nr, 600, 6)), random.Random(nr))
    assert os.fstat(backend._file.fd).st_blocks * 512 <= 128 * KIB
    await backend.aclose()


async def test_closing_empties_the_file_although_a_child_has_its_descriptor(backend):
    await backend.store_many(pages(range(300)))
    of_a_child = os.dup(backend._file.fd)
    try:
        await backend.aclose()
        info = os.fstat(of_a_child)
        assert (info.st_size, info.st_blocks) == (0, 0)
    finally:
        os.close(of_a_child)


async def test_a_child_that_closes_leaves_the_file_of_its_parent_alone(backend, monkeypatch):
    await backend.store_many(pages(range(300)))
    of_the_parent = os.dup(backend._file.fd)
    try:
        monkeypatch.setattr(os, "getpid", lambda: -1)
        await backend.aclose()
        assert os.fstat(of_the_parent).st_size == 300 * PAGE
    finally:
        os.close(of_the_parent)
