"""The conformance suite of reclaim policies: subclass it, and say how one is made.

    class TestMine(PolicyTests):
        def make_policy(self, pages):
            return Mine(pages=pages)

Each check is one sentence of the contract and nothing beyond it, so that it fits a policy of any
kind. It does not judge how good the choice is: compare hit ratios on your own trace for that. A
policy with a `check()` method has it called after each step of the random walks.
"""

from __future__ import annotations

import random
import tracemalloc
from typing import TYPE_CHECKING, ClassVar

from reclaimactors.abc import Verdict
from reclaimactors.cpu.clock import thread_time
from reclaimactors.testing.driven import BACK, STEPS, Driven
from reclaimactors.testing.rules import Suite, fail_unless, rule

if TYPE_CHECKING:
    from collections.abc import Callable

    from reclaimactors.abc import Policy

__all__ = ["PolicyTests"]

_METHODS = ("insert", "access", "remove", "isolate", "putback", "shadow", "age")
_FEW, _MANY = 500, 16_000  #: folios between which the cost of a call is compared
_TIMES = 10  #: dearer with many folios, and it is no longer a matter of the CPU's caches
_TIMED = 64  #: calls of a sample
_DEAR_S = 3e-6  #: of a call, below which it is not looked at
_SAMPLES = 5
_CHURN = 2_000  #: evictions between two looks at the memory
_GHOST_BYTES = 8  #: an eviction, of which no growth may be left
_WALKS = 60

_ON_NO_LIST = "A folio in flight is on no list: only `putback` and `insert` put one there."
_ALL = "Every folio on the lists can be isolated, also where all were read."


class PolicyTests(Suite):
    """Conformance tests of one policy; override `make_policy`."""

    heeds_access: ClassVar[bool] = True
    """False for a policy that ignores reads by design, as FIFO or random order."""

    def make_policy(self, pages: int) -> Policy:
        """Return a new policy for a budget of so many base pages."""
        msg = f"{type(self).__name__} must define make_policy"
        raise NotImplementedError(msg)

    def _drive(self, nr_inserted: int = 0, pages: int = 64) -> Driven:
        driven = Driven(self.make_policy(pages))
        driven.insert(*range(nr_inserted))
        return driven

    @rule("Policy", "Which folio goes next.", "give it all seven methods of reclaimactors.Policy")
    def test_follows_the_protocol(self) -> None:
        """It has every method of `reclaimactors.Policy`."""
        policy = self.make_policy(64)
        lacks = [name for name in _METHODS if not callable(getattr(policy, name, None))]
        fail_unless(not lacks, f"it lacks {', '.join(lacks)}")

    @rule("Policy.isolate", "[] only where there is none", "return [] where the lists are empty")
    def test_empty_policy_isolates_nothing(self) -> None:
        """With no folio on the lists, isolate returns an empty list."""
        driven = self._drive()
        driven.age()
        driven.isolate(32)

    @rule("Policy", _ALL, "keep every folio that was inserted on a list until it leaves")
    def test_finds_every_folio(self) -> None:
        """What was inserted can be isolated, each once, also beyond `pages`."""
        driven = self._drive(200)
        driven.drain()
        _all_came(driven, 200)

    @rule("Policy", _ALL, "take the coldest all the same where every folio was read")
    def test_finds_a_victim_where_all_were_read(self) -> None:
        """Reads protect a folio against others, not against memory running out."""
        driven = self._drive(200)
        for _ in range(3):
            driven.access(*range(200))
        driven.drain()
        _all_came(driven, 200)

    @rule("Policy", "A pfn is a small int", "let columns grow as far as the highest pfn")
    def test_pfns_come_in_any_order(self) -> None:
        """A pfn may be far above all earlier ones."""
        driven = self._drive()
        driven.insert(5000, 3, 70000, 0)
        driven.access(70000, 3)
        driven.drain()
        _all_came(driven, 4)

    @rule("Policy", _ON_NO_LIST, "take what `isolate` returns off its list")
    def test_isolated_stays_away_until_putback(self) -> None:
        """A folio in flight is not handed out twice, whatever the verdict of others."""
        for verdict in BACK:
            driven = self._drive(20)
            got = driven.isolate(6)
            driven.drain()
            driven.putback(got, verdict)
            driven.drain()
            _all_came(driven, 20)

    @rule("Policy", _ON_NO_LIST, "in `access`, only note the read where the folio is isolated")
    def test_read_in_flight_is_harmless(self) -> None:
        """A folio may be read while it is isolated; it stays isolated, and loses nothing by it."""
        for verdict in BACK:
            driven = self._drive(10)
            got = driven.isolate(4)
            driven.access(*got)
            driven.age()
            driven.drain()
            driven.putback(got, verdict)
            driven.drain()
            _all_came(driven, 10)

    @rule(
        "Policy.remove",
        "Forget a folio wherever it is: on the lists, isolated, or reclaimed.",
        "look for the folio wherever it may be, ghosts too, and raise nothing",
    )
    def test_remove_in_every_state(self) -> None:
        """A removed folio never comes out, and its pfn may be used again."""
        driven = self._drive(12)
        got = driven.isolate(12)
        driven.shadow(*got[:4])
        driven.putback(got[4:8], Verdict.KEEP)
        driven.remove(*got)
        driven.isolate(12)
        driven.insert(*got)
        driven.drain()
        _all_came(driven, 12)

    @rule(
        "Policy.insert",
        "`refault` is what `shadow` returned, None = new.",
        "take any int that `shadow` has returned, however long ago",
    )
    def test_shadow_is_accepted_at_refault(self) -> None:
        """`insert` takes what `shadow` gave, at once and after many other evictions."""
        driven = self._drive(64)
        early = driven.isolate(8)
        driven.shadow(*early)
        driven.insert(*early[:4])
        for pfn in range(100, 400):
            driven.insert(pfn)
            driven.shadow(*driven.isolate(1))
            driven.age()
        driven.insert(*(pfn for pfn in early if pfn in driven.shadows))
        driven.drain()

    @rule(
        "Policy.putback",
        "KEEP goes to the cold end, in order: they are the next to be isolated, as nobody has "
        "tried to reclaim them.",
        "with Verdict.KEEP, put the folios in front of all others, the first one first",
    )
    def test_kept_is_next_again_in_order(self) -> None:
        """What was handed back untried is the next to go, in the order in which it went."""
        driven = self._drive(40)
        got = driven.isolate(6)
        driven.putback(got, Verdict.KEEP)
        again = driven.isolate(6)
        fail_unless(again == got, f"isolate gave {got}, they were kept, and then it gave {again}")

    @rule(
        "Policy.putback",
        "ACTIVATE does not, or reclaim would look at the same ones again and again.",
        "with Verdict.ACTIVATE, put the folios behind others: they could not be reclaimed",
    )
    def test_activated_is_not_next_again(self) -> None:
        """What could not be reclaimed does not stand in the way of what can."""
        driven = self._drive(64)
        got = driven.isolate(8)
        driven.putback(got, Verdict.ACTIVATE)
        again = driven.isolate(8)
        fail_unless(
            set(again) != set(got),
            f"isolate gave {got}, they were activated, and it gave them again",
        )

    @rule(
        "DeactivatingPolicy.deactivate",
        "Make a folio on the lists the next to be isolated, its reads forgotten.",
        "move the folio to the cold end, in front of all others; leave an isolated one alone",
    )
    def test_deactivated_is_next(self) -> None:
        """Where there is a `deactivate`, the folio is isolated next, but not one in flight."""
        driven = self._drive(40)
        if not driven.deactivates:
            return  # it is optional
        driven.access(*range(40))
        for pfn in (7, 33):
            driven.deactivate(pfn)
            (first,) = driven.isolate(1)
            fail_unless(first == pfn, f"pfn {pfn} was deactivated, and pfn {first} was isolated")
        driven.deactivate(7)
        driven.drain()

    @rule(
        "Policy.access",
        "Reads protect a folio against others that nobody reads.",
        "note the read in `access` and heed it in `isolate`; or set `heeds_access = False` in the "
        "suite, if that is by design",
    )
    def test_read_folios_outlive_unread_ones(self) -> None:
        """Of two sets that came in together, the one that nobody reads goes first."""
        if not self.heeds_access:
            return
        driven = self._drive(64)
        read = set(range(0, 64, 2))
        for _ in range(3):
            driven.access(*read)
            driven.age()
        gone: list[int] = []
        while len(gone) < 32:
            got = driven.isolate(4)
            driven.shadow(*got)
            gone += got
        unread = sum(pfn not in read for pfn in gone)
        fail_unless(
            unread * 4 >= len(gone) * 3, f"only {unread} of the first {len(gone)} were unread"
        )

    @rule(
        "Policy",
        "Each call costs O(1) a folio, however many there are.",
        "use a linked list, an OrderedDict or columns by pfn: list.remove, sorted, min and `in` of "
        "a list look at every folio",
    )
    def test_cost_does_not_grow_with_the_number_of_folios(self) -> None:
        """A call costs about as much beside 16,000 folios as beside 500."""
        for name in ("access", "isolate and putback", "remove and insert", "shadow and insert"):
            few, many = (_fastest(self._drive(nr, nr), name) for nr in (_FEW, _MANY))
            fail_unless(
                many < _DEAR_S or many < few * _TIMES,
                f"{name} took {1e6 * few:.1f} us a folio with {_FEW} folios, and "
                f"{1e6 * many:.1f} us with {_MANY}",
            )

    @rule(
        "Policy",
        "What it holds is bounded by the folios that were not removed: ghosts too.",
        "key ghosts by pfn, or bound their number; and forget them in `remove`",
    )
    def test_ghosts_are_bounded(self) -> None:
        """Folios that come and go for ever do not make it grow."""
        driven = self._drive(64)
        tracemalloc.start()
        try:
            sizes: list[int] = []
            for _ in range(3):
                _churn(driven, _CHURN)
                sizes.append(tracemalloc.get_traced_memory()[0])
        finally:
            tracemalloc.stop()
        grown = min(sizes[2] - sizes[1], sizes[1] - sizes[0])
        fail_unless(
            grown < _GHOST_BYTES * _CHURN,
            f"as 64 folios come and go, it holds {grown} B more after each {_CHURN} evictions",
        )

    @rule(
        "Policy",
        "A folio is on the lists (after `insert` and `putback`), isolated (after `isolate`), or "
        "reclaimed (after `shadow`), and every call fits where it is.",
        "follow the steps, and look where the policy has the folio after each",
    )
    def test_random_walk(self) -> None:
        """After any legal sequence of calls, every folio is where the contract says."""
        for seed in range(_WALKS):
            rng = random.Random(seed)  # noqa: S311 - reproducible steps, no secret
            steps = [(rng.choice(STEPS), rng.randrange(16)) for _ in range(seed * 2 + 4)]
            self._walk(steps, (1, 8, 64)[seed % 3])

    def _walk(self, steps: list[tuple[str, int]], pages: int) -> None:
        driven = self._drive(4, pages)
        check: Callable[[], object] = getattr(driven.policy, "check", lambda: None)
        for nr, (name, number) in enumerate(steps):
            try:
                driven.step(name, number)
                check()
            except Exception as exc:
                done = ", ".join(
                    f"{name} {number}" for name, number in steps[max(0, nr - 8) : nr + 1]
                )
                exc.add_note(f"pages={pages}; the last steps were: {done}")
                raise
        driven.putback(sorted(driven.isolated), Verdict.KEEP)
        try:
            driven.drain()
            check()
        except Exception as exc:
            exc.add_note(f"after {len(steps)} steps, with pages={pages}")
            raise


def _all_came(driven: Driven, nr: int) -> None:
    """Fail unless all folios are isolated, after they were drained."""
    came = len(driven.isolated)
    fail_unless(came == nr, f"{came} of {nr} folios could be isolated")


def _fastest(driven: Driven, name: str) -> float:
    """Return the seconds of CPU that a step takes, a folio, in the best of some samples."""
    policy = driven.policy
    nr = len(driven.listed)
    spread = [nr * (2 * i + 1) // (2 * _TIMED) for i in range(_TIMED)]
    best = float("inf")
    for _ in range(_SAMPLES):
        started = thread_time()
        if name == "access":
            for pfn in spread:
                policy.access(pfn)
        elif name == "isolate and putback":
            for _ in range(_TIMED):
                policy.putback(policy.isolate(1), Verdict.ACTIVATE)
        elif name == "remove and insert":
            for pfn in spread:
                policy.remove(pfn)
                policy.insert(pfn, refault=None)
        else:
            for pfn in policy.isolate(_TIMED):
                policy.insert(pfn, refault=policy.shadow(pfn))
        best = min(best, (thread_time() - started) / _TIMED)
    return best


def _churn(driven: Driven, nr: int) -> None:
    """Have folios be evicted, come back, and be deleted, so often."""
    for turn in range(nr // 2):
        (pfn,) = driven.isolate(1)
        driven.shadow(pfn)
        if turn % 3:
            driven.remove(pfn)
        driven.insert(pfn)
        driven.access(pfn)
        driven.age()
        (pfn,) = driven.isolate(1)
        driven.remove(pfn)
        driven.insert(pfn)
