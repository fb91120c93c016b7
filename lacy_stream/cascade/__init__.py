"""Checkpoint and partner -> text (section 5, appendix A.5).

decoder     a model and its cache: ids -> logits
delegation  logits -> score; thresholds  scores so far -> threshold
partner     text -> the larger model's next token: local  in this process, endpoint  over HTTP; open  by its name
articles    what the partner reads beforehand
vocabulary, bridge  its token -> the small model's
generate    all of them, prompt by prompt; records  JSONL, terminal and page
"""

from lacy_stream.cascade.generate import Generation, Prompt, Token, generate
from lacy_stream.cascade.local import TransformersPartner
from lacy_stream.cascade.open import open_partner
from lacy_stream.cascade.partner import Partner, PartnerError
from lacy_stream.cascade_settings import Decoding, Delegation

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
