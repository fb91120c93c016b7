"""The prompt for a biography (appendix B): name -> prompt, and prompt -> name."""

from __future__ import annotations

import re

PROMPT = "Tell me a bio of {name}. {name} is"
"""Prompt for models that do not follow instructions. "NAME is" is part of the judged text."""
_BEGIN = r"\s*Tell me a bio of\s+"
_TWICE = re.compile(
    _BEGIN + r"(?P<name>\S.*)(?:\.|(?<=\.))\s+(?P=name)(?P<rest>\.?(?:\s*[’'(,]|\s+[^\W\d_A-Z]).*|\.?\s*)", re.DOTALL
)
"""The name twice, as in PROMPT. A word in lower case, an apostrophe, a comma or a bracket follows, or nothing."""
_SHORT = r"\b(?:\w\.(?=\s)|(?:Jr|Sr|Dr|St|Mr|Mrs|Ms|Lt|Col|Gen|Sgt|Rev|Hon|Esq|Bros|Ph)\.)"
_ONCE = re.compile(_BEGIN + rf"(?P<name>(?:{_SHORT}|\.(?=\S)|[^.\n])+?)\.?\s*")
"""The name alone. Initials and abbreviations in it end in a full stop."""


def prompt_for(name: str) -> str:
    """The prompt for a biography of a person."""
    return PROMPT.format(name=name)


def name_in(prompt: str) -> str | None:
    """Find the name in a prompt of the form "Tell me a bio of NAME. NAME …" or "Tell me a bio of NAME."

    Returns:
        The name; None for a prompt of another form.
    """
    if (found := _TWICE.fullmatch(prompt)) is not None:
        # "Sammy Davis Jr. Sammy Davis Jr. is" and "Sammy Davis Jr.. Sammy Davis Jr. is"
        return found["name"] + ("." if found["rest"].startswith(".") else "")
    if (found := _ONCE.fullmatch(prompt)) is not None:
        return found["name"]
    return None
