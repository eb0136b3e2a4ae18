"""Topologies: what a machine is made of (`spec`), where that is read (`load`), and how it is built.

The built-in ones are the TOML files beside this module.
"""

from reclaimactors.topology.explain import explain
from reclaimactors.topology.load import builtin_names, resolve
from reclaimactors.topology.spec import (
    CompressSpec,
    SenpaiSpec,
    SwapSpec,
    Topology,
    WatermarksSpec,
    ZswapSpec,
)

__all__ = [
    "CompressSpec",
    "SenpaiSpec",
    "SwapSpec",
    "Topology",
    "WatermarksSpec",
    "ZswapSpec",
    "builtin_names",
    "explain",
    "resolve",
]
