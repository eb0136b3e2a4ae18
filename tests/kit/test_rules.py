"""What the suites say is in the contract, and they run wherever tests are run."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import reclaimactors
from reclaimactors.abc import Backend, Compressor, Policy
from reclaimactors.backends.memory import MemoryBackend
from reclaimactors.testing import (
    BackendTests,
    CompressorTests,
    ContractBroken,
    PolicyTests,
    run_checks,
    suite_of,
)
from reclaimactors.testing.rules import checks_of

SUITE = """
import pytest
import reclaimactors as ra
from reclaimactors.backends.memory import MemoryBackend
from reclaimactors.testing import BackendTests

class Half(MemoryBackend):
    async def load_many(self, slots):
        return (await super().load_many(slots))[: len(slots) // 2 + 1]

class TestWhole(BackendTests):
    def make_backend(self):
        return MemoryBackend()

class TestHalf(BackendTests):
    def make_backend(self):
        return Half()

class TestSkipped(BackendTests):
    def make_backend(self):
        pytest.skip("there is no server here")

async def test_that_only_a_plugin_can_run():
    pass
"""


def words(text):
    return " ".join(text.split())


@pytest.mark.parametrize("suite", [CompressorTests, BackendTests, PolicyTests])
def test_every_check_quotes_the_contract_and_says_what_it_checks(suite):
    names = checks_of(suite)
    assert len(names) >= 12
    for name in names:
        check = getattr(suite, name)
        where, contract = check.rule
        documented = reclaimactors
        for part in where.split("."):
            documented = getattr(documented, part)
        assert words(contract) in words(documented.__doc__), f"{name} quotes what {where} lacks"
        assert check.__doc__, name


def test_every_rule_of_the_contracts_has_a_check():
    rules = [
        words(line.replace("- ", "", 1))
        for contract in (Compressor, Backend, Policy)
        for line in contract.__doc__.split("must keep these rules:\n\n")[1]
        .split("\n\n")[0]
        .split("    - ")
    ]
    quoted = {
        words(getattr(suite, name).rule[1])
        for suite in (CompressorTests, BackendTests, PolicyTests)
        for name in checks_of(suite)
    }
    unchecked = [rule for rule in rules if rule and not any(part in rule for part in quoted)]
    assert unchecked == [
        "It prints nothing: stdout and stderr belong to the program.",  # with "It can be pickled"
        "It raises BackendError (or any OSError), and BackendFull where there is no room.",  # with
        # those of store_many and load_many
    ]


def test_the_guide_names_checks_that_there_are():
    guide = Path(__file__).parents[2].joinpath("plugins", "README.md").read_text("utf-8")
    rows = re.findall(r"^\| (compressor|backend|policy) \| .* \| `(\w+)` \|$", guide, re.MULTILINE)
    suites = {"compressor": CompressorTests, "backend": BackendTests, "policy": PolicyTests}
    assert len(rows) > 20
    for kind, check in rows:
        assert f"test_{check}" in checks_of(suites[kind]), check
    page = Path(__file__).parents[2].joinpath("plugins", "network-stores.md").read_text("utf-8")
    checks = re.findall(r"^\| .* \| `(\w+)` \|$", page, re.MULTILINE)
    assert len(checks) > 7
    assert {f"test_{check}" for check in checks} <= {*checks_of(BackendTests)}
    for kind, suite in suites.items():
        assert re.search(rf"\b{len(checks_of(suite))}( checks)?\sof a {kind}", guide), kind


def test_kit_imports_without_the_test_tools():
    code = (
        "import sys; sys.modules.update(pytest=None, hypothesis=None); import reclaimactors.testing"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("plugin", ["anyio", "asyncio"])
def test_a_suite_runs_under_whichever_plugin_of_pytest(tmp_path, plugin):
    (tmp_path / "test_it.py").write_text(SUITE)
    settings = tmp_path / "pytest.ini"
    scope = "asyncio_default_fixture_loop_scope = function\n" if plugin == "asyncio" else ""
    settings.write_text(f"[pytest]\nfilterwarnings = error\n{plugin}_mode = auto\n{scope}")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-rs", "-p", "no:cacheprovider", "-c", settings,
         "-p", plugin, "-p", "reclaimactors.pytest_plugin", "-k",
         "first_and_last or nothing_to_do or large_batch or only_a_plugin", "."],
        cwd=tmp_path, capture_output=True, text=True, check=False,
        env=os.environ | {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},
    )  # fmt: skip
    said = done.stdout
    assert "there is no server here" in said
    assert "  seen: load_many was asked for 1500 slots and returned 751" in said
    assert "  what to do: return one bytes object for each slot" in said
    assert "def test_" not in said.partition("short test summary")[0]
    assert f"2 failed, {5 if plugin == 'asyncio' else 6} passed, 3 skipped" in said


def test_a_failure_has_its_parts():
    class Wrong(Backend):
        async def store_many(self, items):
            raise ValueError("cannot")

        async def load_many(self, slots):
            return []

    (finding,) = run_checks(suite_of("backends", Wrong), ["test_returns_what_was_stored"])
    broken = finding.broken
    assert isinstance(broken, ContractBroken)
    assert broken.rule == finding.check == "returns_what_was_stored"
    assert broken.seen.startswith("ValueError: cannot (test_rules.py:")
    assert broken.seen.endswith(", in store_many)")
    assert isinstance(broken.__cause__, ValueError)
    assert finding.as_json() | {"seconds": 0} == {
        "check": "returns_what_was_stored", "says": "An item is 1 to page_size bytes.",
        "kept": False, "seconds": 0, "seen": broken.seen,
        "where": "reclaimactors.Backend.store_many",
        "contract": "Returning acknowledges all of them.",
        "what_to_do": "keep every byte of an item, however short it is",
    }  # fmt: skip


async def test_a_check_runs_within_a_running_loop_too():
    (finding,) = run_checks(suite_of("backends", MemoryBackend), ["test_large_batch"])
    assert finding.broken is None
