"""A py-key-value store over a memory: values are compressed and spilled, and none is dropped."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

from key_value.aio.stores.base import (
    BaseDestroyCollectionStore,
    BaseDestroyStore,
    BaseEnumerateCollectionsStore,
    BaseEnumerateKeysStore,
    ManagedEntry,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from datetime import datetime

    from reclaimactors import Memory

__all__ = ["ReclaimStore"]

MOST_KEYS = 10_000  #: that one call lists, as the stores of py-key-value do
_OURS = "py-key-value"  # the first part of each key, so that the memory may have others


class ReclaimStore(
    BaseDestroyStore,
    BaseDestroyCollectionStore,
    BaseEnumerateCollectionsStore,
    BaseEnumerateKeysStore,
):
    """Collections of values in a memory, for the event loop that opened it.

    A value that is put stays until its TTL is over: where memory is short a put waits for room, or
    raises `reclaimactors.OutOfMemory`, and the key has its old value.

    Args:
        memory: an open one. It may have other keys, and serve other stores of the same names.
        discardable: whether values may be dropped where memory is short, for a cache: then a put
            does not wait for others to be compressed, and never raises OutOfMemory.
        name: keeps stores in one memory apart.
        options: of `BaseStore`: default_collection, seed, and how names are sanitized.
    """

    def __init__(
        self, memory: Memory, *, discardable: bool = False, name: str = "", **options: Any
    ) -> None:
        self._memory = memory
        self._discardable = discardable
        self._name = name
        super().__init__(stable_api=True, **options)

    def _key(self, collection: str, key: str) -> tuple[str, str, str, str]:
        return _OURS, self._name, collection, key

    def _loaded(self, data: bytes) -> ManagedEntry:
        return self._serialization_adapter.load_json(json_str=data.decode())

    def _dumped(self, entry: ManagedEntry) -> bytes:
        return self._serialization_adapter.dump_json(entry=entry).encode()

    async def _get_managed_entry(self, *, collection: str, key: str) -> ManagedEntry | None:
        data = await self._memory.get(self._key(collection, key), None)
        return None if data is None else self._loaded(data)

    async def _get_managed_entries(
        self, *, collection: str, keys: Sequence[str]
    ) -> list[ManagedEntry | None]:
        ours = [self._key(collection, key) for key in keys]
        found = await self._memory.get_many(ours)
        return [self._loaded(found[key]) if key in found else None for key in ours]

    async def _put_managed_entry(
        self, *, collection: str, key: str, managed_entry: ManagedEntry
    ) -> None:
        await self._memory.put(
            self._key(collection, key),
            self._dumped(managed_entry),
            expires_in=_seconds(managed_entry),
            discardable=self._discardable,
        )

    async def _put_managed_entries(
        self,
        *,
        collection: str,
        keys: Sequence[str],
        managed_entries: Sequence[ManagedEntry],
        ttl: float | None,
        created_at: datetime,
        expires_at: datetime | None,
    ) -> None:
        del ttl, created_at, expires_at  # each entry says them
        if not keys:
            return
        items = {
            self._key(collection, key): self._dumped(entry)
            for key, entry in zip(keys, managed_entries, strict=True)
        }
        await self._memory.put_many(
            items, expires_in=_seconds(managed_entries[0]), discardable=self._discardable
        )

    async def _delete_managed_entry(self, *, key: str, collection: str) -> bool:
        return await self._delete([self._key(collection, key)]) > 0

    async def _delete_managed_entries(self, *, keys: Sequence[str], collection: str) -> int:
        return await self._delete([self._key(collection, key) for key in keys])

    async def _delete(self, keys: Iterable[tuple[str, str, str, str]]) -> int:
        return await self._memory.delete_many(keys)

    def _all(self, collection: str | None = None) -> list[tuple[str, str, str, str]]:
        """Return the keys of this store, or of one collection in it."""
        mine = [
            cast("tuple[str, str, str, str]", key)
            for key in self._memory.keys()  # noqa: SIM118 - a memory is no mapping
            if isinstance(key, tuple) and key[:2] == (_OURS, self._name)
        ]
        return mine if collection is None else [key for key in mine if key[2] == collection]

    async def _get_collection_keys(self, *, collection: str, limit: int | None = None) -> list[str]:
        return [key for _, _, _, key in self._all(collection)][: _most(limit)]

    async def _get_collection_names(self, *, limit: int | None = None) -> list[str]:
        return list(dict.fromkeys(key[2] for key in self._all()))[: _most(limit)]

    async def _delete_collection(self, *, collection: str) -> bool:
        return await self._delete(self._all(collection)) > 0

    async def _delete_store(self) -> bool:
        await self._delete(self._all())
        return True


def _seconds(entry: ManagedEntry) -> float | None:
    return None if entry.ttl is None else max(0.0, entry.ttl)


def _most(limit: int | None) -> int:
    return min(limit or MOST_KEYS, MOST_KEYS)
