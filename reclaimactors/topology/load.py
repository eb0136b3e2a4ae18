"""From a name, a file, a mapping or a `Topology`, and overrides, to a `Topology`.

The built-in topologies are the TOML files beside this module. What keys mean is in `spec.py`.
"""

from __future__ import annotations

import tomllib
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs

from reclaimactors.errors import TopologyError
from reclaimactors.topology.checks import bad, is_table, suggest
from reclaimactors.topology.spec import (
    CompressSpec,
    SenpaiSpec,
    Topology,
    WatermarksSpec,
    ZswapSpec,
    table,
)

if TYPE_CHECKING:
    from collections.abc import Mapping
    from importlib.resources.abc import Traversable

__all__ = ["builtin_names", "resolve"]

_TABLES = ("compress", "senpai", "watermarks", "zswap")
_MAX_FILE = 1 << 20  # bytes: whatever is larger is no topology


def builtin_names() -> list[str]:
    """Return the names of the built-in topologies."""
    return sorted(_builtins())


def resolve(
    topology: str | Path | Mapping[str, Any] | Topology = "kcompressd",
    *,
    budget: int | str | None = None,
    **overrides: Any,
) -> Topology:
    """Return the topology that `open_memory` is to build.

    Args:
        topology: a built-in name, a path to a TOML file, its keys as a mapping, or a `Topology`.
        budget: replaces the topology's; percentages of it follow. None leaves it.
        overrides: keys: a mapping merges into its table, anything else replaces.

    Raises:
        TopologyError: if there is none, or for a bad key or value.
    """
    keys = _keys(topology)
    if budget is not None:
        overrides["budget"] = budget
    for key, value in overrides.items():
        keys[key] = _merged(keys.get(key), value) if key in _TABLES else value
    try:
        return table(Topology, keys, "")
    except TopologyError as exc:
        if isinstance(topology, (str, Path)) and str(topology) not in _builtins():
            raise TopologyError(f"{topology}: {exc}") from None
        raise


def _merged(current: Any, value: Any) -> Any:
    current = _as_asked(current)
    return {**current, **value} if is_table(current) and is_table(value) else value


def _as_asked(spec: Any) -> Any:
    """Return the keys of a spec; anything else as it is."""
    is_spec = isinstance(spec, (Topology, CompressSpec, SenpaiSpec, WatermarksSpec, ZswapSpec))
    return attrs.asdict(spec, recurse=False) if is_spec else spec


def _keys(topology: Any) -> dict[Any, Any]:
    """Return the keys of a topology, unchecked."""
    keys = _as_asked(topology)
    if is_table(keys):
        return {**keys}
    if not isinstance(topology, (str, Path)):
        raise bad("topology", topology, "a built-in name, a path, a table of keys, or a Topology")
    path = str(topology)
    built_in = _builtins().get(path)
    if built_in is not None:
        return {"name": path, **tomllib.loads(built_in.read_text("utf-8"))}
    return {"name": Path(path).stem or path, **_read(path)}


def _builtins() -> dict[str, Traversable]:
    folder = files("reclaimactors.topology")
    return {
        entry.name.removesuffix(".toml"): entry
        for entry in folder.iterdir()
        if entry.name.endswith(".toml")
    }


def _read(path: str) -> dict[str, Any]:
    """Return the keys of a TOML file."""
    try:
        return tomllib.loads(_bytes(path).decode())
    except FileNotFoundError:
        names = builtin_names()
        allowed = f"{', '.join(names)}{suggest(path, names)}, or the path of a TOML file"
        raise bad("topology", path, f"{allowed}; there is no such file") from None
    except OSError as exc:
        raise bad("topology", path, f"a TOML file ({exc.strerror or exc})") from None
    except (ValueError, RecursionError) as exc:  # not UTF-8, not TOML, an endless int, a NUL
        raise TopologyError(f"topology {path!r:.100} is not TOML: {exc!s:.200}") from None


def _bytes(path: str) -> bytes:
    with Path(path).open("rb") as file:
        raw = file.read(_MAX_FILE + 1)
    if len(raw) > _MAX_FILE:
        raise ValueError("it is larger than 1MiB")
    return raw
