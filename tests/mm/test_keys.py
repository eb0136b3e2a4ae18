"""What keys cost: all that a key is made of, above what the constant of each covers."""

import enum
import sys
from collections import namedtuple
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import PurePosixPath

import attrs
import pytest

from reclaimactors.mm.keys import KEY_BYTES, MAX_EXTRA, MOST, key_extra

LONG = "x" * 1000
Point = namedtuple("Point", "x y")  # noqa: PYI024 - a plain one, as keys often are


class Text(str):
    __slots__ = ("other",)


@dataclass(frozen=True)
class Data:
    name: str
    number: int = 0


@dataclass(frozen=True, slots=True)
class Slotted:
    name: str
    late: str = field(init=False)  # never set


@attrs.frozen
class Attrs:
    name: str


class Plain:
    pass


class Named:
    """Like most classes of keys: attributes, and by these it is told from others."""

    def __init__(self, name):
        self.name = name


class NamedInSlots:
    __slots__ = ("__weakref__", "name")

    def __init__(self, name):
        self.name = name


class WithDict(Named):
    def __init__(self, name):
        super().__init__(name)
        vars(self)["other"] = {"in a dict": 1}


class TextOf(str):  # noqa: SLOT000 - that is what is tested
    """Of a class that gives its instances attributes."""

    def __init__(self, text):
        self.length = len(text)


class Kind(enum.Enum):
    A = LONG


class Broken:
    def __sizeof__(self):
        raise ValueError("no size")


@dataclass(frozen=True)
class BrokenField:
    name: str = field(init=False)

    def __getattribute__(self, name):
        raise RuntimeError("no attribute")


class Huge:
    def __sizeof__(self):
        return 1 << 40


def test_a_short_key_costs_nothing_beside():
    for key in ("", "k" * 15, 0, -1, 10**50, b"", b"b" * 31, 1.5, None, (), True):
        assert key_extra(key) == 0, key


def test_a_long_key_costs_what_is_beyond_the_allowance():
    for key in (LONG, "k" * 32, "é" * 20, "日" * 20, LONG.encode(), 10**4000, Text(LONG)):
        assert key_extra(key) == sys.getsizeof(key) - KEY_BYTES > 0, key


MADE_OF = [
    (LONG,),
    ("a", (LONG, 1)),
    ((((LONG,),),),),
    Point(1, LONG),
    frozenset([LONG, "b"]),
    Data(LONG),
    Slotted(LONG),
    Attrs(LONG),
    (Data(("in it", LONG)),),
    Named(LONG),
    NamedInSlots(LONG),
    WithDict(LONG),
    (Named((1, Named(LONG))),),
    PurePosixPath("/a", "b" * 700),  # its text, or its parts, or both
    Fraction(1, 1 << 8000),
    TextOf(LONG),
]


@pytest.mark.parametrize("key", MADE_OF, ids=range(len(MADE_OF)))
def test_what_a_key_is_made_of_is_counted(key):
    # A path keeps its parts beside its string; since 3.13 also the string that it was given.
    most = 3600 if isinstance(key, PurePosixPath) else 2000
    assert 1000 < key_extra(key) < most


def test_a_key_that_a_fast_path_knows_costs_the_same_as_of_a_class_of_its_own():
    class Same(tuple):
        __slots__ = ()

    for parts in ((LONG, 1), ("a", (LONG,)), (b"x" * 99, 2.5, None)):
        assert key_extra(parts) == key_extra(Same(parts)) > 0


def test_a_key_of_many_parts_costs_all_of_them():
    parts = tuple(range(1000, 2000))
    assert key_extra(parts) == sum(map(sys.getsizeof, [parts, *parts])) - KEY_BYTES


def test_the_same_object_twice_is_counted_twice():
    assert key_extra((LONG, LONG)) - key_extra((LONG,)) >= len(LONG)


def test_what_many_share_is_not_counted():
    key = Named((Kind.A, Named, enum, key_extra, Named("n").__init__))
    assert key_extra(key) < 200
    assert key_extra(Kind.A) == 0


def test_a_circle_of_objects_is_counted_once():
    first, second = Named(LONG), Named(LONG)
    first.other, second.other = second, first
    assert len(LONG) < key_extra(first) / 2 < 1.2 * len(LONG)


def test_a_key_that_refers_to_half_of_the_program_is_counted_up_to_a_bound():
    objects = [Named(i) for i in range(100_000)]
    for collection in (objects, set(objects), dict.fromkeys(objects)):
        assert key_extra(Named(collection)) < 100
    many = Named(())
    for i in range(1000):
        many = Named((many, Named((i, i)), Named([i, Named(i)])))
    assert 0 < key_extra(many) < MOST * 150


def test_what_hashing_a_key_makes_it_keep_is_counted_before_it_is_hashed_and_after():
    class Lazy(Named):
        def __hash__(self):
            self.folded = self.name.casefold()
            return hash(self.folded)

    key = Lazy(LONG)
    assert key_extra(key) == key_extra(key) > 2 * len(LONG)


def test_tuples_within_tuples_end_somewhere():
    key = (LONG,)
    for _ in range(10_000):
        key = (key,)
    assert 0 < key_extra(key) < 1000


def test_whatever_a_class_says_of_its_size_is_a_number_that_can_be_charged():
    assert key_extra(Plain()) >= 0
    assert key_extra(Broken()) == key_extra(BrokenField()) == 0
    assert key_extra(Data) < 5000, "a class is not its instances"
    assert key_extra(Huge()) == MAX_EXTRA
