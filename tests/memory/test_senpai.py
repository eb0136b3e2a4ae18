"""senpai: what is cold leaves memory before there is pressure, and stops where callers stall."""

import random

import anyio
import pytest

import reclaimactors as ra
from reclaimactors.backends.memory import MemoryBackend
from reclaimactors.testing import FaultyBackend, Gate

PAGE = 4096
NR = 500
virtual = pytest.mark.asyncio(loop_factories=["virtual"])


def text(i, size=PAGE):
    return (b"value %d that compresses, " % i * (size // 16 + 1))[:size]


def noise(i, size=PAGE):
    return random.Random(i).randbytes(size)


def opened(swap=(), **senpai):
    senpai = {"enabled": True, "interval": 10, "percent": 1, "pressure": 1} | senpai
    spec = {"budget": "8MiB", "swap": list(swap), "compress": {"offload": "inline"}}
    return ra.open_memory("kcompressd", senpai=senpai, **spec)


async def fill(memory, nr=NR):
    for i in range(nr):
        await memory.put(i, text(i))


@virtual
async def test_it_is_off_by_default():
    async with opened(enabled=False) as memory:
        await fill(memory)
        await anyio.sleep(10_000)
        assert memory.vmstat["pgscan_proactive"] == 0
        assert memory._machine.starter.started is False
    assert not ra.Topology().senpai.enabled


@virtual
async def test_in_each_interval_it_reclaims_its_share_of_what_is_resident():
    async with opened() as memory:
        await fill(memory)
        resident = memory.usage().resident
        await anyio.sleep(10.5)
        first = memory.vmstat["senpai_freed"]
        assert 0.01 * resident <= first <= 0.01 * resident + 32 * PAGE
        await anyio.sleep(1000)
        freed = memory.vmstat["senpai_freed"]
        assert freed == pytest.approx(resident * (1 - 0.99**101), rel=0.15)
        for i in range(NR):
            assert await memory.get(i) == text(i)


@virtual
async def test_less_than_a_page_is_put_by_for_the_next_interval():
    async with opened(percent=0.01) as memory:
        await fill(memory)
        await anyio.sleep(15)
        assert memory.vmstat["pgscan_proactive"] == 0
        await anyio.sleep(300)
        assert 0 < memory.vmstat["senpai_freed"] < 30 * PAGE


@virtual
async def test_nothing_is_reclaimed_while_callers_stall():
    store = FaultyBackend(MemoryBackend())
    swap = [{"backend": store, "size": "16MiB", "timeout": 1e5}]
    async with opened(swap) as memory, anyio.create_task_group() as tasks:
        await memory.put("away", noise(1))
        await memory.reclaim(1 << 30)
        await memory.drain()
        await fill(memory)
        store.load_gate = Gate()
        tasks.start_soon(memory.get, "away")
        await anyio.sleep(1)
        before = memory.vmstat["pgscan_proactive"]
        await anyio.sleep(1000)
        assert memory.vmstat["pgscan_proactive"] == before
        store.load_gate.open()
        await anyio.sleep(1000)
        assert memory.vmstat["pgscan_proactive"] > before


@virtual
async def test_what_is_pinned_is_not_asked_for():
    async with opened() as memory:
        await memory.put("pinned", text(0, 200_000))
        async with memory.pin("pinned"):
            await anyio.sleep(1000)
            assert memory.vmstat["pgscan_proactive"] == 0


@pytest.mark.parametrize("key", ["interval", "percent", "pressure"])
def test_a_wrong_key_says_what_is_allowed(key):
    with pytest.raises(ra.TopologyError, match=rf"senpai\.{key} is -1; allowed: a number from"):
        opened(**{key: -1})


def test_check_says_what_it_does(tmp_path):
    from reclaimactors.topology import resolve
    from reclaimactors.topology.explain import explain

    lines = "\n".join(explain(resolve("kcompressd", senpai={"enabled": True})))
    assert "senpai: every 6 s, 0.05 % of what is resident" in lines
