"""One text as it grows: prompt and logits -> tokens, one decision after the other."""

from __future__ import annotations

import codecs
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from torch import Tensor

from lacy_stream.cascade.bridge import Candidate, first_expressible
from lacy_stream.cascade.call_policy import TextPolicy
from lacy_stream.cascade.choice import TokenChoice
from lacy_stream.cascade.partner import Call, Partner, PromptError, Session
from lacy_stream.cascade.texts import MODEL, PARTNER, Generation, LogProbabilities, Prompt, TextSettings, Token
from lacy_stream.cascade.vocabulary import Vocabulary
from lacy_stream.train.checkpoint import CallingModel


class _OpenCall(NamedTuple):
    """A decision to call the partner, which has not answered yet."""

    own: int
    """The token that the small model would write."""
    score: float
    threshold: float
    log_probabilities: LogProbabilities | None


class GrowingText:
    """A text that is being written. While it neither waits nor is finished, it must be given the logits after the ids
    of ``row`` that were not read yet.

    Args:
        number: number of the text in the run.
        prompt: what is continued.
        settings: how it is written.
        model: the small model.
        vocabulary: its vocabulary.
        penalty: the repetition penalty.

    Raises:
        PromptError: the prompt is empty, too long, or cannot be encoded.
    """

    def __init__(
        self,
        number: int,
        prompt: Prompt,
        settings: TextSettings,
        model: CallingModel,
        vocabulary: Vocabulary,
        penalty: float,
    ) -> None:
        self.number, self.prompt, self.settings = number, prompt, settings
        self._model, self._vocabulary = model, vocabulary
        self._choice = TokenChoice(settings, penalty, model.call_token_id)
        self.row = first_row(prompt, vocabulary, model)
        """What the small model reads: the ids of the prompt, and those that were written after it."""
        self._prompt_length, self.read = len(self.row), 0
        self.policy: TextPolicy | None = None
        """How the text decides about calls; None for no calls."""
        self.tokens: list[Token] = []
        self.finish = ""
        """As in ``Generation``; "" while it is unfinished."""
        self._why = ""
        self._open_call: _OpenCall | None = None
        self._session: tuple[Partner, Session] | None = None
        self._bytes = codecs.getincrementaldecoder("utf-8")("replace")
        self._so_far = prompt.text  # and all that was written after it, with U+FFFD for bytes that are not a character
        self._stop_at: int | None = None
        self._fallbacks = self._unanswered = 0
        self._ended_at_call = False
        self._end: Token | None = None
        self._prompt_log_probabilities: list[LogProbabilities] = []

    @property
    def waits(self) -> bool:
        """Whether the text waits for the partner."""
        return self._open_call is not None and not self.finish

    @property
    def has_begun(self) -> bool:
        """Whether the whole prompt was read."""
        return self.read >= self._prompt_length

    # ------------------------------------------------------------ the small model

    def take(self, logits_TV: Tensor, can_call: bool) -> None:
        """Take note of what the small model says after the ids that it has read now, and decide if that is all of them.

        Args:
            logits_TV: float32 [T, V], the logits after T ids, the first of which comes after those that were ``read``.
                Only those of the last id are needed if the prompt's log-probabilities are not.
            can_call: whether the partner can be asked. If not, the small model writes in its place.
        """
        if self.settings.score_prompt and not self.has_begun:
            self._score_prompt(logits_TV)
        self.read += len(logits_TV)
        if self.read < len(self.row):
            return
        if self.settings.max_new_tokens == 0:
            self.finish = "length"
            return
        self._decide(logits_TV[-1], can_call)

    def _score_prompt(self, logits_TV: Tensor) -> None:
        following = self.row[self.read + 1 : self.read + 1 + len(logits_TV)]
        self._prompt_log_probabilities += self._choice.log_probabilities(logits_TV[: len(following)], following)

    def _decide(self, logits_V: Tensor, can_call: bool) -> None:
        own = self._choice.choose(logits_V, self.row)
        likely = None
        if self.settings.log_probabilities is not None:
            (likely,) = self._choice.log_probabilities(logits_V[None], [own])
        is_inside_character = self._bytes.getstate()[0] != b""
        if self.policy is None or is_inside_character:
            self._write([own], MODEL, None, likely)  # a character that the small model has begun, it also finishes
            return
        score = self.policy.score(logits_V, own, self._so_far)
        call = _OpenCall(own, score, self.policy.threshold.value(), likely)
        if score < call.threshold:
            self._write([own], MODEL, call, likely, counts=can_call)
        elif can_call:
            self._open_call = call
        else:
            self._unanswered += 1
            self._write([own], MODEL, call, likely, counts=False)

    # ------------------------------------------------------------ the partner

    def call(self, partner: Partner, same_vocabulary: bool) -> Call:
        """The question to the partner that the text waits for.

        Args:
            partner: the partner.
            same_vocabulary: whether its tokens have the same ids as the small model's.
        """
        if self._session is None or self._session[0] is not partner:
            self.close()
            self._session = partner, partner.session(self.prompt.preamble)
        start = len(self._model.start_ids)
        begins = self.row[:start] == list(self._model.start_ids)  # the partner puts its own start before the ids
        return Call(self._session[1], self._so_far, self.row[start if begins else 0 :] if same_vocabulary else None)

    def receive(self, answer: Iterator[Candidate], same_vocabulary: bool) -> None:
        """Write the partner's best token that can be expressed, or the small model's own if there is none.

        Raises:
            PartnerError: the candidates cannot be read. The text still waits.
        """
        ids = self._ids_of(answer, same_vocabulary)
        call = self._close_call()
        self._fallbacks += ids is None
        if ids is None:
            self._write([call.own], MODEL, call, call.log_probabilities)
        else:
            self._write(ids, PARTNER, call, None)
        self._ended_at_call = self.finish == "end"

    def continue_alone(self) -> None:
        """Write the small model's own token, because the partner does not answer."""
        call = self._close_call()
        self._unanswered += 1
        self._write([call.own], MODEL, call, call.log_probabilities, counts=False)

    def end_at_call(self, error: Exception) -> None:
        """End the text, because the partner cannot answer for this text.

        Args:
            error: a PromptError if the text is too long for the partner; else why the partner does not answer.
        """
        self._close_call()
        self._ended_at_call = True
        if isinstance(error, PromptError):
            self.finish, self._why = ("context", "") if self.tokens else ("skipped", str(error))
        else:
            self.finish, self._why = "partner", str(error)

    def close(self) -> None:
        """Let the partner forget the text."""
        if self._session is not None:
            self._session[1].close()
            self._session = None

    def _close_call(self) -> _OpenCall:
        assert self._open_call is not None, "the text does not wait"
        call, self._open_call = self._open_call, None
        return call

    def _ids_of(self, candidates: Iterator[Candidate], same_vocabulary: bool) -> list[int] | None:
        """The partner's next token as tokens of the small model; None if nothing that it proposes can be expressed."""
        if not same_vocabulary:
            found = first_expressible(candidates, self._so_far, self._vocabulary)
            return None if found is None else found[1]
        for candidate in candidates:
            # With the same vocabulary the end of text can be expressed, too.
            token, is_end = candidate.token, candidate.token in self._model.end_ids
            if token is not None and (candidate.spelling is not None or is_end):
                return [token]
        return None

    # ------------------------------------------------------------ the text

    def generation(self) -> Generation:
        """The finished text."""
        if self.tokens and (rest := self._bytes.decode(b"", final=True)):  # the text ends inside a character
            self.tokens[-1] = self.tokens[-1]._replace(text=self.tokens[-1].text + rest)
        text = "".join(token.text for token in self.tokens)
        return Generation(
            self.prompt.text,
            text if self._stop_at is None else text[: self._stop_at],
            self.tokens,
            self.finish,
            self._why,
            [] if self.policy is None else self.policy.prompt_scores,
            self._fallbacks,
            self._ended_at_call,
            tuple(self.row[: self._prompt_length]),
            self._prompt_log_probabilities,
            self._unanswered,
            self._end,
        )

    def _write(
        self,
        ids: Sequence[int],
        writer: str,
        call: _OpenCall | None,
        likely: LogProbabilities | None,
        counts: bool = True,
    ) -> None:
        """Add the tokens of a decision.

        Args:
            call: the score and the threshold of the decision; None if none was made.
            likely: of the first token.
            counts: whether the threshold takes note of the decision.
        """
        before = len(self.tokens)
        self._append(ids, writer, call, likely)
        written = len(self.tokens) - before
        if counts and self.policy is not None and self.finish != "end":
            # The end of a text is no token of it, so a decision for it is not counted.
            score = None if call is None else call.score
            self.policy.threshold.update(score, written, written if writer == PARTNER else 0)

    def _append(self, ids: Sequence[int], writer: str, call: _OpenCall | None, likely: LogProbabilities | None) -> None:
        for id in ids:
            if id in self._model.end_ids:
                self.finish, self._end = "end", Token("", writer, id=id, log_probabilities=likely)
                return
            self.row.append(id)
            # A byte decoder yields a character with its last byte: for "é" in two pieces, the texts are "" and "é".
            text = self._bytes.decode(self._vocabulary.spellings[id] or b"")
            score, threshold = (None, None) if call is None else (call.score, call.threshold)
            self.tokens.append(Token(text, writer, score, threshold, id, likely))
            call = likely = None  # only the first token of a call has them
            self._so_far += text
            if self.settings.stop and self._finds_stop(len(text)):
                self.finish = "stop"
                return
        if len(self.tokens) >= self.settings.max_new_tokens:
            self.finish = "length"
        elif len(self.row) >= self._model.max_seq_len:
            self.finish = "context"

    def _finds_stop(self, added: int) -> bool:
        """Whether a stop string ends in the characters that were added last."""
        start = len(self.prompt.text)
        longest = max(map(len, self.settings.stop))
        tail = max(start, len(self._so_far) - added - longest + 1)
        places = [place for stop in self.settings.stop if (place := self._so_far.find(stop, tail)) >= 0]
        self._stop_at = min(places) - start if places else None
        return bool(places)


def first_row(prompt: Prompt, vocabulary: Vocabulary, model: CallingModel) -> list[int]:
    """The ids of a prompt, after those that stand before a text.

    Raises:
        PromptError: the prompt is empty, too long, or cannot be encoded.
    """
    if prompt.ids is None and not prompt.text.strip():
        raise PromptError("the prompt is empty")
    try:
        prompt.text.encode()
    except UnicodeEncodeError as error:
        raise PromptError(f"the prompt holds a lone surrogate at code point {error.start}") from None
    # One position must be left to write.
    ids = vocabulary.encode(prompt.text) if prompt.ids is None else list(prompt.ids)
    row = [*model.start_ids, *ids] if prompt.ids is None else ids
    if len(row) >= model.max_seq_len:
        raise PromptError(f"the prompt has {len(ids)} tokens, and {model.name} has a context of {model.max_seq_len}")
    if not row:
        raise PromptError(f"the tokenizer of {model.name} has no token for the prompt {prompt.text[:60]!r}")
    return row
