"""What went wrong in a run and was mended: counted, logged, and written down, one JSON line an event."""

from __future__ import annotations

import json
import logging
import os
import threading
from collections import Counter
from datetime import datetime, timezone
from pathlib import Path
from typing import Literal

log = logging.getLogger(__name__)

Event = Literal[
    "worker_restarted",  # it died or hung; its documents are tried again
    "document_quarantined",  # it goes without fact labels
    "document_skipped",  # it has no tokens: left out
    "engine_fallback",  # a document that made the annotation engine fail: spaCy did it
    "download_retried",  # a file of a remote data set
    "shard_fetched_again",  # its copy in the cache was damaged
    "cache_entry_damaged",  # of the label cache; the document is annotated anew
    "checkpoint_set_aside",  # half a file that a killed run has left
    "cache_full",  # the label cache takes no more documents
]
EVENTS: tuple[Event, ...] = Event.__args__  # type: ignore[attr-defined]


class Report:
    """Collects the events of one rank. Safe to use from several threads.

    Args:
        path: file that each event is appended to, as ``{"time", "event", …}``; it and its folder are made with the
            first event. None: events are only counted and logged.
    """

    def __init__(self, path: str | os.PathLike[str] | None = None) -> None:
        self._path = None if path is None else Path(path)
        self._counts: Counter[str] = Counter()
        self._lock = threading.Lock()

    def add(self, event: Event, what: str, reason: str) -> None:
        """Note one event.

        Args:
            what: the document's id, the shard's or the worker's name.
            reason: for a person.
        """
        log.warning("%s: %s: %s", event.replace("_", " "), what, reason)
        time = datetime.now(timezone.utc).isoformat(timespec="milliseconds")
        line = json.dumps({"time": time, "event": event, "what": what, "reason": reason}) + "\n"
        with self._lock:
            self._counts[event] += 1
            if self._path is None:
                return
            try:
                self._path.parent.mkdir(parents=True, exist_ok=True)
                with open(self._path, "a", encoding="utf-8") as file:
                    file.write(line)
            except OSError as error:  # a full disk must not end a run that goes well
                log.warning("the report %s cannot be written, events are only counted: %s", self._path, error)
                self._path = None

    def counts(self) -> dict[str, int]:
        """How often each event happened, those that did not included."""
        with self._lock:
            return {event: self._counts[event] for event in EVENTS}
