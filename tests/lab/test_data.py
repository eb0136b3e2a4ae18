from __future__ import annotations

import os

import pytest

from reclaimactors.lab.data import InputError, load


def test_values_run_on_from_one_file_into_the_next(tmp_path):
    (tmp_path / "a").write_bytes(b"0123456789")
    (tmp_path / "b").write_bytes(b"")
    (tmp_path / "c").write_bytes(b"abcdef")
    assert list(load([tmp_path], value_size=4).values()) == [b"0123", b"4567", b"89ab", b"cdef"]


def test_a_file_and_a_folder_together_in_the_order_given(tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "f").write_bytes(b"ffff")
    (tmp_path / "one").write_bytes(b"1111")
    assert load([tmp_path / "sub", tmp_path / "one"], value_size=4).data == b"ffff1111"


def test_an_input_smaller_than_a_value_is_one_value(tmp_path):
    (tmp_path / "small").write_bytes(b"hello")
    small = load([tmp_path / "small"])
    assert len(small) == 1
    assert small.value(7, 3) == b"hello"


def test_a_value_is_a_fresh_copy(source):
    assert source.value(3, 1) == source.value(3, 1)
    assert source.value(3, 1) is not source.value(3, 1)


def test_the_versions_of_a_key_differ_from_the_one_before(source):
    assert all(source.value(3, nr) != source.value(3, nr + 1) for nr in range(100))


def test_a_long_input_is_drawn_by_the_seed_and_held_to_its_limit(tmp_path):
    (tmp_path / "long").write_bytes(os.urandom(1000 * 16))
    first, again, other = (
        load([tmp_path], value_size=16, limit=100 * 16, seed=seed) for seed in (1, 1, 2)
    )
    assert first.data == again.data != other.data
    assert len(first) == 100
    whole = load([tmp_path], value_size=16)
    assert set(first.values()) <= set(whole.values())


def test_the_same_filled_share_counts_one_repeated_word(tmp_path):
    zero, word, text = bytes(4096), b"12345678" * 512, b"123456789" * 455 + b"1"
    (tmp_path / "f").write_bytes(zero + word + text + text)
    assert load([tmp_path]).same_filled_share == 0.5


def test_the_default_is_the_library_of_this_python():
    held = load(limit=64 * 4096)
    assert len(held) == 64
    assert held.same_filled_share < 1


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda path: path / "absent", "No such file"),
        (lambda path: path, "empty"),
        (lambda path: "/dev/zero", "neither a file nor a folder"),
    ],
)
def test_what_cannot_be_read_is_named(tmp_path, make, says):
    from pathlib import Path

    path = Path(make(tmp_path))
    with pytest.raises(InputError, match=says) as caught:
        load([path])
    assert str(path) in str(caught.value)
