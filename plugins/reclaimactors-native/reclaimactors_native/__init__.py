"""Threads that compress whole batches and never take the interpreter's lock: the offload `native`.

In a topology: ``offload = "native"``, with ``compressor = "lz4"`` or ``"zstd"`` (and options).

The threads call the C functions of the library that the Python package has loaded already, so the
blobs are those of the package, and that is tried before the first batch. A fault in C ends the
whole process: where that must not be, compress in worker processes (``offload = "process"``).
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from reclaimactors import PluginError, Squeezed
from reclaimactors_native._threads import Pool

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from reclaimactors import Compressor

__all__ = ["Native"]

# Whose functions are known, by class: (codec, the attribute that is its level, modules that may
# have loaded the library). A subclass may compress otherwise, so it is none of these.
_KNOWN = {
    "reclaimactors.compressors.lz4.Lz4": ("lz4", "acceleration", ["lz4.block._block"]),
    "reclaimactors_zstd.Zstd": ("zstd", "level", ["zstandard.backend_c", "zstandard._cffi"]),
}
_INSTEAD = 'set offload = "process", or compressor = "lz4" or "zstd"'


class Native:
    """An offload: `workers` threads at a niceness of their own (on Linux).

    Args:
        compressor: of the topology: lz4 or zstd, with any options.
        workers: threads, 1 to 256.
        nice: niceness to add.

    Raises:
        PluginError: if it is another compressor, or its library does not show its functions.
    """

    def __init__(self, *, compressor: Compressor, workers: int, nice: int) -> None:
        self._pool = _pool_for(compressor, nice)
        self._workers = workers

    @property
    def staging(self) -> int:
        """Bytes of memory for blobs that wait to be collected."""
        return self._pool.staging

    def open(self) -> int:
        """Start the threads; return a descriptor that is readable while a batch is done."""
        return self._pool.open(self._workers)

    def submit(self, pages: Sequence[bytes], *, of_sources: bool) -> int:
        """Queue a batch; return its number. The pages are held until it is collected."""
        return self._pool.submit(pages, of_sources=of_sources)

    def collect(self) -> tuple[int, Squeezed] | None:
        """Return a batch that is done, None where there is none."""
        done = self._pool.collect()
        if done is None:
            return None
        number, rows = done
        return number, Squeezed(*rows)

    def close(self) -> bool:
        """Have the threads stop after their page; return whether they have."""
        return self._pool.close()


def _pool_for(compressor: Compressor, nice: int) -> Pool:
    """Return threads, not started, whose blobs are those of this compressor."""
    kind = f"{type(compressor).__module__}.{type(compressor).__qualname__}"
    if kind not in _KNOWN:
        msg = f"it compresses with lz4 and zstd, not with {compressor.name!r}; {_INSTEAD}"
        raise PluginError(msg)
    codec, attribute, modules = _KNOWN[kind]
    level: int = getattr(compressor, attribute)
    refused = "no library"
    for path in _libraries(modules):
        try:
            pool = Pool(codec, path, level, nice)
        except LookupError as exc:
            refused = str(exc)
        else:
            _try_out(pool, compressor, path)
            return pool
    msg = f"it does not find the functions of {compressor.name}: {refused}; {_INSTEAD}"
    raise PluginError(msg)


def _libraries(modules: Sequence[str]) -> Iterator[Path]:
    """Yield the extension modules of a package that may show the functions of its library."""
    for name in modules:
        package, _, stem = name.rpartition(".")
        folder = Path(str(import_module(package).__file__)).parent
        yield from sorted(folder.glob(f"{stem}.*.so")) or folder.glob(f"{stem}.so")


def _try_out(pool: Pool, compressor: Compressor, path: Path) -> None:
    """Refuse a library whose blobs are not those of the compressor."""
    text = Path(__file__).read_bytes()
    pages = [text * 20, text[:4096], text[:200] * 2, bytes(range(256)) * 5]
    blobs = [compressor.compress(page) for page in pages]
    given = [blob or other for blob, other in zip(pool.squeeze(pages)[1], blobs, strict=True)]
    if given != blobs:  # None is a blob that frees nothing
        msg = f"the functions in {path} compress otherwise than {compressor.name}; {_INSTEAD}"
        raise PluginError(msg)
