"""What a key costs beside the measured constant of each: long ones are charged the difference.

A key is charged for each entry that it names, shared objects included: what is charged is never
less than what is there. Of an object of a class of the program, its fields are counted where it
names them (a dataclass, an attrs class); of others only the object itself.
"""

from __future__ import annotations

from sys import getsizeof
from typing import TYPE_CHECKING, Any, Final, cast

if TYPE_CHECKING:
    from collections.abc import Hashable, Iterable

__all__ = ["KEY_BYTES", "MAX_EXTRA", "PLAIN", "key_extra"]

KEY_BYTES: Final = 64  #: of a key object that KEY_OVERHEAD covers: a str of 15 ASCII characters
MAX_EXTRA: Final = (1 << 32) - 1  #: what fits its column
PLAIN: Final = frozenset({str, bytes, int})  #: they have no parts, and their sizes come at once
_DEPTH = 8  #: tuples in tuples that are looked into


def key_extra(key: Hashable) -> int:
    """Return the bytes of a key, and of what it is made of, beyond KEY_BYTES."""
    kind = type(key)
    if kind in PLAIN:
        nr_bytes = key.__sizeof__()
    elif kind is tuple:
        nr_bytes = getsizeof(key)
        for part in cast("tuple[Any, ...]", key):
            nr_bytes += part.__sizeof__() if type(part) in PLAIN else _bytes_of(part, _DEPTH - 1)
    else:
        nr_bytes = _bytes_of(key, _DEPTH)
    return min(max(0, nr_bytes - KEY_BYTES), MAX_EXTRA)


def _bytes_of(key: Any, depth: int) -> int:
    try:
        nr_bytes = getsizeof(key)
        parts = _parts(key) if depth else ()
    except Exception:  # noqa: BLE001 - code of its class, which must not make a put fail
        return KEY_BYTES
    return nr_bytes + sum([_bytes_of(part, depth - 1) for part in parts])


def _parts(key: Any) -> Iterable[Any]:
    """Return the objects that a key is made of, as far as they are known to be its own."""
    if isinstance(key, (tuple, frozenset)):
        return cast("Iterable[Any]", key)
    cls: Any = type(key)  # pyright: ignore[reportUnknownVariableType] # of whatever it is
    names: Iterable[str] | None = getattr(cls, "__dataclass_fields__", None)
    if names is None:
        names = [field.name for field in getattr(cls, "__attrs_attrs__", ())]
    return [getattr(key, name, None) for name in names]
