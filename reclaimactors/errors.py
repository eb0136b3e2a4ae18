"""Every exception of reclaimactors, flat under `ReclaimError`.

Each class says in one sentence when it is raised. A message names what was seen, what is allowed
and the next step. Errors of anyio (`WouldBlock`, `ClosedResourceError`) keep their own classes.
"""

from __future__ import annotations

import errno

__all__ = [
    "BackendError",
    "BackendFull",
    "CorruptData",
    "OutOfMemory",
    "PluginError",
    "ProtocolViolation",
    "ReclaimError",
    "TopologyError",
]


class ReclaimError(Exception):
    """Root of everything that reclaimactors itself raises."""


class OutOfMemory(ReclaimError, MemoryError):  # noqa: N818 - the kernel's word, fixed by contract
    """A value does not fit the budget, or reclaim freed nothing for it; the old value stays."""


class CorruptData(ReclaimError, ValueError):  # noqa: N818 - name fixed by contract
    """Bytes that came back are not the bytes that went out."""


class BackendError(ReclaimError, OSError):
    """A backing store failed to store, load or open, or took longer than its timeout."""


class BackendFull(BackendError):  # noqa: N818 - name fixed by contract
    """A backing store has no room for these slots; it stays usable for the others."""

    def __init__(self, message: str = "the backing store is full") -> None:
        super().__init__(errno.ENOSPC, message)

    def __reduce__(self) -> tuple[object, ...]:
        """An OSError is copied and pickled with its number, which this one does not take."""
        return type(self), (self.strerror,), vars(self)


class PluginError(ReclaimError):
    """A plugin could not be found, imported, built, or broke its contract."""


class TopologyError(ReclaimError, ValueError):
    """A topology has a bad key or value; the message names the key, what was seen and allowed."""


class ProtocolViolation(ReclaimError, RuntimeError):  # noqa: N818 - h11's word for "you broke the rules"
    """The mm core was driven against its rules; its state is as it was before the call."""
