"""What Litestar's stores do, and what is peculiar to this one."""
# ruff: noqa: D103 - a test's name is its sentence

from __future__ import annotations

import asyncio  # noqa: TID251 - the virtual clock is one of its loops
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import TYPE_CHECKING

import anyio
import httpx
import pytest
from litestar import Litestar, Request, get
from litestar.middleware.session.server_side import ServerSideSessionConfig

import reclaimactors as ra
from reclaimactors.testing import VirtualClockLoop
from reclaimactors_litestar import ReclaimStore

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable

SPEC = {"budget": "1MiB", "swap": [], "compress": {"offload": "inline"}}


@pytest.fixture
async def memory() -> AsyncIterator[ra.Memory]:
    async with ra.open_memory(**SPEC) as memory:
        yield memory


def on_a_virtual_clock(main: Callable[[ReclaimStore], Awaitable[None]]) -> None:
    async def opened() -> None:
        async with ra.open_memory(**SPEC) as memory:
            await main(ReclaimStore(memory))

    with asyncio.Runner(loop_factory=VirtualClockLoop) as runner:
        runner.run(opened())


async def test_values(memory: ra.Memory) -> None:
    store = ReclaimStore(memory)
    assert await store.get("key") is None
    await store.set("key", "text: ä")
    await store.set("other", b"bytes")
    assert await store.get("key") == "text: ä".encode()
    assert await store.get("other", renew_for=10) == b"bytes"
    assert await store.expires_in("other") == -1  # what was not to end is not renewed
    assert await store.exists("key")
    await store.delete("key")
    await store.delete("key")
    assert not await store.exists("key")
    assert await store.expires_in("key") is None


@pytest.mark.parametrize("expires_in", [10, timedelta(seconds=10)])
def test_a_value_ends_at_its_time(expires_in: int | timedelta) -> None:
    async def main(store: ReclaimStore) -> None:
        await store.set("key", b"value", expires_in=expires_in)
        assert await store.expires_in("key") == 10
        await anyio.sleep(9.5)
        assert await store.expires_in("key") == 1
        assert await store.get("key") == b"value"
        await anyio.sleep(0.5)
        assert await store.get("key") is None
        assert not await store.exists("key")

    on_a_virtual_clock(main)


@pytest.mark.parametrize("renew_for", [10, timedelta(seconds=10)])
def test_a_read_renews_what_was_to_end(renew_for: int | timedelta) -> None:
    async def main(store: ReclaimStore) -> None:
        await store.set("key", b"value", expires_in=2)
        await anyio.sleep(1)
        assert await store.get("key", renew_for=renew_for) == b"value"
        assert await store.expires_in("key") == 10
        await anyio.sleep(9)
        assert await store.get("key") == b"value"
        await anyio.sleep(1)
        assert await store.get("key", renew_for=renew_for) is None

    on_a_virtual_clock(main)


async def test_namespaces_are_apart_and_go_with_the_one_that_they_are_in(memory: ra.Memory) -> None:
    root = ReclaimStore(memory)
    outer = root.with_namespace("outer")
    inner = outer.with_namespace("inner")
    beside = root.with_namespace("outer/inner")
    await memory.put("key", b"of the memory")
    for store in (root, outer, inner, beside):
        await store.set("key", store.namespace)
    assert await inner.get("key") == await beside.get("key") == b"outer/inner"
    await outer.delete_all()
    assert await inner.get("key") is None
    assert await root.get("key") == b""
    assert await beside.get("key") == b"outer/inner"
    await root.delete_all()
    assert memory.keys() == ["key"]


async def test_nothing_is_dropped_beyond_the_budget_but_by_a_cache(memory: ra.Memory) -> None:
    store, cache = ReclaimStore(memory), ReclaimStore(memory, ("cache",), discardable=True)
    for i in range(300):
        await store.set(f"{i}", f"value {i} " * 700, expires_in=3600)
        await cache.set(f"{i}", f"value {i} " * 700, expires_in=3600)
    assert memory.stats().pglazyfreed_pages > 0
    for i in range(300):
        assert await store.get(f"{i}") == b"value %d " % i * 700


async def test_sessions_and_cached_responses_of_an_application() -> None:
    calls = []

    @asynccontextmanager
    async def lifespan(app: Litestar) -> AsyncGenerator[None]:
        async with ra.open_memory(**SPEC) as memory:
            for name in ("sessions", "response_cache"):
                app.stores.register(name, ReclaimStore(memory, (name,)))
            yield
            assert {key[1][0] for key in memory.keys()} == {"sessions", "response_cache"}  # noqa: SIM118

    @get("/count")
    async def count(request: Request) -> int:
        request.session["count"] = request.session.get("count", 0) + 1
        return int(request.session["count"])

    @get("/cached", cache=60)
    async def cached() -> int:
        calls.append(1)
        return len(calls)

    sessions = ServerSideSessionConfig().middleware
    app = Litestar([count, cached], lifespan=[lifespan], middleware=[sessions])
    transport = httpx.ASGITransport(app)
    async with (
        app.lifespan(),
        httpx.AsyncClient(transport=transport, base_url="http://service") as client,
    ):
        assert [(await client.get("/count")).json() for _ in range(3)] == [1, 2, 3]
        assert [(await client.get("/cached")).json() for _ in range(3)] == [1, 1, 1]
