"""Traces of requests: recordings of our own, CacheBench's, and those of libCacheSim.

A request is a get, a put or a delete of a key, with the bytes of its value. What is read:

- CSV whose header names `key`, `op` and `size`: what `record=` writes, and what CacheBench replays
  (op_count repeats a line). GET_LEASE and the like are gets, SET and the like puts.
- libCacheSim's oracleGeneral, binary: 24 bytes a request.
- libCacheSim's CSV: its columns are time, key and size, unless its own words say otherwise, as
  "time-col=2, obj-id-col=5, obj-size-col=4, delimiter=;". All requests are gets.

Each may be compressed, as .gz or .zst (which takes the package `zstandard`).

On failure: a trace that is cut in the middle, or is none, raises TraceError, which names the place.
"""

from __future__ import annotations

import gzip
import io
import struct
import zlib
from array import array
from itertools import chain, islice
from typing import TYPE_CHECKING, Any, cast

import attrs

from reclaimactors.errors import ReclaimError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

__all__ = ["DELETE", "GET", "MOST_REQUESTS", "PUT", "Trace", "TraceError", "load"]

GET, PUT, DELETE = range(3)
MOST_REQUESTS = 200_000  #: that are read, unless told otherwise
_ORACLE = struct.Struct("<IQIq")  # seconds, key, size, and the number of the next request of it
_MOST_SIZE = 1 << 30  # bytes of a value: what is larger is no size
_OPS = {
    "GET": GET, "GETS": GET, "GET_LEASE": GET, "GETSET": PUT, "SET": PUT, "SET_LEASE": PUT,
    "ADD": PUT, "REPLACE": PUT, "CAS": PUT, "DELETE": DELETE, "DEL": DELETE,
}  # fmt: skip
_COLUMNS = {"time-col", "obj-id-col", "obj-size-col", "delimiter", "has-header"}
_Row = tuple[int, str | int, int, float]  # op, key, size, and when, in seconds


class TraceError(ReclaimError, ValueError):
    """A file is no trace that can be read, or is cut in the middle."""


@attrs.frozen(eq=False)
class Trace:
    """Requests in the order in which they came.

    Attributes:
        ops: GET, PUT or DELETE, each.
        keys: 0 to `nr_keys` - 1, each.
        sizes: bytes, each; of a get of a recording, 0 where the key was absent.
        nr_keys: different keys.
        seconds: from the first request to the last, as the trace says; 0.0 where it does not.
        whole: whether that is the whole file.
    """

    ops: bytes = attrs.field(repr=False)
    keys: array[int] = attrs.field(repr=False)
    sizes: array[int] = attrs.field(repr=False)
    nr_keys: int
    seconds: float
    whole: bool

    def __len__(self) -> int:
        return len(self.ops)

    def __iter__(self) -> Iterator[tuple[int, int, int]]:
        return zip(self.ops, self.keys, self.sizes, strict=True)


def load(path: Path, *, most: int = MOST_REQUESTS, columns: str = "") -> Trace:
    """Read a trace.

    Args:
        path: of the file.
        most: requests that are read at most.
        columns: where a libCacheSim CSV has what, in its own words; "" for time, key, size.

    Raises:
        TraceError: if it cannot be read, is cut, or is no trace.
    """
    asked = _columns(columns)
    ops, keys, sizes = bytearray(), array("Q"), array("Q")
    numbers: dict[str | int, int] = {}
    first = last = None
    try:
        with _opened(path) as file:
            rows = _rows(file, asked)
            for op, key, size, last in islice(rows, most):
                first = last if first is None else first
                ops.append(op)
                keys.append(numbers.setdefault(key, len(numbers)))
                sizes.append(size)
            whole = next(rows, None) is None
    except TraceError as exc:
        msg = f"trace {path}: {exc}"
        raise TraceError(msg) from exc
    except (EOFError, zlib.error, gzip.BadGzipFile) as exc:
        msg = f"trace {path}: its compressed data are cut or damaged after {len(ops):,} requests"
        raise TraceError(f"{msg} (--requests {len(ops)} replays those)") from exc
    except OSError as exc:
        msg = f"cannot read trace {path}: {exc.strerror or exc}"
        raise TraceError(msg) from exc
    if not ops:
        msg = f"trace {path}: there is no request in it"
        raise TraceError(msg)
    seconds = max(0.0, (last or 0.0) - (first or 0.0))
    return Trace(bytes(ops), keys, sizes, len(numbers), seconds, whole)


def _columns(asked: str) -> dict[str, str]:
    """Return what libCacheSim's words say: "time-col=2, obj-id-col=5"."""
    found: dict[str, str] = {}
    for part in filter(str.strip, asked.split(",")):
        name, _, value = part.strip().partition("=")
        found[name] = value
    unknown = sorted(found.keys() - _COLUMNS)
    if unknown:
        msg = f"columns {', '.join(unknown)} are not known; known: {', '.join(sorted(_COLUMNS))}"
        raise TraceError(msg)
    for name, value in found.items():
        if name.endswith("-col") and not (value.isdecimal() and int(value) > 0):
            msg = f"{name} is {value!r}; it is the number of a column, from 1 on"
            raise TraceError(msg)
    return found


def _opened(path: Path) -> io.BufferedReader:
    """Open a file, and decompress it as its name says."""
    if path.suffix == ".gz":
        return io.BufferedReader(cast("Any", gzip.open(path, "rb")))
    if path.suffix in {".zst", ".zstd"}:
        return io.BufferedReader(_Zstd(path))
    return path.open("rb")


class _Zstd(io.RawIOBase):
    """A file decompressed by zstandard, whose own reader says nothing of one that is cut."""

    def __init__(self, path: Path) -> None:
        try:
            import zstandard  # noqa: PLC0415 - only where it is wanted
        except ImportError as exc:
            msg = "it is compressed by zstd: pip install zstandard, or decompress it (zstd -d)"
            raise TraceError(msg) from exc
        self._zstd: Any = zstandard
        self._file = path.open("rb")
        self._frame: Any = None
        self._out = b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._out and (data := self._file.read(1 << 16)):
            self._out = self._decompressed(data)
        if not self._out and self._frame is not None:
            raise EOFError
        size = min(len(buffer), len(self._out))
        buffer[:size], self._out = self._out[:size], self._out[size:]
        return size

    def _decompressed(self, data: bytes) -> bytes:
        """Return what these bytes of the file give; one frame may follow another."""
        parts: list[bytes] = []
        while data:
            if self._frame is None:
                self._frame = self._zstd.ZstdDecompressor().decompressobj()
            try:
                parts.append(self._frame.decompress(data))
            except self._zstd.ZstdError as exc:
                raise EOFError from exc
            data = b""
            if self._frame.eof:
                data, self._frame = self._frame.unused_data, None
        return b"".join(parts)

    def close(self) -> None:
        if not self.closed:
            self._file.close()
        super().close()


def _rows(file: io.BufferedReader, columns: dict[str, str]) -> Iterator[_Row]:
    if not columns and b"\0" in file.peek(_ORACLE.size)[: _ORACLE.size]:
        return _oracle(file)
    lines = (line.decode("utf-8", "replace") for line in file)
    first = next(lines, "")
    names = [name.strip().lower() for name in first.rstrip("\r\n").split(",")]
    if not columns and {"key", "op", "size"} <= set(names):
        return _cachebench(lines, names)
    return _csv(chain([first], lines), columns)


def _oracle(file: io.BufferedReader) -> Iterator[_Row]:
    nr = 0
    while record := file.read(_ORACLE.size):
        if len(record) < _ORACLE.size:
            msg = f"it is cut in the middle of request {nr + 1:,} (after {nr * _ORACLE.size:,} B)"
            raise TraceError(f"{msg}; --requests {nr} replays those before")
        at, key, size, _ = _ORACLE.unpack(record)
        nr += 1
        if size > _MOST_SIZE:
            raise TraceError(f"request {nr:,} has {size:,} B: this is no oracleGeneral trace")
        yield GET, key, size, float(at)


def _cachebench(lines: Iterable[str], names: list[str]) -> Iterator[_Row]:
    key, op, size = map(names.index, ("key", "op", "size"))
    count = names.index("op_count") if "op_count" in names else None
    time = next((name for name in ("time_us", "op_time") if name in names), None)
    unit = 1e-6 if time == "time_us" else 1.0
    nr = 0
    for number, line in enumerate(lines, 2):
        fields = line.rstrip("\r\n").split(",")
        if fields == [""]:
            continue
        known = _OPS.get(fields[op].strip().upper()) if len(fields) > op else None
        if known is None or len(fields) < len(names):
            raise _cut(number, line, nr, f"{len(names)} columns, one of them an op")
        at = _time(fields[names.index(time)]) * unit if time else 0.0
        row = known, fields[key], _number(fields[size], number, line, nr), at
        for _ in range(1 if count is None else _number(fields[count], number, line, nr)):
            nr += 1
            yield row


def _csv(lines: Iterable[str], columns: dict[str, str]) -> Iterator[_Row]:
    delimiter = columns.get("delimiter") or ","
    key = int(columns.get("obj-id-col", 2)) - 1
    size = int(columns.get("obj-size-col", 3)) - 1
    time = int(columns.get("time-col", 1)) - 1
    nr = 0
    for number, line in enumerate(lines, 1):
        fields = line.rstrip("\r\n").split(delimiter)
        if fields == [""]:
            continue
        if number == 1 and len(fields) > size and not fields[size].strip().isdecimal():
            continue  # a header
        if len(fields) <= max(key, size, time):
            raise _cut(number, line, nr, f"at least {max(key, size, time) + 1} columns")
        row = GET, fields[key], _number(fields[size], number, line, nr), _time(fields[time])
        nr += 1
        yield row


def _time(text: str) -> float:
    """Return a time in its unit; 0.0 where it is none."""
    try:
        return float(text)
    except ValueError:
        return 0.0


def _number(text: str, number: int, line: str, nr: int) -> int:
    try:
        value = int(text)
    except ValueError:
        value = -1
    if not 0 <= value <= _MOST_SIZE:
        raise _cut(number, line, nr, f"a number of 0 to {_MOST_SIZE} as a size or a count")
    return value


def _cut(number: int, line: str, nr: int, wanted: str) -> TraceError:
    seen = line.strip()[:60]
    last = "" if line.endswith("\n") else ", which is the last and is cut,"
    again = f"; --requests {nr} replays those before" if nr else ""
    return TraceError(f"line {number:,}{last} is {seen!r}; wanted: {wanted}{again}")
