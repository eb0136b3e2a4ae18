"""Checks of a backing store: opening, filling and closing it, and what it leaves behind."""

from __future__ import annotations

import os
import tempfile
import threading
import tracemalloc
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import anyio

from reclaimactors.errors import BackendError, BackendFull
from reclaimactors.testing.calls import cancelled, each_await
from reclaimactors.testing.loop import WatchedLoop
from reclaimactors.testing.rules import broken, fail_unless, rule
from reclaimactors.testing.slots import PAGE, BackendSuite, loads, page, pages, raises_backend_error

if TYPE_CHECKING:
    from collections.abc import Generator

    from reclaimactors.abc import Backend

__all__ = ["LifeTests"]

_CLUSTER = 64  #: slots of one batch while a store is filled
_THREADS = 8  #: that may have served a store before, and rest
_ENDS_S = 1.0  #: in which what was closed is gone
_LEAVES_NOTHING = (
    "It leaves nothing behind: descriptors, threads, tasks and files are gone after `aclose`."
)
_OURS = ("AnyIO worker thread", "asyncio_", "reclaimactors check")  # threads that are not its own


class LifeTests(BackendSuite):
    """Opened, filled, closed."""

    fill_slots: ClassVar[int] = 4096
    """Slots of a page that the kit tries to fill in a store that names no smaller capacity."""

    def make_small_backend(self) -> Backend:
        """Return a new backend, of less than `fill_slots` if it can be, so that it becomes full."""
        return self.make_backend()

    @rule(
        "Backend.aclose",
        "Called once, also after a failed open.",
        "set in __init__ what aclose looks at, and skip what was not opened",
    )
    async def test_closes_without_having_been_opened(self) -> None:
        """`aclose` is called also after an open that failed, however early."""
        await self.make_backend().aclose()

    @rule(
        "Backend",
        "Slots are from 0 to `capacity` - 1, and a store never holds more of them.",
        "set `capacity` to an int above 0, or leave it None; `synchronous` and `in_this_process` "
        "are True or False",
    )
    async def test_says_what_it_is(self) -> None:
        """`capacity` is a number of slots or None after open, the flags are bools."""
        async with self.opened() as backend:
            capacity = backend.capacity
            right = capacity is None or (type(capacity) is int and capacity > 0)
            fail_unless(right, f"after open, capacity is {capacity!r}")
            for name in ("synchronous", "in_this_process", "rotational"):
                value = getattr(backend, name)
                fail_unless(type(value) is bool, f"{name} is {value!r}")

    @rule(
        "Backend",
        "Nothing of what it held is there after another `open`: a store is not persistent.",
        "give each open a place of its own, or empty it there",
    )
    async def test_new_one_has_none_of_the_old_slots(self) -> None:
        """Two stores share nothing, and what a crash has left is not found by the next one."""
        async with self.opened() as first:
            await first.store_many(pages([1]))
            async with self.opened() as second:
                await raises_backend_error(second, [1], "which only another store has")
                await second.store_many(pages([1], seed=5))
                await loads(first, pages([1]), when="after another store had stored to it")
        async with self.opened() as third:
            await raises_backend_error(third, [1], "which only a store had that is closed")

    @rule(
        "Backend.open",
        "it is opened a second time only after `aclose`, and is empty then",
        "make in `open`, not in __init__, what aclose lets go of",
    )
    async def test_can_be_opened_again(self) -> None:
        """The same object is opened, closed and opened again, and has none of its slots then."""
        backend = self.make_backend()
        for turn in range(2):
            await backend.open(PAGE)
            try:
                if turn:
                    await raises_backend_error(backend, [1], "which it had before it was closed")
                await backend.store_many(pages([1, 2]))
                await loads(backend, pages([1, 2]), when="once opened" + " again" * turn)
            finally:
                await backend.aclose()

    @rule(
        "Backend.store_many",
        "BackendFull: if there is no room for all of them.",
        "catch what your library raises when it is full, and raise reclaimactors.BackendFull from "
        "it: the next store is tried then, and this one rests",
    )
    async def test_says_when_it_is_full(self) -> None:
        """A full store raises BackendFull, keeps what it had, and none of what it refused."""
        backend = self.make_small_backend()
        try:
            await backend.open(PAGE)
            most = min(backend.capacity or self.fill_slots, self.fill_slots)
            stored = await _fill(backend, most)
            fail_unless(
                stored >= most or backend.capacity is None,
                f"capacity is {backend.capacity}, and it was full after {stored} slots",
                "let `capacity` be what it can hold, None if that is not known",
            )
            some = [slot for slot in (0, stored // 2, stored - 1) if 0 <= slot < stored]
            await loads(backend, pages(some), when=f"with {stored} slots stored")
            if stored < most:
                await _refused_nothing_else(backend, stored)
        finally:
            await backend.aclose()

    @rule(
        "Backend.footprint",
        "Return the bytes of *this process* that these stored slots hold: 0 for a file.",
        "define `footprint` as the bytes that these slots hold here, so that the budget is charged",
    )
    async def test_footprint_is_what_it_holds_in_this_process(self) -> None:
        """It is an int from 0, and not 0 where the bytes are in Python's memory."""
        async with self.opened() as backend:
            held, slots = await _stored_in_python(backend)
            said = backend.footprint(slots)
            if type(said) is not int or said < 0:
                broken(f"footprint of {len(slots)} slots returned {said!r}", "return an int from 0")
            size = len(slots) * PAGE
            fail_unless(
                held < size // 2 or said >= size // 4,
                f"{size} B were stored, {held} B are in this process, and footprint says {said}",
            )
            fail_unless(
                backend.in_this_process or not said,
                f"footprint says {said} B, and in_this_process is False",
                "set in_this_process = True in the class",
            )
            await backend.invalidate_many(slots)

    @rule("Backend", _LEAVES_NOTHING, "close in `aclose` what `open` and the calls have opened")
    async def test_leaves_nothing_behind(self) -> None:
        """Descriptors, threads, tasks and temporary files are gone after aclose."""
        with _temporary_folder() as folder:
            backend = self.make_backend()
            await backend.open(PAGE)  # what a library opens once for all is not its own
            await backend.aclose()
            before, files = _held(), set(folder.iterdir())
            for _ in range(3):
                async with self.opened() as backend:
                    await backend.store_many(pages(range(8)))
                    await loads(backend, pages(range(8)))
            await _gone(before)
            left = sorted(path.name for path in set(folder.iterdir()) - files)
            fail_unless(not left, f"left in the folder for temporary files: {', '.join(left)}")

    @rule("Backend", _LEAVES_NOTHING, "let `aclose` close what a cancelled `open` has opened")
    async def test_cancelled_open_leaves_nothing_behind(self) -> None:
        """Cancelled at each of its awaits, `open` followed by `aclose` leaves nothing."""
        before = _held()
        for at, late in each_await():
            backend = self.make_backend()
            try:
                waits, _ = await cancelled(partial(backend.open, PAGE), at, late=late)
            finally:
                await backend.aclose()
            await _gone(before)
            if waits < at:
                return


async def _fill(backend: Backend, most: int) -> int:
    """Store slots from 0 on until it is full or `most` are stored; return how many are."""
    stored = 0
    while stored < most:
        slots = range(stored, min(most, stored + _CLUSTER))
        try:
            await backend.store_many(pages(slots))
        except BackendFull:
            return stored
        except Exception as exc:  # noqa: BLE001 - whatever a plugin raises
            broken(
                f"with {stored} slots stored, storing {len(slots)} more raised "
                f"{type(exc).__name__}: {exc}"
            )
        stored = slots.stop
    return stored


async def _refused_nothing_else(backend: Backend, stored: int) -> None:
    """Fail unless a full store has nothing of the batch it refused, and can be used on."""
    for slot in (stored, stored + 1, stored + _CLUSTER - 1):
        await raises_backend_error(backend, [slot], "of a batch that was refused with BackendFull")
    if stored >= 2 * _CLUSTER:
        await backend.invalidate_many(range(_CLUSTER * 2))
        try:
            await backend.store_many(pages(range(_CLUSTER // 2), 7))
        except BackendError as exc:
            broken(
                f"it was full, {2 * _CLUSTER} slots were invalidated, and storing "
                f"{_CLUSTER // 2} raised {exc}",
                "give the room of forgotten slots back to later ones",
            )
        await loads(backend, pages(range(_CLUSTER // 2), 7), when="stored where room was made")


async def _stored_in_python(backend: Backend) -> tuple[int, list[int]]:
    """Store pages; return the bytes of Python's memory that this took, and their slots."""
    slots = list(range(128))
    await backend.store_many([(slot, page(slot)) for slot in slots])  # what it makes only once
    await backend.invalidate_many(slots)
    was_tracing = tracemalloc.is_tracing()
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        await backend.store_many([(slot, page(slot + 1)) for slot in slots])
        async with anyio.create_task_group() as tasks:  # a thread that rests has its last arguments
            for slot in slots[:_THREADS]:
                tasks.start_soon(backend.load_many, [slot])
        after, _ = tracemalloc.get_traced_memory()
    finally:
        if not was_tracing:
            tracemalloc.stop()
    return after - before, slots


# -- what is held ----------------------------------------------------------------------------------


def _held() -> set[object]:
    """Return open descriptors, threads and tasks, but for those of who runs the checks."""
    held: set[object] = {
        thread
        for thread in threading.enumerate()
        if not thread.name.startswith(_OURS)
    }  # fmt: skip
    loop = WatchedLoop.current()
    if loop is not None:
        held |= loop.tasks()
    folder = Path("/proc/self/fd")
    for path in folder.iterdir() if folder.exists() else ():
        try:
            held.add((path.name, str(path.readlink())))
        except OSError:
            continue  # the descriptor of this very listing
    return held


async def _gone(before: set[object]) -> None:
    """Fail unless what is held more than before is gone soon."""
    with anyio.move_on_after(_ENDS_S):
        while _held() - before:  # noqa: ASYNC110 - a thread or a descriptor tells nobody
            await anyio.sleep(0.005)
        return
    left = sorted(_name_of(one) for one in _held() - before)
    if left:
        broken(f"after aclose there is still: {', '.join(left[:5])}")


def _name_of(held: object) -> str:
    if isinstance(held, threading.Thread):
        return f"the thread {held.name!r}"
    if isinstance(held, tuple):
        number, target = held  # pyright: ignore[reportUnknownVariableType] # made by `_held`
        return f"descriptor {number} ({target})"
    return f"the task {held!r:.100}"


@contextmanager
def _temporary_folder() -> Generator[Path]:
    """Have temporary files made in a folder of our own."""
    usual, variable = tempfile.tempdir, os.environ.get("TMPDIR")
    with tempfile.TemporaryDirectory(prefix="reclaimactors-") as name:
        tempfile.tempdir = os.environ["TMPDIR"] = name
        try:
            yield Path(name)
        finally:
            tempfile.tempdir = usual
            del os.environ["TMPDIR"]
            if variable is not None:
                os.environ["TMPDIR"] = variable
