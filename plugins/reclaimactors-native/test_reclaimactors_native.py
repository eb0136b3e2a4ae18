"""The conformance suite, and what is peculiar to threads that Python does not know."""
# ruff: noqa: D101, D102, D103 - a test's name is its sentence

from __future__ import annotations

import gc
import os
import subprocess
import sys
import tomllib
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import anyio
import pytest
from hypothesis import given
from hypothesis import strategies as st

import reclaimactors as ra
from reclaimactors.compressors.lz4 import Lz4
from reclaimactors.compressors.zlib import Zlib
from reclaimactors.cpu.clock import perf_counter
from reclaimactors.lab.measure import cpu_times
from reclaimactors.mm.page_io import squeeze
from reclaimactors.registry import PluginRef, build
from reclaimactors.testing import OffloadTests

if TYPE_CHECKING:
    from collections.abc import Iterator

_WHY = "reclaimactors-native is not built here: pip install ./plugins/reclaimactors-native"
pytest.importorskip("reclaimactors_native._threads", reason=_WHY)

import reclaimactors_native as native  # noqa: E402 - only where it is built
from reclaimactors_native._threads import Pool  # noqa: E402 - the same

HAS_ZSTD = find_spec("reclaimactors_zstd") is not None
needs_zstd = pytest.mark.skipif(not HAS_ZSTD, reason="reclaimactors-zstd is not installed")
needs_proc = pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="looks into /proc")
LZ4 = str(sys.modules["lz4.block._block"].__file__)
TEXT = Path(__file__).read_bytes()
SLOW = TEXT * 30  # takes zstd 19 a tenth of a second


def zstd(level: int = 3) -> ra.Compressor:
    return build("compressors", PluginRef("reclaimactors_zstd:Zstd", {"level": level}))


def offload_for(compressor: ra.Compressor, workers: int = 1, nice: int = 10) -> native.Native:
    return native.Native(compressor=compressor, workers=workers, nice=nice)


def our_threads() -> dict[str, str]:
    """Return the /proc status of each thread of ours, by number."""
    found: dict[str, str] = {}
    for task in Path("/proc/self/task").iterdir():
        try:
            status = (task / "status").read_text()
        except OSError:  # it has ended
            continue
        if status.startswith("Name:\treclaim-native"):
            found[task.name] = status
    return found


def collected(offload: native.Native) -> ra.Squeezed:
    """Return the rows of a batch, without ever letting go of the interpreter's lock."""
    while (done := offload.collect()) is None:
        pass
    return done[1]


def closed(offload: native.Native | Pool) -> None:
    """Close it, however long its threads take beside all else that runs here."""
    until = perf_counter() + 20
    while not offload.close():
        assert perf_counter() < until


@pytest.fixture(autouse=True)
def _no_thread_is_left() -> Iterator[None]:
    yield
    gc.collect()
    until = perf_counter() + 20
    while Path("/proc/self/task").exists() and our_threads():
        assert perf_counter() < until


class TestLz4(OffloadTests):
    def make_offload(self, compressor: ra.Compressor, workers: int) -> ra.Offload:
        return offload_for(compressor, workers)


class TestFastLz4(TestLz4):
    def make_compressor(self) -> ra.Compressor:
        return Lz4(acceleration=40)


@needs_zstd
class TestZstd(TestLz4):
    def make_compressor(self) -> ra.Compressor:
        return zstd()


@needs_zstd
class TestFastZstd(TestLz4):
    def make_compressor(self) -> ra.Compressor:
        return zstd(-5)


@given(
    st.lists(st.binary(max_size=5000) | st.binary(max_size=9).map(lambda word: word * 400)),
    st.sampled_from([1, 9]) if not HAS_ZSTD else st.sampled_from([1, 9, "zstd", "zstd 19"]),
    st.booleans(),
)
def test_rows_are_those_of_every_other_offload(
    pages: list[bytes], which: int | str, of_sources: bool
) -> None:
    compressor = Lz4(which) if isinstance(which, int) else zstd(19 if "19" in which else 3)
    expected = squeeze(compressor, pages, checksum=True, of_sources=of_sources)
    offload = offload_for(compressor)
    offload.open()
    try:
        offload.submit(pages, of_sources=of_sources)
        rows = collected(offload)
    finally:
        closed(offload)
    assert (rows.kinds, rows.blobs, rows.values) == (
        expected.kinds,
        expected.blobs,
        expected.values,
    )


# -- what it takes ---------------------------------------------------------------------------------


class Other(Lz4):
    name = "other"


@pytest.mark.parametrize("compressor", [Zlib(), Other()], ids=lambda it: it.name)
def test_another_compressor_is_refused_with_what_helps(compressor: ra.Compressor) -> None:
    said = f"compresses with lz4 and zstd, not with '{compressor.name}'; set offload = \"process\""
    with pytest.raises(ra.PluginError, match=said):
        offload_for(compressor)


def test_functions_that_compress_otherwise_are_refused() -> None:
    pool = Pool("lz4", LZ4, 40, 0)
    with pytest.raises(ra.PluginError, match=r"_block\..* compress otherwise than lz4; set"):
        native._try_out(pool, Lz4(), Path(LZ4))  # noqa: SLF001 - no such library is here


@pytest.mark.parametrize(
    ("codec", "path", "says"),
    [
        ("lz4", sys.modules["reclaimactors_native._threads"].__file__, "does not export LZ4_"),
        ("zstd", LZ4, "does not export ZSTD_createCCtx"),
        ("lz4", "/no/such/library.so", "cannot be opened"),
        ("lzma", LZ4, "no codec lzma; known: lz4, zstd"),
    ],
)
def test_a_library_without_the_functions_is_a_lookup_error(
    codec: str, path: str, says: str
) -> None:
    with pytest.raises(LookupError, match=says):
        Pool(codec, path, 1, 0)


def test_a_package_that_shows_no_functions_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    known = {"reclaimactors.compressors.lz4.Lz4": ("lz4", "acceleration", ["lz4.no_such"])}
    monkeypatch.setattr(native, "_KNOWN", known)
    with pytest.raises(ra.PluginError, match="does not find the functions of lz4: no library"):
        offload_for(Lz4())


def test_threads_are_1_to_256_and_start_once() -> None:
    pool = Pool("lz4", LZ4, 1, 0)
    for nr in (0, -1, 257):
        with pytest.raises(ValueError, match="allowed: 1 to 256"):
            pool.open(nr)
    for call in (pool.collect, lambda: pool.submit([TEXT])):
        with pytest.raises(RuntimeError, match="call open first"):
            call()
    pool.open(256)
    with pytest.raises(RuntimeError, match="run already"):
        pool.open(1)
    closed(pool)


# -- what threads of our own do --------------------------------------------------------------------


def test_they_never_want_the_interpreters_lock() -> None:
    offload, interval = offload_for(Lz4()), sys.getswitchinterval()
    offload.open()
    sys.setswitchinterval(1000)
    try:
        offload.submit([TEXT] * 50, of_sources=False)
        assert collected(offload).blobs == [Lz4().compress(TEXT)] * 50
    finally:
        sys.setswitchinterval(interval)
        closed(offload)


@needs_proc
def test_they_are_nice_by_themselves_and_take_no_signals() -> None:
    offload = offload_for(Lz4(), 3, nice=7)
    before = os.getpriority(os.PRIO_PROCESS, 0)
    offload.open()
    until = perf_counter() + 20
    nices = [0]
    while nices != 3 * [min(19, before + 7)]:
        assert perf_counter() < until
        threads = our_threads()
        nices = [os.getpriority(os.PRIO_PROCESS, int(tid)) for tid in threads]
    assert os.getpriority(os.PRIO_PROCESS, 0) == before
    for status in threads.values():
        blocked = int(status.partition("SigBlk:")[2].split()[0], 16)
        assert blocked >> 1 & 1, "SIGINT is for the host's threads"
        assert not blocked >> 10 & 1, "a SIGSEGV of its own is told by faulthandler"
    closed(offload)
    assert not our_threads()


def test_their_cpu_time_is_that_of_workers() -> None:
    offload = offload_for(Lz4())
    offload.open()
    before = cpu_times()[1]
    offload.submit([SLOW] * 20, of_sources=False)
    rows = collected(offload)
    assert 0 < rows.cpu_s <= cpu_times()[1] - before
    closed(offload)


def test_one_that_is_dropped_while_it_works_lets_go_of_all() -> None:
    page = TEXT + b"."
    before = sys.getrefcount(page)
    offload = offload_for(Lz4(), 2)
    offload.open()
    for _ in range(50):
        offload.submit([page] * 20, of_sources=False)
    del offload  # it waits for some milliseconds; what is under way then is never let go of
    gc.collect()
    assert sys.getrefcount(page) <= before + 2 * 20


def test_a_forked_child_has_no_threads_and_its_parent_goes_on() -> None:
    offload = offload_for(Lz4())
    offload.open()
    offload.submit([TEXT] * 200, of_sources=False)
    child = os.fork()
    if not child:
        try:
            with pytest.raises(RuntimeError, match="those of the parent"):
                offload.submit([TEXT], of_sources=False)
            with pytest.raises(RuntimeError, match="those of the parent"):
                offload.collect()
            closed(offload)
            offload.open()  # threads of its own
            offload.submit([TEXT], of_sources=False)
            assert collected(offload).blobs == [Lz4().compress(TEXT)]
            closed(offload)
            os._exit(0)
        except BaseException:  # noqa: BLE001 - a forked child ends here, whatever it is
            os._exit(1)
    _, status = os.waitpid(child, 0)
    assert status == 0
    assert len(collected(offload).blobs) == 200
    closed(offload)


def ends(program: str) -> tuple[int, bytes, bytes]:
    """Return the exit status of a program of its own, and what it printed."""
    ended = subprocess.run(  # noqa: S603 - our own program
        [sys.executable, "-X", "faulthandler", "-W", "ignore::DeprecationWarning", "-c", program],
        check=False,
        capture_output=True,
        timeout=50,
    )
    return ended.returncode, ended.stdout, ended.stderr


@needs_zstd
@pytest.mark.parametrize("how", ["", "offload = None", "os.fork() or sys.exit(0); os.wait()"])
def test_the_interpreter_ends_with_batches_under_way(how: str) -> None:
    program = f"""
import os, sys
from reclaimactors_native import Native
from reclaimactors_zstd import Zstd
offload = Native(compressor=Zstd(19), workers=2, nice=10)
offload.open()
pages = [os.urandom(1000) * 1000 for _ in range(50)]
for _ in range(9):
    offload.submit(pages, of_sources=False)
{how}
"""
    assert ends(program) == (0, b"", b"")


SUBINTERPRETER = """
import sys
sys.path[:] = {path}
from reclaimactors_native._threads import Pool
pool = Pool("lz4", {library}, 1, 0)
pool.open(2)
pool.submit([b"kswapd0 " * 99 + bytes([i]) * 300 for i in range(50)])
while (done := pool.collect()) is None:
    pass
assert None not in done[1][1]
pool.submit([bytes(5000)] * 500)
"""


def test_a_subinterpreter_has_threads_of_its_own() -> None:
    inner = SUBINTERPRETER.format(path=sys.path, library=repr(LZ4))
    program = f"""
try:
    import _interpreters as interpreters
except ImportError:
    import _xxsubinterpreters as interpreters
for _ in range(3):
    number = interpreters.create()
    failed = interpreters.run_string(number, {inner!r})
    assert not failed, failed
    interpreters.destroy(number)
"""
    assert ends(program) == (0, b"", b"")


# -- in a memory -----------------------------------------------------------------------------------


def entry_point() -> str:
    project = tomllib.loads(Path(__file__).with_name("pyproject.toml").read_text())["project"]
    return str(project["entry-points"]["reclaimactors.offloads"]["native"])


@pytest.mark.parametrize("loop", ["asyncio", "trio"])
@pytest.mark.parametrize("topology", ["kswapd_only", "kcompressd", "padata_ordered", "zram"])
def test_in_a_memory_every_value_survives(topology: str, loop: str) -> None:
    async def main() -> None:
        compress = {"offload": entry_point(), "fifo": 32, "batch": 32}
        values = {nr: TEXT[nr : nr + 3000] + os.urandom(500) for nr in range(700)}
        async with ra.open_memory(topology, budget="2MiB", compress=compress) as memory:
            for key, value in values.items():
                await memory.put(key, value)
            for key in range(0, 700, 3):
                await memory.put(key, values[key][::-1])
                values[key] = values[key][::-1]
            assert {key: await memory.get(key) for key in values} == values
            assert memory.health().state == "open"
            assert memory.usage().staging > 0

    anyio.run(main, backend=loop)


def test_check_refuses_another_compressor_and_names_the_key() -> None:
    async def main() -> None:
        async with ra.open_memory(compress={"offload": entry_point(), "compressor": "zlib"}):
            pass

    with pytest.raises(ra.PluginError, match=r"^compress\.offload: .* not with 'zlib'; set"):
        anyio.run(main)
