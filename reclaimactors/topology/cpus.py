"""How many CPUs this process may use: its affinity, and the CPU quota of its control groups."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import TYPE_CHECKING

from reclaimactors.topology.cgroup import groups, words

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

    A group is limited by each group above it too, and the smallest quota holds.

    Args:
        root: where /proc and /sys are, for tests.
    """
    quotas: list[float] = []
    for group in groups("cpu", root):
        quotas += _quota(*words(group / "cpu.max"))
        period = words(group / "cpu.cfs_period_us")
        quotas += _quota(*words(group / "cpu.cfs_quota_us"), *period)
    return min(quotas, default=None)


def _quota(quota: str = "max", period: str = "") -> Iterator[float]:
    """Yield quota / period, both in microseconds; nothing for "max" and -1, which are no limit."""
    if quota.isdecimal() and period.isdecimal() and int(quota) and int(period):
        yield int(quota) / int(period)
