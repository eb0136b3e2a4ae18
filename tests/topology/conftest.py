"""Topologies are looked at as on two CPUs, whatever this machine has."""

from __future__ import annotations

import sys

import pytest

from reclaimactors.topology import spec


@pytest.fixture(autouse=True)
def two_cpus(monkeypatch):
    for module in (spec, sys.modules["reclaimactors.topology.explain"]):
        monkeypatch.setattr(module, "usable_cpus", lambda: 2)
