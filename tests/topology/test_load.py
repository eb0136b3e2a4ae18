"""Where topologies come from: built-in names, files, mappings, objects; and what overrides do."""

from __future__ import annotations

from pathlib import Path
from types import MappingProxyType

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from reclaimactors import PluginError, TopologyError, open_memory
from reclaimactors.registry import PluginRef
from reclaimactors.topology import (
    CompressSpec,
    Topology,
    WatermarksSpec,
    builtin_names,
    explain,
    resolve,
)
from reclaimactors.topology.build import try_plugins
from reclaimactors.topology.fit import fit
from reclaimactors.units import MIB


@pytest.fixture
def toml(tmp_path):
    """Return a function that writes a TOML file and returns its path."""

    def write(text: str | bytes, name="mine.toml") -> Path:
        path = tmp_path / name
        path.write_bytes(text.encode() if isinstance(text, str) else text)
        return path

    return write


# -- built in --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "mode", "offload", "on_full", "ordered"),
    [
        ("kswapd_only", "inline", "process", "inline", False),
        ("kswapd_only_inline", "inline", "inline", "inline", False),
        ("kcompressd", "kcompressd", "process", "inline", False),
        ("kcompressd_steal", "kcompressd", "process", "steal_oldest", False),
        ("padata", "padata", "process", "inline", False),
        ("padata_ordered", "padata", "process", "inline", True),
    ],
)
def test_what_the_built_in_ones_are(name, mode, offload, on_full, ordered):
    topology = resolve(name)
    compress = topology.compress
    assert (topology.name, compress.mode, compress.offload) == (name, mode, offload)
    assert (compress.on_full, compress.ordered, compress.workers) == (on_full, ordered, None)
    assert [swap.backend.name for swap in topology.swap] == ["file"]
    assert name in builtin_names()


def test_zram_is_kcompressd_in_front_of_compressed_swap_in_ram():
    topology = resolve("zram")
    assert (topology.compress, topology.zswap.enabled) == (CompressSpec(), False)
    assert [(swap.backend.name, swap.priority) for swap in topology.swap] == [("zram", 100)]


def test_kswapd_only_and_kcompressd_differ_in_overlap_alone():
    kswapd_only = resolve("kswapd_only", name="x", compress={"mode": "kcompressd"})
    assert kswapd_only == resolve("kcompressd", name="x")


def test_the_default_is_kcompressd():
    assert resolve() == resolve("kcompressd")


# -- files, mappings, objects ----------------------------------------------------------------------


def test_a_file_says_the_same_as_its_keys_and_is_called_by_its_stem(toml):
    path = toml(
        """
        budget = "8MiB"
        watermarks = { min = "1%" }
        [compress]
        compressor = { name = "zlib", level = 3 }
        [[swap]]
        size = "1GiB"
        [[swap]]
        backend = "memory"
        """
    )
    keys = {
        "budget": "8MiB",
        "watermarks": {"min": "1%"},
        "compress": {"compressor": {"name": "zlib", "level": 3}},
        "swap": [{"size": "1GiB"}, {"backend": "memory"}],
    }
    assert resolve(path) == resolve(str(path)) == resolve({"name": "mine", **keys})
    assert resolve(keys) == resolve(MappingProxyType(keys)) == Topology(**keys)


def test_a_file_may_state_its_name(toml):
    assert resolve(toml("name = 'phone'")).name == "phone"


def test_a_built_in_name_goes_before_a_file(toml, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    toml("budget = '1MiB'", "padata")
    assert resolve("padata").budget == 64 * MIB
    assert resolve(tmp_path / "padata").budget == MIB


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("budget = ", "is not TOML"),
        ("[compress", "is not TOML"),
        (b"\xff\xfe\x00", "is not TOML"),
        (b"budget = '\x00'", "is not TOML"),
        ("budget = 1\nbudget = 2", "is not TOML"),
        ("x = " + "[" * 100_000, "is not TOML"),
        ("budget = " + "9" * 5000, "is not TOML"),
        ("#" * (1 << 20) + "\n", "is not TOML: it is larger than 1MiB"),
        ("budget = 0x" + "f" * 5000, "budget is of type int; allowed"),
        ("budget = 2020-01-01", "budget is datetime.date(2020, 1, 1); allowed"),
        ("close_timeout = nan", "close_timeout is nan; allowed"),
        ("[compress]\ncompressor = 2020-01-01", "compress.compressor is "),
        ("[swap]\nbackend = 'file'", "swap is {'backend': 'file'}; allowed: a list of tables"),
        ("[[swap]]\nsize = 'much'", "swap[0].size is 'much'"),
        ("[[compress]]", "compress is [{}]; allowed: a table"),
        ("[compres]", "compres is not a key (did you mean 'compress'?)"),
    ],
)
def test_a_bad_file_is_one_clear_error(toml, text, says):
    with pytest.raises(TopologyError) as caught:
        resolve(toml(text))
    assert says in str(caught.value)
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize(
    ("topology", "says"),
    [
        ("kcompresd", "did you mean 'kcompressd'?"),
        ("absent.toml", "there is no such file"),
        (Path("absent"), "zram, or the path of a TOML file; there is no such file"),
        (".", "Is a directory"),
        ("", "Is a directory"),
        ("a\0.toml", "null byte"),
        ("x" * 5000, "File name too long"),
        (f"{__file__}/x", "Not a directory"),
        (None, "topology is None; allowed: a built-in name"),
        (3, "topology is 3; allowed"),
        (b"padata", "topology is b'padata'; allowed"),
        ([], "topology is []; allowed"),
    ],
    ids=lambda value: f"{value!r:.20}",
)
def test_no_topology_is_one_clear_error(topology, says):
    with pytest.raises(TopologyError) as caught:
        resolve(topology)
    assert str(caught.value).startswith("topology ")
    assert says in str(caught.value)
    assert len(str(caught.value)) < 500


def test_a_file_that_may_not_be_read_says_why(toml, monkeypatch):
    def refuse(self, mode):
        raise PermissionError(13, "Permission denied")

    path = toml("")
    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(TopologyError, match="Permission denied"):
        resolve(path)


# -- overrides -------------------------------------------------------------------------------------


def test_a_mapping_merges_into_its_table_and_a_list_replaces():
    topology = resolve(
        "kcompressd_steal",
        budget="1MiB",
        compress={"fifo": 32},
        watermarks=MappingProxyType({"high": "20%"}),
        swap=[],
    )
    assert (topology.name, topology.budget) == ("kcompressd_steal", MIB)
    assert (topology.compress.on_full, topology.compress.fifo) == ("steal_oldest", 32)
    assert topology.watermarks == WatermarksSpec(high="20%")
    assert topology.swap == ()


def test_a_plugin_replaces_its_table_with_its_options():
    keys = {
        "policy": {"name": "mglru", "max_gens": 3},
        "compress": {"compressor": {"name": "zlib"}},
    }
    topology = resolve(
        keys, policy={"name": "active_inactive"}, compress={"compressor": {"name": "lz4"}}
    )
    assert topology.policy == PluginRef("active_inactive")
    assert topology.compress.compressor == PluginRef("lz4")


def test_a_spec_replaces_its_table():
    assert resolve("kcompressd_steal", compress=CompressSpec(fifo=3)).compress == CompressSpec(
        fifo=3
    )


def test_a_topology_takes_overrides_too_and_stays_as_it_was():
    padata = resolve("padata")
    small = resolve(padata, budget="1MiB", compress={"mode": "kcompressd"})
    assert padata == resolve("padata")
    assert small.compress.nr_workers == 1
    assert small.watermarks.resolve(small.budget)[1] == int(MIB * 0.06)
    assert small.swap_bytes(small.swap[0]) == 16 * MIB


def test_a_budget_may_come_with_an_override_that_it_needs():
    with pytest.raises(TopologyError, match=r"^watermarks are "):
        resolve("padata", watermarks={"high": "100MiB"})
    assert resolve("padata", budget="1GiB", watermarks={"high": "100MiB"}).budget == 1024 * MIB


def test_overrides_do_not_change_what_the_caller_gave():
    keys = {"compress": {"fifo": 3}}
    resolve(keys, compress={"fifo": 4}, budget="1MiB")
    assert keys == {"compress": {"fifo": 3}}


@pytest.mark.parametrize(
    ("overrides", "key"),
    [
        ({"budget": "x"}, "budget is 'x'"),
        ({"bugdet": 3}, "bugdet is not a key (did you mean 'budget'?)"),
        ({"compress": {"workers": 2}}, "compress.workers is 2"),
        ({"compress": "padata"}, "compress is 'padata'"),
        ({"swap": {"backend": "file"}}, "swap is {"),
        ({"swap": None}, "swap is None"),
    ],
)
def test_a_bad_override_is_named(overrides, key):
    with pytest.raises(TopologyError) as caught:
        resolve("kcompressd", **overrides)
    assert str(caught.value).startswith(key)


# -- anything --------------------------------------------------------------------------------------

lines = st.sampled_from(
    [
        *("[compress]", "[[swap]]", "[zswap]", "[swap]", "budget = 3", "budget = '1GiB'"),
        *("mode = 'padata'", "workers = 3", "watermarks = {min='1%'}", "size = '5MiB'"),
        *("backend = {name='x', a=[1]}", "nodes = 2", "enabled = 1", "fifo = nan"),
        *("priority = -0x8", "x.y.z = 1979-05-27"),
    ]
)
texts = st.lists(lines | st.text(max_size=8), max_size=12).map("\n".join)


def outcome(topology):
    """Return a topology or a TopologyError; anything else is raised."""
    try:
        return resolve(topology)
    except TopologyError as exc:
        return exc


@given(texts.map(str.encode) | st.binary(max_size=200))
@example(b"\xef\xbb\xbfbudget = 3")
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_file_gives_a_topology_or_a_topology_error(toml, raw):
    got = outcome(toml(raw))
    assert explain(got) if isinstance(got, Topology) else len(str(got)) < 1000


@given(st.text(max_size=300))
def test_any_name_gives_a_topology_or_a_topology_error(name):
    got = outcome(name)
    assert isinstance(got, Topology) or len(str(got)) < 1000


# -- explain ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", builtin_names())
def test_explain_says_who_compresses_what_when_full_and_what_fits(name):
    text = "\n".join(explain(resolve(name)))
    compress = resolve(name).compress
    assert {"inline": "kswapd", "padata": "workers"}.get(compress.mode, "kcompressd") in text
    assert ("the FIFO holds 256 pages" in text) == (compress.mode != "inline")
    for ratio in (1, 2, 3):
        assert f"at {ratio}:1 it holds about" in text


def test_effective_capacity_is_ram_that_is_not_pool_and_the_pool_and_the_swap():
    keys = {"budget": "100MiB", "watermarks": {"high": "10%"}, "swap": [{"size": "500MiB"}]}
    text = "\n".join(explain(resolve(keys)))
    assert "at 1:1 it holds about 590MiB: 90MiB as they are, 0B in the pool" in text
    assert "at 2:1 it holds about 610MiB: 70MiB as they are, 40MiB in the pool" in text
    assert "at 3:1 it holds about 630MiB: 70MiB as they are, 60MiB in the pool" in text


def test_explain_says_who_compresses_for_zram_and_what_fits():
    keys = {"budget": "100MiB", "watermarks": {"high": "10%"}, "zswap": {"enabled": False}}
    ours = "\n".join(explain(resolve(keys | {"swap": [{"backend": "zram"}]})))
    assert "kcompressd compresses with lz4, in worker processes" in ours
    assert "within the budget, priority 10; its pages are compressed with the folios" in ours
    assert "at 1:1 it holds about 90MiB: 90MiB as they are" in ours
    assert "at 3:1 it holds about 270MiB: 0B as they are, 0B in the pool, 270MiB in zram" in ours

    other = {"name": "zram", "compressor": "zlib", "mem_limit": "20MiB"}
    theirs = "\n".join(explain(resolve(keys | {"swap": [{"backend": other}]})))
    assert "kswapd compresses nothing" in theirs
    assert "at most 20MiB of blobs; it compresses with zlib itself, in the event loop" in theirs
    assert "at 3:1 it holds about 130MiB: 70MiB as they are, 0B in the pool, 60MiB in" in theirs


def test_explain_says_what_is_missing():
    text = "\n".join(explain(resolve({"zswap": {"enabled": False}})))
    assert "zswap is off" in text
    assert "no swap" in text


@pytest.mark.parametrize(
    ("keys", "says"),
    [
        ({"compress": {"compressor": "lz5"}}, "compress.compressor: no compressor plugin 'lz5'"),
        ({"policy": "lru"}, "policy: no policy plugin 'lru'"),
        (
            {"swap": [{}, {"backend": {"name": "file", "pth": "/"}}]},
            "swap[1].backend: backend plugin 'file' has no option 'pth' (did you mean 'path'?)",
        ),
        (
            {"swap": [{"backend": {"name": "zram", "mem_limit": "1XB"}}]},
            "swap[0].backend: ",
        ),
    ],
)
async def test_what_is_wrong_with_a_plugin_begins_with_its_key(keys, says):
    topology = resolve(keys)
    with pytest.raises((PluginError, TopologyError)) as caught:
        try_plugins(topology)
    assert str(caught.value).startswith(says)
    with pytest.raises(type(caught.value)) as opened:
        async with open_memory(topology):
            pass
    assert str(opened.value) == str(caught.value)


async def test_check_says_the_depth_of_the_fifo_that_is_used():
    for budget in ("256KiB", "1MiB", "4MiB", "64MiB"):
        topology = resolve("kcompressd", budget=budget, swap=[])
        (line,) = [line for line in explain(topology) if "the FIFO holds" in line]
        async with open_memory(topology) as memory:
            depth = memory._machine.fifo.limit
        assert f"the FIFO holds {depth} pages" in line
        assert ("of the 256 of `fifo`" in line) == (depth < 256)
        assert depth >= min(256, fit(topology)[1].max_bytes // topology.page_size // 2)


def test_two_stores_of_one_kind_are_told_apart():
    text = "\n".join(explain(resolve({"swap": [{"priority": 1}, {"priority": 2}]})))
    assert text.index("swap file1: ") < text.index("swap file0: ")


@pytest.mark.parametrize(
    ("keys", "says"),
    [
        ({"budget": "5KiB"}, "16 pages, 64KiB, to 1PiB"),
        ({"budget": "64M"}, "16 pages to 1PiB, in bytes, or with a unit (B, KiB, MiB, GiB, TiB)"),
        ({"nodes": 2}, "no more yet"),
        ({"watermarks": {"min": "10"}}, "watermarks.min is '10'; allowed: '10%' of the budget"),
    ],
)
def test_what_is_allowed_is_said_at_once(keys, says):
    with pytest.raises(TopologyError) as caught:
        resolve(keys)
    assert says in str(caught.value)
