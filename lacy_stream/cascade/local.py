"""A partner in this process: any causal language model of transformers."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerFast

from annotator.packages import package_file
from lacy_stream.cascade.batch_decoder import open_decoder
from lacy_stream.cascade.bridge import Candidate
from lacy_stream.cascade.decoder import RowDecoder, apply_repetition_penalty
from lacy_stream.cascade.partner import Answer, Call, PartnerError, PromptError, answer_of
from lacy_stream.cascade.vocabulary import SPECIAL_NAME, TransformersVocabulary, Vocabulary
from lacy_stream.errors import UsageError
from lacy_stream.train import gguf_files
from lacy_stream.train.checkpoint import context_of, start_of_text
from lacy_stream.train.transformers_names import weights_dtype

CANDIDATES = 100
"""Number of the partner's tokens that are tried, best first, until one can be expressed."""


class TransformersPartner:
    """A causal language model of transformers with its own tokenizer and greedy decoding.

    Args:
        model: the model, in eval mode.
        tokenizer: its fast tokenizer.
        name: name for messages and records.
        repetition_penalty: penalty for the ids of the text so far, as in transformers.
        reuse: False reads the whole text again at each call, for comparison.

    Raises:
        UsageError: the tokenizer is of an unknown kind, see ``TransformersVocabulary``.
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
        # What the tokenizer puts before each text. Folders of our export begin with the end of text, as in training.
        is_ours = hasattr(model.config, "call_token_id")
        eos_id: Any = model.config.eos_token_id
        self.start: list[int] = [eos_id] if is_ours else list(start_of_text(tokenizer))
        self.context = context_of(model.config)
        spellings = self.vocabulary.spellings
        # Qwen's <think> is an added token like a word, and its name is no text all the same.
        named = {id for id, token in tokenizer.added_tokens_decoder.items() if SPECIAL_NAME.fullmatch(token.content)}
        self.proposed = [None if id in named else spelling for id, spelling in enumerate(spellings)]
        # Whether a space can be a token of its own, or is always the beginning of the next token.
        self.splits_spaces = b" " in [spellings[id] for id in self.vocabulary.encode("a 1")]
        spaced = [bool(s) and s.startswith(b" ") for s in spellings]
        rows = model.config.get_text_config(decoder=True).vocab_size
        spaced += [False] * (rows - len(spaced))  # there are more logits than ids
        self.begin_with_space_V = torch.tensor(spaced, device=model.device)
        self._decoders: dict[tuple[bool, bool], RowDecoder] = {}
        self._numbers = itertools.count()

    def speaks(self, vocabulary: Vocabulary) -> bool:
        """Whether a vocabulary has the same ids and spellings as the partner's."""
        return self.vocabulary.same_as(vocabulary)

    def session(self, preamble: str = "") -> TransformersSession:
        """Begin a text after a preamble."""
        ids = self.vocabulary.encode_special(preamble) if preamble else []
        has_start = ids[: len(self.start)] == self.start  # templates may name the beginning-of-text token
        return TransformersSession(self, next(self._numbers), ids if has_start else [*self.start, *ids])

    def propose_all(self, calls: Sequence[Call]) -> list[Answer]:
        """See ``Partner``. The new tokens of all texts are read in one pass."""
        return [
            found if isinstance(found, PromptError) else self._candidates(found[0])
            for found in self.logits_of_all(calls)
        ]

    def logits_of_all(self, calls: Sequence[Call]) -> list[tuple[Tensor, bool] | PromptError]:
        """Compute the logits of the next tokens.

        A space at the end of a text is taken back if the partner's tokens begin with their space. Only tokens that
        begin with a space are then possible: for "was ", the partner reads "was", and the other logits become -inf.

        Returns:
            For each call, the logits after the repetition penalty, float32 [V], and whether a space was taken back; or
            a PromptError if the text is empty, or longer than the context.
        """
        rows: dict[int, list[int]] = {}
        found: list[tuple[Tensor, bool] | PromptError] = []
        took_back = [self._takes_back_space(call) for call in calls]
        for call, spaced in zip(calls, took_back, strict=True):
            try:
                rows[call.session.number] = self._row(call, spaced)
            except PromptError as error:
                found.append(error)
        if not rows:
            return found
        errors, found = iter(found), []
        logits = self._decoder(len(rows)).logits(rows)
        for call, spaced in zip(calls, took_back, strict=True):
            if call.session.number not in rows:
                found.append(next(errors))
                continue
            row, logits_V = rows[call.session.number], logits[call.session.number][-1]
            logits_V = apply_repetition_penalty(logits_V, row, self.penalty)
            if spaced:
                logits_V = logits_V.masked_fill(~self.begin_with_space_V[: len(logits_V)], -torch.inf)
            found.append((logits_V, spaced))
        return found

    def _takes_back_space(self, call: Call) -> bool:
        text = call.text
        return call.ids is None and text.endswith(" ") and text[-2:] != "  " and not self.splits_spaces

    def _row(self, call: Call, spaced: bool) -> list[int]:
        """What the partner reads for a call.

        Raises:
            PromptError: it is nothing, or longer than the context.
        """
        # The whole text is encoded at each call, since a new word may change the pieces of the one before it. The
        # decoder reads only what differs from the row of the last call.
        text = call.text[:-1] if spaced else call.text
        row = call.session.start + (self.vocabulary.encode(text) if call.ids is None else list(call.ids))
        if self.context is not None and len(row) > self.context:
            raise PromptError(f"{len(row)} tokens, and the partner {self.name} has a context of {self.context}")
        if not row:
            raise PromptError(f"the partner {self.name} has nothing to read: the text is empty")
        return row

    def _candidates(self, logits_V: Tensor) -> Iterator[Candidate]:
        for id in torch.topk(logits_V, min(CANDIDATES, len(logits_V))).indices.tolist():
            yield Candidate(self.proposed[id] if id < len(self.proposed) else None, id)

    def _decoder(self, texts: int) -> RowDecoder:
        """The decoder for a number of calls. The first calls that come together move to one that reads rows together,
        where the model can; their texts are then read once more."""
        together = (True, self.reuse) in self._decoders or texts > 1
        if (together, self.reuse) not in self._decoders:
            self._decoders = {(together, self.reuse): open_decoder(self.model, many=together, reuse=self.reuse)}
        return self._decoders[together, self.reuse]

    def forget(self, number: int) -> None:
        """Free what is kept of the session with this number."""
        for decoder in self._decoders.values():
            decoder.end(number)


class TransformersSession:
    """One text. Each call encodes the whole text, and the model reads what has changed: the new tokens, and earlier
    tokens that the longer text splits differently."""

    def __init__(self, partner: TransformersPartner, number: int, start: list[int]) -> None:
        self._partner, self.number, self.start = partner, number, start

    def propose(self, text: str, ids: Sequence[int] | None = None) -> Iterator[Candidate]:
        """Answer one call alone, see ``answer_of``."""
        return answer_of(self._partner, Call(self, text, ids))

    def next_logits(self, text: str, ids: Sequence[int] | None = None) -> tuple[Tensor, bool]:
        """The logits for one call alone, see ``TransformersPartner.logits_of_all``.

        Raises:
            PromptError: the text is empty, or longer than the context.
        """
        (found,) = self._partner.logits_of_all([Call(self, text, ids)])
        if isinstance(found, PromptError):
            raise found
        return found

    def close(self) -> None:
        """See ``partner.Session``."""
        self._partner.forget(self.number)


def load_partner(name: str, *, repetition_penalty: float, device: str) -> TransformersPartner:
    """Load a model of transformers as a partner.

    Args:
        name: a folder, a hub name, a .gguf file, or ``package:NAME/PATH`` for a file of an installed package.
        repetition_penalty: see ``TransformersPartner``.
        device: torch device.

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
        dtype = weights_dtype(torch.float32 if device == "cpu" else "auto")
        with gguf_files.read_once():
            tokenizer = AutoTokenizer.from_pretrained(name, use_fast=True, **options)
            model = AutoModelForCausalLM.from_pretrained(name, **dtype, **options)
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
