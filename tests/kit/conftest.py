"""What the tests of the kit share: one check on one plugin, outside pytest as check-plugin does."""

from __future__ import annotations

import pytest

from reclaimactors.testing import run_checks, suite_of


@pytest.fixture
def caught():
    """Return a function that runs one check on a plugin that is wrong, and returns what it says."""

    def run(kind, make, check, **attributes):
        (finding,) = run_checks(suite_of(kind, make, **attributes), [f"test_{check}"])
        assert finding.broken is not None, f"{check} passes it"
        assert finding.broken.rule == check
        assert finding.broken.contract
        assert finding.broken.advice
        return str(finding.broken)

    return run


@pytest.fixture
def kept():
    """Return a function that fails where a right plugin does not keep every rule."""

    def run(kind, make, **attributes):
        findings = list(run_checks(suite_of(kind, make, **attributes)))
        assert len(findings) > 10
        assert [str(finding.broken) for finding in findings if finding.broken] == []

    return run
