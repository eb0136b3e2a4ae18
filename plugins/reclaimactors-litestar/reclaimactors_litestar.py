"""A Litestar store over a memory: values are compressed and spilled, and none is dropped."""

from __future__ import annotations

import math
from datetime import timedelta
from typing import TYPE_CHECKING

from litestar.stores.base import NamespacedStore

if TYPE_CHECKING:
    from reclaimactors import Memory

__all__ = ["ReclaimStore"]

_OURS = "litestar"  # the first part of each key, so that the memory may have others


class ReclaimStore(NamespacedStore):
    """Values of one namespace in a memory, for the event loop that opened it.

    A value that is set stays until its time is over: where memory is short a set waits for room, or
    raises `reclaimactors.OutOfMemory`, and the key has its old value.

    Args:
        memory: an open one. It may have other keys.
        namespace: names from the outermost on, of which `delete_all` deletes those within as well.
        discardable: whether values may be dropped where memory is short, for a cache of responses:
            then a set does not wait for others to be compressed, and never raises OutOfMemory.
    """

    __slots__ = ("_discardable", "_memory", "_path")

    def __init__(
        self, memory: Memory, namespace: tuple[str, ...] = (), *, discardable: bool = False
    ) -> None:
        self._memory = memory
        self._path = namespace
        self._discardable = discardable
        self.namespace = "/".join(namespace)

    def with_namespace(self, namespace: str) -> ReclaimStore:
        """Return a store of a namespace in this one."""
        path = (*self._path, namespace)
        return type(self)(self._memory, path, discardable=self._discardable)

    def _key(self, key: str) -> tuple[str, tuple[str, ...], str]:
        return _OURS, self._path, key

    async def set(
        self, key: str, value: str | bytes, expires_in: int | timedelta | None = None
    ) -> None:
        """Make `value` the value of a key for so many seconds; None or 0: until it is deleted."""
        data = value.encode() if isinstance(value, str) else value
        await self._memory.put(
            self._key(key), data, expires_in=_seconds(expires_in), discardable=self._discardable
        )

    async def get(self, key: str, renew_for: int | timedelta | None = None) -> bytes | None:
        """Return the value of a key, None if it is absent.

        Args:
            key: of the value.
            renew_for: seconds from now on that it is to stay, if it was to end.
        """
        ours, memory = self._key(key), self._memory
        while True:
            value = await memory.get(ours, None)
            if value is None or not renew_for or ours not in memory:
                return value
            if memory.expires_in(ours) is None:
                return value
            seconds = _seconds(renew_for)
            if await memory.put_if(
                ours, value, value, expires_in=seconds, discardable=self._discardable
            ):
                return value  # else another has set it meanwhile

    async def delete(self, key: str) -> None:
        """Forget a key, if it is there."""
        await self._memory.delete_many([self._key(key)])

    async def delete_all(self) -> None:
        """Forget all keys of this namespace, and of those in it."""
        path = self._path
        await self._memory.delete_many(
            key
            for key in self._memory.keys()  # noqa: SIM118 - a memory is no mapping
            if isinstance(key, tuple) and key[0] == _OURS and key[1][: len(path)] == path
        )

    async def exists(self, key: str) -> bool:
        """Return whether a key has a value."""
        return self._key(key) in self._memory

    async def expires_in(self, key: str) -> int | None:
        """Return the whole seconds for which a key has a value; -1: until it is deleted.

        None if it has none.
        """
        ours = self._key(key)
        if ours not in self._memory:
            return None
        left = self._memory.expires_in(ours)
        return -1 if left is None else math.ceil(left)


def _seconds(given: int | timedelta | None) -> float | None:
    """Return seconds, None for no end."""
    seconds = given.total_seconds() if isinstance(given, timedelta) else given
    return max(0.0, float(seconds)) if seconds else None
