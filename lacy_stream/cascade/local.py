"""A partner in this process: any causal language model of transformers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerFast

from annotator.packages import package_file
from lacy_stream.cascade.bridge import Proposal
from lacy_stream.cascade.decoder import Decoder, penalised
from lacy_stream.cascade.partner import PartnerError, PromptError
from lacy_stream.cascade.vocabulary import TransformersVocabulary, Vocabulary
from lacy_stream.errors import UsageError

CANDIDATES = 100
"""How many of the partner's tokens are tried, best first, until one can be expressed."""


class TransformersPartner:
    """A causal language model of transformers with its own tokenizer, greedy.

    Args:
        model: in eval mode. tokenizer: a fast one.
        name: for people.
        repetition_penalty: on the ids of the text so far, as transformers applies it.
        reuse: False encodes everything again at each call, for comparison.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerFast,
        name: str,
        *,
        repetition_penalty: float = 1.2,
        reuse: bool = True,
    ) -> None:
        self.name, self.model, self.penalty, self.reuse = name, model, repetition_penalty, reuse
        self.vocabulary = TransformersVocabulary(tokenizer)
        # The token that stands before a text; a model that has none begins with the text itself.
        start = tokenizer.bos_token and tokenizer.convert_tokens_to_ids(str(tokenizer.bos_token))
        self.start = [start] if isinstance(start, int) else []
        self.context: int | None = getattr(model.config, "max_position_embeddings", None)
        spellings = self.vocabulary.spellings
        self.splits_spaces = b" " in [spellings[id] for id in self.vocabulary.encode("a 1")]
        spaced = [bool(s) and s.startswith(b" ") for s in spellings]
        spaced += [False] * (model.config.vocab_size - len(spaced))  # models pad their vocabularies
        self.begin_with_space_V = torch.tensor(spaced, device=model.device)

    def speaks(self, vocabulary: Vocabulary) -> bool:
        return self.vocabulary.same_as(vocabulary)

    def session(self, preamble: str = "") -> TransformersSession:
        return TransformersSession(self, self.vocabulary.encode_special(preamble) if preamble else self.start)


class TransformersSession:
    """One text, with its key-value cache. Each call encodes the text anew, and the model reads what has changed: the
    new tokens, and the last ones of before where they are cut otherwise now."""

    def __init__(self, partner: TransformersPartner, start: list[int]) -> None:
        self._partner, self._start = partner, start
        self._decoder = Decoder(partner.model, reuse=partner.reuse)

    def propose(self, text: str, ids: Sequence[int] | None = None) -> Iterator[Proposal]:
        """See ``Session``."""
        logits_V, _ = self.next_logits(text, ids)
        spellings = self._partner.vocabulary.spellings
        for id in torch.topk(logits_V, min(CANDIDATES, len(logits_V))).indices.tolist():
            yield Proposal(spellings[id] if id < len(spellings) else None, id)

    def next_logits(self, text: str, ids: Sequence[int] | None = None) -> tuple[Tensor, bool]:
        """The logits of the next token, [V], after the repetition penalty; and whether a space at the end of the text
        was taken back. That is done where the partner's tokens would hold it: the only tokens with a finite logit are
        then those that begin with one. Arguments and errors as in ``propose``."""
        partner = self._partner
        spaced = ids is None and text.endswith(" ") and text[-2:] != "  " and not partner.splits_spaces
        row = self._start + (partner.vocabulary.encode(text[:-1] if spaced else text) if ids is None else list(ids))
        if partner.context is not None and len(row) > partner.context:
            raise PromptError(f"{len(row)} tokens, and the partner {partner.name} has a context of {partner.context}")
        if not row:
            raise PromptError(f"nothing to read for the partner {partner.name}")
        logits_V = penalised(self._decoder.logits(row), row, partner.penalty)
        if spaced:
            logits_V = logits_V.masked_fill(~partner.begin_with_space_V[: len(logits_V)], -torch.inf)
        return logits_V, spaced


def load_partner(name: str, *, repetition_penalty: float, device: str) -> TransformersPartner:
    """Load a folder, a hub name, a .gguf file, or ``package:NAME/PATH`` for a file of an installed package.

    Raises:
        PartnerError: it cannot be loaded.
    """
    try:
        path, options = package_file(name), {}
    except ModuleNotFoundError as error:
        raise PartnerError(str(error)) from None
    name = str(path)
    if name.endswith(".gguf"):
        if not path.is_file():
            raise PartnerError(f"there is no file {name!r}")
        name, options = str(path.parent), {"gguf_file": path.name}
    try:
        tokenizer = AutoTokenizer.from_pretrained(name, use_fast=True, **options)
        model = AutoModelForCausalLM.from_pretrained(
            name, torch_dtype="auto" if device != "cpu" else "float32", **options
        )
    except (OSError, ValueError, ImportError) as error:
        raise PartnerError(
            f"{path} cannot be loaded as a causal language model of transformers: {str(error).strip().splitlines()[0]}"
        ) from error
    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        raise PartnerError(f"{path} has no fast tokenizer (tokenizer.json): convert it, or serve it as an endpoint")
    model = model.eval().requires_grad_(False).to(device)  # type: ignore[arg-type]
    try:
        return TransformersPartner(model, tokenizer, path.name, repetition_penalty=repetition_penalty)
    except UsageError as error:
        raise PartnerError(str(error)) from error
