"""The control groups that this process is in, of version 1 or 2: where their files are."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

__all__ = ["groups", "words"]


def groups(controller: str, root: Path) -> Iterator[Path]:
    """Yield the folder of each group of a controller, and of each group above it.

    A limit of a group above holds as well. In a container the path that the kernel gives may begin
    outside: a folder that is yielded need not exist.

    Args:
        controller: as "cpu" or "memory".
        root: where /proc and /sys are, "/" but in tests.
    """
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:  # no control groups here
        return
    mount = root / "sys/fs/cgroup"
    for line in lines:  # ID:CONTROLLERS:PATH
        controllers, _, path = line.partition(":")[2].partition(":")
        if not controllers:  # version 2, alone or beside version 1
            places = [mount, mount / "unified"]
        elif controller in controllers.split(","):
            places = [mount / controllers, mount / controller]
        else:
            continue
        parts = [part for part in path.split("/") if part not in {"", ".."}]
        for place in places:
            for nr in range(len(parts), -1, -1):
                yield place.joinpath(*parts[:nr])


def words(file: Path) -> list[str]:
    """Return the words of a file of a group, [] where there is no such file."""
    try:
        return file.read_text().split()
    except OSError:  # the root has none, and a container may not see the groups above its own
        return []
