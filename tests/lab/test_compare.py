from __future__ import annotations

import json
from contextlib import asynccontextmanager
from types import SimpleNamespace

import attrs
import pytest

from reclaimactors.cpu import clock
from reclaimactors.errors import BackendError, OutOfMemory
from reclaimactors.lab import run
from reclaimactors.lab.compare import Comparison
from reclaimactors.lab.measure import Measurement
from reclaimactors.lab.run import Load, RunFailed, machine, run_topology
from reclaimactors.topology.spec import SwapSpec

FIELDS = {
    "topology", "workload", "seconds", "input_pages", "vmstat", "pgsteal_anon_per_s",
    "refaults_per_s", "freed_mib_per_s", "ops_per_s", "puts_per_s", "gets_per_s", "allocstall",
    "psi", "stall_ms", "late_ms", "in_time_per_s", "ramp", "loop_lag_ms", "fault_us",
    "in_loop_percent", "cpu_s", "workers_cpu_s", "cpus", "rss_bytes", "compression_ratio",
    "same_filled_share", "bare_pages_per_s", "efficiency",
}  # fmt: skip


def fake(**options) -> SimpleNamespace:
    """A topology that the fixture `opened` builds a fake memory of."""
    compress = SimpleNamespace(compressor="lz4", mode="kcompressd", offload="process")
    return SimpleNamespace(options=options, compress=compress, swap=(SwapSpec(),))


@pytest.fixture
def opened(monkeypatch, make_memory):
    """Every memory that a run opens is a fake one."""
    memories = []

    @asynccontextmanager
    async def open_memory(topology):
        if isinstance(topology, Exception):
            raise topology
        memories.append((topology, make_memory(**topology.options)))
        yield memories[-1][1]

    monkeypatch.setattr(run, "open_memory", open_memory)
    compressor = SimpleNamespace(compress=lambda page: page[:1024])
    monkeypatch.setattr(run.registry, "build", lambda kind, spec: compressor)
    monkeypatch.setattr(run, "BARE_S", 0.001)
    return memories


async def test_a_result_has_the_fields_of_the_contract(opened, source):
    result = attrs.asdict(await run_topology(fake(), Load(source), seconds=0.05, name="fake"))
    assert set(result) == FIELDS
    assert set(result["stall_ms"]) == {"total", "p50", "p99", "max"}
    assert set(result["loop_lag_ms"]) == {"p50", "p99", "max"}
    assert set(result["fault_us"]) == {"p50", "p99"}
    assert set(result["rss_bytes"]) == {"start", "peak"}
    assert (result["topology"], result["input_pages"]) == ("fake", 40)
    assert result["compression_ratio"] == 4.0
    assert result["vmstat"]["pgsteal_anon"] > 0
    assert result["bare_pages_per_s"] > 0
    assert json.loads(json.dumps({"machine": machine(), "results": [result]}))


async def test_rounds_are_interleaved(opened, source):
    topologies = {"a": fake(budget=4096), "b": fake(budget=8192)}
    begun = []
    notes = lambda *now: begun.append(now)  # noqa: E731
    comparison = Comparison(topologies, Load(source), 0.06, 3, notes)
    await comparison.run()
    assert [topologies[name] for name in "abbaab"] == [topology for topology, _ in opened]
    assert begun == [(i, 6, "abbaab"[i]) for i in range(6)]
    assert [result.topology for result in comparison.results()] == ["a", "b"]
    assert len(comparison.figures_of("a")) == 3
    assert comparison.sentence().startswith("Not enough rounds to tell a difference from chance: 3")


async def test_the_limit_of_the_first_is_measured_once_and_all_get_the_same_load(
    opened, source, monkeypatch
):
    monkeypatch.setattr(run, "LIMIT_S", 0.01)
    topologies = {"a": fake(), "b": fake()}
    comparison = Comparison(topologies, Load(source, "launch", limit=0.0), 0.4, 2)
    await comparison.run()
    assert [topologies[name] for name in "aabba"] == [topology for topology, _ in opened]
    assert comparison.load.limit > 0
    for result in comparison.results():
        assert result.late_ms.max > 0
        assert result.ops_per_s > 0


def test_where_nothing_differs_another_workload_is_named(source):
    said = compared(source, a=rounds(*ALIKE), b=rounds(*ALIKE)).sentence()
    assert said.splitlines()[-1].startswith("Another workload may tell them apart: --workload ")


@pytest.mark.parametrize(("seconds", "nr"), [(20.0, 8), (4.0, 1), (400.0, 12)])
def test_there_are_as_many_rounds_as_there_is_time_for(source, seconds, nr):
    topologies = {name: fake() for name in "abc"}
    assert Comparison(topologies, Load(source), seconds)._rounds_in_time() == nr


@pytest.mark.parametrize(
    ("round_s", "nr"),
    [(2.0, 6), (2.6, 5), (3.2, 5), (5.0, 4), (30.0, 1)],
)
async def test_a_slow_machine_runs_as_many_rounds_as_tell_a_difference(
    source, monkeypatch, round_s, nr
):
    """Four topologies in 20 s: 55 s are the aim, and 80 s the end."""
    now = 0.0

    async def measure(_topology, _load, _seconds, measured):
        nonlocal now
        now += round_s
        measured.finished = True

    monkeypatch.setattr("reclaimactors.lab.compare.measure_round", measure)
    comparison = Comparison({name: fake() for name in "abcd"}, Load(source), 20.0)
    with clock.modelled(lambda: now):
        await comparison.run()
    assert {len(rounds) for rounds in comparison.rounds.values()} == {nr}


async def test_a_value_that_differs_fails_the_run_and_names_the_topology(opened, source):
    comparison = Comparison({"liar": fake(corrupt=3)}, Load(source), 0.1)
    with pytest.raises(RunFailed, match="topology liar: key 3 "):
        await comparison.run()


async def test_running_out_of_memory_is_a_failed_run(opened, source):
    full = fake(full=OutOfMemory("nothing more can be freed"))
    with pytest.raises(RunFailed, match=r"topology small: out of memory .*: nothing more"):
        await Comparison({"small": full}, Load(source), 0.1).run()


async def test_what_cannot_be_opened_is_no_failed_run(opened, source):
    with pytest.raises(BackendError, match="no room"):
        await Comparison({"a": BackendError("no room")}, Load(source), 0.1).run()


def rounds(*stolen: int, **vmstat: int) -> list[Measurement]:
    made = [Measurement(seconds=1.0, puts=1000, finished=True) for _ in stolen]
    for measured, nr in zip(made, stolen, strict=True):
        measured.vmstat.update(pgsteal_anon=nr, **vmstat)
    return made


def compared(source, **each: list[Measurement]) -> Comparison:
    comparison = Comparison({}, Load(source), 1.0)
    comparison.rounds.update(each)
    return comparison


ALIKE = (100, 103, 98, 101)


@pytest.mark.parametrize(
    ("a", "b", "says"),
    [
        (ALIKE, (200, 203, 198, 201), "b against a: more pgsteal_anon/s (200 against 100)."),
        (ALIKE, (50, 53, 48, 51), "b against a: fewer pgsteal_anon/s (50 against 100)."),
        (ALIKE, (99, 104, 97, 102), "they do not differ by more than their 4 rounds do (1,000 "),
        (ALIKE[:3], (200, 203, 198), "Not enough rounds to tell a difference from chance: 3, and"),
        ((0, 0), (0, 0), "Nothing was reclaimed"),
        ((100,), (), "a stole 100 pages/s."),
    ],
)
def test_the_sentence_says_who_differs_and_if_rounds_agree(source, a, b, says):
    assert says in compared(source, a=rounds(*a), b=rounds(*b)).sentence()


def test_nothing_measured_says_so(source):
    assert compared(source).sentence() == "Nothing was measured."


def test_each_is_held_against_the_first_and_the_third_against_the_second(source):
    comparison = compared(source, **{name: rounds(*range(9, 18)) for name in "abcd"})
    lines = comparison.sentence().splitlines()
    assert [line.partition(":")[0] for line in lines[:4]] == [
        "b against a",
        "c against a",
        "c against b",
        "d against a",
    ]


def test_more_stolen_pages_that_come_back_are_no_gain(source):
    a, b = rounds(*ALIKE, workingset_refault_anon=10), rounds(*[nr * 2 for nr in ALIKE])
    for nr, measured in enumerate(b):
        measured.vmstat["workingset_refault_anon"] = 90 + nr
    (verdict,) = compared(source, a=a, b=b).verdicts()
    assert [(each.figure.name, each.better) for each in verdict.differences] == [
        ("refaults/s", 0),
        ("pgsteal_anon/s", 0),
    ]
    assert verdict.sentence == (
        "b against a: more refaults/s (92 against 10) and pgsteal_anon/s (201 against 100);"
        " of what was stolen 45.5% came back, against 10.0%."
    )
    assert "better" not in verdict.sentence


def test_what_callers_felt_is_better_or_worse(source):
    a, b = rounds(*ALIKE), rounds(*ALIKE)
    for nr, measured in enumerate(b):
        measured.puts = 2000 + nr
        measured.lag.add(0.020 + nr / 1000)
        measured.psi_some_s = 0.5
    for measured in a:
        measured.lag.add(0.001)
        measured.psi_some_s = 0.1
    (verdict,) = compared(source, a=a, b=b).verdicts()
    assert verdict.sentence == (
        "b against a: better in ops/s (2,002 against 1,000);"
        " worse in PSI some (50.0 against 10.0 %) and loop lag p99 (23.00 against 1.00 ms)."
    )
    said = verdict.as_dict()
    assert said["differs"]["ops/s"] | {"chance": 0} == {
        "topology": 2001.5, "against": 1000.0, "better": True, "chance": 0,
    }  # fmt: skip
    assert (said["rounds"], said["enough_rounds"]) == (4, True)


def test_what_was_not_finished_is_compared_with_nothing(source):
    stopped = [Measurement(seconds=0.1)]
    comparison = compared(source, a=rounds(*ALIKE), b=rounds(*ALIKE), c=stopped)
    assert comparison.unfinished() == ["c"]
    assert [result.topology for result in comparison.results()] == ["a", "b", "c"]
    assert [verdict.one for verdict in comparison.verdicts()] == ["b"]


async def test_a_round_that_came_to_its_end_is_finished(opened, source):
    comparison = Comparison({"a": fake(), "liar": fake(corrupt=3)}, Load(source), 0.1)
    with pytest.raises(RunFailed):
        await comparison.run()
    assert comparison.unfinished() == ["liar"]


def test_why_callers_wait_less_is_said_where_counters_show_it(source):
    alone, queue = rounds(*ALIKE), rounds(*ALIKE, kcompressd_queued=90)
    for nr, (of_alone, of_queue) in enumerate(zip(alone, queue, strict=True)):
        of_alone.psi_some_s, of_queue.psi_some_s = 0.09 + nr / 1000, 0.02 + nr / 1000
    (verdict,) = compared(source, alone=alone, queue=queue).verdicts()
    why = "in queue kswapd goes on looking for cold pages while workers compress, in alone it waits"
    assert verdict.why.startswith(why)
    assert verdict.sentence.endswith(f"{verdict.why}.")
    (verdict,) = compared(source, queue=queue, alone=alone).verdicts()
    assert verdict.why.startswith(why), "whoever is named first"
    for of_alone, of_queue in zip(alone, queue, strict=True):
        of_alone.psi_some_s, of_queue.psi_some_s = of_queue.psi_some_s, of_alone.psi_some_s
    (verdict,) = compared(source, alone=alone, queue=queue).verdicts()
    assert verdict.differences
    assert verdict.why == "", "a queue that makes them wait longer is not explained by that"


def test_why_the_event_loop_reclaims_more_is_what_it_compresses_itself(source):
    queue, inline = rounds(*ALIKE, kcompressd_queued=90), rounds(*ALIKE)
    for nr, (of_queue, of_inline) in enumerate(zip(queue, inline, strict=True)):
        of_queue.psi_full_s, of_inline.psi_full_s = 0.02 + nr / 1000, 0.2 + nr / 1000
        of_inline.kswapd_in_loop = True
    (verdict,) = compared(source, queue=queue, inline=inline).verdicts()
    assert verdict.why == ("the event loop compressed 100 % of kswapd's pages itself, against 0 %")
