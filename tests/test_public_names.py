"""`__all__` of every module is what others may take, and public things say what they are."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

import reclaimactors

if TYPE_CHECKING:
    import types

MODULES = sorted(
    ["reclaimactors"]
    + [
        module.name
        for module in pkgutil.walk_packages(reclaimactors.__path__, "reclaimactors.")
        if not module.name.rpartition(".")[2].startswith("_")
    ]
)
PUBLIC_MODULES = [  # the others are rooms, whose names may change
    *("reclaimactors.abc", "reclaimactors.advice", "reclaimactors.errors", "reclaimactors.memory"),
    *(name for name in MODULES if name.startswith("reclaimactors.testing.")),
]


def public(module: types.ModuleType) -> set[str]:
    """Return the names without an underscore of what was made in this module."""
    return {
        name
        for name, value in vars(module).items()
        if not name.startswith("_") and getattr(value, "__module__", None) == module.__name__
    }


@pytest.mark.parametrize("name", MODULES)
def test_what_all_names_exists(name: str):
    module = importlib.import_module(name)
    assert module.__doc__, f"{name} does not say what it is"
    names = getattr(module, "__all__", [])
    assert len(set(names)) == len(names)
    for public_name in names:
        assert hasattr(module, public_name), public_name


@pytest.mark.parametrize("name", MODULES)
def test_a_module_with_public_names_lists_them(name: str):
    module = importlib.import_module(name)
    assert hasattr(module, "__all__") or not public(module), f"{name} has no __all__"


@pytest.mark.parametrize("name", PUBLIC_MODULES)
def test_a_public_module_lists_all_that_it_makes(name: str):
    module = importlib.import_module(name)
    assert public(module) <= set(module.__all__)


@pytest.mark.parametrize(
    "name", ["reclaimactors", "reclaimactors.testing", "reclaimactors.topology"]
)
def test_a_package_shows_just_what_it_lists(name: str):
    module = importlib.import_module(name)
    shown = {
        shown_name
        for shown_name in dir(module)
        if not shown_name.startswith("_") and not inspect.ismodule(getattr(module, shown_name))
    }
    assert shown == set(module.__all__)


@pytest.mark.parametrize("name", ["reclaimactors", "reclaimactors.testing"])
def test_every_public_thing_and_its_methods_have_a_docstring(name: str):
    module = importlib.import_module(name)
    for public_name in module.__all__:
        thing = getattr(module, public_name)
        if not (inspect.isclass(thing) or inspect.isfunction(thing)):
            continue
        assert inspect.getdoc(thing), public_name
        for method_name, method in vars(thing).items():
            if inspect.isfunction(method) and not method_name.startswith("_"):
                assert inspect.getdoc(method), f"{public_name}.{method_name}"


def test_version_is_the_projects():
    from importlib.metadata import version

    assert reclaimactors.__version__ == version("reclaimactors")


def test_package_says_that_it_is_typed():
    from importlib.resources import files

    assert files("reclaimactors").joinpath("py.typed").is_file()


def test_a_name_that_does_not_exist_is_an_attribute_error():
    with pytest.raises(AttributeError, match="'reclaimactors' has no attribute 'open_memroy'"):
        reclaimactors.open_memroy  # noqa: B018


def test_a_worker_process_imports_little():
    """It is started at the first pressure: until it is up, the program's own process compresses."""
    program = "import sys, reclaimactors.offload.worker; print(*sys.modules)"
    ended = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True)
    imported = set(ended.stdout.decode().split())
    assert imported.isdisjoint(
        {"anyio", "asyncio", "structlog", "importlib.metadata", "reclaimactors.memory"}
    )
