"""Replaying: what a trace does to a memory, which budget is the right size, and the command."""

from __future__ import annotations

import json
from array import array

import pytest

from reclaimactors import cli
from reclaimactors.lab.replay import Replayed, budgets_for, need_of, replay, right_size
from reclaimactors.lab.traces import DELETE, GET, PUT, Trace
from reclaimactors.mm.memcg import FOLIO_OVERHEAD, KEY_OVERHEAD
from reclaimactors.topology import resolve
from reclaimactors.units import KIB, MIB

OVERHEAD = KEY_OVERHEAD + FOLIO_OVERHEAD


def trace_of(*requests: tuple[int, int, int], seconds: float = 0.0) -> Trace:
    ops, keys, sizes = zip(*requests, strict=True)
    return Trace(bytes(ops), array("Q", keys), array("Q", sizes), len({*keys}), seconds, whole=True)


def tried(budget: int, **more) -> Replayed:
    figures = {
        "seconds": 1.0, "requests": 9, "reads": 9, "hits": 0.9, "from_pool": 0.1, "from_store": 0.0,
        "fault_p50_us": 1.0, "fault_p99_us": 2.0, "waited": 0, "stalled": 0.0, "refused": 0,
    }  # fmt: skip
    return Replayed(budget=budget, **figures | more)


def test_need_is_the_most_that_is_there_at_once():
    trace = trace_of((PUT, 0, 100), (PUT, 1, 50), (PUT, 0, 10), (DELETE, 1, 0), (GET, 2, 70),
                     (GET, 3, 0), (GET, 0, 999))  # fmt: skip
    assert need_of(trace, 4096) == 150 + 2 * OVERHEAD
    assert need_of(trace_of((PUT, 0, 5000)), 4096) == 5000 + KEY_OVERHEAD + 2 * FOLIO_OVERHEAD


def test_budgets_are_shares_of_the_need_and_hold_the_largest_value():
    trace = trace_of(*((PUT, key, 64 * KIB) for key in range(160)))
    budgets = budgets_for(trace, resolve("kcompressd"))
    need = need_of(trace, 256 * KIB)
    assert budgets[0] < need / 6
    assert budgets[-1] > need
    assert min(budgets_for(trace_of((PUT, 0, MIB)), resolve("kcompressd"))) == 2 * MIB


def test_the_right_size_is_the_smallest_with_which_hardly_anybody_waits():
    slow, held_up, full = tried(1, from_store=0.02), tried(2, stalled=0.02), tried(3, refused=1)
    right, larger = tried(4), tried(5)
    assert right_size([larger, full, right, held_up, slow]) is right
    assert right_size([slow, held_up, full]) is None
    assert right_size([]) is None


async def test_a_trace_does_what_it_says(source):
    trace = trace_of(
        (GET, 0, 0),  # it found nothing, and finds nothing
        (GET, 1, 5000),  # it found something, which is put by who asks first
        (GET, 1, 5000),
        (PUT, 2, 300_000),  # larger than a folio, and than the input
        (GET, 2, 300_000),
        (PUT, 2, 7),
        (GET, 2, 0),
        (DELETE, 2, 0),
        (DELETE, 2, 0),
        (GET, 2, 0),
        (PUT, 3, 2 * MIB),  # never fits
        seconds=100.0,
    )
    topology = resolve("kswapd_only_inline", budget=MIB, swap=[])
    seen: list[tuple[int, int]] = []
    found = await replay(trace, topology, source, lambda *step: seen.append(step))
    assert (found.budget, found.requests, found.reads, found.refused) == (MIB, 11, 3, 1)
    assert (found.hits, found.from_pool, found.from_store, found.stalled) == (1.0, 0.0, 0.0, 0.0)
    assert seen == [(0, 11)]


async def test_what_does_not_fit_is_read_back(source):
    requests = [(op, key, 4096) for op in (PUT, GET, GET) for key in range(200)]
    small = resolve("kswapd_only_inline", budget=512 * KIB, zswap={"max_pool_percent": 80}, swap=[])
    found = await replay(trace_of(*requests), small, source)
    assert found.hits + found.from_pool == pytest.approx(1.0)
    assert found.from_pool > 0.1
    assert found.fault_p50_us > 0


CSV = "key,op,size,op_count,key_size,time_us\n" + "".join(
    f"{nr % 50:016x},{'GET' if nr > 50 else 'SET'},4000,1,16,{nr * 1000}\n" for nr in range(200)
)


def test_the_command_says_the_right_size(tmp_path, capsys):
    path = tmp_path / "requests.csv"
    path.write_text(CSV)
    args = ["replay", str(path), "--topology", "kswapd_only_inline", "--budgets", "1MiB, 2MiB"]
    assert cli._status(args) == 0
    said = capsys.readouterr().out
    assert said.startswith(
        "The right size is 1MiB: the smallest tried with at most 1% of the reads"
    )
    assert "200 requests of" in said
    assert cli._status([*args, "--json", "--requests", "100"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert (facts["requests"], facts["keys"], facts["whole"]) == (100, 50, False)
    assert facts["right_size_bytes"] == MIB
    assert [each["budget"] for each in facts["tried"]] == [MIB, 2 * MIB]


@pytest.mark.parametrize(
    ("text", "args", "says"),
    [
        (None, [], "cannot read trace"),
        (CSV[:-30], [], "which is the last and is cut"),
        (CSV, ["--budgets", "12XB"], "12XB"),
        (CSV, ["--budgets", "1PiB"], "this machine has"),
        (CSV, ["--columns", "key=1"], "columns key are not known"),
        (CSV, ["--topology", "kcompresd"], "kcompressd"),
        (CSV, ["--input", "/absent"], "/absent"),
    ],
)
def test_what_a_user_may_mistype_is_one_line_and_status_2(tmp_path, capsys, text, args, says):
    path = tmp_path / "requests.csv"
    if text is not None:
        path.write_text(text)
    assert cli._status(["replay", str(path), *args]) == 2
    said = capsys.readouterr()
    assert (said.out, said.err.count("\n")) == ("", 1)
    assert says in said.err
