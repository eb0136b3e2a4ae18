"""Every invariant of the core: for tests, which look after each step."""

from __future__ import annotations

from typing import TYPE_CHECKING

from reclaimactors.mm.folio import DEAD, DEVICE, FREE, IN_MEMORY, WRITEBACK, ZSWAP
from reclaimactors.mm.memcg import FOLIO_OVERHEAD, KEY_OVERHEAD
from reclaimactors.units import nr_pages

if TYPE_CHECKING:
    from reclaimactors.mm.node import Node

__all__ = ["check"]


def check(node: Node) -> bool:
    """Assert every invariant of the core; returns True. O(everything): for tests."""
    mm, memcg, vm = node.mm, node.memcg, node.vmstat
    memcg.check()
    mm.check()
    for part in (
        node.zswap,
        node.swap,
        node.swapcache,
        node.demotion,
        node.unevictable,
        node.scan,
    ):
        part.check()
    resident = compressed = in_flight = at_store = nr_in_flight = folios = 0
    pool = 0
    for pfn, state in enumerate(mm.state):
        data = mm.data.get(pfn)
        held = len(data) if data is not None else 0
        folios += state != FREE
        if state in IN_MEMORY or state == DEAD:
            resident += held
        if state == ZSWAP:
            pool += held
        if state == WRITEBACK:
            in_flight += held
            at_store += held * mm.at_store[pfn]
            nr_in_flight += 1
        if state == DEVICE or (state == DEAD and data is None):
            compressed += mm.charge[pfn]
    small, large = node.values.small, node.values.large
    of_keys = [pfn for pfns in large.values() for pfn in pfns] + list(small.values())
    live = set(of_keys)
    assert len(of_keys) == len(live), "a folio of two keys"
    assert all(mm.state[pfn] not in {FREE, DEAD} for pfn in live), "a key without its folio"
    dead = {pfn for pfn, state in enumerate(mm.state) if state == DEAD}
    assert len(live) + len(dead) == folios, "a folio without a key"
    assert node.nr_dead == len(dead), "folios without a key drifted"
    assert mm.gone or memcg.compressed == compressed + pool, "compressed bytes drifted"
    assert mm.gone or node.zswap.total == pool, "pool bytes drifted"
    assert node.zswap.leaving == 0 or node.writeback.nr_writes, "nobody writes back what is leaving"
    pool_pages = sum(
        nr_pages(mm.size[pfn], node.page_size)
        for pfn, state in enumerate(mm.state)
        if state == ZSWAP
    )
    assert node.zswap.pages == pool_pages, "pool pages drifted"
    _check_slots(node)
    vm.check()
    assert memcg.in_flight == in_flight, "in-flight bytes drifted"
    assert memcg.at_store == at_store, "bytes at stores drifted"
    assert node.nr_in_flight == nr_in_flight, "in-flight folios drifted"
    swapped = sum(
        mm.length[pfn]
        for pfn, state in enumerate(mm.state)
        if state == DEVICE or mm.cached[pfn] or (state == DEAD and mm.data.get(pfn) is None)
    )
    assert node.slots.swapped == swapped, "swapped bytes drifted"
    nr_resident = sum(state in IN_MEMORY for state in mm.state)
    assert node.nr_resident == nr_resident, "resident folios drifted"
    keys = len(small) + len(large)
    constants = keys * KEY_OVERHEAD + folios * FOLIO_OVERHEAD
    assert memcg.overhead == constants + sum(mm.key), "overhead drifted"
    firsts = {pfns[0] for pfns in large.values()} | set(small.values())
    assert firsts.issuperset(pfn for pfn, extra in enumerate(mm.key) if extra), "no key's bytes"
    # what is reserved, and the joined copies of pins, are the rest of resident
    assert memcg.resident - memcg.reserved >= resident, "resident bytes drifted"
    verdicts = sum(
        vm[f"reclaim_{verdict}"]
        for verdict in ("stored", "zero", "device", "activate", "keep", "cancelled", "error")
    )
    assert vm["reclaim_isolated"] == verdicts + nr_in_flight, "a folio without one verdict"
    return True


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
        if state == DEVICE or mm.cached[pfn] or (state == DEAD and mm.data.get(pfn) is None):
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
