"""Embedded, the package is silent but for errors: no print, no logging configured.

Errors reach stderr as those of any library do: through logging's last resort.
"""

from __future__ import annotations

import subprocess
import sys

IMPORT = """
import logging, sys
import reclaimactors, reclaimactors.testing
"""

CONFIGURED = """
import structlog, warnings
assert not structlog.is_configured()
assert not logging.getLogger().handlers, logging.getLogger().handlers
assert logging.getLogger().level == logging.WARNING
ours = [logging.getLogger(name) for name in logging.root.manager.loggerDict
        if name.partition(".")[0] == "reclaimactors"]
assert not any(log.handlers for log in ours)
assert all(log.level == logging.NOTSET and log.propagate for log in ours)
"""

USE = """
import anyio, errno, random
import reclaimactors as ra
from reclaimactors.backends.memory import MemoryBackend
from reclaimactors.testing import FaultyBackend, FaultyCompressor
from reclaimactors.compressors.lz4 import Lz4

def page(i):
    return random.Random(i).randbytes(2048) + bytes(2048)

async def failing_stores():
    stores = [
        FaultyBackend(MemoryBackend(), error=OSError(errno.EIO, "dead")),
        FaultyBackend(MemoryBackend(), full_after=3),
        FaultyBackend(MemoryBackend()),
    ]
    swap = [{"backend": s, "priority": 9 - i, "size": "1MiB"} for i, s in enumerate(stores)]
    compressor = FaultyCompressor(Lz4(), every=3)
    compress = {"compressor": compressor, "offload": "thread"}
    async with ra.open_memory(budget="1MiB", swap=swap, compress=compress) as memory:
        kept = []
        for i in range(500):
            try:
                await memory.put(i, random.Random(i).randbytes(4096) if i % 3 else page(i))
            except ra.OutOfMemory:
                continue
            kept.append(i)
        stores[2].error = OSError(errno.EIO, "gone")
        for i in kept:
            try:
                await memory.get(i)
            except ra.BackendError:
                continue
        assert memory.vmstat["swapout_error"], "no store failed"
        assert memory.vmstat["swapin_error"], "no load failed"

class Crashing:
    '''A policy that crashes whoever isolates, when told.'''
    def __init__(self, pages, when):
        from reclaimactors.policies.active_inactive import ActiveInactive
        self.inner, self.when, self.calls = ActiveInactive(pages=pages), when, 0
    def __getattr__(self, name):
        return getattr(self.inner, name)
    def isolate(self, nr):
        self.calls += 1
        if self.when(self.calls):
            raise RuntimeError("crash as told")
        return self.inner.isolate(nr)

async def crashing_actors():
    async with ra.open_memory(budget="1MiB", policy=Crashing(256, {3, 9}.__contains__)) as memory:
        for i in range(1000):
            try:
                await memory.put(i, page(i))
            except RuntimeError:
                pass  # the policy's own, in a caller that reclaims for itself
            await anyio.sleep(0)
        assert memory.vmstat["actor_restarts"], "no actor crashed"

async def loud_end():
    try:
        async with ra.open_memory(budget="1MiB", policy=Crashing(256, bool)) as memory:
            for i in range(10_000):
                try:
                    await memory.put(i, page(i))
                except RuntimeError:
                    pass
                await anyio.sleep(0.001)
    except ra.ReclaimError as exc:
        assert "crashed" in str(exc), exc
    else:
        raise AssertionError("six crashes in a row were survived")

async def wrong_use():
    for bad in ({"budget": "12XB"}, {"policy": "nobody"}, {"swap": [{"backend": "nothing"}]}):
        try:
            async with ra.open_memory(**bad):
                pass
        except ra.ReclaimError:
            continue
        raise AssertionError(bad)
"""

RUN = "anyio.run({})\n"


def errors_of(program: str) -> list[str]:
    """Run a program that configures nothing; return the lines of the log that it shows."""
    ended = subprocess.run(
        [sys.executable, "-W", "default", "-c", program],  # -X dev has asyncio time callbacks
        capture_output=True, text=True, check=False, timeout=50,
    )  # fmt: skip
    assert (ended.returncode, ended.stdout) == (0, ""), ended.stderr
    lines = ended.stderr.splitlines()
    lines = [line for line in lines if line.strip(" ^~")]  # marks below a line of a traceback
    heads = [line for line in lines if line.startswith("reclaimactors: ")]
    rest = [line for line in lines if line not in heads and not line.startswith("  ")]
    about = ("Traceback (most", "RuntimeError: crash as told")
    assert all(line.startswith(about) for line in rest), rest
    return heads


def silent(program: str) -> None:
    assert errors_of(program) == []


def test_importing_prints_and_configures_nothing():
    silent(IMPORT + CONFIGURED)


def test_importing_does_not_load_the_command_line_or_test_tools():
    silent(IMPORT + "assert not {'typer', 'pytest', 'hypothesis'} & set(sys.modules)\n")


def test_what_is_shown_of_failing_stores_is_errors_alone():
    shown = errors_of(IMPORT + USE + RUN.format("failing_stores") + CONFIGURED)
    assert {line.split()[1] for line in shown} == {"swapd.out_of_service"}
    assert any("OSError: [Errno 5] dead" in line for line in shown)


def test_a_crash_of_an_actor_is_shown():
    [first, *_] = errors_of(IMPORT + USE + RUN.format("crashing_actors") + CONFIGURED)
    assert first.startswith("reclaimactors: actor.crashed ")
    assert "actor='kswapd'" in first


def test_the_loud_end_is_shown_and_an_exception():
    shown = errors_of(IMPORT + USE + RUN.format("loud_end") + CONFIGURED)
    assert "memory.crashed" in shown[-1]
    assert "crash as told" in shown[-1]


def test_a_line_that_nobody_hears_does_not_import_structlog():
    """It takes a tenth of a second, which a program that meets no error should not pay."""
    quiet = "logging.getLogger('reclaimactors').setLevel(logging.CRITICAL)\n"
    unseen = "assert 'structlog' not in sys.modules\n"
    silent(IMPORT + quiet + USE + RUN.format("failing_stores") + unseen)


def test_wrong_use_prints_nothing():
    silent(IMPORT + USE + RUN.format("wrong_use") + CONFIGURED)


def test_a_host_that_sets_up_logging_gets_the_lines():
    program = (
        IMPORT + "logging.basicConfig(stream=sys.stdout)\n" + USE + RUN.format("failing_stores")
    )
    ended = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=50
    )
    assert ended.returncode == 0, ended.stderr
    assert "swapd.store_failed" in ended.stdout
