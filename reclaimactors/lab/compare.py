"""Topologies compared: interleaved rounds of the same load, and what differed in a few sentences.

Rounds go A B C A B C, so that what the machine does meanwhile meets all of them. A difference
counts where every round of one beats the same round of the other; else it is within the spread.
"""

from __future__ import annotations

from statistics import median
from typing import TYPE_CHECKING

import attrs

from reclaimactors.cpu.clock import perf_counter
from reclaimactors.lab.measure import Measurement
from reclaimactors.lab.run import Result, RunFailed, measure_round

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from reclaimactors.lab.run import Load
    from reclaimactors.topology import Topology

__all__ = ["Comparison"]

ROUNDS = 3
MAX_SHARE = 2.5  # all time, with verifying, at most by this longer than clients work
MIN_ROUND_S = 0.5  # shorter rounds would measure the start and little else


@attrs.define(eq=False)
class Comparison:
    """A comparison under way; what it has measured so far can be read at any time.

    Args:
        topologies: name to topology, at least one.
        load: what is done to each.
        seconds: how long clients work, all rounds of all topologies together.
        on_round: called with (rounds begun before, rounds in all, topology's name) at each start.
    """

    topologies: Mapping[str, Topology]
    load: Load
    seconds: float
    on_round: Callable[[int, int, str], None] = lambda _done, _total, _name: None
    rounds: dict[str, list[Measurement]] = attrs.field(
        init=False, factory=dict[str, list[Measurement]], repr=False
    )

    async def run(self) -> None:
        """Run all rounds, fewer where verifying takes much longer than the clients work.

        Raises:
            RunFailed: if one fails; the message names its topology.
        """
        nr_rounds = max(1, min(ROUNDS, int(self.seconds / len(self.topologies) / MIN_ROUND_S)))
        started = perf_counter()
        for turn in range(nr_rounds):
            elapsed = perf_counter() - started
            if turn and elapsed * (turn + 1) > MAX_SHARE * self.seconds * turn:
                break
            for number, name in enumerate(self.topologies, turn * len(self.topologies)):
                self.on_round(number, nr_rounds * len(self.topologies), name)
                await self._round(name, self.seconds / nr_rounds / len(self.topologies))

    async def _round(self, name: str, seconds: float) -> None:
        measured = Measurement()
        self.rounds.setdefault(name, []).append(measured)
        try:
            await measure_round(self.topologies[name], self.load, seconds, measured)
        except RunFailed as exc:
            msg = f"topology {name}: {exc}"
            raise RunFailed(msg) from exc

    @property
    def verified(self) -> int:
        """How many values were read at the ends of rounds and found right, byte for byte."""
        return sum(measured.verified for rounds in self.rounds.values() for measured in rounds)

    def results(self) -> list[Result]:
        """Return what was measured so far, in the order of the topologies."""
        return [
            Result.of(name, self.load, _sum(rounds))
            for name, rounds in self.rounds.items()
            if any(measured.seconds for measured in rounds)
        ]

    def unfinished(self) -> list[str]:
        """Return the topologies of which no round came to its end: interrupted, or failed."""
        return [
            name
            for name, rounds in self.rounds.items()
            if not any(measured.finished for measured in rounds)
        ]

    def sentence(self) -> str:
        """Return what differed and by how much, whichever won: a line for each pair held together.

        Each is held against the first, and the third against the second too (of the default ones:
        padata against kcompressd). What was not finished is compared with nothing.
        """
        results, unfinished = self.results(), self.unfinished()
        finished = [result for result in results if result.topology not in unfinished]
        if len(finished) < 2:
            return _alone(*(finished or results)[:1])
        if not any(result.pgsteal_anon_per_s for result in finished):
            return "Nothing was reclaimed: give them a smaller --budget or more --seconds."
        first, *others = finished
        pairs = [(other, first) for other in others]
        if len(others) > 1:
            pairs.insert(2, (others[1], others[0]))
        return "\n".join(self._compared(*pair) for pair in pairs)

    def _compared(self, one: Result, against: Result) -> str:
        """Return one line on two of them; what callers felt need not favour who stole more."""
        best, other = sorted(
            (one, against), key=lambda result: result.pgsteal_anon_per_s, reverse=True
        )
        headline = self._headline(best, other)
        return f"{one.topology} against {against.topology}: {headline} {_asides(one, against)}"

    def _headline(self, best: Result, other: Result) -> str:
        """Return by how much the best stole more than another, and if rounds agree on it."""
        ratios = [
            mine.pgsteal_anon_per_s / theirs.pgsteal_anon_per_s
            for mine, theirs in zip(
                self.rounds[best.topology], self.rounds[other.topology], strict=False
            )
            if theirs.pgsteal_anon_per_s and mine.seconds
        ]
        rates = f"{best.pgsteal_anon_per_s:,.0f} against {other.pgsteal_anon_per_s:,.0f} pages/s"
        if not best.pgsteal_anon_per_s:
            return "neither reclaimed anything."
        if not ratios:
            return f"{best.topology} stole {rates} of {other.topology}, which reclaimed nothing."
        spread = f"{min(ratios):.2f} to {max(ratios):.2f} in {len(ratios)} rounds"
        if len(ratios) == 1:
            return (
                f"{best.topology} stole {ratios[0]:.2f} x what {other.topology} did ({rates}),"
                " in one round, which is too few to tell a difference from chance."
            )
        if min(ratios) <= 1:
            return (
                f"{best.topology} and {other.topology} do not differ by more than their rounds do"
                f" ({rates}; {spread})."
            )
        return (
            f"{best.topology} stole {median(ratios):.2f} x what {other.topology} did"
            f" ({rates}; {spread})."
        )


def _sum(rounds: list[Measurement]) -> Measurement:
    total = Measurement()
    for measured in rounds:
        total.merge(measured)
    return total


def _alone(result: Result | None = None) -> str:
    if result is None:
        return "Nothing was measured."
    rate = f"{result.topology} stole {result.pgsteal_anon_per_s:,.0f} pages/s"
    if not result.bare_pages_per_s:
        return f"{rate}."
    bare = f"{result.bare_pages_per_s:,.0f} pages/s"
    return f"{rate}, {result.efficiency:.2f} x what its compressor alone does ({bare})."


def _asides(one: Result, against: Result) -> str:
    """Return what callers felt under the two."""
    pairs = (
        ("stall p99", one.stall_ms.p99, against.stall_ms.p99, " ms"),
        ("loop lag p99", one.loop_lag_ms.p99, against.loop_lag_ms.p99, " ms"),
        ("allocstall", one.allocstall, against.allocstall, ""),
    )
    felt = ", ".join(
        f"{name} {mine:,.4g}{unit} against {theirs:,.4g}{unit}"
        for name, mine, theirs, unit in pairs
    )
    return f"{felt[0].upper()}{felt[1:]}."
