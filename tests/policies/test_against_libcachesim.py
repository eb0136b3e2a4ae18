"""sieve and s3fifo against the simulator of those who designed them: same trace, same size.

The policy is driven as the core drives it, with folios of one page, and exactly one is isolated for
each miss once the room is full.
"""

from __future__ import annotations

import importlib.util
import itertools
import random
from pathlib import Path

import pytest

from reclaimactors.policies.s3fifo import S3Fifo
from reclaimactors.policies.sieve import Sieve

libcachesim = pytest.importorskip("libcachesim", reason="has wheels for Linux only")

BENCH = Path(__file__).parents[1] / "bench" / "policies.py"
SHARES = (0.02, 0.1, 0.4)  #: of all keys


def _bench():
    spec = importlib.util.spec_from_file_location("bench_policies", BENCH)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _web():
    """What people asked for on a web shop's product pages: 95,607 reads of 13,756 keys."""
    bench = _bench()
    return bench.read(bench.TRACE)


def _zipf_with_scans():
    """30,000 reads, skewed, and every so often many that are read once."""
    rng = random.Random(1)
    weights = list(itertools.accumulate(1 / (rank + 1) for rank in range(2000)))
    fresh = itertools.count(2000)
    trace = []
    for _ in range(6):
        trace += rng.choices(range(2000), cum_weights=weights, k=4000)
        trace += itertools.islice(fresh, 1000)
    return trace


TRACES = {"web": _web(), "zipf_with_scans": _zipf_with_scans()}


def simulated(cache, trace):
    request, hits = libcachesim.Request(), 0
    request.obj_size = 1
    for key in trace:
        request.obj_id = key
        hits += cache.get(request)
    return hits


@pytest.mark.parametrize("share", SHARES)
@pytest.mark.parametrize("trace", TRACES.values(), ids=TRACES)
@pytest.mark.parametrize(
    ("policy", "peer", "points"),
    [(Sieve, libcachesim.Sieve, 0.0), (S3Fifo, libcachesim.S3FIFO, 0.5)],
)
def test_hit_ratio_is_that_of_the_simulator(policy, peer, points, trace, share):
    size = int(share * len(set(trace)))
    mine = policy()
    ratio = 100 * _bench().replay(mine, trace, size, refaults=True) / len(trace)
    theirs = 100 * simulated(peer(size, hashpower=16), trace) / len(trace)
    assert ratio == pytest.approx(theirs, abs=points), f"{ratio:.2f} and {theirs:.2f} per cent"
    assert 20 < ratio < 90, "a trace that tells nothing"
    mine.check()


@pytest.mark.parametrize(("policy", "peer"), [(Sieve, "Sieve"), (S3Fifo, "S3FIFO")])
def test_others_are_told_apart(policy, peer):
    """What the test above allows is less than what lies between these policies."""
    trace = TRACES["web"]
    size = len(set(trace)) // 10
    ratio = 100 * _bench().replay(policy(), trace, size, refaults=True) / len(trace)
    for other in {"LRU", "FIFO", "Clock", "Sieve", "S3FIFO"} - {peer}:
        theirs = 100 * simulated(getattr(libcachesim, other)(size, hashpower=16), trace)
        assert abs(ratio - theirs / len(trace)) > 0.3, other
