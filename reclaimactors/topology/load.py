"""From a name, a file, a mapping or a `Topology`, and overrides, to a `Topology`.

The built-in topologies are the TOML files beside this module. What keys mean is in `spec.py`.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from importlib.resources import files
from os import PathLike, fspath
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs

from reclaimactors.errors import TopologyError
from reclaimactors.topology.checks import bad, suggest
from reclaimactors.topology.spec import Topology, table

if TYPE_CHECKING:
    from importlib.resources.abc import Traversable

__all__ = ["builtin_names", "resolve"]

_TABLES = ("compress", "watermarks", "zswap")
_MAX_FILE = 1 << 20  # bytes: whatever is larger is no topology


def builtin_names() -> list[str]:
    """Return the names of the built-in topologies."""
    return sorted(_builtins())


def resolve(
    topology: str | PathLike[str] | Mapping[str, Any] | Topology = "kcompressd",
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
    return table(Topology, keys, "")


def _merged(current: Any, value: Any) -> Any:
    if attrs.has(type(current)):
        current = attrs.asdict(current, recurse=False)
    if isinstance(current, Mapping) and isinstance(value, Mapping):
        return {**current, **value}
    return value


def _keys(topology: Any) -> dict[Any, Any]:
    """Return the keys of a topology, unchecked."""
    if isinstance(topology, Topology):
        return attrs.asdict(topology, recurse=False)
    if isinstance(topology, Mapping):
        return {**topology}
    try:
        path = fspath(topology)
    except TypeError:
        path = None
    if not isinstance(path, str):
        raise bad("topology", topology, "a built-in name, a path, a table of keys, or a Topology")
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
        with Path(path).open("rb") as file:
            raw = file.read(_MAX_FILE + 1)
        if len(raw) > _MAX_FILE:
            raise bad("topology", path, "a TOML file of at most 1MiB")
        return tomllib.loads(raw.decode())
    except FileNotFoundError:
        names = builtin_names()
        allowed = f"{', '.join(names)}{suggest(path, names)}, or the path of a TOML file"
        raise bad("topology", path, f"{allowed}; there is no such file") from None
    except OSError as exc:
        msg = f"cannot read {exc.strerror or exc}"
        raise bad("topology", path, f"a TOML file; {msg}") from None
    except TopologyError:
        raise
    except (ValueError, RecursionError) as exc:  # not UTF-8, not TOML, an endless int, a NUL
        raise TopologyError(f"topology {path!r:.100} is not TOML: {exc!s:.200}") from None
