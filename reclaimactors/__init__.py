"""Memory reclaim for asyncio programs: kswapd, kcompressd, padata and swap as actors."""

from reclaimactors.abc import Backend, BatchCompressor, Buffer, Compressor, Policy, Verdict
from reclaimactors.advice import Advice
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
from reclaimactors.opening import open_memory
from reclaimactors.topology import Topology

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
    "ProtocolViolation",
    "ReclaimError",
    "SwapInfo",
    "Topology",
    "TopologyError",
    "Usage",
    "Verdict",
    "open_memory",
]
