"""What stands under the name of a model now, to notice one that was replaced between two halves of a run.

Free of torch, like ``settings``.
"""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

from lacy_stream.endpoints import api_key, base_url, is_endpoint
from lacy_stream.files import file_fingerprint, is_hub_name

IF_KNOWN = ("model_revision", "partner_content", "partner_tokenizer")
"""Settings that may be unknown: the hub is not asked, and an endpoint may be down."""
_LASTING = ("id", "root", "parent", "max_model_len", "meta")
"""What an endpoint says about a model, without what changes: vLLM names the folder, llama.cpp the sizes."""
TIMEOUT_S = 10.0


def model_settings(path: str) -> dict[str, Any]:
    """A small model as settings of a run: the fingerprint of its files, and its revision on the hub."""
    return {"model": file_fingerprint(path), "model_revision": _revision(path)}


def partner_settings(partner: str | None, tokenizer: str | None = None) -> dict[str, Any]:
    """What stands under the name of a partner and of its tokenizer, as settings of a run; None for what is unknown."""
    content = None if partner is None else partner_content(partner)
    return {
        "partner_content": content,
        "partner_tokenizer": None if tokenizer is None else _files(tokenizer) or _revision(tokenizer) or tokenizer,
    }


def partner_content(partner: str) -> str | None:
    """A digest of what stands under the name of a partner: its files, its revision on the hub, or what its endpoint
    says about it. None if that is unknown."""
    if is_endpoint(partner):
        return _served(partner)
    return _files(partner) or _revision(partner)


def _files(name: str) -> str | None:
    from annotator.packages import package_file  # with it comes NumPy, which `--help` does without

    try:
        path = package_file(name)
    except ModuleNotFoundError:
        return None
    return file_fingerprint(path) if path.exists() else None


def _revision(name: str) -> str | None:
    """The revision of a hub model that is in the cache, which is also what would be loaded without network."""
    if os.path.exists(name) or not is_hub_name(name):
        return None
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(name, "config.json")
    return Path(found).parent.name if isinstance(found, str) else None


def _served(partner: str) -> str | None:
    try:
        import openai
    except ImportError:
        return None
    url, _, name = partner.partition("#")
    client = openai.OpenAI(base_url=base_url(url), api_key=api_key(), timeout=TIMEOUT_S, max_retries=0)
    try:
        models = json.loads(client.models.with_raw_response.list().text)["data"]
        (model,) = [model for model in models if not name or model["id"] == name]
        said = {key: model[key] for key in _LASTING if key in model}
    except (openai.OpenAIError, ValueError, LookupError, TypeError):
        return None
    finally:
        client.close()
    return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()[:16]
