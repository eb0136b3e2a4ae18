"""Arrivals by a schedule: a load that does not wait until the one before it was served.

A client in a closed loop asks again only once it was answered: it asks a slow memory less often,
and no line ever forms. Here requests are due at times that nothing holds up. Latency counts from
the time at which a request was due, so that waiting in line is part of it.
"""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

import anyio
import attrs

from reclaimactors.cpu import clock
from reclaimactors.lab.histogram import Histogram

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator

    from anyio.streams.memory import MemoryObjectReceiveStream, MemoryObjectSendStream

__all__ = ["Served", "bursts", "open_loop", "steady"]

CLIENTS = 8
LINE = 1000  #: requests in the stream at most; more are still due, and join it as it empties
LOOK_S = 0.001  #: until the feeder of a full stream looks again


@attrs.define(eq=False)
class Served:
    """What became of the requests of one open loop."""

    seconds: float = 0.0  #: for which requests were taken
    late: Histogram = attrs.field(factory=Histogram)  #: seconds from due to served

    @property
    def per_s(self) -> float:
        """Requests served in a second."""
        return self.late.count / self.seconds if self.seconds else 0.0


def steady(rate: float, seed: int) -> Iterator[float]:
    """Yield for ever when requests are due: a Poisson process.

    Args:
        rate: requests a second on average.
        seed: decides the gaps.

    Yields:
        Seconds from the start, ascending.
    """
    gap = random.Random(seed).expovariate  # noqa: S311 - no secret
    due = 0.0
    while True:
        due += gap(rate)
        yield due


def bursts(
    rate: float, seconds: float, calm_rate: float, calm_s: float, seed: int
) -> Iterator[float]:
    """Yield for ever when requests are due: bursts, and calm between them, each a Poisson process.

    Args:
        rate: requests a second in a burst, on average.
        seconds: how long a burst is; the first begins at once.
        calm_rate: requests a second between bursts, more than 0.
        calm_s: how long the calm between two bursts is.
        seed: decides the gaps.

    Yields:
        Seconds from the start, ascending.
    """
    in_burst = rate * seconds
    in_both = in_burst + calm_rate * calm_s
    for nr in steady(1.0, seed):  # how many are expected until then
        period, rest = divmod(nr, in_both)
        at = rest / rate if rest < in_burst else seconds + (rest - in_burst) / calm_rate
        yield period * (seconds + calm_s) + at


async def open_loop(
    due: Iterator[float],
    serve: Callable[[], Awaitable[None]],
    *,
    seconds: float,
    clients: int = CLIENTS,
) -> Served:
    """Serve requests first come first served as they become due; what is left at the end is lost.

    Args:
        due: when each request is due, in seconds from the start, ascending.
        serve: does what one request asks for.
        seconds: after which no request is taken any more.
        clients: tasks that serve at the same time.
    """
    served = Served()
    line, requests = anyio.create_memory_object_stream[float](LINE)
    started = clock.perf_counter()
    with line, requests:
        async with anyio.create_task_group() as tasks:
            for _ in range(clients):
                tasks.start_soon(_client, requests, serve, served)
            await _feed(line, due, started, started + seconds)
            served.seconds = clock.perf_counter() - started
            tasks.cancel_scope.cancel()
    return served


async def _feed(
    line: MemoryObjectSendStream[float], due: Iterator[float], started: float, ends: float
) -> None:
    """Put each request in line when it is due, or as soon as there is room in it after that."""
    at = started + next(due)
    while (now := clock.perf_counter()) < ends:
        try:
            while at <= now:
                line.send_nowait(at)
                at = started + next(due)
        except anyio.WouldBlock:
            await anyio.sleep(LOOK_S)
        else:
            await anyio.sleep(max(0.0, min(at, ends) - clock.perf_counter()))


async def _client(
    requests: MemoryObjectReceiveStream[float],
    serve: Callable[[], Awaitable[None]],
    served: Served,
) -> None:
    while True:
        at = await requests.receive()
        await serve()
        served.late.add(clock.perf_counter() - at)
