"""Staging memory: in which steps a batch is copied."""

from __future__ import annotations

import os

import pytest

from reclaimactors.compressors.lz4 import Lz4
from reclaimactors.mm.page_io import FAIL, squeeze
from reclaimactors.offload.slots import PIECE, PIECE_BYTES, Slots, anonymous_memory


@pytest.fixture
def slots():
    fd = anonymous_memory()
    slots = Slots(fd, nr=2, area=4 << 20, rows=160)
    yield slots
    slots.close()
    os.close(fd)


@pytest.mark.parametrize(
    ("sizes", "steps"),
    [
        ([4096] * (2 * PIECE + 1), [PIECE, PIECE, 1]),
        ([65536] * 5, [2, 2, 1]),
        ([4096, 2 * PIECE_BYTES, 4096, 4096], [1, 1, 2]),
        ([PIECE_BYTES, 1], [1, 1]),
        ([], []),
    ],
)
def test_no_step_is_longer_than_a_piece_of_pages_whatever_the_folios(slots, sizes, steps):
    batch = [(b"folio %d " % i * size)[:size] for i, size in enumerate(sizes)]
    assert sum(1 for _ in slots.put(1, batch)) == len(steps)
    assert slots.pages(1) == batch
    slots.answer(1, squeeze(Lz4(), batch))
    rows = list(slots.rows_of(1))
    assert [len(piece.kinds) for piece in rows] == steps
    assert [blob for piece in rows for blob in piece.blobs] == squeeze(Lz4(), batch).blobs


class Fails(Lz4):
    """A compressor that raises on large pages."""

    def compress(self, data):
        if len(data) > 99:
            raise ValueError("it does not like «large» pages")
        return super().compress(data)


def test_what_a_compressor_raised_comes_with_the_rows(slots):
    batch = [b"short " * 4, *[b"%d long " % i * 500 for i in range(3)]]
    [_] = slots.put(0, batch)
    out = squeeze(Fails(), slots.pages(0), checksum=True)
    slots.answer(0, out)
    [rows] = slots.rows_of(0)
    assert (rows.kinds, rows.values, rows.blobs) == (out.kinds, out.values, out.blobs)
    assert rows.kinds[1:] == bytes([FAIL]) * 3
    assert rows.why == out.why == "ValueError: it does not like «large» pages"


def test_the_words_of_a_compressor_are_cut_to_the_page_that_it_raised_on(slots):
    class Refuses(Lz4):
        def compress(self, data):
            raise ValueError("some long words")

    [_] = slots.put(0, [b"twelve bytes", b"others"])
    slots.answer(0, squeeze(Refuses(), slots.pages(0)))
    [rows] = slots.rows_of(0)
    assert rows.why == "ValueError: some long words"[:12]
    assert rows.values == [0, 0]
