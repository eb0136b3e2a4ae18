"""What must end although something raised: every item of many, and what was half done.

A plugin may raise anywhere. An error ends the one item that it is about, never its neighbours, and
none is swallowed: the first one is raised, those that follow from it are its notes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ParamSpec, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

__all__ = ["end_all", "undo"]

P = ParamSpec("P")
T = TypeVar("T")

_MOST_NOTES = 8  #: of one error: a plugin may raise the same object again and again


def end_all(items: Iterable[T], end: Callable[[T], object]) -> None:
    """Call `end` with each of the items, whatever it raises; then raise the first error.

    In a ``finally`` block, the error that was on its way is the context of that one.
    """
    first: BaseException | None = None
    for item in items:
        try:
            end(item)
        except BaseException as exc:  # noqa: BLE001 - raised below, once all have ended
            if first is None:
                first = exc
            else:
                _note(first, exc)
    if first is not None:
        try:
            raise first
        finally:
            first = None  # its traceback holds this frame, and would keep both alive


def undo(
    error: BaseException, call: Callable[P, object], *args: P.args, **kwargs: P.kwargs
) -> None:
    """Call what mends the half done work that `error` has broken off. It is raised after this.

    What the call raises itself becomes a note of `error`. Not for errors that nobody may ever see,
    such as a cancellation: there use `end_all`.
    """
    try:
        call(*args, **kwargs)
    except BaseException as exc:  # noqa: BLE001 - a note of the one that is on its way
        _note(error, exc)


def _note(error: BaseException, later: BaseException) -> None:
    if later is not error and len(getattr(error, "__notes__", ())) < _MOST_NOTES:
        error.add_note(f"after it: {later!r}")
