"""Results of a dask worker that do not fit its target, in a memory: compressed, then on disk.

It is distributed's own SpillBuffer with another place to spill to: what is in use stays as it is
(`fast`), what is evicted is serialized by dask, and its frames are put into the memory without
being joined.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, MutableMapping
from functools import partial
from typing import Any

import zict
from distributed.protocol.serialize import deserialize_bytes, serialize_bytelist
from distributed.sizeof import safe_sizeof
from distributed.spill import MaxSpillExceeded, Slow, SpillBuffer, SpilledSize

from reclaimactors import BlockingMemory, Memory, OutOfMemory, open_blocking

__all__ = ["ReclaimBuffer", "reclaim_buffer"]


class ReclaimBuffer(SpillBuffer):
    """The `data` of a worker: results as they are up to `target`, the colder ones in a memory.

    It follows distributed's `ManualEvictProto`: the memory manager evicts when the process grows.

    Args:
        memory: what `reclaimactors.open_blocking` gives; it is closed with this.
        target: bytes of results, as dask sizes them, from which on the coldest are evicted.

    On failure: where the memory has no room for a result (`OutOfMemory`), that stays as it is, and
    distributed logs it as it does when its disk is full. A result that a store has lost raises
    `BackendError` where it is read.
    """

    def __init__(self, memory: BlockingMemory, target: int) -> None:
        cached: Any = zict.Cache(_Slow(memory), zict.WeakValueMapping())
        zict.Buffer.__init__(self, fast={}, slow=cached, n=target, weight=_weight)
        self.logged_pickle_errors = set()
        self.cumulative_metrics = defaultdict(float)

    def __getitem__(self, key: Any) -> object:
        """Return a result; where that needs another to be evicted and cannot be, both stay."""
        try:
            return super().__getitem__(key)
        except MaxSpillExceeded:
            return self.fast[key] if key in self.fast else self.slow[key]


def reclaim_buffer(
    target: int, topology: str = "kcompressd", *, budget: int | str, **overrides: Any
) -> ReclaimBuffer:
    """Return a buffer over a memory of its own, as ``data=(reclaim_buffer, {...})`` of a worker.

    Args:
        target: bytes of results that stay as they are.
        topology: as of `reclaimactors.open_memory`.
        budget: bytes, or a string like "2GiB", of the memory, beside `target`.
        overrides: as of `reclaimactors.open_memory`.
    """
    return ReclaimBuffer(open_blocking(topology, budget=budget, **overrides), target)


class _Frames(MutableMapping[Any, Any]):
    """Frames that dask has made of a value, as one value of a memory."""

    def __init__(self, memory: BlockingMemory) -> None:
        self.memory = memory

    def __setitem__(self, key: Any, frames: Any) -> None:
        try:
            self.memory.run(Memory.put, key, frames)
        except OutOfMemory as exc:
            raise MaxSpillExceeded(key) from exc

    def __getitem__(self, key: Any) -> memoryview:
        """Return the frames in memory of the caller's own: arrays made of it may change."""
        return self.memory.run(Memory.get_writable, key)

    def __delitem__(self, key: Any) -> None:
        # An error of the memory's thread would keep the caller's frames, and so the value, alive.
        if key not in self.memory:
            raise KeyError(key)
        del self.memory[key]

    def __contains__(self, key: object) -> bool:
        return key in self.memory

    def __iter__(self) -> Iterator[Any]:
        return iter(self.memory)

    def __len__(self) -> int:
        return len(self.memory)

    def close(self) -> None:
        """Close the memory, and forget all."""
        self.memory.close()


class _Slow(Slow):
    """Serializes into a memory; that compresses, so dask does not."""

    def __init__(self, memory: BlockingMemory) -> None:
        dump: Any = partial(serialize_bytelist, compression=None, on_error="raise")
        frames: Any = _Frames(memory)
        zict.Func.__init__(self, dump, deserialize_bytes, frames)
        self.max_weight = False
        self.weight_by_key = {}
        self.total_weight = SpilledSize(0, 0)


def _weight(key: Any, value: object) -> int:
    del key
    return int(safe_sizeof(value))
