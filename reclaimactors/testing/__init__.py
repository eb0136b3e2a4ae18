"""For those who write plugins: conformance suites to subclass, faults, gates, a virtual clock.

Public, and never imported by the package itself. The suites want pytest, with pytest-asyncio for
`BackendTests`, and hypothesis for what they try at random; the rest needs neither.
"""

from reclaimactors.testing.backend import BackendTests
from reclaimactors.testing.clock import VirtualClockLoop
from reclaimactors.testing.compressor import CompressorTests
from reclaimactors.testing.faults import (
    Damage,
    FaultyBackend,
    FaultyCompressor,
    Gate,
    GatedCompressor,
    ThreadGate,
)
from reclaimactors.testing.policy import PolicyTests

__all__ = [
    "BackendTests",
    "CompressorTests",
    "Damage",
    "FaultyBackend",
    "FaultyCompressor",
    "Gate",
    "GatedCompressor",
    "PolicyTests",
    "ThreadGate",
    "VirtualClockLoop",
]
