"""`Stats`: what a memory has and has done, as one record whose names stay as they are.

Each field says in its metadata what it counts, and whether that is a level, which goes down as well
as up, or a total since the opening. Exporters make their metrics of just that.
"""

from __future__ import annotations

from typing import Any

import attrs

__all__ = ["Stats", "describe"]


def _level(words: str) -> Any:
    return attrs.field(metadata={"help": words, "total": False})


def _total(words: str) -> Any:
    return attrs.field(metadata={"help": words, "total": True})


@attrs.frozen
class Stats:
    """What a memory, or a group of it, has now, and has done since its opening.

    The end of a name is its unit: bytes, pages of the memory's page size, seconds, or things. Bytes
    add up: ``budget == resident + compressed + overhead + free``. A group counts what is in it and
    in the groups in it; what all groups share (staging, the FIFO, stores, actors) is that of the
    whole memory in the record of each. A name that is here will not go, nor change its meaning.
    """

    # levels
    keys: int = _level("Keys that have a value.")
    budget_bytes: int = _level("Bytes that it may hold.")
    resident_bytes: int = _level("Bytes of values in memory, those that waiting puts have reserved"
                                 " included.")  # fmt: skip
    in_flight_bytes: int = _level("Bytes of resident values that are on their way out.")
    pinned_bytes: int = _level("Bytes of resident values that pins keep there.")
    compressed_bytes: int = _level("Bytes of compressed values in the pool, and of what stores in"
                                   " this process hold.")  # fmt: skip
    overhead_bytes: int = _level("Bytes that keys and the bookkeeping of values cost.")
    free_bytes: int = _level("Bytes of the budget that nothing holds.")
    swapped_bytes: int = _level("Bytes that stores hold, outside the budget or in it.")
    staging_bytes: int = _level("Bytes of buffers shared with workers, outside the budget.")
    oldest_queued_seconds: float = _level("Seconds that the oldest page in the FIFO has waited.")
    serving: bool = _level("Whether calls are served: 0 once it closes or has crashed.")
    degraded_parts: int = _level("Parts that are not as configured, as its health says.")
    # totals
    stalled_some_seconds: float = _total("Seconds in which a caller waited for memory (PSI some).")
    stalled_full_seconds: float = _total("Seconds that the event loop spent on reclaim (PSI full).")
    compress_cpu_seconds: float = _total("Seconds of CPU that compressing took, workers included.")
    direct_stalls: int = _total("Puts that had to reclaim, or to wait for reclaim, below min.")
    pgscan_pages: int = _total("Pages that reclaim has looked at.")
    pgsteal_pages: int = _total("Pages whose bytes have left memory.")
    pglazyfreed_pages: int = _total("Pages of discardable values that reclaim has dropped.")
    expired_keys: int = _total("Keys that went because their time was over.")
    pgfault_pages: int = _total("Pages that came back, wherever they were.")
    pgmajfault_pages: int = _total("Pages that came back from a store.")
    refault_pages: int = _total("Pages that came back after reclaim had taken them.")
    zswpout_pages: int = _total("Pages that went to the pool, compressed.")
    zswpin_pages: int = _total("Pages that came back from the pool.")
    zswpwb_pages: int = _total("Pages that went from the pool to a store.")
    pswpout_pages: int = _total("Slots that stores have written.")
    pswpin_pages: int = _total("Slots that stores have read.")
    swapout_errors: int = _total("Writes that a store did not take.")
    swapin_errors: int = _total("Values, or parts of values, that a store did not give back.")
    actor_restarts: int = _total("Actors that were started again after a crash.")
    worker_deaths: int = _total("Worker processes that ended by themselves, or hung.")


def describe() -> dict[str, tuple[str, bool]]:
    """Return of each field what it counts, and whether it is a total since the opening."""
    return {
        field.name: (field.metadata["help"], field.metadata["total"])
        for field in attrs.fields(Stats)
    }
