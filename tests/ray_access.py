"""Who may connect to a Ray cluster. The functions run inside ``ray_cluster``."""

from __future__ import annotations

import json
import time
from typing import Any

from ray_cluster import ADDRESS
from ray_scenarios import annotated, environment

from lacy_stream.stream.quarantine import AnnotationError


def refused(address: str, variables: dict[str, str | None]) -> dict[str, Any]:
    """Let a pool connect to the cluster, in this environment: the ``error``, and the ``seconds`` until it came."""
    began = time.monotonic()
    try:
        with environment(**variables):
            annotated(0, 1, address=address)
    except AnnotationError as error:
        return {"error": str(error), "seconds": time.monotonic() - began}
    raise AssertionError("the cluster was used")


def refused_with_other_versions(ray_version: str, python_version: str) -> dict[str, Any]:
    """The same with a cluster that says that it was started with these versions. For Ray Client the head would have to
    have them."""
    from ray._common.usage.usage_constants import CLUSTER_METADATA_KEY
    from ray._private.ray_constants import KV_NAMESPACE_CLUSTER
    from ray._raylet import GcsClient  # type: ignore[attr-defined]

    client = GcsClient(ADDRESS)
    kept = client.internal_kv_get(CLUSTER_METADATA_KEY, namespace=KV_NAMESPACE_CLUSTER)
    changed = json.dumps(json.loads(kept) | {"ray_version": ray_version, "python_version": python_version}).encode()
    client.internal_kv_put(CLUSTER_METADATA_KEY, changed, overwrite=True, namespace=KV_NAMESPACE_CLUSTER)
    try:
        return refused(ADDRESS, {})
    finally:
        client.internal_kv_put(CLUSTER_METADATA_KEY, kept, overwrite=True, namespace=KV_NAMESPACE_CLUSTER)
