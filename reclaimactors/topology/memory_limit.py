"""How much memory this process may have: that of the machine, and the limit of its groups."""

from __future__ import annotations

import os
from pathlib import Path

from reclaimactors.topology.cgroup import groups, words
from reclaimactors.units import format_size

__all__ = ["memory_limit", "too_large"]


def memory_limit(root: Path = Path("/")) -> tuple[int, str]:
    """Return the bytes that this process may have at most, and whose limit that is, in words.

    The bytes are 0 where nothing says so.

    Args:
        root: where /proc and /sys are, for tests.
    """
    limits = [
        (int(limit), "its control group allows")
        for group in groups("memory", root)
        for name in ("memory.max", "memory.limit_in_bytes")
        for limit in words(group / name)
        if limit.isdecimal()  # else "max"
    ]
    machine = _mem_total(root)
    if machine:
        limits.append((machine, "this machine has"))
    return min(limits, default=(0, ""))


def too_large(budget: int, root: Path = Path("/")) -> str:
    """Return why a budget is more than this process may have, "" where it is not."""
    limit, whose = memory_limit(root)
    if not 0 < limit < budget:
        return ""
    return f"{whose} {format_size(limit)} of memory"


def _mem_total(root: Path) -> int:
    name, kib, *_ = [*words(root / "proc/meminfo"), "", ""]
    if name == "MemTotal:":
        return int(kib) * 1024
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):  # it does not say what it has
        return 0
