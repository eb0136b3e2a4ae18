"""Probing: what is counted, what compressors make of it, and what cannot be looked at."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys

import pytest

from reclaimactors import cli
from reclaimactors.lab import chunks, probe
from reclaimactors.lab.chunks import Files, Process
from reclaimactors.lab.data import InputError
from reclaimactors.topology import resolve
from reclaimactors.units import KIB, PAGE_SIZE

needs_proc = pytest.mark.skipif(
    not chunks.PROC.joinpath("self", "smaps").exists(), reason="needs Linux's /proc"
)
RNG = random.Random(3)
TEXT = [b"page %05d of text. " % nr * 300 for nr in range(100)]
PAGES = [
    *[bytes(PAGE_SIZE)] * 48,
    *[b"abcdefgh" * (PAGE_SIZE // 8)] * 16,
    *[text[:PAGE_SIZE] for text in TEXT[:40]],
    *[text[:PAGE_SIZE] for text in TEXT[:8]],  # once more
    *[RNG.randbytes(PAGE_SIZE) for _ in range(16)],
]


@pytest.fixture
def a_file(tmp_path):
    path = tmp_path / "values"
    path.write_bytes(b"".join(PAGES))
    return path


def run(capsys, *args: object) -> tuple[int, str, str]:
    status = cli._status(list(map(str, args)))
    said = capsys.readouterr()
    return status, said.out, said.err


def test_pages_are_counted_and_compressors_tried(a_file):
    topology = resolve("kcompressd")
    found = probe.probe(Files.of([a_file]), topology)
    assert found.pages == probe.Pages(total=128, zero=48, same_filled=16, duplicates=8)
    assert found.sample_bytes == a_file.stat().st_size
    names = {each.compressor for each in found.squeezed}
    assert {"lz4", "zlib"} <= names
    assert "null" not in names
    for each in found.squeezed:
        assert each.failed == ""
        # 64 of 128 pages take nothing, 16 stay as they are, and 48 become small
        assert 128 / 26 < each.ratio < 128 / 16
        assert each.poor == 16 / 128
    small, large = found.holds
    assert (small.unit, large.unit) == (4 * KIB, 64 * KIB)
    assert topology.budget < small.compressed < large.compressed
    assert small.as_they_are < large.as_they_are < topology.budget


def test_the_sample_is_bounded_and_evenly_spread(a_file):
    found = probe.probe(Files.of([a_file]), resolve("kcompressd"), sample=128 * KIB)
    assert found.sample_bytes == 128 * KIB  # of 512 KiB
    assert found.pages.total == 128
    assert all(each.in_us for each in found.squeezed), "of the first half, which is repeated words"


def test_duplicates_among_many_pages_are_estimated(tmp_path, monkeypatch):
    monkeypatch.setattr(probe, "MOST_HASHES", 200)
    path = tmp_path / "values"
    path.write_bytes(b"".join(b"%8d" % (nr % 1500) * 511 + b"the tail" for nr in range(3000)))
    found = probe.probe(Files.of([path]), resolve("kcompressd"), sample=64 * KIB)
    assert found.pages.duplicates == pytest.approx(1500, rel=0.1)


def test_a_compressor_that_fails_says_so(a_file):
    class Broken:
        name = "broken"

        def compress(self, data):
            raise ValueError("a bug in it")

        def decompress(self, blob, size):
            raise AssertionError

    topology = resolve("kcompressd", compress={"compressor": Broken()}, swap=[])
    found = probe.probe(Files.of([a_file]), topology)
    (broken, *_) = [each for each in found.squeezed if each.compressor == "broken"]
    assert broken.failed == "ValueError: a bug in it"


@needs_proc
def test_a_process_is_read_and_nothing_is_brought_in_for_it():
    holds = (
        "import mmap, random, sys\n"
        "text = mmap.mmap(-1, 8 << 20, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)\n"
        "text.write(b''.join(b'%8d' % (nr % 10) * 512 for nr in range(1024)))\n"
        "print('ready', flush=True)\n"
        "sys.stdin.read()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-S", "-c", holds], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as child:
        assert child.stdout.readline() == b"ready\n"
        status = chunks.PROC / str(child.pid) / "statm"
        before = status.read_text().split()[1]
        process = Process.of(child.pid)
        found = probe.probe(process, resolve("kcompressd"), sample=64 * KIB)
        assert status.read_text().split()[1] == before
        child.stdin.close()
    assert found.pages.same_filled >= 1024
    assert found.pages.total < 2048 + 1024, "the half that nobody wrote to is no page"
    assert f"process {child.pid}" in found.source
    with pytest.raises(InputError, match=f"there is no process {child.pid}"):
        Process.of(child.pid)
    with pytest.raises(InputError, match=r"went away|no process"):
        probe.probe(process, resolve("kcompressd"))


def test_a_process_of_somebody_else_is_one_line(monkeypatch, tmp_path):
    (tmp_path / "self").mkdir()
    (tmp_path / "self/smaps").touch()
    monkeypatch.setattr(chunks, "PROC", tmp_path)
    refused = str(chunks._refused(7, PermissionError(13, "Permission denied")))
    assert "process 7 (Permission denied)" in refused
    assert "CAP_SYS_PTRACE" in refused
    monkeypatch.setattr(chunks, "PROC", tmp_path / "absent")
    with pytest.raises(InputError, match="needs Linux's /proc"):
        Process.of(os.getpid())


def test_the_command_prints_what_its_json_holds(a_file, capsys):
    status, out, err = run(capsys, "probe", a_file, "--topology", "padata", "--json")
    assert (status, err) == (0, "")
    facts = json.loads(out)
    assert facts["topology"] == "padata"
    status, out, _ = run(capsys, "probe", a_file, "--topology", "padata")
    assert status == 0
    for share in ("128 pages", "48 (37.5%) zero", "16 (12.5%) another", "8 (6.2%) the same"):
        assert share in " ".join(out.split())
    for each in facts["squeezed"]:
        assert f"{each['ratio']:.2f}" in out


@pytest.mark.parametrize(
    ("args", "says"),
    [
        ([], "either --pid PID, or files"),
        (["--pid", "1", "values"], "either --pid PID, or files"),
        (["--pid", "soon"], "--pid"),
        (["/absent"], "cannot read input /absent"),
        (["/dev/null"], "neither a file nor a folder"),
        ([__file__, "--sample", "1KiB"], "--sample 1KiB is less than 64KiB"),
        ([__file__, "--sample", "much"], "--sample: 'much' is not a size"),
        ([__file__, "--topology", "kcompresd"], "kcompressd"),
        pytest.param(["--pid", "999999999"], "there is no process", marks=needs_proc),
    ],
)
def test_what_a_user_may_mistype_is_one_line_and_status_2(capsys, args, says):
    status, out, err = run(capsys, "probe", *args)
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert says in err


def test_an_empty_file_is_one_line(tmp_path, capsys):
    (tmp_path / "empty").touch()
    status, _, err = run(capsys, "probe", tmp_path)
    assert status == 2
    assert "there are no bytes in" in err
