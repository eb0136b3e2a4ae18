"""Topologies as nobody would write them: a `Topology`, or one error that names the key.

From tables to TOML text to the command line: `reclaimactors check FILE` explains, or says in one
line what to mend.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import io
import math
import random
import sys
import tomllib
from contextlib import redirect_stderr, redirect_stdout

import attrs
import pytest
from hypothesis import HealthCheck, assume, example, given, settings
from hypothesis import strategies as st

import reclaimactors as ra
from reclaimactors import BackendError, PluginError, TopologyError
from reclaimactors.__main__ import main
from reclaimactors.registry import PluginRef, build
from reclaimactors.topology import (
    CompressSpec,
    SwapSpec,
    Topology,
    WatermarksSpec,
    ZswapSpec,
    builtin_names,
    resolve,
)
from reclaimactors.topology.load import _builtins

TABLES = {"": Topology, "compress": CompressSpec, "watermarks": WatermarksSpec, "zswap": ZswapSpec,
          "swap[0]": SwapSpec}  # fmt: skip
KEYS = [(table, field.name) for table, cls in TABLES.items() for field in attrs.fields(cls)]
# These depend on another one, and the error may be about both or about that.
SPEAK_FOR = {"watermarks.min": "watermarks", "watermarks.low": "watermarks",
             "watermarks.high": "watermarks", "page_size": "max_folio"}  # fmt: skip

# What TOML can say, whether anybody would or not.
odd_text = st.text(st.characters(exclude_categories=["Cs"]), max_size=20) | st.sampled_from(
    ["\0", "\u202e", "٣", "²", "ﬁle", "1e9MiB", "-1", "9" * 400, "64 MiB", "1.5KiB", "200%", "-2%",
     "٣%", "inf", "nan", "%", "name", "lz4", "zlib", "file", "mglru", "sys:exit", "os:nothing",
     "a:b:c", ":", "json:", " padata", "inline", "thread"]
)  # fmt: skip
numbers = (
    st.integers()
    | st.integers(-3, 300)
    | st.sampled_from([1 << 31, 1 << 50, (1 << 50) + 1, 1 << 63, 1 << 64, -(1 << 63), 10**300])
    | st.floats()
)
moments = st.dates() | st.times() | st.datetimes()
junk = st.recursive(
    st.booleans() | numbers | odd_text | moments,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(odd_text, inner, max_size=3),
    max_leaves=8,
)


DATA = random.Random(1).randbytes(4000)


def toml(value: object) -> str:
    """Write a value as TOML, tables inline."""
    match value:
        case bool():
            return str(value).lower()
        case str():
            return '"' + "".join(f"\\U{ord(char):08x}" for char in value) + '"'
        case float() if not math.isfinite(value):
            return f"{value}"
        case int() | float():
            return repr(value)
        case dt.date() | dt.time():
            return value.isoformat()
        case list():
            return f"[{', '.join(map(toml, value))}]"
        case dict():
            return f"{{{', '.join(f'{toml(key)} = {toml(item)}' for key, item in value.items())}}}"
    raise AssertionError(value)


def toml_file(keys: dict) -> str:
    return "".join(f"{toml(key)} = {toml(value)}\n" for key, value in keys.items())


def within(table: str, key: str, value: object) -> dict:
    """A topology of one key."""
    if table == "swap[0]":
        return {"swap": [{key: value}]}
    return {table: {key: value}} if table else {key: value}


def outcome(topology) -> Topology | str:
    """A topology, or what its TopologyError says; anything else is raised."""
    try:
        return resolve(topology)
    except TopologyError as exc:
        said = str(exc)
    assert len(said) < 1000
    return said


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return tmp_path_factory.mktemp("fuzz") / "mine.toml"


@given(st.sampled_from(KEYS), junk)
@example(("watermarks", "high"), "٣%")
def test_a_bad_value_of_any_key_is_an_error_that_begins_with_the_key(key, value):
    table, name = key
    where = f"{table}.{name}" if table else name
    got = outcome(within(table, name, value))
    if isinstance(got, str):
        assert got.startswith((where, SPEAK_FOR.get(where, where)))


@given(st.sampled_from(list(TABLES)), odd_text, junk)
def test_an_unknown_key_of_any_table_is_an_error_that_begins_with_it(table, name, value):
    assume(name not in {field.name for field in attrs.fields(TABLES[table])})
    where = f"{table}." if table else ""
    got = outcome(within(table, name, value))
    assert isinstance(got, str)
    assert got.startswith(f"{where}{name:.50} is not a key")


tables = st.fixed_dictionaries(
    {},
    optional={
        **{field.name: junk for field in attrs.fields(Topology)},
        **{
            name: st.dictionaries(
                st.sampled_from([field.name for field in attrs.fields(cls)]) | odd_text, junk
            )
            for name, cls in TABLES.items()
            if name in {"compress", "watermarks", "zswap"}
        },
    },
) | st.dictionaries(odd_text, junk, max_size=3)


@given(tables)
def test_a_file_says_what_its_keys_do(path, keys):
    text = toml_file(keys)
    path.write_text(text, "utf-8")
    got, said = outcome(path), outcome({"name": "mine", **tomllib.loads(text)})
    assert got == (f"{path}: {said}" if isinstance(said, str) else said)


edits = st.lists(
    st.tuples(
        st.integers(0, 2000),
        st.integers(0, 30),
        st.text(max_size=5)
        | st.sampled_from(["[", "]", "{", "}", '"', "'", "=", "\n", "#", ".", "\0", "'''", "= 1\n"])
        | junk.map(toml),
    ),
    max_size=4,
)


@given(st.sampled_from(builtin_names()), edits)
def test_a_broken_file_is_checked_without_a_traceback(path, name, edits):
    text = _builtins()[name].read_text("utf-8")
    for place, length, new in edits:
        at = place % (len(text) + 1)
        text = text[:at] + new + text[at + length :]
    path.write_text(text, "utf-8", "surrogatepass")
    assert_checked(path)


@given(tables)
@settings(suppress_health_check=[HealthCheck.too_slow])
def test_a_file_of_junk_is_checked_without_a_traceback(path, keys):
    path.write_text(toml_file(keys), "utf-8")
    assert_checked(path)


def assert_checked(path) -> None:
    """`reclaimactors check` ends with 0 and an explanation, or with 2 and one line."""
    out, err = (io.TextIOWrapper(io.BytesIO(), "ascii") for _ in range(2))
    err.reconfigure(errors="backslashreplace")  # as sys.stderr is
    argv, sys.argv = sys.argv, ["reclaimactors", "check", str(path)]
    try:
        with redirect_stdout(out), redirect_stderr(err), pytest.raises(SystemExit) as ended:
            main()
    finally:
        sys.argv = argv
    said, complained = (stream.buffer.getvalue().decode() for stream in (out, err))
    if ended.value.code == 0:
        assert (said.count("at 1:1 it holds about"), complained) == (1, "")
    else:
        assert (ended.value.code, said, complained.count("\n")) == (2, "", 1)
        assert complained.startswith("reclaimactors: ")


OPTIONS = [
    ("compressors", "lz4", "acceleration"),
    ("compressors", "zlib", "level"),
    ("backends", "memory", "capacity"),
    ("backends", "file", "path"),
    ("policies", "mglru", "max_gens"),
]


@given(st.sampled_from(OPTIONS), junk)
@example(("compressors", "lz4", "acceleration"), 3.0)
@example(("compressors", "zlib", "level"), 3.0)
@example(("backends", "memory", "capacity"), -1)
@example(("backends", "memory", "capacity"), 1.5)
@example(("backends", "file", "path"), "\0")
@example(("backends", "file", "path"), "")
def test_an_option_is_refused_when_it_is_read_or_else_works(which, value):
    kind, name, option = which
    ref = PluginRef(name, {option: value})
    said = asyncio.run(USES[kind](ref))
    if said:
        refused = (f"{name!r} refused its options", "cannot be opened", "cannot make a swap file")
        assert any(words in said for words in refused), said
        assert f"{option}=" in said or kind == "backends"


async def compress(ref: PluginRef) -> str:
    """Use a compressor; return why it was refused."""
    try:
        compressor = build("compressors", ref)
    except PluginError as exc:
        return str(exc)
    assert compressor.decompress(compressor.compress(DATA), len(DATA)) == DATA
    return ""


async def isolate(ref: PluginRef) -> str:
    """Use a policy; return why it was refused."""
    try:
        policy = build("policies", ref, pages=256)
    except PluginError as exc:
        return str(exc)
    policy.insert(0, refault=None)
    assert policy.isolate(1) == [0]
    return ""


async def store(ref: PluginRef) -> str:
    """Use a store; return why it was refused."""
    try:
        async with ra.open_memory(
            budget="1MiB", swap=[{"backend": ref}], compress={"offload": "inline"}
        ) as memory:
            await memory.put("key", DATA)
            await memory.reclaim(1 << 20)
            assert await memory.get("key") == DATA
            return ""
    except (PluginError, BackendError) as exc:
        return str(exc)


USES = {"compressors": compress, "policies": isolate, "backends": store}
