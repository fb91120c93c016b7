"""FActScore's questions to the judge, for the facts of a sentence and for verdicts, and parsing of the answers.

Instructions and parsing are those of FActScore's code (Min et al. 2023, MIT licence). The demonstrations are not. They
are given as earlier turns of the chat, because a small chat model that gets one long question answers the
demonstrations instead.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path

from lacy_stream.errors import UsageError
from lacy_stream.files import read_text

DEMONSTRATIONS = 8
ASK_FACTS = "Please breakdown the following sentence into independent facts: "

Demonstrations = Mapping[str, Sequence[str]]


def sentences(text: str) -> list[str]:
    """Split a text into sentences. A line break also ends a sentence."""
    from annotator.words import sentencizer  # imports spaCy, which takes seconds

    lines = [line for line in text.splitlines() if line.strip()]
    return [sentence.text.strip() for document in sentencizer().pipe(lines) for sentence in document.sents]


def load_demonstrations(path: str | Path | None = None) -> Demonstrations:
    """Load demonstrations, sentence -> its facts: those of this package, or the first eight of a file.

    Args:
        path: JSON file in FActScore's format; None for those of this package.

    Raises:
        UsageError: the file has another format.
        FileError: the file cannot be read.
    """
    own = files("lacy_stream.evaluate") / "factscore_demonstrations.json"
    text = own.read_text(encoding="utf-8") if path is None else read_text(path)
    try:
        demonstrations = json.loads(text)
        return {str(s): [str(fact) for fact in f] for s, f in list(demonstrations.items())[:DEMONSTRATIONS]}
    except (ValueError, AttributeError, TypeError) as error:
        raise UsageError(f"{path} is not a JSON object of sentence: [fact, …] ({error})") from error


def facts_question(sentence: str) -> str:
    """The question for the atomic facts of a sentence."""
    return ASK_FACTS + sentence


def facts_examples(demonstrations: Demonstrations) -> list[tuple[str, str]]:
    """Turn the demonstrations into questions with answers."""
    return [(facts_question(s), "\n".join(f"- {fact}" for fact in facts)) for s, facts in demonstrations.items()]


def parse_facts(answer: str) -> list[str]:
    """Read the facts of an answer: its list items without repetitions, up to a further question of the judge's own."""
    answer = answer.split(ASK_FACTS.strip())[0]
    items = re.findall(r"^\s*(?:[-*•]|\d+[.)])\s+(.+?)\s*$", answer, re.MULTILINE)
    return list(dict.fromkeys(item if item.endswith((".", "!", "?")) else f"{item}." for item in items))


def verdict_question(name: str, fact: str, passages: Sequence[str]) -> str:
    """The question whether a fact is true. The passages come before it, the nearest one last."""
    context = "\n\n".join(f"Title: {name}\nText: {passage}" for passage in reversed(passages))
    asked = f"{fact.strip()} True or False?\nOutput:"
    return f"Answer the question about {name} based on the given context.\n\n{context}\n\nInput: {asked}"


def parse_verdict(answer: str) -> bool | None:
    """Read the verdict of an answer.

    A verdict is what the answer begins with ("False. It is not said that …"), what it names as its verdict ("so the
    answer is false"), or a word that is its last sentence. Else, all that it says must agree: "not true" says false.

    Returns:
        None if it says neither, or both without one of these forms.
    """
    answer = _BOTH.sub(" ", answer)
    for form in (_FIRST, _NAMED, _ALONE):
        if found := form.findall(answer):
            return _is_true(found[-1])
    said = {_is_true(found) for found in _SAID.findall(answer)}
    return said.pop() if len(said) == 1 else None


_WORD = r"((?:\bnot|n['’]t|\bnever|\bcannot be)\W+(?:\w+\W+)?)?\b(true|false)\b"
"""True or false, with a negation before it."""
_BOTH = re.compile(r"\btrue\s*(?:or|/)\s*false\b\??", re.IGNORECASE)
_SAID = re.compile(_WORD, re.IGNORECASE)
_FIRST = re.compile(
    r"\A\W*(?:(?:the|this|that|it|output|answer|verdict|statement|claim|fact|sentence|is|would be)\W+)*"
    + _WORD
    + r"(?!\s+that\b)",
    re.IGNORECASE,
)
_NAMED = re.compile(
    r"\b(?:output|answer|verdict|conclusion|(?:statement|claim|fact) is|therefore|hence|thus)\W+"
    r"(?:(?:is|it|the|this|statement|claim|fact)\W+)*" + _WORD,
    re.IGNORECASE,
)
_ALONE = re.compile(r"(?:\A|[\n.!?:])\W*" + _WORD + r"\W*\Z", re.IGNORECASE)


def _is_true(said: tuple[str, str]) -> bool:
    negation, word = said
    return (word.lower() == "true") != bool(negation)
