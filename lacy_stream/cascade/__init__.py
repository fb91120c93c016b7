"""Checkpoint and partner -> text (section 5, appendix A.5).

settings    what decides a text: the delegation and the decoding
decoder     a model and its cache: ids -> logits
delegation  logits -> score; thresholds  scores so far -> threshold
partner     text -> the larger model's next token: local  in this process, endpoint  over HTTP; open  by its name
articles    what the partner reads beforehand
vocabulary, bridge  its token -> the small model's
generation  all of them, prompt by prompt; output  JSONL, terminal and page

The names below are loaded when they are first used: the command line reads ``settings`` and does not wait for torch.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lacy_stream.cascade.generation import Generation, Prompt, Token, generate
    from lacy_stream.cascade.local import TransformersPartner
    from lacy_stream.cascade.open import open_partner
    from lacy_stream.cascade.partner import Partner, PartnerError
    from lacy_stream.cascade.settings import Decoding, Delegation

_MODULE_OF = {
    "Decoding": "settings",
    "Delegation": "settings",
    "Generation": "generation",
    "Partner": "partner",
    "PartnerError": "partner",
    "Prompt": "generation",
    "Token": "generation",
    "TransformersPartner": "local",
    "generate": "generation",
    "open_partner": "open",
}

__all__ = [
    "Decoding",
    "Delegation",
    "Generation",
    "Partner",
    "PartnerError",
    "Prompt",
    "Token",
    "TransformersPartner",
    "generate",
    "open_partner",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULE_OF[name]}"), name)
