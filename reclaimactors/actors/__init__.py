"""Actors: kswapd, kcompressd, padata and one swapd per backing store.

An actor is a loop around the synchronous core: receive, call, carry out. It owns what it has
received until the core has had a verdict for it. `machine` wires them together, `supervision`
starts them again when they crash.
"""
