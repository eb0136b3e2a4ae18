"""A zarr v3 store: chunks are held within a budget of bytes, compressed and spilled beyond it."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar
from uuid import uuid4
from weakref import WeakKeyDictionary, WeakValueDictionary

from anyio import to_thread
from zarr.abc.store import (
    ByteRequest,
    OffsetByteRequest,
    RangeByteRequest,
    Store,
    SuffixByteRequest,
)
from zarr.core.buffer import Buffer, BufferPrototype, default_buffer_prototype

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterable

    from reclaimactors import BlockingMemory

__all__ = ["ReclaimStore"]

_T = TypeVar("_T")

_memories: WeakValueDictionary[str, BlockingMemory] = WeakValueDictionary()  # by name, for pickle
_names: WeakKeyDictionary[BlockingMemory, str] = WeakKeyDictionary()


class ReclaimStore(Store):
    """The keys of a memory that are strings, as a zarr store.

    Any event loop and any thread may use it: zarr has a loop of its own for its synchronous calls.
    Each call hops to a thread, where it may wait for memory to be freed or for a file to be read.

    Args:
        memory: what `reclaimactors.open_blocking` gives. Whoever opened it closes it.
        read_only: whether writes are refused.

    On failure: a write that raises (`reclaimactors.OutOfMemory`, say) leaves the old value.
    """

    supports_writes = True
    supports_deletes = True
    supports_listing = True

    def __init__(self, memory: BlockingMemory, *, read_only: bool = False) -> None:
        super().__init__(read_only=read_only)
        self._memory = memory

    def with_read_only(self, read_only: bool = False) -> ReclaimStore:
        """Return a store over the same memory."""
        return type(self)(self._memory, read_only=read_only)

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, ReclaimStore)
            and self._memory is other._memory
            and self.read_only == other.read_only
        )

    __hash__ = object.__hash__

    def __str__(self) -> str:
        return f"reclaimactors://{id(self._memory)}"

    def __repr__(self) -> str:
        return f"ReclaimStore({self._memory!r})"

    def __reduce__(self) -> tuple[Any, ...]:
        name = _names.setdefault(self._memory, uuid4().hex)
        _memories[name] = self._memory
        return _found, (name, self.read_only)

    async def _run(self, call: Callable[..., _T], *args: Any) -> _T:
        await self._ensure_open()
        return await to_thread.run_sync(partial(call, *args))

    # -- reading ----------------------------------------------------------------------------------

    async def get(
        self,
        key: str,
        prototype: BufferPrototype | None = None,
        byte_range: ByteRequest | None = None,
    ) -> Buffer | None:
        """Return a value or a part of it, None where the key is absent."""
        data = await self._run(self._memory.get, key)
        if data is None:
            return None
        buffer = (prototype or default_buffer_prototype()).buffer
        return buffer.from_bytes(data if byte_range is None else _part(data, byte_range))

    async def get_partial_values(
        self, prototype: BufferPrototype, key_ranges: Iterable[tuple[str, ByteRequest | None]]
    ) -> list[Buffer | None]:
        """Return parts of several values; those of stores are read in one go."""
        wanted = list(key_ranges)
        found = await self._run(self._memory.get_many, [key for key, _ in wanted])
        return [
            prototype.buffer.from_bytes(found[key] if part is None else _part(found[key], part))
            if key in found
            else None
            for key, part in wanted
        ]

    async def exists(self, key: str) -> bool:
        """Return whether a key has a value."""
        await self._ensure_open()
        return key in self._memory

    # -- writing ----------------------------------------------------------------------------------

    async def set(self, key: str, value: Buffer) -> None:
        """Make `value` the value of a key; it waits for room."""
        self._check_writable()
        await self._run(self._memory.__setitem__, key, _bytes_of(value))

    async def set_if_not_exists(self, key: str, value: Buffer) -> None:
        """Make `value` the value of a key that has none."""
        self._check_writable()
        await self._run(self._memory.put_if, key, _bytes_of(value), None)

    async def _set_many(self, values: Iterable[tuple[str, Buffer]]) -> None:
        """Write several values with one admission."""
        self._check_writable()
        await self._run(self._memory.put_many, {key: _bytes_of(value) for key, value in values})

    async def delete(self, key: str) -> None:
        """Forget a key, if it is there."""
        self._check_writable()
        await self._run(self._memory.delete_many, [key])

    async def delete_dir(self, prefix: str) -> None:
        """Forget all keys below a prefix."""
        self._check_writable()
        below = f"{prefix.rstrip('/')}/" if prefix else ""
        await self._run(self._memory.delete_many, await self._keys(below))

    async def clear(self) -> None:
        """Forget all keys."""
        await self.delete_dir("")

    # -- listing ----------------------------------------------------------------------------------

    async def _keys(self, prefix: str) -> list[str]:
        keys = await self._run(list[Any], self._memory)
        return [key for key in keys if isinstance(key, str) and key.startswith(prefix)]

    async def list(self) -> AsyncIterator[str]:
        """Yield the keys that there are at the call."""
        for key in await self._keys(""):
            yield key

    async def list_prefix(self, prefix: str) -> AsyncIterator[str]:
        """Yield the keys that begin with `prefix`."""
        for key in await self._keys(prefix):
            yield key

    async def list_dir(self, prefix: str) -> AsyncIterator[str]:
        """Yield the names just below `prefix`, each once."""
        below = f"{prefix.rstrip('/')}/" if prefix.rstrip("/") else ""
        names = dict.fromkeys(key[len(below) :].split("/")[0] for key in await self._keys(below))
        for name in names:
            yield name


def _found(name: str, read_only: bool) -> ReclaimStore:
    """Return the store that was pickled.

    Raises:
        RuntimeError: in another process, or once the memory is gone.
    """
    memory = _memories.get(name)
    if memory is None:
        msg = (
            "this ReclaimStore was pickled in another process, or its memory is gone: a memory is "
            "of one process; open one in each, or read the array where it is"
        )
        raise RuntimeError(msg)
    return ReclaimStore(memory, read_only=read_only)


def _bytes_of(value: Buffer) -> memoryview:
    if not isinstance(value, Buffer):  # pyright: ignore[reportUnnecessaryIsInstance] # callers are not always typed
        raise TypeError(f"a value is a zarr Buffer, not {type(value).__name__}")
    array: Any = value.as_numpy_array()  # numpy says no buffer protocol of it before 3.12
    return memoryview(array)


def _part(data: bytes, byte_range: ByteRequest) -> memoryview:
    """Return a part of a value, which is not copied."""
    view = memoryview(data)
    match byte_range:
        case RangeByteRequest(start, end):
            return view[start:end]
        case OffsetByteRequest(offset):
            return view[offset:]
        case SuffixByteRequest(suffix):
            return view[max(0, len(view) - suffix) :]
        case _:
            raise ValueError(f"Unexpected byte_range, got {byte_range}.")
