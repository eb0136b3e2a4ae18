"""The commands about plugins: list them, check one against its contract, begin a new one."""

from __future__ import annotations

import json
import os
import sys
import threading
import tomllib
from contextlib import redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from reclaimactors import registry
from reclaimactors.commands.options import Json, one_line
from reclaimactors.commands.output import show
from reclaimactors.errors import PluginError
from reclaimactors.registry import PluginRef

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from reclaimactors.registry import Kind
    from reclaimactors.testing import Finding

__all__ = ["add_to"]

_KINDS: dict[str, Kind] = {
    "compressor": "compressors",
    "backend": "backends",
    "policy": "policies",
    "offload": "offloads",
}
_WORDS = {kind: word for word, kind in _KINDS.items()}
_PAGES = 64  #: of the budget of the first policy that is made

_Name = Annotated[
    str,
    typer.Argument(metavar="NAME", help='As a topology says it: a name, or "package.module:attr".'),
]
_Kind = Annotated[
    str,
    typer.Option(
        "--kind",
        metavar="KIND",
        help="compressor, backend, policy or offload, where NAME leaves it open.",
    ),
]
_Options = Annotated[
    list[str] | None,
    typer.Option(
        "--option",
        metavar="KEY=VALUE",
        help="An option of the plugin, as in a topology; may be given several times.",
    ),
]
_NewKind = Annotated[str, typer.Argument(metavar="KIND", help="compressor, backend or policy.")]
_NewName = Annotated[
    str,
    typer.Argument(metavar="NAME", help="What a topology will call it: a-z, 0-9 and _, as my_lz."),
]
_Into = Annotated[
    Path, typer.Option("--into", metavar="FOLDER", help="Where the new folder is made.")
]

_CHECK_EXAMPLES = """[b]Examples[/b]

reclaimactors check-plugin zlib --option level=9

PYTHONPATH=. reclaimactors check-plugin my_store:MyStore --json

A store is opened, filled, and forgotten: name no place that holds anything you need. Each check has
30 seconds.

[b]Exit status[/b]: 0 every rule is kept, 1 one is broken, 2 there is no such plugin, or it cannot
be made."""

_NEW_EXAMPLES = """[b]Example[/b]

reclaimactors new-plugin backend my_store

It makes the folder reclaimactors-my-store with a pyproject.toml, a README.md, the module and its
test. The contract is in the docstrings of reclaimactors.Compressor, Backend and Policy."""


def add_to(app: typer.Typer) -> None:
    """Add `plugins`, `check-plugin` and `new-plugin`."""
    app.command()(plugins)
    app.command("check-plugin", epilog=one_line(_CHECK_EXAMPLES))(check_plugin)
    app.command("new-plugin", epilog=one_line(_NEW_EXAMPLES))(new_plugin)


def plugins() -> None:
    """List the compressors, backends, policies and offloads that a topology can name here."""
    lines = [
        f"{kind.ljust(12)} {name.ljust(16)} {origin}"
        for kind in _WORDS
        for name, origin in registry.known(kind)
    ]
    show("\n".join(lines))


def check_plugin(
    name: _Name, *, kind: _Kind = "", option: _Options = None, as_json: Json = False
) -> int:
    """Say whether a plugin keeps its contract: what was seen, which rule, and what to do."""
    found = _kind(kind) if kind else _kind_of(name)
    ref = PluginRef(name, _options(option or ()))
    with redirect_stdout(sys.stderr):  # what a plugin prints is no part of the result
        checks = _checks(found, ref)
    findings: list[Finding] = []
    if not as_json:
        show(_headline(found, ref))
    while finding := _next(checks):
        findings.append(finding)
        if not as_json:
            show(_as_text(finding))
    show(_as_json(found, ref, findings) if as_json else _summary(findings))
    status = int(any(finding.broken for finding in findings))
    if _hangs():
        os._exit(status)  # or a thread of the plugin would keep this process for ever
    return status


def new_plugin(kind: _NewKind, name: _NewName, *, into: _Into = Path()) -> None:
    """Write a distribution of a plugin, whose tests run and say what is to be filled in."""
    from reclaimactors.testing import scaffold  # noqa: PLC0415 - the kit, only where it is wanted

    if kind not in scaffold.WORDS:
        raise typer.BadParameter(f"KIND {kind!r} is none of {', '.join(scaffold.WORDS)}")
    folder = scaffold.new_plugin(_KINDS[kind], name, into)
    show(
        f"{folder} is a distribution whose tests run, and fail until it is filled in:\n"
        f"  cd {folder}\n"
        f'  pip install -e ".[testing]"\n'
        f"  pytest -x  # the first rule that is broken, and what to do\n"
        f"  reclaimactors check-plugin {name}  # all of them, without pytest"
    )


def _kind(word: str) -> Kind:
    if word not in _KINDS:
        raise typer.BadParameter(f"there is no kind {word!r}; it is one of {', '.join(_KINDS)}")
    return _KINDS[word]


def _kind_of(name: str) -> Kind:
    """Return the kind of a plugin by its name, or by what its class offers."""
    kinds = registry.kinds_of(name)
    if len(kinds) == 1:
        return kinds[0]
    if kinds:
        words = " and ".join(_WORDS[kind] for kind in kinds)
        raise typer.BadParameter(f"{name!r} is {words}: say which with --kind")
    if ":" in name:
        needs = "; ".join(
            f"{_WORDS[kind]}: {', '.join(methods)}" for kind, methods in registry.CONTRACT.items()
        )
        raise typer.BadParameter(
            f"{name!r} is no class with all that a kind needs: say what it is with --kind ({needs})"
        )
    names = "; ".join(
        f"{kind}: {', '.join(known for known, _ in registry.known(kind)) or 'none'}"
        for kind in _WORDS
    )
    raise PluginError(f"no plugin {name!r}; known {names}")


def _options(given: Sequence[str]) -> dict[str, Any]:
    """Return options as a topology's table would have them."""
    options: dict[str, Any] = {}
    for item in given:
        key, equals, value = item.partition("=")
        if not equals or not key:
            raise typer.BadParameter(f"--option {item!r} is not of the form key=value")
        try:
            options[key] = tomllib.loads(f"value = {value}")["value"]
        except tomllib.TOMLDecodeError:
            options[key] = value  # a string need not be quoted
    return options


def _checks(kind: Kind, ref: PluginRef) -> Iterator[Finding]:
    """Return what the checks of a plugin find, as they end."""
    from reclaimactors.testing import run_checks, suite_of  # noqa: PLC0415 - only where it is asked

    def make(*given: Any) -> object:
        if kind == "compressors":
            return registry.build("compressors", ref)
        if kind == "backends":
            return registry.build("backends", ref)
        if kind == "policies":
            (pages,) = given or (_PAGES,)
            return registry.build("policies", ref, pages=pages)
        compressor, workers = given or (registry.build("compressors", PluginRef("lz4")), 1)
        return registry.build("offloads", ref, compressor=compressor, workers=workers, nice=10)

    make()  # an error of its options is no finding
    attributes = {"named": ref} if kind == "compressors" else {}
    return run_checks(suite_of(kind, make, **attributes))


def _next(findings: Iterator[Finding]) -> Finding | None:
    with redirect_stdout(sys.stderr):
        return next(findings, None)


def _as_json(kind: Kind, ref: PluginRef, findings: Sequence[Finding]) -> str:
    facts = {
        "plugin": ref.name,
        "kind": _WORDS[kind],
        "options": dict(ref.options),
        "keeps_its_contract": not any(finding.broken for finding in findings),
        "checks": [finding.as_json() for finding in findings],
    }
    return json.dumps(facts, indent=2, default=str)


def _headline(kind: Kind, ref: PluginRef) -> str:
    origin = dict(registry.known(kind)).get(ref.name)
    return f"{_WORDS[kind]} {ref.name}" + (f" ({origin})" if origin else "")


def _as_text(finding: Finding) -> str:
    if finding.broken is None:
        return f"  kept    {finding.check}"
    rule, *parts = str(finding.broken).splitlines()
    return "\n".join([f"  BROKEN  {rule}", *(f"        {part}" for part in parts)])


def _summary(findings: Sequence[Finding]) -> str:
    kept = sum(finding.broken is None for finding in findings)
    seconds = sum(finding.seconds for finding in findings)
    return f"{kept} of {len(findings)} rules kept, in {seconds:.1f} s"


def _hangs() -> bool:
    """Return whether a thread would keep this process from its end."""
    me = threading.current_thread()
    return any(not thread.daemon and thread is not me for thread in threading.enumerate())
