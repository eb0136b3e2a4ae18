"""A backing store in one file: slots in a table of SQLite's, in an unnamed file of its own.

Run it:                       ``python examples/custom_backend.py``
Ask whether it is right:      ``pytest examples/custom_backend.py``
Give it to everybody by name: put this in the pyproject.toml of your distribution, and say
                              ``backend = "sqlite"`` in a topology's ``[[swap]]``:

    [project.entry-points."reclaimactors.backends"]
    sqlite = "custom_backend:SqliteBackend"
"""

# ruff: noqa: D102 - what each method must do is said in reclaimactors.Backend

from __future__ import annotations

import asyncio
import sqlite3
from contextlib import contextmanager
from random import Random
from typing import TYPE_CHECKING

from anyio import CapacityLimiter, to_thread

import reclaimactors as ra
from reclaimactors.testing import BackendTests

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence


class SqliteBackend(ra.Backend):
    """A table (slot, data); a batch is one transaction, in a thread, off the event loop."""

    def __init__(self) -> None:
        self._db: sqlite3.Connection | None = None

    async def open(self, page_size: int) -> None:  # noqa: ARG002 - rows have any size
        self._one = CapacityLimiter(1)  # calls on different slots may overlap; SQLite's may not
        self._db = sqlite3.connect("", check_same_thread=False)  # "": a file that nobody else sees
        self._db.execute("CREATE TABLE slots (slot INTEGER PRIMARY KEY, data BLOB NOT NULL)")

    async def aclose(self) -> None:
        if self._db is not None:
            self._db.close()

    async def store_many(self, items: Sequence[tuple[int, bytes]]) -> None:
        # A thread's call is not abandoned when the caller is cancelled, so no write comes late.
        await to_thread.run_sync(self._store, items, limiter=self._one)

    async def load_many(self, slots: Sequence[int]) -> list[bytes]:
        return await to_thread.run_sync(self._load, slots, limiter=self._one)

    async def invalidate_many(self, slots: Sequence[int]) -> None:
        await to_thread.run_sync(self._forget, slots, limiter=self._one)

    # -- what runs in a thread

    def _store(self, items: Sequence[tuple[int, bytes]]) -> None:
        with self._transaction() as db:  # all of the items, or none
            db.executemany("INSERT OR REPLACE INTO slots VALUES (?, ?)", items)

    def _load(self, slots: Sequence[int]) -> list[bytes]:
        with self._transaction() as db:
            rows = [
                db.execute("SELECT data FROM slots WHERE slot = ?", (slot,)).fetchone()
                for slot in slots
            ]
        if None in rows:
            raise ra.BackendError(f"slot {slots[rows.index(None)]} was never stored")
        return [data for (data,) in rows]

    def _forget(self, slots: Sequence[int]) -> None:
        with self._transaction() as db:
            db.executemany("DELETE FROM slots WHERE slot = ?", [(slot,) for slot in slots])

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        assert self._db is not None
        try:
            with self._db:
                yield self._db
        except sqlite3.Error as exc:
            if exc.sqlite_errorname == "SQLITE_FULL":
                raise ra.BackendFull(str(exc)) from exc
            raise ra.BackendError(str(exc)) from exc


class TestSqliteBackend(BackendTests):
    """All that a backend must do, inherited."""

    def make_backend(self) -> ra.Backend:
        return SqliteBackend()


async def main() -> None:
    values = [Random(i).randbytes(4096) for i in range(1000)]  # these go to the store as they are
    swap = [{"backend": SqliteBackend(), "size": "64MiB"}]
    async with ra.open_memory("kcompressd", budget="1MiB", swap=swap) as memory:
        for i, value in enumerate(values):
            await memory.put(i, value)
        for i, value in enumerate(values):
            assert await memory.get(i) == value
        assert memory.vmstat["pswpout"], "nothing went to the store"
        out, back = memory.vmstat["pswpout"], memory.vmstat["pswpin"]
        print(f"{memory.usage().swapped:,} bytes are in SQLite; {out} pages out, {back} back in")


if __name__ == "__main__":
    asyncio.run(main())
