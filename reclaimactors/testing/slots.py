"""Checks of a backing store: what goes in comes out, slot by slot, and nothing else."""

from __future__ import annotations

import contextlib
import random
from typing import TYPE_CHECKING

from reclaimactors.errors import BackendError, BackendFull
from reclaimactors.testing.rules import Suite, broken, fail_unless, rule

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Iterable, Sequence

    from reclaimactors.abc import Backend

__all__ = ["PAGE", "BackendSuite", "SlotTests", "loads", "page", "pages", "raises_backend_error"]

PAGE = 4096

_ACKNOWLEDGES = "Returning acknowledges all of them."
_REPLACES = "Storing to a slot in use replaces it."


def page(seed: int, size: int = PAGE) -> bytes:
    """Return bytes that differ for each seed, and do not compress."""
    return random.Random(seed).randbytes(size)  # noqa: S311 - reproducible data, no secret


def pages(slots: Iterable[int], seed: int = 0) -> list[tuple[int, bytes]]:
    """Return an item of a whole page for each slot."""
    return [(slot, page(slot + seed)) for slot in slots]


async def loads(
    backend: Backend, items: Sequence[tuple[int, bytes]], page_size: int = PAGE, when: str = ""
) -> None:
    """Fail unless each slot is loaded as its bytes, and perhaps padding up to a page."""
    slots = [slot for slot, _ in items]
    loaded = await backend.load_many(slots)
    after = f" {when}" if when else ""
    if not isinstance(loaded, list):  # pyright: ignore[reportUnnecessaryIsInstance] # it is a plugin's word
        broken(f"load_many returned {type(loaded).__name__}{after}", "return a list")
    fail_unless(
        len(loaded) == len(items),
        f"load_many was asked for {len(items)} slots and returned {len(loaded)}{after}",
        "return one bytes object for each slot that is asked for, in that order",
    )
    for (slot, data), got in zip(items, loaded, strict=True):
        what = f"slot {slot}, of {len(data)} B stored,"
        if type(got) is not bytes:
            broken(f"{what} came back as {type(got).__name__}{after}", "return bytes(...) of it")
        if got[: len(data)] != data:
            broken(f"{what} came back as {_difference(got, data, items)}{after}")
        if len(got) > page_size:
            broken(
                f"{what} came back as {len(got)} B, more than the page of {page_size} B{after}",
                "cut the padding at page_size",
            )


def _difference(got: bytes, data: bytes, items: Sequence[tuple[int, bytes]]) -> str:
    """Return in words what came back instead."""
    if len(got) < len(data):
        return f"{len(got)} B only"
    other = next((slot for slot, of in items if of != data and got[: len(of)] == of), None)
    if other is not None:
        return f"what slot {other} holds"
    if not any(got):
        return "zeros"
    at = next(nr for nr, pair in enumerate(zip(got, data, strict=False)) if pair[0] != pair[1])
    return f"other bytes, from byte {at} on"


async def raises_backend_error(
    backend: Backend, slots: Sequence[int], why: str, advice: str | None = None
) -> None:
    """Fail unless loading these slots, one of which is `why`, raises BackendError."""
    try:
        loaded = await backend.load_many(slots)
    except BackendError:
        return
    except Exception as exc:  # noqa: BLE001 - whatever a plugin raises
        broken(
            f"load_many({list(slots)}), {why}, raised {type(exc).__name__}: {exc}",
            "catch what your library raises, and raise reclaimactors.BackendError from it",
        )
    held = [len(data) for data in loaded]
    broken(
        f"load_many({list(slots)}), {why}, returned {held} B",
        advice or "keep track of what is stored, and raise reclaimactors.BackendError for the rest",
    )


class BackendSuite(Suite):
    """How a backend is made and opened."""

    def make_backend(self) -> Backend:
        """Return a new backend that was not opened; two of them live side by side."""
        msg = f"{type(self).__name__} must define make_backend"
        raise NotImplementedError(msg)

    @contextlib.asynccontextmanager
    async def opened(self, page_size: int = PAGE) -> AsyncGenerator[Backend]:
        """Open a new backend for a block, and close it afterwards."""
        backend = self.make_backend()
        try:
            await backend.open(page_size)
            yield backend
        finally:
            await backend.aclose()


class SlotTests(BackendSuite):
    """What is stored can be loaded."""

    @rule("Backend.store_many", _ACKNOWLEDGES, "keep every byte of an item, however short it is")
    async def test_returns_what_was_stored(self) -> None:
        """An item is 1 to page_size bytes."""
        async with self.opened() as backend:
            for size in (1, 2, 1000, PAGE - 1, PAGE):
                item = (3, page(size, size))
                await backend.store_many([item])
                await loads(backend, [item])

    @rule("Backend.load_many", "A load takes nothing away.", "keep a slot until it is invalidated")
    async def test_loads_twice(self) -> None:
        """A slot is loaded as often as it is asked for, also several times in one batch."""
        async with self.opened() as backend:
            await backend.store_many(pages(range(4)))
            for when in ("the first time", "the second time"):
                await loads(backend, pages(range(4)), when=when)
            await loads(backend, pages([2, 1, 2]), when="asked for twice in one batch")

    @rule(
        "Backend.open",
        "Get ready for slots of `page_size` bytes.",
        "take the page size from `open`: nothing else says how large an item may be",
    )
    async def test_page_size_is_the_one_it_was_opened_with(self) -> None:
        """Slots have the size that `open` was told."""
        for page_size in (4096, 16384, 65536):
            async with self.opened(page_size) as backend:
                items = [(slot, page(slot, page_size)) for slot in range(3)]
                await backend.store_many(items)
                await loads(backend, items, page_size, f"with pages of {page_size} B")

    @rule("Backend.store_many", _ACKNOWLEDGES, "define singles by the batches, as Backend does")
    async def test_single_calls(self) -> None:
        """`store`, `load` and `invalidate` are the batches of one."""
        async with self.opened() as backend:
            await backend.store(5, page(5))
            fail_unless(await backend.load(5) == page(5), "load(5) gave other bytes than store(5)")
            await backend.invalidate(5)
            try:
                await backend.load(5)
            except BackendError:
                return
            broken("load(5) returned bytes after invalidate(5)")

    @rule("Backend.store_many", "a batch may be empty", "return early where there is nothing to do")
    async def test_nothing_to_do(self) -> None:
        """Empty batches are legal."""
        async with self.opened() as backend:
            await backend.store_many([])
            got = await backend.load_many([])
            fail_unless(list(got) == [], f"load_many([]) returned {got!r}")
            await backend.invalidate_many([])
            held = backend.footprint([])
            fail_unless(held == 0, f"footprint([]) returned {held!r}")

    @rule("Backend.store_many", _ACKNOWLEDGES, "write a short item without touching the next slot")
    async def test_folio_on_consecutive_slots_with_a_short_tail(self) -> None:
        """A short last item ends where it ends: the folio behind it is untouched."""
        async with self.opened() as backend:
            folio = [*pages(range(10, 17)), (17, b"tail")]
            behind = pages([18, 19])
            await backend.store_many(behind)
            await backend.store_many(folio)
            await loads(backend, folio + behind)

    @rule("Backend.store_many", _ACKNOWLEDGES, "give each slot a whole page, or keep its length")
    async def test_short_items_side_by_side(self) -> None:
        """Several blobs of less than a page may have neighbouring slots."""
        async with self.opened() as backend:
            items = [(slot, page(slot, 1 + 37 * slot)) for slot in range(100)]
            await backend.store_many(items)
            await loads(backend, items)

    @rule(
        "Backend.load_many",
        "Return a list of the bytes of each slot, in order",
        "answer in the order of the slots that are asked for, whatever order suits the medium",
    )
    async def test_slots_in_any_order(self) -> None:
        """A batch need not be sorted, and loads answer in the order they were asked."""
        async with self.opened() as backend:
            items = pages(slot * 89 % 200 for slot in range(90))
            await backend.store_many(items)
            await loads(backend, items)
            await loads(backend, sorted(items))
            await loads(backend, items[::-1])

    @rule("Backend.store_many", _ACKNOWLEDGES, "cut a long batch into what your library can take")
    async def test_large_batch(self) -> None:
        """A batch has no upper limit but the capacity."""
        async with self.opened() as backend:
            items = pages(range(min(backend.capacity or 1500, 1500)))
            try:
                await backend.store_many(items)
            except BackendFull:
                fail_unless(backend.capacity is None, f"it is full with {len(items)} slots")
                items = items[:256]
                await backend.store_many(items)
            await loads(backend, items)

    @rule(
        "Backend",
        "Slots are from 0 to `capacity` - 1",
        "take any int from 0 to capacity - 1 as a slot: they may be far apart",
    )
    async def test_first_and_last_slot(self) -> None:
        """Slots are numbered from 0 to capacity - 1, and may be far apart."""
        async with self.opened() as backend:
            last = min(backend.capacity or 100_000, 100_000) - 1
            items = pages(slot for slot in (0, 256, 65536, last) if slot <= last)
            await backend.store_many(items)
            await loads(backend, items)

    @rule("Backend.store_many", _REPLACES, "overwrite a slot, and forget the length it had")
    async def test_storing_to_a_slot_in_use_replaces_it(self) -> None:
        """The old contents are gone, whether the new are shorter or longer."""
        async with self.opened() as backend:
            await backend.store_many(pages(range(4)))
            for size in (1, PAGE):
                await backend.store_many([(2, page(9, size))])
                await loads(backend, [(1, page(1)), (2, page(9, size)), (3, page(3))])

    @rule(
        "Backend.load_many",
        "BackendError: if one of the slots was never stored, was forgotten, or cannot be read.",
        "keep track of what is stored, and raise reclaimactors.BackendError for any other slot",
    )
    async def test_load_of_a_slot_never_stored_raises(self) -> None:
        """It raises BackendError, also where other slots of the batch are there."""
        async with self.opened() as backend:
            await raises_backend_error(backend, [0], "where nothing is stored")
            await backend.store_many(pages([1, 3]))
            for slots in ([2], [0], [4], [200], [1, 2, 3]):
                await raises_backend_error(backend, slots, "where only 1 and 3 are stored")

    @rule(
        "Backend.invalidate_many",
        "Forget the slots.",
        "drop what the slots hold, and only that",
    )
    async def test_invalidated_slots_are_gone_and_others_are_not(self) -> None:
        """After `invalidate_many` a slot is as if it had never been stored."""
        async with self.opened() as backend:
            await backend.store_many(pages(range(6)))
            await backend.invalidate_many([1, 2, 4])
            await loads(backend, pages([0, 3, 5]), when="after 1, 2 and 4 were invalidated")
            for slot in (1, 2, 4):
                await raises_backend_error(backend, [slot], "which was invalidated")

    @rule(
        "Backend.invalidate_many",
        "One that was never stored is not an error; other slots are as before.",
        "skip slots that are not there",
    )
    async def test_invalidating_a_slot_never_stored_does_nothing(self) -> None:
        """It neither raises nor touches its neighbours."""
        async with self.opened() as backend:
            await backend.invalidate_many([7])
            await backend.store_many(pages([6]))
            await backend.invalidate_many([5, 7, 90])
            await loads(backend, pages([6]))

    @rule("Backend.invalidate_many", "they are handed out again", "take a forgotten slot again")
    async def test_invalidated_slot_can_be_used_again(self) -> None:
        """Slots come and go all the time."""
        async with self.opened() as backend:
            for seed in range(3):
                await backend.store_many(pages([1, 2], seed))
                await loads(backend, pages([1, 2], seed))
                await backend.invalidate_many([1, 2])

    @rule(
        "Backend.load_now",
        "It never gives what a slot held earlier.",
        "return None from load_now for what is not sure; load_many is asked then",
    )
    async def test_what_can_be_read_now_is_what_a_load_gives(self) -> None:
        """`load_now` gives what `load_many` would, or None, also after a slot has changed."""
        async with self.opened() as backend:
            await backend.store_many(pages(range(8)))
            await _reads_now(backend, pages([3]), "as it was stored")
            await _reads_now(backend, pages([0, 1, 2]), "as it was stored")
            await _reads_now(backend, pages([7, 5]), "as it was stored")
            await backend.store_many(pages([3], 50))
            await _reads_now(backend, pages([3], 50), "after it was replaced")
            await backend.invalidate_many([5])
            with contextlib.suppress(BackendError):
                now = backend.load_now([5])
                fail_unless(not now, "load_now([5]) gave bytes after slot 5 was invalidated")


async def _reads_now(backend: Backend, items: Sequence[tuple[int, bytes]], when: str) -> None:
    slots = [slot for slot, _ in items]
    now = backend.load_now(slots)
    if now is None:
        return
    fail_unless(isinstance(now, list), f"load_now({slots}) returned {type(now).__name__}")  # pyright: ignore[reportUnnecessaryIsInstance] # it is a plugin's word
    for slot, got, loaded in zip(slots, now, await backend.load_many(slots), strict=True):
        if got != loaded:
            broken(f"load_now gave other bytes of slot {slot}, {when}, than load_many")
    await loads(backend, items, when=when)
