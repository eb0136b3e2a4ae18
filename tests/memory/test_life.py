"""Whose a memory is: its task, its loop, its context and its process."""

import asyncio
import contextvars
import gc
import logging
import os
import random
import signal
import sys
import threading
from collections import defaultdict
from contextlib import suppress

import anyio
import pytest

import reclaimactors as ra
from reclaimactors.backends.memory import MemoryBackend
from reclaimactors.mm.batch import Reclaimer

BUDGET = 1 << 20
tenant = contextvars.ContextVar("tenant", default="nobody")


def text(i, size=4096):
    return (b"value %d that compresses, " % i * (size // 16 + 1))[:size]


def opening(**spec):
    spec = {"budget": BUDGET, "swap": [], "compress": {"offload": "inline"}} | spec
    return ra.open_memory("kcompressd", **spec)


async def use(memory, nr=600):
    for i in range(nr):
        await memory.put(i, text(i))
    for i in range(nr):
        assert await memory.get(i) == text(i)


def press(memory):
    """Bring free memory just below low, and wake kswapd: it alone reclaims."""
    node = memory._node
    while node.memcg.free >= node.marks.low:
        node.values.commit(len(node.values.small), [text(0)], 0)
    memory._machine.wake_kswapd()


class Crashing:
    """A policy with a bug."""

    def __init__(self):
        self.lists = {}
        self.seen = []

    def insert(self, pfn, *, refault):
        self.lists[pfn] = None

    def access(self, pfn):
        pass

    def remove(self, pfn):
        self.lists.pop(pfn, None)

    def isolate(self, nr):
        self.seen.append(tenant.get())
        raise RuntimeError("a bug in a policy")

    def putback(self, pfns, verdict):
        self.lists.update(dict.fromkeys(pfns))

    def shadow(self, pfn):
        return 0

    def age(self, now):
        pass


# tasks


async def test_an_opening_is_awaited_and_closed_from_another_task():
    memory = await opening()
    await asyncio.create_task(use(memory))
    await asyncio.create_task(memory.aclose())
    with pytest.raises(anyio.ClosedResourceError):
        await memory.get(1)
    await memory.aclose()  # once more does nothing


async def test_a_block_may_be_entered_in_one_task_and_left_in_another():
    block = opening()
    memory = await asyncio.create_task(block.__aenter__())
    await use(memory)
    await asyncio.create_task(block.__aexit__(None, None, None))
    assert memory.health().state == "closed"


async def test_memories_may_be_closed_in_any_order():
    first, second = await opening(), await opening()
    await use(first)
    busy = asyncio.create_task(use(second))
    await first.aclose()
    await busy
    await second.aclose()


async def test_two_who_close_wait_for_the_same_end():
    memory = await opening()
    await use(memory)
    await asyncio.gather(memory.aclose(), memory.aclose())
    assert memory.health().state == "closed"


async def test_a_close_that_is_cancelled_closes_all_the_same():
    memory = await opening()
    await use(memory)
    with anyio.CancelScope() as scope:
        scope.cancel()
        await memory.aclose()
    assert memory.health().state == "closed"


async def test_a_crash_ends_the_block_wherever_it_waits():
    with pytest.raises(ra.ReclaimError, match="a bug in a policy"):  # noqa: PT012 - the block's end
        async with opening(policy=Crashing()) as memory:
            press(memory)
            await asyncio.sleep(60)
    assert asyncio.current_task().cancelling() == 0
    await asyncio.sleep(0)  # the task goes on, not cancelled any more


async def test_a_crash_of_an_awaited_memory_is_raised_by_aclose_and_cancels_nobody():
    memory = await opening(policy=Crashing())
    press(memory)
    with pytest.raises(anyio.ClosedResourceError, match="a bug in a policy"):
        await memory.drain()
    with pytest.raises(ra.ReclaimError, match="a bug in a policy"):
        await memory.aclose()
    await memory.aclose()


async def test_the_bodys_own_error_goes_on_as_it_is():
    with pytest.raises(ZeroDivisionError):  # noqa: PT012 - the block's end is what is tested
        async with opening() as memory:
            await use(memory)
            raise ZeroDivisionError


# an opening that comes to nothing


class Store(MemoryBackend):
    """Knows whether it is open."""

    def __init__(self):
        super().__init__()
        self.is_open = False

    async def open(self, page_size):
        self.is_open = True
        await super().open(page_size)
        await asyncio.sleep(0)

    async def aclose(self):
        await super().aclose()
        await asyncio.sleep(0)
        self.is_open = False


@pytest.mark.parametrize("turns", range(16))
@pytest.mark.parametrize("by", ["its task", "a scope around it"])
async def test_an_opening_that_is_cancelled_closes_what_it_has_opened(by, turns):
    store, opened = Store(), []
    scope = anyio.CancelScope()

    async def opener():
        with scope:
            opened.append(await opening(swap=[{"backend": store}]))

    task = asyncio.create_task(opener())
    for _ in range(turns):
        await asyncio.sleep(0)
    (task.cancel if by == "its task" else scope.cancel)()
    await asyncio.wait([task])
    if opened:
        await opened[0].aclose()
    assert not store.is_open
    assert asyncio.all_tasks() == {asyncio.current_task()}


async def test_an_opening_whose_new_task_is_cancelled_closes_what_it_has_opened():
    store = Store()

    def cancel_the_owner(loop, main, **more):
        task = asyncio.Task(main, loop=loop, **more)
        if main.__name__ == "_live":
            task.cancel()
        return task

    loop = asyncio.get_running_loop()
    loop.set_task_factory(cancel_the_owner)
    try:
        with pytest.raises(anyio.ClosedResourceError, match="cancelled by something outside"):
            await asyncio.wait_for(opening(swap=[{"backend": store}])._open(), 5)
    finally:
        loop.set_task_factory(None)
    assert not store.is_open


# a crash and the block's body


class Slow(Store):
    """Closes when it is let."""

    def __init__(self):
        super().__init__()
        self.may_close = asyncio.Event()

    async def aclose(self):
        await self.may_close.wait()
        await super().aclose()


async def crash(memory):
    """Have the memory end by a crash, and wait until its calls are refused."""
    press(memory)
    while memory.health().state != "crashed":
        await asyncio.sleep(0)


async def test_a_crash_cancels_the_block_before_the_stores_are_closed():
    store = Slow()
    with pytest.raises(ra.ReclaimError, match="a bug in a policy"):  # noqa: PT012 - the block's end
        async with opening(policy=Crashing(), swap=[{"backend": store}]) as memory:
            press(memory)
            try:
                await asyncio.sleep(60)
            finally:
                assert store.is_open
                with pytest.raises(anyio.ClosedResourceError, match="a bug in a policy"):
                    memory.get_nowait(1)
                store.may_close.set()
    assert not store.is_open


async def test_a_crash_takes_only_its_own_cancellation_back():
    went_on = []

    async def body(memory_is):
        async with opening(policy=Crashing()) as memory:
            memory_is.set_result(memory)
            await asyncio.sleep(60)
        went_on.append(True)

    memory_is = asyncio.get_running_loop().create_future()
    task = asyncio.create_task(body(memory_is))
    await crash(await memory_is)
    task.cancel()  # it is on its way out already
    await asyncio.wait([task])
    assert task.cancelled()
    assert not went_on


async def test_a_timeout_around_a_crash_is_a_timeout():
    with pytest.raises(TimeoutError):  # noqa: PT012 - the block's end
        async with asyncio.timeout(None) as timeout:
            async with opening(policy=Crashing()) as memory:
                closing = asyncio.create_task(crash(memory))
                closing.add_done_callback(lambda _: timeout.reschedule(0))
                await asyncio.sleep(60)
    assert asyncio.current_task().cancelling() == 0


@pytest.mark.parametrize("ending", ["returns", "raises", "is refused", "closes"])
async def test_a_crash_leaves_no_cancellation_with_a_body_that_swallowed_it(ending):
    expected = ZeroDivisionError if ending == "raises" else ra.ReclaimError
    with pytest.raises(expected):  # noqa: PT012 - the block's end
        async with opening(policy=Crashing()) as memory:
            with suppress(asyncio.CancelledError):
                await crash(memory)
                await asyncio.sleep(60)
            if ending == "raises":
                raise ZeroDivisionError
            if ending == "is refused":
                await memory.get(1)
            if ending == "closes":
                await memory.aclose()
    assert asyncio.current_task().cancelling() == 0
    await asyncio.sleep(0)


@pytest.mark.parametrize("genuine", [False, True])
async def test_a_cancellation_that_was_not_delivered_yet_is_delivered_if_it_is_of_others(genuine):
    async def body():
        with pytest.raises(asyncio.CancelledError if genuine else ra.ReclaimError):  # noqa: PT012
            async with opening() as memory:
                memory._machine.crashed(ra.ReclaimError("now"))  # the body's turn goes on
                if genuine:
                    asyncio.current_task().cancel()
        assert asyncio.current_task().cancelling() == genuine
        await asyncio.sleep(0)

    await asyncio.create_task(body())


async def test_a_cancellation_as_the_block_is_left_waits_for_the_end_and_goes_on():
    store = Slow()

    async def body():
        async with opening(swap=[{"backend": store}]):
            pass

    task = asyncio.create_task(body())
    while not store.is_open:
        await asyncio.sleep(0)
    for _ in range(50):
        await asyncio.sleep(0)
    task.cancel()
    for _ in range(50):
        await asyncio.sleep(0)
    assert not task.done()
    store.may_close.set()
    await asyncio.wait([task])
    assert task.cancelled()
    assert not store.is_open


async def test_a_scope_around_a_crashed_block_is_still_cancelled():
    with anyio.CancelScope() as scope:
        with pytest.raises(ra.ReclaimError):  # noqa: PT012 - the block's end
            async with opening(policy=Crashing()) as memory:
                asyncio.create_task(crash(memory)).add_done_callback(lambda _: scope.cancel())
                await asyncio.sleep(60)
        await asyncio.sleep(60)
    assert scope.cancelled_caught
    assert asyncio.current_task().cancelling() == 0


async def test_each_who_waits_for_the_end_is_told_of_the_crash_by_an_error_of_its_own():
    store = Slow()
    memory = await opening(policy=Crashing(), swap=[{"backend": store}])
    await crash(memory)
    closing = [asyncio.create_task(memory.aclose()) for _ in range(3)]
    await asyncio.sleep(0)
    store.may_close.set()
    errors = await asyncio.gather(*closing, return_exceptions=True)
    assert [type(error) for error in errors] == [ra.ReclaimError] * 3
    assert len({id(error) for error in errors}) == 3
    await memory.aclose()
    await memory.aclose()


# cancelled by others


async def test_the_end_of_asyncio_run_closes_the_stores_and_says_one_plain_line(caplog):
    def run():
        async def main():
            memory = await opening(swap=[{"backend": store}])
            memory._machine.starter.start()
            await use(memory)
            return memory

        return asyncio.run(main())

    store = Store()
    caplog.set_level(logging.INFO)
    memory = await asyncio.to_thread(run)
    assert not store.is_open
    [line] = [record for record in caplog.records if record.name == "reclaimactors"]
    assert line.levelname == "WARNING"
    assert line.getMessage().startswith("memory.cancelled memory='kcompressd'")
    assert line.exc_info is None
    assert memory.health().state == "crashed"
    assert "cancelled by something outside this memory" in memory.health().reason


@pytest.mark.parametrize("name", ["memory", "starter", "kswapd", "kcompressd", "let_go"])
async def test_a_task_that_somebody_cancels_ends_the_memory_and_every_call_says_why(name):
    memory = await opening()
    memory._machine.starter.start()
    if name == "let_go":
        memory._machine.starter.let_go([b"x" * 4096] * 100_000)
    for _ in range(9 if name != "let_go" else 2):
        await asyncio.sleep(0)
    [task] = [task for task in asyncio.all_tasks() if task.get_name() == name]
    task.cancel()
    with pytest.raises(anyio.ClosedResourceError, match="cancelled by something outside"):  # noqa: PT012
        async with asyncio.timeout(5):
            while True:
                await memory.drain()
                await asyncio.sleep(0)
    try:
        await memory.aclose()
    except ra.ReclaimError as exc:
        assert "cancelled by something outside" in str(exc)  # noqa: PT017 - it may be raised
    assert memory.health().state == "crashed"


async def test_a_block_whose_memory_is_cancelled_is_ended():
    with pytest.raises(ra.ReclaimError, match="the task that runs its actors was cancelled"):  # noqa: PT012
        async with opening():
            [task] = [task for task in asyncio.all_tasks() if task.get_name() == "memory"]
            task.cancel()
            await asyncio.sleep(60)
    assert asyncio.current_task().cancelling() == 0


async def test_lanes_that_somebody_cancels_are_started_again(caplog):
    swap = [{"backend": MemoryBackend()}]
    async with opening(swap=swap) as memory:
        await use(memory)
        lanes = [task for task in asyncio.all_tasks() if "lane" in task.get_name()]
        assert len(lanes) > 3
        for lane in lanes:
            lane.cancel()
        await use(memory)
        await memory.drain()
        assert memory.vmstat["actor_restarts"] == 3  # kcompressd, and both halves of the swapd
    assert "cancelled by something outside this memory" in caplog.text


async def test_nobody_needs_to_hold_an_open_memory():
    store = Store()
    memory = await opening(swap=[{"backend": store}])
    memory._machine.starter.start()
    await asyncio.sleep(0)
    del memory
    gc.collect()
    assert store.is_open
    [owner] = [task for task in asyncio.all_tasks() if task.get_name() == "memory"]
    owner.cancel()
    await asyncio.wait([owner])
    assert not store.is_open


# closing from inside, and closing that fails


class ClosesItself(Store):
    """A backend that closes the memory it serves."""

    async def store_many(self, items):
        await (self.memory.aclose() if self.directly else asyncio.create_task(self.memory.aclose()))
        await super().store_many(items)


@pytest.mark.parametrize("directly", [True, False])
async def test_a_close_from_inside_an_actor_does_not_wait_for_itself(directly):
    store = ClosesItself()
    store.directly = directly
    async with asyncio.timeout(10):
        memory = await opening(swap=[{"backend": store}])
        store.memory = memory
        await memory.put(1, os.urandom(4096))
        with pytest.raises(anyio.ClosedResourceError, match="this memory is closed"):
            await memory.reclaim(1 << 20)
        await memory.aclose()
    assert memory.health().state == "closed"
    assert not store.is_open


class BreaksAtTheEnd(Crashing):
    """A policy that raises as its folios are given back."""

    def isolate(self, nr):
        taken = list(self.lists)[:nr]
        for pfn in taken:
            del self.lists[pfn]
        return taken

    def putback(self, pfns, verdict):
        raise RuntimeError("a bug at the end")


async def filled(policy, store):
    memory = await opening(policy=policy, swap=[{"backend": store}])
    machine = memory._machine
    await memory.put(1, text(1))
    batch = machine.swapout.isolate(1, 1 << 20, Reclaimer.KSWAPD, machine.background.stream)
    machine.fifo.send_nowait(batch)
    return memory


async def test_a_plugin_that_raises_as_the_memory_closes_is_told_and_all_is_closed(caplog):
    store = Store()
    memory = await filled(BreaksAtTheEnd(), store)
    with pytest.raises(ra.ReclaimError, match="a bug at the end") as caught:
        await memory.aclose()
    assert isinstance(caught.value.__cause__, RuntimeError)
    assert not store.is_open
    assert memory._machine.ended
    assert "memory.close_failed" in caplog.text
    await memory.aclose()


class Breaks(logging.Handler):
    """A handler of the host's that raises, whatever it is told."""

    def emit(self, record):
        raise RuntimeError("a bug in a handler")


@pytest.fixture
def deaf():
    """A host that hears every line, and breaks on it."""
    logger, handler = logging.getLogger("reclaimactors"), Breaks()
    logger.addHandler(handler)
    logger.setLevel(logging.DEBUG)
    yield
    logger.removeHandler(handler)
    logger.setLevel(logging.NOTSET)


async def test_a_log_handler_that_raises_changes_nothing_in_a_memory_that_is_used(deaf, capsys):
    async with opening(swap=[{"backend": MemoryBackend()}]) as memory:
        await use(memory)
        await memory.drain()
        assert memory.health().state == "open"
        assert memory.vmstat["actor_restarts"] == 0
    assert "Message: 'kswapd.slept'" in capsys.readouterr().err


async def test_a_log_handler_that_raises_changes_nothing_in_how_a_memory_ends(deaf):
    store = Store()
    with pytest.raises(ra.ReclaimError, match="a bug in a policy"):  # noqa: PT012 - the block's end
        async with opening(policy=Crashing(), swap=[{"backend": store}]) as memory:
            press(memory)
            await asyncio.sleep(60)
    assert not store.is_open
    assert "a bug in a policy" in memory.health().reason


async def test_a_log_handler_that_raises_does_not_hide_what_a_plugin_did_at_the_end(deaf):
    store = Store()
    memory = await filled(BreaksAtTheEnd(), store)
    with pytest.raises(ra.ReclaimError, match="a bug at the end"):
        await memory.aclose()
    assert not store.is_open


async def test_a_store_whose_close_was_cancelled_inside_keeps_no_other_open(caplog):
    class Cancelled(Store):
        async def aclose(self):
            raise asyncio.CancelledError

    other = Store()
    memory = await opening(swap=[{"backend": Cancelled()}, {"backend": other}])
    await memory.aclose()
    assert not other.is_open
    assert "swapd.close_failed" in caplog.text


async def test_a_start_that_failed_is_tried_again():
    memory = await opening()
    machine, loop = memory._machine, asyncio.get_running_loop()
    made = []

    def factory(loop, main, **more):
        made.append(main.__qualname__)
        if len(made) == 2:  # the first is kswapd
            main.close()
            raise RuntimeError("no more tasks")
        return asyncio.Task(main, loop=loop, **more)

    loop.set_task_factory(factory)
    try:
        machine.starter.start()
        async with asyncio.timeout(10):
            await use(memory)
    finally:
        loop.set_task_factory(None)
    names = [task.get_name() for task in asyncio.all_tasks()]
    assert (names.count("kswapd"), names.count("kcompressd")) == (1, 1)
    assert memory.vmstat["actor_restarts"] == 1
    await memory.aclose()


# context


async def test_actors_run_in_the_context_of_the_opening():
    policy = Crashing()
    tenant.set("of the opening")
    memory = await opening(policy=policy)

    async def request():
        tenant.set("of a request")
        press(memory)
        with pytest.raises(anyio.ClosedResourceError):
            await memory.drain()

    await asyncio.create_task(request())
    assert policy.seen == ["of the opening"] * 6
    with pytest.raises(ra.ReclaimError):
        await memory.aclose()


async def test_what_actors_log_is_logged_in_the_context_of_the_opening(caplog):
    class Whose(logging.Handler):
        def emit(self, record):
            whose[record.getMessage().split()[0]].add(tenant.get())

    whose = defaultdict(set)
    caplog.set_level(logging.DEBUG, "reclaimactors")
    logger, handler = logging.getLogger("reclaimactors"), Whose()
    logger.addHandler(handler)
    tenant.set("of the opening")
    try:
        async with opening(swap=[{"backend": MemoryBackend()}]) as memory:

            async def request():
                tenant.set("of a request")
                press(memory)
                await memory.swapon({"backend": MemoryBackend()})
                await memory.drain()

            await asyncio.create_task(request())
    finally:
        logger.removeHandler(handler)
    assert whose.keys() >= {"actors.started", "kswapd.slept"}
    assert set().union(*whose.values()) == {"of the opening"}


# loops and callbacks


async def test_what_is_called_nowait_works_in_a_callback_and_starts_the_actors():
    async with opening() as memory:
        done = asyncio.get_running_loop().create_future()

        def call():
            try:
                for i in range(240):
                    memory.put_nowait(i, text(i))
                memory.advise(3, ra.Advice.PAGEOUT)
                assert memory.get_nowait(7) == text(7)
                assert memory.usage().budget == BUDGET
            except Exception as exc:  # noqa: BLE001 - raised by the test
                done.set_exception(exc)
            else:
                done.set_result(None)

        asyncio.get_running_loop().call_soon(call)
        await done
        await memory.drain()
        assert memory.vmstat["pgsteal_kswapd"] > 0
        await use(memory)


def test_another_loop_is_refused_at_once():
    first, second = asyncio.new_event_loop(), asyncio.new_event_loop()
    memory = first.run_until_complete(opening()._open())
    try:
        for call in (memory.put("a", b"1"), memory.delete("a"), memory.drain(), memory.reclaim(1)):
            with pytest.raises(RuntimeError, match="event loop that opened it"):
                second.run_until_complete(call)
        assert len(memory) == 0
    finally:
        first.run_until_complete(memory.aclose())
        first.close()
        second.close()


# reading in other threads


LOOKS = {
    "len": len,
    "in": lambda memory: 7 in memory,
    "usage": lambda memory: memory.usage(),
    "vmstat": lambda memory: dict(memory.vmstat),
    "swaps": lambda memory: memory.swaps(),
    "pressure": lambda memory: memory.pressure(),
    "health": lambda memory: memory.health(),
    "repr": repr,
}


def looking(memory, ended, errors, rounds):
    """Look at everything, for as long as the loop works."""
    while not ended.is_set():
        try:
            usage = memory.usage()
            parts = (usage.resident, usage.compressed, usage.overhead, usage.free)
            assert sum(parts) == usage.budget
            assert min(parts) >= 0
            assert usage.in_flight <= usage.resident
            for look in LOOKS.values():
                look(memory)
        except Exception as exc:  # noqa: BLE001 - raised by the test
            errors.append(exc)
            return
        rounds.append(True)


async def test_a_thread_may_look_while_the_loop_works():
    ended, errors, rounds = threading.Event(), [], []
    stores = [{"backend": "memory", "size": "256KiB", "priority": 1} for _ in range(2)]
    interval = sys.getswitchinterval()
    async with opening(swap=stores) as memory:
        thread = threading.Thread(target=looking, args=(memory, ended, errors, rounds))
        sys.setswitchinterval(1e-5)
        thread.start()
        try:
            turns = 0
            while not errors and (turns < 12 or len(rounds) < 100):
                await use(memory, 300)
                name = await memory.swapon({"backend": "memory", "size": "256KiB"})
                await memory.put("noise", os.urandom(4096 * 30))
                await memory.reclaim(1 << 20)
                await memory.swapoff(name)
                turns += 1
        finally:
            ended.set()
            thread.join()
            sys.setswitchinterval(interval)
    assert errors == []
    assert len(rounds) >= 100


async def test_a_look_in_the_middle_of_a_step_adds_up():
    async with opening() as memory:
        await use(memory)
        memcg = memory._node.memcg
        half_done = memcg.free + 100  # as where a folio is back, and its blob not yet gone
        memcg.resident += half_done
        usage = await asyncio.to_thread(memory.usage)
        memcg.resident -= half_done
        assert usage.free == 0
        assert usage.resident + usage.compressed + usage.overhead == usage.budget


async def test_a_thread_that_looks_at_vmstat_changes_nothing_for_others():
    async with opening() as memory:
        await use(memory)
        vmstat = memory.vmstat
        before = vmstat["stored_pages"]
        assert before
        for i in range(600):
            await memory.delete(i)
        theirs = await asyncio.to_thread(lambda: memory.vmstat)
        assert vmstat["stored_pages"] == before  # as of the access
        assert theirs["stored_pages"] == 0
        assert theirs.keys() == vmstat.keys()


async def test_swaps_leaves_out_what_is_swapped_off_meanwhile():
    async with opening(swap=[{"backend": MemoryBackend()} for _ in range(2)]) as memory:
        swapds = memory._machine.swapds
        gone = swapds.pop(0)
        assert [info.name for info in memory.swaps()] == ["MemoryBackend1"]
        swapds[0] = swapds[1]  # a new one has its number already
        assert [info.name for info in memory.swaps()] == ["MemoryBackend1"]
        swapds[0] = gone


def test_what_a_store_or_the_pool_has_is_not_read_in_another_loop():
    """A resident value is: to look which loop runs would cost more than the hit."""
    first, second = asyncio.new_event_loop(), asyncio.new_event_loop()
    store = opening(swap=[{"backend": "file", "size": "1MiB"}])
    memory = first.run_until_complete(store._open())

    async def nowait(key):
        return memory.get_nowait(key)

    try:
        for key, value in enumerate((random.Random(0).randbytes(4096), text(1))):
            first.run_until_complete(memory.put(key, value))
        first.run_until_complete(memory.reclaim(1 << 20))
        assert memory.usage().resident == 0
        first.run_until_complete(memory.put("resident", b"value"))
        for call in (memory.get, nowait):
            assert second.run_until_complete(call("resident")) == b"value"
            for key in (0, 1, "absent"):
                with pytest.raises(RuntimeError, match="event loop that opened it"):
                    second.run_until_complete(asyncio.wait_for(call(key), 5))
    finally:
        first.run_until_complete(memory.aclose())
        first.close()
        second.close()


# processes


forks = [
    pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here"),
    pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning"),
]  # the warning is of 3.12


def many(*marks):
    def mark(test):
        for each in marks:
            test = each(test)
        return test

    return mark


@many(*forks)
async def test_a_forked_child_is_refused_and_may_look():
    async with opening() as memory:
        await memory.put("a", b"value")
        ours, theirs = os.pipe()
        if os.fork() == 0:
            try:
                memory.get_nowait("a")
            except RuntimeError as exc:
                os.write(theirs, f"{len(memory)} {exc}".encode())
            os._exit(0)
        os.close(theirs)
        said = os.read(ours, 1000).decode()
        os.close(ours)
        os.wait()  # noqa: ASYNC222 - it has ended
        assert said.startswith("1 this memory was opened in process")
        assert await memory.get("a") == b"value"


class Witness(MemoryBackend):
    """A store that says so when another process calls it."""

    def __init__(self):
        super().__init__()
        self.pid = os.getpid()
        self.calls, self.tell = os.pipe()

    def _seen(self, what):
        if os.getpid() != self.pid:
            os.write(self.tell, f"{what} ".encode())

    def theirs(self):
        os.close(self.tell)
        with os.fdopen(self.calls) as calls:
            return calls.read()

    async def store_many(self, items):
        self._seen("store_many")
        await anyio.sleep(0)
        self._seen("store_many")
        await super().store_many(items)

    async def load_many(self, slots):
        self._seen("load_many")
        return await super().load_many(slots)

    async def invalidate_many(self, slots):
        self._seen("invalidate_many")
        await super().invalidate_many(slots)

    async def aclose(self):
        self._seen("aclose")
        await super().aclose()


def mixed(i):
    return text(i) if i % 2 else random.Random(i).randbytes(4096)


def with_workers(store):
    return opening(
        budget=2 * BUDGET,
        compress={"offload": "process"},
        swap=[{"backend": store, "size": "64MiB", "priority": 2}, {"backend": "file"}],
    )


async def give_all_to_do(memory):
    """Give the workers, the stores and kswapd something to do."""
    for _ in range(2):
        for i in range(1200):
            await memory.put(i, mixed(i))
        while not any(worker.up for worker in memory._machine.offload._crew.all):
            await asyncio.sleep(0.01)
    with suppress(anyio.WouldBlock):
        for i in range(200):
            memory.put_nowait(i, mixed(i))


def in_child(run):
    """Fork, and return what `run` returns in the child, or how that ended."""
    ours, theirs = os.pipe()
    pid = os.fork()
    if pid == 0:
        signal.alarm(20)  # it hangs
        try:
            said = str(run())
        except BaseException as exc:  # noqa: BLE001 - told to the test
            said = repr(exc)
        os.write(theirs, said.encode())
        os._exit(0)
    os.close(theirs)
    with os.fdopen(ours) as said:
        told = said.read()
    os.waitpid(pid, 0)
    return told


async def goes_on_unharmed(memory):
    for i in range(1200):
        assert await memory.get(i) == mixed(i)
    for i in range(1200):
        await memory.put(i, mixed(i + 1))
    await memory.drain()
    for i in range(1200):
        assert await memory.get(i) == mixed(i + 1)
    assert memory.vmstat["worker_deaths"] == memory.vmstat["actor_restarts"] == 0
    assert memory.health().state == "open"
    assert not memory._machine.offload.degraded


@many(*forks)
def test_a_forked_child_that_runs_the_same_loop_leaves_what_is_the_parents():
    async def in_the_child():
        await asyncio.sleep(0.2)
        with pytest.raises(RuntimeError, match="was opened in process"):
            await memory.put("a", b"value")
        await memory.aclose()
        await memory.aclose()
        tasks = {task.get_name() for task in asyncio.all_tasks()}
        return sorted(tasks & {"memory", "kswapd", "kcompressd", "workers"})

    loop, store = asyncio.new_event_loop(), Witness()
    memory = loop.run_until_complete(with_workers(store)._open())
    loop.run_until_complete(give_all_to_do(memory))
    assert in_child(lambda: loop.run_until_complete(in_the_child())) == "[]"
    loop.run_until_complete(goes_on_unharmed(memory))
    loop.run_until_complete(memory.aclose())
    loop.close()
    assert store.theirs() == ""


def forks_and(main, **how):
    """Run a main that forks: it ends with 0 in a child where it returns, with 1 where it raises."""
    parent = os.getpid()

    async def guarded():
        try:
            await main()
        except BaseException:  # a child must not go on with the tests
            if os.getpid() == parent:
                raise
            os._exit(1)
        if os.getpid() != parent:
            os._exit(0)

    anyio.run(guarded, **how)


def wait_for(pid):
    """Wait for a child, which ends well."""
    assert os.waitpid(pid, 0)[1] == 0


@many(*forks)
@pytest.mark.parametrize("turns", [0, 100])
def test_a_task_that_forks_and_leaves_the_block_in_the_child_closes_nothing(turns):
    async def main():
        async with with_workers(store) as memory:
            await give_all_to_do(memory)
            pid = os.fork()
            if pid:
                wait_for(pid)
                await goes_on_unharmed(memory)
            else:
                signal.alarm(20)  # it hangs
                for _ in range(turns):
                    await asyncio.sleep(0)

    store = Witness()
    forks_and(main)
    assert store.theirs() == ""


@many(*forks)
def test_on_trio_a_forked_child_leaves_the_block_and_closes_nothing():
    async def main():
        swap = [{"backend": store, "priority": 2}, {"backend": "file"}]
        async with ra.open_memory(budget=BUDGET, swap=swap) as memory:
            for i in range(600):
                await memory.put(i, mixed(i))
            pid = os.fork()
            if pid:
                wait_for(pid)
                for i in range(600):
                    assert await memory.get(i) == mixed(i)
            else:
                signal.alarm(20)
                with pytest.raises(RuntimeError, match="was opened in process"):
                    await memory.get(1)
                for _ in range(50):
                    await anyio.lowlevel.checkpoint()

    store = Witness()
    forks_and(main, backend="trio")
    assert store.theirs() == ""
