"""The command `lacy-stream generate`: texts on the terminal, in a JSONL file for resuming, and on an HTML page."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from rich.console import Console
from rich.text import Text

from annotator.terminal import printable
from lacy_stream.cascade.articles import TEMPLATE, Articles
from lacy_stream.cascade.generation import OnToken, generate
from lacy_stream.cascade.identity import IF_KNOWN
from lacy_stream.cascade.open import open_partner
from lacy_stream.cascade.output import (
    PARTNER_STYLE,
    as_prompt,
    from_record,
    read_prompts,
    record,
    style_token,
    write_page,
)
from lacy_stream.cascade.settings import GenerateOptions
from lacy_stream.cascade.texts import Generation, Prompt, Token
from lacy_stream.compute import choose_device
from lacy_stream.files import read_text
from lacy_stream.journal import Journal, JournalError
from lacy_stream.progress import progress
from lacy_stream.train.checkpoint import load_model


def run(options: GenerateOptions) -> int:
    """Generate texts, show them and write them.

    Returns:
        The number of skipped prompts.

    Raises:
        LacyStreamError: the options, the prompts, the model or the partner cannot be used.
    """
    prompts, console = _prompts(options), Console(highlight=False)
    if options.out is None:
        finished = _finished(options, prompts, console, None)
    else:
        with Journal(options.out, options.settings(), if_known=IF_KNOWN) as journal:
            finished = _finished(options, prompts, console, journal)
    if options.html is not None:
        write_page(finished, options.html)
    _summarise(console, prompts, finished, options)
    return sum(bool(generation.skipped) for generation in finished)


def _finished(
    options: GenerateOptions, prompts: Sequence[Prompt], console: Console, journal: Journal | None
) -> list[Generation]:
    """The texts of all prompts: those of the journal, and new ones, which it keeps."""
    finished = [] if journal is None else [from_record(value) for value in journal.results]
    _check_same(prompts, finished, options.out)
    if len(finished) < len(prompts):
        with _display(console, prompts, len(finished), options) as (on_token, on_text):
            for generation in _generations(options, prompts, list(finished), on_token):
                if journal is not None:
                    journal.add(record(generation))
                finished.append(generation)
                on_text(generation)
    return finished


def _prompts(options: GenerateOptions) -> list[Prompt]:
    articles: Articles | None = None
    template = TEMPLATE if options.template is None else read_text(options.template)
    if options.knowledge is not None:
        from lacy_stream.prepare.knowledge import Knowledge

        articles = Knowledge(options.knowledge)
    if options.prompts is not None:
        return read_prompts(options.prompts, articles, template)
    return [as_prompt(text, options.title, articles, template) for text in options.prompt]


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
    options: GenerateOptions, prompts: Sequence[Prompt], done: Sequence[Generation], on_token: OnToken | None
) -> Iterator[Generation]:
    device = options.compute.set_up()
    model = load_model(options.model)
    model.model.to(device)  # type: ignore[arg-type]
    partner = None
    if options.partner is not None:
        partner = open_partner(
            options.partner,
            repetition_penalty=options.decoding.repetition_penalty,
            device=choose_device(options.partner_device or device),
            tokenizer=options.partner_tokenizer,
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
def _display(console: Console, prompts: Sequence[Prompt], done: int, options: GenerateOptions):
    """Yield two callbacks: ``on_token`` (or None), for each token, and ``on_text``, for each finished text.

    For a file of prompts they move a progress bar. Otherwise they print the texts: token by token if texts are written
    one at a time, and else when they are finished.
    """
    if options.prompts is not None:
        with progress("texts", len(prompts), done, together=options.decoding.batch_size) as advance:
            yield None, lambda generation: advance(1)
        return
    started: set[int] = set()

    def on_token(number: int, token: Token) -> None:
        if number not in started:
            started.add(number)
            console.print(Text(printable(prompts[number].text), style="dim"), end="", soft_wrap=True)
        console.print(style_token(token, console.is_terminal), end="", soft_wrap=True)
        sys.stdout.flush()

    # Texts are finished in the order of their prompts.
    numbers = itertools.count(done)

    def on_text(generation: Generation) -> None:
        number = next(numbers)
        if options.decoding.batch_size > 1:
            for token in generation.tokens:
                on_token(number, token)
        console.print("\n" if generation.tokens else "")

    yield on_token if options.decoding.batch_size == 1 else None, on_text


def _summarise(
    console: Console, prompts: Sequence[Prompt], generations: Sequence[Generation], options: GenerateOptions
) -> None:
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
    if missing := list(dict.fromkeys(prompt.missing for prompt in prompts if prompt.missing)):
        shown = ", ".join(missing[:5]) + (f" and {len(missing) - 5} more" if len(missing) > 5 else "")
        said = f"{len(missing):,} titles have no article, so the partner read none for them: {printable(shown)}"
        console.print(said, style="yellow", markup=False)
    for number, generation in enumerate(generations, start=1):
        if generation.skipped:
            console.print(f"skipped: prompt {number}: {printable(generation.skipped)}", style="yellow", markup=False)
    for name, path in (("texts", options.out), ("page", options.html)):
        if path is not None:
            console.print(f"{name}: {path}", markup=False)
