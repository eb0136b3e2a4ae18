"""Log lines: said by a structlog logger of our own, heard where the host program listens.

Importing or using the package configures nothing. A host that configured structlog gets the lines
as it gets its own. Any other host gets them from the standard logger ``reclaimactors``: errors in
any case (logging's last resort writes them to stderr where no handler is), the rest once the host
has set up logging.

structlog takes a tenth of a second to import, so that waits for the first line that is heard, and
so does the standard logger: `logging.config` disables each logger that is there and that the
configuration does not name. Where it comes after a line was heard, or the host itself has set
`disabled`, errors are said by the root logger instead, and the rest is not said. Whoever wants
silence gives the logger ``reclaimactors`` a level above ERROR.

On failure: saying a line never raises, or a handler with a bug could keep a memory from closing its
stores. Such a line, and what went wrong with it, goes to stderr in the way of the standard library
(`logging.Handler.handleError`), unless `logging.raiseExceptions` is False.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Coroutine
from contextlib import suppress
from functools import cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from structlog.typing import EventDict

__all__ = ["Log", "log"]

_NAME = "reclaimactors"


class Log:
    """One line per change of state: ``log.info("swapoff.started", slots=3)``."""

    def __init__(self, **bound: Any) -> None:
        self._bound = bound

    def bind(self, **facts: Any) -> Log:
        """Return a logger whose lines say these facts as well."""
        return Log(**{**self._bound, **facts})

    def debug(self, event: str, **facts: Any) -> None:
        """Routine: kswapd woke or slept."""
        self._say(logging.DEBUG, "debug", event, facts)

    def info(self, event: str, **facts: Any) -> None:
        """A change that a person may want to see once."""
        self._say(logging.INFO, "info", event, facts)

    def warning(self, event: str, **facts: Any) -> None:
        """Something is worse than configured; work goes on."""
        self._say(logging.WARNING, "warning", event, facts)

    def error(self, event: str, **facts: Any) -> None:
        """Something failed; the line says what still holds."""
        self._say(logging.ERROR, "error", event, facts)

    def _say(self, level: int, method: str, event: str, facts: dict[str, Any]) -> None:
        try:
            logger = _listener(level)
            if logger is not None:  # by the method's name: not every host's logger has `log`
                _must_be_said(getattr(logger.bind(**self._bound), method)(event, **facts))
        except Exception:  # noqa: BLE001 - code of the host, which says how it is to be told
            _unsaid(level, event, {**self._bound, **facts})


def _must_be_said(result: object) -> None:
    """Refuse what only says its line once it is awaited."""
    if isinstance(result, Coroutine):
        result.close()  # else Python warns that nobody has awaited it
        raise TypeError("a line is said at once, and this logger's methods are coroutines")


def _unsaid(level: int, event: str, facts: dict[str, Any]) -> None:
    """Tell on stderr of a line that could not be said, and of the error that is being handled."""
    record = logging.makeLogRecord({"levelno": level, "msg": event, "args": (facts,)})
    with suppress(Exception):  # of stderr itself: nobody is left to tell
        logging.Handler().handleError(record)


def _listener(level: int) -> Any:
    """Return the structlog logger that takes a line of this level, None if nobody would hear it."""
    root = logging.getLogger()
    made = root.manager.loggerDict.get(_NAME)
    ours = made if isinstance(made, logging.Logger) else root  # the root is never disabled
    by_root = ours.disabled and level >= max(logging.ERROR, ours.getEffectiveLevel())
    name = root.name if by_root else _NAME
    if "structlog" in sys.modules:  # whoever configured it has imported it
        import structlog  # noqa: PLC0415

        if structlog.is_configured():
            return _of_host(name)
    heard = root if by_root else ours
    if level < logging.ERROR and not heard.hasHandlers():
        return None  # logging's last resort would show warnings too
    return _ours(logging.getLogger(name)) if heard.isEnabledFor(level) else None


def _of_host(name: str) -> Any:
    """Return a logger as the host configured structlog, but one whose lines are said at once.

    The methods of some bound loggers are coroutines, which nobody awaits here. structlog's generic
    one takes their place: the processors and what they end in are the host's all the same.
    """
    from inspect import iscoroutinefunction  # noqa: PLC0415 - structlog has imported it

    import structlog  # noqa: PLC0415

    if iscoroutinefunction(getattr(structlog.get_config()["wrapper_class"], "error", None)):
        generic = structlog.BoundLogger
        return structlog.wrap_logger(None, wrapper_class=generic, logger_factory_args=(name,))
    return structlog.get_logger(name)


@cache
def _ours(stdlib: logging.Logger) -> Any:
    """Return a logger that ends in the standard one, whatever structlog's defaults are."""
    import structlog  # noqa: PLC0415 - a tenth of a second, for a line that is rarely said

    facts_of = structlog.processors.KeyValueRenderer()

    def to_logging(
        logger: logging.Logger, method: str, facts: EventDict
    ) -> tuple[tuple[str, str, str], dict[str, Any]]:
        error = facts.pop("exc_info", None)
        event = facts.pop("event")
        if logger.name != _NAME or not logger.hasHandlers():  # stderr as it is, without a name
            event = f"{_NAME}: {event}"
        return ("%s %s", event, str(facts_of(logger, method, facts))), {"exc_info": error}

    return structlog.wrap_logger(
        stdlib,
        processors=[to_logging],
        wrapper_class=structlog.stdlib.BoundLogger,
        context_class=dict,
        cache_logger_on_first_use=True,
    )


log = Log()
