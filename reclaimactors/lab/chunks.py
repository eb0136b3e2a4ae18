"""Bytes to be probed, in chunks: of files, or of the anonymous memory of a process that runs.

A process is only read. Its pages are found in /proc/PID/smaps and /proc/PID/pagemap, so that no
page is touched that is not in RAM: what is swapped stays where it is, and what was never written to
is not made. It goes on meanwhile, and what it gives back before it is read is left out. Linux only.
"""

from __future__ import annotations

import os
import re
from array import array
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import attrs

from reclaimactors.lab.data import InputError, files_below
from reclaimactors.units import KIB, format_size

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

__all__ = ["CHUNK", "Files", "Process", "Source"]

CHUNK = 64 * KIB
PROC = Path("/proc")
_PRESENT, _FILE = 1 << 63, 1 << 61  # bits of a row of pagemap
_ROWS = 64 * KIB  # of pagemap that are read at a time
_MAPPING = re.compile(r"([0-9a-f]+)-([0-9a-f]+) ")
_FIGURE = re.compile(r"(Anonymous|Swap):\s+(\d+) kB")


class Source(Protocol):
    """Bytes that can be read once."""

    @property
    def name(self) -> str:
        """What they are, in words."""
        ...

    @property
    def size(self) -> int:
        """How many bytes there are, about."""
        ...

    def chunks(self) -> Iterator[bytes]:
        """Yield them, at most `CHUNK` bytes that follow each other at a time.

        Raises:
            InputError: if they cannot be read.
        """
        ...


@attrs.frozen
class Files:
    """The bytes of files, and of the regular files below folders."""

    name: str
    size: int
    _files: Sequence[Path] = attrs.field(repr=False)

    @classmethod
    def of(cls, paths: Sequence[Path]) -> Files:
        """Look files up.

        Raises:
            InputError: if one is missing or unreadable, or there is nothing in any.
        """
        found = [each for path in paths for each in files_below(path)]
        size = sum(size for _, size in found)
        names = ", ".join(map(str, paths))
        if not size:
            msg = f"there are no bytes in {names}; name files that have some"
            raise InputError(msg)
        return cls(f"{names} ({format_size(size)})", size, [path for path, _ in found])

    def chunks(self) -> Iterator[bytes]:
        """Yield the bytes of each."""
        for path in self._files:
            try:
                with path.open("rb", buffering=0) as source:
                    while chunk := source.read(CHUNK):
                        yield chunk
            except OSError as exc:
                msg = f"cannot read {path}: {exc.strerror}"
                raise InputError(msg) from exc


@attrs.frozen
class Process:
    """The anonymous pages of a process that are in RAM: its heaps, its stacks, what it changed."""

    name: str
    size: int
    _pid: int
    _mappings: Sequence[tuple[int, int]] = attrs.field(repr=False)

    @classmethod
    def of(cls, pid: int) -> Process:
        """Look a process up.

        Raises:
            InputError: if there is none, it may not be looked at, or holds no anonymous memory.
        """
        folder = PROC / str(pid)
        try:
            smaps = (folder / "smaps").read_text("utf-8", "replace")
            command = (folder / "comm").read_text("utf-8", "replace").strip()
        except OSError as exc:
            raise _refused(pid, exc) from exc
        mappings, nr_bytes, swapped = _mappings(smaps.splitlines())
        if not nr_bytes:
            msg = f"process {pid} ({command}) has no anonymous memory in RAM"
            raise InputError(msg)
        name = f"process {pid} ({command}): {format_size(nr_bytes)} of anonymous memory in RAM"
        if swapped:
            name += f"; {format_size(swapped)} that are swapped out are not looked at"
        return cls(name, nr_bytes, pid, mappings)

    def chunks(self) -> Iterator[bytes]:
        """Yield the bytes of its pages; ends early if the process does."""
        folder = PROC / str(self._pid)
        try:
            pagemap = os.open(folder / "pagemap", os.O_RDONLY | os.O_CLOEXEC)
        except OSError as exc:
            raise _refused(self._pid, exc) from exc
        try:
            mem = os.open(folder / "mem", os.O_RDONLY | os.O_CLOEXEC)
        except OSError as exc:
            os.close(pagemap)
            raise _refused(self._pid, exc) from exc
        try:
            for start, end in self._mappings:
                for first, last in _in_ram(pagemap, start, end):
                    yield from _read(mem, first, last)
        finally:
            os.close(pagemap)
            os.close(mem)


def _refused(pid: int, exc: OSError) -> InputError:
    """Return why a process cannot be looked at, and what to do."""
    if not PROC.joinpath("self", "smaps").exists():
        return InputError("probing a process needs Linux's /proc, which is not there; probe files")
    if isinstance(exc, (FileNotFoundError, ProcessLookupError)):
        return InputError(f"there is no process {pid}")
    return InputError(
        f"the system does not let you read the memory of process {pid} ({exc.strerror}): it takes"
        " the same user, or root, and CAP_SYS_PTRACE where kernel.yama.ptrace_scope is not 0"
    )


def _mappings(smaps: Iterable[str]) -> tuple[list[tuple[int, int]], int, int]:
    """Return (start, end) of mappings that have anonymous pages, and bytes in RAM and swapped."""
    found: list[tuple[int, int]] = []
    total, swapped, here = 0, 0, (0, 0)
    for line in smaps:
        if mapping := _MAPPING.match(line):
            here = int(mapping[1], 16), int(mapping[2], 16)
        elif figure := _FIGURE.match(line):
            nr_bytes = int(figure[2]) * KIB
            if figure[1] == "Swap":
                swapped += nr_bytes
            elif nr_bytes:
                total += nr_bytes
                found.append(here)
    return found, total, swapped


def _in_ram(pagemap: int, start: int, end: int) -> Iterator[tuple[int, int]]:
    """Yield (first, last + 1) addresses of anonymous pages in RAM that follow each other."""
    page = os.sysconf("SC_PAGE_SIZE")
    for at in range(start, end, _ROWS * page):
        rows = array("Q")
        nr = min(_ROWS, (end - at) // page)
        rows.frombytes(os.pread(pagemap, nr * rows.itemsize, at // page * rows.itemsize))
        address = at
        for wanted, same in groupby(row & (_PRESENT | _FILE) == _PRESENT for row in rows):
            after = address + sum(1 for _ in same) * page
            if wanted:
                yield address, after
            address = after


def _read(mem: int, first: int, last: int) -> Iterator[bytes]:
    for at in range(first, last, CHUNK):
        try:
            chunk = os.pread(mem, min(CHUNK, last - at), at)
        except OSError:  # it was given back meanwhile
            continue
        if chunk:
            yield chunk
