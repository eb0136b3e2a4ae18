"""How many CPUs this process may use: its affinity, and the CPU quota of its control groups."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["cpu_quota", "usable_cpus"]


def usable_cpus() -> int:
    """Return how many CPUs this process can keep busy, at least 1; a part of one counts whole."""
    try:
        nr = len(os.sched_getaffinity(0))
    except (AttributeError, OSError):  # macOS, or a sandbox that does not allow it
        nr = os.cpu_count() or 1
    quota = cpu_quota()
    return nr if quota is None else max(1, min(nr, math.ceil(quota)))


def cpu_quota(root: Path = Path("/")) -> float | None:
    """Return the CPU time that control groups allow, in CPUs; None where none of them limits it.

    A group is limited by each group above it too, and the smallest quota holds. In a container the
    path that the kernel gives may begin outside: what is missing there is passed over.

    Args:
        root: where /proc and /sys are, for tests.
    """
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:  # no control groups here
        return None
    quotas = [quota for line in lines for quota in _quotas(root / "sys/fs/cgroup", line)]
    return min(quotas, default=None)


def _quotas(mount: Path, line: str) -> Iterator[float]:
    """Yield the quotas of one line of /proc/self/cgroup: ``ID:CONTROLLERS:PATH``."""
    controllers, _, path = line.partition(":")[2].partition(":")
    if not controllers:  # version 2, alone or beside version 1
        for group in (*_upwards(mount, path), *_upwards(mount / "unified", path)):
            yield from _quota(*_words(group / "cpu.max"))
    elif "cpu" in controllers.split(","):
        for group in (*_upwards(mount / controllers, path), *_upwards(mount / "cpu", path)):
            period = _words(group / "cpu.cfs_period_us")
            yield from _quota(*_words(group / "cpu.cfs_quota_us"), *period)


def _upwards(mount: Path, path: str) -> Iterator[Path]:
    """Yield a group and all groups above it, the root last."""
    parts = [part for part in path.split("/") if part not in {"", ".."}]
    for nr in range(len(parts), -1, -1):
        yield mount.joinpath(*parts[:nr])


def _words(file: Path) -> list[str]:
    try:
        return file.read_text().split()
    except OSError:  # the root has none, and a container may not see the groups above its own
        return []


def _quota(quota: str = "max", period: str = "") -> Iterator[float]:
    """Yield quota / period, both in microseconds; nothing for "max" and -1, which are no limit."""
    if quota.isdecimal() and period.isdecimal() and int(quota) and int(period):
        yield int(quota) / int(period)
