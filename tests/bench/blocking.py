"""Print what gets and puts of threads cost, beside zict over LMDB.

    python tests/bench/blocking.py [--rounds 5] [--nr 20000]        about a minute

Values are pieces of 4 KiB of the running Python's own library, put by one thread and by eight, each
thread with keys of its own. us is the time of all over the operations of all: where threads do not
get into each other's way, it is the same for eight as for one.

- hit: gets of values that are in memory; nothing else goes on.
- fault: gets of all values in turn, of which half fits the budget.
- put: overwrites, half of the values fits the budget.
- put, fits: the same where all of it fits.

Contestants: `ra.open_blocking` (all defaults: worker process, lz4, pool, file), and `zict.Buffer`
(LRU by bytes) over lz4 over `zict.LMDB`. Each has the same budget. "hit, by hand" is one through
`asyncio.run_coroutine_threadsafe`, for those who wonder what `open_blocking` is for.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import sys
import tempfile
import threading
import time
from collections import defaultdict
from contextlib import contextmanager
from typing import TYPE_CHECKING

import lz4.block

import reclaimactors as ra
from reclaimactors.lab.data import load

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, MutableMapping

SIZE = 4096
THREADS = (1, 8)


@contextmanager
def opened(name: str, budget: int) -> Iterator[MutableMapping[str, bytes]]:
    if name == "reclaimactors":
        with ra.open_blocking(budget=budget) as store:
            yield store
        return
    import zict

    with tempfile.TemporaryDirectory(dir="/var/tmp") as folder:
        slow = zict.Func(lz4.block.compress, lz4.block.decompress, zict.LMDB(folder))
        buffer = zict.Buffer({}, slow, n=budget, weight=lambda _, value: len(value))
        yield buffer
        buffer.close()


def by_threads(nr_threads: int, nr: int, work: Callable[[range], None]) -> float:
    """Return us an operation, where `nr` operations are shared by so many threads."""
    each = nr // nr_threads
    threads = [
        threading.Thread(target=work, args=(range(i * each, (i + 1) * each),))
        for i in range(nr_threads)
    ]
    started = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return (time.perf_counter() - started) / nr * 1e6


def measure(name: str, values: list[bytes], rows: dict[str, list[float]]) -> None:
    nr = len(values)

    keys_of = [f"key:{i:07}" for i in range(nr)]

    def get(keys: range) -> None:
        for key in keys:
            store[keys_of[key]]

    def put(keys: range) -> None:
        for key in keys:
            store[keys_of[key]] = bytes(memoryview(values[key]))

    for budget, fits in ((nr * SIZE * 2, True), (nr * SIZE // 2, False)):
        with opened(name, budget) as store:
            put(range(nr))
            for threads in THREADS:
                what = f"{threads} thread{'s' * (threads > 1)}"
                rows[f"{'hit' if fits else 'fault'}, {what}"].append(by_threads(threads, nr, get))
                rows[f"put{', fits' * fits}, {what}"].append(by_threads(threads, nr, put))
            for key in range(nr):
                assert store[keys_of[key]] == values[key], f"{name} lost {key}"


def users_own(values: list[bytes]) -> float:
    """Return us of a hit by run_coroutine_threadsafe."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()

    async def opening() -> ra.Memory:
        return await ra.open_memory(budget="64MiB")

    memory = asyncio.run_coroutine_threadsafe(opening(), loop).result()
    for key in range(1000):
        asyncio.run_coroutine_threadsafe(memory.put(key, values[key]), loop).result()
    started = time.perf_counter()
    for key in range(1000):
        asyncio.run_coroutine_threadsafe(memory.get(key), loop).result()
    spent = time.perf_counter() - started
    asyncio.run_coroutine_threadsafe(memory.aclose(), loop).result()
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    loop.close()
    return spent / 1000 * 1e6


def main(nr: int, rounds: int) -> None:
    source = load(limit=2 * nr * SIZE)
    values = [source.value(i, 0)[:SIZE].ljust(SIZE, b"#") for i in range(min(nr, len(source)))]
    runs: dict[str, dict[str, list[float]]] = {}
    names = ["reclaimactors", "zict lmdb"]
    try:
        import zict  # noqa: F401

        zict_lmdb = __import__("lmdb") is not None
    except ImportError:
        zict_lmdb = False
    if not zict_lmdb:
        print("zict and lmdb are not installed: skipped")
        names = names[:1]
    for round_nr in range(rounds):
        for name in names:
            print(f"round {round_nr + 1}: {name:<20}", end="\r", file=sys.stderr)
            measure(name, values, runs.setdefault(name, defaultdict(list)))
    own = statistics.median(users_own(values) for _ in range(rounds))
    print(f"{len(values)} values of {SIZE} B; us an operation, median and range of {rounds} rounds")
    print(f"{'':<18}" + "".join(f"{name:>28}" for name in names) + f"{'ratio':>8}")
    for row in runs[names[0]]:
        cells = [runs[name][row] for name in names]
        medians = [statistics.median(cell) for cell in cells]
        shown = [
            f"{median:>10.2f} ({min(cell):.2f} to {max(cell):.2f})".rjust(28)
            for median, cell in zip(medians, cells, strict=True)
        ]
        ratio = f"{medians[0] / medians[1]:>8.2f}" if len(medians) > 1 else ""
        print(f"{row:<18}" + "".join(shown) + ratio)
    print(f"{'hit, by hand':<18}{own:>14.2f}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--nr", type=int, default=20_000)
    options = parser.parse_args()
    main(options.nr, options.rounds)
