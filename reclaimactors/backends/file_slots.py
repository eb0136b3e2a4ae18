"""What each slot of the swap file is: one byte each, touched by the event loop's thread alone."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["FREE", "LEFT", "STORED", "WRITING", "FileSlots", "runs_of"]

FREE: Final = 0  #: nothing is there, and it takes no space in the file
STORED: Final = 1
WRITING: Final = 2  #: a write of it is under way, or was given up and may still be
LEFT: Final = 3  #: nothing is there to load, but the file still has its space

SCAN = 1 << 18  #: slots looked at in one go: some 100 us
LONG_RUN = 16  #: slots that are worth a hole before shorter runs are

_LEFT_RUN = re.compile(b"\x03+")


class FileSlots:
    """The states by slot, and how many are STORED and LEFT."""

    def __init__(self) -> None:
        self._states = bytearray()
        self.nr_stored = 0
        self.nr_left = 0
        self._at = 0  # where `left_runs` goes on

    def __len__(self) -> int:
        return len(self._states)

    def set(self, run: range, state: int) -> None:
        """Change the state of a run of slots."""
        states, start, stop = self._states, run.start, run.stop
        if stop > len(states):
            states.extend(bytes(stop - len(states)))
        self.nr_stored -= states.count(STORED, start, stop)
        self.nr_left -= states.count(LEFT, start, stop)
        states[start:stop] = bytes((state,)) * len(run)
        self.nr_stored += len(run) if state == STORED else 0
        self.nr_left += len(run) if state == LEFT else 0

    def missing(self, run: range) -> int | None:
        """Return the first slot of a run that is not STORED; None where all are."""
        if self._states.count(STORED, run.start, run.stop) == len(run):
            return None
        return next(slot for slot in run if not self._states.count(STORED, slot, slot + 1))

    def forget(self, run: range) -> None:
        """Nothing can be loaded from these slots any more; those never written stay FREE."""
        run = range(max(run.start, 0), min(run.stop, len(self._states)))
        if run and self._states.count(FREE, run.start, run.stop) == 0:
            self.set(run, LEFT)
            return
        for slot in run:
            if self._states[slot] != FREE:
                self.set(range(slot, slot + 1), LEFT)

    def take_back(self, run: range) -> None:
        """The file still has the space of those slots that are FREE and were to be given back."""
        for slot in run:
            if slot < len(self._states) and self._states[slot] == FREE:
                self.set(range(slot, slot + 1), LEFT)

    def end(self) -> int:
        """Return the slot after the last one that is STORED."""
        return self._states.rfind(STORED) + 1

    def cut(self, end: int) -> None:
        """The file ends here: all slots from `end` on are FREE."""
        self.nr_stored -= self._states.count(STORED, end)
        self.nr_left -= self._states.count(LEFT, end)
        del self._states[end:]

    def left_runs(self, nr: int) -> list[range]:
        """Return up to `nr` runs of LEFT slots among the next SCAN slots, long ones if any are."""
        start = self._at if self._at < len(self._states) else 0
        self._at = start + SCAN
        return self._runs(start, LONG_RUN, nr) or self._runs(start, 1, nr)

    def _runs(self, start: int, least: int, nr: int) -> list[range]:
        wanted, stop = bytes((LEFT,)) * least, start + SCAN
        runs: list[range] = []
        while len(runs) < nr and (start := self._states.find(wanted, start, stop)) >= 0:
            found = _LEFT_RUN.match(self._states, start)
            assert found is not None
            runs.append(range(start, found.end()))
            start = found.end()
        return runs


def runs_of(slots: Iterable[int]) -> list[range]:
    """Return slots, in their order, as ranges of neighbours."""
    runs: list[range] = []
    start = stop = -1
    for slot in slots:
        if slot != stop:
            if stop >= 0:
                runs.append(range(start, stop))
            start = slot
        stop = slot + 1
    if stop >= 0:
        runs.append(range(start, stop))
    return runs
