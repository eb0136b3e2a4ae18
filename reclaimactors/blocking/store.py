"""`open_blocking`: a memory as a mapping, for threads and synchronous programs."""

from __future__ import annotations

import sys
import weakref
from collections import deque
from collections.abc import Hashable, ItemsView, MutableMapping, ValuesView
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, TypeVar, overload

from reclaimactors.blocking.thread import LoopThread
from reclaimactors.topology import resolve
from reclaimactors.topology.build import preload

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
    from pathlib import Path
    from types import TracebackType
    from typing import Self

    from typing_extensions import Buffer

    from reclaimactors.blocking.published import PublishedMemory
    from reclaimactors.memory import Memory
    from reclaimactors.topology import Topology

__all__ = ["BlockingMemory", "open_blocking"]

MOST_READS = 1024  #: that the loop is told of; of more, the last ones
AT_A_TIME = 32  #: values that are read with one hop, where all are iterated over
_MISSING: Any = object()  # no default

_P = ParamSpec("_P")
_T = TypeVar("_T")


class BlockingMemory(MutableMapping[Hashable, "bytes"]):
    """Values under keys, within a budget of bytes, for any thread. Made by `open_blocking`.

    It is a mutable mapping: what is set is anything with the buffer protocol, what comes back is
    bytes. Each method is one step: no other thread sees it half done, and none of them changes the
    key in between. Below *low* a set waits for memory to be freed, as `Memory.put` does.

    Errors are those of `Memory`. After `close` every call raises `anyio.ClosedResourceError`; in a
    process that was forked after the opening, RuntimeError.

    On failure: a call that is interrupted (KeyboardInterrupt in the waiting thread) is cancelled,
    and has ended when the exception goes on: the key has its old value or its new one. What an
    interrupted `pop` has taken is put back, unless the key has another value by then.
    """

    def __init__(self, topology: Topology) -> None:
        reads: deque[int] = deque(maxlen=MOST_READS)
        thread = LoopThread(topology, reads)
        memory = thread.open()
        self._memory: PublishedMemory = memory
        self._call = thread.call
        self._close = weakref.finalize(self, thread.close)  # at the end of the program, too
        self._published = memory.published
        self._small, self._data, self._size = memory.columns
        if not _has_gil():  # there it was not proven that a reader is safe: he finds nothing
            self._small = {}
        self._note = reads.append

    @property
    def memory(self) -> Memory:
        """The memory behind it: what only looks may be asked in any thread.

        Those are `usage`, `vmstat`, `stats`, `pressure`, `health` and `swaps`. For the rest there
        is `run`.
        """
        return self._memory

    def close(self) -> None:
        """Close it, and wait for that; every thread may, more than once.

        Raises:
            ReclaimError: what else ended the memory; once.
        """
        self._close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    # -- one key ----------------------------------------------------------------------------------

    def __getitem__(self, key: Hashable) -> bytes:
        published = self._published
        done = published.done  # before anything else is read (see `published`)
        try:
            pfn = self._small[key]
            data = self._data[pfn]
            if len(data) == self._size[pfn] and published.begun == done:
                self._note(pfn)
                return data
        except KeyError:
            pass
        memory = self._memory
        value: bytes = self._call(memory.get_now, memory.get, key)
        return value

    @overload
    def get(self, key: Hashable, default: None = None, /) -> bytes | None: ...

    @overload
    def get(self, key: Hashable, default: bytes, /) -> bytes: ...

    @overload
    def get(self, key: Hashable, default: _T, /) -> bytes | _T: ...

    def get(self, key: Hashable, default: Any = None, /) -> Any:
        """Return the value of `key`, or `default` if it is absent."""
        if key not in self._memory:
            return default
        try:
            return self[key]
        except KeyError:
            return default

    def __setitem__(self, key: Hashable, data: Buffer) -> None:
        self._call(self._memory.put_now, self._memory.put, key, data)

    def __delitem__(self, key: Hashable) -> None:
        self._call(self._memory.delete_now, self._memory.delete, key)

    def __contains__(self, key: object) -> bool:
        return key in self._memory

    @overload
    def pop(self, key: Hashable) -> bytes: ...

    @overload
    def pop(self, key: Hashable, default: bytes) -> bytes: ...

    @overload
    def pop(self, key: Hashable, default: _T) -> bytes | _T: ...

    def pop(self, key: Hashable, default: Any = _MISSING) -> Any:
        """Delete `key` and return its value, or `default` if that is given and it is absent.

        Raises:
            KeyError: if the key is absent, and there is no default.
        """
        taken: list[bytes] = []
        try:
            self._call(None, _pop, self._memory, key, taken)
        except KeyError:
            if default is _MISSING:
                raise
            return default
        except BaseException:  # KeyboardInterrupt, as it was done
            if taken:
                self.put_if(key, taken[0], None)
            raise
        return taken[0]

    def popitem(self) -> tuple[Hashable, bytes]:
        """Delete a key, any, and return it with its value.

        Raises:
            KeyError: if there is none.
        """
        for key in self:
            value = self.pop(key, None)
            if value is not None:  # else another thread has deleted it
                return key, value
        raise KeyError("popitem of a memory without keys")

    def setdefault(self, key: Hashable, default: Buffer) -> bytes:
        """Return the value of `key`; if it is absent, make `default` its value first."""
        while True:
            value = self.get(key)
            if value is not None:
                return value
            if self.put_if(key, default, None):
                return bytes(default)

    def put_if(self, key: Hashable, data: Buffer, expected: bytes | None) -> bool:
        """Put if the value of `key` is `expected`; None stands for an absent key.

        Returns:
            Whether it was so, and `data` is the value now. If not, nothing was changed.
        """
        return bool(self._call(None, self._memory.put_if, key, data, expected))

    # -- many keys, one hop -----------------------------------------------------------------------

    def get_many(self, keys: Iterable[Hashable]) -> dict[Hashable, bytes]:
        """Return the values of those of these keys that are there, in the order of `keys`."""
        got: dict[Hashable, bytes] = self._call(None, self._memory.get_many, list(keys))
        return got

    def put_many(self, items: Mapping[Any, Buffer] | Iterable[tuple[Hashable, Buffer]]) -> None:
        """Make each of `items` the value of its key, with one admission for many.

        On failure: the first keys may have their new values, all others have their old ones.
        """
        self._call(None, self._memory.put_many, dict(items))

    def delete_many(self, keys: Iterable[Hashable]) -> int:
        """Forget these keys and their values; return how many there were."""
        return int(self._call(None, self._memory.delete_many, list(keys)))

    def update(self, other: Any = (), /, **named: Buffer) -> None:
        """As `dict.update`, with one call of `put_many`."""
        items: dict[Any, Any] = dict(other, **named)
        self.put_many(items)

    def clear(self) -> None:
        """Forget all keys that there are now."""
        self.delete_many(self)

    def __iter__(self) -> Iterator[Hashable]:
        return iter(self._call(None, _keys, self._memory))

    def __len__(self) -> int:
        return len(self._memory)

    def items(self) -> ItemsView[Hashable, bytes]:
        """Return a view; iterating gives the keys of that instant that are there still."""
        return _Items(self)

    def values(self) -> ValuesView[bytes]:
        """Return a view of the values of `items`."""
        return _Values(self)

    # -- more than one step -----------------------------------------------------------------------

    def run(
        self,
        step: Callable[Concatenate[Memory, _P], Awaitable[_T]],
        /,
        *args: _P.args,
        **kwargs: _P.kwargs,
    ) -> _T:
        """Run ``await step(memory, *args)`` in the memory's event loop; return what it returns.

        For what takes several calls, in one hop, and for all that a memory can do. Other threads'
        calls go on meanwhile, wherever the step awaits.
        """
        result: _T = self._call(None, _step, step, self._memory, args, kwargs)
        return result

    def __repr__(self) -> str:
        return f"<BlockingMemory of {self._memory!r}>"

    __hash__ = object.__hash__  # pyright: ignore[reportAssignmentType] # a Mapping has none


class _Items(ItemsView[Hashable, "bytes"]):
    """Reads values in batches, and skips keys that another thread has deleted."""

    _mapping: BlockingMemory

    def __iter__(self) -> Iterator[tuple[Hashable, bytes]]:
        keys = list(self._mapping)
        for start in range(0, len(keys), AT_A_TIME):
            yield from self._mapping.get_many(keys[start : start + AT_A_TIME]).items()


class _Values(ValuesView["bytes"]):
    _mapping: BlockingMemory

    def __iter__(self) -> Iterator[bytes]:
        return (value for _, value in self._mapping.items())

    def __contains__(self, value: object) -> bool:
        return any(value == one for one in self)


def _has_gil() -> bool:
    return getattr(sys, "_is_gil_enabled", lambda: True)()


async def _pop(memory: Memory, key: Hashable, taken: list[bytes]) -> None:
    taken.append(await memory.pop(key))


async def _keys(memory: Memory) -> list[Hashable]:
    return memory.keys()


async def _step(
    step: Callable[..., Awaitable[_T]],
    memory: Memory,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> _T:
    return await step(memory, *args, **kwargs)


def open_blocking(
    topology: str | Path | Mapping[str, Any] | Topology = "kcompressd",
    *,
    budget: int | str | None = None,
    **overrides: Any,
) -> BlockingMemory:
    """Open a memory for threads and synchronous programs; use it in a ``with``, or `close` it.

    An event loop in a thread of its own serves it. A value that is in memory is read without
    waiting for that thread.

    Args:
        topology: as of `open_memory`.
        budget: bytes, or a string like "64MiB", for everything that is held in this process.
        overrides: the TOML's keys, as of `open_memory`.

    Raises:
        TopologyError: if a key or value is wrong; it names the key, what was seen and allowed.
        BackendError: if a backing store cannot be opened.
        PluginError: if a plugin cannot be had.
    """
    resolved = resolve(topology, budget=budget, **overrides)
    preload(resolved)
    return BlockingMemory(resolved)
