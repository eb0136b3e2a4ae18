"""The end of a group: what it holds goes up to its parent, or is forgotten.

Mirrors mem_cgroup_css_offline() and the reparenting of what is charged.

Both are done in steps of a few keys, between which the event loop may turn: nobody puts into the
group any more by then. What a worker or a store still holds of it is its parent's afterwards; who
holds bytes reserved in it gives them back to it, and so to its parent.
"""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING

from reclaimactors.mm.ending import undo
from reclaimactors.mm.folio import (
    CACHED,
    DEVICE,
    FREE,
    IN_MEMORY,
    RESIDENT,
    UNEVICTABLE,
    WRITEBACK,
    ZSWAP,
)
from reclaimactors.mm.memcg import FOLIO_OVERHEAD, KEY_OVERHEAD
from reclaimactors.units import nr_pages

if TYPE_CHECKING:
    from collections.abc import Hashable, Iterator

    from reclaimactors.mm.group import Group
    from reclaimactors.mm.ledger import Ledger

__all__ = ["offline"]

KEYS = 32  #: of a step
ROWS = 4096  #: of the mem_map, looked at in a step


def offline(group: Group, ledger: Ledger, *, reparent: bool) -> Iterator[None]:
    """End a group that has none in it, a step for each item.

    A key that the parent has as well stays the parent's.

    Args:
        group: which is not the root.
        ledger: that of its node.
        reparent: whether its values become the parent's, under their keys; else they are forgotten.

    On failure, which is a policy's: what has not been moved is the group's as before, and it may be
    ended again.
    """
    values, parent = group.values, _parent_of(group)
    while len(values):
        keys = [*islice(values.small, KEYS)] or [*islice(values.large, 1)]
        for key in keys:
            if reparent and key not in parent.values:
                _move(group, parent, ledger, key)
            else:
                values.delete(key)
        yield
    yield from _move_dead(group, parent)
    node = group.node
    parent.children = {name: one for name, one in parent.children.items() if one is not group}
    node.groups = {index: one for index, one in node.groups.items() if one is not group}
    group.wanted = group.pool_wanted = 0  # who waits for that waits for nothing any more


def _parent_of(group: Group) -> Group:
    assert group.parent is not None, "the root has no end of its own"
    assert not group.children, "groups in a group end before it"
    return group.parent


def _move(group: Group, parent: Group, ledger: Ledger, key: Hashable) -> None:
    """Make a value the parent's."""
    mm = group.node.mm
    pfns = group.values.pfns(key)
    for pfn in pfns:
        if mm.state[pfn] == WRITEBACK:
            ledger.cancel(pfn)
    try:
        for pfn in pfns:
            group.policy.remove(pfn)
            if mm.state[pfn] in {RESIDENT, UNEVICTABLE}:
                parent.policy.insert(pfn, refault=None)
    except BaseException as exc:
        for pfn in pfns:
            undo(exc, parent.policy.remove, pfn)
        undo(exc, group.node.relist, pfns)
        raise
    resident = compressed = 0
    for pfn in pfns:
        data = mm.data.get(pfn)
        if mm.state[pfn] in IN_MEMORY:
            resident += len(data or b"")
        else:
            compressed += len(data) if data is not None else 0
            compressed += mm.charge[pfn] if mm.state[pfn] == DEVICE else 0
        _move_folio(group, parent, pfn)
    overhead = KEY_OVERHEAD + mm.key[pfns[0]] + len(pfns) * FOLIO_OVERHEAD
    group.memcg.moved_up(resident, compressed, overhead)
    group.values.give(key, parent.values)


def _move_folio(group: Group, parent: Group, pfn: int) -> None:
    """Make a live folio, whose lists have been seen to, the parent's."""
    node = group.node
    mm, state = node.mm, node.mm.state[pfn]
    if state == UNEVICTABLE:
        group.unevictable.rescue((pfn,))
        mm.state[pfn] = RESIDENT
    if state in IN_MEMORY:
        group.nr_resident -= 1
        parent.nr_resident += 1
        group.looked.discard(pfn)
    elif state == ZSWAP:
        length, pages = len(mm.data[pfn]), nr_pages(mm.size[pfn], node.page_size)
        node.zswap.remove(pfn, length, pages, group.index)
        node.zswap.extend((pfn,), length, pages, parent.index)
    elif state == DEVICE:
        node.demotion.forget(pfn)
    if state == DEVICE or mm.clean[pfn] == CACHED:
        group.swapped -= mm.length[pfn]
        parent.swapped += mm.length[pfn]
    mm.owner[pfn] = 0  # what a store writes of it now comes to nothing
    mm.shadow[pfn] = -1  # it was the policy's of the group
    mm.group[pfn] = parent.index
    if state == DEVICE and mm.charge[pfn]:
        node.demotion.add(pfn)


def _move_dead(group: Group, parent: Group) -> Iterator[None]:
    """Make the folios that have no key any more, and that somebody still holds, the parent's."""
    mm = group.node.mm
    for start in range(0, len(mm), ROWS):
        rows = mm.group[start : start + ROWS]
        if group.index in rows:
            for pfn, index in enumerate(rows, start):
                if index == group.index and mm.state[pfn] != FREE:
                    _move_dead_one(group, parent, pfn)
        yield


def _move_dead_one(group: Group, parent: Group, pfn: int) -> None:
    mm = group.node.mm
    data = mm.data.get(pfn)
    mm.group[pfn] = parent.index
    if data is None:
        group.swapped -= mm.length[pfn]
        parent.swapped += mm.length[pfn]
        group.memcg.moved_up(0, mm.charge[pfn], FOLIO_OVERHEAD)
    else:
        group.memcg.moved_up(len(data), 0, FOLIO_OVERHEAD)
