"""Biographies by a model and its partner (section 5.2), or from a file."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lacy_stream.cascade.biography_prompt import PROMPT, name_in, prompt_for
from lacy_stream.cascade.identity import IF_KNOWN, model_settings, partner_settings
from lacy_stream.cascade.settings import MANY_TEXTS, Decoding, Delegation, flat_settings
from lacy_stream.compute import choose_device
from lacy_stream.errors import UsageError
from lacy_stream.files import file_errors, file_fingerprint, read_text
from lacy_stream.journal import Journal, JournalError
from lacy_stream.prepare.knowledge import Knowledge
from lacy_stream.progress import progress

if TYPE_CHECKING:
    from lacy_stream.cascade import Generation, Prompt


@dataclass(frozen=True)
class Biography:
    """A text about a person."""

    name: str
    text: str
    call_rate: float | None = None
    """Share of its tokens that the partner wrote, 0 to 1; None if unknown."""
    skipped: str = ""
    """Why there is no text; "" if there is one."""


@dataclass(frozen=True)
class CascadeSettings:
    """The settings of a cascade that writes biographies."""

    partner: str | None = None
    """Name of the partner, see ``open_partner``; None for no calls."""
    delegation: Delegation = Delegation()
    """The tokens that the model delegates."""
    decoding: Decoding = Decoding(batch_size=MANY_TEXTS)
    """The way in which the texts are written."""
    articles: str | None = None
    """Store from which the partner reads the person's article first (RAG, appendix A.5); None for no articles."""
    template: str | None = None
    """File with the text around the article; None for that of the paper, for Qwen 3."""
    partner_tokenizer: str | None = None
    """Tokenizer of a partner at an endpoint, see ``open_partner``."""
    partner_device: str | None = None
    """Torch device of a partner that is loaded here; None for that of the small model."""

    def record(self) -> dict[str, Any]:
        """All fields as JSON values."""
        files = {"partner": self.partner, "articles": self.articles, "template": self.template}
        return files | flat_settings(self.delegation, self.decoding)

    def settings(self) -> dict[str, Any]:
        """All settings on which the texts depend, as JSON values. Files are given by their fingerprints."""
        files = {"articles": self.articles, "template": self.template}
        prints = {name: file and file_fingerprint(file) for name, file in files.items()}
        return self.record() | prints | partner_settings(self.partner, self.partner_tokenizer)


def read_names(path: str | os.PathLike[str], limit: int | None = None) -> list[str]:
    """Read the names of a file, one a line. Blank lines and repetitions are left out.

    Args:
        limit: maximum number of names; None for all.

    Raises:
        UsageError: the file holds no names.
    """
    lines = (line.strip() for line in read_text(path).splitlines())
    names = list(dict.fromkeys(line for line in lines if line))[:limit]
    if not names:
        raise UsageError(f"{os.fspath(path)} holds no names; write one a line")
    return names


def read_biographies(path: str | os.PathLike[str], limit: int | None = None) -> list[Biography]:
    """Read biographies from a JSONL file. Its lines have ``name`` and ``text`` or FActScore's ``topic`` and ``output``,
    or come from `lacy-stream generate` for prompts like PROMPT.

    Args:
        limit: maximum number of biographies; None for all.

    Raises:
        UsageError: the file has no biographies, or a line of another form.
    """
    biographies = []
    with file_errors(path, "read"), open(path, encoding="utf-8-sig") as file:
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
    """Read one row. Raises KeyError, TypeError or ValueError if it is not a biography."""
    if "prompt" in row:
        if (name := name_in(row["prompt"])) is None or row["prompt"] != prompt_for(name):
            raise ValueError
        return _biography(name, row["text"], row.get("call_rate"), row.get("skipped", ""))
    name, text = (row["name"], row["text"]) if "name" in row else (row["topic"], row["output"])
    if not isinstance(name, str) or not isinstance(text, str):
        raise TypeError
    return Biography(name, text, row.get("call_rate"))


def _biography(name: str, text: str, call_rate: float | None, skipped: str) -> Biography:
    """Put the end of the prompt, "NAME is", before the text, as in FActScore's protocol for base models."""
    return Biography(name, f"{name} is{text}", call_rate, skipped)


def write_biographies(
    label: str, path: str, names: Sequence[str], cascade: CascadeSettings, journal: str | os.PathLike[str], device: str
) -> list[Biography]:
    """Let a model write about each name. Texts in the journal are not written again. They count for the threshold of
    the calls, so the other texts are those of an uninterrupted run.

    Args:
        label: name of the model in messages.
        path: its checkpoint or folder.
        names: the names.
        cascade: how the model writes.
        journal: file of the texts, token by token.
        device: torch device.

    Raises:
        JournalError: the journal was written with another model, other settings or other names.
        PartnerError: the partner cannot be used; what was written is kept.
        UsageError: the model cannot delegate in this way.
    """
    from lacy_stream.cascade.output import from_record, record

    settings = {**model_settings(path), "prompt": PROMPT, **cascade.settings()}
    with Journal(journal, settings, if_known=IF_KNOWN) as kept:
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
    return [_biography(name, g.text, g.call_rate, g.skipped) for name, g in zip(names, done, strict=False)]


def _prompts(names: Sequence[str], cascade: CascadeSettings) -> list[Prompt]:
    from lacy_stream.cascade.articles import TEMPLATE, with_article
    from lacy_stream.cascade.texts import Prompt

    texts = {name: prompt_for(name) for name in names}
    if cascade.articles is None:
        return [Prompt(text) for text in texts.values()]
    articles = Knowledge(cascade.articles)
    template = TEMPLATE if cascade.template is None else read_text(cascade.template)
    return [with_article(text, name, articles, template) for name, text in texts.items()]


def _generate(
    path: str, prompts: Sequence[Prompt], cascade: CascadeSettings, done: Sequence[Generation], device: str
) -> Iterator[Generation]:
    from lacy_stream.cascade import generate, open_partner
    from lacy_stream.train.checkpoint import load_model

    model = load_model(path)
    model.model.to(device)  # type: ignore[arg-type]
    partner = None
    if cascade.partner is not None:
        partner = open_partner(
            cascade.partner,
            repetition_penalty=cascade.decoding.repetition_penalty,
            device=choose_device(cascade.partner_device or device),
            tokenizer=cascade.partner_tokenizer,
        )
    return generate(
        model, prompts, partner=partner, delegation=cascade.delegation, decoding=cascade.decoding, done=list(done)
    )
