"""Real input: files whose bytes become the values of a run.

The files are looked at as one long string of bytes in order of their paths, cut into values. At
most `limit` bytes of it are held: of a longer input, values drawn evenly by the seed. What a key
holds is in `workload.py`.
"""

from __future__ import annotations

import contextlib
import os
import random
import stat
import sysconfig
from bisect import bisect_right
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING

import attrs

from reclaimactors.errors import ReclaimError
from reclaimactors.units import MIB, PAGE_SIZE

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

__all__ = ["DEFAULT_LIMIT", "Input", "InputError", "default_paths", "files_below", "load"]

DEFAULT_LIMIT = 32 * MIB
_WORD = 8  # bytes of a machine word


class InputError(ReclaimError, ValueError):
    """The files given as input are missing, unreadable or empty."""


def _count(values: Input) -> int:
    return max(1, len(values.data) // values.value_size)


@attrs.frozen(eq=False)
class Input:
    """Values of `value_size` bytes each, taken from files; held once, handed out as copies."""

    data: bytes = attrs.field(repr=lambda data: f"<{len(data)} B>")
    value_size: int
    paths: Sequence[Path] = ()
    _nr: int = attrs.field(init=False, default=attrs.Factory(_count, takes_self=True))

    def __len__(self) -> int:
        """Return the number of values, at least 1."""
        return self._nr

    def value(self, key: int, version: int) -> bytes:
        """Return a fresh copy of what `key` holds after its put number `version`.

        Versions of a key are far apart in the input, so that a stale value differs from the last.
        """
        start = (key + version * (self._nr // 2 + 1)) % self._nr * self.value_size
        return self.data[start : start + self.value_size]

    def values(self) -> Iterator[bytes]:
        """Yield each of them once."""
        return (self.value(key, 0) for key in range(self._nr))

    @cached_property
    def same_filled_share(self) -> float:
        """The share, 0 to 1, of values that are one machine word repeated."""
        return sum(map(_is_same_filled, self.values())) / len(self)


def default_paths() -> list[Path]:
    """Return the running Python's own library: real data on every machine."""
    return [Path(sysconfig.get_path("stdlib"))]


def load(
    paths: Sequence[Path] = (),
    *,
    value_size: int = PAGE_SIZE,
    limit: int = DEFAULT_LIMIT,
    seed: int = 0,
) -> Input:
    """Return values cut from files and from all files below folders.

    Args:
        paths: files or folders; none means `default_paths`.
        value_size: bytes of a value, at least 1.
        limit: bytes held at most, at least `value_size`.
        seed: which values of an input over the limit are drawn.

    Raises:
        InputError: if a path is missing or unreadable, or there is nothing in any.
    """
    files = [found for path in paths or default_paths() for found in files_below(path)]
    total = sum(size for _, size in files)
    if not total:
        names = ", ".join(str(path) for path in paths or default_paths())
        msg = f"the input is empty: no bytes in {names}; name files that have some"
        raise InputError(msg)
    nr_values, nr_held = total // value_size, max(1, limit // value_size)
    if nr_values <= nr_held:
        drawn: Iterable[int] = range(max(1, nr_values))
    else:
        drawn = sorted(random.Random(seed).sample(range(nr_values), nr_held))  # noqa: S311 - a sample, no secret
    data = b"".join(_cut(files, drawn, value_size))
    if not data:
        msg = f"the input became empty while it was read, {files[0][0]} first; name stable files"
        raise InputError(msg)
    return Input(data, value_size, tuple(paths or default_paths()))


def files_below(path: Path) -> Iterator[tuple[Path, int]]:
    """Yield (file, size in bytes) of a file, or of the regular files below a folder, sorted."""
    try:
        named = path.stat()
        if stat.S_ISREG(named.st_mode):
            path.open("rb").close()
            yield path, named.st_size
        elif stat.S_ISDIR(named.st_mode):
            os.scandir(path).close()
        else:
            msg = f"input {path} is neither a file nor a folder"
            raise InputError(msg)
    except OSError as exc:
        msg = f"cannot read input {path}: {exc.strerror}"
        raise InputError(msg) from exc
    for folder, folders, names in os.walk(path):
        folders[:] = sorted(set(folders) - {"site-packages", "__pycache__"})
        for name in sorted(names):
            found = Path(folder, name)
            with contextlib.suppress(OSError):  # what cannot be looked at, or is gone, is no input
                status = found.stat()
                if stat.S_ISREG(status.st_mode) and os.access(found, os.R_OK):
                    yield found, status.st_size


def _cut(
    files: Sequence[tuple[Path, int]], indices: Iterable[int], value_size: int
) -> Iterator[bytes]:
    """Yield the values of those indices; a value may begin in one file and end in another."""
    ends = list(accumulate(size for _, size in files))
    for index in indices:
        start, stop = index * value_size, min((index + 1) * value_size, ends[-1])
        pieces: list[bytes] = []
        while start < stop:
            path, size = files[which := bisect_right(ends, start)]
            piece = min(stop, ends[which]) - start
            pieces.append(_read(path, start - (ends[which] - size), piece))
            start += piece
        yield b"".join(pieces)


def _read(path: Path, offset: int, size: int) -> bytes:
    try:
        with path.open("rb", buffering=0) as source:
            source.seek(offset)
            return source.read(size)
    except OSError as exc:
        msg = f"cannot read input {path}: {exc.strerror}"
        raise InputError(msg) from exc


def _is_same_filled(value: bytes) -> bool:
    """Return whether a value is its first machine word over and over."""
    word = value[:_WORD]
    return value == (word * (len(value) // _WORD + 1))[: len(value)]
