from __future__ import annotations

import random
import time

import anyio
import pytest

from reclaimactors.lab import measure
from reclaimactors.lab.histogram import Histogram
from reclaimactors.lab.measure import Measurement, cpu_times, rss_bytes
from reclaimactors.lab.workload import Keys


def test_quantiles_are_within_a_bucket_of_the_truth():
    rng = random.Random(1)
    samples = sorted(rng.expovariate(1000) for _ in range(5000))
    histogram = Histogram()
    for sample in samples:
        histogram.add(sample)
    for share in (0.5, 0.9, 0.99):
        assert histogram.quantile(share) == pytest.approx(samples[int(share * 5000)], rel=0.05)
    assert histogram.max == samples[-1]
    assert histogram.total == pytest.approx(sum(samples))


def test_an_empty_histogram_and_one_of_zeros_answer_zero():
    histogram = Histogram()
    assert histogram.quantile(0.99) == 0.0
    histogram.add(0.0)
    assert (histogram.count, histogram.quantile(0.99), histogram.max) == (1, 0.0, 0.0)


def test_merged_histograms_are_one_histogram_of_all_samples():
    one, two, both = Histogram(), Histogram(), Histogram()
    for i in range(1, 100):
        (one if i % 2 else two).add(i)
        both.add(i)
    one.merge(two)
    assert one.buckets == both.buckets
    assert (one.count, one.total, one.max) == (both.count, both.total, both.max)


async def test_a_stall_is_what_the_memory_says_and_other_puts_count_as_zero(make_memory, source):
    memory, measured = make_memory(), Measurement()
    with measured.measuring(memory):
        keys = Keys(memory, source, memory.budget, 0, measured, lambda: True)
        for key in range(50):
            await keys.put(key)
        await keys.get(3)
        memory.on_stall(0.25)
        memory.stalled_us += 250_000
    assert (measured.puts, measured.gets) == (50, 1)
    assert (measured.stalls.count, measured.stalls.total) == (50, 0.25)
    assert measured.stalls.quantile(0.5) == 0.0
    assert measured.psi_some_s == measured.psi_full_s == 0.25


def test_what_was_counted_until_a_failure_is_kept(make_memory):
    measured, memory = Measurement(), make_memory()

    def fail():
        memory.vmstat["pgsteal_anon"] = 4
        raise RuntimeError

    with pytest.raises(RuntimeError), measured.measuring(memory):
        fail()
    assert measured.vmstat["pgsteal_anon"] == 4
    assert measured.seconds > 0
    assert measured.pgsteal_anon_per_s > 0


def test_rounds_are_summed_but_what_is_held_now_is_not():
    total = Measurement()
    for stored, grown in ((7, 100), (3, 50)):
        measured = Measurement(seconds=1.0, puts=2, rss_start=10, rss_peak=10 + grown)
        measured.vmstat.update(pgsteal_anon=10, stored_pages=stored)
        total.merge(measured)
    assert (total.seconds, total.puts, total.vmstat["pgsteal_anon"]) == (2.0, 4, 20)
    assert total.vmstat["stored_pages"] == 3
    assert (total.rss_start, total.rss_peak) == (10, 110)


async def test_the_ticker_sees_a_loop_that_is_held(make_memory):
    measured = Measurement()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(measured.tick, make_memory())
        while not measured.lag.count:
            await anyio.lowlevel.checkpoint()
        time.sleep(0.05)  # noqa: ASYNC251 - this is the fault
        before = measured.lag.count
        while measured.lag.count == before:
            await anyio.lowlevel.checkpoint()
        tasks.cancel_scope.cancel()
    assert measured.lag.max > 0.02
    assert measured.rss_peak > 0


def test_cpu_and_rss_are_those_of_this_process():
    total_s, workers_s = cpu_times()
    assert total_s > workers_s >= 0
    ballast = bytearray(b"x") * (64 * 2**20)
    assert rss_bytes() > len(ballast)


def test_cpu_of_a_running_child_counts_as_a_workers():
    import subprocess
    import sys

    _, before_s = cpu_times()
    busy = "import time; t = time.process_time()\nwhile time.process_time() < t + .2: pass\n"
    child = subprocess.Popen(
        [sys.executable, "-c", busy + "print('done', flush=True); input()"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    )  # fmt: skip
    with child:
        assert child.stdout.readline() == b"done\n"
        running_s = cpu_times()[1] - before_s
        child.stdin.close()
    ended_s = cpu_times()[1] - before_s
    assert ended_s >= 0.15
    if measure.Path("/proc/self/stat").exists():
        assert running_s >= 0.15
