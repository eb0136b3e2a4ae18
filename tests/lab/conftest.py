from __future__ import annotations

from collections import Counter
from types import SimpleNamespace
from typing import TYPE_CHECKING

import anyio
import pytest

from reclaimactors.cpu.psi import Pressure, PressureLine
from reclaimactors.lab.data import Input

if TYPE_CHECKING:
    from collections.abc import Callable


class FakeMemory:
    """A memory that keeps everything, notes what is asked of it, and may be made to lie."""

    def __init__(
        self, budget: int = 16 * 4096, corrupt: object = None, full: Exception | None = None
    ) -> None:
        self.values: dict[object, bytes] = {}
        self.asked: list[tuple[str, object]] = []
        self.vmstat = Counter[str](pgfault=0, pgsteal_anon=0, stored_pages=0)
        self.budget = budget
        self.corrupt = corrupt
        self.full = full
        self.on_stall: Callable[[float], None] | None = None
        self.stalled_us = 0

    def __len__(self) -> int:
        return len(self.values)

    def usage(self) -> SimpleNamespace:
        return SimpleNamespace(budget=self.budget)

    def pressure(self) -> Pressure:
        line = PressureLine(0.0, 0.0, 0.0, self.stalled_us)
        return Pressure(some=line, full=line)

    async def put(self, key: object, data: bytes) -> None:
        self.asked.append(("put", key))
        await anyio.lowlevel.checkpoint()
        if self.full:
            raise self.full
        self.values[key] = data
        self.vmstat["pgsteal_anon"] += 1

    async def get(self, key: object) -> bytes:
        self.asked.append(("get", key))
        self.vmstat["pgfault"] += 1
        value = self.values[key]
        return value[:-1] + b"?" if key == self.corrupt else value


@pytest.fixture
def source() -> Input:
    """Forty pages, each unlike any other."""
    return Input(b"".join(nr.to_bytes(8, "little") * 512 for nr in range(1, 41)), 4096)


@pytest.fixture
def make_memory() -> type[FakeMemory]:
    """The class of a memory that keeps everything and lies where it is told to."""
    return FakeMemory
