"""What happens to a pool with workers on a Ray cluster. The functions run inside ``ray_cluster``; tests judge what they
return."""

from __future__ import annotations

import hashlib
import importlib.util
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ray_cluster import ADDRESS, CLUSTER

from annotator import AnnotatorSettings, Document, LabelledTokens
from lacy_stream.stream.pool import AnnotationPool
from lacy_stream.stream.report import Report
from lacy_stream.stream.workers.remote_settings import RemoteSettings

DOCUMENTS = [
    Document(
        f"doc-{number}",
        f"Ada Lovelace was born in {1800 + number} in London. She wrote {number} notes. " * (1 + number % 5),
    )
    for number in range(60)
]


def up(cpus: int) -> int:
    CLUSTER.start_head()
    CLUSTER.machine("first", cpus)
    return len(CLUSTER.machines)


def settings(labeller: str = "ray_labellers:slowly") -> AnnotatorSettings:
    spec = importlib.util.find_spec("mistral_common")
    return AnnotatorSettings(Path(spec.origin).parent / "data" / "tokenizer.model.v1", None, labeller=labeller)


def digest(labels: Sequence[LabelledTokens]) -> str:
    found = hashlib.sha256()
    for label in labels:
        found.update(np.asarray(label.ids, np.int64).tobytes() + np.asarray(label.classes, np.uint8).tobytes())
    return found.hexdigest()[:16]


def run(local: int, remote: int, disturb=lambda pool: None, labeller="ray_labellers:slowly", **keys: Any) -> dict:
    keys = {"address": ADDRESS, "wait_limit_s": 280.0} | keys
    report = Report()
    began = time.monotonic()
    with AnnotationPool(
        settings(labeller), local, remote=RemoteSettings(num_workers=remote, **keys) if remote else None, report=report
    ) as pool:
        futures = [pool.submit(document) for document in DOCUMENTS]
        disturb(pool)
        labels = [future.result(timeout=300) for future in futures]
        stats = pool.stats()
    return {
        "digest": digest(labels),
        "counts": {k: v for k, v in report.counts().items() if v},
        "quarantine": pool.quarantine,
        "places": {place: rate.tokens for place, rate in stats.places.items()},
        "s": time.monotonic() - began,
        "waiting": stats.waiting,
    }


def a():
    return run(1, 0)


def b():
    return run(0, 2)


def c():
    return run(1, 2)
