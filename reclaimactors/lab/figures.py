"""The figures of a result that are shown and compared: a name, where it is, and what is better.

Pages stolen and pages wanted again are neither better nor worse by themselves: a design that takes
the wrong pages steals more of them, since each comes back.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import attrs

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from reclaimactors.lab.run import Result

__all__ = ["COMPARED", "FIGURES", "REFAULTS", "STOLEN", "Figure"]


@attrs.frozen
class Figure:
    """One row of the table.

    Attributes:
        name: with its unit.
        of: the value of a result.
        digits: decimals shown.
        better: 1 where more is better, -1 where less is, 0 where neither is.
        compared: whether two topologies are held against each other by it.
        absent: what a value of 0 means: nothing was measured.
    """

    name: str
    of: Callable[[Result], float]
    digits: int = 0
    better: int = 0
    compared: bool = True
    absent: bool = False

    def show(self, result: Result) -> str:
        """Return the value as text; a dash where none was measured."""
        value = self.of(result)
        return "-" if self.absent and not value else f"{value:,.{self.digits}f}"


REFAULTS = Figure("refaults/s", lambda result: result.refaults_per_s)
STOLEN = Figure("pgsteal_anon/s", lambda result: result.pgsteal_anon_per_s)

FIGURES: Sequence[Figure] = (
    Figure("ops/s", lambda result: result.ops_per_s, better=1),
    Figure("late p50 ms", lambda result: result.late_ms.p50, digits=2, better=-1, absent=True),
    Figure("late p99 ms", lambda result: result.late_ms.p99, digits=2, better=-1, absent=True),
    Figure("in time/s", lambda result: result.in_time_per_s, better=1, absent=True),
    Figure("stall p99 ms", lambda result: result.stall_ms.p99, digits=2, better=-1),
    Figure("PSI some %", lambda result: result.psi.some, digits=1, better=-1),
    Figure("PSI full %", lambda result: result.psi.full, digits=1, better=-1),
    Figure("allocstall", lambda result: result.allocstall, better=-1),
    Figure("loop lag p99 ms", lambda result: result.loop_lag_ms.p99, digits=2, better=-1),
    Figure("fault p50 us", lambda result: result.fault_us.p50, better=-1),
    Figure("fault p99 us", lambda result: result.fault_us.p99, better=-1),
    REFAULTS,
    STOLEN,
    Figure("in loop %", lambda result: result.in_loop_percent, digits=1, compared=False),
    Figure("efficiency", lambda result: result.efficiency, digits=2, compared=False, absent=True),
    Figure("ratio", lambda result: result.compression_ratio, digits=2, compared=False, absent=True),
)
COMPARED: Sequence[Figure] = tuple(figure for figure in FIGURES if figure.compared)
