"""What a topology may say: defaults, conversions, and the error of each bad value."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from reclaimactors import TopologyError
from reclaimactors.backends.memory import MemoryBackend
from reclaimactors.compressors.null import Null
from reclaimactors.registry import PluginRef
from reclaimactors.topology import (
    CompressSpec,
    SenpaiSpec,
    SwapSpec,
    Topology,
    WatermarksSpec,
    ZswapSpec,
    explain,
    resolve,
    spec,
)
from reclaimactors.units import KIB, MIB

SPECS = [CompressSpec, SenpaiSpec, SwapSpec, Topology, WatermarksSpec, ZswapSpec]


def test_defaults_are_the_contracts():
    topology = Topology()
    assert (topology.budget, topology.page_size, topology.max_folio) == (64 * MIB, 4096, 256 * KIB)
    assert topology.policy == PluginRef("mglru")
    assert topology.watermarks.resolve(100_000) == (2_000, 6_000, 12_000)
    assert (topology.nodes, topology.close_timeout, topology.swap) == (1, 5.0, ())
    assert topology.compress == CompressSpec(
        mode="kcompressd", workers=None, offload="process", fifo=256, on_full="inline",
        ordered=False, compressor="lz4", batch=128, in_flight=4, nice=10,
    )  # fmt: skip
    assert topology.zswap == ZswapSpec(
        enabled=True, max_pool_percent=20, accept_threshold_percent=90, shrinker=True
    )
    assert SwapSpec() == SwapSpec(backend="file", size=None, priority=10, timeout=30.0)


@pytest.mark.parametrize("cls", SPECS)
def test_defaults_pass_their_own_checks(cls):
    given_all = {field.name: getattr(cls(), field.name) for field in attrs.fields(cls)}
    assert cls(**given_all) == cls()


def test_python_takes_what_toml_says():
    topology = Topology(
        budget="1MiB",
        policy={"name": "mglru", "max_gens": 5},
        watermarks={"min": "16KiB", "low": 65536, "high": "25.5%"},
        close_timeout=2,
        compress={"mode": "padata", "workers": 3, "compressor": {"name": "zlib", "level": 9}},
        zswap={"enabled": False},
        swap=[{"backend": "memory", "size": "8MiB"}, SwapSpec(priority=-2)],
    )
    assert topology.policy == PluginRef("mglru", {"max_gens": 5})
    assert topology.watermarks.resolve(topology.budget) == (16384, 65536, int(MIB * 0.255))
    assert (topology.close_timeout, type(topology.close_timeout)) == (2.0, float)
    assert topology.compress.compressor.options == {"level": 9}
    assert not topology.zswap.enabled
    assert [swap.priority for swap in topology.swap] == [10, -2]
    assert topology.swap[0].size == 8 * MIB


def test_objects_stand_for_plugins():
    null, store = Null(), MemoryBackend()
    topology = Topology(compress={"compressor": null}, swap=[{"backend": store}])
    assert topology.compress.compressor.instance is null
    assert topology.swap[0].backend.instance is store


def test_a_swap_without_a_size_has_16_times_the_budget():
    topology = Topology(budget="1MiB", swap=[{}, {"size": "4MiB"}])
    assert [topology.swap_bytes(swap) for swap in topology.swap] == [16 * MIB, 4 * MIB]


def test_workers_follow_the_mode_and_the_machine():
    assert CompressSpec(mode="padata").nr_workers == 2
    assert CompressSpec(mode="padata", workers=5).nr_workers == 5
    assert CompressSpec().nr_workers == CompressSpec(workers=1).nr_workers == 1
    assert CompressSpec(mode="inline").nr_workers == 1


@pytest.mark.parametrize(("cpus", "offload"), [(1, "inline"), (2, "process")])
def test_who_compresses_follows_the_cpus_unless_it_is_said(monkeypatch, cpus, offload):
    monkeypatch.setattr(spec, "usable_cpus", lambda: cpus)
    module = sys.modules["reclaimactors.topology.explain"]  # the package shows its function
    monkeypatch.setattr(module, "usable_cpus", lambda: cpus)
    assert CompressSpec().offload == offload
    assert CompressSpec(offload="process").offload == "process"
    says = "\n".join(explain(Topology(compress={"mode": "kcompressd"})))
    assert ("one CPU is usable here" in says) == (cpus == 1)
    assert ("in the event loop, in slices" in says) == (cpus == 1)


def test_usable_cpus_where_there_is_no_affinity(monkeypatch):
    monkeypatch.undo()
    monkeypatch.delattr("os.sched_getaffinity", raising=False)
    monkeypatch.setattr("os.cpu_count", lambda: None)
    assert spec.usable_cpus() == 1


@pytest.mark.parametrize("mode", spec.MODES)
@pytest.mark.parametrize("offload", spec.OFFLOADS)
def test_every_mode_goes_with_every_offload(mode, offload):
    assert CompressSpec(mode=mode, offload=offload).offload == offload


def test_specs_are_frozen():
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        Topology().budget = 3


def test_an_offload_of_ours_that_is_not_installed_says_how_to_have_it(monkeypatch):
    monkeypatch.setattr("importlib.metadata.entry_points", lambda group: ())
    allowed = "inline, thread, process, native (pip install reclaimactors-native)"
    for value, more in (("native", ""), ("nativ", " (did you mean 'native'?)"), ("gpu", "")):
        with pytest.raises(TopologyError) as caught:
            Topology(compress={"offload": value})
        assert str(caught.value).startswith(f"compress.offload is '{value}'; allowed: {allowed}")
        assert more in str(caught.value)


@pytest.mark.parametrize(
    ("compress", "offered"),
    [
        ({"offload": "process"}, True),
        ({"offload": "thread", "compressor": {"name": "lz4", "acceleration": 3}}, True),
        ({"offload": "process", "compressor": "zlib"}, False),
        ({"offload": "inline"}, False),
        ({"offload": "native"}, False),
    ],
)
def test_check_offers_the_offload_that_is_installed(monkeypatch, compress, offered):
    has_it = [SimpleNamespace(name="native", dist=None)]
    monkeypatch.setattr("importlib.metadata.entry_points", lambda group: has_it)
    says = "\n".join(explain(Topology(compress=compress)))
    assert ('offload = "native" is installed' in says) == offered
    assert ("in the threads of offload 'native'" in says) == (compress["offload"] == "native")
    monkeypatch.setattr("importlib.metadata.entry_points", lambda group: ())
    if compress["offload"] != "native":
        assert "native" not in "\n".join(explain(Topology(compress=compress)))


# -- bad values ------------------------------------------------------------------------------------

HUGE = 16**6000  # too many digits to be printed
BAD_SIZES = [-1, 2.5, True, None, "", "x", "64MB", "-1MiB", [], {}, HUGE, "9" * 400 + ".5GiB"]
BAD_INTS = [True, "3", 2.5, float("nan"), [], {}, HUGE, -HUGE]
BAD_PLUGINS = [None, 3, True, "", [], {}, {"level": 3}, {"name": 3}, MemoryBackend]
BAD_NUMBERS = [0, -1, True, "5", None, [], float("nan"), float("inf"), HUGE]
BAD_FLAGS = [0, 1, "true", None, [], {}]

BAD = {
    "name": ["", 3, None],
    "budget": [*BAD_SIZES, 0, "4KiB", "64KiB0", 1 << 51],
    "page_size": [*BAD_SIZES, 0, 256, 4095, 6000, "2MiB"],
    "max_folio": [*BAD_SIZES, 0, 2048, "2GiB"],
    "policy": BAD_PLUGINS,
    "watermarks": ["2%", None, 3, [], {"min": 0}, {"low": "1%"}, {"high": "100%"}],
    "watermarks.min": [*BAD_SIZES, "101%", "-1%", "%", "x%", "2%%", "nan%", "9" * 400 + "%"],
    "nodes": [*BAD_INTS, 0, 2],
    "close_timeout": BAD_NUMBERS,
    "compress": ["kcompressd", None, 3, []],
    "compress.mode": ["kswapd", "Padata", "", None, 3, []],
    "compress.workers": [*BAD_INTS, 0, -1, 2, 1000],
    "compress.offload": ["gpu", "", None, 3, []],
    "compress.fifo": [*BAD_INTS, None, 0, -1, 1 << 21],
    "compress.on_full": ["drop", "", None, 3],
    "compress.ordered": [*BAD_FLAGS, True],
    "compress.compressor": BAD_PLUGINS,
    "compress.batch": [*BAD_INTS, None, 0, 5000],
    "compress.in_flight": [*BAD_INTS, None, 0, 65],
    "compress.nice": [*BAD_INTS, None, -1, 20],
    "zswap": [True, None, 3, []],
    "zswap.enabled": BAD_FLAGS,
    "zswap.max_pool_percent": [*BAD_INTS, None, 0, 101, "20%"],
    "zswap.accept_threshold_percent": [*BAD_INTS, None, 0, 101],
    "zswap.shrinker": BAD_FLAGS,
    "swap": [None, 3, "file", {}, {"backend": "file"}],
}
BAD_SWAP = {
    "": ["file", None, 3, []],
    ".backend": BAD_PLUGINS,
    ".size": [*(bad for bad in BAD_SIZES if bad is not None), 0, 4095, 1 << 51],
    ".priority": [*BAD_INTS, None, 40000],
    ".timeout": BAD_NUMBERS,
}


def refusal(build):
    with pytest.raises(TopologyError) as caught:
        build()
    assert "; allowed: " in str(caught.value)
    assert len(str(caught.value)) < 500
    return str(caught.value)


@pytest.mark.parametrize("key", BAD)
def test_a_bad_value_is_named_with_its_key_and_what_is_allowed(key):
    table, _, name = key.rpartition(".")
    for value in BAD[key]:
        keys = {table: {name: value}} if table else {name: value}
        message = refusal(lambda: Topology(**keys))  # noqa: B023 - called at once
        assert message.startswith((f"{key} is ", f"{key} are "))
        assert refusal(lambda: resolve(keys)) == message  # noqa: B023 - called at once


@pytest.mark.parametrize("key", BAD_SWAP)
def test_a_bad_swap_is_named_with_its_index(key):
    for value in BAD_SWAP[key]:
        second = {key[1:]: value} if key else value
        message = refusal(lambda: Topology(swap=[{}, second]))  # noqa: B023 - called at once
        assert message.startswith(f"swap[1]{key} is ")


@pytest.mark.parametrize(
    ("keys", "says"),
    [
        ({"bugdet": 3}, ["bugdet is not a key", "did you mean 'budget'?", "known: name, budget"]),
        ({"compress": {"fif": 3}}, ["compress.fif is not a key", "did you mean 'fifo'?"]),
        ({"zswap": {"x": 3}}, ["zswap.x is not a key; known: enabled, "]),
        ({"watermarks": {"mid": 3}}, ["watermarks.mid is not a key"]),
        ({"swap": [{"path": "x"}]}, ["swap[0].path is not a key", "known: backend, size"]),
        ({"compress": {3: 4}}, ["compress.3 is not a key"]),
        ({"x" * 9999: 4}, ["xxx is not a key"]),
    ],
)
def test_an_unknown_key_suggests_the_nearest(keys, says):
    with pytest.raises(TopologyError) as caught:
        resolve(keys)
    for part in says:
        assert part in str(caught.value)
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize(
    ("compress", "key"),
    [
        ({"mode": "inline", "workers": 1}, "workers"),
        ({"mode": "kcompressd", "workers": 2}, "workers"),
        ({"mode": "inline", "ordered": True}, "ordered"),
        ({"mode": "kcompressd", "ordered": True}, "ordered"),
        ({"mode": "padata", "ordered": True, "on_full": "steal_oldest"}, "on_full"),
    ],
)
def test_an_illegal_pair_is_an_error_that_says_so(compress, key):
    with pytest.raises(TopologyError, match=rf"^compress\.{key} is .*; allowed: "):
        Topology(compress=compress)
    with pytest.raises(TopologyError, match=rf"^{key} is "):
        CompressSpec(**compress)


def test_a_misspelt_word_suggests_the_nearest():
    with pytest.raises(TopologyError, match=r"did you mean 'kcompressd'\?"):
        Topology(compress={"mode": "kcompresd"})


def test_watermarks_out_of_order_are_shown():
    with pytest.raises(TopologyError) as caught:
        Topology(budget="1MiB", watermarks={"min": "7%", "low": 4096})
    assert str(caught.value) == (
        "watermarks are min 7%, low 4096, high 12% of 1MiB; allowed: 0 < min < low < high < budget"
    )


class Unprintable:
    def __repr__(self):
        raise ValueError("no")


def test_a_value_that_cannot_be_printed_is_named_by_its_type():
    with pytest.raises(TopologyError, match=r"^budget is of type Unprintable; allowed: "):
        Topology(budget=Unprintable())


scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.dates()
words = st.sampled_from(["lz4", "file", "padata", "inline", "2%", "64MiB", "thread", "1GiB"])
values = st.recursive(
    scalars | words,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)


def table_of(cls):
    names = [field.name for field in attrs.fields(cls)]
    return st.dictionaries(st.sampled_from(names) | st.text(max_size=5), values, max_size=3)


topologies = st.fixed_dictionaries(
    {},
    optional={
        **{field.name: values for field in attrs.fields(Topology)},
        "compress": table_of(CompressSpec),
        "watermarks": table_of(WatermarksSpec),
        "zswap": table_of(ZswapSpec),
        "senpai": table_of(SenpaiSpec),
        "swap": st.lists(table_of(SwapSpec), max_size=2) | values,
    },
)


def outcome(keys, overrides):
    """Return a topology or a TopologyError; anything else is raised."""
    try:
        return resolve(keys, **overrides)
    except TopologyError as exc:
        return exc


@given(topologies, topologies)
def test_any_mapping_gives_a_topology_or_a_topology_error(keys, overrides):
    got = outcome(keys, overrides)
    if isinstance(got, Topology):
        assert resolve(got) == got
    else:
        assert len(str(got)) < 1000


@given(values, st.sampled_from([field.name for field in attrs.fields(CompressSpec)]))
def test_any_value_of_any_key_is_converted_or_refused(value, key):
    got = outcome({"compress": {key: value}}, {})
    if isinstance(got, Topology):
        assert CompressSpec(**attrs.asdict(got.compress, recurse=False)) == got.compress
    else:
        assert str(got).startswith(f"compress.{key} is ")
