"""Memory reclaim for asyncio programs: kswapd, kcompressd, padata and swap as actors."""

from reclaimactors.abc import Backend, BatchCompressor, Buffer, Compressor, Policy, Verdict
from reclaimactors.advice import Advice
from reclaimactors.backends.zram import ZramBackend
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
from reclaimactors.mm.psi import Pressure, PressureLine
from reclaimactors.opening import open_memory
from reclaimactors.topology import SwapSpec, Topology

__version__ = "0.1.0"

__all__ = [
    "Advice",
    "Backend",
    "BackendError",
    "BackendFull",
    "BatchCompressor",
    "Buffer",
    "Compressor",
    "CorruptData",
    "Memory",
    "OutOfMemory",
    "PluginError",
    "Policy",
    "Pressure",
    "PressureLine",
    "ProtocolViolation",
    "ReclaimError",
    "SwapInfo",
    "SwapSpec",
    "Topology",
    "TopologyError",
    "Usage",
    "Verdict",
    "ZramBackend",
    "open_memory",
]
