"""Prompts -> texts that a small model writes, with a larger one stepping in where it calls (section 5, appendix A.5).

for each token:  ids --BatchDecoder--> logits --Score--> score >= Threshold?  no: the small model's best token
                                                                             yes: text --Partner--> its best token
                                                                                  --bridge--> one or more tokens

Texts of a batch grow in step, and at each step decide in their order: their threshold is one.
"""

from __future__ import annotations

import codecs
import itertools
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from annotator import Annotator
from lacy_stream.cascade.bridge import first_expressible
from lacy_stream.cascade.decoder import BatchDecoder, penalised, takes_batches
from lacy_stream.cascade.delegation import Score, open_score
from lacy_stream.cascade.partner import Partner, PromptError, Session
from lacy_stream.cascade.settings import Decoding, Delegation
from lacy_stream.cascade.thresholds import THRESHOLDS, Threshold
from lacy_stream.cascade.vocabulary import Vocabulary, open_vocabulary
from lacy_stream.errors import UsageError
from lacy_stream.train.checkpoint import CallingModel

MODEL, PARTNER = "model", "partner"


class Token(NamedTuple):
    """One token of a generated text.

    text: what it adds; empty for a part of a character, which its last part completes.
    writer: MODEL or PARTNER.
    score: what the threshold was compared with (the score of <CALL>, by default); None where there was no decision:
        after the first token of a call, inside a character, or without calls.
    threshold: at that moment.
    """

    text: str
    writer: str
    score: float | None = None
    threshold: float | None = None


@dataclass(frozen=True)
class Generation:
    """What became of one prompt.

    text: behind the prompt.
    tokens: of the text, in order.
    finish: "end" (of text), "length" (max_new_tokens), "context" (of one of the two models is full) or "skipped".
    skipped: why there is no text; empty where there is one.
    prompt_scores: what the threshold began with; of the first text of a run only.
    fallbacks: calls in which nothing that the partner proposed could be expressed, and the small model wrote.
    """

    prompt: str
    text: str
    tokens: list[Token]
    finish: str
    skipped: str = ""
    prompt_scores: list[float] = field(default_factory=list)
    fallbacks: int = 0

    @property
    def call_rate(self) -> float:
        """Share of the tokens that the partner wrote, 0 to 1."""
        return sum(token.writer == PARTNER for token in self.tokens) / max(len(self.tokens), 1)


class Prompt(NamedTuple):
    """A text to continue. preamble: what the partner reads before it, and the small model does not (an article)."""

    text: str
    preamble: str = ""


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
    """Continue prompts, greedily.

    The threshold goes on from text to text, and begins with the scores at the positions of the first prompt. What was
    ``done`` before is counted in, so that a run that goes on writes what an uninterrupted one would have.

    Args:
        model: of ``load_model``.
        prompts: to continue, in order; those that are done are the first of them.
        partner: who answers calls; None for no calls.
        delegation: what is delegated. decoding: how the texts are written.
        annotator: for i-LaCy; None makes one.
        reuse: False reads the whole text again for each token, for comparison.
        done: what this run has made of earlier prompts, in order.
        on_token: see there.

    Yields:
        One ``Generation`` for each prompt that is not done, in order. A prompt that is empty or too long is one without
        text.

    Raises:
        UsageError: the model cannot delegate so, or does not take batches.
        PartnerError: the partner does not answer.
    """
    if decoding.batch_size > 1 and not takes_batches(model.model):
        raise UsageError(f"batch_size is {decoding.batch_size}: {model.name} takes no positions, so give 1")
    vocabulary = open_vocabulary(model.tokenizer)
    calls = None
    if partner is not None and delegation.call_rate > 0:
        score = open_score(delegation, model, vocabulary, annotator)
        threshold = THRESHOLDS[delegation.estimator](delegation.call_rate)
        calls = _Calls(partner, partner.speaks(vocabulary), score, threshold)
    cascade = _Cascade(model, vocabulary, calls, decoding.max_new_tokens, decoding.repetition_penalty, reuse)
    return _generations(cascade, prompts, decoding.batch_size, list(done), on_token)


def _generations(
    cascade: _Cascade,
    prompts: Iterable[str | Prompt],
    batch_size: int,
    done: list[Generation],
    on_token: OnToken | None,
) -> Iterator[Generation]:
    """A batch of which only a part is done is written once more."""
    every = [Prompt(prompt) if isinstance(prompt, str) else prompt for prompt in prompts]
    for first in range(0, len(every), batch_size):
        batch, written = every[first : first + batch_size], done[first : first + batch_size]
        if len(written) == len(batch):
            cascade.count_in(written)
        else:
            yield from cascade.write(batch, first, on_token)[len(written) :]


@dataclass
class _Calls:
    """How a run delegates. warm: the threshold has been given scores to begin with."""

    partner: Partner
    same_vocabulary: bool
    score: Score
    threshold: Threshold
    warm: bool = False

    def begin(self, score: Score, logits_TV: Tensor) -> list[float]:
        """The scores of a prompt, if the threshold begins with them."""
        if self.warm:
            return []
        scores = score.of_prompt(logits_TV)
        self.threshold.warm_up(scores)
        self.warm = True
        return scores


class _Step(NamedTuple):
    """What one decision brought: ids, and as in ``Token``. fallback: the partner had nothing that can be expressed."""

    ids: list[int]
    writer: str
    score: float | None = None
    threshold: float | None = None
    fallback: bool = False


@dataclass
class _Cascade:
    """What all texts of a run share."""

    model: CallingModel
    vocabulary: Vocabulary
    calls: _Calls | None
    max_new_tokens: int
    repetition_penalty: float
    reuse: bool

    def count_in(self, batch: Sequence[Generation]) -> None:
        """Bring the threshold to where the texts of a batch have left it."""
        if self.calls is None:
            return
        for generation in batch:
            if generation.prompt_scores and not self.calls.warm:
                self.calls.threshold.warm_up(generation.prompt_scores)
                self.calls.warm = True
        for step in itertools.zip_longest(*(_decisions(generation.tokens) for generation in batch)):
            for decision in filter(None, step):
                self.calls.threshold.update(*decision)

    def write(self, batch: Sequence[Prompt], first: int, on_token: OnToken | None) -> list[Generation]:
        """Continue the prompts of a batch, the first of which has that number in the run."""
        texts = {number: self._writing(prompt, number, on_token) for number, prompt in enumerate(batch, start=first)}
        generations: dict[int, Generation] = {}
        rows: dict[int, list[int]] = {}

        def go_on(number: int, logits_TV: Tensor | None) -> None:
            try:
                rows[number] = texts[number].send(logits_TV)  # type: ignore[arg-type]  # None starts a generator
            except StopIteration as end:
                generations[number] = end.value
                rows.pop(number, None)

        for number in texts:
            go_on(number, None)
        decoder = BatchDecoder(self.model.model, rows, reuse=self.reuse)
        while rows:
            for number, logits_TV in decoder.logits(rows).items():
                go_on(number, logits_TV)
        return [generations[number] for number in texts]

    def _writing(
        self, prompt: Prompt, number: int, on_token: OnToken | None
    ) -> Generator[list[int], Tensor, Generation]:
        """Continue one prompt: yields the row that the small model is to read, and is sent the logits of what is new
        in it."""
        try:
            text = _Text(self, prompt)
        except PromptError as error:
            return Generation(prompt.text, "", [], "skipped", str(error))
        tell = None if on_token is None else lambda token: on_token(number, token)
        score, session, prompt_scores, fallbacks, finish = None, None, [], 0, ""
        while not finish:
            logits_TV = yield text.row
            if self.calls is not None and (score is None or session is None):
                score, session = self.calls.score.of_text(number), self.calls.partner.session(prompt.preamble)
                prompt_scores = self.calls.begin(score, logits_TV)
            try:
                step = self._step(text, logits_TV[-1], score, session)
            except PromptError as error:  # the partner's context is full
                if text.is_new:
                    return Generation(prompt.text, "", [], "skipped", str(error), prompt_scores)
                finish = "context"
                break
            fallbacks += step.fallback
            finish = text.append(step, tell)
            if self.calls is not None and finish != "end":
                called = len(step.ids) if step.writer == PARTNER else 0
                self.calls.threshold.update(step.score, len(step.ids), called)
        return Generation(prompt.text, *text.written(), finish, "", prompt_scores, fallbacks)

    def _step(self, text: _Text, logits_V: Tensor, score_of: Score | None, session: Session | None) -> _Step:
        """One decision."""
        best = self._best(text, logits_V)
        if self.calls is None or score_of is None or session is None or text.inside_character:
            return _Step([best], MODEL)  # which finishes characters, too
        score, threshold = score_of(logits_V, best, text.text), self.calls.threshold.value()
        if score < threshold:
            return _Step([best], MODEL, score, threshold)
        ids = self._ask(text, session, self.calls.same_vocabulary)
        return _Step(ids or [best], PARTNER if ids else MODEL, score, threshold, fallback=not ids)

    def _best(self, text: _Text, logits_V: Tensor) -> int:
        """The small model's own token: greedy, never <CALL>."""
        scores_V = penalised(logits_V, text.row, self.repetition_penalty)
        if self.model.call_token_id is not None:
            scores_V = scores_V.clone()
            scores_V[self.model.call_token_id :] = -torch.inf  # with the rows that pad the vocabulary
        return int(scores_V.argmax())

    def _ask(self, text: _Text, session: Session, same_vocabulary: bool) -> list[int] | None:
        """The partner's token in the small model's tokens; None where nothing that it proposes can be expressed."""
        if not same_vocabulary:
            found = first_expressible(session.propose(text.text), text.text, self.vocabulary)
            return None if found is None else found[1]
        for proposal in session.propose(text.text, text.row[1:]):
            # With the same vocabulary the end of text can be expressed, too.
            if proposal.token is not None and (proposal.spelling is not None or proposal.token == self.model.eos_id):
                return [proposal.token]
        return None


class _Text:
    """One text as it grows.

    row: what the small model reads; the end of text stands before the first token, as in training.
    text: prompt and all that was written behind it; U+FFFD for bytes that are no character.

    Raises:
        PromptError: the prompt is empty, no text, or too long.
    """

    def __init__(self, cascade: _Cascade, prompt: Prompt) -> None:
        self._vocabulary, self._model, self._most = cascade.vocabulary, cascade.model, cascade.max_new_tokens
        if not prompt.text.strip():
            raise PromptError("the prompt is empty")
        try:
            prompt.text.encode()
        except UnicodeEncodeError as error:
            raise PromptError(f"the prompt holds a lone surrogate at code point {error.start}") from None
        ids = self._vocabulary.encode(prompt.text)
        if len(ids) + 1 >= self._model.max_seq_len:
            raise PromptError(
                f"the prompt has {len(ids)} tokens, and {self._model.name} a context of {self._model.max_seq_len}"
            )
        self.row, self.text = [self._model.eos_id, *ids], prompt.text
        self._tokens: list[Token] = []
        self._bytes = codecs.getincrementaldecoder("utf-8")("replace")

    @property
    def is_new(self) -> bool:
        return not self._tokens

    @property
    def inside_character(self) -> bool:
        return self._bytes.getstate()[0] != b""

    def append(self, step: _Step, tell: Callable[[Token], None] | None) -> str:
        """Add what a decision brought; returns why the text ends here, or nothing."""
        about = step.score, step.threshold
        for id in step.ids:
            if id == self._model.eos_id:
                return "end"
            self.row.append(id)
            token = Token(self._bytes.decode(self._vocabulary.spellings[id] or b""), step.writer, *about)
            about = None, None
            self.text += token.text
            self._tokens.append(token)
            if tell is not None:
                tell(token)
        if len(self._tokens) >= self._most:
            return "length"
        return "context" if len(self.row) >= self._model.max_seq_len else ""

    def written(self) -> tuple[str, list[Token]]:
        """The text behind the prompt, and its tokens."""
        if self._tokens and (rest := self._bytes.decode(b"", final=True)):
            self._tokens[-1] = self._tokens[-1]._replace(text=self._tokens[-1].text + rest)
        return "".join(token.text for token in self._tokens), self._tokens


def _decisions(tokens: Iterable[Token]) -> Iterator[tuple[float | None, int, int]]:
    """(score, tokens, called) of each decision: what the partner wrote without a score belongs to the call before."""
    steps: list[list[Token]] = []
    for token in tokens:
        if token.writer == PARTNER and token.score is None and steps:
            steps[-1].append(token)
        else:
            steps.append([token])
    for step in steps:
        yield step[0].score, len(step), len(step) if step[0].writer == PARTNER else 0
