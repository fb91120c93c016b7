"""Faults that a run has survived: counted, logged, and written to a file, one JSON line for each event."""

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
    "worker_restarted",  # a worker died or hung; its documents are tried again
    "worker_overdue",  # a worker has given no answer for long; another one annotates its documents, too
    "worker_refused",  # a remote worker cannot load the annotator, or would label otherwise than the run
    "workers_without_place",  # remote workers wait for free CPUs
    "cluster_unreachable",  # the cluster of the remote workers cannot be reached, or was lost
    "document_quarantined",  # a document could not be annotated; it gets no fact labels
    "document_skipped",  # a document could not even be tokenised; it is left out
    "engine_fallback",  # the engine failed on a document; spaCy annotated it
    "download_retried",  # the download of a file failed and was tried again
    "shard_fetched_again",  # the cached copy of a shard was damaged
    "cache_entry_damaged",  # a record of the label cache was damaged; its document is annotated again
    "half_checkpoint_deleted",  # a run ended while it wrote a checkpoint; what it left was deleted
    "checkpoint_set_aside",  # a file with a checkpoint's name is none; it was renamed
    "cache_full",  # the label cache has stopped adding documents
]
EVENTS: tuple[Event, ...] = Event.__args__  # type: ignore[attr-defined]


class Report:
    """Collects the events of one rank. Safe to use from several threads.

    Args:
        path: file to which each event is appended, as a JSON object with the keys time, event, what and reason. The
            file and its folder are made with the first event. None: events are only counted and logged.
    """

    def __init__(self, path: str | os.PathLike[str] | None = None) -> None:
        self._path = None if path is None else Path(path)
        self._counts: Counter[str] = Counter()
        self._lock = threading.Lock()

    def add(self, event: Event, what: str, reason: str) -> None:
        """Count, log and write one event.

        Args:
            event: its kind.
            what: the thing that it happened to: the id of a document, the name of a shard or of a worker.
            reason: explanation for a person.
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
            except OSError as error:  # a full disk must not end a healthy run
                log.warning("the report %s cannot be written; events are now only counted: %s", self._path, error)
                self._path = None

    def counts(self) -> dict[str, int]:
        """Count the events of each kind; kinds without an event count 0."""
        with self._lock:
            return {event: self._counts[event] for event in EVENTS}
