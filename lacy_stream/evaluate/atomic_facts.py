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
    """Read the last "true" or "false" of an answer; None if it says neither."""
    said = re.findall(r"\b(true|false)\b", answer.lower())
    return said[-1] == "true" if said else None
