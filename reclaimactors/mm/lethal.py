"""Pages that killed a worker process, or hung it: none of them is compressed in this process.

A page is known by its length and its crc32, not by its folio: whoever meets the same bytes again
keeps off them too, as another folio, after they came back from a store, or in a store that
compresses.

A worker that ends in the middle of a batch makes every page of it a suspect. Workers try suspects
alone: one that goes well is forgotten, one that ends a second worker is condemned. Something else
may have killed the workers, and the page is innocent; so it is tried again from time to time, by a
worker, alone.
"""

from __future__ import annotations

from itertools import islice
from zlib import crc32

import attrs

__all__ = ["Lethal"]

AGAIN = (
    1024  #: batches that go well before a condemned page is tried again; twice as many each time
)
MANY = 32  #: deaths with no batch between them that went well: no page is to blame
MOST = 1 << 16  #: pages and pieces that are remembered; the oldest are forgotten


@attrs.define
class _Record:
    deaths: int = 0  #: workers that ended with it
    again_at: int = 0  #: of `Lethal.batches`
    told: bool = False  #: whether somebody was told that it is condemned


class Lethal:
    """A container of pages, false while it is empty: suspects, and condemned ones.

    Args:
        page_size: bytes that a store which compresses cuts a page into: the pieces of a page are
            known as well, and a page by any of its pieces.
    """

    def __init__(self, page_size: int) -> None:
        self.batches = 0  #: batches that workers have compressed, and survived
        self._in_a_row = 0  # deaths since the last of these
        self._page_size = page_size
        self._records: dict[tuple[int, int], _Record] = {}

    def __bool__(self) -> bool:
        return bool(self._records)

    def __contains__(self, page: object) -> bool:
        if not self._records or not isinstance(page, bytes):
            return False
        return any(mark in self._records for mark in self._marks(page))

    def went_well(self) -> None:
        """Note that a worker has compressed a batch."""
        self.batches += 1
        self._in_a_row = 0

    def explains(self) -> bool:
        """A worker has ended in the middle of a batch: return whether a page may be to blame."""
        self._in_a_row += 1
        return self._in_a_row <= MANY

    def killed(self, page: bytes) -> None:
        """Note that a worker has ended with a batch in which this page was."""
        for mark in self._marks(page):
            record = self._records.setdefault(mark, _Record())
            record.deaths += 1
            if record.deaths > 1:
                record.again_at = self.batches + (AGAIN << (record.deaths - 2))
        for mark in list(islice(self._records, max(0, len(self._records) - MOST))):
            del self._records[mark]

    def survived(self, page: bytes) -> None:
        """Note that a worker has compressed this page alone, and nothing happened."""
        for mark in self._marks(page):
            self._records.pop(mark, None)

    def condemned(self, page: bytes) -> bool:
        """Return whether this page has ended two workers, and is not to be tried again yet."""
        record = self._records.get(_mark(page))
        return record is not None and record.deaths > 1 and self.batches < record.again_at

    def to_tell(self, folio: bytes) -> bool:
        """Return True once for a folio that is condemned, or a piece of which is."""
        records = [self._records[m] for m in self._marks(folio) if m in self._records]
        untold = [record for record in records if record.deaths > 1 and not record.told]
        for record in untold:
            record.told = True
        return bool(untold)

    def _marks(self, page: bytes) -> list[tuple[int, int]]:
        """Return the mark of a page, and of each piece that it may be cut into."""
        size = self._page_size
        pieces = range(0, len(page), size) if len(page) > size else ()
        return [_mark(page), *(_mark(page[at : at + size]) for at in pieces)]


def _mark(page: bytes) -> tuple[int, int]:
    return len(page), crc32(page)
