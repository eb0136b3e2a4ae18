"""The conformance suite of backing stores: subclass it, and say how one is made.

    class TestMyStore(BackendTests):
        def make_backend(self):
            return MyStore(folder="...")

Each check is one sentence of the contract. What happens when the medium itself fails, only the
store's own tests can bring about.
"""

from __future__ import annotations

from reclaimactors.testing.calls import CallTests
from reclaimactors.testing.life import LifeTests
from reclaimactors.testing.slots import SlotTests

__all__ = ["BackendTests"]


class BackendTests(CallTests, LifeTests, SlotTests):
    """What every backend must do; override `make_backend`. It should hold 256 slots or more."""
