from __future__ import annotations

import json
from contextlib import asynccontextmanager
from types import SimpleNamespace

import attrs
import pytest

from reclaimactors.errors import BackendError, OutOfMemory
from reclaimactors.lab import run
from reclaimactors.lab.compare import Comparison
from reclaimactors.lab.measure import Measurement
from reclaimactors.lab.run import Load, RunFailed, machine, run_topology
from reclaimactors.topology.spec import SwapSpec

FIELDS = {
    "topology", "workload", "seconds", "input_pages", "vmstat", "pgsteal_anon_per_s",
    "freed_mib_per_s", "puts_per_s", "allocstall", "stall_ms", "loop_lag_ms", "fault_us", "cpu_s",
    "workers_cpu_s", "cpus", "rss_bytes", "compression_ratio", "same_filled_share",
    "bare_pages_per_s", "efficiency",
}  # fmt: skip


def fake(**options) -> SimpleNamespace:
    """A topology that the fixture `opened` builds a fake memory of."""
    compress = SimpleNamespace(compressor="lz4")
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
    comparison = Comparison(topologies, Load(source), 3.0, lambda *now: begun.append(now))
    await comparison.run()
    assert [topology for topology, _ in opened] == [*topologies.values()] * 3
    assert begun == [(i, 6, "ab"[i % 2]) for i in range(6)]
    assert [result.topology for result in comparison.results()] == ["a", "b"]
    assert " stole " in comparison.sentence() or "do not differ" in comparison.sentence()


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


def rounds(*stolen: int) -> list[Measurement]:
    made = [Measurement(seconds=1.0, finished=True) for _ in stolen]
    for measured, nr in zip(made, stolen, strict=True):
        measured.vmstat.update(pgsteal_anon=nr)
    return made


@pytest.mark.parametrize(
    ("a", "b", "says"),
    [
        ((100, 100), (200, 220), "b stole 2.10 x what a did (210 against 100 pages/s; 2.00 to"),
        ((200, 220), (100, 100), "a stole 2.10 x what b did"),
        ((100, 120), (110, 115), "b and a do not differ by more than their rounds do"),
        ((100,), (200,), "in one round, which is too few"),
        ((0, 0), (200, 200), "a, which reclaimed nothing"),
        ((0, 0), (0, 0), "Nothing was reclaimed"),
        ((100,), (), "a stole 100 pages/s."),
    ],
)
def test_the_sentence_says_who_won_and_if_rounds_agree(source, a, b, says):
    comparison = Comparison({}, Load(source), 1.0)
    comparison.rounds.update(a=rounds(*a), b=rounds(*b))
    assert says in comparison.sentence()


def test_each_is_held_against_the_first_and_the_third_against_the_second(source):
    comparison = Comparison({}, Load(source), 1.0)
    comparison.rounds.update(a=rounds(1, 1), b=rounds(2, 2), c=rounds(3, 3), d=rounds(1, 2))
    lines = comparison.sentence().splitlines()
    assert [line.partition(". ")[0].partition(" (")[0] for line in lines] == [
        "b against a: b stole 2.00 x what a did",
        "c against a: c stole 3.00 x what a did",
        "c against b: c stole 1.50 x what b did",
        "d against a: d and a do not differ by more than their rounds do",
    ]


def test_what_callers_felt_is_said_in_the_order_of_the_names(source):
    comparison = Comparison({}, Load(source), 1.0)
    comparison.rounds.update(a=rounds(2), b=rounds(1))
    comparison.rounds["a"][0].vmstat.update(allocstall_normal=7)
    assert comparison.sentence().startswith("b against a: a stole 2.00 x")
    assert comparison.sentence().endswith("allocstall 0 against 7.")


def test_what_was_not_finished_is_compared_with_nothing(source):
    comparison = Comparison({}, Load(source), 1.0)
    comparison.rounds.update(a=rounds(1, 1), b=rounds(5, 5), c=[Measurement(seconds=0.1)])
    assert comparison.unfinished() == ["c"]
    assert [result.topology for result in comparison.results()] == ["a", "b", "c"]
    assert comparison.sentence().startswith("b against a: b stole 5.00 x")
    assert "c" not in comparison.sentence().split()


async def test_a_round_that_came_to_its_end_is_finished(opened, source):
    comparison = Comparison({"a": fake(), "liar": fake(corrupt=3)}, Load(source), 0.1)
    with pytest.raises(RunFailed):
        await comparison.run()
    assert comparison.unfinished() == ["liar"]
