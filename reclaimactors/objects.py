"""`Objects`: values of any type in a memory, which holds their bytes.

By default they are pickled with protocol 5: the large buffers of arrays, data frames and the like
go out of band, and are copied once on the way in (into folios) and once on the way out (into memory
that the value owns). What is in the memory is::

    magic, number of buffers, size of the pickle | size of each buffer | pickle | buffer | ...

each buffer at a multiple of ALIGN bytes. Nothing is unpickled but what this process pickled: bytes
that come from a store are compared with a checksum (crc32) that is kept in memory, before anybody
sees them, and a value of the pool has never left this process. A crc32 does not stop somebody who
can write to the store on purpose: where that may be, give `dumps` and `loads` that are safe.
"""

from __future__ import annotations

import pickle
from struct import Struct
from typing import TYPE_CHECKING, Any, Generic, TypeVar, overload

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Iterable, Mapping

    from typing_extensions import Buffer

    from reclaimactors.memory import Memory

__all__ = ["Objects"]

ALIGN = 64  #: bytes, for what is computed with vector instructions
_HEAD = Struct("<4sIQ")
_SIZE = Struct("<Q")
_MAGIC = b"raP5"
_MISSING: Any = object()  # no default

_T = TypeVar("_T")
_D = TypeVar("_D")


class Objects(Generic[_T]):
    """Values of any type under keys of a `Memory`: put, get, pop and the like, of objects.

    Args:
        memory: that holds their bytes. It may have other keys, whose values are bytes.
        dumps: from a value to its bytes, any buffer. Absent: pickle, large buffers out of
            band.
        loads: from bytes to the value.

    Another library is one line: with msgspec, ``Objects(memory, msgspec.msgpack.encode,
    msgspec.msgpack.Decoder(Point).decode)``.

    Both run in the event loop, in the task of the caller. A value that `get` returns is a new
    object each time; its arrays may be written to. What `dumps` or `loads` raises is raised to the
    caller, and the key has its old value.
    """

    @overload
    def __init__(self: Objects[Any], memory: Memory) -> None: ...

    @overload
    def __init__(
        self, memory: Memory, dumps: Callable[[_T], Buffer], loads: Callable[[bytes], _T]
    ) -> None: ...

    def __init__(
        self,
        memory: Memory,
        dumps: Callable[[Any], Buffer] | None = None,
        loads: Callable[[bytes], Any] | None = None,
    ) -> None:
        if (dumps is None) is not (loads is None):
            raise TypeError("give both of dumps and loads, or neither, which is pickle")
        self.memory = memory
        self._dumps: Callable[[Any], Any] = dumps or _pickled
        self._loads = loads

    async def put(
        self,
        key: Hashable,
        value: _T,
        *,
        expires_in: float | None = None,
        discardable: bool = False,
    ) -> None:
        """Make `value` the value of `key`, on the terms of `Memory.put`; it waits for room as that.

        Raises:
            OutOfMemory: as `Memory.put`.
            PicklingError: or whatever else `dumps` raises.
        """
        data = self._dumps(value)
        await self.memory.put(key, data, expires_in=expires_in, discardable=discardable)

    async def put_many(self, items: Mapping[Any, _T] | Iterable[tuple[Hashable, _T]]) -> None:
        """Make each of `items` the value of its key, as `Memory.put_many`."""
        pairs: dict[Hashable, Any] = dict(items)
        await self.memory.put_many({key: self._dumps(value) for key, value in pairs.items()})

    @overload
    async def get(self, key: Hashable) -> _T: ...

    @overload
    async def get(self, key: Hashable, default: _D) -> _T | _D: ...

    async def get(self, key: Hashable, default: Any = _MISSING) -> Any:
        """Return the value of `key`, or `default` if that is given and the key is absent.

        Raises:
            KeyError: if the key is absent, and there is no default.
            CorruptData, BackendError: as `Memory.get`; then nothing is unpickled.
        """
        try:
            if self._loads is not None:
                data: Any = await self.memory.get(key)
            else:
                data = await self.memory.get_writable(key)
        except KeyError:
            if default is _MISSING or key in self.memory:
                raise
            return default
        return self._unpickled(data) if self._loads is None else self._loads(data)

    async def get_many(self, keys: Iterable[Hashable]) -> dict[Hashable, _T]:
        """Return the values of those of these keys that are there, as `Memory.get_many`."""
        found = await self.memory.get_many(keys)
        return {key: self._loaded(data) for key, data in found.items()}

    @overload
    async def pop(self, key: Hashable) -> _T: ...

    @overload
    async def pop(self, key: Hashable, default: _D) -> _T | _D: ...

    async def pop(self, key: Hashable, default: Any = _MISSING) -> Any:
        """Delete `key` and return its value, or `default` if that is given and it is absent.

        On failure of `loads`: the key is gone.

        Raises:
            KeyError: if the key is absent, and there is no default.
        """
        data = await self.memory.pop(key, None)
        if data is not None:
            return self._loaded(data)
        if default is _MISSING:
            raise KeyError(key)
        return default

    async def delete(self, key: Hashable) -> None:
        """Forget `key` and its value.

        Raises:
            KeyError: if the key is absent.
        """
        await self.memory.delete(key)

    def __contains__(self, key: Hashable) -> bool:
        return key in self.memory

    def __len__(self) -> int:
        return len(self.memory)

    def keys(self) -> list[Hashable]:
        """Return a snapshot of the keys of the memory."""
        return self.memory.keys()

    def _loaded(self, data: bytes) -> _T:
        if self._loads is not None:
            value: _T = self._loads(data)
            return value
        has_buffers = _HEAD.unpack_from(data)[1]
        return self._unpickled(memoryview(bytearray(data) if has_buffers else data))

    def _unpickled(self, data: memoryview) -> _T:
        magic, nr, size = _HEAD.unpack_from(data)
        if magic != _MAGIC:
            raise ValueError("this key's value was put by something else than these Objects")
        at = _HEAD.size + nr * _SIZE.size
        sizes = [_SIZE.unpack_from(data, _HEAD.size + i * _SIZE.size)[0] for i in range(nr)]
        stream = data[at : at + size]
        at += size
        buffers: list[memoryview] = []
        for each in sizes:
            at += -at % ALIGN
            buffers.append(data[at : at + each])
            at += each
        value: _T = pickle.loads(stream, buffers=buffers)  # noqa: S301 - see the module
        return value


def _pickled(value: object) -> Any:
    """Return a value's bytes in pieces: what comes first, then each large buffer."""
    buffers: list[pickle.PickleBuffer] = []
    stream = pickle.dumps(value, protocol=5, buffer_callback=buffers.append)
    views = [buffer.raw() for buffer in buffers]
    sizes = [_SIZE.pack(view.nbytes) for view in views]
    head = b"".join((_HEAD.pack(_MAGIC, len(views), len(stream)), *sizes, stream))
    pieces: list[bytes | memoryview] = [head]
    at = len(head)
    for view in views:
        gap = -at % ALIGN
        pieces += (bytes(gap), view)
        at += gap + view.nbytes
    return pieces if views else head
