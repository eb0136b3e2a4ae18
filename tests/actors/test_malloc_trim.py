"""When the heap is trimmed, and how."""

from __future__ import annotations

import os
import threading

import anyio
import pytest
from anyio import to_thread
from anyio.lowlevel import checkpoint

import reclaimactors as ra
from reclaimactors.actors import malloc_trim as malloc_trim_module
from reclaimactors.actors.malloc_trim import STEP, MallocTrim
from reclaimactors.mm.memcg import Memcg

PART = 1 << 20
BUDGET = STEP * PART


@pytest.fixture
def trims(monkeypatch):
    """The threads in which the heap was trimmed."""
    seen: list[int] = []

    def trim(pad: int) -> int:
        assert pad == 0
        seen.append(threading.get_ident())
        return 1

    monkeypatch.setattr(malloc_trim_module, "_malloc_trim", lambda: trim)
    return seen


async def test_it_is_due_once_for_each_part_of_the_budget_that_overhead_grows_by():
    memcg = Memcg(BUDGET)
    trim = MallocTrim(memcg)
    due = 0
    for _ in range(4 * 10):
        memcg.adjust(overhead=PART // 10 + 1)
        due += trim.due()
    assert due == 4
    memcg.adjust(overhead=-PART)
    memcg.adjust(overhead=PART)
    assert not trim.due()


async def test_it_is_due_once_each_time_that_what_is_held_falls_by_a_quarter_of_the_most():
    memcg = Memcg(64 * BUDGET)
    trim = MallocTrim(memcg)
    most = 16 * PART
    memcg.adjust(resident=most // 2, compressed=most // 4, overhead=most // 4)
    assert not trim.due()
    memcg.adjust(resident=1 - most // 4)
    assert not trim.due()
    memcg.adjust(compressed=-1)
    assert trim.due()
    assert not trim.due()
    memcg.adjust(resident=-most // 8)
    memcg.adjust(resident=most // 8)
    assert not trim.due()
    most = 12 * PART
    memcg.adjust(compressed=1 - most // 4)
    assert not trim.due()
    memcg.adjust(overhead=-1)
    assert trim.due()


async def test_keys_that_go_are_a_fall_like_values():
    memcg = Memcg(64 * BUDGET)
    trim = MallocTrim(memcg)
    memcg.adjust(overhead=3 * PART)
    assert not trim.due()
    memcg.adjust(overhead=-PART)
    assert trim.due()


async def test_a_small_memory_is_not_worth_it():
    memcg = Memcg(BUDGET // 64)
    trim = MallocTrim(memcg)
    memcg.adjust(resident=BUDGET // 64)
    assert not trim.due()
    memcg.adjust(resident=-BUDGET // 64)
    assert not trim.due()


async def test_without_such_a_c_library_nothing_happens(monkeypatch):
    monkeypatch.setattr(malloc_trim_module, "_malloc_trim", lambda: None)
    await MallocTrim(Memcg(BUDGET)).trim()


async def test_without_a_thread_it_is_trimmed_all_the_same(monkeypatch, trims):
    async def refuse(*_args, **_options):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(to_thread, "run_sync", refuse)
    await MallocTrim(Memcg(BUDGET)).trim()
    assert trims == [threading.get_ident()]


@pytest.mark.parametrize("size", [4096, 1 << 20])
async def test_after_much_was_deleted_a_thread_trims(trims, size):
    async with ra.open_memory(budget="32MiB", swap=[]) as memory:
        for key in range((16 << 20) // size):
            await memory.put(key, os.urandom(size))
        assert trims == []
        for key in range((16 << 20) // size):
            await memory.delete(key)
        with anyio.fail_after(30):
            while not trims:
                await anyio.sleep(0)
        assert threading.get_ident() not in trims


async def test_a_memory_whose_values_were_all_deleted_is_trimmed_as_it_closes(trims):
    async with ra.open_memory(budget="32MiB", swap=[]) as memory:
        for key in range(1000):
            await memory.put(key, os.urandom(4096))
        for key in range(1000):
            await memory.delete(key)
        memory._machine.starter.look_at_malloc = lambda: None  # no other trim begins from here on
        for _ in range(100):
            await checkpoint()
        before = len(trims)
    assert len(trims) > before
