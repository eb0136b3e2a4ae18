"""What is imported when: as much as can be before the event loop runs, and the rest is said."""

from __future__ import annotations

import subprocess
import sys

ENTER = """
import asyncio, logging, sys
logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
{top}

async def main():
    {inside}
    async with opening as memory:
        await memory.put("a", b"value")
        print("late:", *sorted(name for name in set(sys.modules) - before
                               if name.partition(".")[0] in ("reclaimactors", "lz4")))

asyncio.run(main())
"""
CALL = 'opening = {}open_memory("kcompressd", budget="1MiB"); before = set(sys.modules)'


def run(top: str, inside: str = "") -> str:
    program = ENTER.format(top=top, inside=inside or "pass")
    ended = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


def test_what_is_opened_before_the_loop_runs_imports_nothing_in_it():
    said = run("import reclaimactors as ra\n" + CALL.format("ra."))
    assert said == "late:\n"


def test_what_is_opened_in_the_loop_imports_its_plugins_at_the_call():
    said = run("from reclaimactors import open_memory", CALL.format(""))
    assert said == "late:\n"


def test_a_package_that_is_imported_in_the_loop_says_so_and_what_helps():
    said = run("import reclaimactors as ra", CALL.format("ra."))
    line, late = said.splitlines()
    assert "package.imported_in_the_loop held_ms=" in line
    assert "say `from reclaimactors import open_memory` where the program's own imports" in line
    assert late == "late:"


def test_a_plugin_that_cannot_be_had_is_said_on_entering():
    program = """
import asyncio
import reclaimactors as ra
opening = ra.open_memory(swap=[{"backend": "no.such:plugin"}], budget="1MiB")
async def main():
    try:
        async with opening: pass
    except ra.PluginError as exc:
        print(exc)
asyncio.run(main())
"""
    ended = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    assert "there is no module 'no" in ended.stdout, ended.stderr
