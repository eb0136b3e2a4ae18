"""When the heap is trimmed, and how."""

from __future__ import annotations

import os
import threading

import anyio
import pytest
from anyio import to_thread

import reclaimactors as ra
from reclaimactors.actors import heap as heap_module
from reclaimactors.actors.heap import FALL, STEP, Heap
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

    monkeypatch.setattr(heap_module, "_malloc_trim", lambda: trim)
    return seen


async def test_it_is_due_once_for_each_part_of_the_budget_that_overhead_grows_by():
    memcg = Memcg(BUDGET)
    heap = Heap(memcg)
    due = 0
    for _ in range(4 * 10):
        memcg.adjust(overhead=PART // 10 + 1)
        due += heap.due()
    assert due == 4
    memcg.adjust(overhead=-PART)
    memcg.adjust(overhead=PART)
    assert not heap.due()


async def test_it_is_due_once_each_time_that_values_and_blobs_fall_by_a_quarter_of_the_budget():
    memcg = Memcg(BUDGET)
    heap = Heap(memcg)
    quarter = BUDGET // FALL
    memcg.adjust(resident=2 * quarter, compressed=quarter)
    assert not heap.due()
    memcg.adjust(resident=1 - quarter)
    assert not heap.due()
    memcg.adjust(compressed=-1)
    assert heap.due()
    assert not heap.due()
    memcg.adjust(resident=-quarter // 2)
    memcg.adjust(resident=quarter // 2)
    assert not heap.due()
    memcg.adjust(compressed=1 - quarter)
    assert not heap.due()
    memcg.adjust(resident=-1)
    assert heap.due()


async def test_a_small_memory_is_not_worth_it():
    memcg = Memcg(BUDGET // 64)
    heap = Heap(memcg)
    memcg.adjust(resident=BUDGET // 64)
    assert not heap.due()
    memcg.adjust(resident=-BUDGET // 64)
    assert not heap.due()


async def test_without_such_a_c_library_nothing_happens(monkeypatch):
    monkeypatch.setattr(heap_module, "_malloc_trim", lambda: None)
    await Heap(Memcg(BUDGET)).trim()


async def test_without_a_thread_it_is_trimmed_all_the_same(monkeypatch, trims):
    async def refuse(*_args, **_options):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(to_thread, "run_sync", refuse)
    await Heap(Memcg(BUDGET)).trim()
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
