"""Since when a pool has lacked a place for remote workers, or any worker at all."""

from __future__ import annotations

import time

from lacy_stream.stream.quarantine import AnnotationError

PLACE_S = 30.0
"""Seconds that remote workers may lack a place before it is reported."""


class PlaceWatch:
    """Since when remote workers have had no place, and the pool no worker at all."""

    def __init__(self, began: float) -> None:
        self._idle_since: float | None = began
        self._lacking_since: float | None = None
        self._reported = False

    def idle_s(self, has_worker: bool) -> float:
        """Seconds for which there has been no worker."""
        now = time.monotonic()
        self._idle_since = None if has_worker else (self._idle_since or now)
        return 0.0 if self._idle_since is None else now - self._idle_since

    def is_news(self, waiting: str) -> bool:
        """Whether remote workers have lacked a place for ``PLACE_S``, and that was not reported yet."""
        now = time.monotonic()
        self._lacking_since = (self._lacking_since or now) if waiting else None
        if self._lacking_since is None or self._reported or now - self._lacking_since <= PLACE_S:
            self._reported = self._reported and bool(waiting)
            return False
        self._reported = True
        return True


def no_worker(limit_s: float, waiting: str) -> AnnotationError:
    """The error of a pool that has had no worker for too long."""
    why = waiting or "each one that started has died or was refused; the report says why"
    return AnnotationError(
        f"there has been no annotation worker for {limit_s:.0f} s: {why}. Repair the cluster, give the run local "
        "workers with num_workers, or set a longer remote.wait_limit_s"
    )
