"""What every reclaim policy must keep: subclass `PolicyTests` and run pytest.

Covers the contract of `reclaimactors.Policy` and nothing beyond it, so that it fits a policy of
any kind. It does not judge how good the choice is: compare hit ratios on your own trace for that.

    class TestMine(PolicyTests):
        def make_policy(self, pages):
            return Mine(pages=pages)

The random walk needs hypothesis and is skipped without it. A policy with a `check()` method has it
called after each step.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from reclaimactors.abc import Policy, Verdict

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["PolicyTests"]

_BACK = (Verdict.ACTIVATE, Verdict.KEEP, Verdict.CANCELLED, Verdict.ERROR)
_STEPS = ("insert", "access", "remove", "isolate", "putback", "shadow", "age")


class _Driven:
    """A policy, and a model of where each pfn is, which must agree after every step."""

    def __init__(self, policy: Policy) -> None:
        self.policy = policy
        self.listed: set[int] = set()
        self.isolated: set[int] = set()
        self.shadows: dict[int, int] = {}
        self.now = 0.0

    def insert(self, *pfns: int) -> None:
        for pfn in pfns:
            said = self.policy.insert(pfn, refault=self.shadows.pop(pfn, None))
            assert said in (None, True, False), f"insert returned {said!r}, not a bool or None"
            self.listed.add(pfn)

    def access(self, *pfns: int) -> None:
        for pfn in pfns:
            self.policy.access(pfn)

    def remove(self, *pfns: int) -> None:
        for pfn in pfns:
            self.policy.remove(pfn)
            self.listed.discard(pfn)
            self.isolated.discard(pfn)
            self.shadows.pop(pfn, None)

    def isolate(self, nr: int) -> list[int]:
        got = self.policy.isolate(nr)
        assert len(got) <= nr, f"isolate({nr}) returned {len(got)} folios"
        assert len(set(got)) == len(got), f"isolate returned a folio twice: {got}"
        strangers = set(got) - self.listed
        assert not strangers, f"isolate returned {strangers}, which are not on the lists"
        assert got or not self.listed, f"isolate found none of {len(self.listed)} folios"
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
        back = list(pfns)
        self.policy.putback(back, verdict)
        self.isolated -= set(back)
        self.listed |= set(back)

    def shadow(self, *pfns: int) -> None:
        for pfn in pfns:
            shadow = self.policy.shadow(pfn)
            assert 0 <= shadow < 1 << 63, f"shadow {shadow} does not fit 63 bits"
            self.shadows[pfn] = shadow
            self.isolated.discard(pfn)

    def age(self) -> None:
        self.now += 1.0
        self.policy.age(self.now)

    def step(self, name: str, number: int) -> None:
        """Do the named step with the pfn (or count) `number`, if the rules allow it now."""
        known = self.listed | self.isolated | self.shadows.keys()
        if name == "insert" and number not in self.listed | self.isolated:
            self.insert(number)
        elif name == "access" and number in self.listed | self.isolated:
            self.access(number)
        elif name == "remove" and number in known:
            self.remove(number)
        elif name == "isolate":
            self.isolate(number % 7 + 1)
        elif name == "putback" and self.isolated:
            some = sorted(self.isolated)[: number % 3 + 1]
            self.putback(some, _BACK[number % len(_BACK)])
        elif name == "shadow" and number in self.isolated:
            self.shadow(number)
        elif name == "age":
            self.age()


class PolicyTests:
    """Conformance tests of one policy; override `make_policy`."""

    heeds_access: ClassVar[bool] = True
    """False for a policy that ignores reads by design, as FIFO or random order."""

    def make_policy(self, pages: int) -> Policy:
        """Return a new policy for a budget of so many base pages."""
        msg = f"{type(self).__name__} must define make_policy"
        raise NotImplementedError(msg)

    def _drive(self, nr_inserted: int = 0, pages: int = 64) -> _Driven:
        driven = _Driven(self.make_policy(pages))
        driven.insert(*range(nr_inserted))
        return driven

    def test_follows_the_protocol(self) -> None:
        """It has every method of `reclaimactors.Policy`."""
        assert isinstance(self.make_policy(64), Policy)

    def test_empty_policy_isolates_nothing(self) -> None:
        """With no folio on the lists, isolate returns an empty list."""
        driven = self._drive()
        driven.age()
        assert driven.isolate(32) == []

    def test_finds_every_folio(self) -> None:
        """What was inserted can be isolated, each once, also beyond `pages`."""
        driven = self._drive(200)
        assert sorted(driven.drain()) == list(range(200))

    def test_finds_a_victim_where_all_were_read(self) -> None:
        """Reads protect a folio against others, not against memory running out."""
        driven = self._drive(200)
        for _ in range(3):
            driven.access(*range(200))
        assert len(driven.drain()) == 200

    def test_pfns_come_in_any_order(self) -> None:
        """A pfn may be far above all earlier ones."""
        driven = self._drive()
        driven.insert(5000, 3, 70000, 0)
        driven.access(70000, 3)
        assert sorted(driven.drain()) == [0, 3, 5000, 70000]

    def test_isolated_stays_away_until_putback(self) -> None:
        """A folio in flight is not handed out twice, whatever the verdict of others."""
        for verdict in _BACK:
            driven = self._drive(20)
            got = driven.isolate(6)
            rest = driven.drain()
            assert not set(got) & set(rest)
            driven.putback(got, verdict)
            assert sorted(driven.drain()) == sorted(got), f"after {verdict}"

    def test_read_in_flight_is_harmless(self) -> None:
        """A folio may be read while it is isolated, and lose nothing by it."""
        for verdict in _BACK:
            driven = self._drive(10)
            got = driven.isolate(4)
            driven.access(*got)
            driven.age()
            driven.putback(got, verdict)
            assert sorted(driven.drain()) == list(range(10)), f"after {verdict}"

    def test_remove_in_every_state(self) -> None:
        """A removed folio never comes out, and its pfn may be used again."""
        driven = self._drive(12)
        got = driven.isolate(12)
        driven.shadow(*got[:4])
        driven.putback(got[4:8], Verdict.KEEP)
        driven.remove(*got)
        assert driven.isolate(12) == []
        driven.insert(*got)
        assert sorted(driven.drain()) == sorted(got)

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
        assert unread * 4 >= len(gone) * 3, f"only {unread} of the first {len(gone)} were unread"

    def test_random_walk(self) -> None:
        """After any legal sequence of calls, every folio is where the contract says."""
        import pytest  # noqa: PLC0415 - the kit imports without the test tools

        pytest.importorskip("hypothesis")
        from hypothesis import given, settings  # noqa: PLC0415 - the same
        from hypothesis import strategies as st  # noqa: PLC0415 - the same

        step = st.tuples(st.sampled_from(_STEPS), st.integers(0, 15))

        @settings(deadline=None, database=None)
        @given(st.lists(step, max_size=80), st.sampled_from([1, 8, 64]))
        def walk(steps: list[tuple[str, int]], pages: int) -> None:
            driven = self._drive(4, pages)
            check = getattr(driven.policy, "check", lambda: None)
            for name, number in steps:
                driven.step(name, number)
                check()
            driven.putback(sorted(driven.isolated), Verdict.KEEP)
            driven.drain()
            check()

        walk()
