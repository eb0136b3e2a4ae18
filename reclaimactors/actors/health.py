"""How a memory is, in words for a health route: what ended it, or what is not as configured.

It only reads, and any thread may ask.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import attrs

from reclaimactors.actors.supervision import why_of
from reclaimactors.mm.swap_service import OUT_AFTER

if TYPE_CHECKING:
    from reclaimactors.actors.machine import Machine

__all__ = ["Health", "health_of"]


@attrs.frozen
class Health:
    """How a memory is.

    Attributes:
        state: "open"; "degraded", which serves all the same; "closing"; "closed"; or "crashed",
            which an actor's crash has ended or is ending.
        reason: why it is not just "open", in a sentence or several; "" where it is.
        degraded: a sentence for each part that is not as configured: a store that is full, out
            of service or does not answer, workers that are not there, an actor that was started
            again lately.
    """

    state: Literal["open", "degraded", "closing", "closed", "crashed"]
    reason: str
    degraded: tuple[str, ...]


def health_of(machine: Machine, now: float) -> Health:
    """Return how the memory of a machine is.

    Args:
        machine: any, ended or not.
        now: `time.perf_counter`.
    """
    crash = machine.crash
    degraded = () if machine.closing else tuple(_degraded(machine, now))
    if crash is not None:
        return Health("crashed", why_of(crash), degraded)
    if machine.ended:
        return Health("closed", "it was closed", degraded)
    if machine.closing:
        return Health("closing", "it is being closed", degraded)
    return Health("degraded" if degraded else "open", "; ".join(degraded), degraded)


def _degraded(machine: Machine, now: float) -> list[str]:
    told = [why for why in (machine.offload.degraded, machine.handover.failing) if why]
    for swapd in list(machine.swapds.values()):  # a copy: another thread may ask
        device, why = swapd.device, swapd.backing.last_error
        if device.failures >= OUT_AFTER:
            told.append(f"swap {device.name!r} is out of service; its last error: {why}")
        elif device.late:
            told.append(f"swap {device.name!r} has not answered for a while and gets no new writes")
        elif why:  # it is full, or did not take the last write
            told.append(why)
        told += swapd.backing.failing.copy().values()
    return told + machine.supervisor.lately(now)
