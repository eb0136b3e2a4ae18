"""Reclaim gives up only once it has looked at everything since it last freed a byte."""

import random

import anyio
import pytest

import reclaimactors as ra
from reclaimactors.mm.folio import UNEVICTABLE
from reclaimactors.testing import FaultyBackend, Gate

PAGE = 4096
BUDGET = 4 << 20


def noise(i, size=PAGE):
    return random.Random(i).randbytes(size)


def text(i, size=PAGE):
    return (b"value %d that compresses, " % i * (size // 16 + 1))[:size]


TOPOLOGIES = pytest.mark.parametrize(
    "topology", ["kcompressd", "kswapd_only", "kswapd_only_inline", "padata", "padata_ordered"]
)
POLICIES = pytest.mark.parametrize("policy", ["mglru", "active_inactive"])


def opened(topology, **spec):
    spec = {"budget": BUDGET, "swap": [], "compress": {"offload": "inline"}} | spec
    return ra.open_memory(topology, **spec)


@TOPOLOGIES
@POLICIES
async def test_put_nowait_finds_what_compresses_behind_what_does_not(topology, policy):
    async with opened(topology, policy=policy) as memory:
        for i in range(400):
            memory.put_nowait(("noise", i), noise(i))
        for i in range(1500):
            memory.put_nowait(("text", i), text(i))
        assert memory.vmstat["pgsteal_anon"] > 0
        assert memory._node.check()


@TOPOLOGIES
@POLICIES
async def test_a_put_of_a_large_value_finds_it_although_it_was_read(topology, policy):
    async with opened(topology, policy=policy) as memory:
        for i in range(300):
            await memory.put(("noise", i), noise(i))
        for i in range(600):
            await memory.put(("text", i), text(i))
        for i in [*range(600)] * 2:
            await memory.get(("text", i))
        await memory.put("large", noise(0, 1 << 20))
        assert await memory.get("large") == noise(0, 1 << 20)


@TOPOLOGIES
async def test_reclaim_returns_what_can_be_freed(topology):
    async with opened(topology) as memory:
        for i in range(400):
            await memory.put(("noise", i), noise(i))
        for i in range(400):
            await memory.put(("text", i), text(i))
        assert await memory.reclaim(1 << 20) >= 1 << 20


async def test_what_does_not_compress_is_compressed_once_while_there_is_no_swap():
    async with opened("kcompressd") as memory:
        for i in range(900):
            await memory.put(i, noise(i))
        for _ in range(10):
            assert await memory.reclaim(1 << 20) == 0
            with pytest.raises(ra.OutOfMemory):
                await memory.put("more", noise(0, 3 << 20))
        vm = memory.vmstat
        assert vm["reject_compress_poor"] == vm["unevictable_pgs_culled"] == 900
        assert vm["nr_unevictable"] == 900


async def test_swap_that_appears_takes_it_without_compressing_it_again():
    async with opened("kcompressd") as memory:
        for i in range(900):
            await memory.put(i, noise(i))
        await memory.reclaim(1 << 20)
        await memory.swapon({"backend": "file", "size": "64MiB"})
        assert await memory.reclaim(1 << 20) >= 1 << 20
        await memory.drain()
        vm = memory.vmstat
        assert vm["reject_compress_poor"] == 900
        assert vm["unevictable_pgs_rescued"] >= (1 << 20) // PAGE
        assert [await memory.get(i) for i in range(900)] == [noise(i) for i in range(900)]
        assert memory._node.check()


async def test_a_value_that_is_overwritten_leaves_the_unevictable_list():
    async with opened("kcompressd") as memory:
        for i in range(900):
            await memory.put(i, noise(i))
        await memory.reclaim(1 << 20)
        for i in range(900):
            await memory.put(i, text(i))
        assert memory.vmstat["nr_unevictable"] == 0
        assert await memory.reclaim(1 << 20) >= 1 << 20


async def test_a_value_that_is_deleted_or_read_there_is_no_other_than_a_resident_one():
    async with opened("kcompressd") as memory:
        await memory.put("a", noise(1))
        await memory.put("b", noise(2))
        await memory.reclaim(1 << 20)
        node = memory._node
        assert {node.mm.state[node.values.small[key]] for key in "ab"} == {UNEVICTABLE}
        assert await memory.get("a") == memory.get_nowait("a") == noise(1)
        async with memory.pin("a") as view:
            assert view == noise(1)
            await memory.delete("a")
            assert view == noise(1)
        await memory.delete("b")
        assert len(memory) == memory.vmstat["nr_unevictable"] == 0
        assert node.check()


async def test_pinned_folios_at_the_cold_end_hide_nothing():
    async with opened("kswapd_only_inline") as memory:
        for i in range(400):
            await memory.put(("pinned", i), text(i))
        pins = [memory.pin(("pinned", i)) for i in range(400)]
        for pin in pins:
            await pin.__aenter__()
        for i in range(1500):
            memory.put_nowait(("text", i), text(i))
        for pin in pins:
            await pin.__aexit__(None, None, None)


async def test_a_pin_of_a_resident_value_needs_no_room():
    async with opened("kcompressd") as memory:
        for i in range(900):
            await memory.put(i, noise(i))
        pins = [memory.pin(i) for i in range(900)]
        for pin in pins:
            await pin.__aenter__()
        for pin in pins:
            await pin.__aexit__(None, None, None)


@pytest.mark.parametrize("topology", ["kcompressd", "kswapd_only_inline", "padata"])
async def test_a_store_that_hangs_stops_nothing_that_compresses(topology):
    gate = Gate()
    store = FaultyBackend(_memory_store(), store_gate=gate)
    async with opened(topology, swap=[{"backend": store}]) as memory:
        for i in range(200):
            await memory.put(("noise", i), noise(i))
        with anyio.fail_after(30):
            for i in range(3000):
                await memory.put(("text", i), text(i))
        assert memory.vmstat["pgsteal_anon"] > 0
        gate.open()
        await memory.drain()
        assert await memory.get(("noise", 0)) == noise(0)


def _memory_store():
    from reclaimactors.backends.memory import MemoryBackend

    class Elsewhere(MemoryBackend):
        """Costs the budget nothing."""

        def footprint(self, slots):
            return 0

    return Elsewhere()
