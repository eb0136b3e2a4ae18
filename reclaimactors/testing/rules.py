"""How a suite says what is wrong: each check names its rule, and a failure says what to do.

A check is a method ``test_*`` of a suite, made by `rule`. It runs in a thread of its own, with an
event loop of its own where it is asynchronous: so it needs no plugin of a test runner, and what
hangs in it is given up after the suite's `patience_s`, with the line where it hangs.
"""

from __future__ import annotations

import contextvars
import ctypes
import functools
import inspect
import threading
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NoReturn, TypeVar, cast

import anyio

from reclaimactors.testing.loop import WatchedLoop, frames_of_threads, waits_at

if TYPE_CHECKING:
    import asyncio  # noqa: TID251 - whose loops a check runs on
    from collections.abc import Awaitable, Callable, Iterable
    from types import TracebackType

__all__ = ["ContractBroken", "Suite", "broken", "checks_of", "fail_unless", "rule"]

_HERE = str(Path(__file__).parent)
_GRACE_S = 1.0  # for a check that was cancelled to end

_S = TypeVar("_S", bound="Suite")


class ContractBroken(AssertionError):  # noqa: N818 - it says what happened
    """A plugin broke a rule of its contract.

    Attributes:
        rule: the name of the check, without ``test_``.
        seen: what the plugin did.
        where: of the package's public names the one whose docstring has the rule.
        contract: what it says, word for word.
        advice: what the plugin's author can do.
    """

    def __init__(self, rule: str, seen: str, where: str, contract: str, advice: str) -> None:
        super().__init__(rule, seen, where, contract, advice)
        self.rule = rule
        self.seen = seen
        self.where = where
        self.contract = contract
        self.advice = advice

    def __str__(self) -> str:
        return (
            f"{self.rule}\n"
            f"  seen: {self.seen}\n"
            f"  the contract (reclaimactors.{self.where}): {self.contract}\n"
            f"  what to do: {self.advice}"
        )


class _Seen(Exception):  # noqa: N818 - it is what a check saw, until `rule` adds the rest
    def __init__(self, seen: str, advice: str | None) -> None:
        super().__init__(seen)
        self.seen = seen
        self.advice = advice


def broken(seen: str, advice: str | None = None) -> NoReturn:
    """Fail the check that is running.

    Args:
        seen: what the plugin did, with the values.
        advice: what its author can do; None = what the check says of all its failures.
    """
    raise _Seen(seen, advice)


def fail_unless(holds: bool, seen: str, advice: str | None = None) -> None:
    """Fail the check that is running if this does not hold."""
    if not holds:
        broken(seen, advice)


class Suite:
    """What the conformance suites share."""

    patience_s: ClassVar[float] = 30.0
    """Seconds after which a check that has not ended counts as one that hangs."""

    @staticmethod
    def make_loop() -> asyncio.AbstractEventLoop:
        """Return the event loop of a check; ``staticmethod(uvloop.new_event_loop)`` makes another.

        Whether a call blocks, and what it leaves going on, is judged on `WatchedLoop` only.
        """
        return WatchedLoop()


def rule(
    where: str, contract: str, advice: str
) -> Callable[[Callable[[_S], Awaitable[None] | None]], Callable[[_S], None]]:
    """Make a check of a function, plain or asynchronous.

    Args:
        where: the public name whose docstring has the rule, as "Backend.load_many".
        contract: what that docstring says, word for word.
        advice: what to do about it, where the check does not say something more exact.
    """

    def decorate(body: Callable[[_S], Awaitable[None] | None]) -> Callable[[_S], None]:
        name = body.__name__.removeprefix("test_")

        @functools.wraps(body)
        def check(suite: _S) -> None:
            __tracebackhide__ = True
            try:
                _run(suite, functools.partial(body, suite))
            except _Seen as exc:
                seen = "; ".join([exc.seen, *getattr(exc, "__notes__", ())])
                more = exc.advice or advice
                raise ContractBroken(name, seen, where, contract, more) from exc.__cause__
            except BaseException as exc:
                if not _is_of_the_plugin(exc):
                    raise
                more = str(exc) if isinstance(exc, NotImplementedError) and str(exc) else advice
                raise ContractBroken(name, _words(exc), where, contract, more) from exc

        del check.__wrapped__  # or a test runner may take it for asynchronous
        vars(check)["rule"] = (where, contract)
        return check

    return decorate


def checks_of(suite: type[Suite]) -> list[str]:
    """Return the names of a suite's checks, with ``test_``, in the order of its source."""
    names: dict[str, None] = {}
    for base in reversed(suite.__mro__):
        names |= dict.fromkeys(name for name in vars(base) if name.startswith("test_"))
    return list(names)


def _is_of_the_plugin(exc: BaseException) -> bool:
    """Return whether an error is one that a plugin made, and no word of the test runner."""
    if isinstance(exc, KeyboardInterrupt):
        return False
    runner = any(base.__module__.startswith(("_pytest", "unittest")) for base in type(exc).__mro__)
    return not runner and not _unfinished(exc)


def _unfinished(exc: BaseException) -> bool:
    """Return whether it is the suite's own author who has not said how the plugin is made."""
    return isinstance(exc, NotImplementedError) and " must define make_" in str(exc)


def _words(exc: BaseException) -> str:
    """Return what was raised, and where in the plugin."""
    text = f"{type(exc).__name__}: {exc}" if str(exc) else type(exc).__name__
    notes = getattr(exc, "__notes__", ())
    return "; ".join([f"{text}{_line_of(exc.__traceback__)}", *notes])


def _line_of(tb: TracebackType | None) -> str:
    """Return the deepest line outside this kit, as " (mine.py:12, in store_many)"."""
    frames = [frame for frame in traceback.extract_tb(tb) if not _foreign(frame.filename)]
    if not frames:
        return ""
    return f" ({Path(frames[-1].filename).name}:{frames[-1].lineno}, in {frames[-1].name})"


def _foreign(filename: str) -> bool:
    """Return whether a file is the kit's, or of what runs a plugin's calls."""
    folder = str(Path(filename).parent)
    return folder.startswith(_HERE) or any(
        f"/{name}" in folder for name in ("anyio", "asyncio", "concurrent")
    )


# -- in a thread of its own ------------------------------------------------------------------------


def _run(suite: Suite, body: Callable[[], Awaitable[None] | None]) -> None:
    """Run a check; raise what it raises, or `_Seen` if it hangs."""
    __tracebackhide__ = True
    raised: list[BaseException] = []

    def work() -> None:
        try:
            awaited = body()
            if inspect.isawaitable(awaited):
                options = {"loop_factory": suite.make_loop}
                anyio.run(_patiently, awaited, suite.patience_s, backend_options=options)
        except BaseException as exc:  # noqa: BLE001 - raised below, in the thread that waits
            raised.append(exc)

    context = contextvars.copy_context()
    thread = threading.Thread(
        target=lambda: context.run(work), name="reclaimactors check", daemon=True
    )
    thread.start()
    thread.join(suite.patience_s + _GRACE_S)
    if thread.is_alive():
        frame = frames_of_threads().get(thread.ident or 0)
        hangs = _hangs(suite.patience_s, traceback.extract_stack(frame) if frame else ())
        _end(thread)
        raise hangs
    if raised:
        try:
            raise raised[0]
        finally:
            raised.clear()


async def _patiently(body: Awaitable[None], patience_s: float) -> None:
    """Await a check; say where it waits if that takes too long."""
    task = WatchedLoop.this_task()
    ended: BaseException | None = None

    async def watch() -> None:
        nonlocal ended
        await anyio.sleep(patience_s)
        ended = _hangs(patience_s, waits_at(task))
        tasks.cancel_scope.cancel()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(watch)
        try:
            await body
        except anyio.get_cancelled_exc_class():
            raise  # it hangs
        except BaseException as exc:  # noqa: BLE001 - raised below, in no group
            ended = exc
        tasks.cancel_scope.cancel()
    if ended is not None:
        raise _alone(ended)


def _alone(exc: BaseException) -> BaseException:
    """Return the first error of a group: the others of tasks side by side are like it."""
    if not isinstance(exc, BaseExceptionGroup):
        return exc
    group = cast("BaseExceptionGroup[BaseException]", exc)
    first = _alone(group.exceptions[0])
    if len(group.exceptions) > 1:
        first.add_note(f"and {len(group.exceptions) - 1} more tasks failed with it")
    return first


def _hangs(patience_s: float, frames: Iterable[traceback.FrameSummary]) -> _Seen:
    own = [one for one in frames if not _foreign(one.filename) and "threading" not in one.filename]
    at = f": {Path(own[-1].filename).name}:{own[-1].lineno}, in {own[-1].name}" if own else ""
    line = f" `{own[-1].line}`" if own and own[-1].line else ""
    return _Seen(
        f"it hangs: it had not ended after {patience_s:g} s{at}{line}",
        "end each wait: let a cancellation through, and wait for nothing that may never come",
    )


def _end(thread: threading.Thread) -> None:
    """Have a thread that runs Python code for ever end, so that it does not slow what follows."""
    raise_in = cast("Any", ctypes.pythonapi).PyThreadState_SetAsyncExc
    raise_in(ctypes.c_ulong(thread.ident or 0), ctypes.py_object(SystemExit))
