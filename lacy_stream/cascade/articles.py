"""The article about a person that the partner reads before the text (the RAG set-up of appendix A.5)."""

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
"""The template of the paper, in the chat format of Qwen 3. Other models need their own."""
_BIOGRAPHY = re.compile(r"Tell me a bio of (.+?)\. ")


class Articles(Protocol):
    """A collection of articles, such as ``knowledge.Knowledge``."""

    def article(self, title: str) -> str | None:
        """The text of the article with this title, or None."""
        ...


def title_of(prompt: str) -> str | None:
    """Find the name in a prompt of the form "Tell me a bio of NAME. "; None for other prompts."""
    found = _BIOGRAPHY.match(prompt)
    return None if found is None else found[1]


def with_article(text: str, title: str | None, articles: Articles, template: str = TEMPLATE) -> Prompt:
    """Make a prompt whose preamble is a template with the first 8,000 characters of an article. If there is no such
    article, the template is filled with an empty one, as in the paper.

    Args:
        text: the prompt.
        title: title of the article; None to take it from the prompt.
        articles: where the article is looked up.
        template: text with {title} and {article}. The partner reads names of special tokens in it as these tokens.

    Raises:
        UsageError: the template has no {article}, or no title is known.
    """
    if "{article}" not in template:
        raise UsageError("the template has no {article}: put it where the article belongs")
    if (title := title or title_of(text)) is None:
        raise UsageError(f'no title for the prompt {text[:60]!r}: give {{"prompt": …, "title": …}} in a JSONL file')
    article = articles.article(title) or ""
    filled = template.replace("{title}", title).replace("{article}", article[:ARTICLE_CHARACTERS])
    return Prompt(text, filled)
