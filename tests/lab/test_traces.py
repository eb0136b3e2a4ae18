"""Traces: what is read, and what is said of those that are cut or are none."""

from __future__ import annotations

import gzip
import struct

import pytest

from reclaimactors.lab.traces import DELETE, GET, PUT, TraceError, load

ORACLE = b"".join(
    struct.pack("<IQIq", 10 + nr, 7_000_000_000 + nr % 3, 100 * (nr % 3 + 1), -1) for nr in range(6)
)
CACHEBENCH = """key,op,size,op_count,key_size
a,SET,82,1,40
b,GET,0,1,40
a,GET_LEASE,82,2,40
a,DELETE,0,1,40
"""
META_2024 = """op_time,key,key_size,op,op_count,size,cache_hits,ttl
604,a,24,SET,1,87,1,0
607,a,24,get,1,87,1,0
"""
PLAIN = "12,x,4096\n13,y,512\n15,x,4096\n"


def rows(path, **options) -> list[tuple[int, int, int]]:
    return list(load(path, **options))


def test_oracle_general(tmp_path):
    path = tmp_path / "w92.oracleGeneral.bin"
    path.write_bytes(ORACLE)
    trace = load(path)
    assert list(trace) == [(GET, nr % 3, 100 * (nr % 3 + 1)) for nr in range(6)]
    assert (trace.nr_keys, trace.seconds, trace.whole) == (3, 5.0, True)
    assert len(load(path, most=4)) == 4
    assert not load(path, most=4).whole


def test_cachebench(tmp_path):
    path = tmp_path / "kvcache.csv"
    path.write_text(CACHEBENCH)
    assert rows(path) == [(PUT, 0, 82), (GET, 1, 0), (GET, 0, 82), (GET, 0, 82), (DELETE, 0, 0)]
    path.write_text(META_2024)
    trace = load(path)
    assert list(trace) == [(PUT, 0, 87), (GET, 0, 87)]
    assert trace.seconds == 3.0


@pytest.mark.parametrize(
    ("text", "columns"),
    [
        (PLAIN, ""),
        ("time,id,size\n" + PLAIN, ""),
        ("12;0;4096;x\n13;0;512;y\n15;0;4096;x", "obj-id-col=4, obj-size-col=3, delimiter=;"),
    ],
)
def test_csv_of_libcachesim(tmp_path, text, columns):
    path = tmp_path / "trace.csv"
    path.write_text(text)
    trace = load(path, columns=columns)
    assert list(trace) == [(GET, 0, 4096), (GET, 1, 512), (GET, 0, 4096)]
    assert trace.seconds == 3.0


def test_compressed(tmp_path):
    path = tmp_path / "w92.oracleGeneral.bin.gz"
    path.write_bytes(gzip.compress(ORACLE))
    assert len(load(path)) == 6
    zstandard = pytest.importorskip("zstandard")
    path = tmp_path / "w92.oracleGeneral.bin.zst"
    path.write_bytes(zstandard.ZstdCompressor().compress(ORACLE))
    assert len(load(path)) == 6


@pytest.mark.parametrize(
    ("name", "data", "says"),
    [
        ("o.bin", ORACLE[:-5], r"cut in the middle of request 6 \(after 120 B\); --requests 5"),
        (
            "c.csv",
            CACHEBENCH[:-9],
            "line 5, which is the last and is cut, is 'a,DELET'; wanted: 5 columns",
        ),
        ("c.csv", CACHEBENCH + "a,SET,many,1,1\n", "line 6 is 'a,SET,many,1,1'; wanted: a number"),
        ("c.csv", CACHEBENCH + "a,BREW,1,1,1\n", "line 6 is 'a,BREW,1,1,1'; wanted: 5 columns"),
        ("p.csv", PLAIN + "16,z", "line 4, which is the last and is cut, is '16,z'.*--requests 3"),
        ("p.csv", PLAIN + "16,z,-3\n", "line 4 is '16,z,-3'; wanted: a number of 0"),
        ("e.csv", "", "there is no request in it"),
        ("t.txt", "this is\nno trace\n", "line 1 is 'this is'; wanted: at least 3 columns"),
        ("x.bin", b"\0" * 20 + b"\xff" * 40, r"request 1 has 4,278,190,080 B|no oracleGeneral"),
        (
            "g.csv.gz",
            gzip.compress(PLAIN.encode() * 99)[:-20],
            "compressed data are cut or damaged",
        ),
        ("g.csv.gz", PLAIN, "compressed data are cut or damaged after 0 requests"),
    ],
)
def test_what_is_cut_or_no_trace_is_said_with_its_place(tmp_path, name, data, says):
    path = tmp_path / name
    path.write_bytes(data if isinstance(data, bytes) else data.encode())
    with pytest.raises(TraceError, match=says) as caught:
        load(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("columns", "says"),
    [("key=2", "columns key are not known"), ("time-col=0", "time-col is '0'; it is the number")],
)
def test_columns_that_mean_nothing(tmp_path, columns, says):
    with pytest.raises(TraceError, match=says):
        load(tmp_path / "absent", columns=columns)


def test_a_cut_zstd_trace(tmp_path):
    zstandard = pytest.importorskip("zstandard")
    path = tmp_path / "o.bin.zst"
    data = zstandard.ZstdCompressor().compress(ORACLE * 2000)
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(TraceError, match="cut"):
        load(path)
    path.write_bytes(b"no zstd at all, though it is called that")
    with pytest.raises(TraceError, match="cut or damaged"):
        load(path)
