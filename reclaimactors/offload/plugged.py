"""Batches that a plugin compresses (`abc.Offload`): given to it, waited for, and taken back.

The plugin never waits and knows no event loop; whoever waits for a batch does so here. It starts at
the first pressure. Where it cannot start now, the event loop compresses, and it is tried again
later. Where it fails in the middle, its batches end in `WorkerDied`, whoever sent them hands them
back, and it is opened again by the supervisor.

On failure: a fault in a plugin's C ends the whole process, as any fault in C does. Nothing can be
done about that here.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING
from weakref import WeakSet

import anyio
import attrs

from reclaimactors.cpu.loop_clock import current_time
from reclaimactors.errors import PluginError
from reclaimactors.log import log
from reclaimactors.offload.backoff import Backoff
from reclaimactors.offload.inline import InlineOffload
from reclaimactors.offload.pace import Pace
from reclaimactors.offload.process import WorkerDied

if TYPE_CHECKING:
    from reclaimactors.abc import Compressor, Offload
    from reclaimactors.cpu.loop_thread import Cpu
    from reclaimactors.log import Log
    from reclaimactors.squeezed import Squeezed

__all__ = ["PluggedOffload"]

CLOSE_S = 0.01  #: between two times that a plugin is asked whether it has stopped

_opened: WeakSet[PluggedOffload] = WeakSet()


def _forked() -> None:
    """In a child process: the plugin's threads are the parent's, and so is what they wake."""
    for offload in _opened:
        offload.forked()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forked)


@attrs.define(eq=False)
class _Ticket:
    """One batch that the plugin has."""

    nr: int  #: folios
    done: anyio.Event = attrs.Factory(anyio.Event)
    rows: Squeezed | None = None  #: None once `done`: the plugin has failed


class PluggedOffload:
    """The batches of one memory that a plugin compresses.

    Args:
        plugin: what compresses them.
        name: of the plugin, for the log.
        compressor: what the event loop compresses with where the plugin cannot start.
        workers: batches that the plugin compresses at the same instant.
        end_s: seconds that the plugin has to stop.
        cpu: of the memory: what the event loop compresses is pressure.
        log: of the memory.
    """

    holds = True

    def __init__(
        self, plugin: Offload, compressor: Compressor, *, name: str, workers: int,
        end_s: float = 1.0, cpu: Cpu | None = None, log: Log = log,
    ) -> None:  # fmt: skip
        self.workers = workers
        self._plugin = plugin
        self._name = name
        self._end_s = end_s
        self._log = log
        self._instead = InlineOffload(compressor, cpu=cpu)
        self._backoff = Backoff()
        self._pace = Pace()
        self._tickets: dict[int, _Ticket] = {}
        self._heard = 0.0  # when the last batch was done, or the first one was given
        self._up = False
        self._why = ""  # it cannot start
        self._settled = anyio.Event()  # it is up, or cannot start

    @property
    def staging(self) -> int:
        """Bytes of the plugin's buffers."""
        return self._plugin.staging

    @property
    def inline(self) -> bool:
        """Whether the event loop compresses, because the plugin cannot start."""
        return self._why != ""

    @property
    def degraded(self) -> str:
        """Why batches are not compressed as configured, "" where they are."""
        return self._why

    @property
    def late(self) -> bool:
        """Whether no batch was done for longer than is usual, although there are some."""
        return len(self._tickets) > 0 and self._pace.late(current_time() - self._heard)

    # -- a batch ----------------------------------------------------------------------------------

    async def squeeze(self, pages: list[bytes], *, of_sources: bool = False) -> Squeezed:
        """Compress a batch. On cancellation the plugin goes on with it, and its rows are dropped.

        Raises:
            WorkerDied: if the plugin fails before it is done.
        """
        while not (self._up or self._why):
            await self._settled.wait()
        number = self._submit(pages, of_sources=of_sources) if self._up else None
        if number is None:
            return await self._instead.squeeze(pages, of_sources=of_sources)
        if not self._tickets:
            self._heard = current_time()
        ticket = self._tickets[number] = _Ticket(len(pages))
        try:
            await ticket.done.wait()
        finally:
            self._tickets.pop(number, None)
        if ticket.rows is None:
            raise WorkerDied(f"the offload {self._name!r} was ended before a batch was done")
        return ticket.rows

    def _submit(self, pages: list[bytes], *, of_sources: bool) -> int | None:
        """Give the plugin a batch; return its number, None where there is no memory for it."""
        try:
            return self._plugin.submit(pages, of_sources=of_sources)
        except MemoryError:
            return None

    def _collect(self) -> None:
        """Take back what is done.

        Raises:
            PluginError: if the rows are not one for each folio.
        """
        while (done := self._plugin.collect()) is not None:
            number, rows = done
            ticket = self._tickets.get(number)
            if ticket is None:  # cancelled meanwhile
                continue
            if not ticket.nr == len(rows.kinds) == len(rows.blobs) == len(rows.values):
                msg = f"the offload {self._name!r} gave {len(rows.kinds)} rows for {ticket.nr}"
                raise PluginError(f"{msg} folios; see the contract in reclaimactors.abc")
            self._pace.answered(current_time() - self._heard)
            self._heard = current_time()
            ticket.rows = rows
            ticket.done.set()

    # -- its life ---------------------------------------------------------------------------------

    async def run(self) -> None:
        """Keep the plugin open, for ever: the actor that owns it."""
        fd = await self._open()
        _opened.add(self)
        try:
            while True:
                await anyio.wait_readable(fd)
                self._collect()
        finally:
            self._ended()
            await self._close()
            _opened.discard(self)

    async def _open(self) -> int:
        while True:
            try:
                fd = self._plugin.open()
            except OSError as exc:
                wait = self._backoff.failed()
                if not self._why:
                    self._log.error(
                        "offload.degraded", reason=str(exc), instead="inline", again_s=wait
                    )
                self._why = f"offload {self._name!r} cannot start, the event loop compresses: {exc}"
                self._settled.set()
                await anyio.sleep(wait)
            else:
                if self._why:
                    self._why = ""
                    self._log.warning("offload.recovered", workers=self.workers)
                self._backoff.worked()
                self._up = True
                self._settled.set()
                return fd

    def _ended(self) -> None:
        """Whoever waits for a batch gets none, until it is open again."""
        self._up = False
        self._settled = anyio.Event()
        for ticket in self._tickets.values():
            ticket.done.set()

    async def _close(self) -> None:
        """Stop the plugin; where it does not stop in time, its pages are kept for as long."""
        with anyio.move_on_after(self._end_s, shield=True) as scope:
            while not self._plugin.close():  # noqa: ASYNC110 - it knows no event
                await anyio.sleep(CLOSE_S)
        if scope.cancelled_caught:
            self._log.warning("offload.hung", offload=self._name, after_s=self._end_s)

    def forked(self) -> None:
        """In a forked child: let go of the plugin's descriptor, and of nothing else."""
        self._up = False
        self._plugin.close()
