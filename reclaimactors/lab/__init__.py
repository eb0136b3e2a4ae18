"""The lab: real input, workloads, measuring, and topologies compared in interleaved rounds.

It drives a memory through the public embedding API only, so that what it measures is what an
embedder gets. It prints nothing: `reclaimactors.commands` does.
"""
