"""Checkpoint and partner -> text (section 5, appendix A.5).

decoder     a model and its cache: ids -> logits
delegation  logits -> score; thresholds  scores so far -> threshold
partners    text -> the larger model's next token; endpoint  the same over HTTP; articles  what it reads beforehand
vocabulary, bridge  its token -> the small model's
generate    all of them, prompt by prompt; records  JSONL, terminal and page
"""

from lacy_stream.cascade.generate import Generation, Prompt, Token, generate
from lacy_stream.cascade.partners import Partner, PartnerError, TransformersPartner, open_partner

__all__ = [
    "Generation",
    "Partner",
    "PartnerError",
    "Prompt",
    "Token",
    "TransformersPartner",
    "generate",
    "open_partner",
]
