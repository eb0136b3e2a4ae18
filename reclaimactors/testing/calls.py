"""Checks of a backing store: how its calls run, side by side, cancelled, beside the event loop."""

from __future__ import annotations

import sys
from contextlib import contextmanager, suppress
from functools import partial
from typing import TYPE_CHECKING, Any

import anyio

from reclaimactors.errors import BackendError
from reclaimactors.testing.loop import (
    HOLDS_S,
    Stepped,
    WatchedLoop,
    settled,
    threads_at_work,
)
from reclaimactors.testing.rules import broken, fail_unless, rule
from reclaimactors.testing.slots import BackendSuite, loads, page, pages, raises_backend_error

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine, Generator, Iterator

    from reclaimactors.abc import Backend

__all__ = ["CallTests", "cancelled", "each_await"]

_WAITS = 12  #: of one call, at which it is cancelled
_BEGINS_S = 0.02  # in which a thread begins to work, if one does
_SOON_S = 0.0005  # between two looks whether one has begun
_CALLS = 5  #: of which each must hold the event loop too long, before it is said
_BATCH = 32  #: slots, as reclaim writes them

_NEXT = (
    "what it has begun changes no slot once a later call about that slot has begun"  #: of a cancel
)
_WAIT_FOR_IT = (
    "wait for your thread or task also when you are cancelled, as anyio.to_thread.run_sync does "
    "without abandon_on_cancel, or have later calls on the slot wait for it"
)


class CallTests(BackendSuite):
    """Calls overlap, are cancelled, and leave the event loop free."""

    @rule(
        "Backend",
        "Calls on different slots may overlap",
        "give each call what it needs for itself, or take turns at a handle with an anyio.Lock or "
        "a CapacityLimiter(1)",
    )
    async def test_calls_on_different_slots_may_overlap(self) -> None:
        """Ten tasks, each with slots of its own, do not see each other, whichever thread they use.

        Threads are made to take turns much more often than usual.
        """
        turns = [pages(range(250), 1000 * turn) for turn in range(4)]  # so that calls follow fast

        async def use(backend: Backend, first: int) -> None:
            for items in turns:
                mine = items[first : first + 25]
                await backend.store_many(mine)
                await loads(backend, mine, when="while ten tasks used 25 slots each")
                await backend.invalidate_many([slot for slot, _ in mine[::2]])

        async with self.opened() as backend:
            with _threads_take_turns():
                async with anyio.create_task_group() as tasks:
                    for first in range(0, 250, 25):
                        tasks.start_soon(use, backend, first)

    @rule(
        "Backend",
        "It does not block the event loop: a blocking call belongs in a thread, one for a whole "
        "batch.",
        "call what blocks with anyio.to_thread.run_sync, once for the whole batch",
    )
    async def test_leaves_the_event_loop_free(self) -> None:
        """No call holds the event loop for more than 5 ms, each time that it is made."""
        async with self.opened() as backend:
            slots = range(_BATCH)
            await _holds_briefly("store_many", lambda: backend.store_many(pages(slots)))
            await _holds_briefly("load_many", lambda: backend.load_many(slots))
            await _holds_briefly("invalidate_many", lambda: backend.invalidate_many(slots))

    @rule("Backend", _NEXT, _WAIT_FOR_IT)
    async def test_cancelled_store_leaves_nothing_of_itself(self) -> None:
        """Cancelled at each of its awaits, a store is never loaded, nor lands on a later one."""
        async with self.opened() as backend:
            for at, late in each_await():
                slots = [(16 * at + nr) % 256 for nr in range(8)]
                before = _going_on()
                call = cancelled(partial(backend.store_many, pages(slots, at)), at, late=late)
                waits, done = await call
                await _after_a_cancelled_store(backend, slots, at, done=done)
                await backend.store_many(pages(slots, 300 + at))
                await settled(before)
                when = f"after a store of it, cancelled at its await {at} and before, had its turn"
                await loads(backend, pages(slots, 300 + at), when=when)
                await backend.invalidate_many(slots)
                if waits < at:
                    return

    @rule(
        "Backend.store_many",
        "If this raises, none of the items may ever be returned by a later load",
        "name the new contents as the last thing before store_many returns, with no await after it",
    )
    async def test_cancelled_replacement_leaves_nothing_of_itself(self) -> None:
        """Cancelled at each of its awaits, a store to slots in use is never loaded."""
        async with self.opened() as backend:
            for at, late in each_await():
                slots = [(16 * at + nr) % 256 for nr in range(8)]
                await backend.store_many(pages(slots, 500))
                before = _going_on()
                call = cancelled(partial(backend.store_many, pages(slots, at)), at, late=late)
                waits, done = await call
                await settled(before)
                for slot in () if done else slots:
                    with suppress(BackendError):  # what it held may be lost
                        held = await backend.load(slot)
                        fail_unless(
                            held[:4096] != page(slot + at),
                            f"slot {slot}, which was in use, has what a store that was cancelled "
                            f"at its await {at} gave it",
                        )
                await backend.invalidate_many(slots)
                if waits < at:
                    return

    @rule(
        "Backend.invalidate_many",
        "Returning says that no call that was cancelled before can change them any more",
        _WAIT_FOR_IT,
    )
    async def test_invalidated_after_a_cancelled_store_stays_gone(self) -> None:
        """Forgetting waits for a store of the slot that was cancelled."""
        async with self.opened() as backend:
            for at, late in each_await():
                slots = [(16 * at + nr) % 256 for nr in range(8)]
                before = _going_on()
                waits, _ = await cancelled(
                    partial(backend.store_many, pages(slots, at)), at, late=late
                )
                await backend.invalidate_many(slots)
                await settled(before)
                for slot in slots:
                    await raises_backend_error(
                        backend, [slot],
                        f"which was invalidated after a store was cancelled at its await {at}",
                        _WAIT_FOR_IT,
                    )  # fmt: skip
                if waits < at:
                    return

    @rule("Backend.load_many", "A load takes nothing away.", "leave all as it was when cancelled")
    async def test_cancelled_load_changes_nothing(self) -> None:
        """Cancelled at each of its awaits, a load leaves every slot as it was."""
        async with self.opened() as backend:
            await backend.store_many(pages(range(8)))
            for at, late in each_await():
                waits, _ = await cancelled(lambda: backend.load_many(range(8)), at, late=late)
                when = f"after a load was cancelled at its await {at}"
                await loads(backend, pages(range(8)), when=when)
                if waits < at:
                    return

    @rule("Backend", _NEXT, _WAIT_FOR_IT)
    async def test_cancelled_invalidation_comes_to_an_end(self) -> None:
        """Cancelled at each of its awaits, an invalidation does not take what is stored later."""
        async with self.opened() as backend:
            for at, late in each_await():
                await backend.store_many(pages(range(8)))
                before = _going_on()
                waits, _ = await cancelled(lambda: backend.invalidate_many(range(8)), at, late=late)
                await backend.store_many(pages(range(8), 40))
                await settled(before)
                when = f"which were stored after an invalidation was cancelled at its await {at}"
                await loads(backend, pages(range(8), 40), when=when)
                if waits < at:
                    return


async def _after_a_cancelled_store(
    backend: Backend, slots: list[int], at: int, *, done: bool
) -> None:
    """Fail unless slots hold what was acknowledged, or nothing of a store that was not."""
    if done:
        when = f"which store_many acknowledged, although it was cancelled at its await {at}"
        try:
            await loads(backend, pages(slots, at), when=when)
        except BackendError as exc:
            broken(
                f"store_many returned although it was cancelled at its await {at}, and then "
                f"load_many raised {exc}",
                "let the cancellation through: catch Exception, not BaseException, and raise again "
                "what you must catch",
            )
        return
    for slot in slots:
        with suppress(BackendError):  # it was never stored before
            held = await backend.load(slot)
            if held[:4096] == page(slot + at):
                broken(
                    f"slot {slot} has what a store that was cancelled at its await {at} gave it",
                    "note a slot as stored as the last thing before store_many returns, with no "
                    "await after it, or forget the slots again where it is cancelled",
                )
            broken(f"slot {slot} came back as other bytes, and was never stored before")


async def cancelled(
    call: Callable[[], Coroutine[Any, Any, object]], at: int, *, late: bool = False
) -> tuple[int, bool]:
    """Make a call and cancel it as it waits for the `at`-th time.

    Args:
        call: makes it.
        at: counted from 1.
        late: only once a thread is at work for it, or soon after.

    Returns:
        How often it waited, and whether it returned as if nothing had happened.
    """
    done = False
    before = threads_at_work()
    scope = anyio.CancelScope()

    async def make() -> None:
        nonlocal done
        with scope:
            await stepped
            done = True

    async def cancel() -> None:
        with anyio.move_on_after(_BEGINS_S):
            while not threads_at_work() - before:  # noqa: ASYNC110 - a thread tells nobody
                await anyio.sleep(_SOON_S)  # which lets it have the interpreter
        scope.cancel()

    tasks = anyio.create_task_group()
    stepped = Stepped(call(), at, lambda: tasks.start_soon(cancel) if late else scope.cancel())
    async with tasks:
        await make()
        tasks.cancel_scope.cancel()
    return stepped.waits, done


def each_await() -> Iterator[tuple[int, bool]]:
    """Return when a call is cancelled: at which of its awaits, and whether late."""
    return ((at, late) for at in range(1, _WAITS) for late in (False, True))


async def _holds_briefly(name: str, call: Callable[[], Awaitable[object]]) -> None:
    """Fail if a call holds the event loop too long whenever it is made."""
    loop = WatchedLoop.current()
    if loop is None:
        return
    held: list[float] = []
    line = ""
    for _ in range(_CALLS):
        with loop.watching() as turns:
            await call()
        held.append(turns.longest_s)
        line = turns.line or line
        if held[-1] <= HOLDS_S:
            return
    least = min(held)
    at = f", at {line}" if line else ""
    fail_unless(
        least <= HOLDS_S,
        f"each of {_CALLS} calls of {name} with {_BATCH} slots held the event loop for "
        f"{1000 * least:.0f} ms or more{at}",
    )


def _going_on() -> set[object]:
    loop = WatchedLoop.current()
    return set() if loop is None else loop.going_on()


@contextmanager
def _threads_take_turns() -> Generator[None]:
    usual = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        yield
    finally:
        sys.setswitchinterval(usual)
