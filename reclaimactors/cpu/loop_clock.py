"""The event loop's clock, which a virtual one moves as it likes. Apart, for what needs no anyio."""

from __future__ import annotations

from anyio import current_time  # noqa: TID251 - the one place

__all__ = ["current_time"]
