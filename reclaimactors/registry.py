"""Names to plugins: built-in, entry point, or ``"package.module:attr"``.

All but an explicit object name a factory (a class or function); the other keys of its table are its
keyword arguments. Nothing is imported that is not named.
"""

from __future__ import annotations

import difflib
import importlib
from importlib.metadata import EntryPoint, entry_points
from typing import TYPE_CHECKING, Any, Final

import attrs

from reclaimactors.errors import PluginError, TopologyError

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["PluginRef", "build", "known"]

_BUILTIN: Final = {
    "compressors": {
        "lz4": "reclaimactors.compressors.lz4:Lz4",
        "null": "reclaimactors.compressors.null:Null",
        "zlib": "reclaimactors.compressors.zlib:Zlib",
    },
    "backends": {
        "file": "reclaimactors.backends.file:FileBackend",
        "memory": "reclaimactors.backends.memory:MemoryBackend",
    },
    "policies": {
        "active_inactive": "reclaimactors.mm.lru:ActiveInactive",
        "mglru": "reclaimactors.mm.mglru:Mglru",
    },
}
_METHODS: Final = {
    "compressors": ("compress", "decompress"),
    "backends": ("open", "aclose", "store_many", "load_many", "invalidate_many"),
    "policies": ("insert", "access", "remove", "isolate", "putback", "shadow", "age"),
}
# Names that people know, and the distribution that brings them.
_ELSEWHERE: Final = {"zstd": "reclaimactors-zstd"}


def _no_options() -> Mapping[str, Any]:
    return {}


@attrs.frozen
class PluginRef:
    """A plugin as a topology names it."""

    name: str
    options: Mapping[str, Any] = attrs.field(factory=_no_options)
    instance: Any = None

    @classmethod
    def parse(cls, value: Any, *, where: str) -> PluginRef:
        """Return the reference that a TOML value, or an explicit object, stands for.

        Args:
            value: a name, a table with `name` and options, or an object with the kind's methods.
            where: the key, for errors.

        Raises:
            TopologyError: if it is none of these.
        """
        if isinstance(value, PluginRef):
            return value
        if isinstance(value, str):
            return cls(value)
        if isinstance(value, dict):
            table: dict[str, Any] = dict(value)  # pyright: ignore[reportUnknownArgumentType] # TOML
            name = table.pop("name", None)
            if not isinstance(name, str):
                raise TopologyError(f"{where}.name is {name!r}; a plugin's name is a string")
            return cls(name, table)
        if value is None or isinstance(value, (bool, int, float, bytes, list, tuple, type)):
            msg = f"{where} is {value!r}; write a plugin's name, a table with a name, or an object"
            raise TopologyError(msg)
        return cls(str(getattr(value, "name", type(value).__name__)), instance=value)


def build(kind: str, ref: PluginRef, **defaults: Any) -> Any:
    """Return the plugin object that a reference names.

    Args:
        kind: ``"compressors"``, ``"backends"`` or ``"policies"``.
        ref: what the topology says.
        defaults: keyword arguments that the factory gets besides its own options.

    Raises:
        PluginError: if it cannot be found, imported or built, or lacks a method of its contract.
    """
    if ref.instance is not None:
        return _checked(kind, ref, ref.instance)
    factory = _factory(kind, ref.name)
    try:
        plugin = factory(**{**defaults, **ref.options})
    except (TypeError, ValueError) as exc:
        told = ", ".join(f"{name}={value!r}" for name, value in ref.options.items()) or "none"
        msg = f"{_one(kind)} plugin {ref.name!r} refused its options ({told}): {exc}"
        raise PluginError(msg) from exc
    except ImportError as exc:
        raise _missing_library(kind, ref.name, exc) from exc
    return _checked(kind, ref, plugin)


def known(kind: str) -> list[tuple[str, str]]:
    """Return (name, where it comes from) of each plugin of a kind, importing none of them."""
    found = dict.fromkeys(_BUILTIN[kind], "built-in")
    for point in _entry_points(kind):
        origin = point.dist.name if point.dist else point.value
        found.setdefault(point.name, origin)
    return sorted(found.items())


def _factory(kind: str, name: str) -> Any:
    target = _BUILTIN[kind].get(name)
    if target is None:
        points = [point for point in _entry_points(kind) if point.name == name]
        if points:
            target = points[0].value
        elif ":" in name:
            target = name
        else:
            raise PluginError(_unknown(kind, name))
    point = EntryPoint(name=name, value=target, group=f"reclaimactors.{kind}")
    try:
        importlib.import_module(point.module)
        return point.load()
    except ImportError as exc:
        raise _missing_library(kind, name, exc) from exc
    except AttributeError as exc:
        raise PluginError(f"{_one(kind)} plugin {name!r}: {exc}") from exc


def _entry_points(kind: str) -> list[EntryPoint]:
    return list(entry_points(group=f"reclaimactors.{kind}"))


def _unknown(kind: str, name: str) -> str:
    names = [found for found, _ in known(kind)]
    msg = f"no {_one(kind)} plugin {name!r}; known: {', '.join(names)}"
    if name in _ELSEWHERE:
        return f"{msg}; pip install {_ELSEWHERE[name]} brings it"
    near = difflib.get_close_matches(name, names, 1)
    return f"{msg} (did you mean {near[0]!r}?)" if near else msg


def _missing_library(kind: str, name: str, exc: ImportError) -> PluginError:
    missing = (exc.name or "").partition(".")[0]
    advice = f"; pip install {missing} may mend it" if missing else ""
    return PluginError(f"{_one(kind)} plugin {name!r} cannot be imported: {exc}{advice}")


def _checked(kind: str, ref: PluginRef, plugin: Any) -> Any:
    missing = [name for name in _METHODS[kind] if not callable(getattr(plugin, name, None))]
    if missing:
        msg = f"{_one(kind)} {ref.name!r} ({type(plugin).__name__}) lacks {', '.join(missing)}"
        raise PluginError(msg)
    return plugin


def _one(kind: str) -> str:
    return {"compressors": "compressor", "backends": "backend", "policies": "policy"}[kind]
