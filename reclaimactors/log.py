"""Where log lines go: to structlog if the host program configured it, else nowhere by default.

Importing or using the package configures nothing and prints nothing. A host that does not use
structlog gets the same lines from the standard logger ``reclaimactors`` once it sets up logging.
(structlog is looked up, not imported: whoever configured it has imported it, and importing it costs
a tenth of a second that an embedder should not pay.)
"""

from __future__ import annotations

import logging
import sys
from typing import Any

__all__ = ["log"]

_stdlib = logging.getLogger("reclaimactors")
_stdlib.addHandler(logging.NullHandler())


class _Log:
    """One line per change of state: ``log.info("kswapd.slept", nid=0)``."""

    def __call__(self, level: int, event: str, **facts: Any) -> None:
        structlog = sys.modules.get("structlog")
        if structlog is not None and structlog.is_configured():
            structlog.get_logger("reclaimactors").log(level, event, **facts)
        elif _stdlib.isEnabledFor(level):
            error = facts.pop("exc_info", None)
            told = " ".join(f"{name}={value!r}" for name, value in facts.items())
            _stdlib.log(level, "%s %s", event, told, exc_info=error)

    def debug(self, event: str, **facts: Any) -> None:
        """Routine: kswapd woke or slept."""
        self(logging.DEBUG, event, **facts)

    def info(self, event: str, **facts: Any) -> None:
        """A change that a person may want to see once."""
        self(logging.INFO, event, **facts)

    def warning(self, event: str, **facts: Any) -> None:
        """Something is worse than configured; work goes on."""
        self(logging.WARNING, event, **facts)

    def error(self, event: str, **facts: Any) -> None:
        """Something failed; the line says what still holds."""
        self(logging.ERROR, event, **facts)


log = _Log()
