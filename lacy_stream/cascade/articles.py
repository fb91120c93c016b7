"""An article about the person for the partner to read before the text (the RAG set-up of appendix A.5)."""

from __future__ import annotations

import re
from typing import Protocol

from lacy_stream.cascade.generation import Prompt
from lacy_stream.errors import UsageError

ARTICLE_CHARACTERS = 8000
TEMPLATE = (
    "<|im_start|>system\nYou are an assistant who writes biographies of famous people and events. "
    "Continue any given text naturally and fluently.<|im_end|>\n"
    "<|im_start|>user\nWrite a short biography about {title}. Here is some background information: "
    "{article}<|im_end|>\n"
    "<|im_start|>assistant\n<think>\n\n</think>\n\n"
)
"""The paper's, in the chat form of Qwen 3. Other models need their own."""
_BIOGRAPHY = re.compile(r"Tell me a bio of (.+?)\. ")


class Articles(Protocol):
    """``knowledge.Knowledge``, or anything with articles by title."""

    def article(self, title: str) -> str | None: ...


def title_of(prompt: str) -> str | None:
    """The name in a prompt of the form "Tell me a bio of NAME. "; None in others."""
    found = _BIOGRAPHY.match(prompt)
    return None if found is None else found[1]


def with_article(text: str, title: str | None, articles: Articles, template: str = TEMPLATE) -> Prompt:
    """The prompt with the first 8,000 characters of the article of this title before it. Without an article there is no
    background information, as in the paper, and the template goes without it.

    Args:
        text: the prompt.
        title: of the article; None takes it from the prompt.
        template: with {title} and {article}; names of special tokens are read as such by the partner.

    Raises:
        UsageError: the template has no {article}, or no title is known.
    """
    if "{article}" not in template:
        raise UsageError("the template has no {article}")
    if (title := title or title_of(text)) is None:
        raise UsageError(f'no title for the prompt {text[:60]!r}: give {{"prompt": …, "title": …}} in a JSONL file')
    article = articles.article(title) or ""
    filled = template.replace("{title}", title).replace("{article}", article[:ARTICLE_CHARACTERS])
    return Prompt(text, filled)
