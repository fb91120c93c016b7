"""Names -> biographies, written by a model and its partner (section 5.2), or read from a file."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from lacy_stream.evaluate.journal import Journal
from lacy_stream.evaluate.models import fingerprint
from lacy_stream.evaluate.progress import progress

PROMPT = "Tell me a bio of {name}. {name} is"
"""For models that follow no instructions (appendix B); "NAME is" belongs to the text that is judged."""


@dataclass(frozen=True)
class Biography:
    """A text about a person, and the share of its tokens that came from a partner, 0 to 1 (None: unknown)."""

    name: str
    text: str
    call_rate: float | None = None


@dataclass(frozen=True)
class Cascade:
    """How a model writes: with which partner, who decides what is delegated, and how much.

    Args:
        partner, delegate, call_rate: as ``cascade.generate`` takes them; no partner, no calls.
        max_new_tokens: at most (256 in the paper).
    """

    partner: str | None = None
    delegate: str = "call"
    call_rate: float = 0.15
    max_new_tokens: int = 256


def read_names(path: str | os.PathLike[str], limit: int | None = None) -> list[str]:
    """The names of a file, one a line; blank lines are none.

    Raises:
        ValueError: it holds none.
    """
    lines = (line.strip() for line in Path(path).read_text(encoding="utf-8").splitlines())
    names = list(dict.fromkeys(line for line in lines if line))[:limit]
    if not names:
        raise ValueError(f"{os.fspath(path)} holds no names; it wants one a line")
    return names


def read_biographies(path: str | os.PathLike[str], limit: int | None = None) -> list[Biography]:
    """Texts that exist: JSONL with ``name`` and ``text``, or with FActScore's ``topic`` and ``output``.

    Raises:
        ValueError: a line is neither, or there is none.
    """
    biographies = []
    with open(path, encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            try:
                row = json.loads(line)
                name, text = row.get("name", row.get("topic")), row.get("text", row.get("output"))
            except (ValueError, AttributeError):
                name = text = None
            if not isinstance(name, str) or not isinstance(text, str):
                raise ValueError(f"line {number} of {os.fspath(path)} has neither name and text nor topic and output")
            biographies.append(Biography(name, text, row.get("call_rate")))
    if not biographies:
        raise ValueError(f"{os.fspath(path)} holds no biographies")
    return biographies[:limit]


def write_biographies(
    label: str, path: str, names: Sequence[str], cascade: Cascade, journal: str | os.PathLike[str], device: str
) -> list[Biography]:
    """Let a model write about each name. Those that the journal holds are not written again.

    Args:
        label: of the model; path: its checkpoint or folder.
        journal: file of the texts.
        device: torch device.

    Raises:
        JournalError: the journal was made by another model or in another way.
    """
    kept = Journal(journal, {"model": fingerprint(path), "prompt": PROMPT, **asdict(cascade)})
    done = {row["name"]: Biography(**row) for row in kept.results}
    missing = [name for name in names if name not in done]
    if missing:
        with progress(f"{label}: biographies written", len(names), len(names) - len(missing)) as advance:
            for biography in _generate(path, missing, cascade, device):
                kept.add(asdict(biography))
                done[biography.name] = biography
                advance(1)
    kept.close()
    return [done[name] for name in names]


def _generate(path: str, names: Sequence[str], cascade: Cascade, device: str) -> Iterator[Biography]:
    from lacy_stream.cascade import generate, open_partner
    from lacy_stream.checkpoint import load_model

    model = load_model(path)
    model.model.to(device)  # type: ignore[arg-type]
    generations = generate(
        model,
        [PROMPT.format(name=name) for name in names],
        partner=None if cascade.partner is None else open_partner(cascade.partner),
        delegate=cascade.delegate,
        call_rate=cascade.call_rate,
        max_new_tokens=cascade.max_new_tokens,
    )
    for name, generation in zip(names, generations, strict=True):
        yield Biography(name, f"{name} is{generation.text}", generation.call_rate)
