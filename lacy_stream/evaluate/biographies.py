"""Names -> biographies, written by a model and its partner (section 5.2), or read from a file."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lacy_stream.cascade.settings import MANY_TEXTS, Decoding, Delegation, flat_settings
from lacy_stream.errors import UsageError
from lacy_stream.files import file_errors, file_fingerprint, read_text
from lacy_stream.journal import Journal, JournalError
from lacy_stream.prepare.knowledge import Knowledge
from lacy_stream.progress import progress

if TYPE_CHECKING:
    from lacy_stream.cascade import Generation, Prompt

PROMPT = "Tell me a bio of {name}. {name} is"
"""For models that follow no instructions (appendix B); "NAME is" belongs to the text that is judged."""


@dataclass(frozen=True)
class Biography:
    """A text about a person.

    call_rate: share of its tokens that came from a partner, 0 to 1; None: unknown.
    skipped: why there is no text; "" where there is.
    """

    name: str
    text: str
    call_rate: float | None = None
    skipped: str = ""


@dataclass(frozen=True)
class Cascade:
    """How a model writes, and with which partner.

    Args:
        partner: as ``open_partner`` takes it; None, no calls.
        delegation: what is delegated. decoding: how the texts are written.
        articles: store that the partner reads the person's article in first (RAG, appendix A.5); None: it reads none.
        template: file of the text around the article; None: the paper's, for Qwen 3.
    """

    partner: str | None = None
    delegation: Delegation = Delegation()
    decoding: Decoding = Decoding(batch_size=MANY_TEXTS)
    articles: str | None = None
    template: str | None = None

    def record(self) -> dict[str, Any]:
        """All of it as JSON values."""
        files = {"partner": self.partner, "articles": self.articles, "template": self.template}
        return files | flat_settings(self.delegation, self.decoding)

    def settings(self) -> dict[str, Any]:
        """What the texts depend on, files by their fingerprints."""
        files = {"articles": self.articles, "template": self.template}
        return self.record() | {name: file and file_fingerprint(file) for name, file in files.items()}


def read_names(path: str | os.PathLike[str], limit: int | None = None) -> list[str]:
    """The names of a file, one a line; blank lines are none.

    Raises:
        UsageError: it holds none.
    """
    lines = (line.strip() for line in read_text(path).splitlines())
    names = list(dict.fromkeys(line for line in lines if line))[:limit]
    if not names:
        raise UsageError(f"{os.fspath(path)} holds no names; it wants one a line")
    return names


def read_biographies(path: str | os.PathLike[str], limit: int | None = None) -> list[Biography]:
    """Texts that exist: JSONL with ``name`` and ``text``, with FActScore's ``topic`` and ``output``, or what
    `lacy-stream generate` has made of prompts as PROMPT.

    Raises:
        UsageError: a line is none of these, or there is none.
    """
    biographies = []
    with file_errors(path, "read"), open(path, encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            try:
                row = json.loads(line)
                if number == 1 and "model" in row and "text" not in row and "output" not in row:
                    continue  # the settings of a journal
                biographies.append(_read(row))
            except (ValueError, KeyError, TypeError, AttributeError):
                raise UsageError(
                    f"line {number} of {os.fspath(path)} has neither name and text, nor topic and output, nor a prompt "
                    f"{PROMPT!r} and text"
                ) from None
    if not biographies:
        raise UsageError(f"{os.fspath(path)} holds no biographies")
    return biographies[:limit]


def _read(row: dict[str, Any]) -> Biography:
    """KeyError, TypeError: the row is no biography."""
    if "prompt" in row:
        (name,) = re.findall(r"^Tell me a bio of (.+)\. \1 is$", row["prompt"])
        return _biography(name, row["text"], row.get("call_rate"), row.get("skipped", ""))
    name, text = (row["name"], row["text"]) if "name" in row else (row["topic"], row["output"])
    if not isinstance(name, str) or not isinstance(text, str):
        raise TypeError
    return Biography(name, text, row.get("call_rate"))


def _biography(name: str, text: str, call_rate: float | None, skipped: str) -> Biography:
    """The text begins with the end of its prompt, "NAME is", as in FActScore's protocol for base models."""
    return Biography(name, f"{name} is{text}", call_rate, skipped)


def write_biographies(
    label: str, path: str, names: Sequence[str], cascade: Cascade, journal: str | os.PathLike[str], device: str
) -> list[Biography]:
    """Let a model write about each name. Texts that the journal holds are not written again; the threshold of the calls
    goes on from them, so that the others are what an uninterrupted run would have written.

    Args:
        label: of the model; path: its checkpoint or folder.
        journal: file of the texts, token by token.
        device: torch device.

    Raises:
        JournalError: the journal was made by another model, in another way, or about other names.
        PartnerError: the partner cannot be used; what was written is kept.
        UsageError: the model cannot delegate so.
    """
    from lacy_stream.cascade.output import from_record, record

    kept = Journal(journal, {"model": file_fingerprint(path), "prompt": PROMPT, **cascade.settings()})
    done = [from_record(row) for row in kept.results]
    prompts = _prompts(names, cascade)
    if [one.prompt for one in done[: len(prompts)]] != [prompt.text for prompt in prompts[: len(done)]]:
        raise JournalError(
            f"{kept.path} was written about other names; remove it to start over, or choose another --out"
        )
    if len(done) < len(prompts):
        what = f"{label}: biographies written"
        with progress(what, len(prompts), len(done), together=cascade.decoding.batch_size) as advance:
            for generation in _generate(path, prompts, cascade, done, device):
                kept.add(record(generation))
                done.append(generation)
                advance(1)
    kept.close()
    return [_biography(name, g.text, g.call_rate, g.skipped) for name, g in zip(names, done, strict=False)]


def _prompts(names: Sequence[str], cascade: Cascade) -> list[Prompt]:
    from lacy_stream.cascade.articles import TEMPLATE, with_article
    from lacy_stream.cascade.generation import Prompt

    texts = {name: PROMPT.format(name=name) for name in names}
    if cascade.articles is None:
        return [Prompt(text) for text in texts.values()]
    articles = Knowledge(cascade.articles)
    template = TEMPLATE if cascade.template is None else read_text(cascade.template)
    return [with_article(text, name, articles, template) for name, text in texts.items()]


def _generate(
    path: str, prompts: Sequence[Prompt], cascade: Cascade, done: Sequence[Generation], device: str
) -> Iterator[Generation]:
    from lacy_stream.cascade import generate, open_partner
    from lacy_stream.train.checkpoint import load_model

    model = load_model(path)
    model.model.to(device)  # type: ignore[arg-type]
    partner = None
    if cascade.partner is not None:
        partner = open_partner(cascade.partner, repetition_penalty=cascade.decoding.repetition_penalty, device=device)
    return generate(
        model, prompts, partner=partner, delegation=cascade.delegation, decoding=cascade.decoding, done=list(done)
    )
