"""Memories and their groups as samples, whoever exports them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from reclaimactors.memory import Memory

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from reclaimactors.stats import Stats

__all__ = ["DEFAULT", "named", "samples"]

DEFAULT = "default"  #: the name of a memory that is given without one


def named(memories: Memory | Mapping[str, Memory]) -> Mapping[str, Memory]:
    """Return memories by their names."""
    return {DEFAULT: memories} if isinstance(memories, Memory) else memories


def samples(memories: Mapping[str, Memory]) -> Iterator[tuple[str, str, Stats]]:
    """Yield name, path and record of each memory, whose path is "", and of the groups in it."""
    for name, memory in list(memories.items()):  # a copy: another thread may add one
        for path, stats in _of(memory, ""):
            yield name, path, stats


def _of(memory: Memory, path: str) -> Iterator[tuple[str, Stats]]:
    yield path, memory.stats()
    for name, group in list(memory.groups.items()):
        yield from _of(group, f"{path}/{name}" if path else name)
