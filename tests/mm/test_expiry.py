"""The timer wheel, and discardable values, without a loop."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reclaimactors.abc import Verdict
from reclaimactors.mm.batch import Producer, Reclaimer
from reclaimactors.mm.expiry import EXPIRY_OVERHEAD, LAZY_OVERHEAD, Expiry, Terms, terms_of
from reclaimactors.mm.folio import LAZY, RESIDENT
from reclaimactors.mm.limits import Limits
from reclaimactors.mm.memcg import FOLIO_OVERHEAD, KEY_OVERHEAD, Memcg
from reclaimactors.mm.node import Node
from reclaimactors.mm.offline import offline
from reclaimactors.mm.swap import SwapDevices
from reclaimactors.mm.swapout import Swapout
from reclaimactors.mm.watermark import Watermarks
from reclaimactors.mm.zswap import Zswap
from reclaimactors.policies.active_inactive import ActiveInactive

PAGE = 4096
BUDGET = 256 * PAGE
DROPPED = Terms(discardable=True)
SECONDS = st.floats(0, 1e10)


@given(now=st.floats(0, 1e9), seconds=SECONDS)
def test_a_slot_is_over_after_its_keys_by_a_second_or_an_eighth_at_most(now, seconds):
    terms = terms_of(now, seconds)
    assert terms.ends_at == now + seconds <= terms.slot
    assert terms.slot - terms.ends_at <= max(1.0, seconds / 8)


@given(times=st.lists(st.tuples(st.floats(0, 1e7), st.floats(0, 1e7)), max_size=200))
def test_slots_are_few_whatever_times_are_given(times):
    expiry = Expiry()
    for nr, (now, seconds) in enumerate(sorted(times)):
        while expiry.next <= now:
            expiry.forget(expiry.first())
        expiry.add(nr, *slot_of(now, seconds))
        expiry.check(expiry.slot_of)
    assert len(expiry._slots) <= 17 * 24


def slot_of(now, seconds):
    terms = terms_of(now, seconds)
    return terms.ends_at, terms.slot


def test_keys_leave_in_the_order_of_their_slots():
    expiry = Expiry()
    for key, seconds in {"late": 900, "soon": 3, "never read": 3.5, "later": 5000}.items():
        expiry.add(key, *slot_of(0.0, seconds))
    assert expiry.next == 3.0
    assert expiry.ends_at("never read") == 3.5
    assert expiry.ends_at("of no time") == math.inf
    assert expiry.ended(3.2) == {"soon"}
    assert expiry.forget("soon") == Terms(3.0, 3.0)
    assert expiry.forget("soon") is None
    assert expiry.next == 4.0
    assert expiry.first() == expiry.first() == "never read"  # it stays until it is forgotten
    expiry.forget("never read")
    assert expiry.ended(1000.0) == {"late"}
    expiry.forget("late")
    expiry.forget("later")
    assert expiry.next == math.inf
    expiry.check({})


class Core:
    """A node whose values are driven by hand."""

    def __init__(self, policy=ActiveInactive):
        self.node = Node(
            page_size=PAGE,
            memcg=Memcg(BUDGET),
            marks=Watermarks(BUDGET // 50, BUDGET // 16, BUDGET // 8),
            policy=policy(pages=256),
            zswap=Zswap(BUDGET, enabled=True, max_pool_percent=20, accept_threshold_percent=90),
            swap=SwapDevices(()),
            compressor=None,
        )
        self.out = Swapout(self.node)
        self.values = self.node.values
        self.memcg = self.node.memcg

    def isolate(self, nr=32, who=Reclaimer.KSWAPD, producer=None):
        batch = self.out.isolate(nr, BUDGET // 8, who, producer)
        assert self.node.check()
        return batch


@pytest.fixture
def core():
    return Core()


def test_reclaim_drops_what_is_discardable_and_takes_the_rest(core):
    core.values.commit("kept", [b"k" * PAGE], 0)
    core.values.commit("dropped", [b"d" * PAGE], 0, DROPPED)
    held = core.memcg.free
    producer = Producer(Reclaimer.PROACTIVE)
    batch = core.isolate(who=Reclaimer.PROACTIVE, producer=producer)
    assert len(batch.pfns) == 1
    assert "dropped" not in core.values
    freed = PAGE + KEY_OVERHEAD + FOLIO_OVERHEAD + LAZY_OVERHEAD
    assert core.memcg.free - held == freed == batch.clean_bytes == producer.freed
    assert batch.nr_clean == 1
    vmstat = core.node.vmstat
    assert vmstat["pglazyfree"] == vmstat["pglazyfreed"] == 1
    assert vmstat["pgscan_file"] == vmstat["pgsteal_file"] == vmstat["pgsteal_proactive"] == 1
    assert vmstat["pgscan_anon"] == vmstat["reclaim_isolated"] == 1
    core.out.hand_back(batch)
    assert core.node.check()


def test_a_batch_of_nothing_else_is_empty_and_counts_as_progress(core):
    for key in range(3):
        core.values.commit(key, [b"d" * PAGE], 0, DROPPED)
    batch = core.isolate()
    assert (batch.pfns, batch.nr_clean) == ([], 3)
    assert not core.values.lazy
    assert core.memcg.free == BUDGET
    assert core.node.root.freed_total == batch.clean_bytes > 3 * PAGE
    assert core.isolate() is None


def test_of_several_folios_all_go_with_the_first(core):
    core.values.commit("large", [b"1" * PAGE, b"2" * PAGE, b"3"], 0, DROPPED)
    let_go = []
    core.node.let_go = let_go.append
    batch = core.isolate(nr=1)
    assert (batch.pfns, batch.nr_clean) == ([], 3)
    assert let_go == [[b"1" * PAGE, b"2" * PAGE, b"3"]]
    assert core.memcg.free == BUDGET


def test_one_that_is_held_is_passed_over(core):
    core.values.commit("pinned", [b"p" * PAGE], 0, DROPPED)
    pfn = core.values.small["pinned"]
    core.node.pin(pfn)
    assert core.isolate() is None
    assert "pinned" in core.values
    core.node.unpin(pfn)
    assert core.isolate().nr_clean == 1


@pytest.mark.parametrize("how", ["put_fast", "commit"])
def test_a_put_makes_it_one_that_is_kept(core, how):
    core.values.commit("key", [b"d" * PAGE], 0, DROPPED)
    assert core.node.root.lazy_overhead == KEY_OVERHEAD + FOLIO_OVERHEAD + LAZY_OVERHEAD
    if how == "put_fast":
        assert core.values.put_fast("key", b"k" * PAGE)
    else:
        core.values.commit("key", [b"k" * PAGE], 0)
    assert not core.values.lazy
    assert core.node.root.lazy_overhead == 0
    assert core.memcg.overhead == KEY_OVERHEAD + FOLIO_OVERHEAD
    batch = core.isolate()
    assert len(batch.pfns) == 1
    core.out.hand_back(batch, Verdict.KEEP)


def test_a_value_that_ends_is_charged_for_that_until_it_is_overwritten(core):
    core.values.commit("key", [b"e" * PAGE], 0, terms_of(0.0, 10.0))
    assert core.memcg.overhead == KEY_OVERHEAD + FOLIO_OVERHEAD + EXPIRY_OVERHEAD
    assert "key" not in core.values.small  # no hit may find it without a look at the clock
    assert not core.values.put_fast("key", b"k")
    core.values.commit("key", [b"k"], 0)
    assert core.memcg.overhead == KEY_OVERHEAD + FOLIO_OVERHEAD
    assert "key" in core.values.small
    assert not core.values.ends
    assert core.node.check()


class Refuses(ActiveInactive):
    """A policy that does not let go of a folio."""

    refuses = True

    def remove(self, pfn):
        super().remove(pfn)
        if self.refuses:
            self.refuses = False
            raise RuntimeError("a bug in my policy")


@pytest.mark.parametrize("terms", [DROPPED, terms_of(0.0, 1.0, discardable=True)])
def test_where_the_policy_raises_the_value_is_there_as_before(terms):
    core = Core(Refuses)
    core.values.commit("key", [b"d" * PAGE, b"e"], 0, terms)
    with pytest.raises(RuntimeError, match="a bug"):
        core.isolate()
    assert core.node.check()
    pfns = core.values.pfns("key")
    assert [core.node.mm.clean[pfn] for pfn in pfns] == [LAZY, LAZY]
    assert [core.node.mm.state[pfn] for pfn in pfns] == [RESIDENT, RESIDENT]
    core.node.root.policy.refuses = terms is not DROPPED
    if terms is not DROPPED:
        with pytest.raises(RuntimeError, match="a bug"):
            core.values.expire("key")
        assert core.node.check()
        assert core.values.expiry.next == 1.0
    assert core.isolate().nr_clean == 2
    assert core.memcg.free == BUDGET


def test_a_group_that_ends_gives_its_parent_the_terms_too(core):
    group = core.node.add_group(
        "g", core.node.root, ActiveInactive(pages=256), Limits(), Watermarks(1, 2, 3)
    )
    group.values.commit("ends", [b"e"], 0, terms_of(0.0, 10.0))
    group.values.commit("dropped", [b"d"], 0, DROPPED)
    group.values.commit("both", [b"1", b"2"], 0, terms_of(0.0, 99.0, discardable=True))
    assert group.lazy_overhead == core.node.root.lazy_overhead > 0
    for _ in offline(group, core.out.ledger, reparent=True):
        assert core.node.check()
    assert core.values.expiry.ends_at("ends") == 10.0
    assert core.values.expiry.ends_at("both") == 99.0
    assert set(core.values.lazy.keys.values()) == {"dropped", "both"}
    assert core.isolate().nr_clean == 3
