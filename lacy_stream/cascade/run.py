"""The command `lacy-stream generate`: texts on the terminal, in a JSONL file for resuming, and on an HTML page."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from rich.console import Console
from rich.text import Text

from annotator.terminal import printable
from lacy_stream.cascade.articles import TEMPLATE, Articles
from lacy_stream.cascade.generation import Generation, OnToken, Prompt, Token, generate
from lacy_stream.cascade.open import open_partner
from lacy_stream.cascade.output import PARTNER_STYLE, as_prompt, from_record, read_prompts, record, styled, write_page
from lacy_stream.cascade.settings import Decoding, Delegation, flat_settings
from lacy_stream.files import file_fingerprint, read_text
from lacy_stream.journal import Journal, JournalError
from lacy_stream.progress import progress
from lacy_stream.train.checkpoint import load_model


@dataclass(frozen=True)
class Options:
    """The options of the command; see its help and ``generate``.

    Texts are shown as they grow if they are written one at a time, and otherwise when they are finished.
    """

    model: str
    """Checkpoint or exported folder."""
    prompts: Sequence[str] = ()
    """Texts to continue."""
    prompts_file: str | None = None
    """File of prompts, instead of ``prompts``."""
    partner: str | None = None
    """Name of the partner, see ``open_partner``; None for no calls."""
    delegation: Delegation = Delegation()
    decoding: Decoding = Decoding()
    knowledge: str | None = None
    """Store of the articles that the partner reads first."""
    title: str | None = None
    """Title of the article for ``prompts``; None to take it from the prompt."""
    template: str | None = None
    """File with the text around an article."""
    out: str | None = None
    """File for the texts, from which the command can be resumed."""
    html: str | None = None
    """File for the page."""
    device: str = "cpu"
    """Torch device."""

    def settings(self) -> dict[str, object]:
        """Everything that the texts depend on, except the prompts, as JSON values."""
        files = {"knowledge": self.knowledge, "template": self.template}
        prints = {name: file and file_fingerprint(file) for name, file in files.items()}
        texts = {"model": file_fingerprint(self.model), "partner": self.partner, "title": self.title}
        return texts | flat_settings(self.delegation, self.decoding) | prints


def run(options: Options) -> int:
    """Generate texts, show them and write them.

    Returns:
        The number of skipped prompts.

    Raises:
        LacyStreamError: the options, the prompts, the model or the partner cannot be used.
    """
    prompts = _prompts(options)
    journal = None if options.out is None else Journal(options.out, options.settings())
    done = [] if journal is None else [from_record(value) for value in journal.results]
    _check_same(prompts, done, options.out)
    console = Console(highlight=False)
    finished = list(done)
    if len(done) < len(prompts):
        with _display(console, prompts, len(done), options) as (on_token, on_text):
            for generation in _generations(options, prompts, done, on_token):
                if journal is not None:
                    journal.add(record(generation))
                finished.append(generation)
                on_text(generation)
    if journal is not None:
        journal.close()
    if options.html is not None:
        write_page(finished, options.html)
    _summarise(console, finished, options)
    return sum(bool(generation.skipped) for generation in finished)


def _prompts(options: Options) -> list[Prompt]:
    articles: Articles | None = None
    template = TEMPLATE if options.template is None else read_text(options.template)
    if options.knowledge is not None:
        from lacy_stream.prepare.knowledge import Knowledge

        articles = Knowledge(options.knowledge)
    if options.prompts_file is not None:
        return read_prompts(options.prompts_file, articles, template)
    return [as_prompt(text, options.title, articles, template) for text in options.prompts]


def _check_same(prompts: Sequence[Prompt], done: Sequence[Generation], out: str | None) -> None:
    for number, (prompt, generation) in enumerate(zip(prompts, done, strict=False), start=1):
        if prompt.text != generation.prompt:
            raise JournalError(
                f"{out}: text {number} has the prompt {generation.prompt[:60]!r}, which is now {prompt.text[:60]!r}; "
                "choose another --out"
            )
    if len(done) > len(prompts):
        raise JournalError(f"{out} holds {len(done)} texts for {len(prompts)} prompts; choose another --out")


def _generations(
    options: Options, prompts: Sequence[Prompt], done: Sequence[Generation], on_token: OnToken | None
) -> Iterator[Generation]:
    model = load_model(options.model)
    model.model.to(options.device)  # type: ignore[arg-type]
    partner = None
    if options.partner is not None:
        partner = open_partner(
            options.partner, repetition_penalty=options.decoding.repetition_penalty, device=options.device
        )
    return generate(
        model,
        prompts,
        partner=partner,
        delegation=options.delegation,
        decoding=options.decoding,
        done=done,
        on_token=on_token,
    )


@contextmanager
def _display(console: Console, prompts: Sequence[Prompt], done: int, options: Options):
    """Yield two callbacks: ``on_token`` (or None), for each token, and ``on_text``, for each finished text.

    For a file of prompts they move a progress bar. Otherwise they print the texts: token by token if texts are written
    one at a time, and else when they are finished.
    """
    if options.prompts_file is not None:
        with progress("texts", len(prompts), done, together=options.decoding.batch_size) as advance:
            yield None, lambda generation: advance(1)
        return
    started: set[int] = set()

    def on_token(number: int, token: Token) -> None:
        if number not in started:
            started.add(number)
            console.print(Text(printable(prompts[number].text), style="dim"), end="", soft_wrap=True)
        console.print(styled(token, console.is_terminal), end="", soft_wrap=True)
        sys.stdout.flush()

    numbers = itertools.count(done)

    def on_text(generation: Generation) -> None:
        number = next(numbers)
        if options.decoding.batch_size > 1:
            for token in generation.tokens:
                on_token(number, token)
        console.print("\n" if generation.tokens else "")

    yield on_token if options.decoding.batch_size == 1 else None, on_text


def _summarise(console: Console, generations: Sequence[Generation], options: Options) -> None:
    """Print the numbers of texts and calls, and what went wrong."""
    written = [generation for generation in generations if not generation.skipped]
    tokens = sum(len(generation.tokens) for generation in written)
    rate = sum(generation.call_rate * len(generation.tokens) for generation in written) / max(tokens, 1)
    line = f"{len(written):,} texts, {tokens:,} tokens"
    if options.partner is not None:
        legend = f"[{PARTNER_STYLE}]the partner's[/]" if console.is_terminal else "⟦the partner's⟧"
        line += f"; {legend}: {rate:.1%} of them (target {options.delegation.call_rate:.0%})"
    console.print(line)
    fallbacks = sum(generation.fallbacks for generation in written)
    if fallbacks:
        console.print(f"{fallbacks:,} calls gave no token that can be expressed; the small model wrote instead")
    for number, generation in enumerate(generations, start=1):
        if generation.skipped:
            console.print(f"skipped: prompt {number}: {printable(generation.skipped)}", style="yellow", markup=False)
    for name, path in (("texts", options.out), ("page", options.html)):
        if path is not None:
            console.print(f"{name}: {path}", markup=False)
