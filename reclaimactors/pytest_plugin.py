"""What pytest shows of a conformance suite that fails: the rule and what to do, not the kit's code.

Loaded by its entry point wherever pytest runs and this package is installed, so it imports nothing
of it. The suites work without it.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Generator

__all__ = ["pytest_runtest_makereport"]


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    call: pytest.CallInfo[None],
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Put what was seen, the contract and the advice in the place of the traceback."""
    report = yield
    kit = sys.modules.get("reclaimactors.testing.rules")
    if kit is not None and call.excinfo is not None:
        broken = call.excinfo.value
        if isinstance(broken, kit.ContractBroken):
            report.longrepr = str(broken)
    return report
