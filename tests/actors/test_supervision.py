"""Supervision: crashes are survived, up to a point; each caller gets a copy of the error."""

from __future__ import annotations

import errno
import itertools
import pickle
from time import perf_counter

import anyio
import pytest
from anyio.lowlevel import checkpoint

import reclaimactors as ra
from reclaimactors.actors.supervision import INTENSITY, WINDOW_S, Supervisor, closed, unraised
from reclaimactors.log import log
from reclaimactors.mm.vmstat import Vmstat

virtual = pytest.mark.asyncio(loop_factories=["virtual"])


def supervise(name, run, vmstat=None, on_end=lambda crash: None):
    return Supervisor(vmstat or Vmstat(), log, on_end).run(name, run)


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
    await supervise("test", run)
    waits = [after - before for before, after in itertools.pairwise(ran)]
    assert waits == sorted(waits)
    assert waits[-1] == pytest.approx(8 * waits[0])


@virtual
async def test_the_most_crashes_that_are_survived():
    run, ran = crasher(INTENSITY)
    await supervise("test", run)
    assert len(ran) == INTENSITY + 1


@virtual
async def test_one_crash_too_many_is_loud():
    run, ran = crasher(INTENSITY + 1)
    with pytest.raises(ra.ReclaimError, match=r"kswapd crashed 6 times.*as told") as caught:
        await supervise("kswapd", run)
    assert isinstance(caught.value.__cause__, ValueError)
    assert len(ran) == INTENSITY + 1


@virtual
async def test_crashes_that_are_far_apart_are_survived_for_ever():
    run, ran = crasher(5 * INTENSITY, every_s=WINDOW_S / INTENSITY + 1)
    await supervise("test", run)
    assert len(ran) == 5 * INTENSITY + 1


async def test_a_cancelled_actor_is_not_restarted():
    run, ran = crasher(0, every_s=1e9)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(supervise, "test", run)
        await checkpoint()
        tasks.cancel_scope.cancel()
    assert len(ran) == 1


@virtual
async def test_the_owner_is_told_of_the_end_before_the_error_leaves():
    told = []
    with pytest.raises(ra.ReclaimError) as caught:
        await supervise("kswapd", crasher(INTENSITY + 1)[0], on_end=told.append)
    assert told == [caught.value]
    assert isinstance(told[0].__cause__, ValueError)


@virtual
async def test_the_words_name_the_one_error_that_a_task_group_wrapped():
    async def run():
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(crasher(1)[0])

    with pytest.raises(ra.ReclaimError, match=r"the last: ValueError\('as told'\)$"):
        await supervise("kcompressd", run)


@virtual
async def test_who_crashed_lately_is_known_for_a_while():
    supervisor = Supervisor(Vmstat(), log, lambda crash: None)
    await supervisor.run("kswapd", crasher(3)[0])
    await supervisor.run("swapd/file0", crasher(1)[0])
    await supervisor.run("kcompressd", crasher(0)[0])
    lately = "within the last 10 s and was started again; the last: ValueError('as told')"
    assert supervisor.lately(perf_counter()) == [
        f"kswapd crashed 3 times {lately}",
        f"swapd/file0 crashed once {lately}",
    ]
    assert supervisor.lately(perf_counter() + WINDOW_S) == []


# copies of errors


def raised(error):
    with pytest.raises(type(error)):
        raise error
    assert error.__traceback__ is not None
    return error


class WordedError(Exception):
    """A class that makes its words itself."""

    def __init__(self, key):
        super().__init__(f"no {key}")


class PickyError(Exception):
    """A class that cannot be made from its args."""

    def __init__(self, key, *, why):
        super().__init__(f"{key}: {why}")


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.EIO, "dead", "/some/file"),
        ra.BackendError("took longer"),
        ra.BackendError(errno.EIO, "failed"),
        ra.BackendFull(),
        ra.CorruptData("other bytes"),
        KeyError("k"),
        UnicodeDecodeError("utf-8", b"\xff", 0, 1, "bad"),
        WordedError("key"),
        ExceptionGroup("several", [ValueError("v"), WordedError("w")]),
    ],
    ids=repr,
)
def test_a_copy_is_of_the_same_class_and_says_the_same(error):
    error.add_note("noted")
    copy = unraised(raised(error))
    assert copy is not error
    assert (type(copy), str(copy), repr(copy)) == (type(error), str(error), repr(error))
    assert copy.__notes__ == ["noted"]
    assert copy.__traceback__ is None
    if isinstance(error, OSError):
        assert (copy.errno, copy.strerror) == (error.errno, error.strerror)


def test_a_copy_of_what_cannot_be_copied_says_the_same():
    copy = unraised(raised(PickyError("key", why="picky")))
    assert (type(copy), str(copy)) == (ra.ReclaimError, "PickyError: key: picky")


def test_causes_are_copied_and_a_circle_of_them_ends():
    first, second = raised(ValueError("first")), raised(ValueError("second"))
    first.__cause__, second.__cause__ = second, first
    copy = unraised(first)
    assert copy.__cause__ is not second
    assert str(copy.__cause__) == "second"
    assert copy.__cause__.__traceback__ is None
    assert copy.__cause__.__cause__ is None


def test_members_of_a_group_are_copied():
    group = ExceptionGroup("several", [raised(ValueError("v"))])
    [inner] = unraised(group).exceptions
    assert inner.__traceback__ is None


def test_a_full_store_can_be_pickled():
    copy = pickle.loads(pickle.dumps(ra.BackendFull("as told")))
    assert (copy.errno, copy.strerror) == (errno.ENOSPC, "as told")


async def test_a_crash_that_is_no_reclaim_error_is_told_by_its_class():
    await checkpoint()
    assert str(closed(MemoryError())) == "this memory is closed: MemoryError()"


class MuteError(Exception):
    """A class with a bug in its words."""

    def __str__(self):
        raise ZeroDivisionError

    __repr__ = __str__


@virtual
async def test_a_crash_whose_words_raise_is_told_by_its_class_and_survived():
    supervisor, crashes = Supervisor(Vmstat(), log, lambda crash: None), [MuteError()]

    async def run():
        if crashes:
            raise crashes.pop()

    await supervisor.run("kswapd", run)
    words = "<MuteError, whose repr raises ZeroDivisionError>"
    assert supervisor.lately(perf_counter())[0].endswith(f"the last: {words}")
    assert str(closed(MuteError())) == f"this memory is closed: {words}"
