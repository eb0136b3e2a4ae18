"""The conformance suite of backing stores: subclass it, and say how one is made.

    class TestMyStore(BackendTests):
        def make_backend(self):
            return MyStore(folder="...")

Each test is one sentence of the contract. They need pytest-asyncio, in either of its modes, or
another runner of asynchronous tests. Not covered: that a call does not block the loop, and what
happens when the medium fails, which only the store's own tests can bring about.
"""

from __future__ import annotations

import contextlib
import inspect
import random
import sys
from typing import TYPE_CHECKING
from unittest import TestCase

import anyio
import anyio.lowlevel

from reclaimactors.errors import BackendError

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Iterable, Sequence

    from reclaimactors.abc import Backend

__all__ = ["BackendTests"]

_PAGE = 4096

_raises = TestCase().assertRaises  # the kit imports without the test tools


def _page(seed: int, size: int = _PAGE) -> bytes:
    """Return bytes that differ for each seed."""
    return random.Random(seed).randbytes(size)  # noqa: S311 - reproducible data, no secret


def _pages(slots: Iterable[int], seed: int = 0) -> list[tuple[int, bytes]]:
    return [(slot, _page(slot + seed)) for slot in slots]


async def _check(backend: Backend, items: Sequence[tuple[int, bytes]]) -> None:
    """Assert that each slot is loaded as its bytes, and perhaps padding up to a page."""
    loaded = await backend.load_many([slot for slot, _ in items])
    assert len(loaded) == len(items), f"asked for {len(items)} slots, got {len(loaded)}"
    for (slot, data), got in zip(items, loaded, strict=True):
        assert type(got) is bytes, f"slot {slot} came back as {type(got).__name__}, not bytes"
        assert got[: len(data)] == data, f"slot {slot} came back with other bytes"
        assert len(got) <= _PAGE, f"slot {slot} came back longer than a page"


class BackendTests:
    """What every backend must do; override `make_backend`. It should hold 256 slots or more."""

    def make_backend(self) -> Backend:
        """Return a new backend that was not opened; two of them live side by side."""
        msg = f"{type(self).__name__} must define make_backend"
        raise NotImplementedError(msg)

    @contextlib.asynccontextmanager
    async def opened(self, page_size: int = _PAGE) -> AsyncGenerator[Backend]:
        """Open a new backend for a block, and close it afterwards."""
        backend = self.make_backend()
        try:
            await backend.open(page_size)
            yield backend
        finally:
            await backend.aclose()

    async def test_says_what_it_is(self) -> None:
        """`capacity` is a number of slots or None after open, `synchronous` a bool."""
        async with self.opened() as backend:
            capacity = backend.capacity
            assert capacity is None or (type(capacity) is int and capacity > 0)
            assert type(backend.synchronous) is bool

    async def test_closes_without_having_been_opened(self) -> None:
        """`aclose` is called also after an open that failed, however early."""
        await self.make_backend().aclose()

    async def test_returns_what_was_stored(self) -> None:
        """An item is 1 to page_size bytes; a load takes nothing away."""
        async with self.opened() as backend:
            for size in (1, 2, 1000, _PAGE - 1, _PAGE):
                item = (3, _page(size, size))
                await backend.store_many([item])
                await _check(backend, [item])
                await _check(backend, [item])

    async def test_page_size_is_the_one_it_was_opened_with(self) -> None:
        """Slots have the size that `open` was told."""
        for page_size in (4096, 16384, 65536):
            async with self.opened(page_size) as backend:
                items = [(slot, _page(slot, page_size)) for slot in range(3)]
                await backend.store_many(items)
                assert list(await backend.load_many([0, 1, 2])) == [data for _, data in items]

    async def test_single_calls(self) -> None:
        """`store`, `load` and `invalidate` are the batches of one."""
        async with self.opened() as backend:
            await backend.store(5, _page(5))
            assert await backend.load(5) == _page(5)
            await backend.invalidate(5)
            with _raises(BackendError):
                await backend.load(5)

    async def test_nothing_to_do(self) -> None:
        """Empty batches are legal."""
        async with self.opened() as backend:
            await backend.store_many([])
            assert list(await backend.load_many([])) == []
            await backend.invalidate_many([])
            assert backend.footprint([]) == 0

    async def test_folio_on_consecutive_slots_with_a_short_tail(self) -> None:
        """A short last item ends where it ends: the folio behind it is untouched."""
        async with self.opened() as backend:
            folio = [*_pages(range(10, 17)), (17, b"tail")]
            behind = _pages([18, 19])
            await backend.store_many(behind)
            await backend.store_many(folio)
            await _check(backend, folio + behind)

    async def test_short_items_side_by_side(self) -> None:
        """Several blobs of less than a page may have neighbouring slots."""
        async with self.opened() as backend:
            items = [(slot, _page(slot, 1 + 37 * slot)) for slot in range(100)]
            await backend.store_many(items)
            await _check(backend, items)

    async def test_slots_in_any_order(self) -> None:
        """A batch need not be sorted, and loads answer in the order they were asked."""
        async with self.opened() as backend:
            items = _pages(slot * 89 % 200 for slot in range(90))
            await backend.store_many(items)
            await _check(backend, items)
            await _check(backend, sorted(items))
            await _check(backend, items[::-1])

    async def test_large_batch(self) -> None:
        """A batch has no upper limit but the capacity."""
        async with self.opened() as backend:
            items = _pages(range(min(backend.capacity or 1500, 1500)))
            await backend.store_many(items)
            await _check(backend, items)

    async def test_first_and_last_slot(self) -> None:
        """Slots are numbered from 0 to capacity - 1, and may be far apart."""
        async with self.opened() as backend:
            last = min(backend.capacity or 100_000, 100_000) - 1
            items = _pages(slot for slot in (0, 256, 65536, last) if slot <= last)
            await backend.store_many(items)
            await _check(backend, items)

    async def test_storing_to_a_slot_in_use_replaces_it(self) -> None:
        """The old contents are gone, whether the new are shorter or longer."""
        async with self.opened() as backend:
            await backend.store_many(_pages(range(4)))
            for size in (1, _PAGE):
                await backend.store_many([(2, _page(9, size))])
                await _check(backend, [(1, _page(1)), (2, _page(9, size)), (3, _page(3))])

    async def test_load_of_a_slot_never_stored_raises(self) -> None:
        """It raises BackendError, also where other slots of the batch are there."""
        async with self.opened() as backend:
            with _raises(BackendError):
                await backend.load_many([0])
            await backend.store_many(_pages([1, 3]))
            for slots in ([2], [0], [4], [200], [1, 2, 3]):
                with _raises(BackendError):
                    await backend.load_many(slots)

    async def test_invalidated_slots_are_gone_and_others_are_not(self) -> None:
        """After `invalidate_many` a slot is as if it had never been stored."""
        async with self.opened() as backend:
            await backend.store_many(_pages(range(6)))
            await backend.invalidate_many([1, 2, 4])
            await _check(backend, _pages([0, 3, 5]))
            for slot in (1, 2, 4):
                with _raises(BackendError):
                    await backend.load_many([slot])

    async def test_invalidating_a_slot_never_stored_does_nothing(self) -> None:
        """It neither raises nor touches its neighbours."""
        async with self.opened() as backend:
            await backend.invalidate_many([7])
            await backend.store_many(_pages([6]))
            await backend.invalidate_many([5, 7, 90])
            await _check(backend, _pages([6]))

    async def test_invalidated_slot_can_be_used_again(self) -> None:
        """Slots come and go all the time."""
        async with self.opened() as backend:
            for seed in range(3):
                await backend.store_many(_pages([1, 2], seed))
                await _check(backend, _pages([1, 2], seed))
                await backend.invalidate_many([1, 2])

    async def test_calls_on_different_slots_may_overlap(self) -> None:
        """Ten tasks, each with slots of its own, do not see each other."""
        async with self.opened() as backend:

            async def use(first: int) -> None:
                slots = range(first, first + 16)
                for turn in range(5):
                    await backend.store_many(_pages(slots, 1000 * turn))
                    await _check(backend, _pages(slots, 1000 * turn))
                    await backend.invalidate_many(slots[::2])

            async with anyio.create_task_group() as tasks:
                for first in range(0, 160, 16):
                    tasks.start_soon(use, first)

    async def test_cancelled_store_leaves_nothing_of_itself(self) -> None:
        """What it was storing is never loaded, and never lands on top of a later store."""
        slots = range(8)
        for checkpoints in range(8):
            async with self.opened() as backend:
                await backend.store_many(_pages(slots))
                acknowledged = await _cancelled_store(backend, _pages(slots, 100), checkpoints)
                for slot in slots:
                    with contextlib.suppress(BackendError):  # what it held before may be lost
                        held = await backend.load(slot)
                        assert held == _page(slot + (100 if acknowledged else 0)), (
                            f"cancelled after {checkpoints} checkpoints, yet slot {slot} has it"
                        )
                await backend.store_many(_pages(slots, 200))
                await _check(backend, _pages(slots, 200))
                for _ in range(20):
                    await anyio.lowlevel.checkpoint()
                await _check(backend, _pages(slots, 200))

    async def test_what_can_be_read_now_is_what_a_load_gives(self) -> None:
        """`load_now` gives what `load_many` would, or None."""
        async with self.opened() as backend:
            await backend.store_many(_pages(range(8)))
            for slots in ([3], [0, 1, 2], [7, 5]):
                now = backend.load_now(slots)
                if now is not None:
                    assert now == await backend.load_many(slots)

    async def test_footprint_is_a_number_of_bytes(self) -> None:
        """It is an int, not negative, of slots that are stored."""
        async with self.opened() as backend:
            await backend.store_many(_pages(range(4)))
            held = backend.footprint(range(4))
            assert type(held) is int
            assert held >= 0

    async def test_new_one_has_none_of_the_old_slots(self) -> None:
        """A store is not persistent, and two of them share nothing."""
        async with self.opened() as first:
            await first.store_many(_pages([1]))
            async with self.opened() as second:
                with _raises(BackendError):
                    await second.load_many([1])
                await second.store_many(_pages([1], seed=5))
                await _check(first, _pages([1]))
        async with self.opened() as third:
            with _raises(BackendError):
                await third.load_many([1])


def _mark_asynchronous(suite: type) -> None:
    """Mark the tests for pytest-asyncio, whose strict mode runs no others, if pytest is here."""
    pytest = sys.modules.get("pytest")  # the kit imports without the test tools
    if pytest is not None:
        for name, test in vars(suite).items():
            if name.startswith("test_") and inspect.iscoroutinefunction(test):
                pytest.mark.asyncio(test)


_mark_asynchronous(BackendTests)


async def _cancelled_store(
    backend: Backend, items: Sequence[tuple[int, bytes]], checkpoints: int
) -> bool:
    """Cancel a store after some checkpoints; return whether it had been acknowledged."""
    acknowledged = False

    async def store() -> None:
        nonlocal acknowledged
        await backend.store_many(items)
        acknowledged = True

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(store)
        for _ in range(checkpoints):
            await anyio.lowlevel.checkpoint()
        tasks.cancel_scope.cancel()
    return acknowledged
