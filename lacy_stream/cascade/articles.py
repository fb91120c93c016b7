"""The article about a person that the partner reads before the text (the RAG set-up of appendix A.5)."""

from __future__ import annotations

from typing import Protocol

from lacy_stream.cascade.biography_prompt import name_in
from lacy_stream.cascade.texts import Prompt
from lacy_stream.errors import UsageError
from lacy_stream.files import is_unicode

ARTICLE_CHARACTERS = 8000
TEMPLATE = (
    "<|im_start|>system\nYou are an assistant who writes biographies of famous people and events. "
    "Continue any given text naturally and fluently.<|im_end|>\n"
    "<|im_start|>user\nWrite a short biography about {title}. Here is some background information: "
    "{article}<|im_end|>\n"
    "<|im_start|>assistant\n<think>\n\n</think>\n\n"
)
"""The template of the paper, in the chat format of Qwen 3. Other models need their own."""


class Articles(Protocol):
    """A collection of articles, such as ``knowledge.Knowledge``."""

    def article(self, title: str) -> str | None:
        """The text of the article with this title, or None."""
        ...


def with_article(text: str, title: str | None, articles: Articles, template: str = TEMPLATE) -> Prompt:
    """Make a prompt whose preamble is a template with the first 8,000 characters of an article. If there is no such
    article, the template is filled with an empty one, as in the paper, and the prompt says which is ``missing``.

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
    if (title := title or name_in(text)) is None:
        raise UsageError(
            f'no title for the prompt {text[:60]!r}: give --title, or {{"prompt": …, "title": …}} in a JSONL file'
        )
    article = articles.article(title) if is_unicode(title) else None
    filled = template.replace("{title}", title).replace("{article}", (article or "")[:ARTICLE_CHARACTERS])
    return Prompt(text, filled, missing=title if article is None else "")
