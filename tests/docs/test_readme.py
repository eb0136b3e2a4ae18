"""The Python blocks of every README run, and what their commands name is there."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
import tomllib
from itertools import pairwise
from pathlib import Path

import pytest

from reclaimactors.topology import resolve

ROOT = Path(__file__).parents[2]
# But for examples/README.md, whose blocks are no scripts: see test_recipes.
PLACES = ["README.md", "examples/*/README.md", "plugins/*.md", "tests/bench/README.md"]
READMES = [path.read_text("utf-8") for place in PLACES for path in sorted(ROOT.glob(place))]
README = "\n".join(READMES)


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)


def commands() -> list[str]:
    """Every line of a shell block, without the comment behind it."""
    lines = [line for block in blocks("sh") for line in block.splitlines()]
    return [line.partition("  #")[0].strip() for line in lines if line.strip()]


def steps() -> list[list[str]]:
    """Every single command, as a list of its words."""
    return [shlex.split(step) for line in commands() for step in line.split("&&")]


def run(*args: str, **more) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        args, capture_output=True, text=True, check=False, timeout=50, cwd=ROOT, **more
    )


def test_the_readme_is_short():
    assert len(READMES[0].splitlines()) < 300


def test_there_are_blocks():
    assert len(blocks("python")) >= 3
    assert len(blocks("toml")) >= 1
    assert len(commands()) >= 5


@pytest.mark.parametrize("nr", range(len(blocks("python"))))
def test_python_block_runs(nr: int, tmp_path: Path):
    script = tmp_path / f"readme_{nr}.py"
    script.write_text(blocks("python")[nr], "utf-8")
    ended = run(sys.executable, "-W", "error", str(script))
    assert ended.returncode == 0, ended.stderr
    assert ended.stderr == ""
    assert not re.search(r"^0 ", ended.stdout, re.MULTILINE), "it shows that nothing happened"


@pytest.mark.parametrize("nr", range(len(blocks("toml"))))
def test_toml_block_is_a_topology_or_an_entry_point(nr: int, tmp_path: Path):
    text = blocks("toml")[nr]
    if "project" in tomllib.loads(text):
        assert "entry-points" in text
        return
    path = tmp_path / "readme.toml"
    path.write_text(text, "utf-8")
    resolve(path)


def test_the_two_commands_are_one_line_each_and_start_from_nothing():
    whole = [line for line in commands() if line.startswith("python3 -m venv .venv && ")]
    assert len(whole) == 2
    assert whole[0].endswith(".venv/bin/reclaimactors compare")
    assert whole[1].endswith(".venv/bin/python -m pytest")


def test_what_is_installed_exists():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    installs = [step for step in steps() if step[1:4] == ["-m", "pip", "install"]]
    assert installs
    begun = [step[3] for step in steps() if step[1:2] == ["new-plugin"]]  # each writes a folder
    written = {f"./reclaimactors-{name.replace('_', '-')}" for name in begun}
    for step in installs:
        for before, word in pairwise(step):
            if before == "-e" and word.partition("[")[0] not in written:
                assert (ROOT / word / "pyproject.toml").is_file(), word
            if before == "--group":
                assert word in project["dependency-groups"], word


def test_programs_exist():
    known = {"python3", "python", "reclaimactors", "pip", "pytest", ".ci/run"}
    for step in steps():
        words = [word for word in step if not re.fullmatch(r"[A-Z_]+=.*", word)]  # VARIABLE=value
        program = words[0].removeprefix(".venv/bin/")
        assert program in known, step
        if program == ".ci/run":
            assert (ROOT / program).stat().st_mode & 0o100
        for word in words[1:]:
            if word.endswith((".py", ".toml")):
                assert (ROOT / word).is_file(), word


def test_options_of_the_command_line_exist():
    for step in steps():
        if not step[0].endswith("reclaimactors") or len(step) == 1:
            continue
        ended = run(sys.executable, "-m", "reclaimactors", step[1], "--help",
                    env={"COLUMNS": "200", "PATH": "/usr/bin:/bin"})  # fmt: skip
        assert ended.returncode == 0, step
        for word in step[2:]:
            if word.startswith("--"):
                assert word in ended.stdout, step
        if step[1] == "check":
            resolve(step[2])


def test_paths_in_the_text_exist():
    for path in re.findall(r"`((?:reclaimactors|tests|examples|plugins)/[\w./-]+)`", README):
        assert (ROOT / path).exists(), path


def test_names_in_the_text_exist():
    import reclaimactors as ra
    import reclaimactors.testing as kit

    for name in re.findall(r"`ra\.(\w+)", README):
        assert hasattr(ra, name), name
    for name in re.findall(r"`(?:reclaimactors\.)?testing\.(\w+)", README):
        assert hasattr(kit, name), name
