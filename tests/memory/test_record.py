"""Recording: what a trace holds, what it must not hold, and what ends it."""

from __future__ import annotations

import inspect
from pathlib import Path

import pytest

import reclaimactors as ra
from reclaimactors import record
from reclaimactors.lab.traces import DELETE, GET, PUT, load
from reclaimactors.memory import Memory
from reclaimactors.record import HEADER, RecordedMemory, Recorder

OPEN = {"topology": "kswapd_only_inline", "budget": "1MiB", "swap": []}


async def test_every_request_is_recorded_once_and_no_value_or_key(tmp_path):
    path = tmp_path / "requests.csv"
    async with ra.open_memory(**OPEN, record=path) as memory:
        await memory.put("secret-key", b"secret value")
        assert await memory.get("secret-key") == b"secret value"
        memory.put_nowait(4711, bytearray(300_000))
        assert len(memory.get_nowait(4711)) == 300_000
        assert len(await memory.get_writable(4711)) == 300_000
        assert bytes(await memory.get_writable("secret-key")) == b"secret value"
        with pytest.raises(KeyError):
            await memory.get("absent")
        assert await memory.get("absent", None) is None
        with pytest.raises(KeyError):
            memory.get_nowait("absent")
        await memory.put_many([("a", b"1"), ("b", [b"2", b"3"])])
        assert await memory.get_many(["a", "absent"]) == {"a": b"1"}
        assert await memory.put_if("a", b"11", b"1")
        assert not await memory.put_if("a", b"111", b"1")
        async with memory.pin("b") as view:
            assert view == b"23"
        assert await memory.pop("b") == b"23"
        assert await memory.pop("b", None) is None
        await memory.delete("a")
        with pytest.raises(KeyError):
            await memory.delete("a")
        assert await memory.delete_many(["secret-key", "absent"]) == 1
        with pytest.raises(TypeError):
            await memory.put("c", "no bytes")
        with pytest.raises(TypeError):
            await memory.delete(reparent=True)
    secret, number, absent, a, b = range(5)
    assert list(load(path)) == [
        (PUT, secret, 12), (GET, secret, 12), (PUT, number, 300_000), (GET, number, 300_000),
        (GET, number, 300_000), (GET, secret, 12), (GET, absent, 0), (GET, absent, 0),
        (GET, absent, 0), (PUT, a, 1), (PUT, b, 2), (GET, a, 1), (GET, absent, 0), (PUT, a, 2),
        (GET, a, 1), (GET, b, 2), (GET, b, 2), (DELETE, b, 0), (GET, b, 0), (DELETE, a, 0),
        (DELETE, secret, 0), (DELETE, absent, 0),
    ]  # fmt: skip
    text = path.read_text()
    assert text.startswith(HEADER)
    assert "secret" not in text
    assert "4711" not in text.replace(",", " ").split()
    assert path.stat().st_mode & 0o777 == 0o600


def test_every_call_that_reads_or_writes_a_value_is_recorded():
    notes = {name for name, one in vars(RecordedMemory).items() if inspect.isfunction(one)}
    calls = {
        name for name, one in vars(Memory).items()
        if inspect.isfunction(one) and not name.startswith("_")
        and {"key", "keys", "items"} & set(inspect.signature(one).parameters)
    }  # fmt: skip
    assert calls - notes == {"advise", "expires_in", "map"}, "those ask for no value"


async def test_two_recordings_hash_the_same_key_differently(tmp_path):
    texts = []
    for name in ("one", "other"):
        async with ra.open_memory(**OPEN, record=str(tmp_path / name)) as memory:
            await memory.put(1, b"")
        texts.append((tmp_path / name).read_text().splitlines()[1].split(",")[0])
    assert texts[0] != texts[1]


async def test_without_it_a_memory_is_of_the_plain_class():
    async with ra.open_memory(**OPEN) as memory:
        assert type(memory) is Memory


async def test_a_file_that_cannot_be_written_is_said_on_entering(tmp_path):
    opening = ra.open_memory(**OPEN, record=tmp_path / "absent/requests.csv")
    with pytest.raises(ra.TopologyError, match=r"record is '.*absent.*': it cannot be written"):
        async with opening:
            pass


def test_a_recording_has_an_end(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(record, "MOST_BYTES", 100_000)
    path = tmp_path / "requests.csv"
    recorder = Recorder(path)
    for nr in range(5000):
        recorder.note("SET", nr, 1)
    recorder.close()
    recorder.close()
    assert 60_000 < path.stat().st_size <= 100_000
    assert path.read_bytes().endswith(b"\n")
    assert [line.levelname for line in caplog.records] == ["WARNING"]
    assert "recording.full" in caplog.text


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
async def test_a_disk_that_is_full_ends_the_recording_and_not_the_memory(tmp_path, caplog):
    async with ra.open_memory(**OPEN, record=Path("/dev/full")) as memory:
        for nr in range(2000):
            await memory.put(nr % 9, b"value")
        assert await memory.get(3) == b"value"
    assert "recording.failed" in caplog.text
    assert "No space left" in caplog.text


def test_a_forked_child_writes_nothing(tmp_path):
    recorder = Recorder(tmp_path / "requests.csv")
    recorder.note("SET", 1, 1)
    recorder.abandon()
    recorder.note("SET", 2, 1)
    recorder.close()
    assert (tmp_path / "requests.csv").read_bytes() == b""
