"""Whether a store is given writes: what its calls came to, and when it is tried again.

A write that fails takes its store out of service for a while, which doubles with each failure that
follows. Then one write is let through, and what comes of it decides. What fails meanwhile was on
its way before and counts once, with the first. So errors in a burst are one failure, and a store
that was away for some seconds is back without anybody's help. A store that is full rests the same
way, but longer, and what it was given goes elsewhere.

Who has nothing else left to reclaim waits for such a store rather than give up, until it has been
away for as long as a single call of it may take: then it is *lost*. It is tried again all the same,
but nobody waits until that is due, nor for its answer once it is late. (The kernel keeps a failed
page and writes it again whenever it scans it.)

The same goes for slots: those of a call that was given up may still be written. They are set aside
until the store has forgotten them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from reclaimactors.mm.swap_device import SwapDevice

__all__ = ["FIRST_S", "MOST_S", "OUT_AFTER", "Service"]

FIRST_S = 0.05  #: after the first failure
FULL_S = 0.5  #: after it was full
MOST_S = 30.0
OUT_AFTER = 2  #: failures in a row after which it is said that the store is out of service


class Service:
    """The service of one store.

    Args:
        device: whose flags it sets.
        patience: seconds in all that others wait for it before it is lost.
    """

    def __init__(self, device: SwapDevice, *, patience: float) -> None:
        self._device = device
        self._patience = patience
        self._waited = 0.0  # since it worked
        self._wait = 0.0  # the last one, 0 after it worked
        self.again_at = 0.0  #: when it is tried again

    def failed(self, now: float, took: float = 0.0) -> bool:
        """Note that a write has failed; return whether it counts.

        Args:
            now: any clock that goes on.
            took: seconds that were waited for its answer, where that matters.
        """
        device = self._device
        if not device.in_service:
            return False
        device.failures += 1
        device.in_service = False
        self._waited += took + self._rest(now, FIRST_S)
        device.lost = self._waited > self._patience
        return True

    def is_full(self, now: float) -> bool:
        """Note that it has no room; return whether that is news."""
        if self._device.full:
            return False
        self._device.full = True
        self._rest(now, FULL_S)
        return True

    def _rest(self, now: float, first: float) -> float:
        self._wait = min(MOST_S, max(first, 2 * self._wait))
        self.again_at = now + self._wait
        return self._wait

    def works(self) -> bool:
        """Note that it has taken what it was given; return whether it was out of service.

        One that is full rests all the same: what it has taken was on its way before.
        """
        device = self._device
        was_out = device.failures >= OUT_AFTER
        device.in_service, device.lost, device.failures = True, False, 0
        self._waited = 0.0
        if not device.full:
            self._wait = 0.0
        return was_out

    def revive(self, now: float) -> None:
        """Let it be tried again, where it is time."""
        if now >= self.again_at:
            self._device.in_service, self._device.full = True, False
