"""Two tenants of one memory, one of which wants far more than its share.

Run it: ``python examples/tenants.py``
"""

from __future__ import annotations

import asyncio

import reclaimactors as ra
from reclaimactors.units import format_size


def page(tenant: str, i: int) -> bytes:
    return "".join(f"{tenant} {i:06} {line * i % 9973:04}\n" for line in range(220)).encode()


async def main() -> None:
    async with ra.open_memory("kcompressd", budget="8MiB") as memory:
        small = memory.group("small", max="2MiB")
        hog = memory.group("hog", max="2MiB", high="1792KiB")
        for i in range(200):
            await small.put(i, page("small", i))
        for i in range(2500):  # ten times what it may hold: the rest is compressed, or on swap
            await hog.put(i, page("hog", i))
        for i in range(2500):
            assert await hog.get(i) == page("hog", i)
        for name, group in memory.groups.items():
            usage, stat = group.usage(), group.vmstat
            held = format_size(usage.budget - usage.free)
            print(f"{name}: {len(group)} values in {held}, {format_size(usage.swapped)} on swap")
            print(f"  pages taken {stat['pgsteal']}, times it waited for its max {stat['max']}")
        assert small.vmstat["pgscan"] == 0  # nothing was taken of one for the other

        await hog.set_limits(max="1MiB", high=None)  # what is beyond that is reclaimed first
        await hog.delete(reparent=False)  # and now its values are forgotten
        print(f"free: {format_size(memory.usage().free)}")


if __name__ == "__main__":
    asyncio.run(main())
