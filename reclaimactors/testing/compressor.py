"""The conformance suite of compressors: subclass it, and say how one is made.

    class TestMyCodec(CompressorTests):
        def make_compressor(self):
            return MyCodec(level=3)

Each check is one sentence of the contract.
"""

from __future__ import annotations

import random
import sys
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import TYPE_CHECKING, ClassVar, cast

from reclaimactors.errors import CorruptData
from reclaimactors.testing.rules import Suite, broken, fail_unless, rule
from reclaimactors.testing.worker import in_a_worker, pickled
from reclaimactors.units import KIB

if TYPE_CHECKING:
    from collections.abc import Sequence

    from reclaimactors.abc import BatchCompressor, Buffer, Compressor
    from reclaimactors.registry import PluginRef

__all__ = ["CompressorTests"]

_SIZES = [1, 2, 7, 8, 15, 16, 100, 4095, 4096, 4097, 65536, 256 * KIB]
_KINDS = ["zeros", "text", "numbers", "random"]  # of data, by what a compressor makes of them
_BATCHES = [1, 2, 128, 300]  # pages: a worker gets 128, unless the topology says otherwise
_DAMAGES = 300  # blobs that are damaged at random

_PURE = "It is pure: the same data give the same blob, in every instance with the same options."
_BAD = "if the blob is damaged or holds another number of bytes; nothing else is raised for one."
_LIST = "Return a list of the blob of each page, in order; each is what `compress` gives."
_CHECK = (
    "catch what the library raises and raise reclaimactors.CorruptData from it, and compare the "
    "length, the end of the stream and what follows it with what was asked for"
)


def _data(kind: str, size: int) -> bytes:
    if kind == "zeros":
        return bytes(size)
    if kind == "text":
        return (b"kswapd0: page allocation stalled for %d ms, order:0. " * (size // 50 + 1))[:size]
    if kind == "numbers":
        return b"".join((nr * 7).to_bytes(4, "little") for nr in range(size // 4 + 1))[:size]
    return random.Random(size).randbytes(size)  # noqa: S311 - reproducible data, no secret


class CompressorTests(Suite):
    """What every compressor must do; override `make_compressor`."""

    in_workers: ClassVar[bool] = True
    """False for a compressor that is only meant for threads: it need not be pickled."""

    named: ClassVar[PluginRef | None] = None
    """How a topology names the compressor, where workers are to build it so and not from a pickle.
    """

    def make_compressor(self) -> Compressor:
        """Return a new compressor, always with the same options."""
        msg = f"{type(self).__name__} must define make_compressor"
        raise NotImplementedError(msg)

    @rule(
        "Compressor",
        "Turns a folio into a blob and back.",
        "give it a `name`, which is not empty, and the methods compress and decompress",
    )
    def test_says_what_it_is(self) -> None:
        """It has a name, `compress` and `decompress`."""
        compressor = self.make_compressor()
        for name in ("name", "compress", "decompress"):
            fail_unless(hasattr(compressor, name), f"it has no {name!r}")
        name = compressor.name
        fail_unless(type(name) is str and bool(name), f"its name is {name!r}")

    @rule(
        "Compressor.decompress",
        "Return exactly `size` bytes.",
        "have decompress give back what compress was given, whatever it was",
    )
    def test_round_trip(self) -> None:
        """1 byte to 256 KiB come back, of zeros, text, numbers and noise."""
        compressor = self.make_compressor()
        for kind in _KINDS:
            for size in _SIZES:
                _comes_back(compressor, kind, size)

    @rule(
        "Compressor.compress",
        "Return the blob of `data`, as bytes, whatever the data are.",
        "take bytes and memoryviews alike: what your library does not take, give it as bytes(data)",
    )
    def test_memoryview_is_as_good_as_bytes(self) -> None:
        """Data and blob may be a view into a larger buffer; what is returned is bytes."""
        compressor = self.make_compressor()
        for size in _SIZES:
            data = _data("text", size)
            around = bytearray(b"<" + data + b">")
            with memoryview(around) as whole, whole[1:-1] as view:
                blob = compressor.compress(view)
            if blob != compressor.compress(data):
                broken(f"a memoryview of {size} B of text gave another blob than the same bytes")
            with memoryview(bytearray(blob)) as view:
                back = compressor.decompress(view, size)
            if type(back) is not bytes or back != data:
                broken(f"a memoryview of a blob gave {type(back).__name__} of {len(back)} B")

    @rule(
        "Compressor",
        "It keeps no view of what it was given, and does not touch again what it has returned.",
        "copy what you keep, and return bytes of their own: bytes(buffer), not the buffer",
    )
    def test_keeps_no_view_and_gives_none(self) -> None:
        """The buffer behind a page is used again once `compress` has returned, a blob is kept."""
        compressor = self.make_compressor()
        for kind in _KINDS:
            page = bytearray(_data(kind, 4096))
            with memoryview(page) as view:
                blob = compressor.compress(view)
            copy = bytes(blob)
            page[:] = bytes(4096)
            try:
                page.append(0)
            except BufferError:
                broken(f"it still holds a view of the page of {kind} that it has compressed")
            compressor.compress(_data("random", 4096))
            fail_unless(
                bytes(blob) == copy,
                f"the blob of a page of {kind} changed as the next page was compressed",
            )
            back = compressor.decompress(blob, 4096)
            compressor.decompress(compressor.compress(_data("text", 4096)), 4096)
            fail_unless(
                back == _data(kind, 4096),
                f"a page of {kind} came back otherwise after its source was overwritten",
            )

    @rule(
        "Compressor",
        _PURE,
        "let a blob depend on the data and the options only: no salt, no counter, no table that "
        "lives in the object",
    )
    def test_is_pure_and_another_instance_reads_its_blobs(self) -> None:
        """The same page gives the same blob, here and in another instance."""
        one, other = self.make_compressor(), self.make_compressor()
        for kind in _KINDS:
            data = _data(kind, 4096)
            blob = one.compress(data)
            fail_unless(blob == one.compress(data), f"a page of {kind} gave two different blobs")
            same = blob == other.compress(data)
            fail_unless(same, f"two instances made different blobs of a page of {kind}")
            _is_back(other.decompress(blob, 4096), data, f"a page of {kind}, in another instance,")

    @rule(
        "Compressor",
        "It can be pickled, or built by its name, so that worker processes can have it.",
        "define the class at the top of a module that can be imported, and __reduce__ as "
        "`return type(self), (option, ...)`; or set `in_workers = False` in the suite, if threads "
        "of this process are enough",
    )
    def test_a_worker_has_the_same_one(self) -> None:
        """A pickled copy, in this process and in another one, makes the same blobs."""
        if not self.in_workers:
            return
        compressor = self.make_compressor()
        pages = [_data(kind, 4096) for kind in _KINDS]
        blobs = [compressor.compress(page) for page in pages]
        if self.named is None:
            copy = pickled(compressor)
            fail_unless(
                blobs == [copy.compress(page) for page in pages],
                "its pickled copy makes other blobs",
                "have __reduce__ hand over every option that matters",
            )
        there, said = in_a_worker(self.named or compressor, pages)
        fail_unless(there == blobs, "the one in another process makes other blobs")
        fail_unless(
            not said,
            f"as it compressed in another process, this was printed there: {said[:200]!r}",
            "print nothing: raise what is wrong, and log to a logger what is worth a line",
        )

    @rule("Compressor.decompress", _BAD, _CHECK)
    def test_another_size_than_was_compressed_is_corrupt(self) -> None:
        """`decompress` returns exactly `size` bytes, or raises CorruptData."""
        compressor = self.make_compressor()
        for kind in _KINDS:
            blob = compressor.compress(_data(kind, 4096))
            for size in (1, 96, 4095, 4097, 8192):
                what = f"the blob of 4096 B of {kind}, asked for as {size} B,"
                _is_corrupt(compressor, blob, size, what)

    @rule("Compressor.decompress", _BAD, _CHECK)
    def test_truncated_blob_is_corrupt(self) -> None:
        """A blob that lacks its end, or everything, raises CorruptData."""
        compressor = self.make_compressor()
        for kind in _KINDS:
            blob = compressor.compress(_data(kind, 4096))
            for length in {0, 1, 2, len(blob) // 2, len(blob) - 1}:
                what = f"a blob of {len(blob)} B (4096 B of {kind}), cut to {length} B,"
                _is_corrupt(compressor, blob[:length], 4096, what)

    @rule("Compressor.decompress", _BAD, _CHECK)
    def test_bad_blobs_raise_nothing_but_corrupt_data(self) -> None:
        """Flipped, cut and patched blobs, and noise, raise CorruptData or give `size` bytes."""
        compressor = self.make_compressor()
        blobs = [compressor.compress(_data(kind, size)) for kind in _KINDS for size in (100, 4096)]
        rng = random.Random(17)  # noqa: S311 - reproducible data, no secret
        for nr in range(_DAMAGES):
            size = rng.choice((100, 4096, rng.randrange(1, 8193), 256 * KIB))
            what, bad = _damaged(rng, rng.choice(blobs), blobs) if nr % 4 else _noise(rng)
            _is_size_or_corrupt(compressor, bad, size, what, weigh=not nr % 3)

    @rule(
        "Compressor.decompress",
        "Memory use is bounded by `size`, whatever the blob says.",
        "tell the library `size`, or compare the size that the blob names with it, before it "
        "allocates; as zlib.decompressobj().decompress(blob, size + 1) does",
    )
    def test_memory_is_bounded_by_size_whatever_the_blob_says(self) -> None:
        """A blob of 256 KiB asked for as 64 bytes is not decompressed first and cut then."""
        compressor = self.make_compressor()
        bomb = compressor.compress(bytes(256 * KIB))
        tracemalloc.start()
        try:
            _is_corrupt(compressor, bomb, 64, "a blob of 256 KiB of zeros, asked for as 64 B,")
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        fail_unless(peak < 128 * KIB, f"asked for 64 B, decompress allocated {peak} B")

    @rule(
        "BatchCompressor.compress_many",
        _LIST,
        "return [...] with one blob for each page, however many there are, in the order given",
    )
    def test_compress_many_is_compress_of_each(self) -> None:
        """Where there is a `compress_many`, it is equal to `compress` of each page, in order."""
        compressor = self.make_compressor()
        if not hasattr(compressor, "compress_many"):
            return  # it is optional
        batch = cast("BatchCompressor", compressor)
        pages = [_data(kind, size) for kind in _KINDS for size in (1, 4096, 5000)]
        expected = [compressor.compress(page) for page in pages]
        _is_the_batch(batch, pages, expected)
        _is_the_batch(batch, [memoryview(page) for page in pages], expected)
        for nr in _BATCHES:
            many = [b"%d, " % (nr * 1000 + i) * 60 for i in range(nr)]
            _is_the_batch(batch, many, [compressor.compress(page) for page in many])

    @rule(
        "Compressor",
        "Several threads may use the same object at once.",
        "keep what a call needs in local variables, or the library's contexts in a threading.local",
    )
    def test_several_threads_may_share_one(self) -> None:
        """Threads that use one object at once do not disturb each other.

        They are made to take turns much more often than usual.
        """
        compressor = self.make_compressor()
        pages = [_data(_KINDS[i % 4], 4000 + i) for i in range(64)]
        expected = [compressor.compress(page) for page in pages]
        usual = sys.getswitchinterval()
        sys.setswitchinterval(1e-5)
        try:
            with ThreadPoolExecutor(4) as threads:
                for _ in range(3):
                    blobs = list(threads.map(compressor.compress, pages))
                    fail_unless(blobs == expected, "four threads at once made other blobs")
                    sizes = map(len, pages)
                    back = list(threads.map(compressor.decompress, blobs, sizes))
                    fail_unless(back == pages, "four threads at once decompressed other bytes")
        finally:
            sys.setswitchinterval(usual)


def _comes_back(compressor: Compressor, kind: str, size: int) -> None:
    data = _data(kind, size)
    blob = compressor.compress(data)
    if type(blob) is not bytes:
        broken(f"compress returned {type(blob).__name__}", "return bytes(...) of it")
    fail_unless(bool(blob), f"compress returned no bytes for {size} B of {kind}")
    _is_back(compressor.decompress(blob, size), data, f"{size} B of {kind}")


def _is_back(back: object, data: bytes, what: str) -> None:
    if type(back) is not bytes:
        broken(f"decompress returned {type(back).__name__}", "return bytes(...) of it")
    if back != data:
        length = "other bytes" if len(back) == len(data) else f"{len(back)} B"
        broken(f"{what} came back as {length}")


def _is_corrupt(compressor: Compressor, blob: bytes, size: int, what: str) -> None:
    try:
        back = compressor.decompress(blob, size)
    except CorruptData:
        return
    except Exception as exc:  # noqa: BLE001 - whatever a plugin raises
        broken(f"{what} raised {type(exc).__name__}: {exc}")
    broken(f"{what} gave {len(back)} B")


def _is_size_or_corrupt(
    compressor: Compressor, blob: bytes, size: int, what: str, *, weigh: bool
) -> None:
    """Fail unless a bad blob gives `size` bytes or CorruptData, and takes little memory for it."""
    back = bytes(size)
    peak = 0
    if weigh:
        tracemalloc.start()
    try:
        with suppress(CorruptData):
            back = compressor.decompress(blob, size)
        if weigh:
            _, peak = tracemalloc.get_traced_memory()
    except Exception as exc:  # noqa: BLE001 - whatever a plugin raises
        broken(f"{what}, asked for as {size} B, raised {type(exc).__name__}: {exc}")
    finally:
        if weigh:
            tracemalloc.stop()
    if len(back) != size:
        broken(f"{what}, asked for as {size} B, gave {len(back)} B")
    most = 4 * (len(blob) + size) + 128 * KIB
    fail_unless(
        peak < most,
        f"{what}, asked for as {size} B, made decompress allocate {peak} B",
        "compare the size that a blob names with `size` before anything is allocated",
    )


def _is_the_batch(batch: BatchCompressor, pages: Sequence[Buffer], expected: list[bytes]) -> None:
    got = batch.compress_many(pages)
    if not isinstance(got, list):  # pyright: ignore[reportUnnecessaryIsInstance] # it is a plugin's word
        broken(f"compress_many returned {type(got).__name__}")
    if len(got) != len(pages):
        broken(f"compress_many was given {len(pages)} pages and returned {len(got)} blobs")
    for nr, (blob, of_one) in enumerate(zip(got, expected, strict=True)):
        if type(blob) is not bytes:
            broken(f"compress_many returned a list of {type(blob).__name__}")
        if blob != of_one:
            broken(f"blob {nr} of {len(pages)} is not what `compress` makes of that page")


def _noise(rng: random.Random) -> tuple[str, bytes]:
    noise = rng.randbytes(rng.randrange(2000))
    return f"{len(noise)} B of noise", noise


def _damaged(rng: random.Random, blob: bytes, others: Sequence[bytes]) -> tuple[str, bytes]:
    """Return a blob with flipped bits, or parts cut out, put in or put over; and what it is."""
    bad = bytearray(blob)
    how = ""
    for _ in range(rng.randrange(1, 4)):
        at = rng.randrange(len(bad) + 1)
        how = rng.choice(("flipped bit", "part cut out", "part put in", "part put over"))
        if how == "flipped bit":
            if at < len(bad):
                bad[at] ^= 1 << rng.randrange(8)
        elif how == "part cut out":
            del bad[at : at + rng.randrange(1, 64)]
        else:
            piece = rng.choice((rng.randbytes(rng.randrange(64)), rng.choice(others)))
            bad[at : at + len(piece) * (how == "part put over")] = piece
    return f"a blob of {len(blob)} B with a {how}", bytes(bad)
