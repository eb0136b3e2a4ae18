"""Proactive writeback: blobs go to devices because somebody asks for just that."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from reclaimactors.actors.machine import Machine
    from reclaimactors.mm.group import Group

__all__ = ["write_back"]


async def write_back(machine: Machine, group: Group, nbytes: int) -> int:
    """Write up to `nbytes` of a group's coldest blobs to devices; return the bytes that went.

    It ends early where no device takes more. A cancelled call asks for nothing more.

    Raises:
        ClosedResourceError: if the memory closes.
    """
    before = group.written_back
    if not nbytes or not machine.node.writeback.want_blobs(group, nbytes):
        return 0
    try:
        while group.pool_wanted and group.written_back - before < nbytes:
            await machine.verdicts.wait()
            machine.check_open()
    finally:
        left = nbytes - (group.written_back - before)
        group.pool_wanted = max(0, group.pool_wanted - max(0, left))
    return group.written_back - before
