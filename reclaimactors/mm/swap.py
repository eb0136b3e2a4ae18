"""The swap devices of a node, by priority: which of them a folio goes to. Mirrors mm/swapfile.c."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

from reclaimactors.errors import BackendError, ProtocolViolation

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from collections.abc import Set as AbstractSet

    from reclaimactors.mm.swap_device import SwapDevice

__all__ = ["MAX_SWAPFILES", "SwapDevices"]

MAX_SWAPFILES = 256  #: devices at a time: the index is one byte of a folio's row


class SwapDevices:
    """The devices in the order in which they are filled, like ``swap_avail_heads``.

    A change makes a new list: another thread may be going through the old one.
    """

    def __init__(self, devices: tuple[SwapDevice, ...] = ()) -> None:
        self._order: list[SwapDevice] = []
        for device in devices:
            self.add(device)

    @property
    def devices(self) -> list[SwapDevice]:
        """All devices by index."""
        return sorted(self._order, key=lambda device: device.index)

    def __len__(self) -> int:
        return len(self._order)

    def __iter__(self) -> Iterator[SwapDevice]:
        """In the order in which they are filled."""
        return iter(self._order)

    def __getitem__(self, index: int) -> SwapDevice:
        for device in self._order:
            if device.index == index:
                return device
        raise KeyError(index)

    def free_index(self) -> int:
        """Return the lowest index that no device has.

        Raises:
            BackendError: if MAX_SWAPFILES devices take part already.
        """
        taken = {device.index for device in self._order}
        for index in range(MAX_SWAPFILES):
            if index not in taken:
                return index
        msg = f"{MAX_SWAPFILES} swap devices take part already, which is as many as there may be"
        raise BackendError(errno.EPERM, msg)

    def add(self, device: SwapDevice) -> None:
        """Let a device take part (swapon)."""
        if any(device.index == other.index for other in self._order):
            msg = f"swap device {device.index} takes part already"
            raise ProtocolViolation(msg)
        self._order = sorted([*self._order, device], key=lambda device: -device.priority)

    def remove(self, index: int) -> SwapDevice:
        """Let a device leave that holds nothing any more (the end of swapoff), and return it."""
        device = self[index]
        if device.used:
            msg = f"swap device {device.name} still holds {device.used} slots"
            raise ProtocolViolation(msg)
        self._order = [other for other in self._order if other is not device]
        return device

    def alloc(
        self, nr: int, exclude: AbstractSet[int] = frozenset()
    ) -> tuple[SwapDevice, int] | None:
        """Take `nr` consecutive slots of the best device: (device, first slot).

        Highest priority first, in turn among equals; None where no device in service has such a
        run. `exclude` holds the indexes of devices not to ask, say those that just failed.
        """
        order = self._order
        for place, device in enumerate(order):
            if not device.takes_writes or device.index in exclude:
                continue
            slot = device.alloc(nr)
            if slot is None:
                continue
            if len(order) > 1:  # mirrors plist_requeue(): behind its equals
                order = order[:place] + order[place + 1 :]
                equals = (at for at, other in enumerate(order) if other.priority < device.priority)
                order.insert(next(equals, len(order)), device)
                self._order = order
            return device, slot
        return None

    def alloc_best(
        self, nr: int, exclude: AbstractSet[int] = frozenset()
    ) -> tuple[SwapDevice, int] | None:
        """Take a run of the best device that has room at all; None where it has no such run."""
        for device in self._order:
            if device.takes_writes and device.free_slots and device.index not in exclude:
                others = {other.index for other in self._order if other is not device}
                return self.alloc(nr, others | exclude)
        return None

    def alloc_scattered(
        self, nr: int, exclude: AbstractSet[int] = frozenset()
    ) -> tuple[SwapDevice, Sequence[int]] | None:
        """Take `nr` slots of one device, wherever they are there: for what finds no run."""
        for device in self._order:
            if device.takes_writes and device.index not in exclude:
                slots = device.alloc_scattered(nr)
                if slots is not None:
                    return device, slots
        return None

    @property
    def has_room(self) -> bool:
        """Whether a device in service has a free slot."""
        return self.with_room()

    def with_room(self, exclude: AbstractSet[int] = frozenset()) -> bool:
        """Return the same of all devices but these."""
        return any(
            device.takes_writes and device.free_slots > 0 and device.index not in exclude
            for device in self._order
        )

    @property
    def ready(self) -> bool:
        """Whether a device takes what does not compress: it is in service and has a free slot.

        There is room among the writes that wait, too.
        """
        return self.is_ready()

    def is_ready(self, exclude: AbstractSet[int] = frozenset()) -> bool:
        """Return the same of all devices but these."""
        return any(
            device.takes_writes
            and device.index not in exclude
            and device.free_slots > 0
            and device.takes_poor
            and not device.congested
            for device in self._order
        )

    @property
    def used(self) -> int:
        """Slots in use on all devices."""
        return sum(device.used for device in self._order)

    @property
    def aside(self) -> int:
        """Slots set aside on all devices."""
        return sum(device.aside for device in self._order)

    @property
    def may_return(self) -> bool:
        """Whether a device that takes no writes now is expected to take them again soon."""
        return any(device.may_return for device in self._order)

    @property
    def capacity(self) -> int | None:
        """Slots of all devices; None where one of them has no bound."""
        total = 0
        for device in self._order:
            if device.capacity is None:
                return None
            total += device.capacity
        return total

    def check(self) -> None:
        """Assert the order and the invariants of each device."""
        priorities = [device.priority for device in self._order]
        assert priorities == sorted(priorities, reverse=True), f"devices out of order: {priorities}"
        for device in self._order:
            device.check()
