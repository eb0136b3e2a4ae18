"""A comparison as a trace for Perfetto (https://ui.perfetto.dev): what a report's timeline shows.

Each topology is a process. It has a track for its rounds, one for each actor, with a slice for as
long as that was at work, and one for each counter. The package `perfetto`, an extra, writes it.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from reclaimactors.errors import PluginError
from reclaimactors.lab.timeline import NR_BUCKETS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from reclaimactors.lab.compare import Comparison
    from reclaimactors.lab.timeline import Bucket, Timeline

__all__ = ["as_trace", "need_perfetto"]

SEQUENCE = 1  # of packets: there is one
AT_WORK = 0.02  # of a bucket: who ran for less was not at work in it

_COUNTERS: dict[str, tuple[str, Callable[[Bucket], float]]] = {
    "free memory, least": ("bytes", lambda bucket: bucket.least_free),
    "kswapd scans": ("pages/s", lambda bucket: _rate(bucket, "pgscan_kswapd")),
    "callers scan": ("pages/s", lambda bucket: _rate(bucket, "pgscan_direct")),
    "given to workers": ("pages/s", lambda bucket: _rate(bucket, "kcompressd_queued")),
    "stalled, some": ("%", lambda bucket: 100 * _share(bucket, bucket.some_s)),
    "stalled, full": ("%", lambda bucket: 100 * _share(bucket, bucket.full_s)),
}


def need_perfetto() -> None:
    """Import what writes a trace.

    Raises:
        PluginError: if it is not installed.
    """
    try:
        import_module("perfetto.trace_builder.proto_builder")
    except ImportError as exc:
        msg = 'a trace takes the package perfetto: pip install "reclaimactors[perfetto]"'
        raise PluginError(msg) from exc


def as_trace(comparison: Comparison) -> bytes:
    """Return the trace of the rounds that have a timeline."""
    trace = _Trace()
    timelines = [
        (name, number, measured.timeline)
        for name, rounds in comparison.rounds.items()
        for number, measured in enumerate(rounds, 1)
        if measured.timeline is not None
    ]
    starts = min((timeline.began for _, _, timeline in timelines), default=0.0)
    processes = {name: trace.process(name, pid) for pid, name in enumerate(comparison.rounds, 1)}
    for name, number, timeline in timelines:
        process = processes[name]
        began, width = timeline.began - starts, timeline.seconds / NR_BUCKETS
        rounds = process.track("rounds")
        trace.slice(rounds, f"round {number}", began, began + timeline.seconds)
        for actor, at_work in _actors(timeline):
            track = process.track(actor)
            for first, after in _runs([at_work(bucket) for bucket in timeline.buckets]):
                trace.slice(track, "at work", began + first * width, began + after * width)
        for counter, (unit, value) in _COUNTERS.items():
            track = process.track(counter, unit=unit)
            for nr, bucket in enumerate(timeline.buckets):
                if bucket.looks:
                    trace.count(track, began + nr * width, value(bucket))
    return trace.serialize()


def _actors(timeline: Timeline) -> Iterator[tuple[str, Callable[[Bucket], bool]]]:
    for name in timeline.actors:
        yield f"{name} on a CPU", _ran(name)
    yield "kswapd", lambda bucket: bucket.counted["pgscan_kswapd"] > 0
    yield "direct reclaim", lambda bucket: bucket.counted["pgscan_direct"] > 0
    yield "callers stalled", lambda bucket: _share(bucket, bucket.some_s) > AT_WORK


def _ran(name: str) -> Callable[[Bucket], bool]:
    return lambda bucket: _share(bucket, bucket.ran_s.get(name, 0.0)) > AT_WORK


def _runs(at_work: list[bool]) -> Iterator[tuple[int, int]]:
    """Yield (first, last + 1) of the buckets in a row in which somebody was at work."""
    first = None
    for number, works in enumerate([*at_work, False]):
        if works and first is None:
            first = number
        elif not works and first is not None:
            yield first, number
            first = None


def _share(bucket: Bucket, seconds: float) -> float:
    return seconds / bucket.seconds if bucket.seconds else 0.0


def _rate(bucket: Bucket, name: str) -> float:
    return _share(bucket, bucket.counted[name])


class _Trace:
    """Packets of Perfetto's protobuf."""

    def __init__(self) -> None:
        need_perfetto()
        self._builder: Any = import_module(
            "perfetto.trace_builder.proto_builder"
        ).TraceProtoBuilder()
        self._event: Any = import_module(
            "perfetto.protos.perfetto.trace.perfetto_trace_pb2"
        ).TrackEvent
        self._tracks = 0

    def process(self, name: str, pid: int) -> _Process:
        """Return a process, whose tracks are together."""
        descriptor = self.describe()
        descriptor.process.pid = pid
        descriptor.process.process_name = name
        return _Process(self, descriptor.uuid)

    def describe(self) -> Any:
        """Return the descriptor of a new track."""
        self._tracks += 1
        descriptor = self._builder.add_packet().track_descriptor
        descriptor.uuid = self._tracks
        return descriptor

    def slice(self, track: int, name: str, begins: float, ends: float) -> None:
        """Add something that lasts, in seconds."""
        self._add(track, begins, self._event.TYPE_SLICE_BEGIN).name = name
        self._add(track, ends, self._event.TYPE_SLICE_END)

    def count(self, track: int, at: float, value: float) -> None:
        """Add a value of a counter."""
        self._add(track, at, self._event.TYPE_COUNTER).double_counter_value = value

    def _add(self, track: int, at: float, kind: int) -> Any:
        packet = self._builder.add_packet()
        packet.timestamp = round(at * 1e9)
        packet.trusted_packet_sequence_id = SEQUENCE
        packet.track_event.type = kind
        packet.track_event.track_uuid = track
        return packet.track_event

    def serialize(self) -> bytes:
        """Return the bytes of the file."""
        written: bytes = self._builder.serialize()
        return written


class _Process:
    """One topology, and its tracks by name."""

    def __init__(self, trace: _Trace, uuid: int) -> None:
        self._trace = trace
        self._uuid = uuid
        self._tracks: dict[str, int] = {}

    def track(self, name: str, *, unit: str = "") -> int:
        """Return the track of that name; with a unit it is a counter's."""
        if name not in self._tracks:
            descriptor = self._trace.describe()
            descriptor.parent_uuid = self._uuid
            descriptor.name = name
            if unit:
                descriptor.counter.unit_name = unit
            self._tracks[name] = descriptor.uuid
        return self._tracks[name]
