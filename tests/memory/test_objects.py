"""Objects: any value, no copy more than needed, nothing unpickled that a store has forged."""

import pickle
import tracemalloc
from dataclasses import dataclass

import pytest

import reclaimactors as ra
from reclaimactors import objects as objects_module

FOLIO = 16 << 10


@dataclass
class Point:
    x: int
    y: list


class Block:
    """A value that pickles its bytes out of band, as an array does."""

    def __init__(self, data):
        self.data = data

    def __reduce_ex__(self, protocol):
        return Block, (pickle.PickleBuffer(self.data),)

    def __eq__(self, other):
        return bytes(self.data) == bytes(other.data)

    __hash__ = None


def open_memory(**overrides):
    spec = {"budget": "8MiB", "max_folio": FOLIO, "swap": [], "compress": {"offload": "inline"}}
    return ra.open_memory("kcompressd", **spec | overrides)


@pytest.mark.parametrize(
    "value", [None, 7, "text", {"a": [1, (2, 3)]}, Point(1, [2]), b"x" * 100_000], ids=type
)
async def test_a_value_of_any_type_comes_back(value):
    async with open_memory() as memory:
        objects = ra.Objects(memory)
        await objects.put("a", value)
        assert "a" in objects
        assert len(objects) == 1
        assert objects.keys() == ["a"]
        await memory.reclaim(1 << 30)
        assert await objects.get("a") == value
        assert await objects.get_many(["a", "b"]) == {"a": value}
        assert await objects.pop("a") == value
        assert await objects.pop("a", 5) == 5
        assert await objects.get("a", 6) == 6
        for call in (objects.get, objects.pop, objects.delete):
            with pytest.raises(KeyError, match="a"):
                await call("a")


@pytest.mark.parametrize("sizes", [[0], [1], [100, 63, 64], [FOLIO], [FOLIO + 1, 3, 5 * FOLIO]])
async def test_large_buffers_go_and_come_out_of_band(sizes):
    value = [Block(bytearray(bytes([i + 1]) * size)) for i, size in enumerate(sizes)]
    async with open_memory() as memory:
        objects = ra.Objects(memory)
        await objects.put_many([("a", value), ("b", 1)])
        for got in (
            await objects.get("a"),
            (await objects.get_many(["a"]))["a"],
            await objects.pop("a"),
        ):
            assert got == value
            for block in got:
                assert memoryview(block.data).nbytes == len(bytes(block.data))
                if bytes(block.data):
                    block.data[0] = 255  # it is the value's own, and may be written to
        assert memory._node.check()


async def test_an_object_is_copied_once_in_and_once_out():
    size = 2 << 20
    value = Block(bytearray(b"once " * (size // 5)))
    async with open_memory() as memory:
        objects = ra.Objects(memory)
        tracemalloc.start()
        try:
            await objects.put("a", value)
            _, most_in = tracemalloc.get_traced_memory()
            tracemalloc.reset_peak()
            before, _ = tracemalloc.get_traced_memory()
            got = await objects.get("a")
            _, most_out = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert got == value
        assert most_in < 1.2 * size  # the folios, which stay
        assert most_out - before < 0.2 * size  # a map of its own, which is not traced


async def test_several_buffers_are_one_value():
    async with open_memory() as memory:
        pieces = [b"head", bytearray(FOLIO), memoryview(b"0123456789")[::2], b"", b"x" * 2 * FOLIO]
        whole = b"".join(map(bytes, pieces))
        await memory.put("a", pieces)
        memory.put_nowait("b", tuple(pieces))
        await memory.put_many({"c": pieces, "d": []})
        assert await memory.get_many("abcd") == {"a": whole, "b": whole, "c": whole, "d": b""}
        copy = await memory.get_writable("a")
        copy[0] = 0
        assert await memory.get("a") == whole
        with pytest.raises(TypeError, match="not str"):
            await memory.put("a", [b"bytes", "text"])


async def test_other_dumps_and_loads():
    async with open_memory() as memory:
        objects = ra.Objects(memory, str.encode, bytes.decode)
        await objects.put("a", "text")
        assert await memory.get("a") == b"text"
        assert await objects.get("a") == await objects.pop("a") == "text"
        with pytest.raises(TypeError, match="both"):
            ra.Objects(memory, str.encode)


async def test_msgspec_is_one_line():
    msgspec = pytest.importorskip("msgspec")
    async with open_memory() as memory:
        decode = msgspec.msgpack.Decoder(Point).decode
        objects = ra.Objects(memory, msgspec.msgpack.encode, decode)
        await objects.put("a", Point(1, [2]))
        assert await objects.get("a") == Point(1, [2])


async def test_what_cannot_be_pickled_leaves_the_old_value():
    async with open_memory() as memory:
        objects = ra.Objects(memory)
        await objects.put("a", 1)
        with pytest.raises((pickle.PicklingError, AttributeError)):
            await objects.put("a", lambda: 1)
        assert await objects.get("a") == 1


async def test_bytes_of_somebody_else_are_not_unpickled(monkeypatch):
    monkeypatch.setattr(objects_module.pickle, "loads", lambda *_, **__: pytest.fail("unpickled"))
    async with open_memory() as memory:
        await memory.put("a", pickle.dumps("forged"))
        with pytest.raises(ValueError, match="something else"):
            await ra.Objects(memory).get("a")


class Forger(ra.Backend):
    """A store that gives back a pickle of its own."""

    def __init__(self):
        self.slots = {}

    async def store_many(self, items):
        self.slots.update(items)

    async def load_many(self, slots):
        return [pickle.dumps("forged").ljust(len(self.slots[slot]), b".") for slot in slots]

    async def invalidate_many(self, slots):
        pass


@pytest.mark.parametrize("call", ["get", "pop", "get_many"])
@pytest.mark.parametrize("size", [100, 5 * FOLIO])
async def test_nothing_is_unpickled_that_a_store_has_changed(monkeypatch, call, size):
    stores = [{"backend": Forger(), "size": "8MiB"}]
    async with open_memory(zswap={"enabled": False}, swap=stores) as memory:
        objects = ra.Objects(memory)
        await objects.put("a", Block(bytearray(range(100)) * (size // 100)))
        await memory.reclaim(1 << 30)
        await memory.drain()
        monkeypatch.setattr(
            objects_module.pickle, "loads", lambda *_, **__: pytest.fail("unpickled")
        )
        with pytest.raises(ra.CorruptData, match="checksum"):
            await getattr(objects, call)(["a"] if call == "get_many" else "a")
