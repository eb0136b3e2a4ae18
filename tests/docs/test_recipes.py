"""The recipes of examples/README.md run, exactly as they are printed."""

from __future__ import annotations

import ast
import asyncio
import inspect
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import anyio
import httpx
import pytest

import reclaimactors as ra

EXAMPLES = Path(__file__).parents[2] / "examples"
README = (EXAMPLES / "README.md").read_text("utf-8")
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)

SECTIONS = {
    heading.strip(): BLOCK.findall(text)
    for heading, _, text in (
        part.partition("\n") for part in re.split(r"^## ", README, flags=re.MULTILINE)
    )
}


def blocks(words: str) -> list[str]:
    [found] = [code for heading, code in SECTIONS.items() if words in heading]
    return found


def module_of(code: str) -> ModuleType:
    module = ModuleType("recipe")
    exec(compile(code, "examples/README.md", "exec"), module.__dict__)
    return module


def run(*args: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-W", "error", *args],
        cwd=cwd, capture_output=True, text=True, check=False, timeout=50,
    )  # fmt: skip


def test_every_block_is_run_by_a_test_below():
    counts = {heading: len(code) for heading, code in SECTIONS.items() if code}
    assert list(counts.values()) == [1, 2, 1, 1, 2, 3]
    assert sum(counts.values()) == README.count("```python")


def test_the_table_names_every_example():
    named = set(re.findall(r"^\| `([\w./]+)` \|", README, re.MULTILINE))
    assert named == {path.name for path in EXAMPLES.glob("*.py")} | {"topologies/", "lab/README.md"}


def test_fixtures_of_every_scope_pass_in_strict_mode(tmp_path):
    [code] = blocks("pytest-asyncio")
    (tmp_path / "test_service.py").write_text(code, "utf-8")
    (tmp_path / "pytest.ini").write_text("[pytest]\nasyncio_default_fixture_loop_scope=function\n")
    plugins = ["-p", "asyncio", "-p", "no:anyio", "-p", "no:cacheprovider"]
    ended = run("-m", "pytest", "-q", *plugins, cwd=tmp_path)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "5 passed" in ended.stdout


async def test_a_service_opens_in_its_lifespan():
    code, shedding = blocks("lifespan")
    app = module_of(code).app
    shed = module_of(shedding).shed
    transport = httpx.ASGITransport(app)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=transport, base_url="http://service") as http,
    ):
        memory = app.state.memory
        assert (await http.put("/key", content=b"value")).status_code == 204
        assert (await http.get("/key")).content == b"value"
        with anyio.move_on_after(0) as scope:
            await shed(app, memory)
        assert scope.cancelled_caught
    assert memory.health().state == "closed"


async def test_a_scrape_says_what_the_memory_has():
    [code] = blocks("Metrics")
    said = await module_of(code).scrape()
    assert "reclaimactors_resident_bytes{" in said


async def test_a_cache_reads_each_file_and_holds_what_fits(tmp_path):
    [code] = blocks("loaded again")
    names = [str(tmp_path / f"{nr}.jpg") for nr in range(10)]
    for name in names:
        await anyio.Path(name).write_bytes(name.encode())
    assert await module_of(code).serve(names) == 2 * sum(map(len, names))


async def test_a_plain_function_reads_from_its_thread():
    code, _ = blocks("plain functions")
    app = module_of(code).app
    transport = httpx.ASGITransport(app)
    async with (
        ra.open_memory(budget="1MiB", swap=[]) as memory,
        httpx.AsyncClient(transport=transport, base_url="http://service") as http,
    ):
        app.state.memory = memory
        await memory.put("key", b"value")
        assert (await http.get("/key")).content == b"value"
        with pytest.raises(KeyError):
            await http.get("/nobody")


def test_a_thread_of_somebody_else_reads_by_the_loop(tmp_path):
    _, code = blocks("plain functions")
    script = tmp_path / "recipe.py"
    script.write_text(code, "utf-8")
    ended = run(script, cwd=tmp_path)
    assert (ended.returncode, ended.stderr) == (0, "")


async def test_the_cells_of_a_notebook_run_one_after_the_other_each_in_a_task_of_its_own():
    names: dict[str, object] = {}
    for cell in blocks("Notebooks"):
        flags = ast.PyCF_ALLOW_TOP_LEVEL_AWAIT
        code = compile(cell, "examples/README.md", "exec", flags=flags)
        running = eval(code, names)
        if inspect.iscoroutine(running):
            await asyncio.create_task(running)
    memory = names["memory"]
    assert isinstance(memory, ra.Memory)
    assert memory.health().state == "closed"


def test_commands_name_what_is_there():
    for module in re.findall(r"uvicorn [^`]*?(\w+):app", README):
        assert (EXAMPLES / f"{module}.py").is_file()
    events = set(re.findall(r"\(`(memory\.\w+)`\)", README))
    source = "".join(p.read_text("utf-8") for p in Path(ra.__file__).parent.rglob("*.py"))
    assert events
    for event in events:
        assert f'"{event}"' in source, event
