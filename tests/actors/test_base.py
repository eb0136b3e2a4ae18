"""What every actor has: the FIFO with its credits, mailboxes that lose nothing."""

import anyio
import pytest
from anyio.lowlevel import checkpoint

from reclaimactors.actors.base import Fifo, Mailbox, Signal
from reclaimactors.mm.batch import FolioBatch, Reclaimer


def batch(pages: int, nr: int = 0) -> FolioBatch:
    return FolioBatch(nr, None, [nr], pages * 4096, pages, Reclaimer.KSWAPD)


@pytest.fixture
def fifo_of():
    """Make FIFOs that are closed in the end."""
    made = []

    def make(limit):
        made.append(Fifo(limit))
        return made[-1]

    yield make
    for fifo in made:
        fifo.drain()
        fifo.close()


@pytest.fixture
def mailbox_of():
    made = []

    def make(bound):
        made.append(Mailbox(bound))
        return made[-1]

    yield make
    for mailbox in made:
        mailbox.drain()
        mailbox.close()


# the FIFO's credits


async def test_an_empty_fifo_has_room_for_what_its_bound_says(fifo_of):
    assert fifo_of(10).room(10)


async def test_pages_that_wait_take_credits(fifo_of):
    fifo = fifo_of(10)
    fifo.send_nowait(batch(7))
    assert fifo.room(3)
    assert not fifo.room(4)


async def test_a_worker_returns_the_credits_as_it_takes_the_batch(fifo_of):
    fifo = fifo_of(10)
    fifo.send_nowait(batch(10))
    await fifo.take(128)
    assert fifo.waiting_pages == 0
    assert fifo.room(10)


async def test_a_folio_larger_than_the_fifo_enters_when_it_is_empty(fifo_of):
    fifo = fifo_of(10)
    assert fifo.room(512)
    fifo.send_nowait(batch(512))
    assert not fifo.room(1)


async def test_a_folio_larger_than_the_fifo_waits_for_one_page_before_it(fifo_of):
    fifo = fifo_of(10)
    fifo.send_nowait(batch(1))
    assert not fifo.room(512)


async def test_a_bound_of_one_page_takes_one_message(fifo_of):
    fifo = fifo_of(1)
    fifo.send_nowait(batch(1))
    assert not fifo.room(1)


async def test_a_worker_takes_what_waits_up_to_its_batch(fifo_of):
    fifo = fifo_of(100)
    sent = [batch(4, nr) for nr in range(5)]
    for one in sent:
        fifo.send_nowait(one)
    assert await fifo.take(10) == sent[:3]
    assert await fifo.take(10) == sent[3:]


async def test_a_worker_never_waits_to_fill_a_batch(fifo_of):
    fifo = fifo_of(100)
    one = batch(1)
    fifo.send_nowait(one)
    assert await fifo.take(128) == [one]


async def test_the_oldest_can_be_taken_back(fifo_of):
    fifo = fifo_of(100)
    first, second = batch(3, 1), batch(4, 2)
    fifo.send_nowait(first)
    fifo.send_nowait(second)
    assert fifo.take_oldest() is first
    assert fifo.waiting_pages == 4


async def test_there_is_no_oldest_in_an_empty_fifo(fifo_of):
    assert fifo_of(1).take_oldest() is None


async def test_the_age_of_the_oldest_is_known(fifo_of):
    fifo = fifo_of(100)
    assert fifo.oldest_since() is None
    for since in (5.0, 6.0):
        one = batch(1)
        one.since = since
        fifo.send_nowait(one)
    assert fifo.oldest_since() == 5.0


async def test_whoever_waits_for_room_is_told_when_a_batch_is_taken(fifo_of):
    fifo = fifo_of(1)
    fifo.send_nowait(batch(1))
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(fifo.room_made.wait)
        await checkpoint()
        await fifo.take(1)


async def test_a_drained_fifo_gives_all_that_waited_and_is_empty(fifo_of):
    fifo = fifo_of(100)
    sent = [batch(3, nr) for nr in range(4)]
    for one in sent:
        fifo.send_nowait(one)
    assert fifo.drain() == sent
    assert (fifo.waiting_pages, fifo.take_oldest()) == (0, None)


# mailboxes


async def test_a_full_mailbox_refuses(mailbox_of):
    mailbox = mailbox_of(1)
    mailbox.send_nowait("a")
    with pytest.raises(anyio.WouldBlock):
        mailbox.send_nowait("b")
    assert mailbox.drain() == ["a"]


async def test_messages_come_in_order(mailbox_of):
    mailbox = mailbox_of(3)
    for message in "abc":
        mailbox.send_nowait(message)
    assert [await mailbox.receive() for _ in range(3)] == ["a", "b", "c"]


async def test_a_message_to_a_receiver_cancelled_at_that_instant_is_not_lost(mailbox_of):
    mailbox = mailbox_of(1)
    with anyio.CancelScope() as scope:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(mailbox.receive)
            await checkpoint()
            mailbox.send_nowait("a")  # it is delivered, the receiver has not run
            scope.cancel()
    assert mailbox.drain() == ["a"]


async def test_many_producers_lose_nothing(mailbox_of):
    mailbox = mailbox_of(1000)

    async def produce(name):
        for i in range(100):
            mailbox.send_nowait((name, i))
            await checkpoint()

    async with anyio.create_task_group() as tasks:
        for name in range(10):
            tasks.start_soon(produce, name)
    got = [mailbox.receive_nowait() for _ in range(1000)]
    for name in range(10):
        assert [i for who, i in got if who == name] == list(range(100))


async def test_a_signal_wakes_all_who_wait_and_is_then_forgotten():
    signal = Signal()
    signal.notify()
    woken = []

    async def wait(name):
        await signal.wait()
        woken.append(name)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(wait, "a")
        tasks.start_soon(wait, "b")
        await checkpoint()
        assert woken == []
        signal.notify()
    assert sorted(woken) == ["a", "b"]
