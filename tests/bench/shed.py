"""A web service that gets more than it can compress: with and without refusing what it cannot take.

    python tests/bench/shed.py [SECONDS]        default: 4 for each, some 20 seconds

Requests are due at fixed times, whatever became of those before them, and an answer's latency is
from the time that its request was due: who waits in line has waited. Half of the requests put a
session of 8 KiB, of a program that deletes no old ones; half of them read one. Puts come at twice
the rate at which they can be compressed. The service is `examples/asgi_sessions.py` with a
compressor that is made slow; without its trigger nothing is refused.
"""

from __future__ import annotations

import random
import sys
from contextlib import asynccontextmanager
from pathlib import Path
from statistics import quantiles
from time import perf_counter
from typing import TYPE_CHECKING

import anyio
import attrs
import httpx

import reclaimactors as ra
from reclaimactors.compressors.lz4 import Lz4

sys.path.insert(0, str(Path(__file__).parents[2] / "examples"))

import asgi_sessions

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from starlette.applications import Starlette

MS_A_PAGE = 5.0
REQUESTS_A_S = 400  #: half of them puts of two pages


class Slow(Lz4):
    """So many ms of wall time a page, of a worker that shares its CPU with others, say."""

    name = "slow"

    def compress(self, data: bytes) -> bytes:
        """Compress, late."""
        ends = perf_counter() + MS_A_PAGE / 1000
        while perf_counter() < ends:
            pass
        return super().compress(data)


@attrs.define
class Answers:
    """What became of the requests."""

    put_ms: list[float] = attrs.Factory(list[float])
    read_ms: list[float] = attrs.Factory(list[float])
    refused: int = 0


@asynccontextmanager
async def service(*, sheds: bool) -> AsyncGenerator[Starlette]:
    """The application over a memory of its own; it sheds or not."""
    app = asgi_sessions.app
    spec = {"compress": {"compressor": "shed:Slow"}}
    async with (
        ra.open_memory("kcompressd", budget="4MiB", **spec) as memory,
        anyio.create_task_group() as tasks,
    ):
        app.state.memory, app.state.full = memory, False
        if sheds:
            tasks.start_soon(asgi_sessions.shed, app, memory)
        yield app
        tasks.cancel_scope.cancel()


async def run(*, sheds: bool, seconds: float) -> Answers:
    """Send requests when they are due for so many seconds, and wait for all answers."""
    answers, chance = Answers(), random.Random(1)
    stored: list[str] = []

    async def request(due: float, number: int) -> None:
        if number % 2:
            key = f"/sessions/{chance.choice(stored)}" if stored else "/stats"
            answer = await http.get(key)
            answers.read_ms.append(1000 * (perf_counter() - due))
            return
        body = asgi_sessions.basket(0, number)
        answer = await http.put(f"/sessions/{number}", content=body)
        if answer.status_code == 503:
            answers.refused += 1
        else:
            stored.append(str(number))
            answers.put_ms.append(1000 * (perf_counter() - due))

    async with service(sheds=sheds) as app:
        transport = httpx.ASGITransport(app)
        async with (
            httpx.AsyncClient(transport=transport, base_url="http://service") as http,
            anyio.create_task_group() as tasks,
        ):
            began = perf_counter()
            for number in range(int(seconds * REQUESTS_A_S)):
                due = began + number / REQUESTS_A_S
                await anyio.sleep(max(0.0, due - perf_counter()))
                tasks.start_soon(request, due, number)
    return answers


def row(name: str, answers: Answers) -> None:
    """Print one row."""
    puts, reads = (quantiles(ms, n=100) for ms in (answers.put_ms, answers.read_ms))
    print(
        f"{name:<10}{len(answers.put_ms):>8}{answers.refused:>9}"
        f"{puts[49]:>10.1f}{puts[98]:>10.1f}{reads[49]:>10.1f}{reads[98]:>10.1f}",
        flush=True,
    )


async def main(seconds: float) -> None:
    print(
        f"{'ms':<10}{'stored':>8}{'refused':>9}{'put p50':>10}{'p99':>10}{'get p50':>10}{'p99':>10}"
    )
    for _ in range(2):
        for name, sheds in (("waits", False), ("sheds", True)):
            row(name, await run(sheds=sheds, seconds=seconds))


if __name__ == "__main__":
    anyio.run(main, float(sys.argv[1]) if len(sys.argv) > 1 else 4.0)
