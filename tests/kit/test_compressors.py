"""Compressors that are wrong on purpose: each is caught by name, with the sentence that helps."""

from __future__ import annotations

import itertools
import os
import threading
import zlib

import pytest

from reclaimactors import CorruptData
from reclaimactors.compressors.lz4 import Lz4
from reclaimactors.testing import CompressorTests


class Codec:
    """Conforms; each class below breaks one rule of it."""

    name = "codec"

    def compress(self, data):
        return zlib.compress(data, 1)

    def decompress(self, blob, size):
        inflate = zlib.decompressobj()
        try:
            data = inflate.decompress(blob, size + 1)
        except zlib.error as exc:
            raise CorruptData(str(exc)) from exc
        if len(data) != size or not inflate.eof:
            raise CorruptData(f"{len(data)} bytes, not {size}")
        return data


class Nameless(Codec):
    name = ""


class ReturnsViews(Codec):
    def compress(self, data):
        return memoryview(super().compress(data))


class LosesTails(Codec):
    def compress(self, data):
        return super().compress(bytes(data)[:65536])


class BytesOnly(Codec):
    def compress(self, data):
        return zlib.compress(data.strip(b"\xff") if len(data) == 4097 else data, 1)


class KeepsTheView(Codec):
    def __init__(self):
        self.kept = []

    def compress(self, data):
        if isinstance(data, memoryview):
            self.kept.append(data[:])
        return super().compress(data)


class ReadsLater(Codec):
    """Its blob is a name under which it keeps the data in this process."""

    kept = {}  # noqa: RUF012 - it is a rule-breaker

    def compress(self, data):
        blob = super().compress(data)[:10] + len(self.kept).to_bytes(4, "big")
        self.kept[blob] = super().compress(data)
        return blob

    def decompress(self, blob, size):
        return super().decompress(self.kept.get(bytes(blob), b""), size)


class OwnDictionary(Codec):
    def __init__(self):
        self.salt = os.urandom(4)

    def compress(self, data):
        return self.salt + super().compress(data)

    def decompress(self, blob, size):
        if bytes(blob[:4]) != self.salt:
            raise CorruptData("not mine")
        return super().decompress(blob[4:], size)


class CutsToSize(Codec):
    def decompress(self, blob, size):
        return zlib.decompress(blob)[:size]


class Bomb(Codec):
    def decompress(self, blob, size):
        try:
            data = zlib.decompress(blob)
        except zlib.error as exc:
            raise CorruptData(str(exc)) from exc
        if len(data) != size:
            raise CorruptData(f"{len(data)} bytes, not {size}")
        return data


class IgnoresTheEnd(Codec):
    def decompress(self, blob, size):
        inflate = zlib.decompressobj()
        try:
            data = inflate.decompress(blob, size)
        except zlib.error as exc:
            raise CorruptData(str(exc)) from exc
        if len(data) != size:
            raise CorruptData(f"{len(data)} bytes, not {size}")
        return data


class OwnErrors(Codec):
    def decompress(self, blob, size):
        data = zlib.decompress(blob)
        if len(data) != size:
            raise CorruptData(f"{len(data)} bytes, not {size}")
        return data


class OtherBatches(Codec):
    def compress_many(self, pages):
        return [zlib.compress(page, 9) for page in pages]


class UnorderedBatches(Codec):
    def compress_many(self, pages):
        return [self.compress(page) for page in sorted(map(bytes, pages))]


class NotForThreads(Codec):
    def __init__(self):
        self.page = None
        self.turns = itertools.count()

    def compress(self, data):
        self.page = bytes(data)
        if next(self.turns) >= 64:  # a switch of threads, made certain
            self.page = bytes(len(data))
        return super().compress(self.page)


class Unpicklable(Codec):
    def __init__(self):
        self.lock = threading.Lock()


class OptionLost(Codec):
    """Its copies forget the level."""

    def __init__(self, level=9):
        self.level = level

    def compress(self, data):
        return zlib.compress(data, self.level)

    def __reduce__(self):
        return OptionLost, (1,)


class Prints(Codec):
    def compress(self, data):
        print("compressing", len(data))
        return super().compress(data)


class OnlyHere(Codec):
    """Refuses in another process."""

    def __init__(self):
        self.pid = os.getpid()

    def compress(self, data):
        assert self.pid == os.getpid(), "not in a worker"
        return super().compress(data)


class ShortBeyond200(Codec):
    def compress_many(self, pages):
        return [self.compress(page) for page in pages[:200]]


class Generates(Codec):
    def compress_many(self, pages):
        return (self.compress(page) for page in pages)


class ReusesItsBuffer(Codec):
    def __init__(self):
        self.buffer = bytearray(1 << 20)

    def compress(self, data):
        blob = super().compress(data)
        self.buffer[: len(blob)] = blob
        return memoryview(self.buffer)[: len(blob)]

    def __reduce__(self):
        return ReusesItsBuffer, ()


class EmptyForZeros(Codec):
    def compress(self, data):
        return super().compress(data) if any(data) else b""

    def decompress(self, blob, size):
        return super().decompress(blob, size) if blob else bytes(size)


class RefusesNoise(Codec):
    """As libraries that give up where nothing is gained."""

    def compress(self, data):
        blob = super().compress(data)
        if len(blob) >= len(data):
            raise ValueError("not compressible")
        return blob


class FixedSize(Codec):
    def decompress(self, blob, size):
        return super().decompress(blob, 4096)[:size]


class Loops(Codec):
    def decompress(self, blob, size):
        while True:
            pass


@pytest.mark.parametrize(
    ("broken", "check", "says"),
    [
        (Nameless, "says_what_it_is", "its name is ''"),
        (ReturnsViews, "round_trip", "compress returned memoryview"),
        (LosesTails, "round_trip", "65536 bytes, not 262144"),
        (EmptyForZeros, "round_trip", "compress returned no bytes for 1 B of zeros"),
        (RefusesNoise, "round_trip", "ValueError: not compressible"),
        (FixedSize, "round_trip", "1 bytes, not 4096"),
        (BytesOnly, "memoryview_is_as_good_as_bytes", "give it as bytes(data)"),
        (KeepsTheView, "keeps_no_view_and_gives_none", "still holds a view of the page of zeros"),
        (ReusesItsBuffer, "keeps_no_view_and_gives_none", "changed as the next page was"),
        (ReadsLater, "is_pure_and_another_instance_reads_its_blobs", "two different blobs"),
        (OwnDictionary, "is_pure_and_another_instance_reads_its_blobs", "two instances made"),
        (Unpicklable, "a_worker_has_the_same_one", "cannot pickle '_thread.lock' object"),
        (OptionLost, "a_worker_has_the_same_one", "have __reduce__ hand over every option"),
        (Prints, "a_worker_has_the_same_one", "this was printed there: 'compressing 4096"),
        (OnlyHere, "a_worker_has_the_same_one", "AssertionError: not in a worker"),
        (CutsToSize, "another_size_than_was_compressed_is_corrupt", "asked for as 1 B, gave 1 B"),
        (Bomb, "memory_is_bounded_by_size_whatever_the_blob_says", "decompress allocated"),
        (IgnoresTheEnd, "truncated_blob_is_corrupt", "gave 4096 B"),
        (OwnErrors, "truncated_blob_is_corrupt", "raised error: Error -5"),
        (OwnErrors, "bad_blobs_raise_nothing_but_corrupt_data", "raised error: Error -3"),
        (OtherBatches, "compress_many_is_compress_of_each", "blob 0 of 12 is not what"),
        (UnorderedBatches, "compress_many_is_compress_of_each", "in the order given"),
        (ShortBeyond200, "compress_many_is_compress_of_each", "300 pages and returned 200 blobs"),
        (Generates, "compress_many_is_compress_of_each", "compress_many returned generator"),
        (NotForThreads, "several_threads_may_share_one", "threading.local"),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_broken_compressor_is_caught(caught, broken, check, says):
    assert says in caught("compressors", broken, check)


def test_a_compressor_that_hangs_is_given_up(caught, monkeypatch):
    monkeypatch.setattr("reclaimactors.testing.rules._GRACE_S", 0.05)
    said = caught("compressors", Loops, "round_trip", patience_s=0.05)
    assert "it hangs: it had not ended after 0.05 s: test_compressors.py:" in said


def test_a_class_within_a_function_is_no_use_to_a_worker(caught):
    class Local(Codec):
        pass

    said = caught("compressors", Local, "a_worker_has_the_same_one")
    assert "it cannot be pickled" in said
    assert "at the top of a module that can be imported" in said


@pytest.mark.parametrize("right", [Codec, Lz4])
def test_right_compressor_passes(kept, right):
    kept("compressors", right)


def test_one_for_threads_only_need_not_be_pickled(kept):
    kept("compressors", Unpicklable, in_workers=False)


def test_unfinished_suite_says_what_is_missing():
    with pytest.raises(NotImplementedError, match="must define make_compressor"):
        CompressorTests().test_round_trip()
