"""Whose a memory is: its task, its loop, its context and its process."""

import asyncio
import contextvars
import os

import anyio
import pytest

import reclaimactors as ra

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
        node.commit(len(node.small), [text(0)], 0)
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


# processes


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")  # 3.12
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
