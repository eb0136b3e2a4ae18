"""The built-in compressors: the conformance suite, and what is peculiar to each."""

from __future__ import annotations

import zlib

import pytest

from reclaimactors import CorruptData
from reclaimactors.compressors.lz4 import Lz4
from reclaimactors.compressors.null import Null
from reclaimactors.compressors.zlib import Zlib
from reclaimactors.testing import CompressorTests

PAGE = b"kswapd0: order:0, mode:0x400dc0 " * 128


class TestLz4(CompressorTests):
    def make_compressor(self):
        return Lz4()


class TestLz4Accelerated(CompressorTests):
    def make_compressor(self):
        return Lz4(acceleration=8)


class TestZlib(CompressorTests):
    def make_compressor(self):
        return Zlib()


class TestNull(CompressorTests):
    def make_compressor(self):
        return Null()


def test_null_keeps_the_callers_bytes():
    assert Null().compress(PAGE) is PAGE


def test_zlib_refuses_what_follows_its_stream():
    with pytest.raises(CorruptData):
        Zlib().decompress(Zlib().compress(PAGE) + b"x", len(PAGE))


def test_zlib_verifies_its_own_checksum():
    blob = bytearray(zlib.compress(PAGE))
    blob[-1] ^= 1
    with pytest.raises(CorruptData):
        Zlib().decompress(bytes(blob), len(PAGE))


def test_a_higher_level_compresses_more():
    assert len(Zlib(level=9).compress(PAGE)) < len(Zlib(level=0).compress(PAGE))


@pytest.mark.parametrize("acceleration", [0, -1, 65538, 1.5, 3.0, True, "fast"])
def test_lz4_says_which_acceleration_is_allowed(acceleration):
    with pytest.raises(ValueError, match="1 to 65537"):
        Lz4(acceleration=acceleration)


@pytest.mark.parametrize("level", [-1, 10, 1.5, 3.0, True, "best"])
def test_zlib_says_which_level_is_allowed(level):
    with pytest.raises(ValueError, match="0 to 9"):
        Zlib(level=level)
