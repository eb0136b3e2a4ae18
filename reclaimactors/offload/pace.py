"""When those who compress are late: silent for longer than their batches usually take."""

from __future__ import annotations

__all__ = ["LATE_S", "Pace"]

LATE_S = 0.1  #: without an answer, although there is a batch; lz4 takes a millisecond
USUAL = 4  #: times what a batch usually takes, where that is more: lzma takes half a second


class Pace:
    """How long batches take, as told."""

    def __init__(self) -> None:
        self._usual_s = 0.0

    def answered(self, took_s: float) -> None:
        """Learn from a batch; one long silence does not make the next one usual."""
        believed = min(took_s, 2 * max(self._usual_s, LATE_S))
        self._usual_s += (believed - self._usual_s) * 0.2

    def late(self, silent_s: float) -> bool:
        """Return whether so long a silence, with a batch to do, is unusual."""
        return silent_s >= LATE_S and silent_s > USUAL * self._usual_s
