"""Memory reclaim for asyncio programs: kswapd, kcompressd, padata and swap as actors."""

from reclaimactors.abc import Backend, BatchCompressor, Buffer, Compressor, Policy, Verdict
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

__version__ = "0.1.0"

__all__ = [
    "Backend",
    "BackendError",
    "BackendFull",
    "BatchCompressor",
    "Buffer",
    "Compressor",
    "CorruptData",
    "OutOfMemory",
    "PluginError",
    "Policy",
    "ProtocolViolation",
    "ReclaimError",
    "TopologyError",
    "Verdict",
]
