"""A compressor in another process, as a worker has it.

The process gets the import path of this one, and the file of each module that the pickle names: a
test module has a name that only its test runner can import.
"""

from __future__ import annotations

import pickle
import pickletools
import subprocess
import sys
from typing import TYPE_CHECKING, cast

from reclaimactors.testing.rules import broken

if TYPE_CHECKING:
    from collections.abc import Sequence

    from reclaimactors.abc import Compressor
    from reclaimactors.registry import PluginRef

__all__ = ["in_a_worker", "pickled"]

_WITHIN_S = 30.0

_CHILD = """
import importlib.util, os, pickle, sys
answer = os.fdopen(os.dup(1), "wb")
os.dup2(2, 1)  # whatever is printed here is seen there
job = pickle.load(sys.stdin.buffer)
sys.path[:] = job["path"]
for name, file in job["modules"].items():
    try:
        importlib.import_module(name)
    except ImportError:
        spec = importlib.util.spec_from_file_location(name, file)
        sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
compressor = pickle.loads(job["compressor"])
if type(compressor).__name__ == "PluginRef":
    from reclaimactors.registry import build
    compressor = build("compressors", compressor)
pickle.dump([compressor.compress(page) for page in job["pages"]], answer)
"""


def pickled(compressor: Compressor) -> Compressor:
    """Return a copy that went through a pickle; fail the check where that cannot be done."""
    try:
        return cast("Compressor", pickle.loads(pickle.dumps(compressor)))  # noqa: S301 - made here
    except Exception as exc:  # noqa: BLE001 - whatever a plugin raises
        broken(f"it cannot be pickled: {type(exc).__name__}: {exc}")


def in_a_worker(
    compressor: Compressor | PluginRef, pages: Sequence[bytes]
) -> tuple[list[bytes], str]:
    """Compress in another process; return the blobs, and what was printed there.

    Args:
        compressor: is pickled to it, as the object or as the name that it is built by.
        pages: to be compressed.
    """
    pickle_of_it = pickle.dumps(compressor)
    job = {
        "path": sys.path,
        "modules": _modules(pickle_of_it),
        "compressor": pickle_of_it,
        "pages": list(pages),
    }
    try:
        done = subprocess.run(  # noqa: S603 - this Python, and our own code
            [sys.executable, "-c", _CHILD],
            input=pickle.dumps(job), capture_output=True, timeout=_WITHIN_S, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        broken(f"another process had not compressed {len(pages)} pages after {_WITHIN_S:g} s")
    said = done.stderr.decode(errors="replace").strip()
    if done.returncode:
        last = said.splitlines()[-1] if said else f"exit status {done.returncode}"
        broken(f"another process could not compress with it: {last}")
    return cast("list[bytes]", pickle.loads(done.stdout)), said  # noqa: S301 - made by us, there


def _modules(pickle_of_it: bytes) -> dict[str, str]:
    """Return the modules that a pickle names, and their files."""
    words = {word for _, word, _ in pickletools.genops(pickle_of_it) if isinstance(word, str)}
    named = {word.partition(" ")[0] for word in words}
    files = {name: getattr(sys.modules.get(name), "__file__", None) for name in named}
    return {name: file for name, file in sorted(files.items()) if file is not None}
