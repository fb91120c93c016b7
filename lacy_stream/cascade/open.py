"""Opens a partner by its name."""

from __future__ import annotations

from typing import Any

from lacy_stream.cascade.endpoint import EndpointPartner
from lacy_stream.cascade.local import load_partner
from lacy_stream.cascade.partner import Partner, PartnerError
from lacy_stream.cascade.vocabulary import load_vocabulary
from lacy_stream.endpoints import is_endpoint
from lacy_stream.errors import UsageError


def open_partner(
    spec: str, *, repetition_penalty: float = 1.2, device: str = "cpu", tokenizer: str | None = None, **endpoint: Any
) -> Partner:
    """Open a partner by its name.

    Args:
        spec: a folder, a hub name, a .gguf file, ``package:NAME/PATH`` for a file of an installed package, or the URL
            of an OpenAI-style endpoint in the form ``http://host:8000/v1#MODEL``. The model may be left out if the
            endpoint has only one.
        repetition_penalty: penalty for models that are loaded here; it does not apply to endpoints.
        device: torch device for models that are loaded here.
        tokenizer: folder, hub name or file of the tokenizer of an endpoint's model. It tells text from names of tokens.
        endpoint: further arguments of ``EndpointPartner``, for an endpoint.

    Raises:
        PartnerError: the partner cannot be loaded or reached, or its tokenizer cannot be used.
    """
    if is_endpoint(spec):
        try:
            vocabulary = None if tokenizer is None else load_vocabulary(tokenizer)
        except UsageError as error:
            raise PartnerError(f"the tokenizer of the partner: {error}") from error
        return EndpointPartner(spec, vocabulary, **endpoint)
    if tokenizer is not None:
        raise PartnerError(f"{spec} is no endpoint and has a tokenizer of its own: leave out the tokenizer {tokenizer}")
    return load_partner(spec, repetition_penalty=repetition_penalty, device=device)
