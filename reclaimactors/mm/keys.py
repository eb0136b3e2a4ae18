"""What a key costs beside the measured constant of each: long ones are charged the difference.

A key is charged for each entry that it names, shared objects included: what is charged is never
less than what is there. Counted are the key and what it is made of, DEPTH levels down: the items
of tuples and of other containers, and the attributes of an object of any class, in slots or not
(a dataclass, an attrs class, a path, a fraction). They are what the garbage collector sees of it,
so that no code of its class runs for them.

Not counted are classes, modules, functions and members of enums, which all keys share, nor what is
beyond the first MOST objects other than str, bytes and int, nor a list, dict or set of more than
MOST items: a key that refers to half of the program is not made of it.
"""

from __future__ import annotations

from contextlib import suppress
from enum import Enum
from gc import get_referents
from sys import getsizeof
from types import BuiltinFunctionType, CodeType, FunctionType, MethodType, ModuleType
from typing import TYPE_CHECKING, Any, Final, cast

if TYPE_CHECKING:
    from collections.abc import Hashable

__all__ = ["DEPTH", "KEY_BYTES", "MAX_EXTRA", "MOST", "PLAIN", "key_extra"]

KEY_BYTES: Final = 64  #: of a key object that KEY_OVERHEAD covers: a str of 15 ASCII characters
MAX_EXTRA: Final = (1 << 32) - 1  #: what fits its column
PLAIN: Final = frozenset({str, bytes, int})  #: they have no parts, and their sizes come at once
DEPTH: Final = 8  #: levels of parts, tuples in tuples say, that are looked into
MOST: Final = 256  #: objects of one key that are looked at, some 0.2 ms

_SHARED = (
    type, Enum, ModuleType, FunctionType, BuiltinFunctionType, MethodType, CodeType,
)  # fmt: skip
_COLLECTIONS = {dict, list, set}
_ATTRIBUTES = 24  # bytes of the table of an object's attributes, where it has one, beside
_WORD = 8  # for each of them; measured on CPython 3.11 and 3.13


def key_extra(key: Hashable) -> int:
    """Return the bytes of a key, and of what it is made of, beyond KEY_BYTES."""
    kind = type(key)
    if kind in PLAIN:
        nr_bytes = key.__sizeof__()
    elif kind is tuple:
        nr_bytes = getsizeof(key)
        for part in cast("tuple[Any, ...]", key):
            nr_bytes += part.__sizeof__() if type(part) in PLAIN else _bytes_of(part, DEPTH - 1)
    else:
        nr_bytes = _bytes_of(key, DEPTH)
    return min(max(0, nr_bytes - KEY_BYTES), MAX_EXTRA)


def _bytes_of(key: Any, depth: int) -> int:
    with suppress(Exception):  # of its class: the put itself will meet it
        hash(key)  # what a class makes for that, and keeps, is there from now on
    total = 0
    seen: set[int] = set()
    todo: list[tuple[Any, int]] = [(key, depth)]
    while todo:
        part, depth = todo.pop()
        if type(part) in PLAIN:
            total += part.__sizeof__()
        elif id(part) not in seen and len(seen) < MOST:
            seen.add(id(part))
            parts = _parts(part)
            total += _own_bytes(part, len(parts))
            if depth:
                todo += [(inner, depth - 1) for inner in parts]
    return total


def _parts(part: Any) -> list[Any]:
    """Return what an object refers to, but for what it shares with others."""
    if issubclass(type(part), _SHARED):
        return []
    return [inner for inner in get_referents(part) if not _is_shared(inner)]


def _is_shared(part: Any) -> bool:
    cls: Any = type(part)  # pyright: ignore[reportUnknownVariableType] # of whatever it is
    if cls in PLAIN:
        return False
    return issubclass(cls, _SHARED) or (cls in _COLLECTIONS and len(part) > MOST)


def _own_bytes(part: Any, nr_parts: int) -> int:
    """Return the bytes of an object without its parts."""
    try:
        own = getsizeof(part)
    except Exception:  # noqa: BLE001 - code of its class, which must not make a put fail
        return KEY_BYTES
    if nr_parts and type(part).__dictoffset__:  # beside it: getsizeof does not count them
        own += _ATTRIBUTES + nr_parts * _WORD
    return own
