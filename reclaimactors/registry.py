"""From a name to a plugin: compressors, backends, policies and offloads.

A name is resolved as built-in, entry point, then ``"package.module:attr"``. All of them name a
factory (a class or a function), called with the options as keyword arguments; an explicit object
is the plugin itself. Nothing is imported that is not named, and whatever a plugin does wrong on
its way in leaves here as a `PluginError` that says what to mend. What a plugin must offer is in
`abc.py`. A backend serves one user at a time, who takes it before opening it and lets go of it once
it is closed.
"""

from __future__ import annotations

import difflib
import errno
import inspect
import weakref
from collections.abc import Callable, Mapping
from contextlib import suppress
from importlib import import_module
from operator import attrgetter
from typing import TYPE_CHECKING, Any, Literal, Self, cast, overload

import attrs

from reclaimactors.abc import Backend
from reclaimactors.errors import BackendError, PluginError, ReclaimError, TopologyError

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

    from reclaimactors.abc import Compressor, Offload, Policy

__all__ = [
    "CONTRACT",
    "Kind",
    "PluginRef",
    "build",
    "elsewhere",
    "is_in_this_process",
    "kinds_of",
    "known",
    "let_go",
    "preload",
    "take",
    "use_up",
]

Kind = Literal["compressors", "backends", "policies", "offloads"]

_WORD: dict[Kind, str] = {
    "compressors": "compressor",
    "backends": "backend",
    "policies": "policy",
    "offloads": "offload",
}

_BUILT_IN: dict[str, dict[str, str]] = {
    "compressors": {
        "lz4": "reclaimactors.compressors.lz4:Lz4",
        "null": "reclaimactors.compressors.null:Null",
        "zlib": "reclaimactors.compressors.zlib:Zlib",
    },
    "backends": {
        "file": "reclaimactors.backends.file:FileBackend",
        "memory": "reclaimactors.backends.memory:MemoryBackend",
        "zram": "reclaimactors.backends.zram:ZramBackend",
    },
    "policies": {
        "active_inactive": "reclaimactors.policies.active_inactive:ActiveInactive",
        "mglru": "reclaimactors.policies.mglru:Mglru",
        "s3fifo": "reclaimactors.policies.s3fifo:S3Fifo",
        "sieve": "reclaimactors.policies.sieve:Sieve",
    },
    "offloads": {},  # those of this package are wired to the machine in `topology.build`
}

# Plugins of this project that are installed apart, by (kind, name).
_ELSEWHERE = {
    ("backends", "fsspec"): "reclaimactors-fsspec",
    ("backends", "lmdb"): "reclaimactors-lmdb",
    ("compressors", "zstd"): "reclaimactors-zstd",
    ("offloads", "native"): "reclaimactors-native",
}

CONTRACT: dict[Kind, tuple[str, ...]] = {
    "compressors": ("name", "compress", "decompress"),
    "backends": ("open", "aclose", "store_many", "load_many", "invalidate_many"),
    "policies": ("insert", "access", "remove", "isolate", "putback", "shadow", "age"),
    "offloads": ("open", "submit", "collect", "close"),
}


def _no_options() -> dict[str, Any]:
    return {}


@attrs.frozen
class PluginRef:
    """What a topology says about one plugin. It pickles if its object does.

    Attributes:
        name: of the plugin, or of the explicit object.
        options: keyword arguments of its factory.
        instance: the explicit object, None where the name decides.
    """

    name: str
    options: Mapping[str, Any] = attrs.field(factory=_no_options)
    instance: object | None = None

    @classmethod
    def parse(cls, value: Any, *, where: str) -> Self:
        """Return a reference from a name, a table ``{name = ..., **options}`` or an object.

        Args:
            value: what the topology says; a `PluginRef` stays as it is.
            where: the topology's key, for the error.

        Raises:
            TopologyError: if it is none of these.
        """
        if isinstance(value, cls):
            return value
        if isinstance(value, str) and value.strip():
            return cls(value)
        if isinstance(value, Mapping):
            table = cast("Mapping[str, Any]", value)
            options = {str(key): option for key, option in table.items()}
            name = options.pop("name", None)
            if isinstance(name, str) and name.strip():
                return cls(name, options)
        elif not isinstance(value, type) and type(value).__module__ not in ("builtins", "datetime"):
            name = getattr(value, "name", None)
            return cls(name if isinstance(name, str) else type(value).__name__, instance=value)
        allowed = "a plugin's name, a table { name = ..., and its options }, or a plugin object"
        raise TopologyError(f"{where} is {_seen(cast('object', value))}; allowed: {allowed}")


def _seen(value: object) -> str:
    try:
        return repr(value)[:200]
    except (ValueError, RecursionError):  # an int of 5000 digits, a list in a list in a list ...
        return f"of type {type(value).__name__}"


def known(kind: str) -> list[tuple[str, str]]:
    """Return (name, origin) of every plugin that can be named here, by name, importing none.

    The origin is "built-in" or the distribution that brought it, as "reclaimactors-zstd 0.1.0".
    """
    found = {name: _origin(entry) for name, entry in _entry_points(kind).items()}
    return sorted((found | dict.fromkeys(_BUILT_IN[kind], "built-in")).items())


def kinds_of(name: str) -> list[Kind]:
    """Return the kinds that have a plugin of this name here, or could have it by pip install.

    For "package.module:attr" these are the kinds of whose contract the class has every method; none
    where it is no class, as what a function makes is not seen before it is called.
    """
    if ":" not in name:
        return [kind for kind in _WORD if name in dict(known(kind)) or (kind, name) in _ELSEWHERE]
    factory = _factory("backends", name, f"plugin {name!r}")
    return [
        kind
        for kind, needs in CONTRACT.items()
        if all(name == "name" or hasattr(factory, name) for name in needs)
    ]


@overload
def build(kind: Literal["compressors"], ref: PluginRef, /, **defaults: object) -> Compressor: ...
@overload
def build(kind: Literal["backends"], ref: PluginRef, /, **defaults: object) -> Backend: ...
@overload
def build(kind: Literal["policies"], ref: PluginRef, /, **defaults: object) -> Policy: ...
@overload
def build(kind: Literal["offloads"], ref: PluginRef, /, **defaults: object) -> Offload: ...
def build(kind: Kind, ref: PluginRef, /, **defaults: object) -> Any:
    """Return the plugin that `ref` names, or its explicit object.

    Args:
        kind: "compressors", "backends", "policies" or "offloads".
        ref: name and options, or an object.
        defaults: what a factory of the kind gets besides if it takes it, as `pages` for policies.

    Raises:
        PluginError: if there is no such plugin, it or its library cannot be imported, it refuses
            its options, or lacks a method of its contract.
    """
    plugin: Any = ref.instance
    what = f"{_WORD[kind]} plugin {ref.name!r}"
    if plugin is None:
        plugin = _call(what, _factory(kind, ref.name, what), ref.options, defaults)
    missing = [name for name in CONTRACT[kind] if not _has(plugin, name)]
    if missing:
        msg = f"{what} lacks {', '.join(missing)}; see the contract in reclaimactors.abc"
        raise PluginError(msg)
    return _Adapted(plugin) if kind == "backends" and not isinstance(plugin, Backend) else plugin


class _Adapted(Backend):
    """A backend that does not inherit from `Backend`: what it lacks is as it is there."""

    def __init__(self, plugin: object) -> None:
        vars(self).update(plugin=plugin, in_this_process=hasattr(plugin, "footprint"))

    def __getattribute__(self, name: str) -> Any:
        inherited = super().__getattribute__
        if name == "plugin" or name.startswith("__"):
            return inherited(name)
        plugin = inherited("plugin")
        return getattr(plugin, name) if hasattr(plugin, name) else inherited(name)

    def __setattr__(self, name: str, value: object) -> None:
        setattr(self.plugin, name, value)


def is_in_this_process(ref: PluginRef) -> bool:
    """Return whether a backend keeps its bytes in this process, without making it.

    False where nothing is known of it: its factory is a function, or cannot be had.
    """
    if ref.instance is not None:
        return bool(getattr(ref.instance, "in_this_process", hasattr(ref.instance, "footprint")))
    try:
        factory = _factory("backends", ref.name, ref.name)
    except PluginError:
        return False
    return bool(getattr(factory, "in_this_process", hasattr(factory, "footprint")))


def elsewhere(kind: str) -> list[tuple[str, str]]:
    """Return (name, distribution) of this project's plugins that are not installed here."""
    here = dict(known(kind))
    apart = [(name, other) for (of_kind, name), other in _ELSEWHERE.items() if of_kind == kind]
    return [(name, other) for name, other in apart if name not in here]


def preload(kind: Kind, ref: PluginRef) -> None:
    """Import what makes a plugin ahead of `build`, which says what is wrong with it."""
    if ref.instance is None:
        with suppress(PluginError):
            _factory(kind, ref.name, ref.name)


_taken: dict[int, tuple[object, str]] = {}  # by id, which is nobody else's while the object is here


def take(backend: object, user: str) -> None:
    """Have a backend to oneself until `let_go`: two users would write to the same slots.

    Args:
        backend: the object, before it is opened.
        user: who wants it, in words for the error that the next one gets.

    Raises:
        BackendError: (EBUSY) if somebody has that very object, in this process.
    """
    mine = (backend, user)
    held = _taken.setdefault(_id(backend), mine)  # one step: a memory may open in another thread
    if held is not mine:
        hint = "swap that off or close its memory first, or give each an object of its own"
        raise BackendError(errno.EBUSY, f"{held[1]} has the backend of {user} already; {hint}")


_served: dict[int, object] = {}  # policies by id, weakly where they can be


def use_up(policy: object) -> None:
    """Note that a policy object serves a memory: it knows that one's folios from then on.

    Raises:
        PluginError: if it has served one already.
    """
    number = id(policy)
    if number in _served:
        name = type(policy).__name__
        msg = f"policy object {name} has served a memory already; give each memory a new one"
        raise PluginError(msg)
    try:
        _served[number] = weakref.ref(policy, lambda _: _served.pop(number))
    except TypeError:  # it has __slots__
        _served[number] = policy


def let_go(backend: object) -> None:
    """Leave a backend, which is closed, to whoever takes it next."""
    _taken.pop(_id(backend), None)


def _id(backend: object) -> int:
    """Return what is the same for every adapter of a backend."""
    return id(backend.plugin if isinstance(backend, _Adapted) else backend)


def _has(plugin: object, name: str) -> bool:
    member = getattr(plugin, name, None)
    if name == "name":
        return isinstance(member, str)
    # A subclass of Backend inherits these two only to be told that it must define them.
    inherited = name in ("store_many", "load_many") and isinstance(plugin, Backend)
    return callable(member) and not (
        inherited and getattr(type(plugin), name) is getattr(Backend, name)
    )


def _entry_points(kind: str) -> dict[str, EntryPoint]:
    from importlib.metadata import entry_points  # noqa: PLC0415 - slow, and not for what is built in

    try:
        found = entry_points(group=f"reclaimactors.{kind}")
    except Exception as exc:
        msg = f"the entry points of what is installed cannot be read: {type(exc).__name__}: {exc}"
        raise PluginError(msg) from exc
    return {entry.name: entry for entry in reversed(tuple(found))}  # the first on sys.path wins


def _origin(entry: EntryPoint) -> str:
    return f"{entry.dist.name} {entry.dist.version}" if entry.dist else "an entry point"


def _factory(kind: Kind, name: str, what: str) -> Callable[..., Any]:
    """Import and return what makes the plugin."""
    path = _BUILT_IN[kind].get(name)
    if path is None:
        entry = _entry_points(kind).get(name)
        path = entry.value if entry else name
    module, colon, attr = path.partition(":")
    if not colon:
        raise PluginError(_unknown(kind, name))
    try:
        factory = attrgetter(attr.partition("[")[0].strip())(import_module(module.strip()))
    except ImportError as exc:
        raise PluginError(f"{what} cannot be imported: {_mend(exc, module.strip())}") from exc
    except (Exception, SystemExit) as exc:  # a script that ends the program is no plugin
        msg = f"{what} cannot be imported: {type(exc).__name__}: {exc}"
        raise PluginError(msg) from exc
    if not callable(factory):
        msg = f"{what} is {type(factory).__name__}, not a factory (a class or a function)"
        raise PluginError(msg)
    return cast("Callable[..., Any]", factory)


def _unknown(kind: Kind, name: str) -> str:
    names = [known_name for known_name, _ in known(kind)]
    apart = [other for of_kind, other in _ELSEWHERE if of_kind == kind]
    message = f"no {_WORD[kind]} plugin {name!r}; known: {', '.join(names)}"
    near = difflib.get_close_matches(name, {*names, *apart}, 1)
    if near and near[0] != name:
        message += f" (did you mean {near[0]!r}?)"
    if near and near[0] not in names:
        message += f"; to have it: pip install {_ELSEWHERE[kind, near[0]]}"
    return message


def _mend(exc: ImportError, module: str) -> str:
    """Return what an ImportError of a plugin means, and which step helps."""
    missing = exc.name if isinstance(exc, ModuleNotFoundError) else None
    if missing is None:
        return str(exc)
    if f"{module}.".startswith(f"{missing}."):
        return (
            f"there is no module {missing!r}; check the name, pip install what has it, or set "
            "PYTHONPATH=. if it is in this folder"
        )
    library = missing.partition(".")[0]
    return f"its library {library!r} is missing; to have it: pip install {library}"


def _call(
    what: str,
    factory: Callable[..., Any],
    options: Mapping[str, Any],
    defaults: Mapping[str, object],
) -> object:
    """Return what the factory makes of its options."""
    takes = _takes(factory)
    names = "" if takes is None else f"; it takes: {', '.join(takes) or 'none'}"
    for name in options:
        if takes is not None and name not in takes:
            near = difflib.get_close_matches(name, takes, 1)
            hint = f" (did you mean {near[0]!r}?)" if near else ""
            raise PluginError(f"{what} has no option {name!r:.80}{hint}{names}")
    extra = {name: value for name, value in defaults.items() if takes is None or name in takes}
    try:
        return factory(**{**extra, **options})
    except ReclaimError:
        raise
    except ImportError as exc:
        raise PluginError(f"{what} cannot be made: {_mend(exc, '')}") from exc
    except (Exception, SystemExit) as exc:  # `sys:exit` is no plugin either
        given = ", ".join(f"{key}={value!r:.80}" for key, value in options.items()) or "none given"
        msg = f"{what} refused its options ({given}): {exc}{names}"
        raise PluginError(msg) from exc


def _takes(factory: Callable[..., Any]) -> list[str] | None:
    """Return the options that a factory takes; None where it does not say, or takes any."""
    try:
        parameters = inspect.signature(factory).parameters
    except (TypeError, ValueError):
        return None
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
        return None
    return list(parameters)
