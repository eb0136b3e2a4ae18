"""What py-key-value's stores do, and what is peculiar to this one."""
# ruff: noqa: D103 - a test's name is its sentence

from __future__ import annotations

import asyncio  # noqa: TID251 - the virtual clock is one of its loops
from typing import TYPE_CHECKING

import pytest
from key_value.aio.errors import InvalidTTLError
from key_value.aio.wrappers.prefix_keys import PrefixKeysWrapper

import reclaimactors as ra
from reclaimactors.testing import VirtualClockLoop
from reclaimactors_key_value import ReclaimStore

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

SPEC = {"budget": "1MiB", "swap": [], "compress": {"offload": "inline"}}


@pytest.fixture
async def memory() -> AsyncIterator[ra.Memory]:
    async with ra.open_memory(**SPEC) as memory:
        yield memory


async def test_values_of_collections(memory: ra.Memory) -> None:
    store = ReclaimStore(memory)
    await store.put("key", {"a": [1, None, "ä"]})
    await store.put("key", {"b": 2}, collection="other")
    assert await store.get("key") == {"a": [1, None, "ä"]}
    assert await store.get("key", collection="other") == {"b": 2}
    assert await store.get("key", collection="none") is None
    assert sorted(await store.collections()) == ["default_collection", "other"]
    assert await store.keys("other") == ["key"]
    assert await store.delete("key")
    assert not await store.delete("key")
    assert await store.destroy_collection("other")
    assert not await store.destroy_collection("other")
    assert len(memory) == 0


async def test_many_at_once(memory: ra.Memory) -> None:
    store = ReclaimStore(memory)
    await store.put_many(["a", "b", "c"], [{"v": 1}, {"v": 2}, {"v": 3}], ttl=60)
    assert await store.get_many(["c", "x", "a"]) == [{"v": 3}, None, {"v": 1}]
    (value, ttl), absent = await store.ttl_many(["b", "x"])
    assert value == {"v": 2}
    assert ttl is not None
    assert 50 < ttl <= 60
    assert absent == (None, None)
    assert await store.delete_many(["a", "b", "x"]) == 2
    await store.put_many([], [])
    assert await store.keys() == ["c"]


def test_what_nobody_reads_goes_once_its_ttl_is_over() -> None:
    async def main() -> None:
        async with ra.open_memory(**SPEC) as memory:
            store = ReclaimStore(memory)
            await store.put("key", {"v": 1}, ttl=10)
            await store.put("stays", {"v": 1})
            assert (memory.expires_in(("py-key-value", "", "default_collection", "key")) or 0) > 9
            await asyncio.sleep(12)
            assert await store.keys() == ["stays"]
            assert len(memory) == 1

    with asyncio.Runner(loop_factory=VirtualClockLoop) as runner:
        runner.run(main())


@pytest.mark.parametrize("ttl", [0, -1, True])
async def test_a_ttl_that_is_none_is_refused(memory: ra.Memory, ttl: float) -> None:
    with pytest.raises(InvalidTTLError):
        await ReclaimStore(memory).put("key", {}, ttl=ttl)


async def test_nothing_is_dropped_beyond_the_budget(memory: ra.Memory) -> None:
    store = ReclaimStore(memory)
    for i in range(400):
        await store.put(f"{i}", {"text": f"value {i} " * 1000})
    assert memory.stats().zswpout_pages > 0
    assert len(await store.keys()) == 400
    for i in range(400):
        assert await store.get(f"{i}") == {"text": f"value {i} " * 1000}


async def test_a_cache_drops_what_is_cold(memory: ra.Memory) -> None:
    store = ReclaimStore(memory, discardable=True)
    for i in range(400):
        await store.put(f"{i}", {"text": f"value {i} " * 1000}, ttl=3600)
    assert await store.get("399") == {"text": "value 399 " * 1000}
    assert len(await store.keys()) < 400
    assert memory.stats().pglazyfreed_pages > 0
    assert memory.stats().zswpout_pages == 0


async def test_stores_of_two_names_share_a_memory_with_other_keys(memory: ra.Memory) -> None:
    one, other = ReclaimStore(memory, name="one"), ReclaimStore(memory, name="other")
    await memory.put("key", b"bytes")
    await one.put("key", {"v": 1})
    await other.put("key", {"v": 2})
    assert await one.get("key") == {"v": 1}
    assert await one.destroy()
    assert await other.get("key") == {"v": 2}
    assert await memory.get("key") == b"bytes"


async def test_seeds_and_wrappers(memory: ra.Memory) -> None:
    seeded = ReclaimStore(memory, seed={"c": {"key": {"v": 1}}}, default_collection="c")
    assert await seeded.get("key") == {"v": 1}
    prefixed = PrefixKeysWrapper(seeded, prefix="user")
    await prefixed.put("key", {"v": 2})
    assert await prefixed.get("key") == {"v": 2}
    assert len(await seeded.keys()) == 2
