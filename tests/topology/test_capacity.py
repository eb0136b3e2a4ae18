"""How many keys fit, held against real memories; what disks have free, made up here."""

import random
import sys

import pytest

import reclaimactors as ra
from reclaimactors.topology import capacity, explain, resolve
from reclaimactors.topology.capacity import disk_free, keys_that_fit

MIB = 1 << 20


def noise(i, size):
    return random.Random(i).randbytes(size)


def half(i, size):
    return noise(i, size // 2) + b"%08d" % i * (size // 16)


async def filled(topology, make, size):
    """Return how many values fit until one is refused."""
    async with ra.open_memory(topology) as memory:
        for nr in range(100_000):
            try:
                await memory.put(nr, make(nr, size))
            except ra.OutOfMemory:
                return nr
    raise AssertionError("nothing was refused")


FILE = [{"backend": "file", "size": "8MiB"}]
ZRAM = [{"backend": "zram", "size": "16MiB"}]


@pytest.mark.parametrize(
    ("swap", "zswap", "make", "ratio", "size"),
    [
        ([], True, noise, 1, 4096),
        ([], True, half, 2, 4096),
        (FILE, True, noise, 1, 1024),
        (FILE, True, noise, 1, 4096),
        (FILE, True, noise, 1, 64 << 10),
        (FILE, False, half, 2, 4096),
        (ZRAM, False, half, 2, 4096),
        ([*ZRAM, *FILE], False, noise, 1, 4096),
    ],
)
async def test_as_many_keys_fit_as_it_says(swap, zswap, make, ratio, size):
    topology = resolve({
        "budget": MIB,
        "swap": [{"priority": -nr} | table for nr, table in enumerate(swap)],
        "zswap": {"enabled": zswap},
        "compress": {"offload": "inline"},
    })  # fmt: skip
    assert await filled(topology, make, size) == pytest.approx(
        keys_that_fit(topology, size, ratio), rel=0.1
    )


def test_a_topology_says_how_many_keys_fit_and_what_each_costs():
    says = "\n".join(explain(resolve({"budget": "4MiB", "swap": [{"size": "64MiB"}]})))
    assert "a key costs 288 B of overhead in the budget, wherever its value is" in says
    assert "values at 1:1: 14,272 of 100B, 14,272 of 1KiB, 14,272 of 4KiB, 1,081 of 64KiB" in says


@pytest.fixture
def disks(monkeypatch):
    """Folders, each on a disk with so many bytes free; anything else is not there."""
    disks = {}

    def disk_of(path):
        if path not in disks:
            raise FileNotFoundError(path)
        return disks[path]

    monkeypatch.setattr(capacity, "disk_of", disk_of)
    return disks


def table(path, size, priority=10):
    return {"backend": {"name": "file", "path": path}, "size": size, "priority": priority}


def test_a_disk_with_less_room_than_the_swap_is_named_and_counted(disks):
    disks["/small"] = (1, 18 * MIB)
    topology = resolve({"budget": "64MiB", "swap": [table("/small", "1GiB")]})
    says = "\n".join(explain(topology))
    assert "swap file0: 1GiB, priority 10; the disk has only 18MiB free for it" in says
    assert "18MiB on swap" in says


def test_a_disk_with_enough_room_is_not_mentioned(disks):
    disks["/large"] = (1, 2 << 30)
    says = "\n".join(explain(resolve({"budget": "64MiB", "swap": [table("/large", "1GiB")]})))
    assert "the disk" not in says


def test_two_swap_files_share_what_one_disk_has_free(disks):
    disks["/a"] = disks["/b"] = (1, 100 * MIB)
    disks["/c"] = (2, 70 * MIB)
    swap = [table("/a", "80MiB", 1), table("/b", "80MiB", 2), table("/c", "80MiB", 3)]
    swap += [table("/absent", "80MiB"), {"backend": "memory"}]
    topology = resolve({"budget": "64MiB", "swap": swap})
    assert disk_free(topology) == {1: 100 * MIB, 0: 20 * MIB, 2: 70 * MIB}
    lines = [line for line in explain(topology) if "the disk" in line]
    assert [line.split(":")[0] for line in lines] == ["swap file2", "swap file0"]


def test_a_store_in_the_budget_beside_a_file_says_its_share():
    swap = [{"backend": "zram", "priority": 20}, {"backend": "file"}]
    says = "\n".join(explain(resolve({"budget": "64MiB", "swap": swap})))
    assert "within the budget: 50% of it at most while others have room" in says
    assert "50%" not in "\n".join(explain(resolve({"budget": "64MiB", "swap": swap[:1]})))


SHM = pytest.mark.skipif(sys.platform != "linux", reason="/dev/shm is Linux's")
IN_RAM = "its folder is a tmpfs: what it holds takes RAM, and is in no budget"


def said_of(swap):
    return "\n".join(explain(resolve({"budget": "4MiB", "swap": swap})))


@SHM
def test_a_swap_file_on_a_tmpfs_is_named():
    assert said_of([table("/dev/shm", "1MiB")]).count(IN_RAM) == 1


@SHM
@pytest.mark.parametrize("backend", ["zram", "memory", "file"])
def test_stores_in_the_budget_and_on_disks_are_not_said_to_take_more(backend):
    assert IN_RAM not in said_of([{"backend": backend}])
    assert IN_RAM not in said_of([table("/proc", "1MiB")])
    assert IN_RAM not in said_of([table("/absent", "1MiB")])


@SHM
async def test_an_opening_says_once_that_a_swap_file_is_on_a_tmpfs(caplog):
    swap = [table("/dev/shm", "1MiB"), {"backend": "file"}, {"backend": "zram"}]
    async with ra.open_memory(budget="4MiB", swap=swap):
        pass
    [line] = [record for record in caplog.records if "swapon.in_memory" in record.message]
    assert "device='file0'" in line.message
