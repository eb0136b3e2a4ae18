"""Faults: bytes that were reclaimed come back. Mirrors do_swap_page and zswap_load.

A fault never waits for room. Where promoting the folio would leave free memory below *low*, its
bytes are handed out and the stored copy stays where it is; kswapd is woken. Otherwise the folio is
resident again, and the stored copy goes (exclusive load) but for one that the swap cache keeps. A
fault on a folio in flight takes it away from its batch and gives its source bytes at once: nobody
waits for a queue to read a value.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple
from zlib import crc32

import attrs

from reclaimactors.errors import CorruptData
from reclaimactors.mm.folio import DEVICE, RESIDENT, SAME, UNEVICTABLE, WRITEBACK, ZSWAP
from reclaimactors.mm.page_io import expand
from reclaimactors.units import nr_pages

if TYPE_CHECKING:
    from collections.abc import Sequence

    from reclaimactors.mm.group import Group
    from reclaimactors.mm.ledger import Ledger
    from reclaimactors.mm.node import Node

__all__ = ["Expanded", "Held", "Load", "Swapin"]


@attrs.define(eq=False)
class Load:
    """One folio to be read from its device; ends in `finish` or `fail`."""

    pfn: int
    device: int
    slots: Sequence[int]
    promote: bool  #: whether it becomes resident, or is handed out only
    reserved: int  #: bytes set aside for that
    group: Group  #: that has set them aside


class Held(NamedTuple):
    """A folio that the pool holds, at one instant."""

    pfn: int
    what: bytes | int  #: its blob, or the word that it repeats
    size: int


class Expanded(NamedTuple):
    """What that expands to, found ahead of the fault."""

    what: bytes | int
    data: bytes


class Swapin:
    """The way back into memory."""

    def __init__(self, node: Node, ledger: Ledger) -> None:
        self._node = node
        self._ledger = ledger

    def shortfall(self, pfns: Sequence[int]) -> int:
        """Return the bytes that promoting these folios would charge now."""
        mm = self._node.mm
        total = 0
        for pfn in pfns:
            state = mm.state[pfn]
            if state == ZSWAP:
                total += mm.size[pfn] - len(mm.data.get(pfn) or b"")
            elif state in {SAME, DEVICE}:
                total += mm.size[pfn]
        return total

    def may_promote(self, pfns: Sequence[int]) -> bool:
        """Return whether these folios may become resident without passing *low*.

        Where they may not, kswapd is woken.
        """
        need = self.shortfall(pfns)
        return not need or self._node.group_of(pfns[0]).has_headroom(need)

    def fault(
        self, pfn: int, *, promote: bool, reserved: int = 0, ready: Expanded | None = None
    ) -> bytes | None:
        """Return the bytes of a folio, or None where only its device has them.

        Args:
            pfn: any live folio.
            promote: whether it becomes resident (`may_promote`, or a reservation, says so).
            reserved: bytes of a reservation that this spends; what is left of it is given back.
            ready: what was expanded ahead; taken if it is of what is there now.

        On failure, which is the compressor's or the policy's: the folio is where it was, and the
        reservation is given back.

        Raises:
            CorruptData: if its blob is damaged.
        """
        try:
            return self._fault(pfn, promote, reserved, ready)
        except BaseException:  # Ctrl-C too: nobody else has the reservation
            self._node.group_of(pfn).memcg.unreserve(reserved)
            raise

    def _fault(
        self, pfn: int, promote: bool, reserved: int, ready: Expanded | None
    ) -> bytes | None:
        node = self._node
        mm = node.mm
        state = mm.state[pfn]
        data = mm.data.get(pfn)
        if state == WRITEBACK:
            self._ledger.cancel(pfn)
            state = RESIDENT
        if state in {RESIDENT, UNEVICTABLE}:
            group = node.group_of(pfn)
            if state == RESIDENT:
                group.policy.access(pfn)
            group.memcg.unreserve(reserved)
            return data
        if state == DEVICE:
            node.group_of(pfn).memcg.unreserve(reserved)
            return None
        vm, group = node.vmstat, node.group_of(pfn)
        pages = nr_pages(mm.size[pfn], node.page_size)
        vm["pgfault"] += pages
        if state == SAME:
            word, size = mm.entry[pfn], mm.size[pfn]
            if ready is not None and ready.what == word and len(ready.data) == size:
                data = ready.data
            else:
                data = expand(word, size)
            vm["swpin_zero"] += pages if mm.entry[pfn] == 0 else 0
        else:
            blob = data or b""
            known = ready.data if ready is not None and ready.what is blob else None
            data = self._decompress(blob, mm.size[pfn], "the zswap pool", known)
            vm["zswpin"] += pages
        if group.index:
            group.count("pgfault", pages)
            group.count("zswpin", pages if state == ZSWAP else 0)
        if promote:
            self.promote(pfn, data, reserved)
        else:
            if state == ZSWAP:
                node.zswap.rotate(pfn, group.index)
            self._refaulted(group, pages)
        return data

    def _refaulted(self, group: Group, pages: int, *, activated: bool = False) -> None:
        """Count pages of a group that came back."""
        vm = self._node.vmstat
        vm["workingset_refault_anon"] += pages
        if activated:
            vm["workingset_activate_anon"] += pages
        if group.index:
            group.count("workingset_refault_anon", pages)
            group.count("workingset_activate_anon", pages if activated else 0)

    def promote(self, pfn: int, data: bytes, reserved: int = 0) -> None:
        """Make a reclaimed folio resident; the copy goes, but for one that the swap cache keeps.

        On failure, which is the policy's: it stays where it is, and nothing was spent.
        """
        node = self._node
        mm = node.mm
        state = mm.state[pfn]
        clean = state == DEVICE and node.swapcache.keeps(pfn)
        held = 0
        if state == ZSWAP:
            held = len(mm.data.get(pfn) or b"")
        elif state == DEVICE and not clean:
            held = mm.charge[pfn]
        group = node.group_of(pfn)
        group.memcg.must_have(len(data) - held - reserved)
        activated = node.refaulted(pfn, group)
        pages = nr_pages(len(data), node.page_size)
        if state == ZSWAP:
            node.zswap.remove(pfn, held, pages, group.index)
        elif clean:
            node.swapcache.add(pfn)
        elif state == DEVICE:
            node.demotion.forget(pfn)
            node.slots.release(pfn)
        mm.owner[pfn] = 0
        group.memcg.spend(reserved, resident=len(data), compressed=-held)
        mm.data[pfn] = data
        mm.state[pfn] = RESIDENT
        group.nr_resident += 1
        self._refaulted(group, pages, activated=bool(activated))
        mm.shadow[pfn] = -1

    # -- ahead of the fault -----------------------------------------------------------------------

    def held(self, pfn: int) -> Held:
        """Return what is held of a ZSWAP or SAME folio; it is good whatever becomes of that."""
        mm = self._node.mm
        what = mm.entry[pfn] if mm.state[pfn] == SAME else mm.data[pfn]
        return Held(pfn, what, mm.size[pfn])

    def still(self, held: Held) -> bool:
        """Return whether the pool holds just that of the folio now."""
        mm, pfn = self._node.mm, held.pfn
        if mm.state[pfn] == ZSWAP:
            return mm.data[pfn] is held.what
        return mm.state[pfn] == SAME and (mm.entry[pfn], mm.size[pfn]) == held[1:]

    def decompress(self, held: Held, known: bytes | None = None) -> bytes:
        """Return the bytes of what was held, `known` if that may be what a plugin gave for it.

        Raises:
            CorruptData: if the blob is damaged.
        """
        if isinstance(held.what, int):
            return expand(held.what, held.size)
        return self._decompress(held.what, held.size, "the zswap pool", known)

    def _decompress(self, blob: bytes, size: int, where: str, known: bytes | None = None) -> bytes:
        node = self._node
        try:
            data = node.compressor.decompress(blob, size) if known is None else known
        except CorruptData as exc:
            node.vmstat["decompress_fail"] += 1
            msg = f"{where} gave a blob that {node.compressor.name} cannot decompress: {exc}"
            raise CorruptData(msg) from exc
        except Exception as exc:
            node.vmstat["decompress_fail"] += 1
            msg = f"compressor {node.compressor.name} raised on a blob of {where}: {exc!r}"
            raise CorruptData(msg) from exc
        if type(data) is not bytes:
            if not isinstance(data, (bytes, bytearray, memoryview)):  # pyright: ignore[reportUnnecessaryIsInstance] # it is a plugin's word
                node.vmstat["decompress_fail"] += 1
                msg = f"compressor {node.compressor.name} gave {type(data).__name__} for {where}"
                raise CorruptData(msg)
            data = bytes(data)  # a buffer that the library may use again
        if len(data) != size:
            node.vmstat["decompress_fail"] += 1
            msg = f"compressor {node.compressor.name} gave {len(data)} B, not {size}, for {where}"
            raise CorruptData(msg)
        return data

    # -- devices ----------------------------------------------------------------------------------

    def begin_loads(self, pfns: Sequence[int], *, promote: bool) -> list[Load]:
        """Start reading DEVICE folios; their slots stay until `finish`, `fail` or `drop`.

        Raises:
            ProtocolViolation: if they are to be promoted, and a group has no room for its folios;
                nothing is changed.
        """
        node = self._node
        device, size = node.mm.device, node.mm.size
        loads = [
            Load(pfn, device[pfn], node.slots.of(pfn), promote, size[pfn] if promote else 0,
                 node.group_of(pfn))
            for pfn in pfns
        ]  # fmt: skip
        if promote:
            _reserve(loads)
        for pfn in pfns:
            node.hold(pfn)
        return loads

    def finish(self, load: Load, stored: Sequence[bytes]) -> bytes:
        """Return the folio's bytes from what its slots gave, and promote it if room was reserved.

        Raises:
            CorruptData: if they are not what was stored. The entry stays, so that it can be tried
                again, and the error names the store.
        """
        node = self._node
        mm, vm = node.mm, node.vmstat
        pfn = load.pfn
        reserved = load.reserved
        try:
            data = self._verified(load, stored)
            if load.promote and mm.state[pfn] == DEVICE:
                self.promote(pfn, data, reserved)
                reserved = 0
            else:
                self._refaulted(load.group, nr_pages(mm.size[pfn], node.page_size))
        except CorruptData:
            vm["swapin_error"] += 1
            raise
        finally:
            load.group.memcg.unreserve(reserved)
            node.release(pfn)
        pages = nr_pages(len(data), node.page_size)
        vm["pswpin"] += len(load.slots)
        node.zswap.swapped_in(pages)
        vm["pgfault"] += pages
        vm["pgmajfault"] += pages
        group = load.group
        if group.index:
            group.count("pswpin", len(load.slots))
            group.count("pgfault", pages)
            group.count("pgmajfault", pages)
        return data

    def fail(self, load: Load) -> None:
        """The load raised: the folio stays where it is."""
        self._node.vmstat["swapin_error"] += 1
        self.drop(load)

    def drop(self, load: Load) -> None:
        """End a load that nobody counts as an error: it was never sent, or the memory closes."""
        load.group.memcg.unreserve(load.reserved)
        self._node.release(load.pfn)

    def _verified(self, load: Load, stored: Sequence[bytes]) -> bytes:
        data = self.as_stored(load.pfn, load.device, load.slots, stored)
        if not self._node.mm.codec[load.pfn]:
            return data
        size, name = self._node.mm.size[load.pfn], self._node.swap[load.device].name
        return self._decompress(data, size, f"swap {name!r}")

    def as_stored(
        self, pfn: int, device: int, slots: Sequence[int], stored: Sequence[bytes]
    ) -> bytes:
        """Return what a device was given for a folio, from what its slots gave.

        Raises:
            CorruptData: if they gave something else.
        """
        node = self._node
        mm, page = node.mm, node.page_size
        name = node.swap[device].name
        length = mm.length[pfn]
        parts: list[bytes] = []
        if len(stored) != len(slots):
            raise CorruptData(f"swap {name!r} gave {len(stored)} slots, not {len(slots)}")
        for i, (slot, part) in enumerate(zip(slots, stored, strict=True)):
            want = min(page, length - i * page)
            if not isinstance(part, (bytes, bytearray, memoryview)):  # pyright: ignore[reportUnnecessaryIsInstance] # it is a plugin's word
                msg = f"swap {name!r} gave {type(part).__name__}, not bytes, for slot {slot}"
                raise CorruptData(msg)
            if len(part) < want:
                raise CorruptData(f"swap {name!r} gave {len(part)} B for slot {slot}, not {want}")
            # A store's own buffer may change once the checksum was taken: only bytes are kept.
            exact = type(part) is bytes and len(part) == want
            parts.append(part if exact else bytes(part[:want]))
        data = parts[0] if len(parts) == 1 else b"".join(parts)
        if crc32(data) != mm.crc[pfn]:
            which = f"slots {slots[0]} to {slots[-1]}"
            msg = f"swap {name!r} gave other bytes for {which} than it was given (checksum)"
            raise CorruptData(msg)
        return data


def _reserve(loads: Sequence[Load]) -> None:
    """Set aside what loads are to be promoted with, of each group in one go, all of it or none."""
    needs: dict[Group, int] = {}
    for load in loads:
        needs[load.group] = needs.get(load.group, 0) + load.reserved
    done: list[tuple[Group, int]] = []
    try:
        for group, need in needs.items():
            group.memcg.reserve(need)
            done.append((group, need))
    except BaseException:
        for group, need in done:
            group.memcg.unreserve(need)
        raise
