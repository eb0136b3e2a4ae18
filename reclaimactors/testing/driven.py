"""A policy that is driven as the core drives it, beside a model of where each folio is."""

from __future__ import annotations

from typing import TYPE_CHECKING

from reclaimactors.abc import Verdict
from reclaimactors.testing.rules import broken

if TYPE_CHECKING:
    from collections.abc import Iterable

    from reclaimactors.abc import Policy

__all__ = ["BACK", "STEPS", "Driven"]

BACK = (Verdict.ACTIVATE, Verdict.KEEP, Verdict.CANCELLED, Verdict.ERROR)
STEPS = ("insert", "access", "remove", "isolate", "putback", "shadow", "age", "deactivate")


class Driven:
    """A policy, and where each pfn is, which must agree after every step."""

    def __init__(self, policy: Policy) -> None:
        self.policy = policy
        self.deactivates = getattr(policy, "deactivate", None) is not None
        self.listed: set[int] = set()
        self.isolated: set[int] = set()
        self.shadows: dict[int, int] = {}
        self.now = 0.0

    def insert(self, *pfns: int) -> None:
        """Have folios come, or come back."""
        for pfn in pfns:
            said = self.policy.insert(pfn, refault=self.shadows.pop(pfn, None))
            if said not in (None, True, False):
                broken(f"insert({pfn}) returned {said!r}", "return True, False or nothing")
            self.listed.add(pfn)

    def access(self, *pfns: int) -> None:
        """Have folios be read."""
        for pfn in pfns:
            self.policy.access(pfn)

    def remove(self, *pfns: int) -> None:
        """Have folios be deleted."""
        for pfn in pfns:
            self.policy.remove(pfn)
            self.listed.discard(pfn)
            self.isolated.discard(pfn)
            self.shadows.pop(pfn, None)

    def isolate(self, nr: int) -> list[int]:
        """Have the coldest folios taken off the lists."""
        got = self.policy.isolate(nr)
        if not isinstance(got, list):  # pyright: ignore[reportUnnecessaryIsInstance] # it is a plugin's word
            broken(f"isolate({nr}) returned {type(got).__name__}", "return a list of ints")
        if len(got) > nr:
            broken(f"isolate({nr}) returned {len(got)} folios", "return at most as many as asked")
        if len(set(got)) != len(got):
            twice = next(pfn for pfn in got if got.count(pfn) > 1)
            broken(f"isolate({nr}) returned pfn {twice} twice", "have a folio on one list only")
        for pfn in got:
            if pfn not in self.listed:
                broken(f"isolate({nr}) returned pfn {pfn}, which is {self._where(pfn)}")
        if not got and self.listed:
            broken(f"isolate({nr}) returned [] with {len(self.listed)} folios on the lists")
        self.listed -= set(got)
        self.isolated |= set(got)
        return got

    def drain(self, nr: int = 8) -> list[int]:
        """Isolate everything; that it all comes out is checked by `isolate`."""
        order: list[int] = []
        while got := self.isolate(nr):
            order += got
        return order

    def putback(self, pfns: Iterable[int], verdict: Verdict) -> None:
        """Have isolated folios come back."""
        back = list(pfns)
        self.policy.putback(back, verdict)
        self.isolated -= set(back)
        self.listed |= set(back)

    def shadow(self, *pfns: int) -> None:
        """Have isolated folios leave memory."""
        for pfn in pfns:
            shadow = self.policy.shadow(pfn)
            if type(shadow) is not int or not 0 <= shadow < 1 << 63:
                broken(
                    f"shadow({pfn}) returned {shadow!r}",
                    "return an int from 0 to 2**63 - 1; 0 if there is nothing to remember",
                )
            self.shadows[pfn] = shadow
            self.isolated.discard(pfn)

    def age(self) -> None:
        """Let a second pass."""
        self.now += 1.0
        self.policy.age(self.now)

    def deactivate(self, pfn: int) -> None:
        """Have a folio be COLD, if the policy heeds that."""
        if self.deactivates:
            self.policy.deactivate(pfn)  # type: ignore[attr-defined] # pyright: ignore[reportAttributeAccessIssue] # it is optional

    def step(self, name: str, number: int) -> None:
        """Do the named step with the pfn (or count) `number`, if the rules allow it now."""
        here = self.listed | self.isolated
        if name == "insert" and number not in here:
            self.insert(number)
        elif name == "access" and number in here:
            self.access(number)
        elif name == "deactivate" and number in here:
            self.deactivate(number)
        elif name == "remove" and number in here | self.shadows.keys():
            self.remove(number)
        elif name == "shadow" and number in self.isolated:
            self.shadow(number)
        else:
            self._step_of_many(name, number)

    def _step_of_many(self, name: str, number: int) -> None:
        if name == "isolate":
            self.isolate(number % 7 + 1)
        elif name == "putback" and self.isolated:
            some = sorted(self.isolated)[: number % 3 + 1]
            self.putback(some, BACK[number % len(BACK)])
        elif name == "age":
            self.age()

    def _where(self, pfn: int) -> str:
        if pfn in self.isolated:
            return "isolated already"
        return "reclaimed" if pfn in self.shadows else "not on the lists"
