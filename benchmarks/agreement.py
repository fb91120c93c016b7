"""Does the engine say of each word what spaCy says, and of each token the same class?

    python benchmarks/agreement.py articles.jsonl --tokenizer tokenizer.model --documents 2000 --json out.json

Each document goes through stock spaCy (one text at a time, long ones in the segments of ``annotator.words.split``) and
through the engine. Counted are the words on which TAG, HEAD, DEP (of words other than white space), SENT_START,
ENT_IOB, ENT_TYPE or the place in the text differ, and the SentencePiece tokens whose FactClass differs. The bar is
fewer than one differing word in 100,000. The first differences are listed. Exit status 1: the bar is missed.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
from annotation import texts_of  # first: it puts every library on one thread
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track
from rich.table import Table

from annotator.align import classify
from annotator.engine import Engine
from annotator.facts import class_of_rule, fired_rules
from annotator.records import Words
from annotator.terminal import printable
from annotator.tokenizers import Tokenizer, open_tokenizer
from annotator.words import Parser, _read, split

ATTRIBUTES = ("TAG", "HEAD", "DEP", "SENT_START", "ENT_IOB", "ENT_TYPE", "IDX", "LENGTH")
BAR = 1e-5
SHOWN = 20

Columns = dict[str, NDArray[Any]]


class Engines:
    """Stock spaCy and the engine, of one pipeline."""

    def __init__(self, model: str) -> None:
        self.stock = Parser(model, engine="spacy")
        fast = Parser(model, engine="numba")._engine
        assert fast is not None  # engine="numba" raises otherwise
        self.fast: Engine = fast
        strings = self.stock._nlp.vocab.strings
        self._tags, self._labels, self._types = (
            np.array([strings.as_int(label) for label in labels], dtype=np.uint64)
            for labels in (fast.tags, fast.labels, fast.entity_types)
        )
        self._space_tag = strings.as_int("_SP")  # the last pattern of the attribute ruler

    def of_spacy(self, text: str) -> tuple[Columns, Words]:
        """spaCy's columns of a text, [words] each, and its Words."""
        nlp = self.stock._nlp
        with nlp.memory_zone():
            doc = nlp(text)
            table = doc.to_array([*ATTRIBUTES, "IS_SPACE"]).reshape(len(doc), -1)
            columns = dict(zip([*ATTRIBUTES, "IS_SPACE"], table.T, strict=True))
            # spaCy says -1 for "no start of a sentence", and 0 for a word of a document of one.
            columns["SENT_START"] = columns["SENT_START"] == 1
            return columns, _read(doc, 0, self.stock._codes)

    def of_engine(self, text: str) -> tuple[Columns, Words]:
        """The same of the engine."""
        found = self.fast.analyse([text])
        space = self.fast._lexicon.space[found.spelling.word]
        columns = {
            "TAG": np.where(space, np.uint64(self._space_tag), self._tags[found.tag]),
            "HEAD": (found.head - np.arange(len(found.head))).astype(np.int64).view(np.uint64),
            "DEP": self._labels[found.dep],
            "SENT_START": found.sent_start,
            "ENT_IOB": np.where(found.ent_start, 3, np.where(found.ent > 0, 1, 2)),
            "ENT_TYPE": self._types[found.ent],
            "IDX": found.spelling.start,
            "LENGTH": found.spelling.length,
        }
        return columns, self.fast.words([(text, 0)])[0]


def compare(engines: Engines, tokenizer: Tokenizer, texts: list[str]) -> dict[str, Any]:
    """Count words and tokens, and those that differ; list the first."""
    counts: Counter[str] = Counter(dict.fromkeys(ATTRIBUTES, 0))
    examples: list[dict[str, str]] = []
    for number, text in enumerate(track(texts, "documents", console=Console(stderr=True))):
        for start, end in split(text):
            part = text[start:end]
            expected, theirs = engines.of_spacy(part)
            found, ours = engines.of_engine(part)
            counts["words"] += len(theirs)
            if len(ours) != len(theirs):
                counts["words that differ"] += len(theirs)
                counts["texts in other words"] += 1
                examples.append({"document": str(number), "attribute": "number of words", "near": part[:60]})
                continue
            differs = {name: found[name] != expected[name] for name in ATTRIBUTES}
            differs["DEP"] &= expected["IS_SPACE"] == 0
            counts["words that differ"] += int(np.any(list(differs.values()), axis=0).sum())
            for name, where in differs.items():
                counts[name] += int(where.sum())
                for i in np.flatnonzero(where):
                    near = part[max(0, int(theirs.start[i]) - 30) : int(theirs.end[i]) + 30]
                    examples.append({"document": str(number), "attribute": name, "near": near})
            one, other = (
                classify(tokenizer.encode(part), words, class_of_rule(fired_rules(words))) for words in (ours, theirs)
            )
            counts["tokens"] += len(other)
            counts["tokens of another class"] += int((one.classes != other.classes).sum())
    return {"documents": len(texts), **counts, "examples": examples[:SHOWN]}


def show(figures: dict[str, Any]) -> None:
    """The counts as a table, and where the first differences are."""
    table = Table(title="engine against stock spaCy")
    table.add_column("counted")
    table.add_column("number", justify="right")
    for name, value in figures.items():
        if isinstance(value, int):
            table.add_row(name, f"{value:,}")
    console = Console()
    console.print(table)
    for example in figures["examples"]:
        console.print(f"{example['document']} {example['attribute']}: {printable(example['near'])!r}", markup=False)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path, help="JSONL with text and optionally title; plain or .zst")
    parser.add_argument("--documents", type=int, default=2000, help="how many (default: %(default)s)")
    parser.add_argument("--model", default="en_core_web_sm")
    parser.add_argument("--tokenizer", type=Path, required=True, help="SentencePiece model")
    parser.add_argument("--json", type=Path, help="write the figures here, too")
    args = parser.parse_args()

    texts = list(itertools.islice(texts_of(args.file), args.documents))
    figures = compare(Engines(args.model), open_tokenizer(args.tokenizer), texts)
    show(figures)
    if args.json:
        args.json.write_text(json.dumps(figures, indent=2) + "\n")
    sys.exit(figures["words that differ"] >= max(BAR * figures["words"], 1))


if __name__ == "__main__":
    main()
