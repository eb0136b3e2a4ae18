"""What every actor has: a signal to wait for, a mailbox that loses nothing, a bounded FIFO."""

from __future__ import annotations

from typing import TYPE_CHECKING, Generic, TypeVar

import anyio

from reclaimactors.mm.batch import SWAP_CLUSTER_MAX, Reclaimer
from reclaimactors.mm.page_io import QUEUE_SHARE

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterable

    from reclaimactors.mm.batch import FolioBatch

__all__ = ["Fifo", "Mailbox", "Signal", "run_lanes"]

T = TypeVar("T")


async def run_lanes(lanes: Iterable[Callable[[], Coroutine[None, None, None]]]) -> None:
    """Run the tasks of one actor, which never return.

    Raises:
        RuntimeError: if somebody else cancelled one of them, which ends them all: the actor has
            crashed, and is started again.
        BaseExceptionGroup: if one of them raises.
    """
    async with anyio.create_task_group() as tasks:
        for lane in lanes:
            tasks.start_soon(lane)
    raise RuntimeError("one of its tasks was cancelled by something outside this memory")


class Signal:
    """Wakes everybody who waits for the next `notify`; keeps no memory of earlier ones."""

    def __init__(self) -> None:
        self._event: anyio.Event | None = None
        self.listeners: list[Callable[[], None]] = []  #: who wake only some look for themselves

    def notify(self) -> None:
        """Wake all who wait now."""
        for look in self.listeners:
            look()
        if self._event is not None:
            self._event.set()
            self._event = None

    async def wait(self) -> None:
        """Wait for the next `notify`."""
        if self._event is None:
            self._event = anyio.Event()
        await self._event.wait()


class Mailbox(Generic[T]):
    """A bounded memory-object stream that never loses a message.

    A receiver that is cancelled at the very instant of delivery loses what the stream handed it;
    here it is still among `waiting`, and `drain` gives it to whoever cleans up (I5).
    """

    def __init__(self, bound: int) -> None:
        self.taken = Signal()  #: a message was taken: there is room
        self.waiting: dict[int, T] = {}
        self._next = 0
        self._tx, self._rx = anyio.create_memory_object_stream[tuple[int, T]](bound)

    def send_nowait(self, message: T) -> None:
        """Put a message in.

        Raises:
            WouldBlock: if the mailbox is full.
        """
        self._next += 1
        self._tx.send_nowait((self._next, message))
        self.waiting[self._next] = message

    async def receive(self) -> T:
        """Wait for a message."""
        return self._take(*await self._rx.receive())

    def receive_nowait(self) -> T:
        """Return a message.

        Raises:
            WouldBlock: if none waits.
        """
        return self._take(*self._rx.receive_nowait())

    def _take(self, number: int, message: T) -> T:
        del self.waiting[number]
        self.taken.notify()
        return message

    def drain(self) -> list[T]:
        """Return all that waits, closed or not; no receiver may be left."""
        left = list(self.waiting.values())
        try:
            while True:
                self._rx.receive_nowait()
        except (anyio.WouldBlock, anyio.ClosedResourceError):
            self.waiting.clear()
            self.taken.notify()
        return left

    def close(self) -> None:
        """Close both ends; `drain` comes first."""
        self._tx.close()
        self._rx.close()


class Fifo:
    """The bounded queue in front of kcompressd or padata: batches of folios, bounded in base pages.

    The bound counts pages that wait, not those being compressed. A sender takes credits per folio
    with `room` and `send_nowait`; a worker returns them as it takes the batch. Each class of
    reclaimers has its share (`page_io.QUEUE_SHARE`). A folio larger than the whole FIFO enters when
    it is empty.
    """

    def __init__(self, limit_pages: int, most_pages: int = 0) -> None:
        self.limit = limit_pages  #: may be changed at any time; what waits stays
        self.most = max(limit_pages, most_pages)  #: up to this
        self.waiting_pages = 0
        self._waiting_of = dict.fromkeys(Reclaimer, 0)
        # Each message has a page at least, so the stream is never full before the credits are gone.
        self._mailbox: Mailbox[FolioBatch] = Mailbox(self.most)
        self.room_made = self._mailbox.taken
        self.takers = 0  #: workers who wait for a batch, or whose turn to take one has yet to come

    def left(self, who: Reclaimer = Reclaimer.KSWAPD) -> int:
        """Return how many pages more this class of reclaimers may put in; below 0 after a cut."""
        own = int(self.limit * QUEUE_SHARE[who]) - self._waiting_of[who]
        return min(own, self.limit - self.waiting_pages)

    def least(self, who: Reclaimer) -> int:
        """Return how many pages are worth sending while others are on their way."""
        return max(1, min(SWAP_CLUSTER_MAX, int(self.limit * QUEUE_SHARE[who]) // 2))

    def room(self, pages: int, who: Reclaimer = Reclaimer.KSWAPD) -> bool:
        """Return whether a folio of so many pages may enter."""
        return not self.waiting_pages or pages <= self.left(who)

    def oldest_since(self) -> float | None:
        """Return when the oldest waiting batch was sent, None where none waits."""
        return next((batch.since for batch in list(self._mailbox.waiting.values())), None)

    def send_nowait(self, batch: FolioBatch) -> None:
        """Put a batch in; there must be room for it."""
        self._mailbox.send_nowait(batch)
        self._count(batch, 1)

    def _count(self, batch: FolioBatch, sign: int) -> None:
        self.waiting_pages += sign * batch.nr_pages
        self._waiting_of[batch.admitted_as] += sign * batch.nr_pages

    async def take(self, max_pages: int) -> list[FolioBatch]:
        """Wait for a batch, and return it with what else waits, up to about `max_pages`."""
        self.takers += 1
        try:
            batch = await self._mailbox.receive()
        finally:
            self.takers -= 1
        batches: list[FolioBatch] = []
        while True:
            self._count(batch, -1)
            max_pages -= batch.nr_pages
            batches.append(batch)
            if max_pages <= 0:
                return batches
            try:
                batch = self._mailbox.receive_nowait()
            except anyio.WouldBlock:
                return batches

    def take_oldest(self) -> FolioBatch | None:
        """Return the oldest waiting batch (steal_oldest), None where none waits."""
        try:
            batch = self._mailbox.receive_nowait()
        except anyio.WouldBlock:
            return None
        self._count(batch, -1)
        return batch

    def drain(self) -> list[FolioBatch]:
        """Return all that waits, for somebody to hand back: no worker is left to take it."""
        self.waiting_pages = 0
        self._waiting_of = dict.fromkeys(Reclaimer, 0)
        return self._mailbox.drain()

    def close(self) -> None:
        """Close the queue; `drain` comes first."""
        self._mailbox.close()
