"""Print what clients of a web service feel: the sessions of examples/asgi_sessions.py.

    python tests/bench/service.py [--rounds 3] [--seconds 3] [--names NAME ...]

The application is served by uvicorn in a process of its own, over one store at a time: the memory,
a zict LRU over LMDB, diskcache, a dict. Requests come from another process on eight connections
that stay open. A session is a page of 8 KiB that lz4 about halves; 1.3 x a budget of 64 MiB is
alive; three of ten requests put one, the others get one, drawn by zipf, and compare its bytes.

`saturation` is what is served with the clients never idle. Then requests are due by a schedule (a
Poisson process), at half and at three quarters of what the service over LMDB served at saturation
in this round, the same rate for all; latency is from the time that each was due. Figures are
medians of the rounds; ratios are of one round each, with the least and the most. A store that
answers without awaiting anything keeps the loop while it reads and writes; that shows here, too.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import random
import socket
import statistics
import subprocess
import sys
import tempfile
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[2] / "examples"))

import peers
from hot_paths import real_pages
from table import machine

from reclaimactors.lab.arrivals import open_loop, steady

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

BUDGET = 64 << 20
SIZE = 8192
PUTS = 0.3
CONNECTIONS = 8
NAMES = ("zict lmdb", "reclaimactors", "diskcache", "dict")
SHARES = (0.5, 0.75)
MORE = 1_000_000  #: requests a second, more than anybody serves


# -- the service -----------------------------------------------------------------------------------


@asynccontextmanager
async def opened(name: str) -> AsyncGenerator[Any]:
    """Open a store that keeps BUDGET bytes in memory and the rest on disk; a dict keeps all."""
    with tempfile.TemporaryDirectory(dir="/var/tmp") as folder:
        if name == "dict":
            yield peers.Mapped({}, Path(folder))
        else:
            async with peers.opened(name, BUDGET, Path(folder)) as store:
                yield store


async def serve(name: str) -> None:
    """Serve the application over a store, on the socket that standard input is."""
    import asgi_sessions
    import uvicorn

    @asynccontextmanager
    async def lifespan(app: Any) -> AsyncGenerator[None]:
        async with opened(name) as app.state.memory:
            yield

    asgi_sessions.app.router.lifespan_context = lifespan
    config = uvicorn.Config(asgi_sessions.app, log_level="error", access_log=False)
    await uvicorn.Server(config).serve([socket.socket(fileno=sys.stdin.fileno())])


# -- its clients -----------------------------------------------------------------------------------


class Connection:
    """One connection that stays open: a request at a time."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer

    async def request(self, method: str, path: str, body: bytes = b"") -> tuple[int, bytes]:
        """Return status and body of the answer."""
        head = f"{method} {path} HTTP/1.1\r\nhost: service\r\ncontent-length: {len(body)}\r\n\r\n"
        self._writer.write(head.encode() + body)
        answer = (await self._reader.readuntil(b"\r\n\r\n")).lower()
        status = int(answer[9:12])
        at = answer.find(b"content-length: ")
        size = int(answer[at + 16 : answer.index(b"\r", at)]) if at >= 0 else 0
        return status, await self._reader.readexactly(size)


class Clients:
    """Puts of the sessions in turn, and gets by zipf; every value is known."""

    def __init__(self, pages: list[bytes], live: int) -> None:
        self._live = live
        self._bodies = [a + b for a, b in itertools.pairwise(pages)]
        self._idle: asyncio.LifoQueue[Connection] = asyncio.LifoQueue()
        self._puts = 0
        rng = random.Random(1)
        weights = list(itertools.accumulate(1 / rank for rank in range(1, live + 1)))
        drawn = rng.choices(rng.sample(range(live), live), cum_weights=weights, k=50_000)
        self._next = itertools.cycle([None if rng.random() < PUTS else key for key in drawn])

    async def connect(self, address: tuple[str, int], stack: AsyncExitStack) -> None:
        """Connect, anew if need be: the end of a run cuts off the answers to its last requests."""
        while not self._idle.empty():
            self._idle.get_nowait()
        for _ in range(CONNECTIONS):
            reader, writer = await asyncio.open_connection(*address)
            stack.callback(writer.close)
            self._idle.put_nowait(Connection(reader, writer))

    def _body(self, key: int, put: int) -> bytes:
        return self._bodies[(key + put // self._live) % len(self._bodies)]

    async def put(self) -> None:
        put, self._puts = self._puts, self._puts + 1
        key = put % self._live
        status, answer = await self._request("PUT", key, self._body(key, put))
        assert status == 204, answer

    async def serve(self) -> None:
        key = next(self._next)
        if key is None:
            await self.put()
            return
        status, answer = await self._request("GET", key)
        assert status == 200, answer
        last = (self._puts - 1 - key) // self._live * self._live + key
        assert answer in {self._body(key, put) for put in (last, last - self._live)}, key

    async def _request(self, method: str, key: int, body: bytes = b"") -> tuple[int, bytes]:
        connection = await self._idle.get()
        try:
            return await connection.request(method, f"/sessions/{key}", body)
        finally:
            self._idle.put_nowait(connection)

    async def fill(self) -> None:
        async def some() -> None:
            while self._puts < self._live:
                await self.put()

        await asyncio.gather(*(some() for _ in range(CONNECTIONS)))


async def run(clients: Clients, rate: float, seconds: float) -> dict[str, float]:
    """Send requests at a rate; return what was felt."""
    served = await open_loop(steady(rate, 1), clients.serve, seconds=seconds, clients=CONNECTIONS)
    late = [served.late.quantile(share) * 1e3 for share in (0.5, 0.99)]
    return {"rate": rate, "served/s": served.per_s, "p50 ms": late[0], "p99 ms": late[1]}


async def drive(
    address: tuple[str, int], rates: list[float], seconds: float
) -> list[dict[str, float]]:
    """Fill the store; return what was felt at saturation, and at SHARES of it or at `rates`."""
    clients = Clients(real_pages(2000), BUDGET * 13 // 10 // SIZE)
    async with AsyncExitStack() as stack:
        await clients.connect(address, stack)
        await clients.fill()
        rows = [await run(clients, MORE, seconds)]
        for rate in rates or [share * rows[0]["served/s"] for share in SHARES]:
            await clients.connect(address, stack)
            rows.append(await run(clients, rate, seconds))
    return rows


def measure(name: str, rates: list[float], seconds: float) -> list[dict[str, float]] | None:
    """Return what `drive` says of a service over one store; None if a package is not installed."""
    listening = socket.create_server(("127.0.0.1", 0), backlog=64)
    address = listening.getsockname()
    command = [sys.executable, __file__, "--serve", name]
    with subprocess.Popen(command, stdin=listening, stderr=subprocess.PIPE, text=True) as service:
        listening.close()
        try:
            return asyncio.run(drive(address, rates, seconds))
        except (ConnectionError, asyncio.IncompleteReadError) as exc:
            service.kill()
            _, errors = service.communicate()
            if "ModuleNotFoundError" in errors:
                return None
            raise RuntimeError(f"{name}: {errors[-2000:]}") from exc
        finally:
            service.terminate()


def report(rounds: list[dict[str, list[dict[str, float]]]]) -> None:
    """Print medians, and the ratios over zict with LMDB."""
    labels = ["saturation", *(f"{share:.0%} of what zict lmdb serves" for share in SHARES)]
    print(f"{'':<44}{'served/s':>10}{'p50 ms':>8}{'p99 ms':>8}")
    for name in rounds[0]:
        for i, label in enumerate(labels):
            rows = [found[name][i] for found in rounds]
            per_s, p50, p99 = (
                statistics.median(row[column] for row in rows)
                for column in ("served/s", "p50 ms", "p99 ms")
            )
            print(f"{name + ', ' + label:<44}{per_s:>10,.0f}{p50:>8.2f}{p99:>8.2f}")
    if {"zict lmdb", "reclaimactors"} <= rounds[0].keys():
        for i, label in enumerate(labels):
            column = "p99 ms" if i else "served/s"
            ratios = [
                found["reclaimactors"][i][column] / found["zict lmdb"][i][column]
                for found in rounds
            ]
            spread = f"{min(ratios):.2f} to {max(ratios):.2f}"
            median = statistics.median(ratios)
            print(f"{column} over zict lmdb, {label}: {median:.2f} ({spread})")


def main(names: list[str], rounds: int, seconds: float) -> None:
    print(machine())
    all_found = []
    for _ in range(rounds):
        found: dict[str, list[dict[str, float]]] = {}
        rates: list[float] = []
        for name in sorted(names, key=lambda name: name != "zict lmdb"):
            print(f"{name:<24}", end="\r", file=sys.stderr)
            rows = measure(name, rates, seconds)
            if rows is None:
                print(f"{name} is not installed: skipped")
                continue
            found[name] = rows
            rates = rates or [row["rate"] for row in rows[1:]]
        all_found.append(found)
    report(all_found)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--names", nargs="+", default=NAMES, choices=NAMES)
    parser.add_argument("--serve", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        asyncio.run(serve(options.serve))
    else:
        main(options.names, options.rounds, options.seconds)
