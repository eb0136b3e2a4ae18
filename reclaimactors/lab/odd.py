"""Counters that are unusual: what each means, and what to do about it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import attrs

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

__all__ = ["ODD", "Odd", "odd_of"]

_STORE = "memory.health() and the log name the store and its error; its file's disk may be full."
_MORE = (
    "Give reclaim more: mode padata with more workers, a deeper fifo or a cheaper compressor; or"
    " on_full = wait, which never compresses in the event loop while there is time."
)


@attrs.frozen
class Odd:
    """Something that is worth a look.

    Attributes:
        name: of the counter, or of what is made of several.
        means: what has happened, in a sentence.
        do: what to do about it.
        share: what it is out of these counters, 0 to 1, where it is unusual from some share on.
        of: those counters; none where any count is unusual.
    """

    name: str
    means: str
    do: str
    share: float = 0.0
    of: Sequence[str] = ()

    def seen(self, vmstat: Mapping[str, int]) -> str:
        """Return what was counted, in words; "" where it is nothing unusual."""
        count = vmstat.get(self.name, 0)
        if not self.of:
            return f"{count:,}" if count else ""
        whole = sum(vmstat.get(name, 0) for name in self.of)
        if not whole or count <= self.share * whole:
            return ""
        return f"{count:,} ({count / whole:.0%} of {' and '.join(self.of)})"


ODD: Sequence[Odd] = (
    Odd(
        "allocstall_normal",
        "Puts found free memory below min, and reclaimed for themselves in the event loop.",
        "Raise the watermarks low and high, so that kswapd begins earlier. " + _MORE,
    ),
    Odd(
        "kcompressd_inline",
        "The FIFO was full, and kswapd compressed these pages itself.",
        _MORE,
        0.05,
        ("kcompressd_queued", "kcompressd_inline"),
    ),
    Odd(
        "kcompressd_stolen",
        "The FIFO was full, and kswapd took these pages back from its head.",
        _MORE,
        0.05,
        ("kcompressd_queued",),
    ),
    Odd(
        "workingset_refault_anon",
        "More than half as many pages came back as were stolen: what is used does not fit.",
        "A larger budget, or another policy; compressing harder makes more fit.",
        0.5,
        ("pgsteal_anon",),
    ),
    Odd(
        "pool_limit_hit",
        "The pool was at its limit, and these folios went to a store, or stayed.",
        "Raise max_pool_percent of zswap, or let a store with a higher priority take what is cold.",
    ),
    Odd(
        "reject_compress_poor",
        "The blobs of these folios would have been more than 15/16 of them.",
        "`reclaimactors probe` says what compresses, and in which unit: larger values do better."
        " Data that never do need no pool: zswap = { enabled = false }.",
        0.1,
        ("reclaim_isolated",),
    ),
    Odd(
        "unevictable_pgs_culled",
        "These pages do not compress, no store takes them, and so they are not looked at again.",
        "Give the memory a store, or a larger budget.",
    ),
    Odd(
        "reject_compress_fail",
        "The compressor raised on these folios.",
        "`reclaimactors check-plugin NAME` says which rule it breaks.",
    ),
    Odd(
        "reject_alloc_fail",
        "There was no memory for the blobs of these folios.",
        "The machine is short of memory: a smaller budget.",
    ),
    Odd(
        "decompress_fail",
        "Blobs did not come back as they were: readers got CorruptData.",
        "`reclaimactors check-plugin NAME` of the compressor; then test the machine's memory.",
    ),
    Odd("reject_reclaim_fail", "A store refused what the pool wrote back.", _STORE),
    Odd("swapout_error", "A store did not take what was written; it stayed in memory.", _STORE),
    Odd("swapin_error", "A store did not give back what it held.", _STORE),
    Odd("swap_out_of_service", "A store failed, and rests before it is tried again.", _STORE),
    Odd(
        "zswap_shrink_gave_up",
        "What writes the pool back failed 16 times in a row, and gave up for then.",
        _STORE,
    ),
    Odd(
        "nr_throttled_written",
        "Folios that a store had no room in its mailbox for: reclaim waited for the store.",
        "The store is slower than reclaim: a faster disk, or more of it in RAM (max_pool_percent).",
        0.1,
        ("pswpout",),
    ),
    Odd(
        "kcompressd_handed_back",
        "A crash, or the close, took these folios back out of the queue.",
        "At a close it is normal; otherwise the log says what has crashed.",
    ),
    Odd("actor_restarts", "An actor crashed, and was started again.", "The log says why."),
    Odd(
        "worker_deaths",
        "A worker process ended by itself, or was killed because it hung.",
        "The log says how; where the system's out-of-memory killer did it, a smaller budget.",
    ),
)


def odd_of(vmstats: Mapping[str, Mapping[str, int]]) -> Iterator[tuple[Odd, dict[str, str]]]:
    """Yield what is unusual anywhere, with what was counted in each topology where it is.

    Args:
        vmstats: the counters of each topology.
    """
    for odd in ODD:
        seen = {name: words for name, vmstat in vmstats.items() if (words := odd.seen(vmstat))}
        if seen:
            yield odd, seen
