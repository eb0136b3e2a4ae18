"""The multi-generational LRU: folios in generations by when they were last read.

Mirrors the kernel's lru_gen in mm/vmscan.c and include/linux/mm_inline.h, and the lru_gen half of
mm/workingset.c. It holds order only: bytes, states and verdicts are the core's.

Theory. A generation is a list with a sequence number; `min_seq` is the oldest and `max_seq` the
youngest, two to `max_gens` of them, and the list of a generation is its number modulo `max_gens`.
Isolation reads the oldest one from its cold end, and goes on to the next when it is empty. Aging
makes a new youngest one when no more than two are left, when the youngest holds over half of the
folios, or when the oldest holds under a quarter.

The kernel's aging walks page tables to see who was read. Here a hit tells us: `access` writes down
the generation that is youngest now, and the folio moves there when isolation meets it. It lands
where a walk would have put it, in the generation of its last read, and aging itself is O(1).

New folios are on trial: they enter the oldest generation, or the first one that leaves a tenth of
the folios between them and isolation. Values that are read once pass through that tenth and push
out nothing else, and a value read again during its trial joins the youngest. (The kernel puts
anon folios of a fault among the young, as a fault is a read; here a put is only a write.) A folio
that comes back while the generation it left is still recent was on trial too briefly: it is part
of the workingset and enters the youngest.

What has no room here: generations for file folios, and tiers, the kernel's count of reads through
file descriptors that no page table shows. All folios are anon, and every read is a hit we see.

Cost. A hit writes one byte. A read is consumed by the scan that meets it, so the work of `isolate`
is paid for by hits; one call walks at most `SCAN_MAX` folios (about a millisecond), and where all
of those were read, it takes the coldest all the same.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from reclaimactors.abc import Verdict
from reclaimactors.errors import ProtocolViolation
from reclaimactors.mm.links import Links
from reclaimactors.mm.workingset import EVICTION_MASK, refault_distance

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["SCAN_MAX", "Mglru"]

SCAN_MAX = 2048
"""Folios that one `isolate` looks at, whatever it finds."""

_MIN_NR_GENS = 2
_TRIAL_SHARE = 10  # one tenth, as the small queue of S3-FIFO; smaller loses values read in bursts
_ISOLATED, _GONE = 254, 255


class Mglru:
    """Multi-generational LRU.

    Args:
        pages: base pages of the budget; not needed, as generations are judged by what they hold.
        max_gens: how many generations there may be, 2 to 64; the kernel has 4.
    """

    __slots__ = (
        "_lists",
        "_max_gens",
        "_read_in",
        "_trial",
        "_where",
        "_youngest",
        "max_seq",
        "min_seq",
    )

    def __init__(self, *, pages: int, max_gens: int = 4) -> None:  # noqa: ARG002 - each policy gets it
        if not _MIN_NR_GENS <= max_gens <= 64:
            msg = f"max_gens is {max_gens}; allowed is {_MIN_NR_GENS} to 64"
            raise ValueError(msg)
        self._max_gens = max_gens
        self._lists = Links(max_gens)
        self._where = bytearray()  # by pfn: the list it is on, _ISOLATED or _GONE
        self._read_in = bytearray()  # by pfn: the list of the generation of its last read
        self.min_seq = 0
        self.max_seq = _MIN_NR_GENS - 1
        self._youngest = self.max_seq  # as the index of a list, like the next
        self._trial = 0

    def insert(self, pfn: int, *, refault: int | None) -> bool:
        """Put a folio on trial, or into the youngest generation after a recent eviction."""
        if pfn >= len(self._where):
            extra = pfn + 1 + pfn // 8 - len(self._where)
            self._where.extend(bytes([_GONE]) * extra)
            self._read_in.extend(bytes(extra))
        elif self._where[pfn] != _GONE:
            msg = f"insert of pfn {pfn}, which is resident already"
            raise ProtocolViolation(msg)
        recent = refault is not None and (
            refault == self.min_seq  # no older than the oldest: most of them
            or refault_distance(self.max_seq, refault) < self._max_gens
        )
        gen = self._youngest if recent else self._trial
        self._where[pfn] = self._read_in[pfn] = gen
        self._lists.add_tail(gen, pfn)
        return recent

    def insert_many(self, pfns: Sequence[int]) -> None:
        """Put new folios on trial, as so many calls of `insert` do."""
        if len(pfns) < 2 or max(pfns) >= len(self._where):
            for pfn in pfns:
                self.insert(pfn, refault=None)
            return
        where, read_in, trial = self._where, self._read_in, self._trial
        for pfn in pfns:
            if where[pfn] != _GONE:
                msg = f"insert of pfn {pfn}, which is resident already"
                raise ProtocolViolation(msg)
            where[pfn] = read_in[pfn] = trial
        self._lists.extend_tail(trial, pfns)

    def access(self, pfn: int) -> None:
        """Note a read; the scan acts on it."""
        self._read_in[pfn] = self._youngest

    def remove(self, pfn: int) -> None:
        """Forget a folio wherever it is."""
        where = self._where[pfn]
        if where < _ISOLATED:
            self._lists.remove(where, pfn)
        self._where[pfn] = _GONE

    def isolate(self, nr: int) -> list[int]:
        """Take up to `nr` folios off the oldest generations; those that were read move on."""
        lists, where, read_in = self._lists, self._where, self._read_in
        victims: list[int] = []
        scan = SCAN_MAX
        while len(victims) < nr and any(lists.sizes):
            self._age()
            oldest = self._oldest()
            if scan <= 0:
                victims = victims or lists.pop_many(oldest, nr)
                break
            cold, read = lists.split(oldest, nr - len(victims), read_in, oldest, scan)
            for pfn in read:
                where[pfn] = gen = read_in[pfn]
                lists.add_tail(gen, pfn)
            scan -= len(cold) + len(read)
            victims += cold
        for pfn in victims:
            where[pfn] = read_in[pfn] = _ISOLATED
        self._place_trial()
        return victims

    def putback(self, pfns: Sequence[int], verdict: Verdict) -> None:
        """Return isolated folios: read or unreclaimable ones to the youngest generation.

        KEEP goes back to the cold end of the oldest, in order, and is next again: a folio in flight
        has neither aged nor been promoted. ERROR goes to the hot end of the oldest, so that folios
        which fail each time cannot fill the cold end and hide the others.
        """
        self._expect_isolated(pfns)
        where, read_in, youngest = self._where, self._read_in, self._youngest
        if verdict in (Verdict.ACTIVATE, Verdict.CANCELLED):
            for pfn in pfns:
                where[pfn] = read_in[pfn] = youngest
            self._lists.extend_tail(youngest, pfns)
            return
        oldest = self._oldest()
        for pfn in pfns:
            where[pfn] = oldest
            read_in[pfn] = oldest if read_in[pfn] == _ISOLATED else youngest  # a read in flight
        extend = self._lists.extend_tail if verdict is Verdict.ERROR else self._lists.extend_head
        extend(oldest, pfns)

    def shadow(self, pfn: int) -> int:
        """Let an isolated folio go and return the generation that was oldest then."""
        if self._where[pfn] != _ISOLATED:
            raise _not_isolated(pfn)
        self._where[pfn] = _GONE
        return self.min_seq & EVICTION_MASK

    def age(self, now: float) -> None:  # noqa: ARG002 - its clock is the sequence, not the time
        """Make a new generation where one is due."""
        self._age()
        self._place_trial()

    def deactivate(self, pfn: int) -> None:
        """Move a folio on the lists to the cold end, its read forgotten (MADV_COLD)."""
        if self._where[pfn] < _ISOLATED:
            self._lists.remove(self._where[pfn], pfn)
            self._where[pfn] = self._read_in[pfn] = oldest = self._oldest()
            self._lists.add_head(oldest, pfn)

    def check(self) -> None:
        """Assert that lists, columns and sequence numbers say the same."""
        self._lists.check()
        assert _MIN_NR_GENS <= self.max_seq - self.min_seq + 1 <= self._max_gens
        live = {seq % self._max_gens for seq in range(self.min_seq, self.max_seq + 1)}
        assert self._youngest == self.max_seq % self._max_gens
        assert self._trial in live
        for gen, size in enumerate(self._lists.sizes):
            assert not size or gen in live, f"{size} folios in a generation that is over"
            assert self._where.count(gen) == size, f"generation {gen} has lost a folio"
            for pfn in self._lists.walk(gen):
                assert self._where[pfn] == gen
                assert self._read_in[pfn] in live, f"pfn {pfn} was read in no generation"

    def _oldest(self) -> int:
        return self.min_seq % self._max_gens

    def _age(self) -> None:
        """Drop the oldest generations that are empty, and make a youngest one if that is due."""
        sizes = self._lists.sizes
        total = sum(sizes)
        while total and not sizes[self._oldest()]:
            if self.max_seq - self.min_seq < _MIN_NR_GENS:
                self._inc_max_seq()
            self.min_seq += 1
        nr_gens = self.max_seq - self.min_seq + 1
        if nr_gens < self._max_gens and (
            nr_gens <= _MIN_NR_GENS
            or sizes[self._youngest] * 2 > total
            or sizes[self._oldest()] * 4 < total
        ):
            self._inc_max_seq()

    def _inc_max_seq(self) -> None:
        self.max_seq += 1
        self._youngest = self.max_seq % self._max_gens

    def _place_trial(self) -> None:
        """Choose the generation that new folios enter until the next isolation."""
        sizes = self._lists.sizes
        before = sum(sizes) // _TRIAL_SHARE
        seq = self.min_seq
        while before > sizes[seq % self._max_gens]:
            before -= sizes[seq % self._max_gens]
            seq += 1
        self._trial = seq % self._max_gens

    def _expect_isolated(self, pfns: Sequence[int]) -> None:
        for pfn in pfns:
            if self._where[pfn] != _ISOLATED:
                raise _not_isolated(pfn)


def _not_isolated(pfn: int) -> ProtocolViolation:
    return ProtocolViolation(f"verdict for pfn {pfn}, which is not isolated")
