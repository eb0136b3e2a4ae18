"""How much memory there may be: of the machine and of cgroups, made up here."""

import logging
import sys

import pytest

import reclaimactors as ra
from reclaimactors.topology import explain, resolve
from reclaimactors.topology.memory_limit import memory_limit, too_large

GIB = 1 << 30
UNLIMITED = "9223372036854771712"  # what version 1 says for no limit
V1 = "memory.limit_in_bytes"


@pytest.fixture
def host(tmp_path):
    """Return a function that makes /proc and groups up; it gives the root."""

    def make(cgroup="", *, total=8 * GIB, **groups):
        (tmp_path / "proc/self").mkdir(parents=True)
        (tmp_path / "proc/self/cgroup").write_text(cgroup)
        meminfo = f"MemTotal:       {total // 1024} kB\nMemFree:        1 kB\n"
        (tmp_path / "proc/meminfo").write_text(meminfo)
        for path, text in groups.items():
            file = tmp_path / "sys/fs/cgroup" / path
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text)
        return tmp_path

    return make


@pytest.mark.parametrize(
    ("cgroup", "groups", "limit"),
    [
        ("", {}, 8 * GIB),
        ("0::/\n", {"memory.max": "max\n"}, 8 * GIB),
        ("0::/a/b\n", {"a/b/memory.max": f"{GIB}\n"}, GIB),
        ("0::/a/b\n", {"a/b/memory.max": "max", "a/memory.max": str(2 * GIB)}, 2 * GIB),
        ("0::/a/b\n", {"a/b/memory.max": str(GIB), "a/memory.max": str(2 * GIB)}, GIB),
        ("0::/of/the/host\n", {"memory.max": str(GIB)}, GIB),  # no cgroup namespace
        ("0::/x\n", {"unified/x/memory.max": str(GIB)}, GIB),
        ("4:memory:/x\n0::/\n", {f"memory/x/{V1}": str(3 * GIB)}, 3 * GIB),
        ("4:memory:/x/y\n", {f"memory/x/y/{V1}": UNLIMITED, f"memory/x/{V1}": str(GIB)}, GIB),
        ("4:cpu,memory:/x\n", {f"cpu,memory/x/{V1}": str(GIB)}, GIB),
        ("4:memory:/x\n", {f"memory/x/{V1}": UNLIMITED}, 8 * GIB),
        ("4:cpu:/x\n", {f"cpu/x/{V1}": str(GIB)}, 8 * GIB),
        ("0::/a\n", {"a/memory.max": ""}, 8 * GIB),
        ("0::/a\n", {"a/memory.max": str(100 * GIB)}, 8 * GIB),
        ("nonsense\n\n", {}, 8 * GIB),
    ],
)
def test_the_smallest_limit_of_machine_group_and_groups_above(host, cgroup, groups, limit):
    root = host(cgroup, **groups)
    assert memory_limit(root)[0] == limit
    assert not too_large(limit, root)
    whose = "this machine has 8GiB" if limit == 8 * GIB else "its control group allows"
    assert too_large(limit + 1, root).startswith(whose)


def test_without_proc_the_system_is_asked(tmp_path, monkeypatch):
    sizes = {"SC_PAGE_SIZE": 4096, "SC_PHYS_PAGES": 1000}
    monkeypatch.setattr("os.sysconf", sizes.__getitem__)
    assert memory_limit(tmp_path)[0] == 4_096_000
    monkeypatch.setattr("os.sysconf", lambda _: (_ for _ in ()).throw(ValueError("no such name")))
    assert memory_limit(tmp_path) == (0, "")
    assert not too_large(1 << 50, tmp_path)


@pytest.fixture
def small(monkeypatch):
    """A process that may have 32 MiB."""
    for module in ("build", "explain"):
        monkeypatch.setattr(
            sys.modules[f"reclaimactors.topology.{module}"],
            "too_large",
            lambda budget: "its control group allows 32MiB of memory" if budget > 32 << 20 else "",
        )


def ours(caplog):
    return [record for record in caplog.records if record.name == "reclaimactors"]


async def test_a_budget_above_it_is_one_line_of_the_log(small, caplog):
    caplog.set_level(logging.WARNING, "reclaimactors")
    async with ra.open_memory(budget="64MiB", swap=[]):
        pass
    (line,) = [record.getMessage() for record in ours(caplog)]
    assert "memory.budget_too_large" in line
    assert "64MiB" in line
    assert "its control group allows 32MiB" in line
    caplog.clear()
    async with ra.open_memory(budget="16MiB", swap=[]):
        pass
    assert not ours(caplog)


def test_a_budget_above_it_is_one_line_of_check(small):
    says = explain(resolve({"budget": "64MiB"}))
    assert sum("its control group allows 32MiB of memory" in line for line in says) == 1
    assert not any("control group" in line for line in explain(resolve({"budget": "16MiB"})))
