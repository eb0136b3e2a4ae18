"""Mapped keys: while the memory holds no value of one, a loader is asked for it.

What a loader gives is clean, as a page of a file is: it is held as a discardable value, so that
reclaim drops it (`mm.lazyfree`) where it would compress or write another, and the next get asks the
loader again. A value that was put under a mapped key is one like any other, and is kept.

Whoever finds no value calls the loader in his own task; who comes meanwhile waits for that call. If
it is cancelled, the next of those who wait calls the loader himself.
"""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

import anyio

from reclaimactors.callers.buffers import bytes_of, split
from reclaimactors.cpu.breath import Breath
from reclaimactors.mm.expiry import Terms
from reclaimactors.offload.job import join
from reclaimactors.units import nr_pages

if TYPE_CHECKING:
    from collections.abc import Hashable, Sequence

    from typing_extensions import Buffer

    from reclaimactors.actors.machine import Machine
    from reclaimactors.callers.admission import Admission

__all__ = ["Loader", "Mapped"]

Loader = Callable[[Any], Awaitable["Buffer | Sequence[Buffer]"]]
"""Returns the value of the key that it is called with, which it reads from wherever it is."""

LOADS = 16  #: loaders that one `get_many` asks at a time

_CLEAN = Terms(discardable=True)


class _Load:
    """One call of a loader, and who waits for it."""

    __slots__ = ("data", "ended", "error", "task")

    def __init__(self) -> None:
        self.task = anyio.get_current_task().id
        self.ended = anyio.Event()
        self.data: bytes | None = None
        self.error: Exception | None = None


class Mapped:
    """The mapped keys of one group; false where there are none.

    Args:
        machine: of the group.
        admission: the way in of the group.
        check_open: raises once the group serves nobody any more.
        max_folio: bytes of a value that is one folio.
    """

    def __init__(
        self,
        machine: Machine,
        admission: Admission,
        check_open: Callable[[], None],
        max_folio: int,
    ) -> None:
        self._m = machine
        self._admission = admission
        self._group = admission.group
        self._values = admission.group.values
        self._check_open = check_open
        self._max_folio = max_folio
        self._loaders: dict[Hashable, Loader] = {}
        self._loading: dict[Hashable, _Load] = {}

    def __bool__(self) -> bool:
        return bool(self._loaders)

    def __contains__(self, key: Hashable) -> bool:
        return key in self._loaders

    def add(self, key: Hashable, loader: Loader) -> None:
        """Map a key; what another loader gave for it is forgotten.

        Raises:
            TypeError: if the loader cannot be called.
        """
        if not callable(loader):
            msg = f"loader is {loader!r:.80}; allowed: a function of the key that can be awaited"
            raise TypeError(msg)
        values = self._values
        known = key in self._loaders and key in values
        if known and values.pfns(key)[0] in values.lazy.keys:
            values.delete(key)
        self._loaders[key] = loader
        self._loading.pop(key, None)  # of the loader before: who waits for it gets what it gives

    def discard(self, key: Hashable) -> bool:
        """Map a key no longer; return whether it was."""
        self._loading.pop(key, None)
        return self._loaders.pop(key, None) is not None

    async def get(self, key: Hashable) -> bytes:
        """Return what the loader gives for a key.

        Raises:
            KeyError: if the key is not mapped any more, or its loader says that it has no value.
            RuntimeError: if the loader asks for the key itself.
            TypeError: if what it gives is no value.
            Exception: whatever the loader raises; the next get asks it again.
        """
        while True:
            load = self._loading.get(key)
            if load is None:
                return await self._load(key)
            if load.task == anyio.get_current_task().id:
                raise RuntimeError(f"the loader of key {key!r:.50} asks the memory for that key")
            await load.ended.wait()
            self._check_open()
            if load.error is not None:
                raise load.error
            if load.data is not None:
                return load.data

    async def get_many(self, keys: Sequence[Hashable]) -> dict[Hashable, bytes]:
        """Return what loaders give for these keys, LOADS at a time, less those without a value.

        Raises:
            Exception: what the first loader that failed has raised, after those asked with it.
        """
        found: dict[Hashable, bytes] = {}
        errors: list[Exception] = []

        async def load(key: Hashable) -> None:
            try:
                found[key] = await self.get(key)
            except KeyError:
                return  # it has no value
            except Exception as exc:  # noqa: BLE001 - whatever a loader raises
                errors.append(exc)

        for start in range(0, len(keys), LOADS):
            async with anyio.create_task_group() as tasks:
                for key in keys[start : start + LOADS]:
                    tasks.start_soon(load, key)
            if errors:
                raise errors[0]
        return found

    async def _load(self, key: Hashable) -> bytes:
        loader = self._loaders[key]
        load = self._loading[key] = _Load()
        try:
            data = await self._call(key, loader)
            parts = await self._cut(data)
            self._check_open()
            whole = data if type(data) is bytes else parts[0]
            if len(parts) > 1 and whole is not data:
                whole = await join(parts, limiter=self._m.readers)
                self._check_open()
            load.data = whole
            self._keep(key, loader, parts)
        except Exception as exc:
            load.error = exc
            raise
        finally:
            if self._loading.get(key) is load:
                del self._loading[key]
            load.ended.set()
        return whole

    async def _call(self, key: Hashable, loader: Loader) -> Any:
        awaitable = loader(key)
        if not inspect.isawaitable(awaitable):
            kind = type(awaitable).__name__
            msg = f"the loader of key {key!r:.50} returned {kind}; it has to be an `async def`"
            raise TypeError(msg)
        data = await awaitable
        try:
            return bytes_of(data)
        except TypeError as exc:
            raise TypeError(f"the loader of key {key!r:.50} gave no value: {exc}") from None

    async def _cut(self, source: Any) -> list[bytes]:
        parts: list[bytes] = []
        breath = Breath()
        for part in split(source, self._max_folio):
            parts.append(part)
            await breath.take()
        return parts

    def _keep(self, key: Hashable, loader: Loader, parts: list[bytes]) -> None:
        """Hold what was loaded, if there is room for it above *low*, as a fault does."""
        group, values = self._group, self._values
        size = sum(map(len, parts))
        pages = nr_pages(size, group.node.page_size)
        for name in ("pgfault", "pgmajfault"):
            group.node.vmstat[name] += pages
            if group.index:
                group.count(name, pages)
        if self._loaders.get(key) is not loader or key in values:
            return  # it was mapped anew, deleted or put meanwhile
        need = values.need(key, size, len(parts), _CLEAN)
        if not self._admission.queued and group.has_headroom(need):
            values.commit(key, parts, 0, _CLEAN)
