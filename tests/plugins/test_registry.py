"""Names to plugins: where they are looked for, and what a user reads when that fails."""

from __future__ import annotations

import datetime as dt
import pickle
import subprocess
import sys
import textwrap
from types import MappingProxyType, SimpleNamespace

import pytest

from reclaimactors import Backend, BackendError, PluginError, TopologyError
from reclaimactors.backends.memory import MemoryBackend
from reclaimactors.compressors.null import Null
from reclaimactors.compressors.zlib import Zlib
from reclaimactors.policies.mglru import Mglru
from reclaimactors.registry import (
    PluginRef,
    build,
    is_in_this_process,
    known,
    let_go,
    take,
    use_up,
)
from reclaimactors.testing import FaultyBackend

PLUGIN = """
class Rot:
    name = "rot"
    def __init__(self, *, by=13): self.by = by
    def compress(self, data): return bytes(data)
    def decompress(self, blob, size): return bytes(blob)

class Holder:
    make = Rot

def refuses(*, by=0): raise KeyError("no such rotation")
def lazy():
    import no_such_library_of_ours
def half():
    return object()
value = 3
"""


@pytest.fixture
def install(tmp_path, monkeypatch):
    """Return a function that installs a fake distribution: a module and a bare .dist-info."""

    def put(name="rot", target="rot_plugin:Rot", *, code=PLUGIN, group="compressors"):
        (tmp_path / "rot_plugin.py").write_text(code)
        info = tmp_path / "rot_plugin-1.2.dist-info"
        info.mkdir()
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: rot-plugin\nVersion: 1.2\n")
        (info / "entry_points.txt").write_text(f"[reclaimactors.{group}]\n{name} = {target}\n")

    monkeypatch.syspath_prepend(tmp_path)
    yield put
    sys.modules.pop("rot_plugin", None)


# -- parse -----------------------------------------------------------------------------------------


def test_parse_takes_a_name_a_table_or_an_object():
    null = Null()
    ref = PluginRef("zlib", {"level": 3})
    assert PluginRef.parse("lz4", where="k") == PluginRef("lz4")
    assert PluginRef.parse({"name": "zlib", "level": 3}, where="k") == ref
    assert PluginRef.parse(MappingProxyType({"name": "zlib", "level": 3}), where="k") == ref
    assert PluginRef.parse(null, where="k") == PluginRef("null", instance=null)
    assert PluginRef.parse(MemoryBackend(), where="k").name == "MemoryBackend"
    assert PluginRef.parse(ref, where="k") is ref


def test_parse_leaves_the_callers_table_as_it_was():
    table = {"name": "zlib", "level": 3}
    PluginRef.parse(table, where="k")
    assert table == {"name": "zlib", "level": 3}


@pytest.mark.parametrize(
    "value",
    [
        *(None, True, 3, 2.5, b"lz4", "", " ", [], ["lz4"], ("lz4",), {"lz4"}, {}, {"level": 3}),
        *({"name": 3}, {"name": ""}, Zlib, len, dt.date(2026, 1, 1)),
    ],
    ids=repr,
)
def test_parse_names_the_key_of_a_bad_shape(value):
    with pytest.raises(TopologyError, match=r"^compress\.compressor is .*; allowed: a plugin's"):
        PluginRef.parse(value, where="compress.compressor")


def test_a_reference_pickles_to_a_worker():
    ref = PluginRef.parse({"name": "zlib", "level": 3}, where="k")
    assert pickle.loads(pickle.dumps(ref)) == ref


# -- build -----------------------------------------------------------------------------------------


def test_build_gives_options_and_defaults_to_the_factory():
    zlib = build("compressors", PluginRef("zlib", {"level": 9}))
    assert len(zlib.compress(bytes(4096))) < 40
    assert isinstance(build("policies", PluginRef("mglru", {"max_gens": 5}), pages=64), Mglru)
    assert build("backends", PluginRef("memory", {"capacity": 7})).capacity == 7


@pytest.mark.parametrize(
    ("kind", "names"),
    [
        ("compressors", {"lz4", "zlib", "null"}),
        ("backends", {"memory", "file", "zram"}),
        ("policies", {"mglru", "active_inactive"}),
    ],
)
def test_every_built_in_is_known_and_can_be_built(kind, names):
    assert names <= {name for name, origin in known(kind) if origin == "built-in"}
    for name in names:
        build(kind, PluginRef(name), **({"pages": 64} if kind == "policies" else {}))


def test_an_explicit_object_is_the_plugin():
    null = Null()
    assert build("compressors", PluginRef("whatever", instance=null)) is null


def test_an_entry_point_is_known_without_being_imported(install):
    install()
    assert ("rot", "rot-plugin 1.2") in known("compressors")
    assert "rot_plugin" not in sys.modules
    assert build("compressors", PluginRef("rot", {"by": 5})).by == 5


def test_an_entry_point_may_name_an_attribute_and_an_extra(install):
    install(target="rot_plugin:Holder.make [fast]")
    assert build("compressors", PluginRef("rot")).by == 13


def test_a_built_in_goes_before_an_entry_point_of_its_name(install):
    install(name="null")
    assert isinstance(build("compressors", PluginRef("null")), Null)
    assert dict(known("compressors"))["null"] == "built-in"


def test_an_entry_point_goes_before_a_dotted_name(install):
    install(name="reclaimactors.compressors.null:Null")
    ref = PluginRef("reclaimactors.compressors.null:Null")
    assert type(build("compressors", ref)).__name__ == "Rot"


def test_a_dotted_name_needs_no_installation(install):
    install(group="others")
    assert build("compressors", PluginRef("rot_plugin:Holder.make", {"by": 1})).by == 1


def test_nothing_is_imported_that_is_not_named():
    code = """
        import sys
        from reclaimactors.registry import PluginRef, build, known, use_up
        known("compressors"), known("backends"), known("policies")
        build("compressors", PluginRef("zlib"))
        print([name for name in ("lz4", "reclaimactors.policies.mglru",
                                 "reclaimactors.backends.file",
                                 "reclaimactors.compressors.null") if name in sys.modules])
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=True
    )
    assert done.stdout == "[]\n"


# -- errors ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "name", "says"),
    [
        ("compressors", "zlb", "no compressor plugin 'zlb'; known: .*(did you mean 'zlib'?)"),
        ("backends", "fil", "known: file,.*(did you mean 'file'?)"),
        ("policies", "lru", "no policy plugin 'lru'; known: active_inactive, mglru"),
        ("compressors", "no_such_pkg.mod:X", "there is no module 'no_such_pkg'; check the name"),
        ("compressors", "os:no_such_codec", "module 'os' has no attribute 'no_such_codec'"),
        ("compressors", "os:sep", "is str, not a factory"),
        ("compressors", ":X", "cannot be imported"),
        ("compressors", "os:", "cannot be imported"),
        ("compressors", "..os:path", "cannot be imported"),
        ("compressors", "rot_plugin:half", "lacks name, compress, decompress; see the contract"),
        ("compressors", "rot_plugin:lazy", "pip install no_such_library_of_ours"),
        ("compressors", "rot_plugin:value", "is int, not a factory"),
    ],
)
def test_what_a_bad_name_says(install, kind, name, says):
    install(group="others")
    with pytest.raises(PluginError) as caught:
        build(kind, PluginRef(name))
    before, _, after = says.partition(".*")
    assert before in str(caught.value)
    assert after in str(caught.value)
    assert str(caught.value).count("\n") == 0


def test_a_plugin_of_ours_that_is_not_installed_says_how_to_have_it(monkeypatch):
    monkeypatch.setattr("importlib.metadata.entry_points", lambda group: ())
    with pytest.raises(PluginError, match=r"lz4, null, zlib; .*pip install reclaimactors-zstd$"):
        build("compressors", PluginRef("zstd"))
    with pytest.raises(PluginError, match=r"\(did you mean 'zstd'\?\); .*reclaimactors-zstd$"):
        build("compressors", PluginRef("zstx"))


def test_an_offload_is_a_plugin_like_the_others(install):
    code = "class Off:\n    def __init__(self, *, nice): self.nice = nice\n"
    code += "    def open(self): ...\n    submit = collect = close = open\n"
    install(name="off", target="rot_plugin:Off", code=code, group="offloads")
    offload = build("offloads", PluginRef("off"), compressor=None, workers=2, nice=3)
    assert offload.nice == 3
    assert ("off", "rot-plugin 1.2") in known("offloads")
    with pytest.raises(PluginError, match="offload plugin 'rot_plugin:Off' has no option 'nise'"):
        build("offloads", PluginRef("rot_plugin:Off", {"nise": 3}))


def test_a_missing_library_says_what_to_install(install):
    install(code="import no_such_library_of_ours.block\n" + PLUGIN)
    with pytest.raises(PluginError, match=r"plugin 'rot' .*pip install no_such_library_of_ours$"):
        build("compressors", PluginRef("rot"))


def test_a_missing_lz4_says_what_to_install(monkeypatch):
    monkeypatch.delitem(sys.modules, "reclaimactors.compressors.lz4", raising=False)
    monkeypatch.setitem(sys.modules, "lz4.block", None)
    with pytest.raises(PluginError, match=r"plugin 'lz4' .*pip install lz4$"):
        build("compressors", PluginRef("lz4"))


def test_a_plugin_that_does_not_import_says_why(install):
    install(code="1 / 0")
    with pytest.raises(PluginError, match=r"plugin 'rot' .*ZeroDivisionError: division by zero"):
        build("compressors", PluginRef("rot"))


@pytest.mark.parametrize(
    ("ref", "says"),
    [
        (
            PluginRef("zlib", {"lvl": 3}),
            ["'zlib'", "option 'lvl' (did you mean 'level'?); it takes: level"],
        ),
        (PluginRef("zlib", {"level": 99}), ["'zlib'", "level=99", "0 to 9"]),
        (PluginRef("lz4", {"acceleration": "x"}), ["'lz4'", "acceleration='x'"]),
        (PluginRef("rot_plugin:refuses", {"by": 1}), ["by=1", "no such rotation"]),
        (PluginRef("null", {"a": 1}), ["'null'", "no option 'a'; it takes: none"]),
        (PluginRef("sys:exit"), ["'sys:exit' refused its options"]),
    ],
)
def test_refused_options_are_named(install, ref, says):
    install(group="others")
    with pytest.raises(PluginError) as caught:
        build("compressors", ref)
    for part in says:
        assert part in str(caught.value)


def test_a_policy_gets_pages_only_if_it_takes_them():
    assert isinstance(build("policies", PluginRef("mglru"), pages=64), Mglru)
    with pytest.raises(PluginError, match="lacks insert, access"):  # it was made without
        build("policies", PluginRef("builtins:object"), pages=64)


def test_a_policy_object_serves_one_memory_ever():
    policy, slotted = SimpleNamespace(), Mglru(pages=64)
    for one in (policy, slotted):
        use_up(one)
        with pytest.raises(PluginError, match="has served a memory already"):
            use_up(one)
    use_up(SimpleNamespace())


class HalfBackend(Backend):
    async def store_many(self, items):
        pass


@pytest.mark.parametrize(
    ("kind", "plugin", "lacks"),
    [
        ("compressors", SimpleNamespace(compress=len, decompress=len), "name"),
        ("compressors", SimpleNamespace(name="x", compress=len), "decompress"),
        ("compressors", SimpleNamespace(name="x", compress=len, decompress=3), "decompress"),
        ("backends", HalfBackend(), "load_many"),
        ("backends", Null(), "open, aclose, store_many, load_many, invalidate_many"),
        ("policies", Null(), "insert, access, remove, isolate, putback, shadow, age"),
    ],
)
def test_what_an_object_lacks_is_named(kind, plugin, lacks):
    ref = PluginRef.parse(plugin, where="k") if lacks != "name" else PluginRef("x", {}, plugin)
    with pytest.raises(PluginError, match=f" lacks {lacks}; see the contract"):
        build(kind, ref)


# -- what a backend lacks --------------------------------------------------------------------------


class Duck:
    """A store that does not inherit from Backend."""

    def __init__(self):
        self.slots = {}

    async def open(self, page_size):
        self.capacity = 7

    async def aclose(self):
        self.slots.clear()

    async def store_many(self, items):
        self.slots.update(items)

    async def load_many(self, slots):
        return [self.slots[slot] for slot in slots]

    async def invalidate_many(self, slots):
        pass


async def test_a_backend_that_inherits_nothing_has_the_defaults():
    duck = Duck()
    backend = build("backends", PluginRef("duck", instance=duck))
    assert isinstance(backend, Backend)
    assert backend.load_now([1]) is None
    assert not backend.in_this_process
    await backend.open(4096)
    assert (backend.capacity, backend.rotational) == (7, False)
    await backend.store(3, b"abc")
    assert await backend.load(3) == b"abc"
    backend.on_shrunk = print
    assert duck.on_shrunk is print


def test_a_backend_that_inherits_nothing_is_taken_once():
    duck = Duck()
    one, other = (build("backends", PluginRef("duck", instance=duck)) for _ in range(2))
    take(one, "swap 'a'")
    with pytest.raises(BackendError, match="swap 'a' has the backend of swap 'b' already"):
        take(other, "swap 'b'")
    let_go(one)
    take(other, "swap 'b'")
    let_go(other)


class Weighed(Backend):
    def footprint(self, slots):
        return 0


class Elsewhere(MemoryBackend):
    in_this_process = False


@pytest.mark.parametrize(
    ("ref", "here"),
    [
        (PluginRef("memory"), True),
        (PluginRef("zram"), True),
        (PluginRef("file"), False),
        (PluginRef("no.such:store"), False),
        (PluginRef("x", instance=MemoryBackend()), True),
        (PluginRef("x", instance=Weighed()), True),
        (PluginRef("x", instance=Elsewhere()), False),
        (PluginRef("x", instance=Duck()), False),
        (PluginRef("x", instance=FaultyBackend(MemoryBackend())), True),
        (PluginRef("x", instance=FaultyBackend(Backend())), False),
    ],
)
def test_a_class_says_whether_it_holds_its_bytes_in_this_process(ref, here):
    assert is_in_this_process(ref) is here
