"""What the loop's thread lets other threads read: the values of keys that are in memory.

`Published.begun` is counted up before a key gets another value or none, `done` after it. A reader
takes `done`, looks up the key's folio and its bytes, and compares `begun`: where they are equal, no
key changed in between, so the folio was the key's all that time. Its bytes are the value, or the
blob of it that the pool has: a blob is shorter than its folio. Readers take no lock and write
nothing that the loop reads but a list of what they have read (`BlockingMemory`).

This is for a GIL: what is read here are dicts and arrays that another thread changes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import anyio

from reclaimactors.memory import Memory
from reclaimactors.mm.folio import DEVICE, RESIDENT, WRITEBACK
from reclaimactors.mm.values import Values

if TYPE_CHECKING:
    from collections.abc import Hashable, Iterable, Mapping

    from reclaimactors.actors.machine import Machine
    from reclaimactors.mm.expiry import Terms
    from reclaimactors.topology import Topology

__all__ = ["Published", "PublishedMemory"]

_NEVER = -(1 << 62)  # no count of what was done


class Published(Values):
    """The keys of a memory, with counts of the changes begun and done."""

    begun = 0
    done = 0

    def commit(
        self, key: Hashable, parts: list[bytes], reserved: int, terms: Terms | None = None
    ) -> None:
        """As in `Values`."""
        self.begun += 1
        try:
            super().commit(key, parts, reserved, terms)
        finally:
            self.done += 1

    def put_fast(self, key: Hashable, data: bytes, *, may_wait: bool = True) -> bool:
        """As in `Values`."""
        self.begun += 1
        try:
            return super().put_fast(key, data, may_wait=may_wait)
        finally:
            self.done += 1

    def put_new(self, items: Mapping[Hashable, bytes]) -> bool:
        """As in `Values`."""
        self.begun += 1
        try:
            return super().put_new(items)
        finally:
            self.done += 1

    def delete(self, key: Hashable) -> None:
        """As in `Values`."""
        self.begun += 1
        try:
            super().delete(key)
        finally:
            self.done += 1

    def close(self) -> None:
        """Let no reader find anything from now on."""
        self.begun = _NEVER


class PublishedMemory(Memory):
    """A memory whose values other threads may read, and with calls that need no task.

    The calls whose names end in `_now` are for callbacks of the loop. They do all of the work, or
    raise WouldBlock having changed nothing.
    """

    def __init__(self, topology: Topology, machine: Machine) -> None:
        machine.node.root.values = self.published = Published(machine.node.root)
        super().__init__(topology, machine)
        #: the columns that readers look at: pfn by key, bytes by pfn, size by pfn
        self.columns = (self._small, self._data, machine.node.mm.size)

    def serve_nobody(self) -> None:
        """Refuse every call from now on, those of readers as well."""
        self.published.close()
        super().serve_nobody()

    def closed(self) -> anyio.ClosedResourceError:
        """Return what a call gets that comes after the end."""
        return self._machine.closed()

    def get_now(self, key: Hashable) -> bytes:
        """Return a value of one folio that the pool has, or that is resident."""
        self._check()
        pfn = self._small.get(key)
        if pfn is None:
            if key in self._node.values.large:  # of several folios, or it ends at a time
                raise anyio.WouldBlock
            raise KeyError(key)
        if self._state[pfn] == DEVICE or self._faults.expander.takes_long((pfn,)):
            raise anyio.WouldBlock
        return self._faults.one(pfn)

    def put_now(self, key: Hashable, data: object) -> None:
        """Put bytes of one folio where that needs not wait."""
        self._check()
        if (
            type(data) is not bytes
            or len(data) > self._max_folio
            or self._admission.queued
            or not self._put_fast(key, data)
        ):
            raise anyio.WouldBlock

    def delete_now(self, key: Hashable) -> None:
        """Delete a key."""
        self._check()
        self._delete(key)

    def note_reads(self, pfns: Iterable[int]) -> None:
        """Tell the policy of what other threads have read; what was on its way out stays."""
        for pfn in pfns:
            state = self._state[pfn]
            if state == RESIDENT:
                self._access(pfn)
            elif state == WRITEBACK:
                self._faults.one(pfn)
