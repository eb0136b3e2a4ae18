"""How long to wait before what has failed is tried again."""

from __future__ import annotations

__all__ = ["Backoff"]

FIRST_S = 0.1
MOST_S = 300.0  #: what has failed for hours is tried twelve times in each
_LASTING = 7  #: failures in a row after which waits are above ten seconds


class Backoff:
    """Waits of 0.1 s, 0.2 s, 0.4 s ... up to five minutes, for failures in a row."""

    def __init__(self) -> None:
        self.failures = 0  #: in a row

    def failed(self, *, lasting: bool = False) -> float:
        """Count a failure; return how many seconds to wait.

        Args:
            lasting: whether it would fail at once again: the short waits are left out.
        """
        if lasting:
            self.failures = max(self.failures, _LASTING)
        wait = min(MOST_S, FIRST_S * (1 << min(self.failures, 2 * _LASTING)))
        self.failures += 1
        return wait

    def worked(self) -> None:
        """The next failure is the first in a row."""
        self.failures = 0
