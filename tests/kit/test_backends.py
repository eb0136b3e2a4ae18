"""Stores that are wrong on purpose: each is caught by name, with the sentence that helps."""

from __future__ import annotations

import asyncio
import os
import sqlite3
import tempfile
import threading
import time

import anyio
import anyio.lowlevel
import pytest

from reclaimactors import Backend, BackendError, BackendFull
from reclaimactors.backends.file import FileBackend
from reclaimactors.backends.memory import MemoryBackend
from reclaimactors.testing import BackendTests, FaultyBackend

PAGE = 4096


class Raw(MemoryBackend):
    """Conforms; each class below breaks one rule of it."""


class BadCapacity(Raw):
    async def open(self, page_size):
        self.capacity = 0


class CloseNeedsOpen(Raw):
    async def open(self, page_size):
        self.ready = True

    async def aclose(self):
        assert self.ready


class LosesTheEnd(Raw):
    async def store_many(self, items):
        await super().store_many([(slot, data[:-1] + b"\0") for slot, data in items])


class ReturnsBytearrays(Raw):
    async def load_many(self, slots):
        return [bytearray(data) for data in await super().load_many(slots)]


class PadsTooMuch(Raw):
    async def load_many(self, slots):
        return [data + bytes(PAGE) for data in await super().load_many(slots)]


class LoadsOnce(Raw):
    async def load_many(self, slots):
        loaded = await super().load_many(slots)
        await self.invalidate_many(slots)
        return loaded


class OnePageSize(Raw):
    async def store_many(self, items):
        await super().store_many([(slot, data[:PAGE]) for slot, data in items])


class SortsLoads(Raw):
    async def load_many(self, slots):
        return await super().load_many(sorted(slots))


class StopsAt1024(Raw):
    async def store_many(self, items):
        await super().store_many(items[:1024])


class WrapsSlots(Raw):
    async def store_many(self, items):
        await super().store_many([(slot & 0xFFFF, data) for slot, data in items])

    async def load_many(self, slots):
        return await super().load_many([slot & 0xFFFF for slot in slots])


class NeverReplaces(Raw):
    async def store_many(self, items):
        await super().store_many([item for item in items if item[0] not in self._slots])


class LoadsZeros(Raw):
    async def load_many(self, slots):
        return [self._slots.get(slot, bytes(PAGE)) for slot in slots]


class RaisesKeyError(Raw):
    async def load_many(self, slots):
        return [self._slots[slot] for slot in slots]


class NeverForgets(Raw):
    async def invalidate_many(self, slots):
        pass


class StrictForget(Raw):
    async def invalidate_many(self, slots):
        for slot in slots:
            del self._slots[slot]


class ForgetsAll(Raw):
    async def invalidate_many(self, slots):
        if slots:
            self._slots.clear()


class EmptyBatchRaises(Raw):
    async def store_many(self, items):
        items[0]
        await super().store_many(items)


class OneAtATime(Raw):
    busy = False

    async def store_many(self, items):
        assert not self.busy
        self.busy = True
        await anyio.lowlevel.checkpoint()
        self.busy = False
        await super().store_many(items)


class ReplacesThenTidiesUp(Raw):
    async def store_many(self, items):
        replaced = [slot for slot, _ in items if slot in self._slots]
        await super().store_many(items)
        if replaced:
            await anyio.sleep(0)


class StoresThenWaits(Raw):
    async def store_many(self, items):
        await super().store_many(items)
        await anyio.sleep(0.001)


class WritesBehind(Raw):
    """Goes on writing after it was cancelled, and so on top of what came later."""

    async def store_many(self, items):
        try:
            await anyio.sleep(0.0001)
        except BaseException:
            asyncio.get_running_loop().call_later(0, self._slots.update, items)
            raise
        await super().store_many(items)


class Shared(Raw):
    def __init__(self):
        super().__init__()
        self._slots = SHARED


class NegativeFootprint(Raw):
    def footprint(self, slots):
        return -1 if slots else 0


SHARED = {}


class BlocksInStore(Raw):
    async def store_many(self, items):
        time.sleep(0.02)
        await super().store_many(items)


class BlocksInLoad(Raw):
    async def load_many(self, slots):
        time.sleep(0.02)
        return await super().load_many(slots)


class BlocksInATaskOfItsOwn(Raw):
    async def store_many(self, items):
        async def write():
            time.sleep(0.02)
            await super(BlocksInATaskOfItsOwn, self).store_many(items)

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(write)


class ComputesInTheLoop(Raw):
    async def invalidate_many(self, slots):
        until = time.thread_time() + 0.02
        while time.thread_time() < until:
            sum(range(100))
        await super().invalidate_many(slots)


class AbandonsItsThread(Raw):
    """A write that goes on after its call was cancelled."""

    async def store_many(self, items):
        def write():
            time.sleep(0.01)
            self._slots.update(items)

        await anyio.to_thread.run_sync(write, abandon_on_cancel=True)


class ForgetsLate(Raw):
    async def invalidate_many(self, slots):
        def forget():
            time.sleep(0.01)
            for slot in slots:
                self._slots.pop(slot, None)

        await anyio.to_thread.run_sync(forget, abandon_on_cancel=True)


class TakesBeforeItGives(Raw):
    async def load_many(self, slots):
        taken = [(slot, self._slots.pop(slot)) for slot in slots if slot in self._slots]
        await anyio.lowlevel.checkpoint()
        self._slots.update(taken)
        return await super().load_many(slots)


class Swallows(Raw):
    """Ends as if nothing had happened when it is cancelled."""

    async def store_many(self, items):
        try:
            await anyio.sleep(0.001)
            await super().store_many(items)
        except BaseException:
            return


class RemembersReads(Raw):
    def __init__(self):
        super().__init__()
        self.read = {}

    def load_now(self, slots):
        return [self.read.setdefault(slot, self._slots[slot]) for slot in slots]


class ReadsWhatWasForgotten(Raw):
    def __init__(self):
        super().__init__()
        self.all = {}

    async def store_many(self, items):
        self.all.update(items)
        await super().store_many(items)

    def load_now(self, slots):
        return [self.all[slot] for slot in slots]


class ForeignWhenFull(Raw):
    async def store_many(self, items):
        if len(self._slots) + len(items) > 500:
            raise sqlite3.OperationalError("database or disk is full")
        await super().store_many(items)


class KeepsHalfWhenFull(Raw):
    async def store_many(self, items):
        for slot, data in items:
            if len(self._slots) >= 500:
                raise BackendFull
            self._slots[slot] = data


class NeverGivesBack(Raw):
    stored = 0

    async def store_many(self, items):
        self.stored += len(items)
        if self.stored > 500:
            raise BackendFull
        await super().store_many(items)


class LosesTheFirst(Raw):
    """A ring: what is too much overwrites the oldest."""

    async def store_many(self, items):
        await super().store_many(items)
        while len(self._slots) > 500:
            del self._slots[next(iter(self._slots))]


class PromisesMore(Raw):
    async def open(self, page_size):
        self.capacity = 1000

    async def store_many(self, items):
        if len(self._slots) + len(items) > 500:
            raise BackendFull
        await Backend.store_many(self, items) if not items else self._slots.update(items)


class HidesItsBytes(Raw):
    def footprint(self, slots):
        return 0


class DoesNotSayWhere(Raw):
    in_this_process = False


class SaysHalfAByte(Raw):
    def footprint(self, slots):
        return len(slots) * 0.5


class StaysPersistent(Raw):
    async def aclose(self):
        pass


class OpensOnce(Raw):
    def __init__(self):
        super().__init__()
        self.db = sqlite3.connect("")

    async def store_many(self, items):
        self.db.execute("SELECT 1")
        await super().store_many(items)

    async def aclose(self):
        self.db.close()
        await super().aclose()


class LeavesADescriptor(Raw):
    async def open(self, page_size):
        LEFT.append(os.open(os.devnull, os.O_RDONLY))


class LeavesAThread(Raw):
    async def open(self, page_size):
        LEFT.append(threading.Event())
        threading.Thread(target=LEFT[-1].wait, name="flusher", daemon=True).start()


class LeavesATask(Raw):
    async def open(self, page_size):
        self.task = asyncio.create_task(asyncio.sleep(3600))


class LeavesAFile(Raw):
    async def open(self, page_size):
        handle, _ = tempfile.mkstemp()
        os.close(handle)


class LeavesWhatACancelledOpenMade(Raw):
    handle = None

    async def open(self, page_size):
        handle = os.open(os.devnull, os.O_RDONLY)
        LEFT.append(handle)
        await anyio.sleep(0)
        self.handle = handle

    async def aclose(self):
        if self.handle is not None:
            os.close(LEFT.pop())


class OneHandleForAllThreads(Raw):
    """Seeks and writes in threads, which move each other's place in the file."""

    async def open(self, page_size):
        self.file = tempfile.TemporaryFile(buffering=0)  # noqa: SIM115 - closed by aclose
        self.there = set()

    async def aclose(self):
        if hasattr(self, "file"):
            self.file.close()

    async def store_many(self, items):
        def write():
            for slot, data in items:
                self.file.seek(slot * PAGE)
                self.file.write(data)

        await anyio.to_thread.run_sync(write)

    async def load_many(self, slots):
        def read():
            loaded = []
            for slot in slots:
                self.file.seek(slot * PAGE)
                loaded.append(self.file.read(PAGE))
            return loaded

        return await anyio.to_thread.run_sync(read)


class ConnectionOfOneThread(Raw):
    async def open(self, page_size):
        self.db = sqlite3.connect("")

    async def aclose(self):
        if hasattr(self, "db"):
            self.db.close()

    async def store_many(self, items):
        await anyio.to_thread.run_sync(self.db.execute, "SELECT 1")
        await super().store_many(items)


class WaitsForEver(Raw):
    async def store_many(self, items):
        await anyio.Event().wait()


class SpinsForEver(Raw):
    async def store_many(self, items):
        while True:
            pass


class EndsTheProgram(Raw):
    async def load_many(self, slots):
        raise SystemExit(3)


LEFT = []


@pytest.fixture(autouse=True)
def _what_they_leave():
    yield
    while LEFT:
        left = LEFT.pop()
        if isinstance(left, int):
            os.close(left)
        else:
            left.set()


@pytest.mark.parametrize(
    ("broken", "check", "says"),
    [
        (BadCapacity, "says_what_it_is", "capacity is 0"),
        (CloseNeedsOpen, "closes_without_having_been_opened", "skip what was not opened"),
        (LosesTheEnd, "returns_what_was_stored", "slot 3, of 1 B stored, came back as zeros"),
        (ReturnsBytearrays, "returns_what_was_stored", "came back as bytearray"),
        (PadsTooMuch, "returns_what_was_stored", "more than the page of 4096 B"),
        (LoadsOnce, "loads_twice", "slot 0 was never stored"),
        (OnePageSize, "page_size_is_the_one_it_was_opened_with", "came back as 4096 B only"),
        (SortsLoads, "slots_in_any_order", "slot 89, of 4096 B stored, came back as what slot"),
        (StopsAt1024, "large_batch", "slot 1024 was never stored"),
        (WrapsSlots, "first_and_last_slot", "slot 0, of 4096 B stored, came back as what slot"),
        (NeverReplaces, "storing_to_a_slot_in_use_replaces_it", "overwrite a slot"),
        (LoadsZeros, "load_of_a_slot_never_stored_raises", "returned [4096] B"),
        (RaisesKeyError, "load_of_a_slot_never_stored_raises", "raised KeyError: 0"),
        (NeverForgets, "invalidated_slots_are_gone_and_others_are_not", "which was invalidated"),
        (NeverForgets, "single_calls", "load(5) returned bytes after invalidate(5)"),
        (StrictForget, "invalidating_a_slot_never_stored_does_nothing", "KeyError: 7"),
        (ForgetsAll, "invalidated_slots_are_gone_and_others_are_not", "slot 0 was never stored"),
        (EmptyBatchRaises, "nothing_to_do", "IndexError"),
        (OneAtATime, "calls_on_different_slots_may_overlap", "AssertionError"),
        (OneHandleForAllThreads, "calls_on_different_slots_may_overlap", "take turns at a handle"),
        (ConnectionOfOneThread, "calls_on_different_slots_may_overlap", "ProgrammingError"),
        (BlocksInStore, "leaves_the_event_loop_free", "each of 5 calls of store_many with 32"),
        (BlocksInLoad, "leaves_the_event_loop_free", "anyio.to_thread.run_sync, once for"),
        (BlocksInATaskOfItsOwn, "leaves_the_event_loop_free", "`time.sleep(0.02)`"),
        (ComputesInTheLoop, "leaves_the_event_loop_free", "each of 5 calls of invalidate_many"),
        (
            ReplacesThenTidiesUp,
            "cancelled_replacement_leaves_nothing_of_itself",
            "name the new contents as the last thing",
        ),
        (StoresThenWaits, "cancelled_store_leaves_nothing_of_itself", "note a slot as stored as"),
        (Swallows, "cancelled_store_leaves_nothing_of_itself", "let the cancellation through"),
        (AbandonsItsThread, "invalidated_after_a_cancelled_store_stays_gone", "abandon_on_cancel"),
        (WritesBehind, "invalidated_after_a_cancelled_store_stays_gone", "which was invalidated"),
        (ForgetsLate, "cancelled_invalidation_comes_to_an_end", "wait for your thread"),
        (TakesBeforeItGives, "cancelled_load_changes_nothing", "leave all as it was"),
        (RemembersReads, "what_can_be_read_now_is_what_a_load_gives", "after it was replaced"),
        (ReadsWhatWasForgotten, "what_can_be_read_now_is_what_a_load_gives", "was invalidated"),
        (ForeignWhenFull, "says_when_it_is_full", "OperationalError: database or disk is full"),
        (KeepsHalfWhenFull, "says_when_it_is_full", "of a batch that was refused"),
        (NeverGivesBack, "says_when_it_is_full", "give the room of forgotten slots back"),
        (LosesTheFirst, "says_when_it_is_full", "slot 0 was never stored"),
        (PromisesMore, "says_when_it_is_full", "capacity is 1000, and it was full after 448"),
        (NegativeFootprint, "footprint_is_what_it_holds_in_this_process", "returned -1"),
        (SaysHalfAByte, "footprint_is_what_it_holds_in_this_process", "return an int from 0"),
        (HidesItsBytes, "footprint_is_what_it_holds_in_this_process", "and footprint says 0"),
        (DoesNotSayWhere, "footprint_is_what_it_holds_in_this_process", "in_this_process = True"),
        (Shared, "new_one_has_none_of_the_old_slots", "which only another store has"),
        (StaysPersistent, "can_be_opened_again", "which it had before it was closed"),
        (OpensOnce, "can_be_opened_again", "Cannot operate on a closed database"),
        (LeavesADescriptor, "leaves_nothing_behind", "descriptor"),
        (LeavesAThread, "leaves_nothing_behind", "the thread 'flusher'"),
        (LeavesATask, "leaves_nothing_behind", "the task"),
        (LeavesAFile, "leaves_nothing_behind", "left in the folder for temporary files: tmp"),
        (LeavesWhatACancelledOpenMade, "cancelled_open_leaves_nothing_behind", "/dev/null"),
        (EndsTheProgram, "returns_what_was_stored", "SystemExit: 3"),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_broken_store_is_caught(caught, monkeypatch, broken, check, says):
    monkeypatch.setattr("reclaimactors.testing.life._ENDS_S", 0.05)
    assert says in caught("backends", broken, check)


@pytest.mark.parametrize(
    ("broken", "says"),
    [
        (WaitsForEver, "in store_many `await anyio.Event().wait()`"),
        (SpinsForEver, "in store_many `"),
    ],
)
def test_a_store_that_hangs_is_given_up(caught, monkeypatch, broken, says):
    monkeypatch.setattr("reclaimactors.testing.rules._GRACE_S", 0.05)
    said = caught("backends", broken, "returns_what_was_stored", patience_s=0.05)
    assert "it hangs: it had not ended after 0.05 s" in said
    assert says in said


class Sqlite(Raw):
    """Small, in threads, behind one handle, and right."""

    capacity = None

    async def open(self, page_size):
        self.turn = anyio.CapacityLimiter(1)
        self.db = sqlite3.connect("", check_same_thread=False)
        self.db.execute("CREATE TABLE slots (slot INTEGER PRIMARY KEY, data BLOB)")

    async def aclose(self):
        if hasattr(self, "db"):
            self.db.close()

    def footprint(self, slots):
        return 0

    load_now = Backend.load_now
    synchronous = False

    async def store_many(self, items):
        await self._do(lambda: self.db.executemany("REPLACE INTO slots VALUES (?, ?)", items))

    async def load_many(self, slots):
        ask = "SELECT data FROM slots WHERE slot = ?"
        rows = await self._do(lambda: [self.db.execute(ask, (s,)).fetchone() for s in slots])
        if None in rows:
            raise BackendError(f"slot {slots[rows.index(None)]} was never stored")
        return [data for (data,) in rows]

    async def invalidate_many(self, slots):
        gone = [(slot,) for slot in slots]
        await self._do(lambda: self.db.executemany("DELETE FROM slots WHERE slot = ?", gone))

    async def _do(self, call):
        return await anyio.to_thread.run_sync(call, limiter=self.turn)


class Waits(Raw):
    """Waits in each call before it does anything, as a store across a network; and is right."""

    async def store_many(self, items):
        await anyio.sleep(0.0002)
        await anyio.lowlevel.checkpoint()
        await super().store_many(items)

    async def load_many(self, slots):
        await anyio.sleep(0.0002)
        return await super().load_many(slots)


@pytest.mark.parametrize(
    "right",
    [
        *(Raw, Sqlite, Waits, FileBackend),
        lambda: MemoryBackend(capacity=300),
        lambda: FaultyBackend(MemoryBackend()),
        lambda: FaultyBackend(MemoryBackend(), full_after=500),
    ],
    ids=["memory", "sqlite", "waits", "file", "small", "wrapped", "full"],
)
def test_right_store_passes(kept, right):
    kept("backends", right)


def test_unfinished_suite_says_what_is_missing():
    with pytest.raises(NotImplementedError, match="must define make_backend"):
        BackendTests().make_backend()
    with pytest.raises(NotImplementedError, match="must define make_backend"):
        BackendTests().test_nothing_to_do()
