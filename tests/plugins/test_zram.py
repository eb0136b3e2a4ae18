"""The zram backend: what a slot holds, its limits and counters, recompression and writeback."""

import random

import anyio
import pytest
from anyio.lowlevel import checkpoint

from reclaimactors import (
    Backend,
    BackendError,
    BackendFull,
    CorruptData,
    PluginError,
    TopologyError,
)
from reclaimactors.backends import zram_passes
from reclaimactors.backends.memory import MemoryBackend
from reclaimactors.backends.zram import ZramBackend
from reclaimactors.compressors.lz4 import Lz4
from reclaimactors.registry import PluginRef, build
from reclaimactors.testing import FaultyBackend, Gate

PAGE = 4096


def text(seed=0, size=PAGE):
    return (b"value %d of zram, " % seed * (size // 8 + 1))[:size]


def noise(seed=0, size=PAGE):
    return random.Random(seed).randbytes(size)


def mixed(seed=0):
    """A page of which lz4 makes a little less, and zlib much less."""
    return bytes(random.Random(seed).choices(b"abcdefgh", k=PAGE // 2)) + text(seed, PAGE // 2)


@pytest.fixture
async def opened():
    """Make zrams, and open and close them."""
    made = []

    async def make(*args, **options):
        zram = ZramBackend(*args, **options)
        made.append(zram)
        await zram.open(PAGE)
        return zram

    yield make
    for zram in made:
        zram.table.check()
        await zram.aclose()


# -- options ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "error", "says"),
    [
        ({"mem_limit": "16 bananas"}, PluginError, "mem_limit: '16 bananas' is not a size"),
        ({"mem_limit": -1}, PluginError, "mem_limit: -1 is negative"),
        ({"writeback_limit": True}, PluginError, "writeback_limit: True is not a size"),
        ({"writeback_batch": 0}, PluginError, "writeback_batch is 0; allowed: 1 to 1024"),
        ({"compressor": 7}, TopologyError, "compressor is 7"),
        ({"compressor": "lz5"}, PluginError, "no compressor plugin 'lz5'"),
        ({"recompressor": {"name": "zlib", "level": 99}}, PluginError, "refused its options"),
        ({"backing": "tape"}, PluginError, "no backend plugin 'tape'"),
        ({"size": 1}, PluginError, "it takes: compressor, recompressor, mem_limit, backing"),
    ],
)
def test_a_bad_option_is_said(options, error, says):
    with pytest.raises(error) as caught:
        build("backends", PluginRef("zram", options))
    assert says in str(caught.value)


def test_sizes_are_human_and_nought_is_no_limit():
    zram = build("backends", PluginRef("zram", {"mem_limit": "16MiB", "writeback_limit": "1MiB"}))
    assert (zram.mem_limit, zram.writeback_left) == (16 << 20, 1 << 20)
    assert ZramBackend(mem_limit=0).mem_limit == ZramBackend().mem_limit == 0
    assert ZramBackend(writeback_limit=0).writeback_left == 0
    assert ZramBackend().writeback_left is None


# -- slots -----------------------------------------------------------------------------------------


async def test_what_each_kind_of_page_weighs(opened):
    zram = await opened()
    word = b"\x01\x02\x03\x04\x05\x06\x07\x08" * 512
    pages = [bytes(PAGE), word, text(), noise(), b"short", bytes(5), word[:100]]
    await zram.store_many(list(enumerate(pages)))
    assert await zram.load_many(range(7)) == pages == zram.load_now(range(7))
    assert zram.footprint([0, 1, 6]) == 0
    assert zram.footprint([2]) == len(Lz4().compress(text()))
    assert zram.footprint([3]) == PAGE
    stat = zram.mm_stat
    assert stat["same_pages"] == 3
    assert stat["huge_pages"] == stat["huge_pages_since"] == 3  # and the two that are too short
    assert stat["orig_data_size"] == sum(map(len, pages))
    assert stat["compr_data_size"] == stat["mem_used_total"] == zram.footprint(range(7))
    await zram.invalidate_many([3, 99])
    assert zram.mm_stat["huge_pages"] == 2
    assert zram.mm_stat["huge_pages_since"] == 3
    assert zram.mm_stat["mem_used_max"] == stat["mem_used_total"]
    assert zram.io_stat["notify_free"] == 1


def test_the_counters_have_the_names_of_the_kernel():
    zram = ZramBackend()
    assert " ".join(zram.mm_stat) == (
        "orig_data_size compr_data_size mem_used_total mem_limit mem_used_max same_pages "
        "pages_compacted huge_pages huge_pages_since"
    )
    assert " ".join(zram.io_stat) == "failed_reads failed_writes invalid_io notify_free"
    assert " ".join(zram.bd_stat) == "bd_count bd_reads bd_writes"
    for stat in (zram.mm_stat, zram.io_stat, zram.bd_stat):
        assert {type(nr) for nr in stat.values()} == {int}
        with pytest.raises(TypeError):
            stat["bd_count"] = 1


async def test_over_its_limit_nothing_changes(opened):
    zram = await opened(mem_limit=2 * PAGE)
    await zram.store_many([(0, noise(0)), (1, noise(1))])
    with pytest.raises(BackendFull, match="1 slots more would pass its mem_limit of 8KiB") as full:
        await zram.store(2, noise(2))
    assert "8KiB is used; mem_limit may be raised" in str(full.value)
    with pytest.raises(BackendFull):
        await zram.store_many([(0, text()), (2, noise(2)), (3, noise(3))])
    assert await zram.load_many([0, 1]) == [noise(0), noise(1)]  # new before old
    assert zram.io_stat["failed_writes"] == 4
    await zram.store_many([(0, text()), (3, bytes(PAGE))])
    await zram.store(2, text(2))
    assert zram.mm_stat["mem_used_total"] <= 2 * PAGE


async def test_of_what_workers_compressed_it_takes_as_much_as_fits(opened):
    zram = await opened(mem_limit=3 * PAGE)
    pages = [noise(seed) for seed in range(5)]
    assert zram.store_squeezed(range(5), [PAGE] * 5, pages) == 3
    assert zram.why_full == (
        "zram: 2 slots more would pass its mem_limit of 12KiB, of which 12KiB is used; "
        "mem_limit may be raised"
    )
    assert await zram.load_many(range(3)) == pages[:3]
    with pytest.raises(BackendError, match="slot 3 was never stored"):
        await zram.load(3)
    assert zram.io_stat["failed_writes"] == 2
    blob = Lz4().compress(text())
    assert zram.store_squeezed([1, 7, 8], [PAGE, 100, 60], [blob, 0, 0x0101010101010101]) == 3
    assert await zram.load_many([1, 7, 8]) == [text(), bytes(100), b"\x01" * 60]


async def test_what_the_compressor_fails_on_is_kept_as_it_is(opened, monkeypatch):
    zram = await opened()

    def fail(_data):
        raise RuntimeError("no")

    monkeypatch.setattr(zram.primary, "compress", fail, raising=False)
    await zram.store_many([(1, text()), (2, bytes(PAGE))])
    assert await zram.load_many([1, 2]) == [text(), bytes(PAGE)]
    assert zram.mm_stat["huge_pages"] == 1


@pytest.mark.parametrize("blob", [b"", b"\xff" * 50, Lz4().compress(b"x" * 100)])
async def test_a_damaged_blob_is_an_error_and_the_others_are_readable(blob):
    zram = ZramBackend()
    await zram.open(PAGE)
    await zram.store_many([(slot, text(slot)) for slot in range(3)])
    zram.table.bytes[1] = blob
    assert zram.load_now([0, 1]) is None
    assert zram.io_stat["failed_reads"] == 0
    with pytest.raises(CorruptData, match="zram: slot 1 is damaged"):
        await zram.load_many([0, 1])
    assert zram.io_stat["failed_reads"] == 1
    assert await zram.load_many([0, 2]) == [text(0), text(2)]
    await zram.aclose()


async def test_a_compressor_that_raises_on_a_load_is_corrupt_data(opened, monkeypatch):
    zram = await opened()
    await zram.store(1, text())

    def fail(_blob, _size):
        raise RuntimeError("my fault")

    monkeypatch.setattr(zram.primary, "decompress", fail, raising=False)
    with pytest.raises(CorruptData, match=r"compressor lz4 raised on slot 1: .*my fault"):
        await zram.load(1)


async def test_a_long_load_and_a_long_store_leave_the_loop_free(opened):
    zram = await opened({"name": "zlib", "level": 9})
    turns = 0

    async def other():
        nonlocal turns
        while True:
            turns += 1
            await checkpoint()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(other)
        await checkpoint()
        await zram.store_many([(slot, mixed(slot)) for slot in range(200)])
        stored = turns
        await zram.load_many(range(200))
        loaded = turns - stored
        tasks.cancel_scope.cancel()
    assert stored >= 10
    assert loaded >= 3
    for _ in range(30):  # by now it knows how slow it is
        zram.load_now(range(20))
    assert zram.load_now(range(200)) is None


# -- idle slots and recompression ------------------------------------------------------------------


async def test_idle_is_what_was_not_accessed_since_it_was_marked(opened):
    zram = await opened(recompressor="zlib")
    await zram.store_many([(slot, mixed(slot)) for slot in range(4)])
    zram.mark_idle()
    await zram.load(0)
    zram.load_now([1])
    await zram.store(2, mixed(2))
    before = zram.footprint(range(3))
    assert await zram.recompress("idle") > 0
    assert zram.footprint(range(3)) == before
    assert await zram.load_many(range(4)) == [mixed(slot) for slot in range(4)]
    zram.mark_idle([0])
    assert await zram.recompress("idle", max_slots=5) > 0
    assert zram.footprint([1, 2]) < before


async def test_recompression_takes_the_biggest_first_and_leaves_what_gains_nothing(opened):
    zram = await opened(recompressor="zlib")
    shrunk = []
    zram.on_shrunk = shrunk.append
    await zram.store_many([(0, text()), (1, mixed()[1000:3000]), (2, mixed()), (3, noise())])
    zram.mark_idle()
    assert await zram.recompress("idle", max_slots=2) > 0
    assert shrunk == [2]  # the noise was tried before it, and is incompressible
    assert await zram.recompress("idle", threshold="1KiB") > 0
    assert shrunk == [2, 1]
    tried = []
    zram.secondary = Watched(zram.secondary, tried)
    await zram.recompress("idle")
    assert tried == [text()]
    assert await zram.recompress("huge") == 0
    assert tried == [text()]
    assert await zram.load_many(range(4)) == [text(), mixed()[1000:3000], mixed(), noise()]
    with pytest.raises(ValueError, match="kind is 'old'; allowed: idle, huge, huge_idle"):
        await zram.recompress("old")


class Watched:
    name = "watched"

    def __init__(self, inner, seen):
        self.inner, self.seen = inner, seen

    def compress(self, data):
        self.seen.append(data)
        return self.inner.compress(data)

    def decompress(self, blob, size):
        return self.inner.decompress(blob, size)


async def test_huge_slots_are_recompressed_as_well(opened):
    zram = await opened("null", recompressor="lz4")
    await zram.store_many([(0, text(0)), (1, text(1))])
    assert zram.mm_stat["huge_pages"] == 2
    zram.mark_idle([1])
    assert await zram.recompress("huge_idle") > 0
    assert (zram.footprint([0]), zram.mm_stat["huge_pages"]) == (PAGE, 1)
    assert await zram.recompress("huge") > 0
    assert zram.mm_stat["huge_pages"] == 0
    assert await zram.load_many([0, 1]) == [text(0), text(1)]


async def test_a_damaged_slot_does_not_keep_others_from_recompression(opened):
    zram = await opened(recompressor="zlib")
    await zram.store_many([(slot, mixed(slot)) for slot in range(3)])
    zram.mark_idle()
    zram.table.bytes[1] = b"\xff" * zram.table.held[1]
    with pytest.raises(CorruptData, match="slot 1 is damaged"):
        await zram.recompress()
    assert await zram.load_many([0, 2]) == [mixed(0), mixed(2)]
    assert zram.footprint([0]) < zram.footprint([1])


async def test_without_a_recompressor_or_backing_store_it_says_so(opened):
    zram = await opened()
    with pytest.raises(BackendError, match="no recompressor"):
        await zram.recompress()
    with pytest.raises(BackendError, match="no backing store"):
        await zram.writeback()


# -- writeback -------------------------------------------------------------------------------------


class Elsewhere(MemoryBackend):
    """A store whose bytes are not in this process, or so it says."""

    footprint = Backend.footprint


class Recorded(Elsewhere):
    def __init__(self):
        super().__init__()
        self.calls = []

    async def store_many(self, items):
        self.calls.append(len(items))
        await super().store_many(items)


async def test_written_back_slots_weigh_nothing_and_are_read_from_there(opened):
    backing = Recorded()
    zram = await opened(backing=backing)
    shrunk = []
    zram.on_shrunk = shrunk.append
    pages = [mixed(slot) for slot in range(70)] + [bytes(PAGE)]
    await zram.store_many(list(enumerate(pages)))
    zram.mark_idle()
    assert await zram.writeback("idle") == 70  # same-filled slots are skipped
    assert backing.calls == [32, 32, 6]
    assert sorted(shrunk) == list(range(70))
    assert zram.footprint(range(71)) == zram.mm_stat["mem_used_total"] == 0
    assert zram.bd_stat == {"bd_count": 70, "bd_reads": 0, "bd_writes": 70}
    assert zram.load_now([0]) is None
    assert await zram.load_many(range(71)) == pages
    assert zram.bd_stat["bd_reads"] == 70
    await zram.invalidate_many(range(10))
    assert (zram.bd_stat["bd_count"], len(backing._slots)) == (60, 60)
    await zram.store(20, text())
    assert await zram.load_many([20, 21]) == [text(), pages[21]]
    await zram.invalidate_many([])
    assert len(backing._slots) == 59
    assert await zram.writeback("idle") == 0


async def test_what_a_backing_store_in_this_process_holds_is_not_forgotten(opened):
    zram = await opened(backing="memory")
    await zram.store(1, mixed())
    before = zram.footprint([1])
    zram.mark_idle()
    assert await zram.writeback() == 1
    assert zram.footprint([1]) == before


async def test_huge_and_incompressible_slots_go_there_as_they_are(opened):
    zram = await opened(backing=Elsewhere(), recompressor="zlib")
    await zram.store_many([(0, noise(0)), (1, mixed(1)), (2, noise(2)), (3, noise(3))])
    zram.mark_idle([0, 1])
    assert await zram.writeback("huge_idle") == 1
    assert await zram.recompress("huge") == 0
    assert await zram.writeback("incompressible", max_slots=1) == 1
    assert await zram.writeback("huge") == 1
    assert zram.mm_stat["huge_pages"] == 0
    assert await zram.load_many(range(4)) == [noise(0), mixed(1), noise(2), noise(3)]
    with pytest.raises(ValueError, match="allowed: idle, huge, huge_idle, incompressible"):
        await zram.writeback("all")


async def test_recompressed_slots_go_there_and_come_back(opened):
    zram = await opened(backing=Elsewhere(), recompressor="zlib")
    await zram.store(1, mixed())
    zram.mark_idle()
    assert await zram.recompress() > 0
    assert await zram.writeback() == 1
    assert await zram.load(1) == mixed()


async def test_the_limit_is_charged_in_pages_and_given_back_for_what_failed(opened):
    backing = FaultyBackend(Elsewhere(), store_errors={1: OSError(5, "a bad cable")})
    zram = await opened(backing=backing, writeback_limit="16KiB")
    await zram.store_many([(slot, mixed(slot)) for slot in range(10)])
    zram.mark_idle()
    with pytest.raises(BackendError, match=r"4 slots went to its backing store .*: .*a bad cable"):
        await zram.writeback()  # all four failed together, and one by one they did not
    assert zram.writeback_left == 0
    assert zram.bd_stat["bd_count"] == 4
    assert await zram.writeback() == 0
    zram.writeback_left = None
    assert await zram.writeback() == 6
    assert await zram.load_many(range(10)) == [mixed(slot) for slot in range(10)]


async def test_what_cannot_be_written_stays_and_costs_nothing(opened):
    backing = FaultyBackend(Elsewhere(), error=OSError(5, "gone"))
    zram = await opened(backing=backing, writeback_limit="1MiB")
    await zram.store_many([(slot, mixed(slot)) for slot in range(40)])
    zram.mark_idle()
    with pytest.raises(BackendError, match=r"0 slots went to .*: .*gone"):
        await zram.writeback()
    assert zram.writeback_left == 1 << 20
    assert zram.backing.blocks.used == 0
    assert zram.load_now(range(40)) == [mixed(slot) for slot in range(40)]


async def test_a_backing_store_without_room_takes_what_it_can(opened):
    zram = await opened(backing=FaultyBackend(Elsewhere(), full_after=5))
    await zram.store_many([(slot, mixed(slot)) for slot in range(40)])
    zram.mark_idle()
    with pytest.raises(BackendError, match="5 slots went to"):
        await zram.writeback()
    assert zram.bd_stat["bd_count"] == 5
    assert await zram.load_many(range(40)) == [mixed(slot) for slot in range(40)]


async def test_a_capacity_of_the_backing_store_is_the_end_without_an_error(opened):
    zram = await opened(backing={"name": "memory", "capacity": 3})
    await zram.store_many([(slot, mixed(slot)) for slot in range(40)])
    zram.mark_idle()
    assert await zram.writeback() == 3
    assert await zram.writeback() == 0


async def test_what_is_freed_or_overwritten_in_flight_keeps_no_block(opened):
    gate = Gate()
    inner = Elsewhere()
    zram = await opened(backing=FaultyBackend(inner, store_gate=gate))
    await zram.store_many([(slot, mixed(slot)) for slot in range(4)])
    zram.mark_idle()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(zram.writeback)
        await gate.entered.wait()
        await zram.invalidate_many([0, 1])
        await zram.store_many([(1, text(1)), (2, text(2))])
        assert zram.load_now([1, 2, 3]) == [text(1), text(2), mixed(3)]
        gate.open()
    assert zram.bd_stat == {"bd_count": 1, "bd_reads": 0, "bd_writes": 4}
    assert len(inner._slots) == 1
    assert await zram.load_many([1, 2, 3]) == [text(1), text(2), mixed(3)]
    assert zram.backing.blocks.used == 1


async def test_a_cancelled_writeback_waits_for_what_is_in_flight(opened):
    gate = Gate()
    zram = await opened(backing=FaultyBackend(Elsewhere(), store_gate=gate))
    await zram.store_many([(slot, mixed(slot)) for slot in range(40)])
    zram.mark_idle()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(zram.writeback)
        await gate.entered.wait()
        tasks.cancel_scope.cancel()
        with anyio.CancelScope(shield=True):
            await checkpoint()
            assert zram.bd_stat["bd_count"] == 0
            gate.open()
    assert zram.bd_stat["bd_count"] == 32
    assert await zram.load_many(range(40)) == [mixed(slot) for slot in range(40)]


async def test_a_backing_store_that_hangs_is_given_up_and_its_blocks_are_set_aside(
    opened, monkeypatch
):
    monkeypatch.setattr(zram_passes, "WRITE_S", 0.01)
    backing = FaultyBackend(Elsewhere(), store_gate=Gate())
    zram = await opened(backing=backing, writeback_limit="1MiB")
    await zram.store_many([(slot, mixed(slot)) for slot in range(40)])
    zram.mark_idle()
    with pytest.raises(BackendError, match=r"0 slots went to .*took longer than 0.01 s"):
        await zram.writeback()
    assert (zram.backing.blocks.used, zram.backing.blocks.aside) == (0, 32)
    assert zram.writeback_left == 1 << 20
    backing.store_gate = None
    assert await zram.writeback() == 40
    assert zram.backing.blocks.aside == 0
    assert await zram.load_many(range(40)) == [mixed(slot) for slot in range(40)]


async def test_a_close_that_is_given_up_while_a_pass_hangs_lets_go_of_the_backing_store(opened):
    gate = Gate()
    inner = Elsewhere()
    zram = await opened(backing=FaultyBackend(inner, store_gate=gate))
    backing = zram.backing.backend
    await zram.store_many([(0, mixed(0))])
    zram.mark_idle()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(zram.writeback)
        await gate.entered.wait()
        with anyio.move_on_after(0.01) as scope:
            await zram.aclose()
        assert scope.cancelled_caught
        backing.store_gate = None
        again = await opened(backing=backing)  # nobody has it any more
        await again.aclose()
        gate.open()
        tasks.cancel_scope.cancel()


async def test_recompress_and_writeback_exclude_each_other(opened):
    gate = Gate()
    backing = FaultyBackend(Elsewhere(), store_gate=gate)
    zram = await opened(backing=backing, recompressor="zlib")
    await zram.store_many([(0, mixed(0)), (1, mixed(1))])
    zram.mark_idle()
    gained = None

    async def recompress():
        nonlocal gained
        gained = await zram.recompress()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(lambda: zram.writeback(max_slots=1))
        await gate.entered.wait()
        tasks.start_soon(recompress)
        for _ in range(10):
            await checkpoint()
        assert gained is None
        gate.open()
    assert gained > 0
    assert await zram.load_many([0, 1]) == [mixed(0), mixed(1)]


async def test_close_ends_a_pass_and_waits_for_what_is_in_flight():
    gate = Gate()
    backing = FaultyBackend(Elsewhere(), store_gate=gate)
    zram = ZramBackend(backing=backing, writeback_batch=2)
    await zram.open(PAGE)
    await zram.store_many([(slot, mixed(slot)) for slot in range(9)])
    zram.mark_idle()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(zram.writeback)
        await gate.entered.wait()
        tasks.start_soon(zram.aclose)
        await checkpoint()
        gate.open()
    assert zram.bd_stat == {"bd_count": 0, "bd_reads": 0, "bd_writes": 2}


@pytest.mark.parametrize("damage", ["flip", "short", "zero", "misplace"])
async def test_a_damaged_block_is_an_error_that_names_the_store(opened, damage):
    backing = FaultyBackend(Elsewhere(), damage=damage, damaged_slots={0})
    zram = await opened("zlib", backing=backing)
    await zram.store_many([(slot, text(slot)) for slot in range(3)])
    zram.mark_idle([0])
    assert await zram.writeback() == 1
    with pytest.raises(CorruptData, match="zram: "):
        await zram.load(0)
    assert zram.io_stat["failed_reads"] == 1
    assert await zram.load_many([1, 2]) == [text(1), text(2)]


async def test_a_backing_store_that_cannot_load_or_forget(opened):
    inner = Elsewhere()
    backing = FaultyBackend(inner)
    zram = await opened(backing=backing)
    await zram.store_many([(0, mixed(0)), (1, mixed(1))])
    zram.mark_idle()
    assert await zram.writeback() == 2
    backing.error = OSError(5, "gone")
    with pytest.raises(BackendError, match=r"its backing store .* failed to load: .*gone"):
        await zram.load(0)
    backing.error = None

    async def refuse(slots):
        raise OSError(5, "not now")

    forget, backing.invalidate_many = backing.invalidate_many, refuse
    with pytest.raises(OSError, match="not now"):
        await zram.invalidate_many([0])
    assert zram.backing.blocks.used == 2  # nobody may use a block that may still be forgotten
    backing.invalidate_many = forget
    await zram.invalidate_many([])
    assert (zram.backing.blocks.used, len(inner._slots)) == (1, 1)
    assert await zram.load(1) == mixed(1)
