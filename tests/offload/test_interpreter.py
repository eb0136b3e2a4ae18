"""Workers are started as this interpreter was, and never as anything else."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
import zipapp
from typing import TYPE_CHECKING

import pytest

from reclaimactors.offload import interpreter

if TYPE_CHECKING:
    from pathlib import Path

PROGRAM = """
import asyncio, logging, sys
import reclaimactors as ra

lines = []
class Keep(logging.Handler):
    def emit(self, record):
        lines.append(record.getMessage())
logging.getLogger("reclaimactors").addHandler(Keep(logging.WARNING))

async def main():
    compress = {"offload": "process"}
    async with ra.open_memory("kcompressd", budget="1MiB", compress=compress) as memory:
        for key in range(600):
            await memory.put(key, b"%d " % key * 900)
        offload = memory._machine.offload
        async with asyncio.timeout(40):
            while not lines and not any(worker.up for worker in offload._crew.all):
                await asyncio.sleep(0.01)
        assert await memory.get(5) == b"5 " * 900
        print("threads" if lines else "worker", *lines)

asyncio.run(main())
"""

SHADOWS = "mmap", "signal", "struct", "pickle", "socket", "attrs", "reclaimactors", "sitecustomize"


@pytest.fixture
def here(tmp_path):
    """A folder with files that are named like what a worker imports, and tell when they run."""
    folder = tmp_path / "here"
    folder.mkdir()
    for name in SHADOWS:
        (folder / f"{name}.py").write_text(
            f"open({str(tmp_path / 'ran')!r}, 'a').write({name!r})\n"
        )
    (tmp_path / "ran").write_text("")
    return folder


def ran(here: Path) -> str:
    return (here.parent / "ran").read_text()


def run(here: Path, *command: str, program: str | None = None, **env: str) -> str:
    """Run Python with these arguments in a folder; return what the program said."""
    done = subprocess.run(
        [sys.executable, *command], cwd=here, env={**os.environ, **env}, input=program,
        capture_output=True, text=True, timeout=50, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.fixture
def app(tmp_path):
    folder = tmp_path / "app"
    folder.mkdir()
    (folder / "service.py").write_text(PROGRAM)
    return folder


@pytest.mark.parametrize(
    "flags",
    [[], ["-I"], ["-P"], ["-E"], ["-s"], ["-O"], ["-OO"], ["-W", "error"], ["-X", "dev"], ["-bb"]],
)
def test_nothing_of_the_current_folder_runs_whatever_the_flags(here, app, flags):
    assert run(here, *flags, str(app / "service.py")) == "worker"
    assert ran(here) == ""


def test_nor_where_the_program_comes_from_a_zip_by_a_relative_name(here, app):
    (app / "service.py").rename(app / "__main__.py")
    zipapp.create_archive(app, here / "app.pyz")
    assert run(here, "app.pyz") == "worker"
    assert ran(here) == ""


def test_nor_where_it_comes_from_stdin_with_a_safe_path(here):
    assert run(here, "-", program=PROGRAM, PYTHONSAFEPATH="1") == "worker"
    assert ran(here) == ""


def test_nor_from_a_folder_that_came_first_at_run_time(here, app):
    """The standard library comes before it, as it did when this process imported it."""
    opened = "        for key in"
    program = PROGRAM.replace(opened, f"        sys.path.insert(0, {str(here)!r})\n{opened}")
    for name in ("attrs", "reclaimactors"):  # these are the program's to say
        (here / f"{name}.py").unlink()
    (app / "service.py").write_text(program)
    assert run(app, "service.py") == "worker"
    assert ran(here) == ""


def test_run_by_m(here):
    for name in SHADOWS:
        (here / f"{name}.py").unlink()
    (here / "service.py").write_text(PROGRAM)
    assert run(here, "-m", "service") == "worker"


def test_a_compressor_beside_the_program_is_found_and_so_is_one_on_a_path_of_run_time(tmp_path):
    plugin = "from reclaimactors.compressors.null import Null as Mine\n"
    (tmp_path / "beside.py").write_text(plugin)
    (tmp_path / "later").mkdir()
    (tmp_path / "later" / "added.py").write_text(plugin)
    for module, first in (("beside", ""), ("added", "import sys; sys.path.append('later')\n")):
        program = first + PROGRAM.replace('"process"', f'"process", "compressor": "{module}:Mine"')
        (tmp_path / "service.py").write_text(program)
        assert run(tmp_path, "service.py") == "worker"


# what is asked before it is started


def launches(tmp_path: Path, name: str, body: str) -> Path:
    """Return an executable that notes each of its starts."""
    script = tmp_path / name
    script.write_text(
        f"#!/bin/sh\necho started >> {tmp_path / 'starts'}\n{textwrap.dedent(body)}\n"
    )
    script.chmod(0o755)
    (tmp_path / "starts").write_text("")
    return script


def starts(tmp_path: Path) -> int:
    return (tmp_path / "starts").read_text().count("started")


@pytest.mark.parametrize("name", ["myapp", "uwsgi", "pythonista", "python-app", "gunicorn3.11"])
async def test_what_is_not_named_like_a_python_is_not_started_at_all(monkeypatch, tmp_path, name):
    monkeypatch.setattr(sys, "executable", str(launches(tmp_path, name, "exec sleep 60")))
    assert "not named like a Python" in await interpreter.unusable()
    assert starts(tmp_path) == 0


@pytest.mark.parametrize(
    "name", ["python", "python3", "python3.11", "python3.13t", "pypy3", "Python"]
)
async def test_what_is_named_like_one_is_asked_once(monkeypatch, tmp_path, name):
    script = launches(tmp_path, name, f'exec {sys.executable} "$@"')
    monkeypatch.setattr(sys, "executable", str(script))
    assert await interpreter.unusable() == ""
    assert await interpreter.unusable() == ""
    assert starts(tmp_path) == 1


@pytest.mark.parametrize("body", ["exit 1", "echo an application", "echo a Python, cpython-27"])
async def test_what_answers_something_else_is_no_python_like_this(monkeypatch, tmp_path, body):
    monkeypatch.setattr(sys, "executable", str(launches(tmp_path, "python", body)))
    for _ in range(2):
        assert "was asked what it is" in await interpreter.unusable()
    assert starts(tmp_path) == 1


async def test_what_does_not_answer_is_ended_and_asked_again_later(monkeypatch, tmp_path):
    script, python = launches(tmp_path, "python", "exec sleep 60"), sys.executable
    monkeypatch.setattr(sys, "executable", str(script))
    monkeypatch.setattr(interpreter, "ASK_S", 0.05)
    with pytest.raises(TimeoutError):
        await interpreter.unusable()
    launches(tmp_path, "python", f'exec {python} "$@"')
    monkeypatch.setattr(interpreter, "ASK_S", 30)
    assert await interpreter.unusable() == ""


@pytest.mark.parametrize("how", ["frozen", "compiled"])
async def test_a_frozen_program_is_not_started_once_more(monkeypatch, tmp_path, how):
    monkeypatch.setattr(sys, "executable", str(launches(tmp_path, "python", "exec sleep 60")))
    if how == "frozen":
        monkeypatch.setattr(sys, "frozen", True, raising=False)
    else:
        monkeypatch.setattr(sys.modules["__main__"], "__compiled__", True, raising=False)
    assert "frozen" in await interpreter.unusable()
    assert starts(tmp_path) == 0


def test_under_an_application_that_embeds_python_threads_compress(here, app, tmp_path):
    script = launches(tmp_path, "myapp", "exec sleep 60")
    program = f"import sys; sys.executable = {str(script)!r}\n" + PROGRAM
    (app / "service.py").write_text(program)
    said = run(here, str(app / "service.py"))
    assert said.startswith("threads offload.refused")
    assert said.count("offload.") == 1
    assert starts(tmp_path) == 0
