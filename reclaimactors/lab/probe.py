"""What memory would give if it were reclaimed.

What is zero, alike or a repeated word, and what each compressor makes of it, in units of 4 to
64 KiB. Every page is looked at once; compressors are tried on a sample of whole chunks, evenly
spread, with the rule that reclaim has for what is poor. What a topology would hold of such data is
worked out from that (`topology/capacity.py`).
"""

from __future__ import annotations

from hashlib import blake2b
from itertools import islice
from typing import TYPE_CHECKING

import attrs

from reclaimactors import registry
from reclaimactors.cpu import clock
from reclaimactors.errors import PluginError
from reclaimactors.lab.chunks import CHUNK
from reclaimactors.lab.data import InputError
from reclaimactors.mm.batch import SWAP_CLUSTER_MAX
from reclaimactors.mm.page_io import BLOB, SAME_FILLED, same_filled, squeeze
from reclaimactors.registry import PluginRef
from reclaimactors.topology.capacity import is_outside, keys_that_fit
from reclaimactors.units import KIB, MIB, PAGE_SIZE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from reclaimactors.abc import Compressor
    from reclaimactors.lab.chunks import Source
    from reclaimactors.topology import Topology

__all__ = ["SAMPLE", "UNITS", "Holds", "Pages", "Probed", "Squeezing", "probe"]

UNITS = tuple(nr * KIB for nr in (4, 8, 16, 32, 64))
SAMPLE = 16 * MIB  #: bytes that compressors are tried on, unless told otherwise
MOST_HASHES = 1 << 17  # of pages that are looked for duplicates: some 15 MB


@attrs.frozen
class Pages:
    """Pages of 4 KiB: how many, and how many of them are zero, another repeated word, or alike.

    Attributes:
        duplicates: pages, neither zero nor a repeated word, that are the same as an earlier one;
            of more than `MOST_HASHES` different ones an estimate, from those of some hashes.
    """

    total: int
    zero: int
    same_filled: int
    duplicates: int


@attrs.frozen
class Squeezing:
    """What one compressor makes of the sample in units of one size.

    Attributes:
        unit: bytes that are compressed at a time; a piece that is shorter is one, too.
        ratio: bytes before over bytes after; a repeated word takes none, what is poor all of its.
        poor: the share, 0 to 1, of bytes that stay as they are, because a blob of them would be
            more than 15/16 as large, or the compressor failed.
        in_us, out_us: microseconds to compress, and to decompress, 4 KiB of what is no repeated
            word, and of what became a blob.
        failed: what the compressor raised, once, or "".
    """

    compressor: str
    unit: int
    ratio: float
    poor: float
    in_us: float
    out_us: float
    failed: str = ""


@attrs.frozen
class Holds:
    """How many bytes of such data a topology holds in RAM, as values of `unit` bytes each."""

    unit: int
    compressed: int
    as_they_are: int


@attrs.frozen
class Probed:
    """What was found.

    Attributes:
        source: what was probed, in words.
        sample_bytes: what compressors were tried on.
        squeezed: for each compressor and unit.
        left_out: compressors that cannot be had here, and why.
        topology, compressor, budget: of the topology that `holds` is about.
        holds: what that would hold, for the smallest and the largest unit.
    """

    source: str
    pages: Pages
    sample_bytes: int
    squeezed: Sequence[Squeezing]
    left_out: Mapping[str, str]
    topology: str
    compressor: str
    budget: int
    holds: Sequence[Holds]


def probe(
    source: Source,
    topology: Topology,
    *,
    sample: int = SAMPLE,
    on_step: Callable[[int, int, str], None] = lambda _done, _total, _what: None,
) -> Probed:
    """Look at all of a source once, and try compressors on a sample of it.

    Args:
        source: what is probed.
        topology: whose compressor is tried too, and of which it is said what it would hold.
        sample: bytes that compressors are tried on, at least a chunk.
        on_step: called with (bytes or units done, of so many, what is being done).

    Raises:
        InputError: if the source cannot be read, or is empty by now.
        PluginError: if the topology's compressor cannot be had.
    """
    counted = _Pages()
    chunks = list(_kept(source, sample, counted, on_step))
    if not counted.total:
        msg = f"nothing could be read of {source.name}: it went away meanwhile; try again"
        raise InputError(msg)
    asked = topology.compress.compressor
    compressors, left_out = _compressors(asked)
    tries = [(name, each, unit) for name, each in compressors.items() for unit in UNITS]
    squeezed: list[Squeezing] = []
    for done, (name, compressor, unit) in enumerate(tries):
        on_step(done, len(tries), f"{name} in units of {unit // KIB} KiB")
        squeezed.append(_squeezing(name, compressor, unit, chunks))
    ratios = {each.unit: each.ratio for each in squeezed if each.compressor == _named(asked)}
    return Probed(
        source=source.name,
        pages=counted.result(),
        sample_bytes=sum(map(len, chunks)),
        squeezed=squeezed,
        left_out=left_out,
        topology=topology.name,
        compressor=_named(asked),
        budget=topology.budget,
        holds=[_holds(topology, unit, ratios[unit]) for unit in (UNITS[0], UNITS[-1])],
    )


@attrs.define(eq=False)
class _Pages:
    """Counts pages. Of hashes it keeps those whose last bits are 0, fewer the more there are."""

    total: int = 0
    zero: int = 0
    same_filled: int = 0
    _mask: int = 0
    _seen: dict[int, int] = attrs.field(factory=dict[int, int])

    def add(self, page: bytes) -> None:
        """Count one."""
        self.total += 1
        word = same_filled(page)
        if word is not None:
            self.zero += word == 0
            self.same_filled += word != 0
            return
        value = int.from_bytes(blake2b(page, digest_size=8).digest(), "little")
        if not value & self._mask:
            self._seen[value] = self._seen.get(value, 0) + 1
            while len(self._seen) > MOST_HASHES:
                self._mask = self._mask * 2 + 1
                self._seen = {key: nr for key, nr in self._seen.items() if not key & self._mask}

    def result(self) -> Pages:
        """Return the counts."""
        looked_at = sum(self._seen.values())
        share = 1 - len(self._seen) / looked_at if looked_at else 0.0
        others = self.total - self.zero - self.same_filled
        return Pages(self.total, self.zero, self.same_filled, round(share * others))


def _kept(
    source: Source, sample: int, counted: _Pages, on_step: Callable[[int, int, str], None]
) -> Iterator[bytes]:
    """Count every page, and yield the chunks of a sample."""
    share, done, kept = min(1.0, sample / max(1, source.size)), 0, 0
    for chunk in source.chunks():
        for at in range(0, len(chunk), PAGE_SIZE):
            counted.add(chunk[at : at + PAGE_SIZE])
        done += len(chunk)
        if kept + len(chunk) / 2 <= share * done and kept + len(chunk) <= max(sample, CHUNK):
            kept += len(chunk)
            yield chunk
        if not counted.total % 256 or len(chunk) < CHUNK:
            on_step(done, max(done, source.size), "reading")


def _named(ref: PluginRef) -> str:
    """Return a compressor's name with its options."""
    options = ", ".join(f"{key}={value}" for key, value in ref.options.items())
    return f"{ref.name}({options})" if options else ref.name


def _compressors(asked: PluginRef) -> tuple[dict[str, Compressor], dict[str, str]]:
    """Return compressors by what results call them, and why others cannot be had."""
    found = {_named(asked): registry.build("compressors", asked)}
    left_out: dict[str, str] = {}
    for name, _ in registry.known("compressors"):
        if name in found or name == "null":
            continue
        try:
            found[name] = registry.build("compressors", PluginRef(name))
        except PluginError as exc:
            left_out[name] = str(exc)
    return found, left_out


def _squeezing(name: str, compressor: Compressor, unit: int, chunks: Sequence[bytes]) -> Squeezing:
    before, after, poor, words, blobs, in_s, out_s = 0, 0, 0, 0, 0, 0.0, 0.0
    failed = ""
    for units in islice(_batches(chunks, unit), 1):
        squeeze(compressor, units)  # what is slow only the first time
    for units in _batches(chunks, unit):
        started = clock.perf_counter()
        squeezed = squeeze(compressor, units)
        in_s += clock.perf_counter() - started
        failed = failed or squeezed.why
        started = clock.perf_counter()
        for blob, data in zip(squeezed.blobs, units, strict=True):
            if blob is not None:
                compressor.decompress(blob, len(data))
        out_s += clock.perf_counter() - started
        for kind, blob, data in zip(squeezed.kinds, squeezed.blobs, units, strict=True):
            before += len(data)
            if kind == SAME_FILLED:
                words += len(data)
            elif kind == BLOB and blob is not None:
                blobs += len(data)
                after += len(blob)
            else:
                poor += len(data)
    return Squeezing(
        compressor=name,
        unit=unit,
        ratio=round(before / max(1, after + poor), 3),
        poor=round(poor / before, 4),
        in_us=_us_a_page(in_s, before - words),
        out_us=_us_a_page(out_s, blobs),
        failed=failed,
    )


def _us_a_page(seconds: float, nr_bytes: int) -> float:
    return round(seconds * 1e6 * PAGE_SIZE / nr_bytes, 2) if nr_bytes else 0.0


def _batches(chunks: Sequence[bytes], unit: int) -> Iterator[list[bytes]]:
    """Yield units, as many together as reclaim isolates at a time."""
    units: list[bytes] = []
    for chunk in chunks:
        units += (chunk[at : at + unit] for at in range(0, len(chunk), unit))
        while len(units) >= SWAP_CLUSTER_MAX:
            yield units[:SWAP_CLUSTER_MAX]
            del units[:SWAP_CLUSTER_MAX]
    if units:
        yield units


def _holds(topology: Topology, unit: int, ratio: float) -> Holds:
    in_ram = attrs.evolve(topology, swap=[spec for spec in topology.swap if not is_outside(spec)])
    return Holds(
        unit,
        unit * keys_that_fit(in_ram, unit, ratio),
        unit * keys_that_fit(in_ram, unit, 1),
    )
