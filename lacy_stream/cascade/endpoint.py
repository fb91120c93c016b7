"""A partner at an OpenAI-style completions endpoint that returns its most likely tokens (vLLM, llama.cpp, ...)."""

from __future__ import annotations

import asyncio
import json
import re
import threading
import urllib.error
import urllib.request
import weakref
from collections.abc import Coroutine, Iterator, Sequence
from typing import Any, NamedTuple, TypeVar

from lacy_stream.cascade.bridge import Candidate
from lacy_stream.cascade.partner import Answer, Call, PartnerError, PromptError, answer_of
from lacy_stream.cascade.vocabulary import SPECIAL_NAME, Vocabulary
from lacy_stream.endpoints import api_key, base_url, hint, says_too_long

Result = TypeVar("Result")
TOP_LOGPROBS = 20
"""Number of candidates to ask for: vLLM's default limit."""
TIMEOUT_S = 60.0
RETRIES = 4
CONCURRENCY = 8
"""Default number of requests that are under way at a time."""
ADVICE = "What was generated is kept: start the endpoint and run the same command again"
REFUSED = (400, 413, 422)
"""Statuses that say the request is at fault."""
_ID = re.compile(r"token_id:(\d+)")
"""How vLLM names tokens with --return-tokens-as-token-ids."""
_BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")
_RAW = ("\u0120", "\u010a", "\u2581")
"""How pieces begin in tokenizer files where a text has a space or a line break."""


class _Named(NamedTuple):
    """A token as an endpoint describes it."""

    logprob: float
    name: str
    """Its text, or a name in place of it."""
    data: list[int] | None = None
    """The bytes of its text, where the endpoint gives them."""
    id: int | None = None
    """Its id in the partner's vocabulary, where the endpoint gives it."""


class EndpointPartner:
    """The model of an endpoint.

    If the endpoint needs a key, it is read from OPENAI_API_KEY. The server should cache the text; vLLM and llama.cpp do
    so by default. No repetition penalty is applied.

    Requests are made in the event loop of a thread, where those that are late can be cancelled.

    Args:
        spec: ``http://host:8000/v1#MODEL``. Without a name, the endpoint must have exactly one model.
        vocabulary: that of the model, which tells text from names of tokens. None if it is not known: names that look
            like special tokens are then no text, and ids are asked for at ``/detokenize``.
        timeout_s: seconds for each attempt.
        retries: further attempts, with growing pauses, if the endpoint does not answer.
        deadline_s: seconds for the calls that are answered together, with all attempts; None for no limit. Calls that
            have no answer then are given up, with a PartnerError.
        concurrency: number of requests that are under way at a time.
        advice: what the user can do if the endpoint does not answer.

    Raises:
        PartnerError: the endpoint cannot be reached, or several models need a name, or openai is not installed.
    """

    def __init__(
        self,
        spec: str,
        vocabulary: Vocabulary | None = None,
        *,
        timeout_s: float = TIMEOUT_S,
        retries: int = RETRIES,
        deadline_s: float | None = None,
        concurrency: int = CONCURRENCY,
        advice: str = ADVICE,
    ) -> None:
        try:
            import openai
        except ImportError as error:
            raise PartnerError("an endpoint as a partner needs the package openai: pip install openai") from error
        url, _, model = spec.partition("#")
        self._url, self._openai, self._vocabulary, self._timeout_s = base_url(url), openai, vocabulary, timeout_s
        self._client = openai.AsyncOpenAI(base_url=self._url, api_key=api_key(), timeout=timeout_s, max_retries=retries)
        self._deadline_s, self._advice, self._places = deadline_s, advice, asyncio.Semaphore(concurrency)
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=_run_and_close, args=(self._loop,), name="partner", daemon=True).start()
        weakref.finalize(self, self._loop.call_soon_threadsafe, self._loop.stop)
        self._texts: dict[int, str | None] = {}
        """Answers of ``/detokenize``."""
        self.name = model or self._only_model()

    def speaks(self, vocabulary: Vocabulary) -> bool:
        """False: the endpoint's ids are not known."""
        return False

    def session(self, preamble: str = "") -> EndpointSession:
        """Begin a text after a preamble."""
        return EndpointSession(self, preamble)

    def propose_all(self, calls: Sequence[Call]) -> list[Answer]:
        """See ``Partner``. Several requests are under way at a time. Each answer has up to ``TOP_LOGPROBS`` candidates
        without ids; none if the model ends without a token."""
        answers = self._wait_for([self._answer(call) for call in calls])
        return [self._late() if answer is None else answer for answer in answers]

    def _wait_for(self, requests: Sequence[Coroutine[Any, Any, Result]]) -> list[Result | None]:
        """Let requests run in the event loop. None for each that has no result at the deadline, and is cancelled."""

        async def wait() -> list[Result | None]:
            tasks = [asyncio.ensure_future(request) for request in requests]
            _, late = await asyncio.wait(tasks, timeout=self._deadline_s)
            for task in late:
                task.cancel()
            return [None if task in late else task.result() for task in tasks]

        return asyncio.run_coroutine_threadsafe(wait(), self._loop).result()

    async def _answer(self, call: Call) -> Answer:
        async with self._places:
            try:
                return await self._ask(call.session.preamble + call.text)
            except (PartnerError, PromptError) as error:
                return error

    async def _ask(self, prompt: str) -> Iterator[Candidate]:
        """Ask for the most likely next tokens.

        Raises:
            PartnerError: the endpoint does not answer, refuses the request, returns no top log-probabilities, or, when
                the candidates are read, names all tokens in ways that cannot be resolved.
            PromptError: the prompt is longer than the model's context.
        """
        try:
            answer = await self._client.completions.with_raw_response.create(
                model=self.name, prompt=prompt, max_tokens=1, temperature=0, logprobs=TOP_LOGPROBS
            )
        except self._openai.APIStatusError as error:
            if error.status_code in REFUSED and says_too_long(str(error)):
                raise PromptError(f"the partner {self.name} refuses the text: {error}") from error
            if error.status_code in REFUSED:
                raise PartnerError(f"{self._url} refuses the request: {error}") from error
            raise self._unreachable(error) from error
        except self._openai.OpenAIError as error:
            raise self._unreachable(error) from error
        return self._candidates(self._read(answer.text))

    def _candidates(self, tokens: Sequence[_Named]) -> Iterator[Candidate]:
        unresolved = 0
        for token in sorted(tokens, key=lambda token: -token.logprob):
            try:
                yield Candidate(self._spelling(token))
            except _UnresolvedError:
                unresolved += 1
                yield Candidate(None)
        if tokens and unresolved == len(tokens):
            raise PartnerError(
                f"{self._url} names its tokens, as in {tokens[0].name!r}, and what they spell is not known: give the "
                "folder or hub name of the partner's tokenizer by --partner-tokenizer"
            )

    def _read(self, answer: str) -> list[_Named]:
        """The candidates for the first token, in no order; empty if the model ends without a token."""
        try:
            choice = json.loads(answer)["choices"][0]
            logprobs = choice.get("logprobs")
            if choice.get("text") == "" and choice.get("finish_reason") == "stop" and not logprobs:
                return []
            return _top_logprobs(logprobs)
        except (ValueError, LookupError, TypeError, AttributeError):
            raise PartnerError(
                f"{self._url} answers without top log-probabilities, which the cascade needs for the next-best token "
                f"(it asks for completions with logprobs={TOP_LOGPROBS}). vLLM and llama.cpp's server give them. "
                f"The answer: {answer[:200]}"
            ) from None

    def _spelling(self, token: _Named) -> bytes | None:
        """The bytes of a token. None for a special token, and for a part of a character.

        Raises:
            _UnresolvedError: the token is named, and what it spells is not known.
        """
        name, data, vocabulary = token.name, token.data, self._vocabulary
        named_id = _ID.fullmatch(name)
        id = int(named_id[1]) if named_id else token.id
        if vocabulary is not None:
            known = vocabulary.ids.get(name)
            is_name = name.startswith(_RAW) or SPECIAL_NAME.fullmatch(name)
            if id is None and (is_name or (known is not None and vocabulary.spellings[known] is None)):
                id = -1 if known is None else known
            if id is not None:
                return vocabulary.spellings[id] if 0 <= id < len(vocabulary.spellings) else None
        elif named_id:
            name, data = self._text_of(int(named_id[1])), None  # the bytes are those of the name
        elif _BYTE.fullmatch(name):
            return bytes.fromhex(name[3:5])
        elif name.startswith(_RAW) and not data:
            raise _UnresolvedError
        elif SPECIAL_NAME.fullmatch(name):
            return None
        if not name or (not data and "\ufffd" in name):
            return None
        return bytes(data) if data else name.encode()

    def _text_of(self, id: int) -> str:
        """The text that an id spells in a text, by the server's ``/detokenize`` (vLLM, llama.cpp, SGLang); "" for a
        special token.

        Raises:
            PartnerError: the server hangs.
            _UnresolvedError: the server has no such thing.
        """
        if id not in self._texts:
            alone, twice = self._detokenized([id]), self._detokenized([id, id])  # a text may lose its first space
            self._texts[id] = None if alone is None or twice is None else twice[len(alone) :]
        text = self._texts[id]
        if text is None:
            raise _UnresolvedError
        return "" if SPECIAL_NAME.fullmatch(text) else text

    def _detokenized(self, ids: list[int]) -> str | None:
        body = json.dumps({"model": self.name, "tokens": ids}).encode()
        headers = {"Content-Type": "application/json", "Authorization": f"Bearer {api_key()}"}
        url = re.sub(r"/v\d+$", "", self._url) + "/detokenize"
        try:
            request = urllib.request.Request(url, body, headers)
            with urllib.request.urlopen(request, timeout=self._timeout_s) as response:
                said = json.load(response)
            return next(said[key] for key in ("prompt", "content", "text") if isinstance(said.get(key), str))
        except TimeoutError as error:
            raise self._unreachable(error) from error
        except (OSError, ValueError, AttributeError, StopIteration):
            return None

    def _only_model(self) -> str:
        async def list_models() -> list[str]:
            return [model.id async for model in self._client.models.list()]

        try:
            [names] = self._wait_for([list_models()])
        except self._openai.OpenAIError as error:
            raise self._unreachable(error) from error
        if names is None:
            raise self._late()
        if len(names) != 1:
            raise PartnerError(
                f"{self._url} has the models {', '.join(names) or '(none)'}: name one, as {self._url}#MODEL"
            )
        return names[0]

    def _unreachable(self, error: Exception) -> PartnerError:
        return PartnerError(
            f"the partner {self._url} does not answer ({type(error).__name__}: {error}){hint(self._url)}. "
            f"{self._advice}"
        )

    def _late(self) -> PartnerError:
        return PartnerError(f"the partner {self._url} does not answer within {self._deadline_s:g} s. {self._advice}")


class EndpointSession:
    """One text. Each call sends the preamble and the whole text, with a space at its end as it is."""

    def __init__(self, partner: EndpointPartner, preamble: str) -> None:
        self._partner, self.preamble = partner, preamble

    def propose(self, text: str) -> Iterator[Candidate]:
        """Answer one call alone, see ``answer_of``."""
        return answer_of(self._partner, Call(self, text))

    def close(self) -> None:
        """See ``partner.Session``. There is nothing to free here."""


def _run_and_close(loop: asyncio.AbstractEventLoop) -> None:
    """Run an event loop until it is stopped."""
    try:
        loop.run_forever()
    finally:
        loop.close()


class _UnresolvedError(Exception):
    """A token is named, and what it spells is not known."""


def _top_logprobs(logprobs: dict[str, Any]) -> list[_Named]:
    """Read the candidates for the first token. There are two layouts: a dictionary (OpenAI's completions, vLLM), and
    the list of chat completions, which llama.cpp uses for both. An empty list is a completion without tokens.

    Raises:
        LookupError, TypeError, AttributeError, ValueError: there are no candidates.
    """
    if "content" in logprobs:
        if not logprobs["content"]:
            return []
        entries = logprobs["content"][0]["top_logprobs"]
        found = [_Named(float(e["logprob"]), e["token"], e.get("bytes"), _as_id(e.get("id"))) for e in entries]
    elif not logprobs["top_logprobs"] and not logprobs.get("tokens"):
        return []
    else:
        found = [_Named(float(value), token) for token, value in logprobs["top_logprobs"][0].items()]
    if not found:
        raise LookupError
    return found


def _as_id(id: object) -> int | None:
    return id if isinstance(id, int) else None
