"""Opens a partner by its name."""

from __future__ import annotations

import re

from lacy_stream.cascade.endpoint import EndpointPartner
from lacy_stream.cascade.local import load_partner
from lacy_stream.cascade.partner import Partner


def open_partner(spec: str, *, repetition_penalty: float = 1.2, device: str = "cpu") -> Partner:
    """Open a partner by its name.

    Args:
        spec: a folder, a hub name, a .gguf file, ``package:NAME/PATH`` for a file of an installed package, or the URL
            of an OpenAI-style endpoint in the form ``http://host:8000/v1#MODEL``. The model may be left out if the
            endpoint has only one.
        repetition_penalty: penalty for models that are loaded here; it does not apply to endpoints.
        device: torch device for models that are loaded here.

    Raises:
        PartnerError: the partner cannot be loaded or reached.
    """
    if re.match(r"https?://", spec):
        return EndpointPartner(spec)
    return load_partner(spec, repetition_penalty=repetition_penalty, device=device)
