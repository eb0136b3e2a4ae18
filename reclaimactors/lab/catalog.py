"""Workloads by name: what clients do, and what that can and cannot show."""

from __future__ import annotations

from typing import TYPE_CHECKING

import attrs

from reclaimactors.lab import requests, workload
from reclaimactors.lab.ramp import WITHIN_S

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    from reclaimactors.lab.workload import Keys

__all__ = ["WORKLOADS", "Workload"]


async def _nothing(_: Keys) -> None:
    """Begin with an empty memory."""


@attrs.frozen
class Workload:
    """What clients do.

    Attributes:
        run: until the time is over.
        shows: in words, what that can and cannot show.
        instead: a workload that may show a difference where this one shows none, and why.
        prepare: what is done before, and not measured.
        round_s: a good length of a round; in that of the closed loops the budget is full half-way.
        scheduled: whether requests are due by a schedule, at shares of a limit; and whether
            built-in topologies have no store then, so that compressing is all there is to do.
    """

    run: Callable[[Keys], Awaitable[None]]
    shows: str
    instead: str
    prepare: Callable[[Keys], Awaitable[None]] = _nothing
    scheduled: bool = False
    round_s: float = 0.8


_LAUNCH = "--workload launch keeps all in RAM and asks in bursts, whoever waits"

WORKLOADS: Mapping[str, Workload] = {
    "launch": Workload(
        requests.launch,
        "In launch apps start and are used: requests come in bursts at"
        f" {requests.BURST:g} x what the first topology serves at its limit and at"
        f" {requests.CALM:g} x between them, whoever waits: that shows how late requests are"
        " served, and cannot show how much is served at the limit.",
        "--workload ramp finds how much each serves in time",
        requests.fill,
        scheduled=True,
    ),
    "steady": Workload(
        requests.steadily,
        "In steady requests come at"
        f" {requests.STEADY:g} x what the first topology serves at its limit, whoever waits: that"
        " shows how late they are served under an even load, and cannot show what becomes of a"
        " burst.",
        _LAUNCH,
        requests.fill,
        scheduled=True,
    ),
    "ramp": Workload(
        requests.ramp,
        "In ramp requests come at"
        f" {requests.RAMP[0]:g} to {requests.RAMP[-1]:g} x what the first topology serves at its"
        f" limit, one rate after another, whoever waits: that shows at which rate 99 of 100 are no"
        f" more than {WITHIN_S * 1e3:.0f} ms late, and cannot show a difference smaller than that"
        " between two rates.",
        "--workload launch asks in bursts, and shows how late each request is",
        requests.fill,
        scheduled=True,
        round_s=2.0,
    ),
    "eater": Workload(
        workload.eater,
        "Clients of eater put and read as fast as they are served: that shows what each design"
        " serves at its limit and who waits for room, and cannot show what a queue gains in a"
        " burst, because clients that wait send less. Where a file is behind the pool, most of the"
        " work is storing, which is the same in all designs.",
        _LAUNCH,
    ),
    "writer": Workload(
        workload.writer,
        "Clients of writer put as fast as they are served, and read nothing: that shows how much"
        " reclaim frees at its limit, and cannot show what a reader finds.",
        _LAUNCH,
    ),
    "scan": Workload(
        workload.scan,
        "Clients of scan read all keys in order, again and again: that shows what reading back"
        " costs where nothing is read again soon, and cannot show how fast puts are served, or"
        " whether a policy keeps what is hot.",
        _LAUNCH,
    ),
    "phases": Workload(
        workload.phases,
        "Clients of phases work in the keys of one app, then of another, as fast as they are"
        " served: that shows how fast apps switch, and cannot show what is done in the pauses that"
        " a user makes.",
        _LAUNCH,
    ),
}
