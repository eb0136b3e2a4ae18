"""What differed between two topologies, in which figures, and whether that is more than chance.

Each is held against the first, and the third against the second too (of the default ones: padata
against kcompressd). Whether a difference counts is in `permute.py`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import attrs

from reclaimactors.lab.figures import COMPARED, REFAULTS, STOLEN, Figure
from reclaimactors.lab.permute import ALPHA, chances, enough_rounds

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from reclaimactors.lab.run import Result

__all__ = ["Difference", "Verdict", "rounds_needed", "verdicts"]

WAITS = ("late p50 ms", "late p99 ms", "stall p99 ms", "PSI some %", "allocstall")
IN_LOOP_PERCENT = 10  # of kswapd's pages: what differs by less is no reason


@attrs.frozen
class Difference:
    """A figure that differs by more than chance."""

    figure: Figure
    one: float
    against: float
    chance: float  #: that rounds of one topology show as much in any figure, 0 to `ALPHA`

    @property
    def better(self) -> int:
        """1 where the one is better than the other, -1 where worse, 0 where neither is."""
        return self.figure.better if self.one > self.against else -self.figure.better

    def __str__(self) -> str:
        digits = self.figure.digits
        name, _, unit = self.figure.name.rpartition(" ")
        name, unit = (name, f" {unit}") if name else (unit, "")
        return f"{name} ({self.one:,.{digits}f} against {self.against:,.{digits}f}{unit})"


@attrs.frozen
class Verdict:
    """One topology held against another.

    Attributes:
        one: the topology that is judged.
        against: the other.
        rounds: how many rounds both have.
        needed: how many it takes to tell a difference at all.
        ops: their operations a second.
        differences: the figures that differ by more than chance, in the order of the rows.
        wanted_again: the shares, 0 to 1, of the pages that each stole that came back.
        why: in words, where counters show it; or "".
    """

    one: str
    against: str
    rounds: int
    needed: int
    ops: tuple[float, float]
    differences: Sequence[Difference] = ()
    wanted_again: tuple[float, float] = (0.0, 0.0)
    why: str = ""

    @property
    def enough(self) -> bool:
        """Whether there are enough rounds to tell a difference at all."""
        return self.rounds >= self.needed

    @property
    def sentence(self) -> str:
        """The verdict in words."""
        return f"{self.one} against {self.against}: {self._said()}."

    def _said(self) -> str:
        ops = f"{self.ops[0]:,.0f} against {self.ops[1]:,.0f} ops/s"
        if not self.enough:
            return f"not enough rounds to tell: {self.rounds}, it takes {self.needed} ({ops})"
        if not self.differences:
            return f"they do not differ by more than their {self.rounds} rounds do ({ops})"
        said = [
            f"{word} {_listed(found)}"
            for word, found in (
                ("better in", [each for each in self.differences if each.better > 0]),
                ("worse in", [each for each in self.differences if each.better < 0]),
                ("more", [each for each in self._neutral if each.one > each.against]),
                ("fewer", [each for each in self._neutral if each.one < each.against]),
            )
            if found
        ]
        if self._churns:
            one, against = self.wanted_again
            said.append(f"of what was stolen {one:.1%} came back, against {against:.1%}")
        if self.why:
            said.append(self.why)
        return "; ".join(said)

    @property
    def _neutral(self) -> list[Difference]:
        return [each for each in self.differences if not each.better]

    @property
    def _churns(self) -> bool:
        """Whether more was stolen, and more of it came back."""
        more = {each.figure.name for each in self._neutral if each.one > each.against}
        return {STOLEN.name, REFAULTS.name} <= more

    def as_dict(self) -> dict[str, object]:
        """Return what goes into JSON."""
        return {
            "topology": self.one,
            "against": self.against,
            "rounds": self.rounds,
            "enough_rounds": self.enough,
            "differs": {
                each.figure.name: {
                    "topology": each.one,
                    "against": each.against,
                    "better": {1: True, -1: False, 0: None}[each.better],
                    "chance": round(each.chance, 5),
                }
                for each in self.differences
            },
            "why": self.why,
            "sentence": self.sentence,
        }


def rounds_needed(names: Sequence[str]) -> int:
    """Return how many rounds it takes to tell a difference between these topologies, if any."""
    return enough_rounds(len(list(_pairs(names))))


def verdicts(
    results: Mapping[str, Result], rounds: Mapping[str, Sequence[Result]]
) -> list[Verdict]:
    """Return the verdict on each pair that is held against each other.

    Args:
        results: what the rounds of each topology amount to.
        rounds: the result of each round of each; those that all have are looked at.
    """
    pairs = list(_pairs(list(results)))
    nr_rounds = min(map(len, rounds.values()), default=0)
    needed = rounds_needed(list(results))
    found: list[Verdict] = []
    for name, other in pairs:
        one, against = results[name], results[other]
        differences: Sequence[Difference] = ()
        if nr_rounds >= needed:
            differences = _differences(
                (one, rounds[name][:nr_rounds]), (against, rounds[other][:nr_rounds]), len(pairs)
            )
        found.append(
            Verdict(
                name, other, nr_rounds, needed, (one.ops_per_s, against.ops_per_s), differences,
                (_wanted_again(one), _wanted_again(against)), _why(differences, one, against),
            )
        )  # fmt: skip
    return found


def _why(differences: Sequence[Difference], one: Result, against: Result) -> str:
    """Return why callers waited less, or the event loop did, as far as counters show it."""
    better = {each.figure.name: each.better for each in differences}
    more = one.in_loop_percent - against.in_loop_percent
    if abs(more) >= IN_LOOP_PERCENT and better.get("PSI full %") == (1 if more < 0 else -1):
        return (
            f"the event loop compressed {one.in_loop_percent:.0f} % of kswapd's pages itself,"
            f" against {against.in_loop_percent:.0f} %"
        )
    queues = {each.topology: bool(each.vmstat.get("kcompressd_queued")) for each in (one, against)}
    waits = {better[name] for name in WAITS if name in better}
    if len(waits) == 1 and len({*queues.values()}) == 2:
        (side,) = waits
        winner, loser = (one, against) if side > 0 else (against, one)
        if queues[winner.topology]:
            return (
                f"in {winner.topology} kswapd goes on looking for cold pages while workers"
                f" compress, in {loser.topology} it waits for each batch"
            )
    return ""


def _pairs(names: Sequence[str]) -> Iterable[tuple[str, str]]:
    for number, one in enumerate(names[1:], 1):
        yield one, names[0]
        if number == 2:
            yield one, names[1]


def _differences(
    one: tuple[Result, Sequence[Result]], against: tuple[Result, Sequence[Result]], nr_pairs: int
) -> list[Difference]:
    """Return the figures that differ more than chance allows one of so many pairs."""
    (total, rounds), (other_total, other_rounds) = one, against
    found = chances(_values(rounds), _values(other_rounds), nr_pairs=nr_pairs)
    return [
        Difference(figure, figure.of(total), figure.of(other_total), chance)
        for figure, chance in zip(COMPARED, found, strict=True)
        if chance <= ALPHA / nr_pairs
    ]


def _wanted_again(result: Result) -> float:
    stolen = STOLEN.of(result)
    return REFAULTS.of(result) / stolen if stolen else 0.0


def _values(rounds: Sequence[Result]) -> list[list[float]]:
    return [[figure.of(result) for figure in COMPARED] for result in rounds]


def _listed(found: Sequence[Difference]) -> str:
    said = [str(each) for each in found]
    return " and ".join(filter(None, [", ".join(said[:-1]), said[-1]]))
