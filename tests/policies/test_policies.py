"""The built-in policies: the contract, and what each promises beyond it."""

import bisect
import gc
import itertools
import random

import pytest

from reclaimactors.abc import Verdict
from reclaimactors.errors import ProtocolViolation
from reclaimactors.mm.workingset import EVICTION_MASK, Workingset, refault_distance
from reclaimactors.policies import active_inactive, mglru, s3fifo, sieve
from reclaimactors.policies.active_inactive import ActiveInactive
from reclaimactors.policies.mglru import Mglru
from reclaimactors.policies.s3fifo import S3Fifo
from reclaimactors.policies.sieve import Sieve
from reclaimactors.testing.policy import PolicyTests


class TestActiveInactiveConforms(PolicyTests):
    def make_policy(self, pages):
        return ActiveInactive(pages=pages)


class TestMglruConforms(PolicyTests):
    def make_policy(self, pages):
        return Mglru(pages=pages)


class TestMglruOfTwoGenerationsConforms(PolicyTests):
    def make_policy(self, pages):
        return Mglru(pages=pages, max_gens=2)


class TestSieveConforms(PolicyTests):
    def make_policy(self, pages):
        return Sieve()


class TestS3FifoConforms(PolicyTests):
    def make_policy(self, pages):
        return S3Fifo()


class Fifo:
    """The baseline: order of arrival, whatever is read."""

    def __init__(self, *, pages):
        self.pfns = {}

    def insert(self, pfn, *, refault):
        self.pfns[pfn] = None

    def access(self, pfn):
        pass

    def remove(self, pfn):
        self.pfns.pop(pfn, None)

    def isolate(self, nr):
        got = list(itertools.islice(self.pfns, nr))
        for pfn in got:
            del self.pfns[pfn]
        return got

    def putback(self, pfns, verdict):
        if verdict is Verdict.KEEP:
            self.pfns = {**dict.fromkeys(pfns), **self.pfns}
        else:
            self.pfns.update(dict.fromkeys(pfns))

    def shadow(self, pfn):
        return 0

    def age(self, now):
        pass


class TestKitTakesAnyPolicy(PolicyTests):
    heeds_access = False

    def make_policy(self, pages):
        return Fifo(pages=pages)


POLICIES = {
    "active_inactive": lambda pages: ActiveInactive(pages=pages),
    "mglru": lambda pages: Mglru(pages=pages),
    "s3fifo": lambda pages: S3Fifo(),
    "sieve": lambda pages: Sieve(),
}


@pytest.fixture(params=POLICIES)
def policy(request):
    return POLICIES[request.param](1000)


@pytest.fixture(params=POLICIES.keys() - {"sieve"})  # which has no ghosts
def remembering(request):
    return POLICIES[request.param](1000)


def fill(policy, pfns):
    for pfn in pfns:
        policy.insert(pfn, refault=None)


def evict(policy, nr):
    return {pfn: policy.shadow(pfn) for pfn in policy.isolate(nr)}


def hits(policy, trace, resident_max):
    resident, shadows, nr_hits = set(), {}, 0
    for pfn in trace:
        if pfn in resident:
            nr_hits += 1
            policy.access(pfn)
            continue
        if len(resident) >= resident_max:
            gone = evict(policy, 32)
            shadows |= gone
            resident -= gone.keys()
            policy.age(0.0)
        policy.insert(pfn, refault=shadows.pop(pfn, None))
        resident.add(pfn)
    return nr_hits / len(trace)


def zipf(rng, nr_keys, length):
    weights = list(itertools.accumulate(1 / (rank + 1) for rank in range(nr_keys)))
    return [bisect.bisect(weights, rng.random() * weights[-1]) for _ in range(length)]


def zipf_and_scan(rng):
    """A skewed workload in which every so often many values are read just once."""
    fresh = itertools.count(2000)
    for _ in range(5):
        yield from zipf(rng, 2000, 4000)
        yield from itertools.islice(fresh, 1500)


@pytest.mark.parametrize("make", POLICIES.values(), ids=POLICIES)
def test_beats_fifo_on_zipf_with_scans(make):
    trace = list(zipf_and_scan(random.Random(1)))
    fifo = hits(Fifo(pages=500), trace, 500)
    assert hits(make(500), trace, 500) > fifo + 0.03


def test_a_scan_does_not_push_out_what_is_read(policy):
    hot = range(100)
    fill(policy, hot)
    for pfn in [*hot] * 2:
        policy.access(pfn)
    fill(policy, range(100, 300))
    gone = set()
    for pfn in range(300, 5000):  # each read once, at its put
        policy.insert(pfn, refault=None)
        gone |= evict(policy, 1).keys()
        if pfn % 100 == 0:
            policy.age(float(pfn))
            for known in hot:
                policy.access(known)
    policy.check()
    assert len(gone & set(hot)) == 0


def test_soon_refault_is_workingset_and_protected(remembering):
    fill(remembering, range(100))
    for pfn in range(50):
        remembering.access(pfn)
    shadows = evict(remembering, 30)
    [(pfn, shadow), *_] = shadows.items()
    assert remembering.insert(pfn, refault=shadow) is True
    assert pfn not in remembering.isolate(40)


def test_new_and_long_gone_folios_are_not_workingset(remembering):
    assert remembering.insert(0, refault=None) is False
    [shadow] = evict(remembering, 1).values()
    fill(remembering, range(1, 101))
    for _ in range(10):  # memory turns over ten times, read each time
        for pfn in range(1, 101):
            remembering.access(pfn)
        for gone, old in evict(remembering, 100).items():
            remembering.insert(gone, refault=old)
    assert remembering.insert(0, refault=shadow) is False


@pytest.mark.parametrize("verdict", [Verdict.KEEP, Verdict.ERROR])
def test_d8_in_flight_neither_ages_nor_promotes(policy, verdict):
    fill(policy, range(100))
    first = policy.isolate(10)
    policy.putback(first, verdict)
    policy.check()
    if verdict is Verdict.KEEP:
        assert policy.isolate(10) == first
    else:  # behind its peers, ahead of whatever was promoted
        for pfn in [*range(50, 100)] * 2:
            policy.access(pfn)
        assert set(first) <= set(policy.isolate(50))


def test_failing_folios_do_not_hide_the_others(policy):
    fill(policy, range(100))
    seen = set()
    for _ in range(10):
        batch = policy.isolate(10)
        seen.update(batch)
        policy.putback(batch, Verdict.ERROR)
    assert len(seen) == 100


@pytest.mark.parametrize("verdict", [Verdict.ACTIVATE, Verdict.CANCELLED])
def test_activated_folios_are_isolated_last(policy, verdict):
    fill(policy, range(100))
    batch = policy.isolate(10)
    policy.putback(batch, verdict)
    assert not set(batch) & set(policy.isolate(50))
    policy.check()


def test_a_read_in_flight_counts_after_keep(policy):
    fill(policy, range(100))
    batch = policy.isolate(10)
    policy.access(batch[0])
    policy.putback(batch, Verdict.KEEP)
    assert batch[0] not in policy.isolate(50)
    policy.check()


def test_deactivated_folio_goes_next(policy):
    fill(policy, range(100))
    for pfn in range(100):
        policy.access(pfn)
    policy.deactivate(70)
    assert policy.isolate(1) == [70]
    policy.deactivate(70)  # isolated: nothing to do
    policy.putback([70], Verdict.ACTIVATE)
    policy.deactivate(70)
    policy.check()
    assert policy.isolate(1) == [70]


def test_one_isolate_has_a_bound_and_still_finds_victims(policy, monkeypatch):
    for module in (active_inactive, mglru, s3fifo, sieve):
        monkeypatch.setattr(module, "SCAN_MAX", 50)
    fill(policy, range(1000))
    for pfn in [*range(1000)] * 2:
        policy.access(pfn)
    before = bytes(policy._where[:1000])
    assert len(policy.isolate(32)) == 32
    policy.check()
    moved = sum(was != now for was, now in zip(before, policy._where, strict=False))
    assert moved <= 50 + 32  # the rest is untouched


def test_illegal_calls_raise_and_change_nothing(policy):
    fill(policy, range(10))
    [pfn] = policy.isolate(1)
    listed = (pfn + 1) % 10
    for illegal in (
        lambda: policy.insert(listed, refault=None),
        lambda: policy.insert(pfn, refault=None),
        lambda: policy.putback([pfn, listed], Verdict.KEEP),
        lambda: policy.shadow(listed),
    ):
        with pytest.raises(ProtocolViolation):
            illegal()
    policy.check()
    policy.putback([pfn], Verdict.KEEP)
    assert len(policy.isolate(20)) == 10


def test_nothing_per_folio_is_seen_by_the_collector(policy):
    gc.collect()
    before = len(gc.get_objects())
    fill(policy, range(20_000))
    evict(policy, 10_000)
    gc.collect()
    assert len(gc.get_objects()) - before < 100


def test_max_gens_is_checked():
    with pytest.raises(ValueError, match="max_gens is 1; allowed is 2 to 64"):
        Mglru(pages=10, max_gens=1)


def test_inactive_share_shrinks_with_memory():
    small, large = ActiveInactive(pages=1000), ActiveInactive(pages=10 << 18)  # 4 MB, 10 GiB
    for policy in (small, large):
        fill(policy, range(110))
        policy.putback(policy.isolate(110), Verdict.ACTIVATE)
        for _ in range(10):
            policy.age(0.0)
    assert small._lists.sizes == [55, 55]
    assert large._lists.sizes == [10, 100]


def test_refault_distance_wraps():
    assert refault_distance(5, EVICTION_MASK - 1) == 7
    workingset = Workingset()
    workingset.nonresident_age = EVICTION_MASK
    shadow = workingset.eviction()
    workingset.activation(9)
    assert not workingset.refault(shadow, 9)
    assert workingset.refault(shadow, 10)
    assert not workingset.refault(shadow, 10)  # the activation was counted
