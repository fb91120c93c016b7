"""The options of `lacy-stream serve`. This file does not import torch, so that `--help` answers at once."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from typing import Annotated, Literal

from lacy_stream.cascade.settings import Delegation
from lacy_stream.compute import ComputeOptions
from lacy_stream.errors import UsageError

WhenPartnerFails = Literal["continue", "error"]


@dataclass(frozen=True)
class ServeOptions:
    """The options of `lacy-stream serve`.

    Raises:
        UsageError: a value is out of range, or the address is not loopback and there is no key.
    """

    model: Annotated[str, "MODEL"]
    """Checkpoint, exported folder, or another causal language model."""

    partner: Annotated[str, "PARTNER"] | None = None
    """The larger model. Without one, there are no calls."""

    partner_tokenizer: Annotated[str, "NAME"] | None = None
    """Tokenizer of a partner at an endpoint: a folder or hub name. It tells text from names of tokens."""

    partner_failure: WhenPartnerFails = "continue"
    """If the partner does not answer: `continue` lets the small model write alone and marks the answer; `error` ends
    the answer with an error."""

    partner_concurrency: int = 8
    """Requests to a partner at an endpoint that are under way at a time."""

    partner_timeout_s: float = 20.0
    """Seconds for the requests that are made together to a partner at an endpoint, which all texts wait for. A further
    attempt at a request that fails counts in. Without an answer by then, the partner counts as lost."""

    host: Annotated[str, "ADDRESS"] = "127.0.0.1"
    """The address to listen at. One that is not loopback needs --api-key."""

    port: int = 8000
    """The port to listen at; 0 for a free one."""

    api_key: Annotated[str, "KEY"] | None = None
    """The key that requests must bring. Default: LACY_STREAM_API_KEY of the environment, if it is set."""

    name: str | None = None
    """Name of the model in requests and answers. Default: that of its folder or run."""

    max_batch: int = 8
    """Texts that are written at once."""

    max_queue: int = 64
    """Texts that wait for a place. Further requests are answered with 429."""

    max_request_bytes: Annotated[int, "SIZE"] = 4 << 20
    """Largest body of a request."""

    time_limit_s: float = 300.0
    """Longest time for a request, with its time in the queue, in seconds."""

    max_tokens: int = 256
    """Longest answer of a chat where the request names no max_tokens."""

    repetition_penalty: float = 1.2
    """Repetition penalty of the small model and of a partner that is loaded here; 1 for none."""

    partner_device: Annotated[str, "DEVICE"] | None = None
    """The torch device of a partner that is loaded here. Default: that of the small model."""

    compute: ComputeOptions = ComputeOptions()
    """Where the models run."""

    delegation: Delegation = Delegation()
    """What is delegated."""

    def __post_init__(self) -> None:
        for name in ("max_batch", "max_request_bytes", "max_tokens", "partner_concurrency"):
            if getattr(self, name) < 1:
                raise UsageError(f"{name} is {getattr(self, name)}: give at least 1")
        for name in ("time_limit_s", "partner_timeout_s", "repetition_penalty"):
            if not getattr(self, name) > 0:
                raise UsageError(f"{name} is {getattr(self, name)}: give more than 0")
        if self.max_queue < 0:
            raise UsageError(f"max_queue is {self.max_queue}: give 0 or more")
        if not 0 <= self.port < 1 << 16:
            raise UsageError(f"port is {self.port}: give 0 to 65535")
        if self.api_key is not None and not self.api_key.strip():
            raise UsageError("the API key is empty: give a secret, or leave it out")
        if not is_loopback(self.host) and self.api_key is None:
            raise UsageError(
                f"host is {self.host}, which others can reach: give --api-key KEY or set LACY_STREAM_API_KEY, or "
                "listen at 127.0.0.1"
            )


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach an address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
