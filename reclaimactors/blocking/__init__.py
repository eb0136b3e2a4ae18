"""A memory for threads and synchronous programs: `open_blocking` gives a mapping.

The memory lives in an event loop in a thread of its own (`thread`). A hit is answered in the
caller's thread, from what that loop publishes (`published`); everything else is one hop: the call
is queued, the loop's thread carries it out, and the caller waits for that.
"""

from reclaimactors.blocking.store import BlockingMemory, open_blocking

__all__ = ["BlockingMemory", "open_blocking"]
