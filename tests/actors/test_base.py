"""What every actor has: the FIFO with its credits, mailboxes that lose nothing, supervision."""

import itertools

import anyio
import pytest
from anyio.lowlevel import checkpoint

from reclaimactors import ReclaimError
from reclaimactors.actors.base import INTENSITY, WINDOW_S, Fifo, Mailbox, Signal, supervise
from reclaimactors.mm.batch import FolioBatch, Reclaimer
from reclaimactors.mm.vmstat import Vmstat

virtual = pytest.mark.asyncio(loop_factories=["virtual"])


def batch(pages: int, nr: int = 0) -> FolioBatch:
    return FolioBatch(nr, [nr], pages * 4096, pages, Reclaimer.KSWAPD)


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


# supervision


def crasher(times: int, every_s: float = 0.0):
    """Return an actor that crashes so often and then returns, and a list of when it ran."""
    ran = []

    async def run():
        ran.append(anyio.current_time())
        await anyio.sleep(every_s)
        if len(ran) <= times:
            raise ValueError("as told")

    return run, ran


@virtual
async def test_an_actor_that_crashes_is_counted_and_started_again():
    run, ran = crasher(2)
    vmstat = Vmstat()
    await supervise("test", run, vmstat)
    assert (len(ran), vmstat["actor_restarts"]) == (3, 2)


@virtual
async def test_restarts_back_off():
    run, ran = crasher(4)
    await supervise("test", run, Vmstat())
    waits = [after - before for before, after in itertools.pairwise(ran)]
    assert waits == sorted(waits)
    assert waits[-1] == pytest.approx(8 * waits[0])


@virtual
async def test_the_most_crashes_that_are_survived():
    run, ran = crasher(INTENSITY)
    await supervise("test", run, Vmstat())
    assert len(ran) == INTENSITY + 1


@virtual
async def test_one_crash_too_many_is_loud():
    run, ran = crasher(INTENSITY + 1)
    with pytest.raises(ReclaimError, match=r"kswapd crashed 6 times.*as told") as caught:
        await supervise("kswapd", run, Vmstat())
    assert isinstance(caught.value.__cause__, ValueError)
    assert len(ran) == INTENSITY + 1


@virtual
async def test_crashes_that_are_far_apart_are_survived_for_ever():
    run, ran = crasher(5 * INTENSITY, every_s=WINDOW_S / INTENSITY + 1)
    await supervise("test", run, Vmstat())
    assert len(ran) == 5 * INTENSITY + 1


async def test_a_cancelled_actor_is_not_restarted():
    run, ran = crasher(0, every_s=1e9)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(supervise, "test", run, Vmstat())
        await checkpoint()
        tasks.cancel_scope.cancel()
    assert len(ran) == 1
