"""Texts -> the JSON of OpenAI's answers, with the field ``lacy`` on each choice."""

from __future__ import annotations

import codecs
import itertools
from collections.abc import Sequence
from typing import Any

from lacy_stream.cascade.texts import PARTNER, Generation, LogProbabilities, Token
from lacy_stream.cascade.vocabulary import Vocabulary

FINISH = {"end": "stop", "stop": "stop", "length": "length", "context": "length"}
"""Why a text ends -> OpenAI's word for it."""


class TokenNames:
    """The texts of single tokens, as log-probabilities name them."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._spellings, self._names = vocabulary.spellings, {id: name for name, id in vocabulary.ids.items()}

    def name(self, id: int) -> str:
        """What a token spells. One that spells no text has its name in the tokenizer, and a part of a character is
        written as OpenAI does: ``bytes:\\xc3``."""
        spelling = self._spellings[id] if id < len(self._spellings) else None
        if spelling is None:
            return self._names.get(id, f"token_id:{id}")
        try:
            return spelling.decode()
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in spelling)

    def spelling(self, id: int) -> list[int]:
        """The bytes of a token."""
        return list((self._spellings[id] if id < len(self._spellings) else None) or b"")

    def offsets(self, ids: Sequence[int], start: int) -> list[int]:
        """The number of characters before each token, where ``start`` come before the first one."""
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        lengths = (len(decoder.decode(bytes(self.spelling(id)))) for id in ids)
        return list(itertools.accumulate(lengths, initial=start))[:-1]

    def top(self, likely: LogProbabilities, own: int, count: int) -> dict[str, float]:
        """The most likely tokens and the token itself, by name. Of tokens with the same name, the best one counts."""
        named: dict[str, float] = {}
        for id, value in (*likely.top[:count], (own, likely.own)):
            named.setdefault(self.name(id), value)
        return named


class GrowingAnswer:
    """The tokens of a text that may be sent already. What could be the beginning of a stop string is held back."""

    def __init__(self, stop: Sequence[str]) -> None:
        self._stop = stop
        self._tokens: list[Token] = []
        self._sent_tokens = self._sent_characters = 0

    def add(self, tokens: Sequence[Token], generation: Generation | None) -> tuple[str, list[Token]]:
        """Take the tokens of a step.

        Args:
            tokens: the new tokens.
            generation: the whole text if it is finished.

        Returns:
            What can be sent now: text and tokens.
        """
        self._tokens += tokens
        if generation is not None:
            kept = cut_tokens(generation.tokens, len(generation.text))
            return generation.text[self._sent_characters :], kept[self._sent_tokens :]
        text = "".join(token.text for token in self._tokens)
        certain = len(text) - self._doubtful(text)
        end = self._sent_characters
        ready = []
        for token in self._tokens[self._sent_tokens :]:
            if end + len(token.text) > certain:
                break
            end += len(token.text)
            ready.append(token)
        found = text[self._sent_characters : end]
        self._sent_tokens, self._sent_characters = self._sent_tokens + len(ready), end
        return found, ready

    def _doubtful(self, text: str) -> int:
        """The number of characters at the end of a text with which a stop string may have begun."""
        lengths = [
            length
            for stop in self._stop
            for length in range(min(len(stop) - 1, len(text)), 0, -1)
            if text.endswith(stop[:length])
        ]
        return max(lengths, default=0)


def cut_tokens(tokens: Sequence[Token], length: int) -> list[Token]:
    """The tokens of the first characters of a text. The last token is cut where these end."""
    kept, end = [], 0
    for token in tokens:
        if end >= length and token.text:
            break
        kept.append(token._replace(text=token.text[: length - end]))
        end += len(token.text)
    return kept


# ---------------------------------------------------------------- parts of answers


def lacy_field(tokens: Sequence[Token], generation: Generation | None) -> dict[str, Any]:
    """Who wrote each token: [text, writer]; with the text finished, also its call rate and how its calls went."""
    field: dict[str, Any] = {"tokens": [[token.text, token.writer] for token in tokens]}
    if generation is not None:
        field |= {
            "call_rate": round(generation.call_rate, 6),
            "fallbacks": generation.fallbacks,
            "partner_failed": generation.unanswered > 0,
            "unanswered_calls": generation.unanswered,
            "finish": generation.finish,
        }
    return field


def completion_log_probabilities(
    names: TokenNames, generation: Generation | None, tokens: Sequence[Token], top: int, echo: bool, start: int = 0
) -> dict[str, Any]:
    """The ``logprobs`` of a completion. They are the small model's; tokens of the partner have null. If the text ends
    with the end-of-text token, this is the last one: lm-eval takes the last token for the one that was written after
    the prompt.

    Args:
        names: the names of tokens.
        generation: the text if it is finished, for the tokens of its prompt and its end.
        tokens: its tokens.
        top: number of most likely tokens.
        echo: whether the prompt's tokens come first.
        start: offset of the first token in the text.
    """
    entries: list[tuple[str, int, LogProbabilities | None]] = []
    if echo and generation is not None:
        likely = [None, *generation.prompt_log_probabilities]
        entries = [(names.name(id), id, one) for id, one in itertools.zip_longest(generation.prompt_ids, likely)]
    end = () if generation is None or generation.end is None else (generation.end,)
    entries += [
        (names.name(t.id) if t.id is not None else t.text, t.id or 0, t.log_probabilities) for t in (*tokens, *end)
    ]
    return {
        "tokens": [name for name, *_ in entries],
        "token_logprobs": [likely and likely.own for *_, likely in entries],
        "top_logprobs": [likely and names.top(likely, id, top) for _, id, likely in entries],
        "text_offset": names.offsets([id for _, id, _ in entries], start),
    }


def chat_log_probabilities(names: TokenNames, tokens: Sequence[Token], top: int) -> dict[str, Any]:
    """The ``logprobs`` of a chat completion. They are the small model's; tokens of the partner have null."""

    def entry(id: int, value: float | None) -> dict[str, Any]:
        return {"token": names.name(id), "logprob": value, "bytes": names.spelling(id)}

    return {
        "content": [
            entry(token.id or 0, likely and likely.own)
            | {"top_logprobs": [entry(id, value) for id, value in (likely.top[:top] if likely else ())]}
            for token in tokens
            for likely in (token.log_probabilities,)
        ]
    }


def usage(generations: Sequence[Generation], prompts: int) -> dict[str, Any]:
    """The numbers of tokens.

    Args:
        generations: all texts of the request.
        prompts: number of its prompts. The texts of a prompt stand together.
    """
    read = sum(len(g.prompt_ids) for g in generations[:: max(1, len(generations) // prompts)])
    written = sum(len(g.tokens) for g in generations)
    return {"prompt_tokens": read, "completion_tokens": written, "total_tokens": read + written}


def call_rate(generations: Sequence[Generation]) -> float:
    """The partner's share of the tokens of several texts, 0 to 1."""
    tokens = [token.writer == PARTNER for generation in generations for token in generation.tokens]
    return round(sum(tokens) / max(len(tokens), 1), 6)
