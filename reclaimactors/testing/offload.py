"""The conformance suite of offloads: subclass it, and say how one is made.

    class TestMine(OffloadTests):
        def make_offload(self, compressor, workers):
            return Mine(compressor=compressor, workers=workers, nice=10)

Each check is one sentence of the contract. What a batch has to come to is what `make_compressor`
(default: lz4) gives for each of its pages.
"""

from __future__ import annotations

import os
import random
import select
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING

from reclaimactors.compressors.lz4 import Lz4
from reclaimactors.mm.page_io import squeeze
from reclaimactors.testing.rules import Suite, broken, fail_unless, rule

if TYPE_CHECKING:
    from collections.abc import Generator, Sequence

    from reclaimactors.abc import Compressor, Offload
    from reclaimactors.squeezed import Squeezed

__all__ = ["OffloadTests"]

MOST_S = 20  #: that a batch, or the end of one, is waited for
_SIZES = [0, 1, 7, 8, 15, 16, 17, 100, 4095, 4096, 4097, 65536, 256 << 10]

_ROWS = (
    "Its rows are those of the `Compressor`: the blobs, byte for byte, and a crc32 of what a store "
    "would get."
)
_HOLDS = "It holds its pages until they are collected, and changes none of them."


def _pages() -> list[bytes]:
    """Return pages of all kinds and sizes: one word, text, half of it noise, and noise."""
    rng = random.Random(1)  # noqa: S311 - reproducible data, no secret
    text = b"kswapd0: page allocation stalled for %d ms, order:0. " * (max(_SIZES) // 50)
    pages: list[bytes] = []
    for size in _SIZES:
        noise = rng.randbytes(size)
        pages += [bytes(size), (b"12345678" * (size // 8 + 1))[:size], text[:size], noise]
        pages += [(noise[: size // 2] + text)[:size], (noise[: size * 9 // 10] + text)[:size]]
    return pages


class OffloadTests(Suite):
    """What every offload must do; override `make_offload`."""

    def make_offload(self, compressor: Compressor, workers: int) -> Offload:
        """Return a new offload that is not open, for that compressor."""
        msg = f"{type(self).__name__} must define make_offload"
        raise NotImplementedError(msg)

    def make_compressor(self) -> Compressor:
        """Return the compressor that batches are to be compressed with."""
        return Lz4()

    @rule(
        "Offload",
        "Compresses whole batches on CPUs of its own, while the event loop goes on.",
        "give it a `staging`, and the methods open, submit, collect and close",
    )
    def test_says_what_it_is(self) -> None:
        """It has all methods, and its buffers have a size."""
        with self._opened() as (offload, _):
            for name in ("open", "submit", "collect", "close"):
                fail_unless(hasattr(offload, name), f"it has no {name!r}")
            fail_unless(offload.staging >= 0, f"its `staging` is {offload.staging!r}")

    @rule(
        "Offload", _ROWS, "compress with the functions that the compressor calls, and count as it"
    )
    def test_rows_are_those_of_the_compressor(self) -> None:
        """Blobs, kinds and checksums are the same, of sources too, whatever the pages."""
        pages = _pages()
        with self._opened() as (offload, fd):
            for of_sources in (False, True):
                number = offload.submit(pages, of_sources=of_sources)
                rows = _collected(offload, fd, 1)[number]
                self._check(rows, pages, of_sources=of_sources)

    @rule(
        "Offload",
        "Each batch is collected once, in any order.",
        "keep what is done by its number, and forget it as `collect` returns it",
    )
    def test_several_batches_at_a_time(self) -> None:
        """Each of them is collected once, by its number, whoever compressed it."""
        pages = _pages()[:-12]
        starts = range(0, len(pages), 7)
        for workers in (1, 3):
            with self._opened(workers) as (offload, fd):
                numbers = {
                    offload.submit(pages[at : at + 7], of_sources=False): at for at in starts
                }
                fail_unless(len(numbers) == len(starts), "two batches have one number")
                out = _collected(offload, fd, len(starts))
                fail_unless(offload.collect() is None, "a batch was collected that nobody gave")
                for number, at in numbers.items():
                    self._check(out[number], pages[at : at + 7], of_sources=False)

    @rule(
        "Offload.submit",
        "Take a batch, and return its number, which no other batch has.",
        "let a batch of no pages be done as any other",
    )
    def test_a_batch_of_nothing(self) -> None:
        """No pages at all are a batch too."""
        with self._opened() as (offload, fd):
            number = offload.submit([], of_sources=False)
            self._check(_collected(offload, fd, 1)[number], [], of_sources=False)

    @rule("Offload", _HOLDS, "take references to the pages in `submit`, not to their list")
    def test_holds_its_pages_and_lets_go_of_them(self) -> None:
        """The list may be changed at once; afterwards nobody has a reference to a page."""
        page = os.urandom(100) + bytes(4000)
        pages, before = [page] * 9, sys.getrefcount(page)
        with self._opened() as (offload, fd):
            number = offload.submit(pages, of_sources=False)
            pages.clear()
            self._check(_collected(offload, fd, 1)[number], [page] * 9, of_sources=False)
        left = sys.getrefcount(page) - (before - 9)
        fail_unless(not left, f"{left} references to a page were left after `close`")

    @rule(
        "Offload.close",
        "Stop, drop every batch, and let go of the descriptor; return whether that is done.",
        "let go of the pages of all batches before `close` returns True",
    )
    def test_closes_with_batches_under_way_and_opens_again(self) -> None:
        """They are dropped with their pages; what comes later knows nothing of them."""
        page = os.urandom(65536) + bytes(65536)
        offload = self.make_offload(self.make_compressor(), 2)
        for _ in range(2):
            before = sys.getrefcount(page)
            offload.open()
            for _ in range(20):
                offload.submit([page] * 8, of_sources=False)
            _close(offload)
            left = sys.getrefcount(page) - before
            fail_unless(not left, f"{left} references to a page were left after `close`")
        fd = offload.open()
        number = offload.submit([page[:-9]], of_sources=False)
        self._check(_collected(offload, fd, 1)[number], [page[:-9]], of_sources=False)
        _close(offload)
        fail_unless(offload.close(), "`close` of a closed offload was not done")

    @rule("Offload", _HOLDS, "raise TypeError for what is not bytes: it may change, or be freed")
    def test_a_page_that_is_not_bytes_is_refused(self) -> None:
        """It might change, or be freed, while it is compressed."""
        with self._opened() as (offload, _):
            try:
                offload.submit([bytearray(4096)], of_sources=False)  # type: ignore[list-item]
            except TypeError:
                return
            broken("it took a bytearray")

    @contextmanager
    def _opened(self, workers: int = 1) -> Generator[tuple[Offload, int]]:
        """Open a new offload, give it with its descriptor, and close it at the end."""
        offload = self.make_offload(self.make_compressor(), workers)
        fd = offload.open()
        try:
            yield offload, fd
        finally:
            _close(offload)

    def _check(self, rows: Squeezed, pages: Sequence[bytes], *, of_sources: bool) -> None:
        """Fail unless the rows of a batch are those of the compressor."""
        lengths = {len(rows.kinds), len(rows.blobs), len(rows.values)}
        fail_unless(lengths == {len(pages)}, f"{len(pages)} pages came to columns of {lengths}")
        fail_unless(rows.of_sources == of_sources, "`of_sources` is not what was asked for")
        expected = squeeze(self.make_compressor(), pages, checksum=True, of_sources=of_sources)
        for i, page in enumerate(pages):
            row = rows.kinds[i], rows.values[i], rows.blobs[i]
            wanted = expected.kinds[i], expected.values[i], expected.blobs[i]
            if row != wanted:
                broken(f"a page of {len(page)} B came to {row!r:.99}, not to {wanted!r:.99}")


def _close(offload: Offload) -> None:
    """Fail unless an offload stops, if it is asked often enough."""
    for _ in range(MOST_S * 100):
        if offload.close():
            return
        select.select([], [], [], 0.01)
    broken(f"`close` has not returned True for {MOST_S} s")


def _collected(offload: Offload, fd: int, nr: int) -> dict[int, Squeezed]:
    """Return the rows of so many batches by their numbers, as the descriptor tells of them."""
    out: dict[int, Squeezed] = {}
    while len(out) < nr:
        ready, _, _ = select.select([fd], [], [], MOST_S)
        fail_unless(
            bool(ready), f"a batch is not done, or the descriptor does not say so, for {MOST_S} s"
        )
        while (done := offload.collect()) is not None:
            number, rows = done
            fail_unless(number not in out, f"batch {number} was collected twice")
            out[number] = rows
    return out
