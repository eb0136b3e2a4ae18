"""Mapped keys: a loader is asked for the value of a key while the memory holds none."""

import array
import random

import anyio
import pytest

import reclaimactors as ra
from reclaimactors.topology import builtin_names

virtual = pytest.mark.asyncio(loop_factories=["virtual"])
PAGE = 4096


def open_memory(topology="kcompressd", **spec):
    spec = {"budget": "256KiB", "swap": [], "compress": {"offload": "inline"}} | spec
    return ra.open_memory(topology, **spec)


def page(key, size=PAGE):
    return random.Random(key).randbytes(size)


class Files:
    """What the keys stand for, how often each was read, and a gate to hold readers at."""

    def __init__(self, size=PAGE):
        self.size = size
        self.reads = []
        self.error = None
        self.gate = None

    async def load(self, key):
        self.reads.append(key)
        if self.gate is not None:
            await self.gate.wait()
        if self.error is not None:
            raise self.error
        return page(key, self.size)


class Gets:
    """What gets of one key that are made at the same time came to."""

    def __init__(self, memory, key="a"):
        self._memory = memory
        self._key = key
        self.values = []
        self.errors = []

    async def get(self):
        try:
            self.values.append(await self._memory.get(self._key))
        except (OSError, anyio.ClosedResourceError) as exc:
            self.errors.append(exc)


async def turns(nr=20):
    for _ in range(nr):
        await anyio.lowlevel.checkpoint()


async def test_what_was_loaded_is_held_and_loaded_again_once_reclaim_has_dropped_it():
    async with open_memory() as memory:
        files = Files()
        for key in range(200):
            memory.map(key, files.load)
        for key in range(200):
            assert await memory.get(key) == page(key)
        assert files.reads == list(range(200))
        assert 0 < len(memory) < 60, "four times the budget does not fit"
        await memory.drain()
        vm = memory.vmstat
        assert vm["pglazyfreed"] > 0
        assert vm["zswpout"] == vm["pswpout"] == vm["pgsteal_anon"] == 0
        held = memory.keys()
        for key in held:
            assert await memory.get(key) == page(key)
        assert len(files.reads) == 200
        assert vm["pgmajfault"] == 200
        gone = next(key for key in range(200) if key not in memory)
        assert await memory.get(gone) == page(gone)
        assert files.reads[200:] == [gone]
        assert memory._node.check()


@pytest.mark.parametrize("topology", builtin_names())
async def test_in_every_topology_it_is_dropped_beside_values_that_are_kept(topology):
    swap = [{"backend": "zram" if topology == "zram" else "memory"}]
    async with open_memory(topology, swap=swap) as memory:
        files = Files()
        for key in range(100):
            memory.map(key, files.load)
            await memory.put(f"own {key}", b"%d of mine " % key * 300)
            assert await memory.get(key) == page(key)
        await memory.drain()
        assert memory.vmstat["pglazyfreed"] > 0
        for key in range(100):
            assert await memory.get(key) == page(key)
            assert await memory.get(f"own {key}") == b"%d of mine " % key * 300
        assert memory._node.check()


@pytest.mark.parametrize("size", [0, 100, PAGE, 20 * PAGE])
async def test_values_of_any_size_are_loaded(size):
    async with open_memory(max_folio="16KiB", budget="1MiB") as memory:
        files = Files(size)
        memory.map("a", files.load)
        for _ in range(2):
            assert await memory.get("a") == page("a", size)
        assert files.reads == ["a"]
        async with memory.pin("a") as view:
            assert bytes(view) == page("a", size)


async def test_a_value_that_does_not_fit_is_handed_out_and_not_held():
    async with open_memory() as memory:
        memory.map("a", Files(1 << 20).load)
        assert await memory.get("a") == page("a", 1 << 20)
        assert "a" not in memory


@pytest.mark.parametrize(
    "given", [bytearray(b"abc"), memoryview(b"abc"), array.array("B", b"abc"), [b"a", b"bc"]]
)
async def test_a_loader_gives_what_put_takes(given):
    async def load(_key):
        return given

    async with open_memory() as memory:
        memory.map("a", load)
        got = await memory.get("a")
        assert (type(got), got) == (bytes, b"abc")


async def test_gets_at_the_same_time_have_it_loaded_once():
    async with open_memory() as memory:
        files, gets = Files(), Gets(memory)
        files.gate = anyio.Event()
        memory.map("a", files.load)
        async with anyio.create_task_group() as tasks:
            for _ in range(5):
                tasks.start_soon(gets.get)
            await turns()
            files.gate.set()
        assert gets.values == [page("a")] * 5
        assert files.reads == ["a"]


async def test_an_error_reaches_all_who_wait_and_poisons_nothing():
    async with open_memory() as memory:
        files, gets = Files(), Gets(memory)
        files.gate, files.error = anyio.Event(), OSError("no such disk")
        memory.map("a", files.load)
        async with anyio.create_task_group() as tasks:
            for _ in range(3):
                tasks.start_soon(gets.get)
            await turns()
            files.gate.set()
        assert gets.errors == [files.error] * 3
        files.error = None
        assert await memory.get("a") == page("a")
        assert files.reads == ["a", "a"]


async def test_who_waits_for_a_get_that_is_cancelled_loads_for_himself():
    async with open_memory() as memory:
        files, gets = Files(), Gets(memory)
        files.gate = anyio.Event()
        memory.map("a", files.load)
        async with anyio.create_task_group() as tasks:
            with anyio.CancelScope() as first:
                async with anyio.create_task_group() as firsts:
                    firsts.start_soon(gets.get)
                    await turns()
                    tasks.start_soon(gets.get)
                    tasks.start_soon(gets.get)
                    await turns()
                    first.cancel()
            await turns()
            assert files.reads == ["a", "a"]
            files.gate.set()
        assert gets.values == [page("a")] * 2


async def test_a_put_while_it_is_loaded_wins():
    async with open_memory() as memory:
        files = Files()
        files.gate = anyio.Event()
        memory.map("a", files.load)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(memory.get, "a")
            await turns()
            await memory.put("a", b"mine")
            files.gate.set()
        assert await memory.get("a") == b"mine"


async def test_a_put_while_it_is_loaded_for_a_pop_is_what_is_popped():
    async with open_memory() as memory:
        files, popped = Files(), []
        files.gate = anyio.Event()
        memory.map("a", files.load)

        async def pop():
            popped.append(await memory.pop("a"))

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(pop)
            await turns()
            await memory.put("a", b"mine")
            files.gate.set()
        assert popped == [b"mine"]
        with pytest.raises(KeyError):
            await memory.get("a")


@pytest.mark.parametrize("ends", ["put", "delete"])
async def test_a_pin_that_waits_for_room_overwrites_and_revives_nothing(ends, monkeypatch):
    async with open_memory() as memory:
        memory.map("a", Files().load)
        real = memory._batches.put_if
        monkeypatch.setattr(memory._mapped, "_keep", lambda *_: None)  # there is no room

        async def waits(*args):
            await (memory.put("a", b"mine") if ends == "put" else memory.delete("a"))
            return await real(*args)

        monkeypatch.setattr(memory._batches, "put_if", waits)
        if ends == "put":
            async with memory.pin("a") as view:
                assert bytes(view) == b"mine"
            assert await memory.get("a") == b"mine"
        else:
            with pytest.raises(KeyError):
                async with memory.pin("a"):
                    pass
            assert "a" not in memory


async def test_a_value_that_is_put_is_kept_as_any_other():
    async with open_memory() as memory:
        files = Files()
        memory.map("a", files.load)
        await memory.put("a", b"x" * PAGE)
        await memory.reclaim(1 << 20)
        assert memory.vmstat["pglazyfreed"] == 0
        assert await memory.get("a") == b"x" * PAGE
        assert files.reads == []


@virtual
async def test_once_a_value_has_ended_it_is_loaded_again():
    async with open_memory() as memory:
        memory.map("a", Files().load)
        await memory.put("a", b"for a while", expires_in=5)
        assert await memory.get("a") == b"for a while"
        await anyio.sleep(6)
        assert await memory.get("a") == page("a")


async def test_delete_forgets_the_loader_too():
    async with open_memory() as memory:
        files = Files()
        for key in "abc":
            memory.map(key, files.load)
        await memory.get("a")
        await memory.delete("a")
        await memory.delete("b")
        assert await memory.delete_many("bcd") == 1
        for key in "abc":
            with pytest.raises(KeyError):
                await memory.get(key)
            with pytest.raises(KeyError):
                await memory.delete(key)
        assert files.reads == ["a"]


async def test_mapped_anew_what_was_loaded_before_is_forgotten():
    async with open_memory() as memory:
        old = Files()
        old.gate = anyio.Event()

        async def new(_key):
            return b"new"

        memory.map("a", old.load)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(memory.get, "a")
            await turns()
            memory.map("a", new)
            assert await memory.get("a") == b"new"
            old.gate.set()
        assert await memory.get("a") == b"new"
        memory.map("a", Files().load)
        assert await memory.get("a") == page("a")


async def test_every_way_to_read_has_it_loaded():
    async with open_memory() as memory:
        files = Files()
        for key in range(6):
            memory.map(key, files.load)
        await memory.put("own", b"own")
        found = await memory.get_many([0, "own", "none", 1])
        assert found == {0: page(0), "own": b"own", 1: page(1)}
        with pytest.raises(anyio.WouldBlock):
            memory.get_nowait(2)
        assert bytes(await memory.get_writable(2)) == page(2)
        assert memory.get_nowait(2) == page(2)
        async with memory.pin(3) as view:
            assert bytes(view) == page(3)
        assert await memory.pop(4) == page(4)
        with pytest.raises(KeyError):
            await memory.get(4)
        assert await memory.get(5, None) == page(5)


async def test_a_loader_without_a_value_says_so_by_key_error():
    async def load(key):
        raise KeyError(key)

    async with open_memory() as memory:
        memory.map("a", load)
        with pytest.raises(KeyError, match="a"):
            await memory.get("a")
        assert await memory.get("a", 7) == 7
        assert await memory.get_many(["a"]) == {}
        assert await memory.pop("a", 7) == 7


async def test_the_first_error_of_many_is_raised():
    async with open_memory() as memory:
        files = Files()
        files.error = OSError("no such disk")
        for key in range(40):
            memory.map(key, files.load)
        with pytest.raises(OSError, match="no such disk"):
            await memory.get_many(range(40))
        assert len(files.reads) == 16


async def test_what_is_no_loader_and_what_is_no_value_is_said():
    async def text(_key):
        return "text"

    async def itself(key):
        return await memory.get(key)

    async with open_memory() as memory:
        with pytest.raises(TypeError, match=r"loader is 7; allowed: a function of the key"):
            memory.map("a", 7)
        with pytest.raises(TypeError, match="unhashable"):
            memory.map([], text)
        memory.map("a", text)
        with pytest.raises(TypeError, match=r"loader of key 'a' gave no value: .*not str"):
            await memory.get("a")
        memory.map("b", lambda _key: b"at once")
        with pytest.raises(TypeError, match=r"loader of key 'b' returned bytes; .*async def"):
            await memory.get("b")
        memory.map("c", itself)
        with pytest.raises(RuntimeError, match=r"loader of key 'c' asks the memory for that key"):
            await memory.get("c")


async def test_a_group_has_loaders_of_its_own():
    async with open_memory() as memory:
        files = Files()
        group = memory.group("a", max="64KiB")
        group.map("k", files.load)
        with pytest.raises(KeyError):
            await memory.get("k")
        assert await group.get("k") == page("k")
        for key in range(40):
            group.map(key, files.load)
            assert await group.get(key) == page(key)
            await turns(3)
        assert group.usage().resident <= 64 << 10
        assert group.vmstat["pglazyfreed"] > 0
        await group.delete(reparent=True)
        with pytest.raises(KeyError):
            await memory.get("none")


async def test_a_get_that_waits_for_a_loader_ends_with_its_memory():
    files = Files()
    files.gate = anyio.Event()
    async with anyio.create_task_group() as tasks:
        async with open_memory() as memory:
            gets = Gets(memory)
            memory.map("a", files.load)
            tasks.start_soon(gets.get)
            tasks.start_soon(gets.get)
            await turns()
        files.gate.set()
    assert [type(error) for error in gets.errors] == [anyio.ClosedResourceError] * 2


async def test_random_calls_always_read_what_was_put_or_what_the_loader_gives():
    rng = random.Random(7)
    async with open_memory() as memory:
        files, own = Files(), {}
        for key in range(120):
            memory.map(key, files.load)

        async def client(nr):
            for _ in range(300):
                key = rng.randrange(30) * 4 + nr  # nobody else puts it
                what = rng.random()
                if what < 0.15:
                    value = b"%d of mine " % rng.randrange(99) * 300
                    await memory.put(key, value, discardable=what < 0.05)
                    own[key] = {value, page(key)} if what < 0.05 else {value}
                elif what < 0.2:
                    await memory.reclaim(8 * PAGE)
                else:
                    assert await memory.get(key) in own.get(key, {page(key)})

        async with anyio.create_task_group() as tasks:
            for nr in range(4):
                tasks.start_soon(client, nr)
        for key in range(120):
            assert await memory.get(key) in own.get(key, {page(key)})
        assert memory._node.check()
