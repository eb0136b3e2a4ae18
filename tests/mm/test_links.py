from hypothesis import given
from hypothesis import strategies as st

from reclaimactors.mm.links import Links


def test_order_is_cold_to_hot():
    links = Links(2)
    for pfn in (3, 1, 2):
        links.add_tail(0, pfn)
    links.add_head(0, 9)
    assert list(links.walk(0)) == [9, 3, 1, 2]
    assert links.pop_head(0) == 9
    assert links.sizes == [3, 0]
    assert links.pop_head(1) is None


def test_walk_survives_removal_of_what_it_yields():
    links = Links(1)
    for pfn in range(6):
        links.add_tail(0, pfn)
    for pfn in links.walk(0):
        if pfn % 2:
            links.remove(0, pfn)
    links.check()
    assert [links.on_list(pfn) for pfn in range(7)] == [True, False] * 3 + [False]


def test_split_stops_at_nr_or_limit():
    links = Links(2)
    for pfn in range(10):
        links.add_tail(0, pfn)
    read = bytearray([1, 0, 1, 0, 0, 0, 1, 1, 1, 1])
    assert links.split(0, 2, read, 0, 99) == ([1, 3], [0, 2])
    assert links.split(0, 9, read, 0, 3) == ([4, 5], [6])
    links.extend_tail(1, [6, 0])
    links.extend_tail(1, [])
    assert list(links.walk(1)) == [6, 0]
    assert links.split(0, 9, read, 0, 99) == ([], [7, 8, 9])
    assert not links.on_list(7)
    links.check()


@given(st.lists(st.tuples(st.sampled_from("thrpsx"), st.integers(0, 2), st.integers(0, 12))))
def test_lists_match_python_lists(steps):
    links, model = Links(3), [[], [], []]
    column = bytearray([0, 1] * 7)
    for what, head, number in steps:
        on = next((h for h in range(3) if number in model[h]), None)
        if what == "t" and on is None:
            links.add_tail(head, number)
            model[head].append(number)
        elif what == "h" and on is None:
            links.add_head(head, number)
            model[head].insert(0, number)
        elif what == "r" and on is not None:
            links.remove(on, number)
            model[on].remove(number)
        elif what == "p":
            assert links.pop_many(head, number) == model[head][:number]
            del model[head][:number]
        elif what == "s":
            matching, others = links.split(head, 2, column, 0, number)
            taken = model[head][: len(matching) + len(others)]
            assert [p for p in taken if not column[p]] == matching
            assert [p for p in taken if column[p]] == others
            assert len(matching) == 2 or len(taken) == min(number, len(model[head]))
            model[head] = model[head][len(taken) :]
        elif what == "x":
            moved = links.pop_many(head, number)
            links.extend_tail((head + 1) % 3, moved)
            del model[head][: len(moved)]
            model[(head + 1) % 3] += moved
        links.check()
        assert [list(links.walk(h)) for h in range(3)] == model
