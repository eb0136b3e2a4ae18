"""Topologies compared: interleaved rounds of the same load, and what differed in a few sentences.

Rounds go A B C, C B A, A B C, so that what the machine does meanwhile meets all of them, and who
comes first has no advantage. What counts as a difference is in `verdict.py`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

import attrs

from reclaimactors.cpu import clock
from reclaimactors.lab.catalog import WORKLOADS
from reclaimactors.lab.figures import FIGURES
from reclaimactors.lab.measure import Measurement
from reclaimactors.lab.run import Result, RunFailed, limit_of, measure_round
from reclaimactors.lab.timeline import Timeline
from reclaimactors.lab.verdict import rounds_needed, verdicts

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    from reclaimactors.lab.run import Load
    from reclaimactors.lab.verdict import Verdict
    from reclaimactors.topology import Topology

__all__ = ["MIN_ROUND_S", "Comparison"]

T = TypeVar("T")

MOST_ROUNDS = 12  # where nobody asks for more: a pair is told apart well by so many
MIN_ROUND_S = 0.1
MAX_SHARE = 2.75  # all time, with filling and verifying, over that in which clients work
PATIENT_SHARE = 4.0  # the same, until there are rounds enough to tell a difference at all


@attrs.define(eq=False)
class Comparison:
    """A comparison under way; what it has measured so far can be read at any time.

    Args:
        topologies: name to topology, at least one.
        load: what is done to each.
        seconds: how long clients work, all rounds of all topologies together.
        nr_rounds: of each topology; None: as many good ones as there is time for.
        on_round: called with (rounds begun before, rounds in all, topology's name) at each start.
        timelines: whether each round is looked at all the time, for a report.
    """

    topologies: Mapping[str, Topology]
    load: Load
    seconds: float
    nr_rounds: int | None = None
    on_round: Callable[[int, int, str], None] = lambda _done, _total, _name: None
    timelines: bool = False
    rounds: dict[str, list[Measurement]] = attrs.field(
        init=False, factory=dict[str, list[Measurement]], repr=False
    )

    async def run(self) -> None:
        """Run all rounds; fewer, where no number was given and verifying takes long.

        Raises:
            RunFailed: if one fails; the message names its topology.
        """
        nr_rounds = self.nr_rounds or self._rounds_in_time()
        seconds = self.seconds / nr_rounds / len(self.topologies)
        started = clock.perf_counter()
        order = list(self.topologies)
        if WORKLOADS[self.load.workload].scheduled and not self.load.limit:
            first = order[0]
            self.on_round(0, nr_rounds * len(order), first)
            limit = await self._named(first, limit_of(self.topologies[first], self.load))
            self.load = attrs.evolve(self.load, limit=limit)
        for turn in range(nr_rounds):
            if self.nr_rounds is None and self._too_late(turn, clock.perf_counter() - started):
                break
            for number, name in enumerate(order, turn * len(order)):
                self.on_round(number, nr_rounds * len(order), name)
                await self._round(name, seconds)
            order.reverse()

    def _too_late(self, turn: int, elapsed: float) -> bool:
        """Return whether another round of each would take too long, as long as those before."""
        enough = turn >= rounds_needed(list(self.topologies))
        share = MAX_SHARE if enough else PATIENT_SHARE
        return turn > 0 and elapsed * (turn + 1) > share * self.seconds * turn

    def _rounds_in_time(self) -> int:
        round_s = len(self.topologies) * WORKLOADS[self.load.workload].round_s
        return max(1, min(MOST_ROUNDS, int(self.seconds / round_s)))

    async def _round(self, name: str, seconds: float) -> None:
        measured = Measurement(timeline=Timeline(seconds) if self.timelines else None)
        self.rounds.setdefault(name, []).append(measured)
        await self._named(name, measure_round(self.topologies[name], self.load, seconds, measured))

    async def _named(self, name: str, run: Awaitable[T]) -> T:
        """Return what a run returns; if it fails, the message names its topology."""
        try:
            return await run
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

    def measured(self, name: str) -> Measurement:
        """Return what the rounds of a topology measured, all together."""
        return _sum(self.rounds[name])

    def unfinished(self) -> list[str]:
        """Return the topologies of which no round came to its end: interrupted, or failed."""
        return [
            name
            for name, rounds in self.rounds.items()
            if not any(measured.finished for measured in rounds)
        ]

    def figures_of(self, name: str) -> list[dict[str, float]]:
        """Return the figures of each round of a topology, by name."""
        return [
            {figure.name: figure.of(result) for figure in FIGURES}
            for result in self._round_results(name)
        ]

    def verdicts(self) -> list[Verdict]:
        """Return what differed, pair by pair; what was not finished is compared with nothing."""
        unfinished = self.unfinished()
        finished = {
            result.topology: result
            for result in self.results()
            if result.topology not in unfinished
        }
        if len(finished) < 2:
            return []
        return verdicts(finished, {name: self._round_results(name) for name in finished})

    def sentences(self) -> list[str]:
        """Return the verdicts in words, whichever won, or what there is to say without any."""
        results = self.results()
        if not results:
            return ["Nothing was measured."]
        if not any(result.pgsteal_anon_per_s for result in results):
            return ["Nothing was reclaimed: give them a smaller --budget or more --seconds."]
        found = self.verdicts()
        if not found:
            return [_alone(results[0])]
        if not any(verdict.enough for verdict in found):
            return [_too_few(found[0])]
        sentences = [verdict.sentence for verdict in found]
        if not any(verdict.differences for verdict in found):
            instead = WORKLOADS[self.load.workload].instead
            sentences.append(f"Another workload may tell them apart: {instead}.")
        return sentences

    def sentence(self) -> str:
        """Return the same, a line for each."""
        return "\n".join(self.sentences())

    def _round_results(self, name: str) -> list[Result]:
        return [
            Result.of(name, self.load, measured)
            for measured in self.rounds[name]
            if measured.finished
        ]


def _sum(rounds: list[Measurement]) -> Measurement:
    total = Measurement()
    for measured in rounds:
        total.merge(measured)
    return total


def _too_few(verdict: Verdict) -> str:
    return (
        f"Not enough rounds to tell a difference from chance: {verdict.rounds}, and it takes"
        f" {verdict.needed} (--rounds {verdict.needed}, or more --seconds)."
    )


def _alone(result: Result) -> str:
    rate = f"{result.topology} stole {result.pgsteal_anon_per_s:,.0f} pages/s"
    if not result.bare_pages_per_s:
        return f"{rate}."
    bare = f"{result.bare_pages_per_s:,.0f} pages/s"
    return f"{rate}, {result.efficiency:.2f} x what its compressor alone does ({bare})."
