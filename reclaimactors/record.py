"""Recording: which keys a program asks for, as a trace that `reclaimactors replay` reads.

A recorded memory is a class of its own, so that one that is not recorded pays nothing. The file is
the CSV that CacheBench replays (``key,op,size,op_count,key_size``) with a column ``time_us``: one
line for each request, with a hash of the key, the bytes of the value and the microseconds since
the opening. Keys are hashed with a secret that is drawn for each recording and kept nowhere, and
values are never written. Calls of groups are not recorded.

On failure: where the file cannot be written, or has become `MOST_BYTES` long, recording ends; a
line in the log says so, and the memory goes on. Lines are written whole, 64 KiB at a time.
"""

from __future__ import annotations

import os
from contextlib import asynccontextmanager
from hashlib import blake2b
from typing import TYPE_CHECKING, Any

from reclaimactors.callers.buffers import bytes_of, size_of
from reclaimactors.cpu import clock
from reclaimactors.errors import TopologyError
from reclaimactors.log import log
from reclaimactors.memory import Memory
from reclaimactors.units import MIB

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Hashable, Iterable, Mapping
    from pathlib import Path

    from reclaimactors.actors.machine import Machine
    from reclaimactors.topology import Topology

__all__ = ["HEADER", "MOST_BYTES", "RecordedMemory", "Recorder"]

HEADER = "key,op,size,op_count,key_size,time_us"
MOST_BYTES = 256 * MIB  #: of a recording: some six million requests
_CHUNK = 64 * 1024
_KEY_SIZE = 16  # characters of a hashed key
_MISSING: Any = object()


class Recorder:
    """Writes one recording.

    Args:
        path: of the file; what is there is overwritten.

    Raises:
        TopologyError: if it cannot be written.
    """

    def __init__(self, path: Path) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC
        try:
            self._fd = os.open(path, flags, 0o600)
        except OSError as exc:
            raise TopologyError(
                f"record is {str(path)!r}: it cannot be written ({exc.strerror}); name a file in a"
                " folder that may be written to"
            ) from exc
        self._path = path
        self._secret = os.urandom(16)
        self._began = clock.perf_counter()
        self._lines = [HEADER]
        self._waiting = self._written = 0

    def note(self, op: str, key: Hashable, size: int) -> None:
        """Add a request: GET, SET or DELETE; a GET of an absent key has size 0."""
        if self._fd < 0:
            return
        hashed = blake2b(
            hash(key).to_bytes(8, "little", signed=True), key=self._secret, digest_size=8
        ).hexdigest()
        time_us = int((clock.perf_counter() - self._began) * 1e6)
        line = f"{hashed},{op},{size},1,{_KEY_SIZE},{time_us}"
        self._lines.append(line)
        self._waiting += len(line) + 1
        if self._waiting >= _CHUNK:
            self._flush()

    def _flush(self) -> None:
        lines, self._lines = self._lines, []
        self._waiting = 0
        chunk = memoryview("".join(f"{line}\n" for line in lines).encode())
        if self._written + len(chunk) > MOST_BYTES:
            self._end("recording.full", bytes=self._written)
            return
        self._written += len(chunk)
        try:
            while chunk:
                chunk = chunk[os.write(self._fd, chunk) :]
        except OSError as exc:
            self._end("recording.failed", error=exc.strerror)

    def _end(self, event: str, **facts: Any) -> None:
        self.abandon()
        log.warning(event, path=str(self._path), effect="no more requests are recorded", **facts)

    def close(self) -> None:
        """Write what waits, and end; a second call does nothing."""
        if self._fd >= 0 and self._lines:
            self._flush()
        self.abandon()

    def abandon(self) -> None:
        """End, and write nothing more: what waits is the parent's, in a forked child."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
        self._lines.clear()


class RecordedMemory(Memory):
    """A memory whose requests are noted; what they do is the same."""

    def __init__(self, topology: Topology, machine: Machine, recorder: Recorder) -> None:
        super().__init__(topology, machine)
        self._note = recorder.note
        self._recorder = recorder

    def refuse_calls(self) -> None:
        """Close for callers, and end the recording."""
        super().refuse_calls()
        self._recorder.close()

    def forked(self) -> None:
        """This is a forked child, which records nothing."""
        self._recorder.abandon()
        super().forked()

    async def get(self, key: Hashable, default: Any = _MISSING) -> Any:
        """Return a value, as `Memory.get`."""
        try:
            value = await super().get(key)
        except KeyError:
            self._note("GET", key, 0)
            if default is _MISSING or key in self:
                raise
            return default
        self._note("GET", key, len(value))
        return value

    async def get_writable(self, key: Hashable) -> memoryview:
        """Return a value in memory of the caller's own, as `Memory.get_writable`."""
        if len(self._values.large.get(key, ())) < 2:
            return await super().get_writable(key)  # which asks `get`
        value = await super().get_writable(key)
        self._note("GET", key, len(value))
        return value

    async def get_many(self, keys: Iterable[Hashable]) -> dict[Hashable, bytes]:
        """Return the values of those that are there, as `Memory.get_many`."""
        keys = list(keys)
        found = await super().get_many(keys)
        for key in keys:
            self._note("GET", key, len(found.get(key, b"")))
        return found

    def get_nowait(self, key: Hashable) -> bytes:
        """Return a value that is in memory, as `Memory.get_nowait`."""
        try:
            value = super().get_nowait(key)
        except KeyError:
            self._note("GET", key, 0)
            raise
        self._note("GET", key, len(value))
        return value

    async def put(self, key: Hashable, data: Any, **terms: Any) -> None:
        """Make `data` the value of `key`, as `Memory.put`."""
        await super().put(key, data, **terms)
        self._note("SET", key, _size(data))

    def put_nowait(self, key: Hashable, data: Any) -> None:
        """Put without waiting, as `Memory.put_nowait`."""
        super().put_nowait(key, data)
        self._note("SET", key, _size(data))

    async def put_many(
        self, items: Mapping[Any, Any] | Iterable[tuple[Hashable, Any]], **terms: Any
    ) -> None:
        """Put several values, as `Memory.put_many`."""
        values = dict(items)
        await super().put_many(values, **terms)
        for key, data in values.items():
            self._note("SET", key, _size(data))

    async def put_if(self, key: Hashable, data: Any, expected: bytes | None, **terms: Any) -> bool:
        """Compare and swap, as `Memory.put_if`."""
        done = await super().put_if(key, data, expected, **terms)
        self._note(*(("SET", key, _size(data)) if done else ("GET", key, len(expected or b""))))
        return done

    async def pop(self, key: Hashable, default: Any = _MISSING) -> Any:
        """Delete a key and return its value, as `Memory.pop`."""
        try:
            value = await super().pop(key)
        except KeyError:
            self._note("GET", key, 0)
            if default is _MISSING or key in self:
                raise
            return default
        self._note("GET", key, len(value))
        self._note("DELETE", key, 0)
        return value

    async def delete(self, key: Any = _MISSING, *, reparent: bool | None = None) -> None:
        """Forget a key, as `Memory.delete`."""
        if key is _MISSING or reparent is not None:
            raise TypeError("this is the whole memory, which aclose ends; delete takes a key")
        await super().delete(key)
        self._note("DELETE", key, 0)

    async def delete_many(self, keys: Iterable[Hashable]) -> int:
        """Forget several keys, as `Memory.delete_many`."""
        keys = list(keys)
        nr = await super().delete_many(keys)
        for key in keys:
            self._note("DELETE", key, 0)
        return nr

    @asynccontextmanager
    async def pin(self, key: Hashable) -> AsyncGenerator[memoryview]:
        """Keep a value resident, as `Memory.pin`."""
        async with super().pin(key) as view:
            self._note("GET", key, len(view))
            yield view


def _size(data: Any) -> int:
    return size_of(bytes_of(data))
