"""A partner at an OpenAI-style completions endpoint that returns its most likely tokens (vLLM, llama.cpp, ...)."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Sequence
from typing import Any

from lacy_stream.cascade.bridge import Candidate
from lacy_stream.cascade.partner import PartnerError, PromptError
from lacy_stream.cascade.vocabulary import Vocabulary

TOP_LOGPROBS = 20
"""Number of candidates to ask for: vLLM's default limit."""
TIMEOUT_S = 60.0
RETRIES = 4
# How chat models spell their special tokens: <|im_end|>, </s>, <eos>, [INST] and the like.
_SPECIAL = re.compile(r"<\|.*\|>|</?s>|<(bos|eos|pad|unk|end_of_turn|start_of_turn)>|\[(INST|/INST)\]")


class EndpointPartner:
    """The model of an endpoint.

    If the endpoint needs a key, it is read from OPENAI_API_KEY. The server should cache the text; vLLM and llama.cpp do
    so by default. No repetition penalty is applied.

    Args:
        spec: ``http://host:8000/v1#MODEL``. Without a name, the endpoint must have exactly one model.
        timeout_s: seconds for each attempt.
        retries: further attempts, with growing pauses, if the endpoint does not answer.

    Raises:
        PartnerError: the endpoint cannot be reached, or several models need a name, or openai is not installed.
    """

    def __init__(self, spec: str, *, timeout_s: float = TIMEOUT_S, retries: int = RETRIES) -> None:
        try:
            import openai
        except ImportError as error:
            raise PartnerError("an endpoint as a partner needs the package openai: pip install openai") from error
        url, _, model = spec.partition("#")
        self._url, self._openai = url, openai
        self._client = openai.OpenAI(
            base_url=url, api_key=os.environ.get("OPENAI_API_KEY", "none"), timeout=timeout_s, max_retries=retries
        )
        self.name = model or self._only_model()

    def speaks(self, vocabulary: Vocabulary) -> bool:
        """False: the endpoint's ids are not known."""
        return False

    def session(self, preamble: str = "") -> EndpointSession:
        """Begin a text after a preamble."""
        return EndpointSession(self, preamble)

    def candidates(self, prompt: str) -> list[Candidate]:
        """Ask for the most likely next tokens.

        Returns:
            Up to ``TOP_LOGPROBS`` candidates, best first, without ids.

        Raises:
            PartnerError: the endpoint does not answer, refuses the request, or returns no top log-probabilities.
            PromptError: the prompt is longer than the model's context.
        """
        try:
            answer = self._client.completions.with_raw_response.create(
                model=self.name, prompt=prompt, max_tokens=1, temperature=0, logprobs=TOP_LOGPROBS
            )
        except self._openai.BadRequestError as error:
            if re.search(r"context|too long|maximum.*length|exceed", str(error), re.IGNORECASE):
                raise PromptError(f"the partner {self.name} refuses the text: {error}") from error
            raise PartnerError(f"{self._url} refuses the request: {error}") from error
        except self._openai.OpenAIError as error:
            raise self._unreachable(error) from error
        return self._read(answer.text)

    def _read(self, answer: str) -> list[Candidate]:
        try:
            logprobs = json.loads(answer)["choices"][0].get("logprobs")
            top = _top_logprobs(logprobs)
        except (ValueError, LookupError, TypeError, AttributeError):
            top = []
        if not top:
            raise PartnerError(
                f"{self._url} answers without top log-probabilities, which the cascade needs for the next-best token "
                f"(it asks for completions with logprobs={TOP_LOGPROBS}). vLLM and llama.cpp's server give them. "
                f"The answer: {answer[:200]}"
            )
        return [Candidate(spelling) for _, spelling in sorted(top, key=lambda pair: -pair[0])]

    def _only_model(self) -> str:
        try:
            names = [model.id for model in self._client.models.list()]
        except self._openai.OpenAIError as error:
            raise self._unreachable(error) from error
        if len(names) != 1:
            raise PartnerError(
                f"{self._url} has the models {', '.join(names) or '(none)'}: name one, as {self._url}#MODEL"
            )
        return names[0]

    def _unreachable(self, error: Exception) -> PartnerError:
        return PartnerError(
            f"the partner {self._url} does not answer ({type(error).__name__}: {error}). What was generated is kept: "
            "start the endpoint and run the same command again"
        )


class EndpointSession:
    """One text. Each call sends the preamble and the whole text."""

    def __init__(self, partner: EndpointPartner, preamble: str) -> None:
        self._partner, self._preamble = partner, preamble

    def propose(self, text: str, ids: Sequence[int] | None = None) -> Iterator[Candidate]:
        """See ``partner.Session``. A space at the end of the text is sent as it is."""
        yield from self._partner.candidates(self._preamble + text)


def _top_logprobs(logprobs: dict[str, Any]) -> list[tuple[float, bytes | None]]:
    """Read the candidates for the first token as (log-probability, spelling). There are two layouts: a dictionary
    (OpenAI's completions, vLLM), and the list of chat completions, which llama.cpp uses for both."""
    if "content" in logprobs:
        entries = logprobs["content"][0]["top_logprobs"]
        return [(float(e["logprob"]), _spelling(e["token"], e.get("bytes"))) for e in entries]
    return [(float(value), _spelling(token, None)) for token, value in logprobs["top_logprobs"][0].items()]


def _spelling(token: str, data: list[int] | None) -> bytes | None:
    """The bytes of a token as an endpoint names it. None for a special token, and for a part of a character that was
    replaced by U+FFFD."""
    if not token or _SPECIAL.fullmatch(token) or ("\ufffd" in token and not data):
        return None
    return bytes(data) if data else token.encode()
