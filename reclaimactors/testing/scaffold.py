"""A new plugin: a distribution whose tests run, and say what is still to be filled in."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from reclaimactors import registry
from reclaimactors.errors import PluginError

if TYPE_CHECKING:
    from pathlib import Path

    from reclaimactors.registry import Kind

__all__ = ["WORDS", "new_plugin"]

_PYPROJECT = """\
[build-system]
requires = ["hatchling >= 1.27"]
build-backend = "hatchling.build"

[project]
name = "reclaimactors-{dashed}"
version = "0.1.0"
description = "The {word} '{name}' for reclaimactors"
readme = "README.md"
requires-python = ">= 3.11"
dependencies = ["reclaimactors"]

[project.optional-dependencies]
testing = ["reclaimactors[testing]"]

[project.entry-points."reclaimactors.{kind}"]
{name} = "reclaimactors_{name}:{title}"

[tool.hatch.build.targets.wheel]
only-include = ["reclaimactors_{name}.py"]
"""

_README = """\
# reclaimactors-{dashed}

The {word} `{name}` for reclaimactors. In a topology:

```toml
{toml}
```

What it must do is in the docstrings of `reclaimactors.{contract}`. Ask whether it does:

```sh
pip install -e ".[testing]"
pytest -x  # the first rule that is broken, and what to do
reclaimactors check-plugin {name}  # all of them, without pytest
```
"""

_TEST = """\
\"\"\"The conformance suite of a {word}; add what only yours can get wrong.\"\"\"

from __future__ import annotations

from reclaimactors.testing import {suite}
from reclaimactors_{name} import {title}


class Test{title}({suite}):
    def make_{word}(self{argument}):
        return {title}({given})
"""

_COMPRESSOR = """\
\"\"\"The compressor '{name}' for reclaimactors: say here what it is good for.\"\"\"

from __future__ import annotations

import reclaimactors as ra

__all__ = ["{title}"]


class {title}:
    \"\"\"Keyword arguments of __init__ are its options in a topology.\"\"\"

    name = "{name}"

    def compress(self, data: ra.Buffer) -> bytes:
        \"\"\"Return the blob of `data`, which is bytes or a memoryview of 1 byte or more.\"\"\"
        raise NotImplementedError("fill in compress: return bytes that decompress can read")

    def decompress(self, blob: ra.Buffer, size: int) -> bytes:
        \"\"\"Return exactly `size` bytes.

        Raises:
            CorruptData: for every blob that does not hold `size` bytes.
        \"\"\"
        raise NotImplementedError(
            "fill in decompress: return `size` bytes, or raise reclaimactors.CorruptData from "
            "whatever your library raises"
        )

    # Optional: compress_many(pages) -> list[bytes], where the library does a batch at once.
    # Workers get it by name; for use as an object, pickling must work: __reduce__.
"""

_BACKEND = """\
\"\"\"The backing store '{name}' for reclaimactors: say here where it keeps what it is given.\"\"\"

from __future__ import annotations

from typing import TYPE_CHECKING

import reclaimactors as ra

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["{title}"]


class {title}(ra.Backend):
    \"\"\"Keyword arguments of __init__ are its options in a topology.

    Whatever blocks belongs in a thread, a whole batch at a time:
    ``await anyio.to_thread.run_sync(self._store, items, limiter=self._one)``.
    \"\"\"

    async def open(self, page_size: int) -> None:
        \"\"\"Make an empty place for slots of `page_size` bytes; also once more after aclose.\"\"\"
        # Fill in: open what the calls below need. `capacity` may be set here, in slots.

    async def aclose(self) -> None:
        \"\"\"Close what open has opened; nothing may be left, also if open has failed.\"\"\"

    async def store_many(self, items: Sequence[tuple[int, bytes]]) -> None:
        \"\"\"Store each (slot, 1 to page_size bytes), all of them or none.

        Raises:
            BackendFull: where there is no room.
            BackendError: for whatever else fails.
        \"\"\"
        raise NotImplementedError(
            "fill in store_many: store every (slot, bytes); raise reclaimactors.BackendFull where "
            "there is no room"
        )

    async def load_many(self, slots: Sequence[int]) -> list[bytes]:
        \"\"\"Return the bytes of each slot, in the order of `slots`.

        Raises:
            BackendError: for a slot that is not stored.
        \"\"\"
        raise NotImplementedError(
            "fill in load_many: return a list of the bytes of each slot; raise "
            "reclaimactors.BackendError for one that is not stored"
        )

    async def invalidate_many(self, slots: Sequence[int]) -> None:
        \"\"\"Forget the slots; one that is not stored is no error.\"\"\"
        raise NotImplementedError("fill in invalidate_many: forget the slots that are there")

    # Optional: load_now(slots), where reading takes microseconds; footprint(slots), where the
    # bytes are in this process.
"""

_POLICY = """\
\"\"\"The reclaim policy '{name}' for reclaimactors: say here which folio goes first, and why.\"\"\"

from __future__ import annotations

from typing import TYPE_CHECKING

import reclaimactors as ra

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["{title}"]


class {title}:
    \"\"\"A folio is a small int, its pfn. Each call costs O(1) a folio.

    Args:
        pages: base pages of the budget.
    \"\"\"

    def __init__(self, *, pages: int) -> None:
        self._pages = pages

    def insert(self, pfn: int, *, refault: int | None) -> None:
        \"\"\"Put a folio on the lists; `refault` is what `shadow` returned, None = new.\"\"\"
        raise NotImplementedError("fill in insert: put the folio on a list")

    def access(self, pfn: int) -> None:
        \"\"\"Note that a folio was read, on the lists or isolated.\"\"\"
        raise NotImplementedError("fill in access: note the read, and leave isolated ones isolated")

    def remove(self, pfn: int) -> None:
        \"\"\"Forget a folio wherever it is.\"\"\"
        raise NotImplementedError("fill in remove: forget the folio, also its ghost")

    def isolate(self, nr: int) -> list[int]:
        \"\"\"Take up to `nr` of the coldest folios off the lists.\"\"\"
        raise NotImplementedError("fill in isolate: return up to nr pfns, the coldest first")

    def putback(self, pfns: Sequence[int], verdict: ra.Verdict) -> None:
        \"\"\"Put isolated folios on the lists again; KEEP: at the cold end, in order.\"\"\"
        raise NotImplementedError("fill in putback: with Verdict.KEEP they are the next to go")

    def shadow(self, pfn: int) -> int:
        \"\"\"An isolated folio has left memory: return what `insert` gets if it comes back.\"\"\"
        return 0

    def age(self, now: float) -> None:
        \"\"\"Let time pass; called once per pass of kswapd.\"\"\"

    # Optional: deactivate(pfn), which makes a folio the next to go, for Advice.COLD.
"""

_MODULES = {"compressors": _COMPRESSOR, "backends": _BACKEND, "policies": _POLICY}
_FACTS = {
    "compressors": {
        "word": "compressor", "suite": "CompressorTests", "contract": "Compressor",
        "toml": '[compress]\ncompressor = "{name}"',
    },
    "backends": {
        "word": "backend", "suite": "BackendTests", "contract": "Backend",
        "toml": '[[swap]]\nbackend = "{name}"',
    },
    "policies": {
        "word": "policy", "suite": "PolicyTests", "contract": "Policy",
        "toml": 'policy = "{name}"',
    },
}  # fmt: skip

WORDS = tuple(facts["word"] for facts in _FACTS.values())


def new_plugin(kind: Kind, name: str, into: Path) -> Path:
    """Write a distribution of a plugin that is still to be filled in; return its folder.

    Args:
        kind: "compressors", "backends" or "policies".
        name: of the plugin, as a topology will say it.
        into: the folder that the new one is made in.

    Raises:
        PluginError: if the name is none, or taken, or the folder is there already.
    """
    if not re.fullmatch(r"[a-z][a-z0-9]*(_[a-z0-9]+)*", name):
        raise PluginError(
            f"{name!r} is no name for a plugin: use a-z, 0-9 and single _, as in my_lz"
        )
    origin = dict(registry.known(kind)).get(name)
    if origin is not None:
        raise PluginError(f"{name!r} is known already ({origin}): choose another name")
    folder = into / f"reclaimactors-{name.replace('_', '-')}"
    try:
        folder.mkdir(parents=True)
    except FileExistsError:
        raise PluginError(f"{folder} is there already: move it, or say --into elsewhere") from None
    facts = {
        **_FACTS[kind],
        "kind": kind,
        "name": name,
        "dashed": name.replace("_", "-"),
        "title": "".join(part.capitalize() for part in name.split("_")),
        "argument": ", pages" if kind == "policies" else "",
        "given": "pages=pages" if kind == "policies" else "",
    }
    facts["toml"] = facts["toml"].format(**facts)
    for file, text in (
        ("pyproject.toml", _PYPROJECT),
        ("README.md", _README),
        (f"reclaimactors_{name}.py", _MODULES[kind]),
        (f"test_reclaimactors_{name}.py", _TEST),
    ):
        (folder / file).write_text(text.format(**facts), "utf-8")
    return folder
