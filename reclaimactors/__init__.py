"""Memory reclaim for asyncio programs: kswapd, kcompressd, padata and swap as actors."""

import sys
from importlib import import_module
from typing import TYPE_CHECKING

from reclaimactors.cpu.clock import perf_counter

if TYPE_CHECKING:
    from reclaimactors.abc import (
        Backend,
        BatchCompressor,
        Buffer,
        Compressor,
        DeactivatingPolicy,
        Offload,
        Policy,
        Verdict,
    )
    from reclaimactors.actors.health import Health
    from reclaimactors.advice import Advice
    from reclaimactors.backends.zram import ZramBackend
    from reclaimactors.blocking import BlockingMemory, open_blocking
    from reclaimactors.callers.pressure import PressureTrigger
    from reclaimactors.cpu.psi import Pressure, PressureLine
    from reclaimactors.errors import (
        BackendError,
        BackendFull,
        CorruptData,
        OutOfMemory,
        PluginError,
        ProtocolViolation,
        ReclaimError,
        TopologyError,
    )
    from reclaimactors.memory import Memory, SwapInfo, Usage
    from reclaimactors.objects import Objects
    from reclaimactors.opening import open_memory
    from reclaimactors.squeezed import Squeezed
    from reclaimactors.stats import Stats
    from reclaimactors.topology import SwapSpec, Topology

__version__ = "0.1.0"

__all__ = [
    "Advice",
    "Backend",
    "BackendError",
    "BackendFull",
    "BatchCompressor",
    "BlockingMemory",
    "Buffer",
    "Compressor",
    "CorruptData",
    "DeactivatingPolicy",
    "Health",
    "Memory",
    "Objects",
    "Offload",
    "OutOfMemory",
    "PluginError",
    "Policy",
    "Pressure",
    "PressureLine",
    "PressureTrigger",
    "ProtocolViolation",
    "ReclaimError",
    "Squeezed",
    "Stats",
    "SwapInfo",
    "SwapSpec",
    "Topology",
    "TopologyError",
    "Usage",
    "Verdict",
    "ZramBackend",
    "open_blocking",
    "open_memory",
]

_LONG_S = 0.02  # of importing in a running loop, which is said then

# Each name is imported when it is first asked for: a worker process wants none of them, and is up
# in a third of the time.
_HOMES = {
    "abc": (
        "Backend",
        "BatchCompressor",
        "Buffer",
        "Compressor",
        "DeactivatingPolicy",
        "Offload",
        "Policy",
        "Verdict",
    ),
    "actors.health": ("Health",),
    "advice": ("Advice",),
    "backends.zram": ("ZramBackend",),
    "blocking": ("BlockingMemory", "open_blocking"),
    "callers.pressure": ("PressureTrigger",),
    "errors": (
        "BackendError",
        "BackendFull",
        "CorruptData",
        "OutOfMemory",
        "PluginError",
        "ProtocolViolation",
        "ReclaimError",
        "TopologyError",
    ),
    "memory": ("Memory", "SwapInfo", "Usage"),
    "cpu.psi": ("Pressure", "PressureLine"),
    "objects": ("Objects",),
    "opening": ("open_memory",),
    "squeezed": ("Squeezed",),
    "stats": ("Stats",),
    "topology": ("SwapSpec", "Topology"),
}
_HOME = {name: module for module, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    began = perf_counter()
    value: object = getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
    globals()[name] = value
    held_s = perf_counter() - began
    if held_s > _LONG_S and _in_a_loop():
        import_module(f"{__name__}.log").log.info(
            "package.imported_in_the_loop",
            held_ms=round(1000 * held_s),
            hint=f"say `from {__name__} import {name}` where the program's own imports are",
        )
    return value


def _in_a_loop() -> bool:
    """Return whether an asyncio loop runs here, which waits for what is imported."""
    asyncio = sys.modules.get("asyncio")
    try:
        return asyncio is not None and asyncio.get_running_loop() is not None
    except RuntimeError:
        return False


def __dir__() -> list[str]:
    return __all__
