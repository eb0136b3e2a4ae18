"""The `memory` backend: slots in a dict of this process, for tests and as the last tier."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, ClassVar

from reclaimactors.abc import Backend
from reclaimactors.errors import BackendError, BackendFull

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["MemoryBackend"]


class MemoryBackend(Backend):
    """Keeps the bytes it is given; what they weigh is charged to the budget by `footprint`.

    Args:
        capacity: slots it may hold at once, 1 or more; None = no bound.
    """

    synchronous: ClassVar[bool] = True

    def __init__(self, capacity: int | None = None) -> None:
        if capacity is not None and (type(capacity) is not int or capacity < 1):
            raise ValueError(f"capacity is {capacity!r}; it is 1 or more slots")
        self.capacity = capacity
        self._slots: dict[int, bytes] = {}

    async def aclose(self) -> None:
        """Drop every slot."""
        self._slots.clear()

    async def store_many(self, items: Sequence[tuple[int, bytes]]) -> None:
        """Store all of the items, or none where they would pass the capacity."""
        if self.capacity is not None:
            new = {slot for slot, _ in items if slot not in self._slots}
            if len(self._slots) + len(new) > self.capacity:
                msg = f"memory backend: all {self.capacity} slots are in use; raise its capacity"
                raise BackendFull(msg)
        self._slots.update((slot, bytes(data)) for slot, data in items)

    async def load_many(self, slots: Sequence[int]) -> list[bytes]:
        """Return what each slot holds, as it was stored, without padding."""
        return self.load_now(slots)

    def load_now(self, slots: Sequence[int]) -> list[bytes]:
        """Return what each slot holds: there is never anything to wait for."""
        try:
            return [self._slots[slot] for slot in slots]
        except KeyError as exc:
            msg = f"memory backend: slot {exc} was never stored"
            raise BackendError(errno.ENOENT, msg) from None

    async def invalidate_many(self, slots: Sequence[int]) -> None:
        """Forget the slots and free their bytes."""
        for slot in slots:
            self._slots.pop(slot, None)

    def footprint(self, slots: Sequence[int]) -> int:
        """Return the bytes that these stored slots hold."""
        return sum(len(self._slots[slot]) for slot in slots)
