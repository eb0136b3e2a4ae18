"""From a name, a path or a `Topology`, and overrides, to a `Topology`."""

from __future__ import annotations

import difflib
import tomllib
from importlib.resources import files
from pathlib import Path
from typing import Any

import attrs

from reclaimactors.errors import TopologyError
from reclaimactors.registry import PluginRef
from reclaimactors.topology.spec import Topology, table

__all__ = ["builtin_names", "resolve"]


def builtin_names() -> list[str]:
    """Return the names of the built-in topologies."""
    folder = files("reclaimactors.topology")
    return sorted(
        entry.name.removesuffix(".toml")
        for entry in folder.iterdir()
        if entry.name.endswith(".toml")
    )


def resolve(
    topology: str | Path | Topology, *, budget: int | str | None = None, **overrides: Any
) -> Topology:
    """Return the topology that `open_memory` is to build.

    Args:
        topology: a built-in name, a path to a TOML file, or a `Topology`.
        budget: replaces the topology's; percentages of it follow.
        overrides: TOML keys: a mapping merges into its table, anything else replaces.

    Raises:
        TopologyError: for a bad key or value; it names the key, what was seen and what is allowed.
    """
    if budget is not None:
        overrides["budget"] = budget
    if isinstance(topology, Topology):
        return table(Topology, _merge(attrs.asdict(topology, recurse=False), overrides), "")
    if not isinstance(topology, (str, Path)):  # pyright: ignore[reportUnnecessaryIsInstance] # callers are not always typed
        msg = f"topology is {topology!r}; it is a built-in name, a path, or a Topology"
        raise TopologyError(msg)
    name, keys = _read(topology)
    return table(Topology, _merge({"name": name, **keys}, overrides), "")


def _merge(keys: dict[str, Any], overrides: dict[str, Any]) -> dict[str, Any]:
    merged = dict(keys)
    for key, value in overrides.items():
        current = merged.get(key)
        if attrs.has(type(current)) and not isinstance(current, PluginRef):
            current = attrs.asdict(current, recurse=False)
        if isinstance(value, dict) and isinstance(current, dict):
            merged[key] = {**current, **value}
        else:
            merged[key] = value
    return merged


def _read(topology: str | Path) -> tuple[str, dict[str, Any]]:
    """Return the name and the keys of a built-in topology or a TOML file."""
    names = builtin_names()
    if topology in names:
        text = files("reclaimactors.topology").joinpath(f"{topology}.toml").read_text("utf-8")
        return str(topology), tomllib.loads(text)
    path = Path(topology)
    if path.suffix != ".toml" and not path.exists():
        near = difflib.get_close_matches(str(topology), names, 1)
        hint = f" (did you mean {near[0]!r}?)" if near else ""
        msg = f"no topology {str(topology)!r}; built in: {', '.join(names)}, or a .toml file{hint}"
        raise TopologyError(msg)
    try:
        return path.stem, tomllib.loads(path.read_text("utf-8"))
    except OSError as exc:
        raise TopologyError(f"cannot read topology {str(path)!r}: {exc.strerror}") from exc
    except (UnicodeDecodeError, tomllib.TOMLDecodeError, RecursionError) as exc:
        raise TopologyError(f"{str(path)!r} is not TOML: {exc}") from exc
