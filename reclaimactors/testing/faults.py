"""Plugins that misbehave on purpose, around one that does not.

A test steers them by number and by gate, never by sleeping: a gate says when somebody has come
in, and lets him go when the test says so. While they fail, the wrappers keep the contract (a
store that raises leaves nothing to load), so that what a test then sees is the fault itself. An
error that is raised again and again does not collect the frames of earlier times.
"""

from __future__ import annotations

import itertools
import threading
from typing import TYPE_CHECKING, Literal

import anyio

from reclaimactors.abc import Backend
from reclaimactors.errors import BackendFull, CorruptData

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from reclaimactors.abc import Buffer, Compressor

__all__ = [
    "Damage",
    "FaultyBackend",
    "FaultyCompressor",
    "Gate",
    "GatedCompressor",
    "ThreadGate",
]

Damage = Literal["flip", "zero", "short", "stale", "misplace"]
"""What a load gives instead: a flipped byte, zeros, half of it, what the slot held before its last
store (or zeros), or what another slot holds (or zeros)."""


class Gate:
    """A gate that tasks wait at: `await gate.entered.wait()`, look around, `gate.open()`."""

    def __init__(self) -> None:
        self.entered = anyio.Event()  #: set once somebody has come to the gate
        self._go = anyio.Event()

    def open(self) -> None:
        """Let through everyone who waits or will come."""
        self._go.set()

    async def wait(self) -> None:
        """Come in and wait for the gate to open."""
        self.entered.set()
        await self._go.wait()


class ThreadGate:
    """The same for worker threads; a wait in a thread gives up after `timeout` seconds.

    The thread that makes it is the event loop's: it opens the gate, and does not wait there.
    """

    def __init__(self, timeout: float = 10.0) -> None:
        self._home = threading.get_ident()
        self._entered = threading.Event()
        self._go = threading.Event()
        self._timeout = timeout

    def open(self) -> None:
        """Let through everyone who waits or will come."""
        self._go.set()

    async def wait_entered(self) -> None:
        """Wait, in a task, until a thread has come to the gate.

        Raises:
            TimeoutError: if none came.
        """
        await anyio.to_thread.run_sync(self._wait, self._entered, abandon_on_cancel=True)

    def wait(self) -> None:
        """Come in and wait, in a thread, for the gate to open.

        Raises:
            TimeoutError: if it did not.
            RuntimeError: at once, in the thread that made the gate, where nobody could open it.
        """
        if threading.get_ident() == self._home and not self._go.is_set():
            raise RuntimeError("the event loop is at the gate that it is to open itself")
        self._entered.set()
        self._wait(self._go)

    def _wait(self, event: threading.Event) -> None:
        if not event.wait(self._timeout):
            msg = f"nobody came to or opened the gate within {self._timeout} s"
            raise TimeoutError(msg)


class FaultyBackend(Backend):
    """A backend that fails as told; every argument is also an attribute to change at any time.

    Args:
        inner: the backend that does the work.
        store_errors: what the k-th `store_many` raises, by k from 1.
        load_errors: what the k-th `load_many` raises, by k from 1.
        error: while set, every store and every load raises it.
        full_after: slots it holds; a store that would pass them raises `BackendFull`.
        damage: while set, what loads give instead of what was stored.
        damaged_slots: the slots that `damage` is about; None = all.
        store_gate: while set, stores wait there before they begin.
        load_gate: while set, loads wait there before they begin.
    """

    def __init__(
        self,
        inner: Backend,
        *,
        store_errors: Mapping[int, Exception] | None = None,
        load_errors: Mapping[int, Exception] | None = None,
        error: Exception | None = None,
        full_after: int | None = None,
        damage: Damage | None = None,
        damaged_slots: set[int] | None = None,
        store_gate: Gate | None = None,
        load_gate: Gate | None = None,
    ) -> None:
        self.inner = inner
        self.store_errors = dict(store_errors or {})
        self.load_errors = dict(load_errors or {})
        self.error = error
        self.full_after = full_after
        self.damage: Damage | None = damage
        self.damaged_slots = damaged_slots
        self.store_gate = store_gate
        self.load_gate = load_gate
        self.nr_stores = 0  #: calls of `store_many` so far
        self.nr_loads = 0  #: calls of `load_many` so far
        self._now: dict[int, bytes] = {}
        self._before: dict[int, bytes] = {}
        for name in ("synchronous", "in_this_process"):
            vars(self)[name] = getattr(inner, name)  # as the inner one, which a ClassVar forbids

    async def open(self, page_size: int) -> None:
        """Open the inner backend."""
        await self.inner.open(page_size)
        self.capacity = self.inner.capacity
        self.rotational = self.inner.rotational

    async def aclose(self) -> None:
        """Close the inner backend, whatever is broken."""
        await self.inner.aclose()

    async def store_many(self, items: Sequence[tuple[int, bytes]]) -> None:
        """Store, or fail with none of the slots stored."""
        self.nr_stores += 1
        error = self.store_errors.get(self.nr_stores, self.error)
        if self.store_gate is not None:
            await self.store_gate.wait()
        slots = [slot for slot, _ in items]
        if self.full_after is not None and len(self._now.keys() | set(slots)) > self.full_after:
            error = BackendFull(f"full after {self.full_after} slots, as told")
        if error is not None:
            await self.invalidate_many(slots)
            raise error.with_traceback(None)
        await self.inner.store_many(items)
        for slot, data in items:
            if slot in self._now:
                self._before[slot] = self._now[slot]
            self._now[slot] = data

    async def load_many(self, slots: Sequence[int]) -> list[bytes]:
        """Load, fail, or give something else."""
        self.nr_loads += 1
        error = self.load_errors.get(self.nr_loads, self.error)
        if self.load_gate is not None:
            await self.load_gate.wait()
        if error is not None:
            raise error.with_traceback(None)
        loaded = await self.inner.load_many(slots)
        return [self._damaged(slot, data) for slot, data in zip(slots, loaded, strict=True)]

    async def invalidate_many(self, slots: Sequence[int]) -> None:
        """Forget the slots; this never fails."""
        await self.inner.invalidate_many(slots)
        for slot in slots:
            if slot in self._now:
                self._before[slot] = self._now.pop(slot)

    def footprint(self, slots: Sequence[int]) -> int:
        """Return what the inner backend says."""
        return self.inner.footprint(slots)

    def _damaged(self, slot: int, data: bytes) -> bytes:
        if self.damaged_slots is not None and slot not in self.damaged_slots:
            return data
        zeros = bytes(len(data))
        match self.damage:
            case None:
                return data
            case "flip":
                return bytes([data[0] ^ 0xFF]) + data[1:]
            case "zero":
                return zeros
            case "short":
                return data[: len(data) // 2]
            case "stale":
                return self._before.get(slot, zeros)
            case "misplace":
                return next((d for other, d in self._now.items() if other != slot), zeros)


class FaultyCompressor:
    """A compressor that raises on some pages; for offload inline and thread.

    Args:
        inner: the compressor that does the work.
        every: `compress` raises on every k-th call; None = never.
        when: `compress` raises on each page that it is true of.
        error: what it raises.
        decompress_error: while set, every `decompress` raises it.
    """

    def __init__(
        self,
        inner: Compressor,
        *,
        every: int | None = None,
        when: Callable[[bytes], bool] | None = None,
        error: Exception | None = None,
        decompress_error: Exception | None = None,
    ) -> None:
        self.name = inner.name
        self.inner = inner
        self.every = every
        self.when = when
        self.error = error or CorruptData("this compressor fails as told")
        self.decompress_error = decompress_error
        self._calls = itertools.count(1)  # next() of it is atomic, and threads share us

    def __reduce__(self) -> tuple[object, ...]:
        raise TypeError("it counts its calls in this process: threads compress, not workers")

    def compress(self, data: Buffer) -> bytes:
        """Compress, or raise `error`."""
        call = next(self._calls)
        if self.every and call % self.every == 0:
            raise self.error.with_traceback(None)
        if self.when is not None and self.when(bytes(data)):
            raise self.error.with_traceback(None)
        return self.inner.compress(data)

    def decompress(self, blob: Buffer, size: int) -> bytes:
        """Decompress, or raise `decompress_error`."""
        if self.decompress_error is not None:
            raise self.decompress_error.with_traceback(None)
        return self.inner.decompress(blob, size)


class GatedCompressor:
    """A compressor whose `compress` waits at a gate first; for offload thread.

    Args:
        inner: the compressor that does the work.
        gate: where it waits.
    """

    def __init__(self, inner: Compressor, gate: ThreadGate) -> None:
        self.name = inner.name
        self.inner = inner
        self.gate = gate

    def compress(self, data: Buffer) -> bytes:
        """Wait for the gate, then compress."""
        self.gate.wait()
        return self.inner.compress(data)

    def decompress(self, blob: Buffer, size: int) -> bytes:
        """Decompress at once."""
        return self.inner.decompress(blob, size)
