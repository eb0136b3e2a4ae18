"""For those who write plugins: conformance suites to subclass, faults, gates, a virtual clock.

Public, and imported by nothing of the package but its commands check-plugin and new-plugin. A suite
is a class of plain methods: pytest runs it (``pip install "reclaimactors[testing]"``), with
whichever plugins, and so does `run_checks` without pytest.
"""

from reclaimactors.testing.backend import BackendTests
from reclaimactors.testing.check import Finding, run_checks, suite_of
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
from reclaimactors.testing.offload import OffloadTests
from reclaimactors.testing.policy import PolicyTests
from reclaimactors.testing.rules import ContractBroken

__all__ = [
    "BackendTests",
    "CompressorTests",
    "ContractBroken",
    "Damage",
    "FaultyBackend",
    "FaultyCompressor",
    "Finding",
    "Gate",
    "GatedCompressor",
    "OffloadTests",
    "PolicyTests",
    "ThreadGate",
    "VirtualClockLoop",
    "run_checks",
    "suite_of",
]
