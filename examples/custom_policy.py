"""A reclaim policy: plain LRU, in one ordered dict. What was not read for longest goes first.

Run it:                       ``python examples/custom_policy.py``
Ask whether it is right:      ``pytest examples/custom_policy.py``
Give it to everybody by name: put this in the pyproject.toml of your distribution, and say
                              ``policy = "plain_lru"`` at the top of a topology:

    [project.entry-points."reclaimactors.policies"]
    plain_lru = "custom_policy:PlainLru"
"""

# ruff: noqa: D102 - what each method must do is said in reclaimactors.Policy

from __future__ import annotations

import asyncio
from collections import OrderedDict
from typing import TYPE_CHECKING

import reclaimactors as ra
from reclaimactors.testing import PolicyTests

if TYPE_CHECKING:
    from collections.abc import Sequence


class PlainLru:
    """Folios in the order of their last reads; `pages`, the budget in pages, is not needed."""

    def __init__(self, *, pages: int = 0) -> None:  # noqa: ARG002 - given where it is named
        self._cold_first: OrderedDict[int, None] = OrderedDict()

    def insert(self, pfn: int, *, refault: int | None) -> None:  # noqa: ARG002 - no ghosts
        self._cold_first[pfn] = None

    def access(self, pfn: int) -> None:
        if pfn in self._cold_first:  # it may be read while it is isolated
            self._cold_first.move_to_end(pfn)

    def remove(self, pfn: int) -> None:
        self._cold_first.pop(pfn, None)

    def isolate(self, nr: int) -> list[int]:
        nr = min(nr, len(self._cold_first))
        return [self._cold_first.popitem(last=False)[0] for _ in range(nr)]

    def putback(self, pfns: Sequence[int], verdict: ra.Verdict) -> None:
        self._cold_first.update(dict.fromkeys(pfns))
        if verdict is ra.Verdict.KEEP:  # it has not aged: it is next again
            for pfn in reversed(pfns):
                self._cold_first.move_to_end(pfn, last=False)

    def shadow(self, pfn: int) -> int:  # noqa: ARG002 - nothing to remember of it
        return 0

    def age(self, now: float) -> None:
        pass  # reads alone give the order

    def deactivate(self, pfn: int) -> None:  # optional: what Advice.COLD does
        if pfn in self._cold_first:
            self._cold_first.move_to_end(pfn, last=False)


class TestPlainLru(PolicyTests):
    """All that a policy must do, inherited."""

    def make_policy(self, pages: int) -> ra.Policy:
        return PlainLru(pages=pages)


def page(i: int) -> bytes:
    return b"".join(b"%d, " % (i * k % 9973) for k in range(700))


async def main() -> None:
    for policy in ("mglru", PlainLru()):  # an object serves one memory: it has state
        async with ra.open_memory(budget="1MiB", policy=policy) as memory:
            for i in range(500):
                await memory.put(i, page(i))
                assert await memory.get(i // 50) == page(i // 50)
            stolen, again = memory.vmstat["pgsteal_anon"], memory.vmstat["zswpin"]
            assert stolen, "nothing was reclaimed"
            name = policy if isinstance(policy, str) else type(policy).__name__
            print(f"{name}: {stolen} pages were reclaimed, {again} of them were read again")


if __name__ == "__main__":
    asyncio.run(main())
