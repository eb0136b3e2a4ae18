"""The suites outside pytest: every check of a kind on one plugin, and what each of them saw."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING

import attrs

from reclaimactors.cpu.clock import perf_counter
from reclaimactors.testing.backend import BackendTests
from reclaimactors.testing.compressor import CompressorTests
from reclaimactors.testing.offload import OffloadTests
from reclaimactors.testing.policy import PolicyTests
from reclaimactors.testing.rules import ContractBroken, Suite, checks_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from reclaimactors.registry import Kind

__all__ = ["Finding", "run_checks", "suite_of"]

_SUITES: dict[str, tuple[type[Suite], str]] = {
    "compressors": (CompressorTests, "make_compressor"),
    "backends": (BackendTests, "make_backend"),
    "policies": (PolicyTests, "make_policy"),
    "offloads": (OffloadTests, "make_offload"),
}


@attrs.frozen
class Finding:
    """How one check ended.

    Attributes:
        check: its name, without ``test_``.
        says: what it checks, in a sentence.
        seconds: how long it took.
        broken: what was seen, what the contract says and what to do; None if the rule is kept.
    """

    check: str
    says: str
    seconds: float
    broken: ContractBroken | None

    def as_json(self) -> dict[str, object]:
        """Return what `check-plugin --json` prints of it."""
        facts: dict[str, object] = {
            "check": self.check, "says": self.says, "kept": self.broken is None,
            "seconds": round(self.seconds, 3),
        }  # fmt: skip
        if self.broken is not None:
            facts |= {
                "seen": self.broken.seen,
                "where": f"reclaimactors.{self.broken.where}",
                "contract": self.broken.contract,
                "what_to_do": self.broken.advice,
            }
        return facts


def suite_of(kind: Kind, make: Callable[..., object], **attributes: object) -> type[Suite]:
    """Return a suite for the plugins that `make` makes.

    Args:
        kind: "compressors", "backends", "policies" or "offloads".
        make: is called without arguments, for a policy with the pages of its budget, for an offload
            with a compressor and a number of workers.
        attributes: of the suite besides, as ``patience_s=5.0``.
    """
    base, method = _SUITES[kind]

    def made(_suite: Suite, *arguments: object) -> object:
        return make(*arguments)

    attributes[method] = made
    return type(f"Test{base.__name__}", (base,), attributes)


def run_checks(suite: type[Suite], names: Iterable[str] | None = None) -> Iterator[Finding]:
    """Run the checks of a suite, one after the other.

    Args:
        suite: a subclass that says how its plugin is made.
        names: the checks to run, with ``test_``; None = all.
    """
    for name in checks_of(suite) if names is None else names:
        check = getattr(suite(), name)
        says = (inspect.getdoc(check) or "").partition("\n")[0]
        started, broken = perf_counter(), None
        try:
            check()
        except ContractBroken as exc:
            broken = exc
        yield Finding(name.removeprefix("test_"), says, perf_counter() - started, broken)
