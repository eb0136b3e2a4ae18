"""The front end of swap-out: the seed's gates, what a batch becomes, what becomes of a folio."""

import itertools
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reclaimactors import Verdict
from reclaimactors.compressors.lz4 import Lz4
from reclaimactors.compressors.null import Null
from reclaimactors.mm.batch import Reclaimer
from reclaimactors.mm.page_io import (
    BLOB,
    FAIL,
    NOMEM,
    POOR,
    QUEUE_SHARE,
    SAME_FILLED,
    Gate,
    Squeezed,
    expand,
    gate,
    outcome,
    same_filled,
    squeeze,
)
from reclaimactors.testing import FaultyCompressor

TEXT = b"a page that compresses well, " * 140
NOISE = b"".join(zlib.crc32(b"%d" % i).to_bytes(4, "big") for i in range(1024))
OPEN = {
    "kcompressd": True,
    "who": Reclaimer.KSWAPD,
    "anon": True,
    "zswap_writeback": True,
    "zswap_enabled": True,
    "synchronous": False,
    "fifo_room": True,
}
IN_ORDER = [
    ("kcompressd", Gate.NO_KCOMPRESSD),
    ("who", Gate.NOT_ADMITTED),
    ("anon", Gate.NOT_ANON),
    ("zswap_writeback", Gate.NO_WRITEBACK),
    ("zswap_enabled", Gate.NO_COMPRESSION),
    ("fifo_room", Gate.FIFO_FULL),
]

OPENERS = {"zswap_enabled", "synchronous"}


def shut(name):
    """Return what shuts the gate of this name."""
    return {name: Reclaimer.DIRECT if name == "who" else False}


# the gates of the seed


def test_a_folio_that_passes_every_gate_is_queued():
    assert gate(**OPEN) is Gate.QUEUED


@pytest.mark.parametrize(("name", "reason"), IN_ORDER)
def test_each_gate_alone_keeps_a_folio_out(name, reason):
    assert gate(**OPEN | shut(name)) is reason


@pytest.mark.parametrize(("first", "second"), [*itertools.combinations(IN_ORDER, 2)])
def test_the_first_shut_gate_is_the_reason(first, second):
    assert gate(**OPEN | shut(first[0]) | shut(second[0])) is first[1]


def test_a_synchronous_device_replaces_zswap():
    assert gate(**OPEN | {"zswap_enabled": False, "synchronous": True}) is Gate.QUEUED


@given(
    st.fixed_dictionaries({name: st.booleans() for name in OPEN if name != "who"}),
    st.sampled_from(Reclaimer),
)
def test_a_folio_is_queued_exactly_where_all_gates_are_open(gates, who):
    compresses = gates["zswap_enabled"] or gates["synchronous"]
    others = all(value for name, value in gates.items() if name not in OPENERS)
    admitted = who is not Reclaimer.DIRECT
    assert (gate(**gates, who=who) is Gate.QUEUED) == (compresses and others and admitted)


def test_each_class_of_reclaimers_has_its_share_of_the_fifo():
    assert set(QUEUE_SHARE) == set(Reclaimer)
    assert QUEUE_SHARE[Reclaimer.KSWAPD] == 1
    assert 0 < QUEUE_SHARE[Reclaimer.PROACTIVE] < 1
    assert QUEUE_SHARE[Reclaimer.DIRECT] == 0


# same-filled folios


@given(st.integers(0, 2**64 - 1), st.integers(16, 5000))
def test_a_repeated_word_is_found_and_expands_to_the_same_bytes(word, size):
    data = (word.to_bytes(8, "little") * (size // 8 + 1))[:size]
    found = same_filled(data)
    assert found is not None
    assert expand(found, size) == data


@given(st.integers(0, 2**64 - 1), st.integers(16, 5000), st.data())
def test_one_other_byte_is_enough_not_to_be_same_filled(word, size, data):
    page = bytearray(expand(word, size))
    page[data.draw(st.integers(0, size - 1))] ^= data.draw(st.integers(1, 255))
    assert same_filled(bytes(page)) is None


@given(st.binary(max_size=200))
def test_whatever_is_same_filled_comes_back(data):
    word = same_filled(data)
    assert word is None or expand(word, len(data)) == data


@pytest.mark.parametrize("size", [1, 7, 8, 15])
def test_a_folio_under_two_words_is_not_same_filled(size):
    assert same_filled(bytes(size)) is None


def test_no_bytes_at_all_are_same_filled_as_no_plugin_may_be_given_none():
    assert same_filled(b"") == 0
    assert expand(0, 0) == b""


@pytest.mark.parametrize("size", [16, 17, 4095, 4096, 262144])
def test_a_folio_of_zeros_repeats_the_word_zero(size):
    assert same_filled(bytes(size)) == 0


# squeeze


class Batching(Lz4):
    """lz4 with a `compress_many` that counts its calls."""

    def __init__(self) -> None:
        super().__init__()
        self.batches: list[int] = []

    def compress_many(self, pages):
        self.batches.append(len(pages))
        return [self.compress(page) for page in pages]


def test_squeeze_sorts_a_batch_into_blobs_words_poor_and_failed_rows():
    lz4 = Lz4()
    faulty = FaultyCompressor(lz4, when=lambda page: page.startswith(b"bad"))
    out = squeeze(faulty, [TEXT, bytes(4096), NOISE, b"bad" + TEXT])
    assert list(out.kinds) == [BLOB, SAME_FILLED, POOR, FAIL]
    assert out.blobs == [lz4.compress(TEXT), None, None, None]
    assert out.values[1] == 0


def test_squeeze_of_nothing_is_no_rows():
    out = squeeze(Lz4(), [])
    assert (bytes(out.kinds), out.blobs, out.values) == (b"", [], [])


@pytest.mark.parametrize(("blob", "kind"), [(15 * 16, BLOB), (15 * 16 + 1, POOR)])
def test_a_blob_over_fifteen_sixteenths_is_poor(blob, kind):
    class Fixed(Null):
        def compress(self, data):
            return bytes(blob)

    assert squeeze(Fixed(), [NOISE[:256]]).kinds[0] == kind


def test_a_blob_longer_than_its_page_is_poor():
    class Longer(Null):
        def compress(self, data):
            return bytes(data) + b"more"

    assert squeeze(Longer(), [NOISE]).kinds[0] == POOR


def test_every_page_has_a_row_when_each_call_raises():
    faulty = FaultyCompressor(Lz4(), every=1)
    assert list(squeeze(faulty, [TEXT] * 5).kinds) == [FAIL] * 5


@pytest.mark.parametrize(
    ("error", "kind"),
    [(MemoryError(), NOMEM), (OSError("no"), FAIL), (RecursionError(), FAIL), (KeyError(1), FAIL)],
)
def test_any_exception_of_a_compressor_is_a_failed_row(error, kind):
    faulty = FaultyCompressor(Lz4(), every=2, error=error)
    assert list(squeeze(faulty, [TEXT] * 4).kinds) == [BLOB, kind, BLOB, kind]


def test_a_batching_compressor_gets_what_is_not_same_filled_in_one_call():
    batching = Batching()
    squeeze(batching, [TEXT, bytes(4096), NOISE, TEXT])
    assert batching.batches == [3]


def test_a_single_page_is_not_worth_a_batch():
    batching = Batching()
    assert squeeze(batching, [TEXT]).blobs == [Lz4().compress(TEXT)]
    assert batching.batches == []


@pytest.mark.parametrize("given", [[], [b"x"], [b"x"] * 3])
def test_a_batch_of_the_wrong_length_is_compressed_again_page_by_page(given):
    class Miscounts(Lz4):
        def compress_many(self, pages):
            return given

    assert squeeze(Miscounts(), [TEXT, TEXT]).blobs == [Lz4().compress(TEXT)] * 2


def test_a_batch_that_raises_is_compressed_again_page_by_page():
    class Raises(FaultyCompressor):
        def compress_many(self, pages):
            raise ValueError("one of them is bad")

    faulty = Raises(Lz4(), when=lambda page: page.startswith(b"bad"))
    assert list(squeeze(faulty, [TEXT, b"bad" + TEXT, TEXT]).kinds) == [BLOB, FAIL, BLOB]


PAGES = st.lists(
    st.one_of(
        st.binary(min_size=1, max_size=300),
        st.builds(
            lambda part, times: part * times, st.binary(min_size=1, max_size=9), st.integers(1, 99)
        ),
    ),
    max_size=12,
)


@given(PAGES)
def test_batch_and_page_by_page_give_the_same_rows(pages):
    one, many = squeeze(Lz4(), pages), squeeze(Batching(), pages)
    assert (one.kinds, one.blobs, one.values) == (many.kinds, many.blobs, many.values)


@given(PAGES)
def test_every_page_can_be_had_back_from_its_row(pages):
    lz4 = Lz4()
    out = squeeze(lz4, pages)
    for page, kind, blob, value in zip(pages, out.kinds, out.blobs, out.values, strict=True):
        if kind == SAME_FILLED:
            assert expand(value, len(page)) == page
        elif kind == BLOB:
            assert lz4.decompress(blob, len(page)) == page
        else:
            assert (kind, blob) == (POOR, None)


def test_a_worker_gives_the_checksum_of_what_a_store_would_get():
    lz4 = Lz4()
    out = squeeze(lz4, [TEXT, NOISE, bytes(64)], checksum=True)
    assert out.values == [zlib.crc32(lz4.compress(TEXT)), zlib.crc32(NOISE), 0]


def test_rows_cuts_all_columns_alike():
    out = squeeze(Lz4(), [TEXT, bytes(4096), NOISE])
    part = out.rows(1, 3)
    assert isinstance(part, Squeezed)
    assert list(part.kinds) == [SAME_FILLED, POOR]
    assert part.blobs == [None, None]
    assert part.values == [0, 0]


# the table of outcomes: a row each

TABLE = [
    # folio, pool accepts, swap has room -> verdict
    (SAME_FILLED, True, True, Verdict.ZERO),
    (SAME_FILLED, True, False, Verdict.ZERO),
    (SAME_FILLED, False, True, Verdict.ZERO),
    (SAME_FILLED, False, False, Verdict.ZERO),
    (BLOB, True, True, Verdict.STORED),
    (BLOB, True, False, Verdict.STORED),
    (BLOB, False, True, Verdict.DEVICE),
    (BLOB, False, False, Verdict.ACTIVATE),
    (POOR, True, True, Verdict.DEVICE),
    (POOR, True, False, Verdict.ACTIVATE),
    (POOR, False, True, Verdict.DEVICE),
    (POOR, False, False, Verdict.ACTIVATE),
    (FAIL, True, True, Verdict.DEVICE),
    (FAIL, True, False, Verdict.ERROR),
    (FAIL, False, True, Verdict.DEVICE),
    (FAIL, False, False, Verdict.ERROR),
    (NOMEM, True, True, Verdict.DEVICE),
    (NOMEM, True, False, Verdict.ERROR),
    (NOMEM, False, True, Verdict.DEVICE),
    (NOMEM, False, False, Verdict.ERROR),
]


@pytest.mark.parametrize(("kind", "pool", "swap", "verdict"), TABLE)
def test_a_folio_has_the_outcome_of_its_row(kind, pool, swap, verdict):
    assert outcome(kind, pool_accepts=pool, swap_has_room=swap) is verdict


def test_the_table_has_a_row_for_each_case():
    assert len({row[:3] for row in TABLE}) == 5 * 2 * 2
