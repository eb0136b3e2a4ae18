"""kswapd: sleeps until free memory is below *low*, then reclaims until it is at *high*.

What to do is `reclaimactors.mm.vmscan.Kswapd`; here it is carried out. Who compresses is the mode:
kswapd itself (``inline``: it waits for the offload), or a worker behind the FIFO (``kcompressd``,
``padata``) with a declared rule for when that is full.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import anyio
from anyio.lowlevel import checkpoint

from reclaimactors.actors.gates import enqueue, first_pages, gate_of
from reclaimactors.actors.machine import LATE_S
from reclaimactors.cpu.breath import Breath
from reclaimactors.cpu.loop_clock import current_time
from reclaimactors.mm.batch import FolioBatch, Reclaimer
from reclaimactors.mm.page_io import Gate
from reclaimactors.mm.vmscan import Step
from reclaimactors.offload.process import WorkerDied

if TYPE_CHECKING:
    from reclaimactors.actors.background import Background
    from reclaimactors.actors.machine import Machine

__all__ = ["KswapdActor"]


class KswapdActor:
    """The actor of one node, or of a group that has a limit.

    Args:
        machine: whose actor it is.
        background: what it carries out; None for the root's.
    """

    def __init__(self, machine: Machine, background: Background | None = None) -> None:
        self._m = machine
        self._b = machine.background if background is None else background
        self._batch: FolioBatch | None = None  # isolated, not yet handed on: mine to hand back
        self._passes = 0
        self._breath = Breath(machine.cpu.share)

    async def run(self) -> None:
        """Balance at each wake-up, for ever."""
        machine, background = self._m, self._b
        try:
            # a crash may have left a run half done
            background.kswapd.running = background.awake = False
            while True:
                background.wake()
                if not background.awake:
                    machine.verdicts.notify()  # nothing is left to do: who waited for it goes on
                try:
                    await background.woken()
                except (anyio.EndOfStream, anyio.ClosedResourceError):
                    return  # its group has ended
                machine.revive()
                self._breath.begin()
                await self.balance()
                machine.log.debug(
                    "kswapd.slept",
                    hopeless=background.kswapd.hopeless,
                    **({"group": background.group.name} if background.group.name else {}),
                )
        finally:
            self._hand_back()  # still awake, if it was: it comes back after a crash, or all ends

    async def balance(self) -> None:
        """One stay awake: until balanced or hopeless."""
        machine = self._m
        while True:
            if machine.closing:  # it may be resumed once more before it is cancelled
                await anyio.sleep_forever()
            step = self.step()
            if step is Step.SLEEP:
                self._b.awake = False
                machine.verdicts.notify()  # the brake lets go of who waited for a sleeping kswapd
                return
            if step is Step.THROTTLE:
                machine.verdicts.notify()
                await self._verdict()
            elif step is Step.WAIT:
                await self._verdict()
            elif self._batch is not None:
                await self.route()
            await self._breathe()

    async def _verdict(self) -> None:
        """Wait for a verdict; while none comes, look around from time to time: who is late?"""
        with anyio.move_on_after(LATE_S):
            await self._m.verdicts.wait()
        self._m.revive()
        self._breath.begin()

    async def _breathe(self) -> None:
        """Let the event loop go on once a slice is used up."""
        if self._breath.due:
            self._m.starter.look_at_malloc()
            self._m.revive()
            await self._breath.take()

    def step(self) -> Step:
        """The synchronous step: ask the core, and isolate what it says."""
        machine, background = self._m, self._b
        core = background.kswapd
        step = core.next()
        if core.passes != self._passes:
            self._passes = core.passes
            for group in list(background.group.subtree()):
                group.policy.age(current_time())
        if step is Step.ISOLATE:
            who = Reclaimer.PROACTIVE if core.requested else Reclaimer.KSWAPD
            batch = machine.swapout.isolate(
                core.nr, core.max_bytes, who, background.stream, within=background.group
            )
            self._batch = batch if batch is not None and batch.pfns else None
            core.isolated(batch)
        return step

    async def route(self) -> None:
        """Send the isolated batch to whoever compresses."""
        batch = self._batch
        while batch is not None:
            verdict = gate_of(self._m, batch.group, batch.admitted_as, first_pages(self._m, batch))
            if self._m.late:
                self._compress_here(batch)
                await self._breathe()
            elif verdict is Gate.QUEUED:
                self._batch = enqueue(self._m, batch)
            elif verdict is Gate.FIFO_FULL:
                await self._full(batch)
                await self._breathe()
            else:
                self._batch = None
                await self._compress_offloaded(batch)
            batch = self._batch

    async def _full(self, batch: FolioBatch) -> None:
        """The declared rule for a full FIFO.

        It is full only where nobody is about to take from it: kswapd may have filled it within one
        turn of the event loop, in which no worker had his. And the rule is for workers that are too
        slow: kswapd waits for room as long as free memory is at *low*, or what they have done still
        waits for its verdicts, for then it is the event loop that is short of time.
        """
        machine = self._m
        if machine.fifo.takers:
            await checkpoint()
            return
        hurry = self._b.kswapd.behind and not machine.cpu.share.waiting
        rule = machine.on_full if hurry else "wait"
        if rule == "steal_oldest" and (oldest := machine.fifo.take_oldest()) is not None:
            machine.node.vmstat["kcompressd_stolen"] += oldest.nr_pages
            if (
                machine.cpu.rates.too_slow_to_compress(oldest.nr_bytes)
                and not machine.offload.inline
            ):
                await self._compress_offloaded(oldest)
            else:
                machine.compress_inline(oldest)
            return
        first = machine.swapout.first_bytes(batch)
        slow = machine.cpu.rates.too_slow_to_compress(first) and not machine.offload.inline
        if rule == "wait" or slow:
            with anyio.move_on_after(LATE_S):  # then `route` asks whether the worker is late
                await machine.fifo.room_made.wait()
            self._breath.begin()
            return
        self._compress_here(batch)

    def _compress_here(self, batch: FolioBatch) -> None:
        """Compress a slice of a batch in the event loop; the rest is still to be routed."""
        machine = self._m
        self._batch = machine.swapout.cut(batch, nr_bytes=machine.cpu.rates.slice_bytes())
        machine.handover.in_turn(batch)
        machine.node.vmstat["kcompressd_inline"] += batch.nr_pages
        machine.compress_inline(batch)

    async def _compress_offloaded(self, batch: FolioBatch) -> None:
        """Have a batch compressed and wait for it: kswapd does nothing meanwhile."""
        machine = self._m
        machine.handover.in_turn(batch)
        try:
            pages = machine.handover.begin(batch)
            out = await machine.offload.squeeze(pages, of_sources=batch.rows is not None)
        except WorkerDied:
            machine.handover.hand_back(batch)  # kswapd will find them again
        except BaseException:  # cancelled too: the batch is ours alone
            machine.handover.hand_back(batch)
            raise
        else:
            self._breath.begin()
            machine.handover.finish(batch, out)

    def _hand_back(self) -> None:
        if self._batch is not None:
            self._m.handover.hand_back(self._batch)
            self._batch = None
