"""What a timeline makes of looks at a memory."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from reclaimactors.cpu import clock
from reclaimactors.lab.odd import ODD, odd_of
from reclaimactors.lab.timeline import COUNTERS, LOOP, NR_BUCKETS, Timeline
from reclaimactors.mm.vmstat import Vmstat


class FakeMemory:
    def __init__(self) -> None:
        self.vmstat = dict.fromkeys(COUNTERS, 5)
        self.free, self.early_s, self.stalled_us = 100, 0.25, 10**6

    def usage(self):
        return SimpleNamespace(free=self.free, oldest_undelivered_s=self.early_s)

    def pressure(self):
        total = SimpleNamespace(total=self.stalled_us)
        return SimpleNamespace(some=total, full=total)


def test_what_happens_between_looks_is_added_to_the_bucket_of_the_second():
    now, memory = 7.0, FakeMemory()
    with clock.modelled(lambda: now):
        timeline = Timeline(float(NR_BUCKETS))  # a bucket is a second
        timeline.begin(memory)
        for at, free, scanned in ((7.4, 90, 1), (7.8, 50, 2), (9.5, 70, 4), (500.0, 60, 8)):
            now, memory.free = at, free
            memory.vmstat["pgscan_kswapd"] += scanned
            memory.stalled_us += 100_000
            timeline.look(memory)
        timeline.end()
    first, second, third, *_, last = timeline.buckets
    assert (first.looks, first.least_free, first.most_free) == (2, 50, 90)
    assert first.counted["pgscan_kswapd"] == 3, "what was before the round does not count"
    assert first.seconds == pytest.approx(0.8)
    assert first.some_s == first.full_s == pytest.approx(0.2)
    assert (first.early_s, second.early_s) == (0.25, 0.0)
    assert (second.looks, second.seconds) == (0, 0.0), "the loop was held"
    assert third.counted["pgscan_kswapd"] == 4
    assert last.counted["pgscan_kswapd"] == 8, "what comes too late is in the last"


def test_the_event_loop_is_seen_to_run():
    memory, timeline = FakeMemory(), Timeline(10.0)
    timeline.begin(memory)
    ends = clock.thread_time() + 0.02
    while clock.thread_time() < ends:
        pass
    timeline.look(memory)
    timeline.end()
    assert timeline.actors[0] == LOOP
    assert timeline.buckets[0].ran_s[LOOP] >= 0.01


def test_where_there_is_no_proc_the_loop_is_known_all_the_same(monkeypatch, tmp_path):
    monkeypatch.setattr("reclaimactors.lab.timeline._TASKS", tmp_path / "absent")
    test_the_event_loop_is_seen_to_run()


def test_every_unusual_counter_exists_and_says_what_to_do():
    names = Vmstat()
    for odd in ODD:
        assert {odd.name, *odd.of} <= names.keys()
        assert odd.means.endswith(".")
        assert odd.do.endswith(".")
    assert len({odd.name for odd in ODD}) == len(ODD)


def test_what_is_normal_is_not_unusual():
    vmstat = Vmstat()
    assert list(odd_of({"one": vmstat})) == []
    vmstat["pgsteal_anon"], vmstat["workingset_refault_anon"] = 100, 50
    assert list(odd_of({"one": vmstat})) == []
    other = Vmstat()
    other["pgsteal_anon"], other["workingset_refault_anon"] = 100, 51
    ((odd, seen),) = odd_of({"one": vmstat, "other": other})
    assert (odd.name, seen) == ("workingset_refault_anon", {"other": "51 (51% of pgsteal_anon)"})
