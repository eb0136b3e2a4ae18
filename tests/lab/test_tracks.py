"""The trace for Perfetto, read back with its own protobuf."""

from __future__ import annotations

import sys
from collections import Counter

import pytest

from reclaimactors import cli
from reclaimactors.lab.compare import Comparison
from reclaimactors.lab.measure import Measurement
from reclaimactors.lab.run import Load
from reclaimactors.lab.timeline import LOOP, NR_BUCKETS, Timeline
from reclaimactors.lab.tracks import as_trace


@pytest.fixture
def pb2():
    pytest.importorskip("perfetto")
    from perfetto.protos.perfetto.trace import perfetto_trace_pb2

    return perfetto_trace_pb2


def timeline(began: float) -> Timeline:
    made = Timeline(float(NR_BUCKETS))  # a bucket is a second
    made.began = began
    for number, bucket in enumerate(made.buckets):
        bucket.seconds, bucket.looks, bucket.least_free = 1.0, 1, 100 + number
        bucket.ran_s = {LOOP: 0.5, "worker 1": 0.3 if 10 <= number < 15 else 0.01}
        bucket.counted = Counter(pgscan_kswapd=number % 2)
    return made


def test_each_topology_is_a_process_with_a_track_for_each_actor_and_counter(pb2, source):
    comparison = Comparison({}, Load(source), 1.0)
    comparison.rounds = {
        "a": [Measurement(timeline=timeline(1000.0)), Measurement(timeline=timeline(1300.0))],
        "b": [Measurement(timeline=timeline(1100.0)), Measurement()],
    }
    trace = pb2.Trace()
    trace.ParseFromString(as_trace(comparison))
    tracks = {
        packet.track_descriptor.uuid: packet.track_descriptor
        for packet in trace.packet
        if packet.HasField("track_descriptor")
    }
    processes = {
        track.process.process_name: uuid for uuid, track in tracks.items() if track.process.pid
    }
    assert list(processes) == ["a", "b"]
    of_b = {track.name: uuid for uuid, track in tracks.items()
            if track.parent_uuid == processes["b"]}  # fmt: skip
    assert {"rounds", "event loop on a CPU", "worker 1 on a CPU", "kswapd", "direct reclaim",
            "callers stalled", "free memory, least"} <= set(of_b)  # fmt: skip
    events = [
        (packet.timestamp / 1e9, packet.track_event)
        for packet in trace.packet
        if packet.HasField("track_event")
    ]

    def on(name: str) -> list[float]:
        return [at for at, event in events if event.track_uuid == of_b[name]]

    assert on("rounds") == [100.0, 100.0 + NR_BUCKETS]
    assert on("event loop on a CPU") == [100.0, 100.0 + NR_BUCKETS]
    assert on("worker 1 on a CPU") == [110.0, 115.0]
    assert len(on("kswapd")) == NR_BUCKETS, "begun and ended in every other bucket"
    assert on("direct reclaim") == []
    free = [event.double_counter_value for _, event in events
            if event.track_uuid == of_b["free memory, least"]]  # fmt: skip
    assert free == [100.0 + number for number in range(NR_BUCKETS)]
    assert tracks[of_b["free memory, least"]].counter.unit_name == "bytes"


def test_without_the_package_it_is_refused_before_the_run(monkeypatch, tmp_path, capsys):
    monkeypatch.setitem(sys.modules, "perfetto.trace_builder.proto_builder", None)
    status = cli._status(["compare", "--trace", str(tmp_path / "trace.pb")])
    said = capsys.readouterr()
    assert (status, said.out, said.err.count("\n")) == (2, "", 1)
    assert 'pip install "reclaimactors[perfetto]"' in said.err


def test_the_command_writes_it(pb2, tmp_path, capsys):
    path = tmp_path / "trace.pb"
    args = ["run", "kswapd_only_inline", "--budget", "1MiB", "--seconds", "0.2", "--trace"]
    assert cli._status([*args, str(path)]) == 0
    assert "ops/s" in capsys.readouterr().out
    trace = pb2.Trace()
    trace.ParseFromString(path.read_bytes())
    assert any(packet.HasField("track_event") for packet in trace.packet)
