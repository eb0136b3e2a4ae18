"""Every invariant of the core: for tests, which look after each step."""

from __future__ import annotations

from typing import TYPE_CHECKING

import attrs

from reclaimactors.mm.folio import CACHED, DEAD, DEVICE, FREE, IN_MEMORY, WRITEBACK, ZSWAP
from reclaimactors.mm.memcg import FOLIO_OVERHEAD, KEY_OVERHEAD
from reclaimactors.units import nr_pages

if TYPE_CHECKING:
    from reclaimactors.mm.group import Group
    from reclaimactors.mm.node import Node

__all__ = ["check"]


@attrs.define
class _Held:
    """What the folios of one group hold, in bytes, and how many they are."""

    resident: int = 0
    in_store: int = 0  #: in this process
    pool: int = 0
    in_flight: int = 0
    at_store: int = 0
    swapped: int = 0
    folios: int = 0
    nr_in_flight: int = 0
    nr_resident: int = 0
    overhead: int = 0

    def add(self, other: _Held) -> None:
        """Add what another group holds."""
        for field in attrs.fields(_Held):
            setattr(self, field.name, getattr(self, field.name) + getattr(other, field.name))


def check(node: Node) -> bool:
    """Assert every invariant of the core; returns True. O(everything): for tests."""
    mm, vm = node.mm, node.vmstat
    mm.check()
    for part in (node.zswap, node.swap, node.swapcache, node.demotion):
        part.check()
    held = _held(node)
    for group in node.groups.values():
        _check_group(group, held)
    total = held[0]
    assert mm.gone or node.zswap.total == total.pool, "pool bytes drifted"
    assert node.zswap.leaving == 0 or node.writeback.nr_writes, "nobody writes back what is leaving"
    pool_pages = sum(
        nr_pages(mm.size[pfn], node.page_size)
        for pfn, state in enumerate(mm.state)
        if state == ZSWAP
    )
    assert node.zswap.pages == pool_pages, "pool pages drifted"
    _check_keys(node, total)
    _check_slots(node)
    vm.check()
    assert node.slots.swapped == total.swapped, "swapped bytes drifted"
    verdicts = sum(
        vm[f"reclaim_{verdict}"]
        for verdict in ("stored", "zero", "device", "activate", "keep", "cancelled", "error")
    )
    assert vm["reclaim_isolated"] == verdicts + node.nr_in_flight, "a folio without one verdict"
    return True


def _held(node: Node) -> dict[int, _Held]:
    """Return what each group and the groups in it hold, by index of the group."""
    mm = node.mm
    own = {index: _Held() for index in node.groups}
    for pfn, state in enumerate(mm.state):
        held = own[mm.group[pfn]]
        data = mm.data.get(pfn)
        size = len(data) if data is not None else 0
        gone = state == DEAD and data is None
        held.folios += state != FREE
        held.nr_resident += state in IN_MEMORY
        if state in IN_MEMORY or state == DEAD:
            held.resident += size
        if state == ZSWAP:
            held.pool += size
        if state == WRITEBACK:
            held.in_flight += size
            held.at_store += size * mm.at_store[pfn]
            held.nr_in_flight += 1
        if state == DEVICE or gone:
            held.in_store += mm.charge[pfn]
        if state == DEVICE or mm.clean[pfn] == CACHED or gone:
            held.swapped += mm.length[pfn]
        held.overhead += mm.key[pfn] + (state != FREE) * FOLIO_OVERHEAD
    for group in node.groups.values():
        own[group.index].overhead += len(group.values) * KEY_OVERHEAD
        nr = own[group.index]
        assert (group.nr_resident, group.nr_in_flight) == (nr.nr_resident, nr.nr_in_flight), (
            f"{group}: resident folios, or those in flight, drifted"
        )
    total = {index: _Held() for index in node.groups}
    for group in node.groups.values():
        for over in group.lineage:
            total[over.index].add(own[group.index])
    return total


def _check_group(group: Group, total: dict[int, _Held]) -> None:
    """Assert that what is charged to a group is what its folios, and those below it, hold."""
    memcg, held = group.memcg, total[group.index]
    memcg.check()
    group.scan.check()
    group.unevictable.check()
    group.values.check()
    gone = group.node.mm.gone
    assert gone or memcg.compressed == held.in_store + held.pool, f"{group}: compressed drifted"
    assert memcg.in_flight == held.in_flight, f"{group}: in-flight bytes drifted"
    assert memcg.at_store == held.at_store, f"{group}: bytes at stores drifted"
    assert memcg.overhead == held.overhead, f"{group}: overhead drifted"
    # what is reserved, and the joined copies of pins, are the rest of resident
    assert memcg.resident - memcg.reserved >= held.resident, f"{group}: resident bytes drifted"


def _check_keys(node: Node, total: _Held) -> None:
    """Assert that each folio is of one key of its group, or dead."""
    mm = node.mm
    live: set[int] = set()
    nr_live = 0
    for group in node.groups.values():
        small, large = group.values.small, group.values.large
        of_keys = [pfn for pfns in large.values() for pfn in pfns] + list(small.values())
        assert all(mm.group[pfn] == group.index for pfn in of_keys), f"{group}: another's folio"
        firsts = {pfns[0] for pfns in large.values()} | set(small.values())
        extra = {pfn for pfn in of_keys if mm.key[pfn]}
        assert firsts >= extra, "bytes of a key at a folio that is not its first"
        live.update(of_keys)
        nr_live += len(of_keys)
    assert nr_live == len(live), "a folio of two keys"
    assert all(mm.state[pfn] not in {FREE, DEAD} for pfn in live), "a key without its folio"
    dead = {pfn for pfn, state in enumerate(mm.state) if state == DEAD}
    assert not any(mm.key[pfn] for pfn in dead), "no key's bytes"
    assert len(live) + len(dead) == total.folios, "a folio without a key"
    assert node.nr_dead == len(dead), "folios without a key drifted"


def _check_slots(node: Node) -> None:
    """Assert that each used slot has one owner: a folio, or a run that is to be forgotten.

    The others are in the hands of a write or of a store that forgets, if there is any.
    """
    mm = node.mm
    owned: dict[int, list[int]] = {device.index: [] for device in node.swap}
    for device in node.swap:
        for slot, nr in node.slots.stale.get(device.index, ()):
            owned[device.index] += range(slot, slot + nr)
        assert len(owned[device.index]) == device.stale, "slots to be forgotten drifted"
    for pfn, state in enumerate(mm.state):
        if (
            state == DEVICE
            or mm.clean[pfn] == CACHED
            or (state == DEAD and mm.data.get(pfn) is None)
        ):
            owned[mm.device[pfn]] += node.slots.of(pfn)
        else:
            assert pfn not in node.slots.scattered, f"pfn {pfn}: slots without a copy in them"
    assert node.writeback.nr_writes == sum(device.writes for device in node.swap), "writes drifted"
    for device in node.swap:
        slots = set(owned[device.index])
        assert len(slots) == len(owned[device.index]), f"{device.name}: a slot of two owners"
        assert slots <= device.used_slots(), f"{device.name}: a copy in a slot that is not used"
        assert device.writes or not device.at_store, f"{device.name}: bytes at store drifted"
        in_hand = device.used - len(slots)
        assert not in_hand or device.writes or device.forgetting, (
            f"{device.name}: {in_hand} slots of nobody"
        )
