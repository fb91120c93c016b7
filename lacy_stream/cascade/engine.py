"""The pair at work: texts enter a running batch, grow step by step, and leave it.

one step:  rows of all texts --RowDecoder--> logits --Score--> score >= Threshold?  no: the small model's own token
                                                                                   yes: the text waits for the partner
           enough texts wait: their texts --Partner--> its best tokens --bridge--> one or more tokens each

The engine has no thread, no queue and no clock. `generate` is a loop over its steps, and so is the server.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Literal, NamedTuple

from annotator import Annotator
from lacy_stream.cascade.batch_decoder import open_decoder
from lacy_stream.cascade.call_policy import CallPolicy, asks_now
from lacy_stream.cascade.delegation import open_score
from lacy_stream.cascade.growing_text import GrowingText
from lacy_stream.cascade.partner import Answer, Partner, PartnerError, PromptError
from lacy_stream.cascade.settings import Delegation
from lacy_stream.cascade.texts import Generation, Prompt, TextSettings, Token
from lacy_stream.cascade.vocabulary import open_vocabulary
from lacy_stream.train.checkpoint import CallingModel

PartnerFailure = Literal["raise", "continue", "error"]
"""What happens if the partner does not answer: the step raises its error, the text is continued by the small model
alone, or the text ends."""


class Progress(NamedTuple):
    """What a step did to one text."""

    number: int
    tokens: Sequence[Token]
    """The tokens that were written."""
    generation: Generation | None
    """The whole text if it is finished; else None."""


class Engine:
    """Writes several texts at once.

    Args:
        model: the small model.
        delegation: what is delegated.
        partner: answers calls; None for no partner, or none yet (see ``partner``).
        calls: whether texts call at all.
        penalty: the repetition penalty of the small model.
        many: whether there will be several texts at a time.
        annotator: finds facts for i-LaCy; None makes one.
        partner_failure: what happens if the partner does not answer.
        chunk: longest part of a prompt that is read in one step, in ids, so that other texts do not wait for a long
            prompt; None for the whole prompt.
        reuse: False reads whole texts again for each token, for comparison.

    Raises:
        UsageError: the model cannot delegate in this way, or its tokenizer cannot be used.
    """

    def __init__(
        self,
        model: CallingModel,
        delegation: Delegation = Delegation(),
        partner: Partner | None = None,
        *,
        calls: bool,
        penalty: float,
        many: bool,
        annotator: Annotator | None = None,
        partner_failure: PartnerFailure = "raise",
        chunk: int | None = None,
        reuse: bool = True,
    ) -> None:
        self.model, self.vocabulary = model, open_vocabulary(model)
        self.policy = None
        if calls and delegation.call_rate > 0:
            self.policy = CallPolicy(delegation, open_score(delegation, model, self.vocabulary, annotator))
        self._penalty, self._chunk, self._partner_failure = penalty, chunk, partner_failure
        self._decoder = open_decoder(model.model, many=many, reuse=reuse)
        self._texts: dict[int, GrowingText] = {}
        self.partner_error: PartnerError | None = None
        """Why the partner is not there."""
        self.partner = partner

    @property
    def partner(self) -> Partner | None:
        """The partner. If it does not answer and the texts are continued, it is None until another one is set."""
        return self._partner

    @partner.setter
    def partner(self, partner: Partner | None) -> None:
        self._partner = partner
        self._same_vocabulary = partner is not None and partner.speaks(self.vocabulary)

    @property
    def texts(self) -> Collection[int]:
        """The numbers of the texts that are not finished."""
        return self._texts.keys()

    def add(self, number: int, prompt: Prompt, settings: TextSettings) -> None:
        """Add a text, which grows from the next step on.

        Args:
            number: a number that no other unfinished text has.
            prompt: what is continued.
            settings: how it is written.

        Raises:
            PromptError: the prompt is empty, too long, or cannot be encoded.
        """
        self._texts[number] = GrowingText(number, prompt, settings, self.model, self.vocabulary, self._penalty)

    def remove(self, number: int) -> None:
        """Forget an unfinished text."""
        self._decoder.end(number)
        self._texts.pop(number).close()

    def step(self) -> list[Progress]:
        """Let each text that does not wait take one decision, and ask the partner if enough texts wait for it.

        Returns:
            What was written, for each text that has new tokens or is finished. Finished texts have left.

        Raises:
            PartnerError: the partner does not answer, and ``partner_failure`` is "raise".
        """
        written = {number: len(text.tokens) for number, text in self._texts.items()}
        self._read([text for text in self._texts.values() if not text.waits])
        unfinished = [text for text in self._texts.values() if not text.finish]
        waiting = [text for text in unfinished if text.waits]
        if asks_now(len(waiting), len(unfinished)):
            self._ask(waiting)
        progress = [
            Progress(number, text.tokens[written[number] :], text.generation() if text.finish else None)
            for number, text in self._texts.items()
        ]
        for one in progress:
            if one.generation is not None:
                self.remove(one.number)
        return [one for one in progress if one.tokens or one.generation is not None]

    def _read(self, texts: Sequence[GrowingText]) -> None:
        """Let the small model read what is new in some texts, and these decide in their order."""
        if not texts:
            return
        ends = {text.number: len(text.row) for text in texts}
        if self._chunk is not None:
            ends = {text.number: min(len(text.row), text.read + self._chunk) for text in texts}
        rows = {text.number: text.row[: ends[text.number]] for text in texts}
        every = {text.number for text in texts if text.settings.score_prompt and not text.has_begun}
        beginning = [text for text in texts if not text.has_begun and ends[text.number] == len(text.row)]
        if self.policy is not None and beginning:
            every |= {text.number for text in beginning[: self.policy.warming]}
        logits = self._decoder.logits(rows, every)
        for text in texts:
            new = ends[text.number] - text.read
            logits_TV = logits[text.number][-new:]
            if self.policy is not None and not text.has_begun and ends[text.number] == len(text.row):
                text.policy = self.policy.of_text(text.number, logits_TV if text.number in every else None)
            text.read = ends[text.number] - len(logits_TV)
            text.take(logits_TV, can_call=self.partner is not None or self._partner_failure != "continue")

    def _ask(self, texts: Sequence[GrowingText]) -> None:
        """Ask the partner for the next token of each text that waits."""
        partner = self.partner
        if partner is None:
            answers: list[Answer] = [self.partner_error or PartnerError("there is no partner")] * len(texts)
        else:
            answers = partner.propose_all([text.call(partner, self._same_vocabulary) for text in texts])
        for text, answer in zip(texts, answers, strict=True):
            try:
                if isinstance(answer, Exception):
                    raise answer
                text.receive(answer, self._same_vocabulary)
            except PromptError as error:
                text.end_at_call(error)
            except PartnerError as error:
                self._fail(text, error)

    def _fail(self, text: GrowingText, error: PartnerError) -> None:
        if self._partner_failure == "raise":
            raise error
        self._partner, self.partner_error = None, error
        if self._partner_failure == "continue":
            text.continue_alone()
        else:
            text.end_at_call(error)
