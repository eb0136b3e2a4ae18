"""check-plugin and new-plugin: what they say, their exit status, and that what they write works."""

from __future__ import annotations

import importlib
import inspect
import json
import os
import subprocess
import sys
import threading
import tomllib
import zlib
from collections import OrderedDict

import pytest

from reclaimactors import BackendError, CorruptData, Verdict
from reclaimactors.backends.memory import MemoryBackend
from reclaimactors.cli import _status
from reclaimactors.compressors.zlib import Zlib

HERE = "wrong_plugins"
KINDS = ("compressor", "backend", "policy")


class Misplaced(Zlib):
    """Prints, and returns one byte less than was asked for."""

    def __init__(self, level=6):
        super().__init__(level)
        print("made")

    def decompress(self, blob, size):
        return super().decompress(blob, size)[:-1]


class StaysForEver(MemoryBackend):
    """A thread of it never ends."""

    async def open(self, page_size):
        await super().open(page_size)
        threading.Thread(target=threading.Event().wait).start()


def half(**_):
    """No class, so nobody knows what it makes."""
    return Misplaced()


@pytest.fixture
def here(monkeypatch):
    """Make this module one that can be named."""
    monkeypatch.setitem(sys.modules, HERE, sys.modules[__name__])


@pytest.fixture
def says(capsys):
    def run(*argv):
        status = _status([str(word) for word in argv])
        ended = capsys.readouterr()
        return status, ended.out, ended.err

    return run


def test_a_plugin_that_keeps_its_contract(says):
    status, out, err = says("check-plugin", "zlib", "--option", "level=9")
    assert (status, err) == (0, "")
    first, *kept, last = out.splitlines()
    assert first == "compressor zlib (built-in)"
    assert all(line.startswith("  kept    ") for line in kept)
    assert last.startswith(f"{len(kept)} of {len(kept)} rules kept, in ")


@pytest.mark.usefixtures("here")
def test_a_plugin_that_does_not_is_told_what_to_do(says):
    status, out, err = says("check-plugin", f"{HERE}:Misplaced")
    assert status == 1
    assert "made" in err and "made" not in out, "what the plugin prints is no part of the result"  # noqa: PT018
    at = out.index("BROKEN  round_trip")
    assert out.index("what to do: ", at) > out.index("the contract (reclaimactors.Compressor", at)


@pytest.mark.usefixtures("here")
def test_as_json(says):
    status, out, _ = says("check-plugin", f"{HERE}:half", "--kind", "compressor", "--json")
    facts = json.loads(out)
    assert (status, facts["kind"], facts["keeps_its_contract"]) == (1, "compressor", False)
    broken = {one["check"]: one for one in facts["checks"] if not one["kept"]}
    assert broken["round_trip"].keys() >= {"seen", "where", "contract", "what_to_do"}


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize(
    ("argv", "reason"),
    [
        (["nothing"], "no plugin 'nothing'; known compressors: lz4"),
        ([f"{HERE}:half"], "say what it is with --kind (compressor: name, compress"),
        ([f"{HERE}:nothing"], "has no attribute 'nothing'"),
        (["zlib", "--option", "level"], "is not of the form key=value"),
        (["zlib", "--option", "size=1"], "has no option 'size'"),
        (["zlib", "--option", 'level="fast"'], "refused its options"),
        (["zlib", "--kind", "store"], "there is no kind 'store'"),
    ],
)
def test_what_cannot_be_checked_is_one_line(says, argv, reason):
    status, out, err = says("check-plugin", *argv)
    assert (status, out) == (2, "")
    assert reason in err
    assert err.count("\n") == 1


def test_a_thread_that_stays_for_ever_does_not_keep_the_command():
    script = [sys.executable, "-m", "reclaimactors", "check-plugin", "test_commands:StaysForEver"]
    ended = subprocess.run(
        script, capture_output=True, text=True, check=False, timeout=50,
        env=os.environ | {"PYTHONPATH": os.path.dirname(__file__)},  # noqa: PTH120
    )  # fmt: skip
    assert ended.returncode == 1, ended.stderr
    assert "BROKEN  leaves_nothing_behind" in ended.stdout


# -- new-plugin ------------------------------------------------------------------------------------


IMPORTS = """
import zlib
from collections import OrderedDict
from reclaimactors import BackendError, CorruptData, Verdict
"""


class Deflate:
    """How the methods that raise may be filled in."""

    def compress(self, data):
        return zlib.compress(data)

    def decompress(self, blob, size):
        stream = zlib.decompressobj()
        try:
            data = stream.decompress(blob, size + 1)
        except zlib.error as exc:
            raise CorruptData(str(exc)) from exc
        if len(data) != size or not stream.eof or stream.unused_data:
            raise CorruptData(f"the blob does not hold {size} B")
        return data


class InADict:
    async def open(self, page_size):
        self.slots = {}

    async def store_many(self, items):
        self.slots.update(items)

    async def load_many(self, slots):
        try:
            return [self.slots[slot] for slot in slots]
        except KeyError as exc:
            raise BackendError(f"slot {exc} is not stored") from exc

    async def invalidate_many(self, slots):
        for slot in slots:
            self.slots.pop(slot, None)

    def footprint(self, slots):
        return sum(len(self.slots[slot]) for slot in slots)


class Lru:
    def __init__(self, *, pages):
        super().__init__(pages=pages)
        self.folios = OrderedDict()

    def insert(self, pfn, *, refault):
        self.folios[pfn] = None

    def access(self, pfn):
        if pfn in self.folios:
            self.folios.move_to_end(pfn)

    def remove(self, pfn):
        self.folios.pop(pfn, None)

    def isolate(self, nr):
        return [self.folios.popitem(last=False)[0] for _ in range(min(nr, len(self.folios)))]

    def putback(self, pfns, verdict):
        self.folios.update(dict.fromkeys(pfns))
        if verdict is Verdict.KEEP:
            for pfn in reversed(pfns):
                self.folios.move_to_end(pfn, last=False)


FILLED = {"compressor": Deflate, "backend": InADict, "policy": Lru}


@pytest.fixture
def new(tmp_path, says, monkeypatch):
    """Return a function that makes a distribution and returns its folder."""

    def make(kind):
        status, out, err = says("new-plugin", kind, f"my_{kind}", "--into", tmp_path)
        assert (status, err) == (0, "")
        folder = tmp_path / f"reclaimactors-my-{kind}"
        assert f"cd {folder}" in out
        monkeypatch.syspath_prepend(folder)
        return folder

    yield make
    for kind in KINDS:
        sys.modules.pop(f"reclaimactors_my_{kind}", None)
        sys.modules.pop(f"filled_{kind}", None)


@pytest.mark.parametrize("kind", KINDS)
def test_once_filled_in_it_keeps_its_contract(new, kept, kind):
    folder = new(kind)
    project = tomllib.loads((folder / "pyproject.toml").read_text())["project"]
    ((group, names),) = project["entry-points"].items()
    module, _, attr = names[f"my_{kind}"].partition(":")
    # Filled in by a class beside it, which worker processes can import too.
    body = inspect.getsource(FILLED[kind]).partition("\n")[2]
    text = f"{IMPORTS}\nfrom {module} import {attr}\nclass Mine({attr}):\n{body}"
    (folder / f"filled_{kind}.py").write_text(text)
    mine = importlib.import_module(f"filled_{kind}").Mine
    make = (lambda pages: mine(pages=pages)) if kind == "policy" else mine
    kept(group.removeprefix("reclaimactors."), make)


def test_its_tests_run_and_say_what_is_to_be_filled_in(new, tmp_path):
    folders = [new(kind) for kind in KINDS]
    for folder in folders:
        for name in ("README.md", "pyproject.toml"):
            assert "{" not in (folder / name).read_text()
    ended = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-k",
         "round_trip or returns_what_was_stored or finds_every_folio", *folders],
        cwd=tmp_path, capture_output=True, text=True, check=False,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(map(str, folders))},
    )  # fmt: skip
    said = ended.stdout
    assert "  what to do: fill in compress: return bytes that decompress can read" in said
    assert "  what to do: fill in store_many: store every (slot, bytes)" in said
    assert "  what to do: fill in insert: put the folio on a list" in said
    assert "3 failed" in said
    assert "error" not in said


@pytest.mark.parametrize(
    ("kind", "name", "reason"),
    [
        ("offload", "mine", "KIND 'offload' is none of compressor, backend, policy"),
        ("policy", "My-Lru", "'My-Lru' is no name for a plugin: use a-z, 0-9 and single _"),
        ("policy", "mglru", "'mglru' is known already (built-in): choose another name"),
        ("policy", "taken", "is there already: move it, or say --into elsewhere"),
    ],
)
def test_what_cannot_be_begun_is_one_line(says, tmp_path, kind, name, reason):
    (tmp_path / "reclaimactors-taken").mkdir()
    status, out, err = says("new-plugin", kind, name, "--into", tmp_path)
    assert (status, out) == (2, "")
    assert reason in err
    assert err.count("\n") == 1
