"""Prompts -> texts by a small model, which calls a larger partner for some tokens (section 5, appendix A.5).

for each token:  ids --BatchDecoder--> logits --Score--> score >= Threshold?  no: the small model's best token
                                                                             yes: text --Partner--> its best token
                                                                                  --bridge--> one or more tokens

The texts of a batch grow in step. At each step they decide in their order, because they share one threshold.
"""

from __future__ import annotations

import codecs
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from annotator import Annotator
from lacy_stream.cascade.bridge import first_expressible
from lacy_stream.cascade.decoder import BatchDecoder, apply_repetition_penalty, no_batches
from lacy_stream.cascade.delegation import Score, open_score
from lacy_stream.cascade.partner import Partner, PromptError, Session
from lacy_stream.cascade.settings import Decoding, Delegation
from lacy_stream.cascade.thresholds import THRESHOLDS, Threshold
from lacy_stream.cascade.vocabulary import Vocabulary, open_vocabulary
from lacy_stream.errors import UsageError
from lacy_stream.train.checkpoint import CallingModel

MODEL, PARTNER = "model", "partner"


class Token(NamedTuple):
    """One token of a generated text."""

    text: str
    """The text that the token adds. If a character is spelled in several tokens, its last token adds the character, and
    the others add nothing."""
    writer: str
    """MODEL or PARTNER."""
    score: float | None = None
    """The score that was compared with the threshold; by default, that of <CALL>. It is None where no decision was
    made: after the first token of a call, inside a character, and in a run without calls."""
    threshold: float | None = None
    """The threshold at that moment."""


@dataclass(frozen=True)
class Generation:
    """The text that was written for one prompt."""

    prompt: str
    text: str
    """The text after the prompt."""
    tokens: list[Token]
    """The tokens of the text, in order."""
    finish: str
    """Why the text ends: "end" (end-of-text token), "length" (max_new_tokens), "context" (the context of one of the two
    models is full) or "skipped"."""
    skipped: str = ""
    """Why there is no text; "" if there is one."""
    prompt_scores: list[float] = field(default_factory=list)
    """The scores that the threshold began with. Only the first text of a run has them."""
    fallbacks: int = 0
    """Number of calls in which nothing that the partner proposed could be expressed, so that the small model wrote."""

    @property
    def call_rate(self) -> float:
        """The share of the tokens that the partner wrote, 0 to 1."""
        return sum(token.writer == PARTNER for token in self.tokens) / max(len(self.tokens), 1)


class Prompt(NamedTuple):
    """A text to continue."""

    text: str
    preamble: str = ""
    """What the partner reads before the text, such as an article. The small model does not read it."""
    missing: str = ""
    """Title of the article that the preamble lacks, because there is none; "" if it lacks none."""


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

    The threshold is carried over from text to text. It begins with the scores at the positions of the first prompt.
    The texts that are ``done`` are counted in, so that a resumed run writes what an uninterrupted run would have.

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
        UsageError: the model cannot delegate in this way, or cannot write several texts at once.
        PartnerError: the partner does not answer.
    """
    if decoding.batch_size > 1 and (why := no_batches(model.model)):
        raise UsageError(f"batch_size is {decoding.batch_size}: {model.name} {why}, so give 1")
    vocabulary = open_vocabulary(model)
    calls = None
    if partner is not None and delegation.call_rate > 0:
        score = open_score(delegation, model, vocabulary, annotator)
        threshold = THRESHOLDS[delegation.estimator](delegation.call_rate)
        calls = _CallPolicy(partner, partner.speaks(vocabulary), score, threshold)
    cascade = _Cascade(model, vocabulary, calls, decoding.max_new_tokens, decoding.repetition_penalty, reuse)
    return _generations(cascade, prompts, decoding.batch_size, list(done), on_token)


def _generations(
    cascade: _Cascade,
    prompts: Iterable[str | Prompt],
    batch_size: int,
    done: list[Generation],
    on_token: OnToken | None,
) -> Iterator[Generation]:
    """Write the batches that are not done. If only a part of a batch is done, the whole batch is written again, and the
    rest of it is yielded."""
    every = [Prompt(prompt) if isinstance(prompt, str) else prompt for prompt in prompts]
    for first in range(0, len(every), batch_size):
        batch, written = every[first : first + batch_size], done[first : first + batch_size]
        if len(written) == len(batch):
            cascade.count_in(written)
        else:
            yield from cascade.write(batch, first, on_token)[len(written) :]


@dataclass
class _CallPolicy:
    """The way in which all texts of a run decide about calls."""

    partner: Partner
    same_vocabulary: bool
    """Whether the partner's tokens have the same ids as the small model's."""
    score: Score
    threshold: Threshold
    warm: bool = False
    """Whether the threshold has scores to begin with."""

    def warm_up(self, score: Score, logits_TV: Tensor) -> list[float]:
        """Give the scores at the positions of the run's first prompt to the threshold.

        Returns:
            These scores; none for later prompts.
        """
        if self.warm:
            return []
        scores = score.of_prompt(logits_TV)
        self.threshold.warm_up(scores)
        self.warm = True
        return scores


@dataclass
class _Cascade:
    """The model and the settings that all texts of a run share."""

    model: CallingModel
    vocabulary: Vocabulary
    calls: _CallPolicy | None
    max_new_tokens: int
    repetition_penalty: float
    reuse: bool

    def count_in(self, batch: Sequence[Generation]) -> None:
        """Bring the threshold to the state in which the texts of a finished batch have left it.

        A batch is written step by step, and at each step its texts decide in their order. So the decisions are replayed
        in that order: for texts with the decisions a b c and x y, it is a x b y c.
        """
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
        """Continue the prompts of a batch, whose first prompt has the number ``first`` in the run.

        In each pass the small model reads the new tokens of all unfinished texts, and each text takes one decision.
        """
        texts = {number: _Text(self, prompt, number, on_token) for number, prompt in enumerate(batch, start=first)}
        # The texts' own lists, which grow while the texts are written.
        rows = {number: text.row for number, text in texts.items() if text.wants()}
        decoder = BatchDecoder(self.model.model, rows, reuse=self.reuse)
        while rows:
            for number, logits_TV in decoder.logits(rows).items():
                texts[number].take(logits_TV)
            rows = {number: row for number, row in rows.items() if texts[number].wants()}
        return [text.generation() for text in texts.values()]


class _Decision(NamedTuple):
    """The outcome at one position: the ids of one token of the small model, or of one call."""

    ids: list[int]
    writer: str
    score: float | None = None
    """As in ``Token``."""
    threshold: float | None = None
    """As in ``Token``."""
    fallback: bool = False
    """Whether nothing that the partner proposed could be expressed."""


class _Text:
    """One text as it grows. While it ``wants`` logits, it must be given those that follow the new ids of ``row``."""

    def __init__(self, cascade: _Cascade, prompt: Prompt, number: int, on_token: OnToken | None) -> None:
        self._cascade, self._prompt, self._number, self._on_token = cascade, prompt, number, on_token
        self._calls, self._vocabulary, self._model = cascade.calls, cascade.vocabulary, cascade.model
        self._score: Score | None = None
        self._session: Session | None = None
        self._prompt_scores: list[float] = []
        self._tokens: list[Token] = []
        self._fallbacks = 0
        self._finish, self._skipped = "", ""
        self._bytes = codecs.getincrementaldecoder("utf-8")("replace")
        self._so_far = prompt.text
        """The prompt and all that was written after it, with U+FFFD for bytes that are not a character."""
        self.row: list[int] = []
        """What the small model reads: ``start_ids``, the prompt, and what was written after it."""
        try:
            self.row = _first_row(prompt.text, self._vocabulary, self._model)
        except PromptError as error:
            self._skip(error)

    def wants(self) -> bool:
        """Whether the text is unfinished."""
        return not self._finish

    def take(self, logits_TV: Tensor) -> None:
        """Write what follows.

        Args:
            logits_TV: float32 [T, V], the logits after each of the T ids at the end of ``row`` that the small model had
                not read before.

        Raises:
            PartnerError: the partner does not answer.
        """
        if self._calls is not None and self._session is None:
            # The first logits are those at the positions of the prompt.
            self._score = self._calls.score.of_text(self._number)
            self._session = self._calls.partner.session(self._prompt.preamble)
            self._prompt_scores = self._calls.warm_up(self._score, logits_TV)
        try:
            decision = self._decide(logits_TV[-1])
        except PromptError as error:  # the partner's context is full
            if self._tokens:
                self._finish = "context"
            else:
                self._skip(error)
            return
        self._fallbacks += decision.fallback
        self._finish = self._append(decision)
        if self._calls is not None and self._finish != "end":
            # The end of a text is no token of it, so a decision for it is not counted.
            called = len(decision.ids) if decision.writer == PARTNER else 0
            self._calls.threshold.update(decision.score, len(decision.ids), called)

    def generation(self) -> Generation:
        """The finished text."""
        if self._skipped:
            return Generation(self._prompt.text, "", [], "skipped", self._skipped, self._prompt_scores)
        if self._tokens and (rest := self._bytes.decode(b"", final=True)):  # the text ends inside a character
            self._tokens[-1] = self._tokens[-1]._replace(text=self._tokens[-1].text + rest)
        text = "".join(token.text for token in self._tokens)
        scores = self._prompt_scores
        return Generation(self._prompt.text, text, self._tokens, self._finish, "", scores, self._fallbacks)

    def _skip(self, error: PromptError) -> None:
        self._finish, self._skipped = "skipped", str(error)

    def _decide(self, logits_V: Tensor) -> _Decision:
        """Write the small model's own token, or call the partner.

        Raises:
            PartnerError, PromptError: see ``Session.propose``.
        """
        best = self._best(logits_V)
        inside_character = self._bytes.getstate()[0] != b""
        if self._calls is None or self._score is None or self._session is None or inside_character:
            return _Decision([best], MODEL)  # a character that the small model has begun, it also finishes
        score, threshold = self._score(logits_V, best, self._so_far), self._calls.threshold.value()
        if score < threshold:
            return _Decision([best], MODEL, score, threshold)
        ids = self._ask(self._session, self._calls.same_vocabulary)
        return _Decision(ids or [best], PARTNER if ids else MODEL, score, threshold, fallback=not ids)

    def _best(self, logits_V: Tensor) -> int:
        """The small model's own token: the most likely one after the repetition penalty, but never <CALL>."""
        scores_V = apply_repetition_penalty(logits_V, self.row, self._cascade.repetition_penalty)
        if self._model.call_token_id is not None:
            scores_V = scores_V.clone()
            scores_V[self._model.call_token_id :] = -torch.inf  # with the rows that pad the vocabulary
        return int(scores_V.argmax())

    def _ask(self, session: Session, same_vocabulary: bool) -> list[int] | None:
        """The partner's next token as tokens of the small model; None if nothing that it proposes can be expressed."""
        if not same_vocabulary:
            found = first_expressible(session.propose(self._so_far), self._so_far, self._vocabulary)
            return None if found is None else found[1]
        for candidate in session.propose(self._so_far, self.row[len(self._model.start_ids) :]):
            # With the same vocabulary the end of text can be expressed, too.
            token, is_end = candidate.token, candidate.token in self._model.end_ids
            if token is not None and (candidate.spelling is not None or is_end):
                return [token]
        return None

    def _append(self, decision: _Decision) -> str:
        """Add the tokens of a decision; returns why the text ends here, or "" if it does not."""
        score, threshold = decision.score, decision.threshold
        for id in decision.ids:
            if id in self._model.end_ids:
                return "end"
            self.row.append(id)
            # A byte decoder yields a character with its last byte: for "é" in two pieces, the texts are "" and "é".
            text = self._bytes.decode(self._vocabulary.spellings[id] or b"")
            token = Token(text, decision.writer, score, threshold)
            score = threshold = None  # only the first token of a call has them
            self._so_far += token.text
            self._tokens.append(token)
            if self._on_token is not None:
                self._on_token(self._number, token)
        if len(self._tokens) >= self._cascade.max_new_tokens:
            return "length"
        return "context" if len(self.row) >= self._model.max_seq_len else ""


def _first_row(prompt: str, vocabulary: Vocabulary, model: CallingModel) -> list[int]:
    """The ids of a prompt, after those that stand before a text.

    Raises:
        PromptError: the prompt is empty, too long, or cannot be encoded.
    """
    if not prompt.strip():
        raise PromptError("the prompt is empty")
    try:
        prompt.encode()
    except UnicodeEncodeError as error:
        raise PromptError(f"the prompt holds a lone surrogate at code point {error.start}") from None
    # One position must be left to write.
    ids = vocabulary.encode(prompt)
    row = [*model.start_ids, *ids]
    if len(row) >= model.max_seq_len:
        raise PromptError(f"the prompt has {len(ids)} tokens, and {model.name} has a context of {model.max_seq_len}")
    if not row:
        raise PromptError(f"the tokenizer of {model.name} has no token for the prompt {prompt[:60]!r}")
    return row


def _decisions(tokens: Iterable[Token]) -> Iterator[tuple[float | None, int, int]]:
    """Find the decisions that wrote these tokens: (score, number of tokens, number of the partner's tokens) of each.

    A token of the partner that has no score belongs to the call before it. With M for the small model, P for the
    partner and the scores 1, 2 and 4, the tokens M1 P2 P P M4 were written by the decisions (1, 1, 0), (2, 3, 3) and
    (4, 1, 0).
    """
    steps: list[list[Token]] = []
    for token in tokens:
        if token.writer == PARTNER and token.score is None and steps:
            steps[-1].append(token)
        else:
            steps.append([token])
    for step in steps:
        yield step[0].score, len(step), len(step) if step[0].writer == PARTNER else 0
