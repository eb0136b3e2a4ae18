"""A backing store as its swapd calls it: under a deadline, its errors translated and counted.

When it is given writes is the core's to say (`mm.swap_service`); here its answers are told to that,
and what changes is logged. Its loads are always tried.
"""

from __future__ import annotations

import errno
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import anyio
from anyio.lowlevel import checkpoint

from reclaimactors.actors.base import Signal
from reclaimactors.deadline import Deadlines
from reclaimactors.errors import BackendError, BackendFull
from reclaimactors.mm.swap_service import OUT_AFTER, Service

if TYPE_CHECKING:
    from collections.abc import Awaitable

    from reclaimactors.abc import Backend
    from reclaimactors.actors.machine import Machine
    from reclaimactors.mm.swap_device import SwapDevice

__all__ = ["LATE_S", "Backing", "TooSlow"]

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
        self.failing: dict[str, str] = {}  #: what other calls raised last, by what they were to do
        self._timeout = timeout
        self.put_aside = Signal()  #: slots were set aside
        self.deadlines = Deadlines(timeout, self.look)  #: of its calls; its swapd keeps their time
        self._writing: dict[anyio.CancelScope, float] = {}  # since when, in loop time
        self.service = Service(device, patience=timeout)
        self._warned = False

    async def call(self, what: str, call: Awaitable[Any]) -> Any:
        """Await a call of the backend under the deadline; translate what it raises, once."""
        try:
            answer = await self._call(what, call)
        except BackendError as exc:
            if what != "store":  # which is for who offers the write to judge: see `failed`
                self.failing[what] = str(exc)
            raise
        self.failing.pop(what, None)
        return answer

    async def _call(self, what: str, call: Awaitable[Any]) -> Any:
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
            self._writing.pop(scope, None)
            self.look()
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
        its deadline.
        """
        if self.deadlines.overdue:
            return True
        oldest = min(self._writing.values(), default=None)
        return oldest is not None and self.deadlines.now() - oldest > LATE_S

    def error(self, what: str, exc: Exception) -> BackendError:
        """Return the error that names the store and what it was to do."""
        detail = str(exc) if isinstance(exc, BackendError) else f"{type(exc).__name__}: {exc}"
        message = f"swap {self.device.name!r} failed to {what}: {detail}"
        number = exc.errno if isinstance(exc, OSError) else None
        return BackendError(number or errno.EIO, message)

    @property
    def writing(self) -> int:
        """How many writes are being carried out."""
        return len(self._writing)

    def is_well(self) -> None:
        """It has taken what it was given."""
        self.last_error = ""
        had_failed = self.device.failures > 0
        if self.service.works():
            self.log.warning("swapd.back_in_service", device=self.device.name)
        if had_failed:  # more than one write at a time may go to it again
            self._node.root.on_wake()

    def failed(self, exc: BackendError) -> bool:
        """It has not taken what it was given.

        Returns:
            Whether it is full.
        """
        device, service, now = self.device, self.service, self._now()
        full = isinstance(exc, BackendFull)
        self.last_error = f"swap {device.name!r} is full: {exc}" if full else str(exc)
        took = self._timeout if isinstance(exc, TooSlow) else 0.0
        if full:
            if service.is_full(now):
                self._node.swapcache.shed(device, device.used)
                self._say("store_full", now)
        elif service.failed(now, took):
            if device.failures == 1:
                self._say("store_failed", now, error=str(exc))
            elif device.failures == OUT_AFTER:
                self._node.vmstat["swap_out_of_service"] += 1
                self._say("out_of_service", now, error=str(exc))
        return full

    def _say(self, event: str, now: float, **details: object) -> None:
        say = self.log.error if event == "out_of_service" else self.log.warning
        wait = round(self.service.again_at - now, 3)
        say(f"swapd.{event}", device=self.device.name, retry_in_s=wait, **details)

    def revive(self, now: float) -> None:
        """Look at the clock: a store may be tried again, or its answer is late."""
        self.service.revive(now)
        self.look()

    def look(self) -> None:
        """Note whether it is late: then it takes nothing more of what is to be written back."""
        was, self.device.late = self.device.late, self.late
        if self.device.late and not was:
            self._node.writeback.cannot(self.device.index)


class TooSlow(BackendError):  # noqa: N818 - says what happened
    """The deadline passed; what was asked may still happen."""
