"""What judges and partners at OpenAI-style endpoints have in common: the key, hints about URLs, and messages that say a
text is too long."""

from __future__ import annotations

import os
import re
from urllib.parse import urlsplit

_TOO_LONG = re.compile(
    r"context[ _-]?(length|size|window)"
    r"|maximum (model|input|sequence) length|max_model_len|max_seq_len"
    r"|(prompt|inputs?|messages?|request|text|sequence)\b[^.]{0,80}\b(too long|too large|longer than)"
    r"|reduce the length"
    r"|max_tokens must be at least 1, got -"  # vLLM: the text fills the context
    r"|(?<!max_)(?<!completion_)tokens?\b[^.]{0,60}\b(exceeds?|must (be <=|have less than))"
    r"|must have less than \d+ tokens",
    re.IGNORECASE,
)
_ENDS = ("/chat/completions", "/completions", "/models")
"""What people leave at the end of a base URL."""


def says_too_long(message: str) -> bool:
    """Whether the message of a refused request says that its text is too long for the model."""
    return _TOO_LONG.search(message) is not None


def api_key() -> str:
    """The key in OPENAI_API_KEY, without white space around it. A key that is empty counts as none, for which endpoints
    without keys take any word."""
    return os.environ.get("OPENAI_API_KEY", "").strip() or "none"


def is_endpoint(name: str) -> bool:
    """Whether the name of a partner is a URL, with its scheme or as HOST:PORT."""
    return re.match(r"https?://|[\w.-]+:\d+(/|#|$)", name, re.IGNORECASE) is not None


def base_url(url: str) -> str:
    """Complete a base URL: http:// is put before a URL without scheme, and the path of an operation is cut off.

    ``localhost:8000/v1/chat/completions/`` becomes ``http://localhost:8000/v1``.
    """
    url = url.strip().rstrip("/")
    url = url if re.match(r"[a-z]+://", url, re.IGNORECASE) else f"http://{url}"
    for end in _ENDS:
        url = url.removesuffix(end)
    return url.rstrip("/")


def hint(url: str) -> str:
    """A sentence about a base URL that has no version in its path, for messages of failed requests; "" for others."""
    if re.search(r"/v\d", urlsplit(url).path):
        return ""
    return f". Most base URLs end in /v1: try {url}/v1"
