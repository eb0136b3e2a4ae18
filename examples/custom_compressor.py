"""A compressor in one file: zlib with a dictionary of what values have in common.

Small values compress badly one by one, because each starts from nothing. Words that most of them
contain, given to both sides beforehand, help.

Run it:                       ``python examples/custom_compressor.py``
Ask whether it is right:      ``pytest examples/custom_compressor.py``
Give it to everybody by name: put this in the pyproject.toml of your distribution, and say
                              ``compressor = { name = "zdict", words = "..." }`` in a topology:

    [project.entry-points."reclaimactors.compressors"]
    zdict = "custom_compressor:SharedDictionary"
"""

# ruff: noqa: D102 - what each method must do is said in reclaimactors.Compressor

from __future__ import annotations

import asyncio
import zlib

import reclaimactors as ra
from reclaimactors.testing import CompressorTests

WORDS = '{"user": "", "visited": ["/start", "/search", "/basket", "/pay"], "language": "en"}'


class SharedDictionary:
    """zlib streams that refer to a dictionary; `words` should end with the most frequent ones."""

    name = "zdict"

    def __init__(self, words: str, level: int = 6) -> None:
        self._words = words.encode()
        self._level = level

    def compress(self, data: ra.Buffer) -> bytes:
        stream = zlib.compressobj(self._level, zdict=self._words)
        return stream.compress(data) + stream.flush()

    def decompress(self, blob: ra.Buffer, size: int) -> bytes:
        stream = zlib.decompressobj(zdict=self._words)
        try:
            data = stream.decompress(blob, size + 1)  # one more byte, so that a longer blob shows
        except zlib.error as exc:
            raise ra.CorruptData(f"zdict: {exc}") from exc
        if len(data) != size or not stream.eof or stream.unused_data:
            raise ra.CorruptData(f"zdict: the blob does not hold {size} B")
        return data


class TestSharedDictionary(CompressorTests):
    """All that a compressor must do, inherited."""

    def make_compressor(self) -> ra.Compressor:
        return SharedDictionary(WORDS)


def session(i: int) -> bytes:
    pages = '", "'.join(["/start", "/search", "/basket", "/pay"][: i % 4 + 1])
    seen = ", ".join(str(i * k % 9973) for k in range(2, 180))
    user = f'{{"user": "{i}", "visited": ["{pages}"], "language": "en"'
    return f'{user}, "seen": [{seen}]}}'.encode()


async def main() -> None:
    for name, compressor in (
        ("zlib", "zlib"),
        ("by name", {"name": "custom_compressor:SharedDictionary", "words": WORDS}),
        ("as an object", SharedDictionary(WORDS)),
    ):
        compress = {"compressor": compressor}
        async with ra.open_memory(budget="1MiB", compress=compress) as memory:
            for i in range(1200):
                await memory.put(i, session(i))
            await memory.drain()
            for i in range(1200):
                assert await memory.get(i) == session(i)
            stored = memory.vmstat["reclaim_stored"]
            assert stored, "nothing was compressed"
            print(f"{name}: {stored} values went to the pool")
    data = session(3)
    short = SharedDictionary(WORDS).compress(data)
    print(f"{len(data)} B: zlib {len(zlib.compress(data))} B, with the dictionary {len(short)} B")


if __name__ == "__main__":
    asyncio.run(main())
