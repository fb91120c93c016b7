"""What the server counts, for Prometheus."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)


class Metrics:
    """Counters of one server.

    Args:
        target: the call rate that is aimed at.
    """

    def __init__(self, target: float) -> None:
        self.registry = registry = CollectorRegistry()
        self.requests = Counter(
            "lacy_requests", "Requests by endpoint and HTTP status", ["endpoint", "status"], registry=registry
        )
        self.request_seconds = Histogram(
            "lacy_request_seconds", "Time of answered requests", ["endpoint"], buckets=SECONDS, registry=registry
        )
        self.first_token_seconds = Histogram(
            "lacy_first_token_seconds",
            "Time to the first token of a text, with its time in the queue",
            buckets=SECONDS,
            registry=registry,
        )
        self.tokens = Counter("lacy_tokens", "Tokens written, by their writer", ["writer"], registry=registry)
        self.prompt_tokens = Counter("lacy_prompt_tokens", "Tokens of prompts", registry=registry)
        self.texts = Counter("lacy_texts", "Texts by the reason for which they ended", ["finish"], registry=registry)
        self.fallbacks = Counter(
            "lacy_fallbacks", "Calls in which nothing that the partner proposed could be expressed", registry=registry
        )
        self.unanswered = Counter(
            "lacy_unanswered_calls", "Calls that the small model answered for a lost partner", registry=registry
        )
        self.step_seconds = Histogram(
            "lacy_step_seconds",
            "Time of a step of the engine, with the partner's answers",
            buckets=(0.005, 0.01, 0.025, *SECONDS),
            registry=registry,
        )
        self.observe("lacy_call_rate_target", "Share of the tokens that the partner shall write", lambda: target)
        for writer in ("model", "partner"):
            self.tokens.labels(writer)

    def observe(self, name: str, about: str, value: Callable[[], float]) -> None:
        """Add a gauge whose value is asked for at each scrape."""
        Gauge(name, about, registry=self.registry).set_function(value)

    def text(self) -> bytes:
        """All values in the text format of Prometheus."""
        return generate_latest(self.registry)
