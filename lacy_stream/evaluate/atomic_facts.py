"""The questions of FActScore and how their answers are read: a sentence's atomic facts, a fact's verdict.

Instructions and parsing are those of FActScore's code (Min et al. 2023, MIT licence), the demonstrations our own. They
are given as earlier turns: in one long question a small chat model answers the demonstrations instead.
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
    """The sentences of a text; a line break ends one."""
    from annotator.words import sentencizer  # imports spaCy, which takes seconds

    lines = [line for line in text.splitlines() if line.strip()]
    return [sentence.text.strip() for document in sentencizer().pipe(lines) for sentence in document.sents]


def load_demonstrations(path: str | Path | None = None) -> Demonstrations:
    """Sentence -> its facts: the package's own, or those of a JSON file in FActScore's format (its first eight).

    Raises:
        UsageError: the file has another layout.
    """
    own = files("lacy_stream.evaluate") / "factscore_demonstrations.json"
    text = own.read_text(encoding="utf-8") if path is None else read_text(path)
    try:
        demonstrations = json.loads(text)
        return {str(s): [str(fact) for fact in f] for s, f in list(demonstrations.items())[:DEMONSTRATIONS]}
    except (ValueError, AttributeError, TypeError) as error:
        raise UsageError(f"{path} is no JSON object of sentence: [fact, …] ({error})") from error


def facts_question(sentence: str) -> str:
    """The question for a sentence's atomic facts."""
    return ASK_FACTS + sentence


def facts_examples(demonstrations: Demonstrations) -> list[tuple[str, str]]:
    """The demonstrations as questions with their answers."""
    return [(facts_question(s), "\n".join(f"- {fact}" for fact in facts)) for s, facts in demonstrations.items()]


def parse_facts(answer: str) -> list[str]:
    """The facts of an answer: its list items, each once, up to where the judge goes on with a sentence of its own."""
    answer = answer.split(ASK_FACTS.strip())[0]
    items = re.findall(r"^\s*(?:[-*•]|\d+[.)])\s+(.+?)\s*$", answer, re.MULTILINE)
    return list(dict.fromkeys(item if item.endswith((".", "!", "?")) else f"{item}." for item in items))


def verdict_question(name: str, fact: str, passages: Sequence[str]) -> str:
    """The question whether a fact holds: the passages, the nearest last, then the fact."""
    context = "\n\n".join(f"Title: {name}\nText: {passage}" for passage in reversed(passages))
    asked = f"{fact.strip()} True or False?\nOutput:"
    return f"Answer the question about {name} based on the given context.\n\n{context}\n\nInput: {asked}"


def parse_verdict(answer: str) -> bool | None:
    """True or false, whichever an answer says last; None where it says neither."""
    said = re.findall(r"\b(true|false)\b", answer.lower())
    return said[-1] == "true" if said else None
