"""Prompts -> texts by a small model, which calls a larger partner for some tokens (section 5, appendix A.5)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

from annotator import Annotator
from lacy_stream.cascade.engine import Engine
from lacy_stream.cascade.partner import Partner, PromptError
from lacy_stream.cascade.settings import Decoding, Delegation
from lacy_stream.cascade.texts import Generation, Prompt, TextSettings, Token
from lacy_stream.train.checkpoint import CallingModel

OnToken = Callable[[int, Token], None]
"""Called with the number of the prompt and each token as it is written."""


def generate(
    model: CallingModel,
    prompts: Iterable[str | Prompt],
    *,
    partner: Partner | None = None,
    delegation: Delegation = Delegation(),
    decoding: Decoding = Decoding(),
    annotator: Annotator | None = None,
    reuse: bool = True,
    done: Iterable[Generation] = (),
    on_token: OnToken | None = None,
) -> Iterator[Generation]:
    """Continue prompts with greedy decoding.

    If all texts share a threshold, it is carried over from text to text, and begins with the scores at the positions of
    the first prompt. The texts that are ``done`` are counted in, so that a resumed run writes what an uninterrupted run
    would have. For that, a batch is finished before the next one begins. If each text has a threshold of its own, the
    next text begins when one is finished.

    Args:
        model: a model from ``load_model``.
        prompts: the prompts to continue, in order. The first of them are those that are done.
        partner: answers calls; None for no calls.
        delegation: what is delegated.
        decoding: how the texts are written.
        annotator: finds facts for i-LaCy; None makes one.
        reuse: False reads the whole text again for each token, for comparison.
        done: the texts that this run has written for earlier prompts, in order.
        on_token: called with each token as it is written.

    Yields:
        One ``Generation`` for each prompt that is not done, in order. An empty or too long prompt is skipped: its
        ``Generation`` has no text.

    Raises:
        UsageError: the model cannot delegate in this way.
        PartnerError: the partner does not answer.
    """
    engine = Engine(
        model,
        delegation,
        partner,
        calls=partner is not None,
        penalty=decoding.repetition_penalty,
        many=decoding.batch_size > 1,
        annotator=annotator,
        reuse=reuse,
    )
    every = [Prompt(prompt) if isinstance(prompt, str) else prompt for prompt in prompts]
    settings = TextSettings(decoding.max_new_tokens)
    if engine.policy is not None and delegation.threshold_per == "run":
        return _batches(engine, every, settings, decoding.batch_size, list(done), on_token)
    return _write(engine, every, len(list(done)), settings, decoding.batch_size, on_token)


def _batches(
    engine: Engine,
    prompts: Sequence[Prompt],
    settings: TextSettings,
    size: int,
    done: list[Generation],
    on_token: OnToken | None,
) -> Iterator[Generation]:
    """Write the batches that are not done. If only a part of a batch is done, the whole batch is written again, and the
    rest of it is yielded."""
    assert engine.policy is not None, "texts without calls share no threshold"
    for first in range(0, len(prompts), size):
        written = done[first : first + size]
        if len(written) == len(prompts[first : first + size]):
            engine.policy.count_in(written)
        else:
            batch = list(_write(engine, prompts[: first + size], first, settings, size, on_token))
            yield from batch[len(written) :]


def _write(
    engine: Engine, prompts: Sequence[Prompt], first: int, settings: TextSettings, size: int, on_token: OnToken | None
) -> Iterator[Generation]:
    """Continue the prompts from the number ``first`` on, a number of them at a time. Yields the texts in order."""
    finished: dict[int, Generation] = {}
    following = iter(range(first, len(prompts)))
    for number in range(first, len(prompts)):
        while number not in finished:
            while len(engine.texts) < size and (entrant := next(following, None)) is not None:
                try:
                    engine.add(entrant, prompts[entrant], settings)
                except PromptError as error:
                    finished[entrant] = Generation(prompts[entrant].text, "", [], "skipped", str(error))
            for progress in engine.step():
                for token in progress.tokens if on_token is not None else ():
                    on_token(progress.number, token)  # type: ignore[misc]
                if progress.generation is not None:
                    finished[progress.number] = progress.generation
        yield finished.pop(number)
