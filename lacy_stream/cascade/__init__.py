"""Checkpoint and partner -> text (section 5, appendix A.5).

settings    what a text depends on: the delegation and the decoding
decoder, batch_decoder, row_cache   a model and its cache: ids -> logits
choice      logits -> the small model's own token
delegation  logits -> score
thresholds  scores so far -> threshold
call_policy the score and the thresholds of all texts, and when the partner is asked
partner     the interface of the larger model: text -> candidates for the next token
local, endpoint, open   a partner in this process, one at an HTTP endpoint, and either of them by its name
biography_prompt, articles   the prompt for a biography, and what the partner reads before it
identity    what stands under the name of a model now
vocabulary, bridge      a token of the partner -> tokens of the small model
texts       the values: prompts, settings, tokens, texts
growing_text   one text as it grows
engine      all of these together: texts enter and leave a running batch
generation  prompts -> texts, by the engine
output      texts -> JSONL, terminal and page
run         the command `lacy-stream generate`

The names below are loaded when they are first used, so that the command line can read ``settings`` without torch.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lacy_stream.cascade.generation import generate
    from lacy_stream.cascade.local import TransformersPartner
    from lacy_stream.cascade.open import open_partner
    from lacy_stream.cascade.partner import Partner, PartnerError
    from lacy_stream.cascade.settings import Decoding, Delegation
    from lacy_stream.cascade.texts import Generation, Prompt, Token

_MODULE_OF = {
    "Decoding": "settings",
    "Delegation": "settings",
    "Generation": "texts",
    "Partner": "partner",
    "PartnerError": "partner",
    "Prompt": "texts",
    "Token": "texts",
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
