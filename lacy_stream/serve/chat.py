"""Messages -> what the small model and the partner read, by their chat templates."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from jinja2.exceptions import TemplateError
from transformers import AutoTokenizer

from lacy_stream.cascade.local import TransformersPartner
from lacy_stream.cascade.partner import Partner, PromptError
from lacy_stream.cascade.texts import Prompt
from lacy_stream.cascade.vocabulary import Vocabulary
from lacy_stream.train.checkpoint import CallingModel


class ChatTemplate:
    """The chat template of a model's tokenizer.

    Args:
        model: the small model.
        vocabulary: its vocabulary.
    """

    def __init__(self, model: CallingModel, vocabulary: Vocabulary) -> None:
        self._vocabulary = vocabulary
        self._tokenizer: Any = None
        try:
            tokenizer = AutoTokenizer.from_pretrained(model.tokenizer.parent)
        except Exception:  # a SentencePiece model without its settings, or files that transformers cannot convert
            return
        if getattr(tokenizer, "chat_template", None):
            self._tokenizer = tokenizer

    @property
    def exists(self) -> bool:
        """Whether the tokenizer has a template."""
        return self._tokenizer is not None

    def prompt(self, messages: Sequence[dict[str, str]], partner: Partner | None) -> Prompt:
        """The prompt for a chat. A partner with a template of its own reads that; another one reads the small model's.

        Raises:
            PromptError: the template does not accept the messages.
        """
        text = _rendered(self._tokenizer, messages)
        ids = tuple(self._tokenizer(text, add_special_tokens=False)["input_ids"])
        if partner is None or partner.speaks(self._vocabulary):
            return Prompt(text, ids=ids)
        theirs = partner.vocabulary.tokenizer if isinstance(partner, TransformersPartner) else None
        if theirs is not None and getattr(theirs, "chat_template", None):
            return Prompt("", _rendered(theirs, messages), ids=ids)
        return Prompt("", text, ids=ids)


def _rendered(tokenizer: Any, messages: Sequence[dict[str, str]]) -> str:
    try:
        return tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=True)
    except TemplateError as error:
        raise PromptError(f"the chat template does not accept the messages: {error}") from None
