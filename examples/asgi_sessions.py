"""A web service whose session data outgrows its memory budget.

``PUT /sessions/NAME`` keeps the body, ``GET`` and ``DELETE`` are what they look like,
``/stats`` says where the bytes are, and ``/health`` answers 200 as long as the memory serves: a
load balancer or an orchestrator asks it. The memory is opened and closed with the application.

Where puts come faster than memory can be reclaimed, they would wait longer and longer. So once
callers have waited for 0.1 s of half a second, PUT is answered 503 until there is headroom again;
what is stored is still read and deleted.

One process serves all clients: with ``--workers 2`` each process has sessions of its own, and every
other request finds none (README.md in this folder says what to do instead).

Serve it:    ``uvicorn asgi_sessions:app`` in this folder (pip install starlette uvicorn)
Try it out:  ``python examples/asgi_sessions.py`` drives it with eight clients and prints counters
             (pip install starlette httpx)
"""

from __future__ import annotations

import asyncio
import json
from contextlib import asynccontextmanager, suppress
from random import Random
from typing import TYPE_CHECKING

import anyio
import attrs
import httpx
from starlette.applications import Starlette
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

import reclaimactors as ra

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from starlette.requests import Request

CLIENTS, SESSIONS_EACH, BUDGET = 8, 150, "4MiB"
STALL_US, WINDOW_US = 100_000, 500_000  # so much of that is too much
HEADROOM = 256 * 1024  # bytes that are free again before puts are taken again


# -- the service -----------------------------------------------------------------------------------


@asynccontextmanager
async def lifespan(app: Starlette) -> AsyncIterator[None]:
    async with (
        ra.open_memory("kcompressd", budget=BUDGET) as memory,
        asyncio.TaskGroup() as tasks,
    ):
        app.state.memory = memory
        watching = tasks.create_task(shed(app, memory))
        yield
        watching.cancel()


async def shed(app: Starlette, memory: ra.Memory) -> None:
    """Refuse puts from the time that callers stall, until there is headroom."""
    trigger = memory.pressure_trigger("some", stall_us=STALL_US, window_us=WINDOW_US)
    with suppress(anyio.ClosedResourceError):  # a crash has ended the memory: /health says why
        async with trigger as stalled:
            while True:
                await stalled.wait()
                app.state.full = True
                await memory.wait_for_headroom(HEADROOM)
                app.state.full = False


async def session(request: Request) -> Response:
    memory: ra.Memory = request.app.state.memory
    key = request.path_params["name"]
    try:
        if request.method == "PUT":
            if request.app.state.full:
                return Response("busy", status_code=503, headers={"Retry-After": "1"})
            await memory.put(key, await request.body())
            return Response(status_code=204)
        if request.method == "DELETE":
            await memory.delete(key)
            return Response(status_code=204)
        return Response(await memory.get(key), media_type="application/json")
    except KeyError:
        return Response("no such session", status_code=404)
    except ra.OutOfMemory as exc:  # larger than the budget, or swap is full as well
        return Response(str(exc), status_code=507)
    except ra.BackendError as exc:  # the swap file cannot be read now; the session is not lost
        return Response(str(exc), status_code=503)
    except anyio.ClosedResourceError as exc:  # a crash has ended the memory: it says which
        return Response(str(exc), status_code=503)


async def stats(request: Request) -> Response:
    memory: ra.Memory = request.app.state.memory
    counters = {name: count for name, count in memory.vmstat.items() if count}
    return JSONResponse({"usage": attrs.asdict(memory.usage()), "vmstat": counters})


async def health(request: Request) -> Response:
    memory: ra.Memory = request.app.state.memory
    health = memory.health()
    serves = health.state in {"open", "degraded"}
    return JSONResponse(attrs.asdict(health), status_code=200 if serves else 503)


app = Starlette(
    routes=[
        Route("/sessions/{name}", session, methods=["GET", "PUT", "DELETE"]),
        Route("/stats", stats),
        Route("/health", health),
    ],
    lifespan=lifespan,
)
app.state.full = False


# -- trying it out ---------------------------------------------------------------------------------


def basket(client: int, number: int) -> bytes:
    """Return some session's JSON, about 8 KiB."""
    chance = Random(f"{client}/{number}")
    goods = [{"id": chance.randrange(10**6), "name": f"article {i}", "n": 1} for i in range(180)]
    return json.dumps({"user": f"{client}-{number}", "basket": goods}).encode()


async def put(http: httpx.AsyncClient, name: str, content: bytes) -> httpx.Response:
    """Put a session, again as long as the service is busy."""
    while True:
        answer = await http.put(f"/sessions/{name}", content=content)
        if answer.status_code != 503:
            return answer
        await asyncio.sleep(0.01)  # as we are both one process; a client would wait longer


async def shop(http: httpx.AsyncClient, client: int) -> None:
    for number in range(SESSIONS_EACH):
        answer = await put(http, f"{client}-{number}", basket(client, number))
        assert answer.status_code == 204, answer.text
    for number in range(SESSIONS_EACH):
        answer = await http.get(f"/sessions/{client}-{number}")
        assert answer.content == basket(client, number), f"session {client}-{number} differs"


async def try_it_out() -> None:
    transport = httpx.ASGITransport(app)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=transport, base_url="http://service") as http,
    ):
        async with asyncio.TaskGroup() as clients:
            for client in range(CLIENTS):
                clients.create_task(shop(http, client))
        assert (await http.get("/sessions/nobody")).status_code == 404
        assert (await put(http, "big", bytes(5 << 20))).status_code == 507
        stats = (await http.get("/stats")).json()
        assert (await http.get("/health")).status_code == 200
    size = sum(len(basket(c, n)) for c in range(CLIENTS) for n in range(SESSIONS_EACH))
    print(f"{CLIENTS * SESSIONS_EACH} sessions of {size:,} bytes in all, every one read back")
    print(*(f"{name:12} {value:>12,}" for name, value in stats["usage"].items()), sep="\n")
    for name in ("pgsteal_anon", "allocstall_normal", "zswpout", "pswpout", "zswpin", "pswpin"):
        print(f"{name:20} {stats['vmstat'].get(name, 0):>12,}")


if __name__ == "__main__":
    asyncio.run(try_it_out())
