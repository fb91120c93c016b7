"""Text with LMLM's lookup calls -> the text without calls, and the spans of the values that they look up (A.2.2).

For LMLM (Zhao et al., 2025; github.com/kilian-group/LMLM), an LLM puts a call before each fact that it would delegate.
A call ends with a copy of the value, and then the text continues. There are three notations:

    born on [dblookup('Napoleon', 'Birth Date') -> August 15, 1769] August 15, 1769.         data, annotators
    born on <|db_entity|> Napoleon<|db_relationship|> Birth Date<|db_return|> August 15, 1769<|db_end|> August 15, …
    born on <|db_start|> Napoleon <|sep|> Birth_Date <|db_retrieve|> August 15, 1769 <|db_end|> August 15, 1769.

The published data have the first notation, LMLM's code has the second, and the papers have the third. LaCy's example
(A.2.2) leaves out ``<|db_end|>`` and the copy. Then the end of the value is unknown, so such a text is refused.

Case, and white space inside of the marks, do not matter: "[DB lookup (", "<| db_end |>".

The annotators were language models, so the text often spells the value in another way than the call. The value is
searched for after the call, in the same line. Case, the kinds of quotes and dashes, and the width of spaces do not
matter. ``ValueLocation`` says how it was found.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from enum import Enum
from typing import NamedTuple

FEW_WORDS = 12
"""Maximum number of words between a call and its value, and between the parts of a list."""


class ValueLocation(str, Enum):
    """The place in the text where the value of a call was found."""

    AT_ONCE = "at once"  # -> 1992] 1992
    OTHER_SPELLING = "at once, in other case or quotes"  # -> Athletic Director] athletic director
    LATER = "a few words later"  # -> 1992] established in 1992
    LIST = "part by part"  # -> Will Smith, Jay-Z] Will Smith and Jay-Z
    NOWHERE = "not placed"  # -> yes] …


class ConvertedText(NamedTuple):
    """A text without its calls."""

    text: str
    spans: list[tuple[int, int]]
    """Spans [start, end) of the values that were found, in code points of ``text``, in the order of the calls."""
    locations: Counter[ValueLocation]
    """Number of calls by how their value was found."""


class BrokenCallError(ValueError):
    """A text has a call without a value or an end, or a part of a call, so it is unclear what belongs to the text."""


class _Call(NamedTuple):
    """A call in an annotated text: its place in code points, and its value."""

    start: int
    end: int
    value: str


def remove_calls(annotated: str) -> ConvertedText:
    """Take the calls out of a text, and find the values that they look up.

    Raises:
        BrokenCallError: a call is incomplete.
    """
    text, last, values = "", 0, []
    for call in _calls(annotated):
        text, last = _without_extra_space(text + annotated[last : call.start], annotated, call.end)
        values.append((len(text), call.value))
    text += annotated[last:]
    if _REMAINS.search(text):
        raise BrokenCallError("a part of a lookup call that has no beginning or no end")
    folded = _fold(text)
    spans: list[tuple[int, int]] = []
    locations: Counter[ValueLocation] = Counter()
    for position, value in values:
        how, found = _locate(value, position, text, folded)
        locations[how] += 1
        spans += found
    return ConvertedText(text, spans, locations)


def _mark(names: str) -> str:
    """The pattern of LMLM's special tokens: <|db_NAME|>."""
    return rf"<\s*\|\s*db\s*_\s*(?:{names})\s*\|\s*>"


# --- calls --------------------------------------------------------------------------------------------------------

_LOOKUP = r"db[\s_-]*lookup\s*\("
_START = re.compile(rf"\[\s*{_LOOKUP}|{_mark('start|entity')}", re.IGNORECASE)
_ARROW = re.compile(r"\)\s*(?:-+\s*>|→)\s*")  # arguments may have apostrophes, commas and brackets, but no arrow
_RETURN = re.compile(_mark("retrieve|return"), re.IGNORECASE)
_END = re.compile(_mark("end"), re.IGNORECASE)
_BRACKET = re.compile(r"[\[\]]")
_CLOSING = re.compile(r"\s|$|[.,;:!?)\]}]")
_ANY_MARK = _mark(r"\w+")
_REMAINS = re.compile(rf"\b{_LOOKUP}|{_ANY_MARK}|<\s*\|\s*sep\s*\|\s*>", re.IGNORECASE)


def _calls(annotated: str) -> Iterator[_Call]:
    """Yield the calls of a text in order."""
    starts = list(_START.finditer(annotated))
    limits = [match.start() for match in starts] + [len(annotated)]
    for start, limit in zip(starts, limits[1:], strict=True):  # a call ends before the next one begins
        bracketed = start[0].startswith("[")
        value = (_ARROW if bracketed else _RETURN).search(annotated, start.end(), limit)
        if value is None:
            raise BrokenCallError("a lookup call without a value")
        end = (
            _closing_bracket(annotated, value.end(), limit) if bracketed else _END.search(annotated, value.end(), limit)
        )
        if end is None:
            raise BrokenCallError("a lookup call without an end")
        yield _Call(start.start(), end.end(), annotated[value.end() : end.start()])


def _closing_bracket(text: str, start: int, limit: int) -> re.Match[str] | None:
    """Find the bracket that closes a call whose value begins at ``start``. If the brackets of the value do not match,
    this is the first closing one."""
    brackets = list(_BRACKET.finditer(text, start, limit))
    depth = 1
    for bracket in brackets:
        depth += 1 if bracket[0] == "[" else -1
        if depth == 0:
            return bracket
    return next((bracket for bracket in brackets if bracket[0] == "]"), None)


def _without_extra_space(text: str, annotated: str, end: int) -> tuple[str, int]:
    """Remove the space that came with a call: the space after it, or the space before it if punctuation or the end of
    the text follows.

    Args:
        text: the text before the call, without calls.
        annotated: the annotated text.
        end: end of the call in it.

    Returns:
        The text before the call, and where the annotated text continues.
    """
    if annotated.startswith(" ", end) and (not text or text[-1].isspace() or text[-1] in "([{\"'“‘"):
        return text, end + 1
    if text.endswith(" ") and _CLOSING.match(annotated, end):
        return text[:-1], end
    return text, end


# --- values -------------------------------------------------------------------------------------------------------

_QUOTES, _DASHES, _SPACES = "‘’‚‛`´“”„‟", "‐‑‒–—−", "\u00a0\u2009\u202f"
_PLAIN = str.maketrans(_QUOTES + _DASHES + _SPACES, "'" * 6 + '"' * 4 + "-" * len(_DASHES) + " " * len(_SPACES))
_WORD = re.compile(r"\w+")
_BETWEEN_ITEMS = re.compile(r"\s*[,;]\s*(?:and\s+)?|\s+and\s+")


def _fold(text: str) -> str:
    """The text in lower case with plain quotes, dashes and spaces. It keeps its length, so that spans stay valid."""
    plain = text.translate(_PLAIN)
    lower = plain.lower()
    return lower if len(lower) == len(text) else "".join(c.lower() if len(c.lower()) == 1 else c for c in plain)


def _locate(value: str, position: int, text: str, folded: str) -> tuple[ValueLocation, list[tuple[int, int]]]:
    """Find a value after its call.

    Args:
        value: the value in the call.
        position: place of the call in ``text``.
        text: the text without calls.
        folded: the same text, folded.

    Returns:
        How the value was found, and its spans: one, or one for each part of a list.
    """
    while text[position : position + 1].isspace():
        position += 1
    line_end = text.find("\n", position)
    line_end = line_end if line_end >= 0 else len(text)
    wanted = _fold(value).strip(" '\"")
    if (span := _find(wanted, folded, position, line_end)) is not None:
        if _WORD.search(text, position, span[0]):
            return ValueLocation.LATER, [span]
        return (ValueLocation.AT_ONCE if text[slice(*span)] in value else ValueLocation.OTHER_SPELLING), [span]
    spans: list[tuple[int, int]] = []
    for item in items if len(items := _BETWEEN_ITEMS.split(wanted)) > 1 else []:
        span = _find(item, folded, spans[-1][1] if spans else position, line_end)
        if span is None:
            return ValueLocation.NOWHERE, []
        spans.append(span)
    return (ValueLocation.LIST, spans) if spans else (ValueLocation.NOWHERE, [])


def _find(wanted: str, text: str, start: int, end: int) -> tuple[int, int] | None:
    """Find a value in ``text[start:end]``, as whole words and at most FEW_WORDS words after ``start``."""
    at = text.find(wanted, start, end) if wanted else -1
    while at >= 0 and not _whole_words(text, at, at + len(wanted)):
        at = text.find(wanted, at + 1, end)
    if at < 0 or len(_WORD.findall(text, start, at)) > FEW_WORDS:
        return None
    return at, at + len(wanted)


def _whole_words(text: str, start: int, end: int) -> bool:
    """Whether neither end of ``text[start:end]`` lies within a word or a number."""
    return not any(0 < border < len(text) and text[border - 1 : border + 1].isalnum() for border in (start, end))
