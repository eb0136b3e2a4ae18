"""Every item ends, whatever ending one of them raises."""

import gc
import weakref

import pytest

from reclaimactors.mm.ending import end_all, undo


class Items:
    """Ends items, and raises for some of them."""

    def __init__(self, **errors):
        self.errors = errors
        self.ended = []

    def end(self, item):
        self.ended.append(item)
        if item in self.errors:
            raise self.errors[item]


def test_all_end_and_the_first_error_is_raised_with_the_others_as_notes():
    items = Items(b=ValueError("of b"), c=KeyboardInterrupt(), d=OSError("of d"))
    with pytest.raises(ValueError, match="of b") as caught:
        end_all("abcde", items.end)
    assert items.ended == list("abcde")
    notes = ["after it: KeyboardInterrupt()", "after it: OSError('of d')"]
    assert caught.value.__notes__ == notes


def test_nothing_is_raised_where_nothing_was():
    items = Items()
    end_all(iter("ab"), items.end)
    end_all((), items.end)
    assert items.ended == ["a", "b"]


def test_an_error_that_was_on_its_way_is_the_context():
    items = Items(a=ValueError("of a"))

    def fails():
        try:
            raise OSError("before")
        finally:
            end_all("ab", items.end)

    with pytest.raises(ValueError, match="of a") as caught:
        fails()
    assert str(caught.value.__context__) == "before"
    assert items.ended == ["a", "b"]


def test_what_undoing_raises_is_a_note_and_few_of_these_are_kept():
    items = Items(a=ValueError("of a"))
    error = OSError("before")
    undo(error, items.end, "a")
    assert error.__notes__ == ["after it: ValueError('of a')"]
    for _ in range(100):
        undo(error, items.end, "a")
    assert len(error.__notes__) < 10


def test_one_error_object_that_is_raised_for_all_is_no_note_of_itself():
    error = ValueError("the same")
    with pytest.raises(ValueError, match="the same") as caught:
        end_all("ab", Items(a=error, b=error).end)
    assert not hasattr(caught.value, "__notes__")


def test_an_error_that_was_raised_keeps_nothing_alive():
    class Held:
        pass

    held = Held()
    gone = weakref.ref(held)

    def end(_item, held=held):
        raise ValueError("as told")

    gc.disable()
    try:
        with pytest.raises(ValueError, match="as told") as caught:
            end_all("ab", end)
        del held, end, caught
        assert gone() is None
    finally:
        gc.enable()
