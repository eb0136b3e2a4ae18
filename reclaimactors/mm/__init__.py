"""The synchronous core: what is reclaimed, when, and where it goes.

Nothing in here does I/O, awaits, logs, reads a clock or draws a random number: time comes in as an
argument, and each module has a `check()` that asserts its invariants. The names are those of the
kernel's mm/. Actors (`reclaimactors.actors`) carry out what this package decides.
"""
