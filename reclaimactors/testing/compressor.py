"""The conformance suite of compressors: subclass it, and say how one is made.

    class TestMyCodec(CompressorTests):
        def make_compressor(self):
            return MyCodec(level=3)

Each test is one sentence of the contract. A worker process builds a compressor of its own from the
factory's name and options (an explicit object is pickled to it), so keep both importable from a
module, and let one instance read what another has written, as is tested here. The tests of
arbitrary data need hypothesis and are skipped without it.
"""

from __future__ import annotations

import random
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import TYPE_CHECKING, cast
from unittest import TestCase

from reclaimactors.abc import Compressor
from reclaimactors.errors import CorruptData
from reclaimactors.units import KIB

if TYPE_CHECKING:
    from collections.abc import Sequence

    from reclaimactors.abc import BatchCompressor

__all__ = ["CompressorTests"]

_SIZES = [1, 2, 7, 8, 15, 16, 100, 4095, 4096, 4097, 65536, 256 * KIB]
_KINDS = ["zeros", "text", "random"]

_raises = TestCase().assertRaises  # the kit imports without the test tools


def _data(kind: str, size: int) -> bytes:
    if kind == "zeros":
        return bytes(size)
    if kind == "text":
        return (b"kswapd0: page allocation stalled for %d ms, order:0. " * (size // 50 + 1))[:size]
    return random.Random(size).randbytes(size)  # noqa: S311 - reproducible data, no secret


class CompressorTests:
    """What every compressor must do; override `make_compressor`."""

    def make_compressor(self) -> Compressor:
        """Return a new compressor, always with the same options."""
        msg = f"{type(self).__name__} must define make_compressor"
        raise NotImplementedError(msg)

    def check(self, compressor: Compressor, data: bytes) -> bytes:
        """Assert that `data` comes back; return its blob."""
        blob = compressor.compress(data)
        assert type(blob) is bytes, f"compress returned {type(blob).__name__}, not bytes"
        back = compressor.decompress(blob, len(data))
        assert type(back) is bytes, f"decompress returned {type(back).__name__}, not bytes"
        assert back == data, f"{len(data)} bytes came back otherwise"
        return blob

    def check_bad_blob(self, blob: bytes, size: int) -> None:
        """Assert that decompressing raises CorruptData, or else returns `size` bytes.

        Neither may take more memory than a few times what goes in and comes out.
        """
        compressor = self.make_compressor()
        back = bytes(size)
        tracemalloc.start()
        try:
            with suppress(CorruptData):
                back = compressor.decompress(blob, size)
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert len(back) == size, f"a bad blob gave {len(back)} bytes where {size} were asked for"
        most = 4 * (len(blob) + size) + 128 * KIB
        assert peak < most, f"asked for {size} bytes, decompress allocated {peak}"

    def test_says_what_it_is(self) -> None:
        """It has a name, `compress` and `decompress`."""
        compressor = self.make_compressor()
        assert isinstance(compressor, Compressor)
        assert type(compressor.name) is str
        assert compressor.name

    def test_round_trip(self) -> None:
        """1 byte to 256 KiB come back, compressible or not."""
        compressor = self.make_compressor()
        for kind in _KINDS:
            for size in _SIZES:
                self.check(compressor, _data(kind, size))

    def test_memoryview_is_as_good_as_bytes(self) -> None:
        """Data and blob may be a view into a larger buffer; what is returned is bytes."""
        compressor = self.make_compressor()
        for size in _SIZES:
            data = _data("text", size)
            around = bytearray(b"<" + data + b">")
            with memoryview(around) as whole, whole[1:-1] as view:
                blob = compressor.compress(view)
            assert blob == compressor.compress(data)
            with memoryview(bytearray(blob)) as view:
                back = compressor.decompress(view, size)
            assert type(back) is bytes
            assert back == data

    def test_keeps_no_view_of_its_input(self) -> None:
        """The buffer behind a page is used again as soon as `compress` has returned."""
        compressor = self.make_compressor()
        for kind in _KINDS:
            page = bytearray(_data(kind, 4096))
            with memoryview(page) as view:
                blob = compressor.compress(view)
            page[:] = bytes(4096)
            page.append(0)  # a BufferError here means that it still holds a view
            assert compressor.decompress(blob, 4096) == _data(kind, 4096)

    def test_is_pure_and_another_instance_reads_its_blobs(self) -> None:
        """The same page gives the same blob, here and in a worker's own instance."""
        one, other = self.make_compressor(), self.make_compressor()
        for kind in _KINDS:
            data = _data(kind, 4096)
            blob = one.compress(data)
            assert blob == one.compress(data) == other.compress(data)
            assert other.decompress(blob, 4096) == data

    def test_another_size_than_was_compressed_is_corrupt(self) -> None:
        """`decompress` returns exactly `size` bytes, or raises CorruptData."""
        compressor = self.make_compressor()
        for kind in _KINDS:
            blob = compressor.compress(_data(kind, 4096))
            for size in (1, 96, 4095, 4097, 8192):
                with _raises(CorruptData):
                    compressor.decompress(blob, size)

    def test_truncated_blob_is_corrupt(self) -> None:
        """A blob that lacks its end, or everything, raises CorruptData."""
        compressor = self.make_compressor()
        for kind in _KINDS:
            blob = compressor.compress(_data(kind, 4096))
            for length in {0, 1, 2, len(blob) // 2, len(blob) - 1}:
                with _raises(CorruptData):
                    compressor.decompress(blob[:length], 4096)

    def test_memory_is_bounded_by_size_whatever_the_blob_says(self) -> None:
        """A blob of 256 KiB asked for as 64 bytes is not decompressed first and cut then."""
        compressor = self.make_compressor()
        bomb = compressor.compress(bytes(256 * KIB))
        tracemalloc.start()
        try:
            with _raises(CorruptData):
                compressor.decompress(bomb, 64)
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert peak < 128 * KIB, f"asked for 64 bytes, decompress allocated {peak}"

    def test_compress_many_is_compress_of_each(self) -> None:
        """Where there is a `compress_many`, it is equal to `compress` of each page, in order."""
        compressor = self.make_compressor()
        if not hasattr(compressor, "compress_many"):
            return  # it is optional
        batch = cast("BatchCompressor", compressor)
        pages = [_data(kind, size) for kind in _KINDS for size in (1, 4096, 5000)]
        expected = [compressor.compress(page) for page in pages]
        for given_pages in (pages, [memoryview(page) for page in pages]):
            blobs = list(batch.compress_many(given_pages))
            assert all(type(blob) is bytes for blob in blobs)
            assert blobs == expected
        assert list(batch.compress_many([])) == []

    def test_several_threads_may_share_one(self) -> None:
        """Threads that use one object at once do not disturb each other."""
        compressor = self.make_compressor()
        pages = [_data(_KINDS[i % 3], 4000 + i) for i in range(64)]
        expected = [compressor.compress(page) for page in pages]

        def check(page: bytes) -> bytes:
            return self.check(compressor, page)

        with ThreadPoolExecutor(4) as threads:
            for _ in range(5):
                assert list(threads.map(check, pages)) == expected

    def test_round_trip_of_anything(self) -> None:
        """Whatever the bytes are, they come back."""
        import pytest  # noqa: PLC0415 - the kit imports without the test tools

        pytest.importorskip("hypothesis")
        from hypothesis import given  # noqa: PLC0415 - the same
        from hypothesis import strategies as st  # noqa: PLC0415 - the same

        @given(st.binary(min_size=1, max_size=8 * KIB))
        def round_trip(data: bytes) -> None:
            self.check(self.make_compressor(), data)

        round_trip()

    def test_bad_blobs_raise_nothing_but_corrupt_data(self) -> None:
        """Random and damaged blobs raise CorruptData or give `size` bytes, whatever the size."""
        import pytest  # noqa: PLC0415 - the kit imports without the test tools

        pytest.importorskip("hypothesis")
        from hypothesis import given  # noqa: PLC0415 - the same
        from hypothesis import strategies as st  # noqa: PLC0415 - the same

        compressor = self.make_compressor()
        blobs = [compressor.compress(_data(kind, size)) for kind in _KINDS for size in (100, 4096)]
        places = st.integers(0, 8191)
        pieces = st.binary(max_size=64) | st.sampled_from(blobs)
        damages = st.lists(
            st.one_of(
                st.tuples(st.just("flip"), places, st.integers(0, 7)),
                st.tuples(st.just("cut"), places, places),
                st.tuples(st.just("insert"), places, pieces),
                st.tuples(st.just("replace"), places, pieces),
            ),
            min_size=1,
            max_size=4,
        )
        sizes = st.sampled_from([100, 4096]) | st.integers(1, 8192) | st.just(256 * KIB)

        @given(st.sampled_from(blobs), damages, sizes)
        def damaged(blob: bytes, damages: list[tuple[str, int, int | bytes]], size: int) -> None:
            self.check_bad_blob(_damaged(blob, damages), size)

        @given(st.binary(max_size=2000), sizes)
        def random_blob(blob: bytes, size: int) -> None:
            self.check_bad_blob(blob, size)

        damaged()
        random_blob()


def _damaged(blob: bytes, damages: Sequence[tuple[str, int, int | bytes]]) -> bytes:
    """Return a blob with flipped bits, and with parts cut out, put in or put over."""
    bad = bytearray(blob)
    for how, place, what in damages:
        at = place % (len(bad) + 1)
        if isinstance(what, bytes):
            bad[at : at + len(what) * (how == "replace")] = what
        elif how == "cut":
            del bad[at : at + what]
        elif at < len(bad):
            bad[at] ^= 1 << what
    return bytes(bad)
