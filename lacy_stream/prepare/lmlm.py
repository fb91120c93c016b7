"""Text with LMLM's lookup calls -> the text without them, and the spans of the values that they look up (A.2.2).

LMLM (Zhao et al., 2025; github.com/kilian-group/LMLM) has an LLM put a call before each fact that it would delegate.
A call ends with a copy of the value, and the text goes on as it was, in three notations:

    born on [dblookup('Napoleon', 'Birth Date') -> August 15, 1769] August 15, 1769.         data, annotators
    born on <|db_entity|> Napoleon<|db_relationship|> Birth Date<|db_return|> August 15, 1769<|db_end|> August 15, …
    born on <|db_start|> Napoleon <|sep|> Birth_Date <|db_retrieve|> August 15, 1769 <|db_end|> August 15, 1769.

the first being that of the published data, the second that of LMLM's code, the third that of the papers. LaCy's example
(A.2.2) leaves out ``<|db_end|>`` and the copy; where a value ends cannot be told then, so such a text is refused.

The annotators were language models: the value is often not in the text as the call has it. It is looked for behind the
call, in the same line, whatever the case, the kind of quotes and dashes, and the width of spaces (``Placed``).
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from enum import Enum
from typing import NamedTuple

FEW_WORDS = 12
"""So many words may stand between a call and its value, and between the parts of a list."""


class Placed(str, Enum):
    """Where the value of a call was found."""

    AT_ONCE = "at once"  # -> 1992] 1992
    OTHER_SPELLING = "at once, in other case or quotes"  # -> Athletic Director] athletic director
    LATER = "a few words later"  # -> 1992] established in 1992
    LIST = "part by part"  # -> Will Smith, Jay-Z] Will Smith and Jay-Z
    NOWHERE = "not placed"  # -> yes] …


class Converted(NamedTuple):
    """The text without calls, the spans of the values that were found (code points, in the order of the calls), and
    how many calls were placed where."""

    text: str
    spans: list[tuple[int, int]]
    placed: Counter[Placed]


class BrokenCall(ValueError):
    """A call without a value or an end, or a part of one: what belongs to the text cannot be told."""


class _Call(NamedTuple):
    """Code points of an annotated text."""

    start: int
    end: int
    value: str


def convert(annotated: str) -> Converted:
    """Take the calls out of a text, and find the values that they look up.

    Raises:
        BrokenCall: see there.
    """
    text, last, values = "", 0, []
    for call in _calls(annotated):
        text, last = _closed_up(text + annotated[last : call.start], annotated, call.end)
        values.append((len(text), call.value))
    text += annotated[last:]
    if _REMAINS.search(text):
        raise BrokenCall("a part of a lookup call that has no beginning or no end")
    folded = _folded(text)
    spans: list[tuple[int, int]] = []
    placed: Counter[Placed] = Counter()
    for position, value in values:
        how, found = _place(value, position, text, folded)
        placed[how] += 1
        spans += found
    return Converted(text, spans, placed)


# --- calls --------------------------------------------------------------------------------------------------------

_START = re.compile(r"\[dblookup\(|<\|db_(?:start|entity)\|>")
_ARROW = re.compile(r"\)\s*->\s*")  # arguments hold apostrophes, commas and brackets as they like, but no arrow
_RETURN = re.compile(r"<\|db_(?:retrieve|return)\|>")
_END = re.compile(r"<\|db_end\|>")
_BRACKET = re.compile(r"[\[\]]")
_CLOSING = re.compile(r"\s|$|[.,;:!?)\]}]")
_REMAINS = re.compile(r"\[dblookup\(|<\|db_\w+\|>|<\|sep\|>")


def _calls(annotated: str) -> Iterator[_Call]:
    starts = list(_START.finditer(annotated))
    limits = [match.start() for match in starts] + [len(annotated)]
    for start, limit in zip(starts, limits[1:], strict=True):  # a call ends before the next one begins
        bracketed = start[0].startswith("[")
        value = (_ARROW if bracketed else _RETURN).search(annotated, start.end(), limit)
        if value is None:
            raise BrokenCall("a lookup call without a value")
        end = (
            _closing_bracket(annotated, value.end(), limit) if bracketed else _END.search(annotated, value.end(), limit)
        )
        if end is None:
            raise BrokenCall("a lookup call without an end")
        yield _Call(start.start(), end.end(), annotated[value.end() : end.start()])


def _closing_bracket(text: str, start: int, limit: int) -> re.Match[str] | None:
    """The bracket that closes a call whose value begins at ``start``; where the value's own brackets do not match, the
    first closing one."""
    brackets = list(_BRACKET.finditer(text, start, limit))
    depth = 1
    for bracket in brackets:
        depth += 1 if bracket[0] == "[" else -1
        if depth == 0:
            return bracket
    return next((bracket for bracket in brackets if bracket[0] == "]"), None)


def _closed_up(text: str, annotated: str, end: int) -> tuple[str, int]:
    """The text before a call, and where the annotated text goes on behind it, without the space that the call brought:
    the one behind it, or, where a mark or nothing follows, the one before it."""
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


def _folded(text: str) -> str:
    """The text in lower case, with plain quotes, dashes and spaces, one character for each."""
    plain = text.translate(_PLAIN)
    lower = plain.lower()
    return lower if len(lower) == len(text) else "".join(c.lower() if len(c.lower()) == 1 else c for c in plain)


def _place(value: str, position: int, text: str, folded: str) -> tuple[Placed, list[tuple[int, int]]]:
    """Find a value behind its call. ``folded`` is the folded text."""
    while text[position : position + 1].isspace():
        position += 1
    line_end = text.find("\n", position)
    line_end = line_end if line_end >= 0 else len(text)
    wanted = _folded(value).strip(" '\"")
    if (span := _find(wanted, folded, position, line_end)) is not None:
        if _WORD.search(text, position, span[0]):
            return Placed.LATER, [span]
        return (Placed.AT_ONCE if text[slice(*span)] in value else Placed.OTHER_SPELLING), [span]
    spans: list[tuple[int, int]] = []
    for item in items if len(items := _BETWEEN_ITEMS.split(wanted)) > 1 else []:
        span = _find(item, folded, spans[-1][1] if spans else position, line_end)
        if span is None:
            return Placed.NOWHERE, []
        spans.append(span)
    return (Placed.LIST, spans) if spans else (Placed.NOWHERE, [])


def _find(wanted: str, text: str, start: int, end: int) -> tuple[int, int] | None:
    """The first place of a value in ``text[start:end]``, whole words only, at most FEW_WORDS words from its start."""
    at = text.find(wanted, start, end) if wanted else -1
    while at >= 0 and not _whole_words(text, at, at + len(wanted)):
        at = text.find(wanted, at + 1, end)
    if at < 0 or len(_WORD.findall(text, start, at)) > FEW_WORDS:
        return None
    return at, at + len(wanted)


def _whole_words(text: str, start: int, end: int) -> bool:
    """Whether neither border of ``text[start:end]`` lies within a word or a number."""
    return not any(0 < border < len(text) and text[border - 1 : border + 1].isalnum() for border in (start, end))
