"""URLs, keys and messages of OpenAI-style endpoints."""

from __future__ import annotations

import pytest

from lacy_stream.endpoints import api_key, base_url, hint, is_endpoint, says_too_long

TOO_LONG = (
    "This model's maximum context length is 4096 tokens. However, you requested 4100 tokens",
    "The decoder prompt (length 5000) is longer than the maximum model length of 4096.",
    "max_tokens must be at least 1, got -5.",
    "the request exceeds the available context size (4096 tokens), try increasing it",
    "Input validation error: `inputs` tokens + `max_new_tokens` must be <= 4096. Given: 5000",
    "Input validation error: `inputs` must have less than 1024 tokens. Given: 2000",
    "The input (5000 tokens) is longer than the model's context length (4096 tokens).",
    "prompt is too long: 215000 tokens > 200000 maximum",
    "The input token count (40000) exceeds the maximum number of tokens allowed (32768).",
    "Please reduce the length of the messages or completion.",
)
OTHERS = (
    "Requested sample logprobs of 20, which is greater than max allowed: 5",
    "logprobs: 20 exceeds the limit of 5",
    "You exceeded your current quota, please check your plan and billing details.",
    "max_tokens 256 exceeds the limit of 128",
    "Unsupported parameter: 'max_tokens' is not supported with this model. Use 'max_completion_tokens' instead.",
    "the model 'long-context-7b' is not loaded",
    "temperature exceeds 2",
)


@pytest.mark.parametrize("message", TOO_LONG)
def test_messages_of_texts_that_are_too_long(message: str):
    """The words of vLLM, llama.cpp, TGI, SGLang and of services."""
    assert says_too_long(message)


@pytest.mark.parametrize("message", OTHERS)
def test_messages_of_other_faults(message: str):
    """A message about another limit is no matter of the text's length."""
    assert not says_too_long(message)


@pytest.mark.parametrize(
    ("given", "url"),
    [
        ("http://h:8000/v1", "http://h:8000/v1"),
        (" http://h:8000/v1/ ", "http://h:8000/v1"),
        ("localhost:8000/v1", "http://localhost:8000/v1"),
        ("https://h/v1/chat/completions", "https://h/v1"),
        ("https://h/v1/completions/", "https://h/v1"),
        ("https://h/api/v1/models", "https://h/api/v1"),
        ("https://api.example.com", "https://api.example.com"),
    ],
)
def test_base_urls(given: str, url: str):
    """What people copy from elsewhere becomes a base URL."""
    assert base_url(given) == url


def test_hints_and_names():
    """Only URLs without a version get a hint; a partner is at an endpoint if it has a scheme or a port."""
    assert (
        "try http://h:8000/v1" in hint("http://h:8000") and hint("http://h/v1") == hint("http://h/v1beta/openai") == ""
    )
    assert [is_endpoint(name) for name in ("http://h/v1", "h:80/v1#M", "1.2.3.4:80", "owner/name", "package:a/b")] == [
        True, True, True, False, False,
    ]  # fmt: skip


def test_keys(monkeypatch: pytest.MonkeyPatch):
    """White space is no part of a key, and an empty key is none."""
    found = []
    for key in ("", " \n", "sk-1\n"):
        monkeypatch.setenv("OPENAI_API_KEY", key)
        found.append(api_key())
    monkeypatch.delenv("OPENAI_API_KEY")
    assert [*found, api_key()] == ["none", "none", "sk-1", "none"]
