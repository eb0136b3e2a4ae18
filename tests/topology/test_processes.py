"""Who has a memory open beside this process, and who is told."""

from __future__ import annotations

import logging
import os
import socket
import subprocess
import sys

import pytest

import reclaimactors as ra
from reclaimactors.topology import processes

linux = pytest.mark.skipif(sys.platform != "linux", reason="abstract sockets are Linux's")

PROGRAM = """
import asyncio, logging, sys
import reclaimactors as ra

logging.basicConfig(stream=sys.stdout, format="%(message)s")

async def main():
    for _ in range(2):
        async with ra.open_memory(budget="1MiB", swap=[]):
            print("open", flush=True)
            sys.stdin.readline()

asyncio.run(main())
"""


@pytest.fixture(autouse=True)
def _nobody_was_told(monkeypatch):
    monkeypatch.setattr(processes, "_name", processes._Name())
    monkeypatch.delenv("WEB_CONCURRENCY", raising=False)


def started(**env):
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM], env=os.environ | env,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip


def until_open(process):
    lines = []
    while not lines or lines[-1] != "open":
        lines.append(process.stdout.readline().strip())
    return lines[:-1]


def go_on(process):
    process.stdin.write("\n")
    process.stdin.flush()


def told(caplog):
    """What the package has said; asyncio may say more on a busy machine."""
    return [r.getMessage() for r in caplog.records if r.name.startswith("reclaimactors")]


@linux
def test_the_second_process_of_a_program_is_told_once_and_a_third_after_both_is_not():
    with started() as first:
        assert until_open(first) == []
        with started() as second:
            [line] = until_open(second)
            assert line.startswith("memory.one_of_several memory='kcompressd' nid=0 reason=")
            assert "another process of this program, with the same parent, has a memory" in line
            assert "instead='one process that serves all clients, or Redis as far" in line
            go_on(second)
            assert until_open(second) == []
            go_on(second)
        go_on(first)
        assert until_open(first) == []
        go_on(first)
    assert first.returncode == second.returncode == 0
    with started() as third:
        assert until_open(third) == []
        third.kill()


@linux
def test_a_process_that_has_closed_its_memory_is_no_other():
    with started() as first:
        until_open(first)
        go_on(first)
        until_open(first)
        first.stdin.close()  # both are closed, one after the other
        assert first.wait(20) == 0
        with started() as second:
            assert until_open(second) == []
            second.kill()


async def test_memories_of_one_process_are_not_several_processes(caplog):
    caplog.set_level(logging.INFO)
    async with ra.open_memory(budget="1MiB", swap=[]), ra.open_memory(budget="1MiB", swap=[]):
        assert processes._name.memories == 2
    assert processes._name.memories == 0
    assert told(caplog) == []


@pytest.mark.parametrize(("workers", "lines"), [("2", 1), ("1", 0), ("", 0), ("auto", 0)])
async def test_a_server_that_is_told_to_have_workers_is_told_once(
    monkeypatch, caplog, workers, lines
):
    monkeypatch.setenv("WEB_CONCURRENCY", workers)
    for _ in range(2):
        async with ra.open_memory(budget="1MiB", swap=[]):
            pass
    assert [f"WEB_CONCURRENCY is {workers}" in text for text in told(caplog)] == [True] * lines


@linux
async def test_where_there_are_no_sockets_nobody_is_told(monkeypatch, caplog):
    def refused(*_):
        raise PermissionError(1, "no")

    monkeypatch.setattr(socket, "socket", refused)
    processes.memory_opened()
    processes.memory_closed()
    assert processes._name.memories == 0
    assert told(caplog) == []


@linux
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")  # 3.12
def test_a_forked_child_has_not_the_name_of_its_parent():
    processes.memory_opened()
    ours, theirs = os.pipe()
    if os.fork() == 0:
        os.write(theirs, f"{processes._name.memories} {processes._name._socket}".encode())
        os._exit(0)
    os.close(theirs)
    with os.fdopen(ours) as said:
        assert said.read() == "0 None"
    os.wait()
    processes.memory_closed()
