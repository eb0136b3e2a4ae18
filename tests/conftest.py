"""How tests run: hypothesis profiles, event loops, leaks.

- `HYPOTHESIS_PROFILE` = `default`, `ci` (derandomized, short) or `nightly` (long: half an hour
  for the state machine of a memory, at a quarter of a second of CPU an example).
- `@pytest.mark.asyncio(loop_factories=["virtual"])` runs a test under the virtual clock, ["uvloop"]
  on uvloop, ["asyncio", "uvloop"] on both; without it, on plain asyncio.
- A test that leaves a thread of ours or a nameless file open fails.
"""

from __future__ import annotations

import asyncio
import os
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import uvloop
from hypothesis import settings

from reclaimactors.testing import VirtualClockLoop

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

settings.register_profile("default", deadline=None)
settings.register_profile("ci", deadline=None, derandomize=True, max_examples=25, database=None)
settings.register_profile("nightly", deadline=None, max_examples=600, stateful_step_count=120)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "default"))


def pytest_asyncio_loop_factories(
    config: pytest.Config, item: pytest.Item
) -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    marker = item.get_closest_marker("asyncio")
    if marker is None or "loop_factories" not in marker.kwargs:
        return {"asyncio": asyncio.new_event_loop}  # what is returned here is what a test runs on
    return {
        "asyncio": asyncio.new_event_loop,
        "virtual": VirtualClockLoop,
        "uvloop": uvloop.new_event_loop,
    }


@pytest.fixture(autouse=True)
def _nothing_leaks() -> Iterator[None]:
    before = _held()
    yield
    until = time.monotonic() + 2  # abandoned threads may still be on their way out
    while leaked := _held() - before:
        if time.monotonic() > until:
            pytest.fail(f"left behind: {sorted(map(str, leaked))}")
        time.sleep(0.005)


def _held() -> set[object]:
    """Return our worker threads and our open files without a name."""
    held: set[object] = {t for t in threading.enumerate() if t.name.startswith("AnyIO worker")}
    for task in Path("/proc/self/task").glob("*/comm"):
        with suppress(OSError):  # it has ended
            if task.read_text().startswith("reclaim-native"):  # Python does not know these
                held.add(task)
    folder = Path("/proc/self/fd")
    for fd in folder.iterdir() if folder.exists() else ():
        try:
            target = str(fd.readlink())
        except OSError:
            continue  # the descriptor of this very listing
        if target.endswith(" (deleted)"):
            held.add((fd.name, target))
    return held
