"""`python -m annotator FILE`: show which words of a text are facts, and by which rule."""

from __future__ import annotations

import argparse
import importlib.util
import itertools
import json
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, TextIO

import numpy as np
from rich.console import Console
from rich.text import Text

from annotator.annotate import Annotator, Explanation
from annotator.errors import AnnotatorError
from annotator.facts import Rule, class_of_rule
from annotator.page import PageToken, token_page
from annotator.records import Document, FactClass, title_line
from annotator.terminal import accept_all_characters, printable


class _Family(NamedTuple):
    """Rules that share a colour."""

    name: str
    rules: tuple[Rule, ...]
    style: str  # in the terminal
    color: str  # on the page


_FAMILIES = (
    _Family("named entity", (Rule.PERSON_ENTITY, Rule.NAMED_ENTITY), "bold black on green", "#8fd694"),
    _Family(
        "name in a noun chunk",
        (Rule.LIKELY_PERSON, Rule.LIKELY_ORGANISATION, Rule.PROPER_NOUN),
        "bold black on cyan",
        "#8ecae6",
    ),
    _Family("common noun in a factual role", (Rule.COMMON_NOUN,), "bold black on yellow", "#ffd166"),
    _Family("number", (Rule.NUMBER,), "bold black on magenta", "#e0aaff"),
    _Family(
        "repeated, so no longer a fact",
        (Rule.REPEATED_PERSON, Rule.REPEATED_ENTITY, Rule.REPEATED_WORD),
        "underline",
        "#e5e5e5",
    ),
)
_JSON_LINES = (".jsonl", ".ndjson", ".jsonlines")
_FAMILY_OF = {rule: family for family in _FAMILIES for rule in family.rules}
_LABELLED = _Family("marked by the labeller", (), "bold black on green", "#8fd694")


class _Mark(NamedTuple):
    """Neighbouring words that one rule labelled, or a span that a labeller marked (no rule). Offsets count code points
    of the text."""

    start: int
    end: int
    rule: Rule | None

    @property
    def family(self) -> _Family:
        return _LABELLED if self.rule is None else _FAMILY_OF[self.rule]

    @property
    def label(self) -> str:
        return "LABELLER" if self.rule is None else self.rule.name.replace("_", " ")

    @property
    def factual(self) -> bool:
        return self.rule is None or class_of_rule(np.array([self.rule]))[0] == FactClass.FACTUAL


def main(argv: list[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    accept_all_characters()
    parser = _argument_parser()
    args = parser.parse_args(argv)
    tally = _Tally()
    families = _FAMILIES if args.labeller is None else (_LABELLED,)
    try:
        with _lines(args.file) as lines:  # first, since a parser takes seconds to load
            annotator = Annotator(args.tokenizer or _default_tokenizer(), args.model, labeller=args.labeller)
            explained = _explain_documents(annotator, lines, args.file, tally)
            if args.json:
                _write_json(explained)
            elif args.html:
                _write_page(explained, args.html, families)
            else:
                _write_terminal(explained, families)
    except BrokenPipeError:  # `| head` has read enough
        # Otherwise the interpreter would fail when it flushes stdout at its exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except AnnotatorError as error:  # every other error is a bug, and keeps its traceback
        print(f"error: {error}", file=sys.stderr)
        return 2
    if tally.skipped:
        print(f"skipped {tally.skipped:,} of {tally.skipped + tally.labelled:,} documents", file=sys.stderr)
    return 1 if tally.skipped else 0


def _argument_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m annotator",
        description="Label the words and tokens of a text as grammatical, factual or other "
        "(LaCy, appendix A.2.1), and show the rule that gave each label.",
        epilog="Exit status: 0 if every document was labelled; 1 if some JSON objects could not be labelled (they are "
        "skipped, and named on standard error); 2 if the command could not run.",
    )
    parser.add_argument(
        "file",
        help='a text file; or JSON lines, or an array of JSON objects, each with a "text" and optionally an "id" and a '
        '"title"; - is standard input',
    )
    parser.add_argument(
        "--tokenizer",
        metavar="PATH",
        help="SentencePiece model, tokenizer.json, folder with one of them, or package:NAME/PATH "
        "(default: mistral-common's)",
    )
    parser.add_argument(
        "--model", default="en_core_web_sm", metavar="NAME", help="spaCy pipeline (default: %(default)s)"
    )
    parser.add_argument(
        "--labeller",
        metavar="NAME",
        help="mark the facts with this labeller instead of the pipeline and the rules: the name of an entry point in "
        "the group lacy_stream.labellers, or package.module:callable",
    )
    output = parser.add_mutually_exclusive_group()
    output.add_argument("--html", metavar="OUT", help="write a web page instead, which shows the rule of each mark")
    output.add_argument(
        "--json",
        action="store_true",
        help='write one line per document instead: {"id", "text", "words": [[start, end, class, rule], ...], '
        '"tokens": [[id, start, end, class], ...]}. Offsets count code points. With --labeller, "spans": '
        "[[start, end], ...] takes the place of the words",
    )
    return parser


def _default_tokenizer() -> Path:
    spec = importlib.util.find_spec("mistral_common")
    if spec is None or spec.origin is None:
        raise AnnotatorError(
            "there is no tokenizer: name a SentencePiece model or a tokenizer.json with --tokenizer PATH, or "
            "`pip install mistral-common`"
        )
    return Path(spec.origin).parent / "data" / "tokenizer.model.v1"


@contextmanager
def _lines(name: str) -> Iterator[Iterator[str]]:
    """The lines of the file that the user named; - is standard input."""
    try:
        file = open(sys.stdin.fileno() if name == "-" else name, encoding="utf-8-sig", newline="", closefd=name != "-")
    except OSError as error:
        raise _unreadable(name, error) from error
    with file:
        yield _read(file, name)


def _read(file: TextIO, name: str) -> Iterator[str]:
    try:
        yield from file
    except (OSError, UnicodeDecodeError) as error:
        raise _unreadable(name, error) from error


def _unreadable(name: str, error: OSError | UnicodeDecodeError) -> AnnotatorError:
    if isinstance(error, OSError):
        return AnnotatorError(f"{name} cannot be read: {error.strerror}. Name a text file.")
    return AnnotatorError(f"{name} is not UTF-8: {error}. Save it as UTF-8.")


@dataclass
class _Tally:
    """Documents of the file so far."""

    labelled: int = 0
    skipped: int = 0


def _explain_documents(
    annotator: Annotator, lines: Iterator[str], name: str, tally: _Tally
) -> Iterator[tuple[Document, Explanation]]:
    """The documents of a file. One that cannot be labelled is named on stderr and skipped."""
    head = []
    for line in lines:
        head.append(line)
        if line.strip():
            break
    lines = itertools.chain(head, lines)
    if name.lower().endswith(_JSON_LINES) or (head and isinstance(_json(head[-1]), dict)):
        values = ((number, _json(line)) for number, line in enumerate(lines, start=1) if line.strip())
        yield from _explained_values(annotator, values, f"{name}, line", tally)
        return
    text = "".join(lines)
    if (objects := _objects(text, name)) is None:
        yield Document(name, text), annotator.explain(text)
    else:
        yield from _explained_values(annotator, enumerate(objects, start=1), f"{name}, object", tally)


def _explained_values(
    annotator: Annotator, values: Iterable[tuple[int, object]], place: str, tally: _Tally
) -> Iterator[tuple[Document, Explanation]]:
    """The documents of JSON values, each with its number."""
    for number, value in values:
        where = f"{place} {number}"
        try:
            doc = _document(value, number)
            where += f", document {doc.id!r}"
            found = annotator.explain(doc.text)
        except AnnotatorError as error:
            tally.skipped += 1
            print(f"skipped: {where}: {error}", file=sys.stderr)
        else:
            tally.labelled += 1
            yield doc, found


def _objects(text: str, name: str) -> list[object] | None:
    """The values of a file that is one JSON object or an array of objects; None if it is a text.

    Raises:
        AnnotatorError: the file's name says JSON, but it is none.
    """
    named = name.lower().endswith(".json")
    value = _json(text) if named or text.lstrip()[:1] in ("{", "[") else None
    objects = value if isinstance(value, list) else [value]
    if named and value is None:
        raise AnnotatorError(f"{name} is not JSON. Name a file of JSON lines, an array of objects, or a text file.")
    return objects if named or any(isinstance(value, dict) for value in objects) else None


def _document(value: object, number: int) -> Document:
    if not isinstance(value, dict) or not isinstance(value.get("text"), str):
        raise AnnotatorError('it is not a JSON object with a "text"')
    id = value.get("id")
    return Document(str(number if id is None else id), title_line(value.get("title")) + value["text"])


def _json(text: str) -> object:
    """The value of a JSON text; None if it is none."""
    try:
        return json.loads(text.removeprefix("\ufeff"))
    except (ValueError, RecursionError):  # the latter for thousands of brackets
        return None


def _marks(found: Explanation) -> list[_Mark]:
    """The marks of a text. Neighbouring words that one rule labelled are one mark. A labeller's spans are marks."""
    if found.spans is not None:
        return _disjoint(found.spans.tolist())
    marks: list[_Mark] = []
    words = found.words
    for start, end, code in zip(words.start.tolist(), words.end.tolist(), found.rules.tolist(), strict=True):
        rule = Rule(code)
        if rule not in _FAMILY_OF:
            continue
        if marks and marks[-1].rule is rule and found.text[marks[-1].end : start] in ("", " "):
            marks[-1] = marks[-1]._replace(end=end)
        else:
            marks.append(_Mark(start, end, rule))
    return marks


def _disjoint(spans: list[list[int]]) -> list[_Mark]:
    """Spans in the order of the text. Overlapping spans are joined, and empty ones left out."""
    marks: list[_Mark] = []
    for start, end in sorted(spans):
        if marks and start < marks[-1].end:
            marks[-1] = marks[-1]._replace(end=max(end, marks[-1].end))
        elif start < end:
            marks.append(_Mark(start, end, None))
    return marks


def _write_terminal(explained: Iterable[tuple[Document, Explanation]], families: Sequence[_Family]) -> None:
    console = Console(highlight=False, soft_wrap=True)
    factual = total = 0
    for doc, found in explained:
        console.rule(Text(printable(doc.id)))
        console.print(_highlight(found, brackets=console.color_system is None))
        factual += int(np.count_nonzero(found.tokens.classes == FactClass.FACTUAL))
        total += len(found.tokens)
    console.rule()
    for family in families:
        console.print(Text(f" {family.name} ", style=family.style))
    if console.color_system is None:
        console.print(Text("Facts are in [brackets]."))
    console.print(Text(f"{factual:,} of {total:,} tokens are factual ({factual / max(total, 1):.1%})"))


def _highlight(found: Explanation, brackets: bool) -> Text:
    out = Text()
    text = printable(found.text)
    last = 0
    for mark in _marks(found):
        out.append(text[last : mark.start])
        shown = text[mark.start : mark.end]
        out.append(f"[{shown}]" if brackets and mark.factual else shown, style=mark.family.style)
        last = mark.end
    return out.append(text[last:])


def _write_page(explained: Iterable[tuple[Document, Explanation]], path: str, families: Sequence[_Family]) -> None:
    documents = [(doc.id, [("", _tokens(found))]) for doc, found in explained]
    kinds = {family.name: f"background: {family.color}" for family in families}
    page = token_page("lacy-stream: facts", documents, kinds)
    try:
        Path(path).write_text(page, encoding="utf-8")
    except OSError as error:
        raise AnnotatorError(f"{path} cannot be written: {error.strerror}. Name another file.") from error


def _tokens(found: Explanation) -> Iterator[PageToken]:
    last = 0
    for mark in _marks(found):
        yield PageToken(found.text[last : mark.start])
        yield PageToken(found.text[mark.start : mark.end], mark.family.name, mark.label)
        last = mark.end
    yield PageToken(found.text[last:])


def _write_json(explained: Iterable[tuple[Document, Explanation]]) -> None:
    names = [c.name.lower() for c in FactClass]
    for doc, found in explained:
        words, tokens = found.words, found.tokens
        record: dict[str, object] = {"id": doc.id, "text": found.text}
        if found.spans is None:
            classes = [names[c] for c in class_of_rule(found.rules)]
            rules = [Rule(code).name.lower() for code in found.rules]
            record["words"] = list(zip(words.start.tolist(), words.end.tolist(), classes, rules, strict=True))
        else:
            record["spans"] = found.spans.tolist()
        of_token = [names[c] for c in tokens.classes]
        record["tokens"] = [
            [token, start, end, name]
            for token, (start, end), name in zip(tokens.ids.tolist(), tokens.offsets.tolist(), of_token, strict=True)
        ]
        print(json.dumps(record))


if __name__ == "__main__":
    sys.exit(main())
