"""Policies that are wrong on purpose: each is caught by name, with the sentence that helps."""

from __future__ import annotations

import random
from collections import OrderedDict
from itertools import islice

import pytest

from reclaimactors import Verdict
from reclaimactors.policies.mglru import Mglru
from reclaimactors.testing import PolicyTests


class Lru:
    """Conforms; each class below breaks one rule of it."""

    def __init__(self, pages=0):
        self.pages = pages
        self.lru = OrderedDict()

    def insert(self, pfn, *, refault):
        self.lru[pfn] = None

    def access(self, pfn):
        if pfn in self.lru:
            self.lru.move_to_end(pfn)

    def remove(self, pfn):
        self.lru.pop(pfn, None)

    def isolate(self, nr):
        return [self.lru.popitem(last=False)[0] for _ in range(min(nr, len(self.lru)))]

    def putback(self, pfns, verdict):
        self.lru.update(dict.fromkeys(pfns))
        if verdict is Verdict.KEEP:
            for pfn in reversed(pfns):
                self.lru.move_to_end(pfn, last=False)

    def shadow(self, pfn):
        return 0

    def age(self, now):
        pass

    def deactivate(self, pfn):
        if pfn in self.lru:
            self.lru.move_to_end(pfn, last=False)


class NoAge(Lru):
    age = None


class FloatShadow(Lru):
    def shadow(self, pfn):
        return 0.5


class NegativeShadow(Lru):
    def shadow(self, pfn):
        return -1


class WideShadow(Lru):
    def shadow(self, pfn):
        return 1 << 64


class NoShadow(Lru):
    def shadow(self, pfn):
        pass


class ShadowsExpire(Lru):
    """Knows the last 16 shadows only."""

    clock = 0

    def shadow(self, pfn):
        self.clock += 1
        return self.clock

    def insert(self, pfn, *, refault):
        if refault is not None and refault < self.clock - 16:
            raise KeyError(refault)
        super().insert(pfn, refault=refault)


class AccessInserts(Lru):
    def access(self, pfn):
        self.lru[pfn] = None
        self.lru.move_to_end(pfn)


class AccessNeedsAList(Lru):
    def access(self, pfn):
        self.lru.move_to_end(pfn)


class Listed(Lru):
    """A plain list, in which everything has to be looked for."""

    def __init__(self, pages=0):
        self.lru = []

    def insert(self, pfn, *, refault):
        self.lru.append(pfn)

    def access(self, pfn):
        if pfn in self.lru:
            self.lru.remove(pfn)
            self.lru.append(pfn)

    def remove(self, pfn):
        if pfn in self.lru:
            self.lru.remove(pfn)

    def isolate(self, nr):
        got, self.lru = self.lru[:nr], self.lru[nr:]
        return got

    def putback(self, pfns, verdict):
        self.lru = [*pfns, *self.lru] if verdict is Verdict.KEEP else [*self.lru, *pfns]


class LinearIsolate(Lru):
    def __init__(self, pages=0):
        self.when = {}
        self.clock = 0

    def insert(self, pfn, *, refault):
        self.clock += 1
        self.when[pfn] = self.clock

    def access(self, pfn):
        if pfn in self.when:
            self.insert(pfn, refault=None)

    def remove(self, pfn):
        self.when.pop(pfn, None)

    def isolate(self, nr):
        got = sorted(self.when, key=self.when.get)[:nr]
        for pfn in got:
            del self.when[pfn]
        return got

    def putback(self, pfns, verdict):
        for pfn in pfns:
            self.insert(pfn, refault=None)


class GhostsForEver(Lru):
    def __init__(self, pages=0):
        super().__init__()
        self.ghosts = []

    def shadow(self, pfn):
        self.ghosts.append((pfn, len(self.ghosts)))
        return len(self.ghosts)


class HistoryForEver(Lru):
    def __init__(self, pages=0):
        super().__init__()
        self.history = []

    def age(self, now):
        self.history.append(now)


class KeepsLast(Lru):
    def putback(self, pfns, verdict):
        self.lru.update(dict.fromkeys(pfns))


class KeepsBackwards(Lru):
    def putback(self, pfns, verdict):
        self.lru.update(dict.fromkeys(pfns))
        if verdict is Verdict.KEEP:
            for pfn in pfns:
                self.lru.move_to_end(pfn, last=False)


class ActivatesFirst(Lru):
    def putback(self, pfns, verdict):
        super().putback(pfns, Verdict.KEEP)


class LosesErrors(Lru):
    def putback(self, pfns, verdict):
        if verdict is not Verdict.ERROR:
            super().putback(pfns, verdict)


class DeactivatesLast(Lru):
    def deactivate(self, pfn):
        if pfn in self.lru:
            self.lru.move_to_end(pfn)


class DeactivatesInFlight(Lru):
    def deactivate(self, pfn):
        self.lru[pfn] = None
        self.lru.move_to_end(pfn, last=False)


class Deaf(Lru):
    def access(self, pfn):
        pass


class MostRecentFirst(Lru):
    def isolate(self, nr):
        return [self.lru.popitem()[0] for _ in range(min(nr, len(self.lru)))]


class GivesTooMany(Lru):
    def isolate(self, nr):
        return super().isolate(nr + 1)


class GivesTwice(Lru):
    def isolate(self, nr):
        got = super().isolate(nr)
        return [*got[:-1], got[0]] if len(got) > 1 else got


class GivesStrangers(Lru):
    def isolate(self, nr):
        return [*super().isolate(nr - 1), 10**6] if self.lru else []


class GivesAnIterator(Lru):
    def isolate(self, nr):
        return iter(super().isolate(nr))


class LeavesThemListed(Lru):
    def isolate(self, nr):
        return list(islice(self.lru, nr))


class SparesTheRead(Lru):
    """Never gives up what was read."""

    def __init__(self, pages=0):
        super().__init__()
        self.read = set()

    def access(self, pfn):
        self.read.add(pfn)

    def isolate(self, nr):
        got = list(islice((pfn for pfn in self.lru if pfn not in self.read), nr))
        for pfn in got:
            del self.lru[pfn]
        return got


class BoundedByPages(Lru):
    def insert(self, pfn, *, refault):
        super().insert(pfn, refault=refault)
        while len(self.lru) > self.pages:
            self.lru.popitem(last=False)


class FixedTable(Lru):
    def __init__(self, pages=0):
        super().__init__()
        self.column = bytearray(1000)

    def insert(self, pfn, *, refault):
        self.column[pfn] = 1
        super().insert(pfn, refault=refault)


class StrictRemove(Lru):
    def remove(self, pfn):
        del self.lru[pfn]


class ReturnsThePfn(Lru):
    def insert(self, pfn, *, refault):
        super().insert(pfn, refault=refault)
        return pfn + 2


class ForgetsAfterRefaults(Lru):
    """Only a walk finds it: what was activated and then read in flight is lost."""

    def __init__(self, pages=0):
        super().__init__()
        self.activated = set()

    def putback(self, pfns, verdict):
        back = [pfn for pfn in pfns if not (pfn in self.activated and verdict is Verdict.CANCELLED)]
        if verdict is Verdict.ACTIVATE:
            self.activated.update(pfns)
        super().putback(back, verdict)


class Stuck(Lru):
    def isolate(self, nr):
        while len(self.lru) > 3:
            pass
        return super().isolate(nr)


@pytest.mark.parametrize(
    ("broken", "check", "says"),
    [
        (NoAge, "follows_the_protocol", "it lacks age"),
        (FloatShadow, "remove_in_every_state", "shadow(0) returned 0.5"),
        (NegativeShadow, "remove_in_every_state", "shadow(0) returned -1"),
        (WideShadow, "remove_in_every_state", "return an int from 0 to 2**63 - 1"),
        (NoShadow, "shadow_is_accepted_at_refault", "shadow(0) returned None"),
        (ShadowsExpire, "shadow_is_accepted_at_refault", "KeyError"),
        (AccessInserts, "read_in_flight_is_harmless", "which is isolated already"),
        (AccessNeedsAList, "read_in_flight_is_harmless", "only note the read where the folio is"),
        (Listed, "cost_does_not_grow_with_the_number_of_folios", "access took"),
        (LinearIsolate, "cost_does_not_grow_with_the_number_of_folios", "isolate and putback took"),
        (GhostsForEver, "ghosts_are_bounded", "B more after each 2000 evictions"),
        (HistoryForEver, "ghosts_are_bounded", "key ghosts by pfn, or bound their number"),
        (KeepsLast, "kept_is_next_again_in_order", "in front of all others"),
        (KeepsBackwards, "kept_is_next_again_in_order", "it gave [5, 4, 3, 2, 1, 0]"),
        (ActivatesFirst, "activated_is_not_next_again", "and it gave them again"),
        (
            LosesErrors,
            "isolated_stays_away_until_putback",
            "returned [] with 6 folios on the lists",
        ),
        (DeactivatesLast, "deactivated_is_next", "pfn 7 was deactivated, and pfn 0 was isolated"),
        (DeactivatesInFlight, "deactivated_is_next", "leave an isolated one alone"),
        (Deaf, "read_folios_outlive_unread_ones", "only 16 of the first 32 were unread"),
        (MostRecentFirst, "read_folios_outlive_unread_ones", "heed it in `isolate`"),
        (GivesTooMany, "finds_every_folio", "isolate(8) returned 9 folios"),
        (GivesTwice, "finds_every_folio", "returned pfn 0 twice"),
        (GivesStrangers, "finds_every_folio", "pfn 1000000, which is not on the lists"),
        (GivesAnIterator, "finds_every_folio", "isolate(8) returned list_iterator"),
        (LeavesThemListed, "isolated_stays_away_until_putback", "which is isolated already"),
        (SparesTheRead, "finds_a_victim_where_all_were_read", "[] with 200 folios on the lists"),
        (BoundedByPages, "finds_every_folio", "isolate(8) returned [] with 136 folios"),
        (FixedTable, "pfns_come_in_any_order", "let columns grow"),
        (StrictRemove, "remove_in_every_state", "ghosts too, and raise nothing"),
        (ReturnsThePfn, "finds_every_folio", "insert(0) returned 2"),
        (ForgetsAfterRefaults, "random_walk", "steps, with pages="),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_broken_policy_is_caught(caught, broken, check, says):
    assert says in caught("policies", broken, check)


def test_a_policy_that_hangs_is_given_up(caught, monkeypatch):
    monkeypatch.setattr("reclaimactors.testing.rules._GRACE_S", 0.05)
    said = caught("policies", Stuck, "finds_every_folio", patience_s=0.05)
    assert "it hangs: it had not ended after 0.05 s: test_policies.py:" in said


class Random(Lru):
    """Any folio, but for what was kept or deactivated."""

    def __init__(self, pages=0):
        super().__init__()
        self.rng = random.Random(1)
        self.first = []
        self.rest = []
        self.at = {}

    def insert(self, pfn, *, refault):
        self.at[pfn] = len(self.rest)
        self.rest.append(pfn)

    def access(self, pfn):
        pass

    def remove(self, pfn):
        if pfn in self.at:
            self._take(self.at[pfn])
        elif pfn in self.first:
            self.first.remove(pfn)

    def isolate(self, nr):
        got = [self.first.pop() for _ in range(min(nr, len(self.first)))]
        while self.rest and len(got) < nr:
            got.append(self._take(self.rng.randrange(len(self.rest))))
        return got

    def putback(self, pfns, verdict):
        if verdict is Verdict.KEEP:
            self.first += reversed(pfns)
        else:
            for pfn in pfns:
                self.insert(pfn, refault=None)

    deactivate = None

    def _take(self, at):
        pfn, last = self.rest[at], self.rest.pop()
        if last != pfn:
            self.rest[at] = last
            self.at[last] = at
        del self.at[pfn]
        return pfn


def test_right_policy_passes(kept):
    kept("policies", Lru)
    kept("policies", lambda pages: Mglru(pages=pages))


def test_one_that_ignores_reads_by_design_passes_if_the_suite_says_so(kept):
    kept("policies", Random, heeds_access=False)


def test_unfinished_suite_says_what_is_missing():
    with pytest.raises(NotImplementedError, match="must define make_policy"):
        PolicyTests().test_finds_every_folio()
