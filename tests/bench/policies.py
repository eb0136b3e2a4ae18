"""Print hit ratios of the policies on a published trace.

    python tests/bench/policies.py [TRACE ...]        default data/web12.trace.xz: a few seconds

The trace is what people asked for on a web shop's product pages (data/README.md says whose it is);
any other of its format can be named. Each key is one folio, and a cache of so many per cent of all
keys evicts one folio for each that comes in. Each policy is run as the core runs it, and those with
refault distance once more without it: whatever comes back is taken for new. LRU and FIFO are the
yardsticks; nobody can be above *compulsory*, in which every key misses once.
"""

from __future__ import annotations

import lzma
import sys
from array import array
from collections import OrderedDict
from pathlib import Path
from typing import TYPE_CHECKING

from reclaimactors.mm.batch import SWAP_CLUSTER_MAX
from reclaimactors.policies.active_inactive import ActiveInactive
from reclaimactors.policies.mglru import Mglru
from reclaimactors.policies.s3fifo import S3Fifo
from reclaimactors.policies.sieve import Sieve

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from reclaimactors.abc import Policy

TRACE = Path(__file__).parent / "data" / "web12.trace.xz"
PERCENTS = (2, 5, 10, 20, 40)  #: of the keys of the trace
POLICIES: dict[str, Callable[[int], Policy]] = {
    "active_inactive": lambda pages: ActiveInactive(pages=pages),
    "mglru": lambda pages: Mglru(pages=pages),
    "s3fifo": lambda _pages: S3Fifo(),
    "sieve": lambda _pages: Sieve(),
}
WITH_DISTANCE = ("active_inactive", "mglru")  #: which remember how long a folio was away


def read(path: Path) -> list[int]:
    """Return a trace as pfns: the keys in the order in which they first appear."""
    keys = array("I")
    keys.frombytes(lzma.decompress(path.read_bytes()))
    pfns: dict[int, int] = {}
    return [pfns.setdefault(key, len(pfns)) for key in keys]


def replay(policy: Policy, trace: Iterable[int], size: int, *, refaults: bool) -> int:
    """Return the hits of a policy with room for `size` folios."""
    resident: set[int] = set()
    shadows: dict[int, int] = {}
    hits = evicted = 0
    for pfn in trace:
        if pfn in resident:
            hits += 1
            policy.access(pfn)
            continue
        if len(resident) == size:
            if evicted % SWAP_CLUSTER_MAX == 0:  # a pass of kswapd
                policy.age(evicted)
            (victim,) = policy.isolate(1)
            resident.remove(victim)
            shadows[victim] = policy.shadow(victim)
            evicted += 1
        policy.insert(pfn, refault=shadows.pop(pfn, None) if refaults else None)
        resident.add(pfn)
    return hits


def ordered(trace: Iterable[int], size: int, *, lru: bool) -> int:
    """Return the hits of plain LRU, or of FIFO."""
    resident: OrderedDict[int, None] = OrderedDict()
    hits = 0
    for pfn in trace:
        if pfn in resident:
            hits += 1
            if lru:
                resident.move_to_end(pfn)
            continue
        if len(resident) == size:
            resident.popitem(last=False)
        resident[pfn] = None
    return hits


def ratios(trace: Sequence[int], percents: Sequence[int] = PERCENTS) -> dict[str, list[float]]:
    """Return the hit ratio of each row at each size."""
    keys = max(trace) + 1
    sizes = [max(1, keys * percent // 100) for percent in percents]
    hits: dict[str, list[int]] = {}
    for name, make in POLICIES.items():
        hits[name] = [replay(make(n), trace, n, refaults=True) for n in sizes]
        if name in WITH_DISTANCE:
            row = f"{name}, refaults ignored"
            hits[row] = [replay(make(n), trace, n, refaults=False) for n in sizes]
    hits["LRU"] = [ordered(trace, n, lru=True) for n in sizes]
    hits["FIFO"] = [ordered(trace, n, lru=False) for n in sizes]
    hits["compulsory"] = [len(trace) - keys for _ in sizes]
    return {row: [nr / len(trace) for nr in of_size] for row, of_size in hits.items()}


def main(paths: Sequence[Path], say: Callable[[str], object] = print) -> None:
    """Print a table for each trace."""
    for path in paths:
        trace = read(path)
        say(f"{path.name}: {len(trace):,} reads of {max(trace) + 1:,} keys; hits per cent")
        say("| room for | " + " | ".join(f"{percent} % of keys" for percent in PERCENTS) + " |")
        say("|---" * (1 + len(PERCENTS)) + "|")
        for row, of_size in ratios(trace).items():
            say(f"| {row} | " + " | ".join(f"{100 * ratio:.1f}" for ratio in of_size) + " |")


if __name__ == "__main__":
    main([Path(name) for name in sys.argv[1:]] or [TRACE])
