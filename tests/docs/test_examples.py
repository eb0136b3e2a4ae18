"""Every example runs, says what it should, and keeps its own promise; every topology is valid."""

from __future__ import annotations

import importlib
import subprocess
import sys
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import anyio
import httpx
import pytest

import reclaimactors as ra
from reclaimactors.policies.mglru import Mglru
from reclaimactors.topology import resolve

EXAMPLES = Path(__file__).parents[2] / "examples"
SCRIPTS = sorted(EXAMPLES.glob("*.py"))
TOPOLOGIES = sorted(EXAMPLES.glob("topologies/*.toml"))
SAYS = {
    "asgi_sessions.py": "sessions of",
    "custom_backend.py": "bytes are in SQLite",
    "custom_compressor.py": "with the dictionary",
    "custom_policy.py": "PlainLru: ",
    "quickstart.py": "1200 values",
    "tenants.py": "hog: 2500 values",
}


def python(*args: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-W", "error", *args],
        cwd=EXAMPLES.parent, capture_output=True, text=True, check=False, timeout=50,
    )  # fmt: skip


def test_there_are_examples():
    assert len(TOPOLOGIES) >= 4
    assert {script.name for script in SCRIPTS} == set(SAYS)


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_example_runs(script: Path):
    ended = python(script)
    assert ended.returncode == 0, ended.stderr
    assert ended.stderr == ""
    assert SAYS[script.name] in ended.stdout


async def test_the_web_service_refuses_puts_from_a_stall_until_there_is_headroom(monkeypatch):
    monkeypatch.syspath_prepend(EXAMPLES)
    service = importlib.import_module("asgi_sessions")
    app = service.app
    stalled, headroom = anyio.Event(), anyio.Event()

    class Pressed:
        """A memory whose callers stall when the test says so."""

        put_by = ()

        @asynccontextmanager
        async def pressure_trigger(self, kind, **_):
            assert kind == "some"
            yield self

        async def wait(self):
            nonlocal stalled
            await stalled.wait()
            stalled = anyio.Event()

        async def wait_for_headroom(self, nbytes):
            await headroom.wait()

        async def put(self, key, value):
            self.put_by += (key,)

        async def get(self, key):
            return b"{}"

    app.state.memory = memory = Pressed()
    transport = httpx.ASGITransport(app)
    async with (
        httpx.AsyncClient(transport=transport, base_url="http://service") as http,
        anyio.create_task_group() as tasks,
    ):
        tasks.start_soon(service.shed, app, memory)
        assert (await http.put("/sessions/a", content=b"a")).status_code == 204
        stalled.set()
        await anyio.wait_all_tasks_blocked()
        refused = await http.put("/sessions/b", content=b"b")
        assert (refused.status_code, refused.headers["retry-after"]) == (503, "1")
        assert (await http.get("/sessions/a")).status_code == 200
        headroom.set()
        await anyio.wait_all_tasks_blocked()
        assert (await http.put("/sessions/c", content=b"c")).status_code == 204
        tasks.cancel_scope.cancel()
    assert memory.put_by == ("a", "c")


class Buggy(Mglru):
    """A policy that ends the memory."""

    def isolate(self, nr):
        raise RuntimeError("a bug in my policy")


async def test_the_health_route_follows_the_memory(monkeypatch):
    monkeypatch.syspath_prepend(EXAMPLES)
    app = importlib.import_module("asgi_sessions").app
    transport = httpx.ASGITransport(app)
    opening = ra.open_memory(budget="1MiB", policy=Buggy(pages=256), swap=[])
    async with httpx.AsyncClient(transport=transport, base_url="http://service") as http:
        app.state.memory = memory = await opening.__aenter__()
        well = await http.get("/health")
        assert (well.status_code, well.json()["state"]) == (200, "open")
        stack = AsyncExitStack()
        stack.push_async_exit(opening)
        with pytest.raises(ra.ReclaimError, match="crashed"):  # noqa: PT012 - one statement would not do
            async with stack:
                await http.put("/sessions/a", content=b"a")
                memory.advise("a", ra.Advice.PAGEOUT)
                await anyio.sleep(60)
        ill = await http.get("/health")
        assert (ill.status_code, ill.json()["state"]) == (503, "crashed")
        assert "a bug in my policy" in ill.json()["reason"]
        refused = await http.get("/sessions/a")
        assert refused.status_code == 503
        assert "a bug in my policy" in refused.text


@pytest.mark.parametrize("name", ["custom_backend", "custom_compressor", "custom_policy"])
def test_example_plugin_passes_its_conformance_suite(name: str, tmp_path: Path):
    """As a plugin writer runs it: with none of this project's settings, so in strict mode."""
    settings = tmp_path / "pytest.ini"
    settings.write_text("[pytest]\nasyncio_default_fixture_loop_scope = function\n")
    ended = python(
        "-m", "pytest", "-q", "-p", "no:cacheprovider", "-c", settings, EXAMPLES / f"{name}.py"
    )  # fmt: skip
    assert ended.returncode == 0, ended.stdout
    assert " passed" in ended.stdout


@pytest.mark.parametrize("path", TOPOLOGIES, ids=lambda path: path.stem)
def test_topology_is_explained_by_check(path: Path):
    ended = python("-m", "reclaimactors", "check", path)
    assert ended.returncode == 0, ended.stderr
    assert ended.stderr == ""
    assert ended.stdout.startswith(f"{path.stem}: a budget of")


@pytest.mark.parametrize("path", TOPOLOGIES, ids=lambda path: path.stem)
async def test_topology_keeps_more_than_its_budget(path: Path):
    # The same machine a hundred times smaller, so that values of a few MiB outgrow it.
    budget = 1 << 20
    swap = [{"backend": spec.backend, "priority": spec.priority} for spec in resolve(path).swap]
    async with ra.open_memory(str(path), budget=budget, swap=swap) as memory:
        names = [f"{path.stem} {i} ".encode() for i in range(budget * 3 // 2 // 4500)]
        values = [(name * 1000)[:4500] for name in names]
        for i, value in enumerate(values):
            await memory.put(i, value)
        assert [await memory.get(i) for i in range(len(values))] == values
        assert memory.vmstat["pgsteal_anon"]
