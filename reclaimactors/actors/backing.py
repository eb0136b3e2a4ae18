"""A backing store as its swapd calls it: under a deadline, its errors translated and counted.

A store that is full is tried again after a while; one that keeps failing is taken out of service:
it gets no new writes, its loads are still tried.
"""

from __future__ import annotations

import errno
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import anyio
from anyio.lowlevel import checkpoint

from reclaimactors.deadline import Deadlines
from reclaimactors.errors import BackendError, BackendFull

if TYPE_CHECKING:
    from collections.abc import Awaitable

    from reclaimactors.abc import Backend
    from reclaimactors.actors.machine import Machine
    from reclaimactors.mm.swap import SwapDevice

__all__ = ["FAILURES_TO_RETIRE", "LATE_S", "Backing", "TooSlow"]

FAILURES_TO_RETIRE = 8  #: failed stores in a row after which a device gets no more
RETRY_S = 0.5  #: after which a full store is tried again; doubles up to RETRY_MAX_S
RETRY_MAX_S = 30.0
LATE_S = 1.0  #: of loop time, after which a write that has no answer makes its store late


class Backing:
    """One backend, and the device that stands for it."""

    def __init__(
        self, machine: Machine, device: SwapDevice, backend: Backend, timeout: float
    ) -> None:
        self._m = machine
        self._node = machine.node
        self._now = machine.loop.now
        self.log = machine.log
        self.device = device
        self.backend = backend
        self.last_error = ""  #: why it did not take the last write, if it did not
        self._timeout = timeout
        self.deadlines = Deadlines(timeout)  #: of its calls; its swapd keeps their time
        self._writing: dict[anyio.CancelScope, float] = {}  # since when, in loop time
        self._too_slow = False  # the last write that ended had passed its deadline
        self._retry_s = RETRY_S
        self._retry_at = 0.0
        self._warned = False

    async def call(self, what: str, call: Awaitable[Any]) -> Any:
        """Await a call of the backend under the deadline; translate what it raises, once."""
        if not self.ours:
            with suppress(AttributeError):
                call.close()  # type: ignore[attr-defined] # a coroutine that nobody awaits
            raise self.error(what, RuntimeError("it is of another process, before a fork"))
        scope = self.deadlines.begin()
        if what == "store":
            self._writing[scope] = self.deadlines.now()
        try:
            with scope:
                try:
                    answer = await call
                except BackendFull:
                    raise
                except Exception as exc:
                    raise self.error(what, exc) from exc
                except anyio.get_cancelled_exc_class() as exc:
                    await checkpoint()  # goes on up where it is we who are cancelled
                    raise self.error(what, RuntimeError("a call inside it was cancelled")) from exc
                if scope.cancel_called and not self._warned:
                    self._warned = True
                    self.log.warning("swapd.cannot_cancel", device=self.device.name, call=what,
                                hint="neither its deadline nor that of close holds")  # fmt: skip
                return answer
        finally:
            self.deadlines.end(scope)
            if self._writing.pop(scope, None) is not None:
                self._too_slow = scope.cancelled_caught
        assert scope.cancelled_caught  # nothing else gets here
        raise TooSlow(f"swap {self.device.name!r} took longer than {self._timeout:g} s to {what}")

    @property
    def ours(self) -> bool:
        """Whether it may be called: not in a forked child."""
        return self._m.ours

    @property
    def late(self) -> bool:
        """Whether its answers are late: nobody should count on what it is writing.

        That is while a write has had no answer for LATE_S of loop time, or any call goes on past
        its deadline; and after a write that was given up, until the next one ends in time.
        """
        if self._too_slow or self.deadlines.overdue:
            return True
        oldest = min(self._writing.values(), default=None)
        return oldest is not None and self.deadlines.now() - oldest > LATE_S

    def error(self, what: str, exc: Exception) -> BackendError:
        """Return the error that names the store and what it was to do."""
        detail = str(exc) if isinstance(exc, BackendError) else f"{type(exc).__name__}: {exc}"
        message = f"swap {self.device.name!r} failed to {what}: {detail}"
        number = exc.errno if isinstance(exc, OSError) else None
        return BackendError(number or errno.EIO, message)

    def is_well(self) -> None:
        """It has taken what it was given."""
        self.device.failures = 0
        self.last_error = ""
        self._retry_s = RETRY_S

    def failed(self, exc: BackendError) -> bool:
        """It has not: full is tried again later, anything else counts against the device.

        Returns:
            Whether it is full.
        """
        device = self.device
        full = isinstance(exc, BackendFull)
        self.last_error = f"swap {device.name!r} is full: {exc}" if full else str(exc)
        if full and not device.full:
            device.full = True
            self._node.swapcache.shed(device, device.used)
            self._retry_at = self._now() + self._retry_s
            self.log.warning("swapd.store_full", device=device.name, retry_in_s=self._retry_s)
            self._retry_s = min(RETRY_MAX_S, 2 * self._retry_s)
        elif not full:
            device.failures += 1
            if device.failures == 1:
                self.log.warning("swapd.store_failed", device=device.name, error=str(exc))
            if device.failures >= FAILURES_TO_RETIRE and device.in_service:
                device.in_service = False
                self._node.vmstat["swap_out_of_service"] += 1
                self.log.error("swapd.out_of_service", device=device.name, failures=device.failures)
        return full

    def revive(self, now: float) -> None:
        """Try a store again that was full a while ago."""
        if self.device.full and now >= self._retry_at:
            self.device.full = False


class TooSlow(BackendError):  # noqa: N818 - says what happened
    """The deadline passed; what was asked may still happen."""
