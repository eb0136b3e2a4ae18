"""How many CPUs may be used: affinity and cgroup quotas, under a root that is made up here."""

import os

import pytest

from reclaimactors.topology import cpus
from reclaimactors.topology.cpus import cpu_quota, usable_cpus

V1 = "cpu.cfs_quota_us", "cpu.cfs_period_us"


@pytest.fixture
def host(tmp_path):
    """Return a function that writes /proc/self/cgroup and files of groups; gives the root."""

    def make(cgroup, **groups):
        (tmp_path / "proc/self").mkdir(parents=True)
        (tmp_path / "proc/self/cgroup").write_text(cgroup)
        for path, text in groups.items():
            file = tmp_path / "sys/fs/cgroup" / path
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text + "\n")
        return tmp_path

    return make


@pytest.mark.parametrize(
    ("cgroup", "groups", "quota"),
    [
        ("0::/a/b\n", {"a/b/cpu.max": "150000 100000"}, 1.5),
        ("0::/a/b\n", {"a/b/cpu.max": "max 100000", "a/cpu.max": "50000 100000"}, 0.5),
        ("0::/a/b\n", {"a/b/cpu.max": "400000 100000", "a/cpu.max": "200000 100000"}, 2),
        ("0::/a\n", {"a/cpu.max": "max 100000"}, None),
        ("0::/\n", {"cpu.max": "300000 100000"}, 3),  # a container's own root
        ("0::/docker/of/the/host\n", {"cpu.max": "300000 100000"}, 3),  # no cgroup namespace
        ("0::/../other\n", {"cpu.max": "100000 100000"}, 1),
        ("4:memory:/m\n0::/a\n", {"unified/a/cpu.max": "100000 100000", "m/cpu.max": "1 9"}, 1),
        (
            "3:cpu,cpuacct:/x\n0::/\n",
            {f"cpu,cpuacct/x/{V1[0]}": "250000", f"cpu,cpuacct/x/{V1[1]}": "100000"},
            2.5,
        ),
        ("3:cpu,cpuacct:/host/x\n", {f"cpu/{V1[0]}": "70000", f"cpu/{V1[1]}": "100000"}, 0.7),
        ("1:cpu:/x\n", {f"cpu/x/{V1[0]}": "-1", f"cpu/x/{V1[1]}": "100000"}, None),
        ("1:cpuset:/x\n", {f"cpuset/x/{V1[0]}": "1", f"cpuset/x/{V1[1]}": "100000"}, None),
        ("1:cpu:/x\n", {f"cpu/x/{V1[0]}": "50000"}, None),  # no period: not to be believed
        ("0::/a\n", {"a/cpu.max": ""}, None),
        ("0::/a\n", {"a/cpu.max": "100000 0"}, None),
        ("nonsense\n\n", {}, None),
    ],
)
def test_the_smallest_quota_of_a_group_and_those_above_it(host, cgroup, groups, quota):
    assert cpu_quota(host(cgroup, **groups)) == quota


def test_without_control_groups_there_is_no_quota(tmp_path):
    assert cpu_quota(tmp_path) is None


@pytest.mark.parametrize(
    ("affinity", "quota", "usable"),
    [(8, None, 8), (8, 2.0, 2), (8, 1.2, 2), (8, 0.1, 1), (1, 4.0, 1)],
)
def test_usable_is_the_smaller_of_affinity_and_quota(monkeypatch, affinity, quota, usable):
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(affinity)), raising=False)
    monkeypatch.setattr(cpus, "cpu_quota", lambda: quota)
    assert usable_cpus() == usable


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="there is no affinity here")
def test_where_a_sandbox_refuses_the_affinity_all_cpus_are_usable(monkeypatch):
    def refuse(_):
        raise PermissionError

    monkeypatch.setattr(os, "sched_getaffinity", refuse)
    monkeypatch.setattr(os, "cpu_count", lambda: 3)
    monkeypatch.setattr(cpus, "cpu_quota", lambda: None)
    assert usable_cpus() == 3
