"""When the heap is trimmed."""

from reclaimactors.actors.heap import STEP, Heap
from reclaimactors.mm.memcg import Memcg

PART = 1000
BUDGET = STEP * PART


def test_it_is_trimmed_once_for_each_part_of_the_budget_that_overhead_grows_by():
    memcg = Memcg(BUDGET)
    trims: list[int] = []
    heap = Heap(memcg)
    heap._trim = lambda pad: trims.append(pad) or 1
    for _ in range(4 * 10):
        memcg.adjust(overhead=PART // 10)
        heap.overhead_grew()
    assert trims == [0] * 4
    memcg.adjust(overhead=-PART)
    memcg.adjust(overhead=PART)
    heap.overhead_grew()
    assert trims == [0] * 4


def test_without_such_a_c_library_nothing_happens():
    memcg = Memcg(BUDGET)
    heap = Heap(memcg)
    heap._trim = None
    memcg.adjust(overhead=BUDGET)
    heap.overhead_grew()
