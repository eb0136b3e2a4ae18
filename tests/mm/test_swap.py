import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from reclaimactors.errors import ProtocolViolation
from reclaimactors.mm.swap import SwapDevices
from reclaimactors.mm.swap_device import SwapDevice


def device(capacity=None, *, index=0, priority=0):
    return SwapDevice(index, f"swap{index}", priority, capacity)


def test_runs_allocated_one_after_another_are_contiguous():
    dev = device(100)
    assert [dev.alloc(nr) for nr in (1, 32, 4)] == [0, 1, 33]
    assert dev.used == 37
    assert dev.free_slots == 63


def test_whoever_goes_through_the_devices_meets_each_once_whatever_happens_meanwhile():
    devs = SwapDevices(tuple(device(9, index=i) for i in range(3)))
    seen = []
    for dev in devs:
        seen.append(dev.index)
        devs.alloc(1)  # it goes behind its equals
        if len(seen) == 1:
            devs.add(device(9, index=7, priority=5))
            devs.remove(2)
    assert seen == [0, 1, 2]
    assert [dev.index for dev in devs] == [7, 1, 0]


def test_freed_slots_are_reused_only_when_the_cursor_wraps():
    dev = device(8)
    first = dev.alloc(2)
    dev.free(first, 2)
    assert [dev.alloc(2) for _ in range(5)] == [2, 4, 6, 0, None]


def test_an_unbounded_device_wraps_once_half_of_its_map_is_free():
    dev = device()
    slots = [dev.alloc(1) for _ in range(1024)]
    for slot in slots[:600]:
        dev.free(slot, 1)
    assert dev.alloc(1) == 0


def test_an_unbounded_device_grows_while_most_of_its_map_is_used():
    dev = device()
    for _ in range(1024):
        dev.alloc(1)
    dev.free(0, 100)
    assert dev.alloc(1) == 1024
    assert dev.alloc(100_000) is not None


def test_a_run_may_begin_before_the_cursor_and_end_where_the_map_grew():
    dev = device(3000)
    dev.free(dev.alloc(1000), 1000)
    assert dev.alloc(2500) == 0


def test_a_run_never_spans_a_used_slot():
    dev = device(6)
    for _ in range(6):
        dev.alloc(1)
    dev.free(0, 2)
    dev.free(3, 3)
    assert dev.alloc(4) is None
    assert dev.alloc(3) == 3
    assert dev.alloc(3) is None
    assert dev.alloc(2) == 0


def test_a_failed_search_is_remembered_until_a_longer_run_is_free():
    dev = device(4096)
    for _ in range(1024):
        dev.alloc(4)
    for slot in range(0, 4096, 8):
        dev.free(slot, 4)
    assert dev.alloc(8) is None
    assert dev._longest == 7
    dev.free(4, 4)
    assert dev._longest == 12
    assert dev.alloc(10) == 0
    assert dev._longest == 7


def test_after_a_failed_search_the_next_one_starts_at_what_was_freed():
    dev = device(4096)
    for _ in range(4096):
        dev.alloc(1)
    assert dev.alloc(1) is None
    dev.free(2000, 1)
    assert dev._cursor == 2000
    assert dev.alloc(1) == 2000


def test_a_long_run_that_was_freed_is_found_whole():
    dev = device(4096)
    dev.alloc(4096)
    assert dev.alloc(1) is None
    for slot in range(1024, 3072, 2):
        dev.free(slot, 2)
    dev.check()
    assert dev.alloc(2048) == 1024
    assert dev.alloc(1) is None


def test_slots_set_aside_are_not_handed_out_until_they_are_taken_back():
    dev = device(4)
    slot = dev.alloc(2)
    dev.set_aside(slot, 2)
    assert (dev.used, dev.aside, dev.free_slots) == (0, 2, 2)
    assert dev.alloc(2) == 2
    assert dev.alloc(1) is None
    with pytest.raises(ProtocolViolation, match="not all in use"):
        dev.free(slot, 2)
    assert dev.first_aside(1) == [slot, slot + 1]
    dev.take_back(2)
    dev.check()
    assert (dev.used, dev.aside, dev.free_slots) == (2, 0, 2)
    assert dev.alloc(2) == slot


@pytest.mark.parametrize(("slot", "nr"), [(3, 1), (1, 2), (-1, 1), (0, 0), (5000, 1)])
@pytest.mark.parametrize("verb", ["free", "set_aside"])
def test_giving_back_what_is_not_used_changes_nothing(verb, slot, nr):
    dev = device(10)
    dev.alloc(2)
    with pytest.raises(ProtocolViolation):
        getattr(dev, verb)(slot, nr)
    assert (dev.used, dev.aside) == (2, 0)
    dev.check()


def test_no_slots_is_not_a_run():
    with pytest.raises(ProtocolViolation):
        device().alloc(0)


def test_the_highest_priority_is_filled_first():
    low, high = device(2, index=0, priority=1), device(2, index=1, priority=5)
    both = SwapDevices((low, high))
    assert [both.alloc(1) for _ in range(5)] == [(high, 0), (high, 1), (low, 0), (low, 1), None]
    assert not both.has_room
    assert (both.used, both.aside, both.capacity) == (4, 0, 4)


def test_equal_priorities_take_turns():
    devs = SwapDevices(tuple(device(9, index=i) for i in range(3)))
    assert [devs.alloc(2)[0].index for _ in range(6)] == [0, 1, 2, 0, 1, 2]


def test_a_device_out_of_service_or_excluded_is_passed_over():
    a, b = device(4, index=0), device(4, index=1)
    devs = SwapDevices((a, b))
    a.in_service = False
    assert devs.alloc(1) == (b, 0)
    assert devs.alloc(1, exclude={1}) is None
    b.in_service = False
    assert devs.alloc(1) is None
    assert not devs.has_room
    a.in_service = True
    assert devs.has_room


def test_a_run_too_long_for_one_device_goes_to_the_next():
    small, large = device(2, index=0, priority=9), device(64, index=1)
    devs = SwapDevices((small, large))
    assert devs.alloc(16) == (large, 0)
    assert devs.alloc(2) == (small, 0)
    devs.check()


def test_a_device_whose_store_is_full_gets_nothing_new():
    dev = device(4)
    devs = SwapDevices((dev,))
    dev.full = True
    assert devs.alloc(1) is None
    assert not devs.has_room
    dev.full = False
    assert devs.alloc(1) == (dev, 0)


def test_no_device_has_no_room():
    devs = SwapDevices()
    assert not devs.has_room
    assert devs.alloc(1) is None
    assert devs.capacity == 0


def test_devices_come_and_go_by_index():
    devs = SwapDevices((device(None, index=3),))
    devs.add(device(5, index=1, priority=9))
    assert [dev.index for dev in devs.devices] == [1, 3]
    assert len(devs) == 2
    assert devs[3].capacity is None
    assert devs.capacity is None
    with pytest.raises(ProtocolViolation, match="already"):
        devs.add(device(5, index=1))
    dev, slot = devs.alloc(1)
    with pytest.raises(ProtocolViolation, match="still holds 1"):
        devs.remove(1)
    dev.free(slot, 1)
    assert devs.remove(1) is dev
    with pytest.raises(KeyError):
        devs[1]


class Slots(RuleBasedStateMachine):
    """A device against a plain set of slots."""

    @initialize(capacity=st.one_of(st.integers(0, 90), st.just(5000), st.none()))
    def start(self, capacity):
        self.capacity = capacity
        self.dev = device(capacity)
        self.runs = []
        self.aside = set()

    def taken(self):
        return {slot + i for slot, nr in self.runs for i in range(nr)} | self.aside

    @rule(nr=st.one_of(st.integers(1, 9), st.sampled_from([32, 64, 600, 2000])))
    def alloc(self, nr):
        taken = self.taken()
        slot = self.dev.alloc(nr)
        if slot is None:
            assert self.capacity is not None
            run = 0
            for at in range(self.capacity):
                run = 0 if at in taken else run + 1
                assert run < nr, "there was a run"
            return
        assert taken.isdisjoint(range(slot, slot + nr))
        assert self.capacity is None or slot + nr <= self.capacity
        self.runs.append((slot, nr))

    @precondition(lambda self: self.runs)
    @rule(data=st.data(), aside=st.sampled_from([False] * 9 + [True]))
    def give_back(self, data, aside):
        at = data.draw(st.integers(0, len(self.runs) - 1))
        slot, nr = self.runs.pop(at)
        if aside:
            self.dev.set_aside(slot, nr)
            self.aside.update(range(slot, slot + nr))
            return
        part = data.draw(st.integers(1, nr))
        self.dev.free(slot, part)
        if part < nr:
            self.runs.append((slot + part, nr - part))

    @precondition(lambda self: self.aside)
    @rule(nr=st.integers(1, 100))
    def take_back(self, nr):
        slots = self.dev.first_aside(nr)
        assert len(slots) >= min(nr, len(self.aside))
        self.dev.take_back(len(slots))
        self.aside -= set(slots)

    @invariant()
    def conserves(self):
        if not hasattr(self, "dev"):
            return
        self.dev.check()
        assert self.dev.used == sum(nr for _, nr in self.runs)
        assert self.dev.aside == len(self.aside)


class CrowdedSlots(Slots):
    """The same on a small full device, where bounds and noted runs matter."""

    @initialize()
    def start(self):
        super().start(40)
        self.runs = [(self.dev.alloc(1), 1) for _ in range(40)]

    @rule(nr=st.integers(1, 5))
    def alloc_few(self, nr):
        self.alloc(nr)


TestSlots = Slots.TestCase
TestSlots.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestCrowdedSlots = CrowdedSlots.TestCase
TestCrowdedSlots.settings = settings(max_examples=80, stateful_step_count=60, deadline=None)
