"""A language model at an OpenAI-style endpoint that answers questions. Every whole answer is kept on disk.

An answered question is not asked again, so an interrupted run can be resumed, no matter how it ended. What is no whole
answer is not kept: a text that was cut by the token limit, an empty one, a refusal, thoughts without an end.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import sqlite3
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import openai

from annotator.terminal import printable
from lacy_stream.endpoints import api_key as key_of_environment
from lacy_stream.endpoints import base_url, hint, says_too_long
from lacy_stream.errors import UsageError
from lacy_stream.evaluate.settings import JudgeOptions
from lacy_stream.files import file_errors

Item = TypeVar("Item")
Result = TypeVar("Result")

PATIENCE = 3
"""Number of failures in a row, each after all its retries, after which the endpoint counts as dead."""
REFUSALS = 10
"""Number of questions in a row, refused or not answered as a whole, after which the cause is not in the questions."""
HOPELESS = (openai.AuthenticationError, openai.PermissionDeniedError, openai.NotFoundError)
REFUSED = (400, 413, 422)
"""Statuses that say the request is at fault: a question that is too long, or an option that the endpoint lacks."""
WHOLE = ("stop", "eos", "eos_token", "end_turn", "stop_sequence", "")
"""Finish reasons of whole answers. Some servers give none."""
LIMITS = ("max_tokens", "max_completion_tokens")
"""Names of the token limit."""
CUT = ("length", "max_tokens", "model_length")
"""Finish reasons of answers that the token limit has cut."""
_TAGS = "think|thinking|thought|thoughts|reasoning|reason|analysis|seed:think"
_THOUGHTS = re.compile(
    rf"<({_TAGS})>.*?</\1>|\[THINK\].*?\[/THINK\]|◁think▷.*?◁/think▷|<\|channel\|>analysis<\|message\|>.*?<\|end\|>",
    re.DOTALL | re.IGNORECASE,
)
_END_OF_THOUGHTS = re.compile(rf"^.*(</({_TAGS})>|\[/THINK\]|◁/think▷)", re.DOTALL | re.IGNORECASE)
"""Thoughts whose beginning stands in the chat template, as with DeepSeek R1 and Qwen 3."""
_OPEN_THOUGHTS = re.compile(rf"<({_TAGS})>|\[THINK\]|◁think▷|<\|channel\|>analysis", re.IGNORECASE)
_MARKS = re.compile(r"(<\|start\|>\w+)?<\|channel\|>\w+<\|message\|>|<\|(end|return)\|>")
"""What gpt-oss writes around its answer, on servers that do not take it apart."""


class JudgeError(UsageError):
    """The endpoint cannot be used; the message says why. Earlier answers are kept."""


class NothingScoredError(UsageError):
    """An evaluation has scored nothing; the message says why. Its files were written."""


class _IncompleteError(Exception):
    """The endpoint has replied, but not with a whole answer; the message says what came."""


class Judge:
    """Asks a chat endpoint at temperature 0. Safe to use from several threads.

    Args:
        url: base URL, such as ``http://localhost:8000/v1``.
        model: name of the model at the endpoint.
        cache: SQLite file of the answers; made if missing. Several judges may share it, since an answer is filed under
            the name of the model and the question, and not under the URL.
        api_key: key for the endpoint; None takes OPENAI_API_KEY from the environment, if it is set.
        timeout_s: seconds for one attempt.
        retries: further attempts after the first, with growing pauses or those that the endpoint asks for.
        max_tokens: longest answer to any question, thoughts included; None for what each question asks for.
        extra_body: further fields of the requests, which replace those of the same name.

    Attributes:
        counts: numbers of questions ``asked`` and ``from_cache``, of attempts ``retried``, of questions ``failed``.
        first_failure: why the first question of this run got no answer; "" if all got one.

    Raises:
        JudgeError: the cache is not a file of answers.
        FileError: the cache cannot be written.
    """

    def __init__(
        self,
        url: str,
        model: str,
        cache: str | os.PathLike[str],
        *,
        api_key: str | None = None,
        timeout_s: float = JudgeOptions.judge_timeout,
        retries: int = JudgeOptions.judge_retries,
        max_tokens: int | None = None,
        extra_body: Mapping[str, Any] | None = None,
    ) -> None:
        self.url, self.model = base_url(url), model
        self.counts = {"asked": 0, "from_cache": 0, "retried": 0, "failed": 0}
        self.first_failure = ""
        self._retries, self._max_tokens, self._extra_body = retries, max_tokens, dict(extra_body or {})
        self._limit = LIMITS[0]
        self._client = openai.OpenAI(
            base_url=self.url, api_key=api_key or key_of_environment(), timeout=timeout_s, max_retries=retries
        )
        self._lock, self._failed_in_a_row, self._refused_in_a_row = threading.Lock(), 0, 0
        self._has_answered = False
        with file_errors(cache, "written"):
            Path(cache).parent.mkdir(parents=True, exist_ok=True)
        try:
            # Without an isolation level each answer is on disk at once. All threads use this connection, one at a time
            # by the lock.
            self._cache = sqlite3.connect(cache, check_same_thread=False, isolation_level=None, timeout=60)
            self._cache.execute(
                "CREATE TABLE IF NOT EXISTS answers (key TEXT PRIMARY KEY, model TEXT, question TEXT, answer TEXT)"
            )
        except sqlite3.DatabaseError as error:
            raise JudgeError(f"{os.fspath(cache)} is not a cache of answers: {error}. Give another file") from error

    def ask(self, question: str, max_tokens: int, examples: Sequence[tuple[str, str]] = ()) -> str | None:
        """Answer a question from the cache or by the endpoint.

        Args:
            question: the question.
            max_tokens: maximum length of the answer, unless the judge has one of its own.
            examples: questions with good answers, which the endpoint is shown as earlier turns of the chat.

        Returns:
            The whole answer, without thoughts. None if the endpoint failed on this question after all retries, or gave
            no whole answer; the next run asks it again.

        Raises:
            JudgeError: the endpoint refuses the key or the model, failed PATIENCE times in a row, or gave no answer to
                REFUSALS questions in a row.
        """
        # The limit of the question, not of the judge: with a higher limit, whole answers stay what they are.
        parts = [self.model, question, max_tokens, *examples, *([self._extra_body] if self._extra_body else [])]
        key = hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
        with self._lock:
            row = self._cache.execute("SELECT answer FROM answers WHERE key = ?", (key,)).fetchone()
            known = without_thoughts(row[0]) if row is not None else None
            self.counts["asked" if known is None else "from_cache"] += 1
        if known is not None:
            return known
        try:
            question.encode()  # a lone surrogate cannot be sent
            text, retried = self._request([*examples, (question, "")], self._max_tokens or max_tokens)
        except HOPELESS as error:
            raise JudgeError(
                f"the judge at {self.url} refuses the model {self.model!r} or the key: {error}{hint(self.url)}"
            ) from error
        except (_IncompleteError, UnicodeEncodeError) as error:
            return self._refused(error)
        except (openai.OpenAIError, ValueError) as error:  # ValueError: the body is not JSON
            is_refusal = isinstance(error, openai.APIStatusError) and error.status_code in REFUSED
            return self._refused(error) if is_refusal else self._failed(error)
        with self._lock:
            self._failed_in_a_row = self._refused_in_a_row = 0
            self._has_answered = True
            self.counts["retried"] += retried
            self._cache.execute("INSERT OR REPLACE INTO answers VALUES (?, ?, ?, ?)", (key, self.model, question, text))
        return without_thoughts(text)

    def close(self) -> None:
        """Close the cache and the connection."""
        self._cache.close()
        self._client.close()

    def _request(self, turns: Sequence[tuple[str, str]], max_tokens: int) -> tuple[str, int]:
        """Ask for a whole answer: its text with thoughts, and the number of retries."""
        messages: list[Any] = []
        for question, answer in turns:
            messages += [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
        limit = self._limit  # another thread may change it meanwhile
        try:
            raw = self._create(messages[:-1], limit, max_tokens)
        except openai.BadRequestError as error:
            if limit == LIMITS[1] or LIMITS[1] not in str(error):
                raise
            self._limit = LIMITS[1]  # the newer name, which some endpoints demand
            raw = self._create(messages[:-1], self._limit, max_tokens)
        return _whole_text(raw.text, max_tokens), raw.retries_taken

    def _create(self, messages: list[Any], limit: str, max_tokens: int) -> Any:
        create: Any = self._client.chat.completions.with_raw_response.create
        has_limit = not self._extra_body.keys().isdisjoint(LIMITS)
        body = ({} if has_limit else {limit: max_tokens}) | self._extra_body
        return create(model=self.model, messages=messages, temperature=0.0, extra_body=body)

    def _refused(self, error: Exception) -> None:
        """Count a question that got no answer because of what was asked. Texts that are too long are no sign of a
        setting that is wrong for all, once the endpoint has answered."""
        self._note(error)
        with self._lock:
            if not (self._has_answered and says_too_long(str(error))):
                self._refused_in_a_row += 1
            in_a_row = self._refused_in_a_row
        if in_a_row >= REFUSALS:
            raise JudgeError(
                f"the judge at {self.url} gave no answer to {in_a_row} questions in a row: {_said(error)}"
                f"{hint(self.url)}. The answers so far are kept: mend the cause (see --judge-max-tokens and "
                "--judge-extra-body), and run the same command again"
            ) from error

    def _failed(self, error: Exception) -> None:
        self._note(error)
        with self._lock:
            self._failed_in_a_row += 1
            if isinstance(error, openai.APIConnectionError | openai.InternalServerError | openai.RateLimitError):
                self.counts["retried"] += self._retries
            dead = self._failed_in_a_row >= PATIENCE
        if dead:
            cause = f" ({error.__cause__})" if error.__cause__ else ""
            raise JudgeError(
                f"the judge at {self.url} failed {PATIENCE} times in a row, after up to {self._retries} retries each: "
                f"{error}{cause}{hint(self.url)}. The answers so far are kept: run the same command again to continue"
            ) from error

    def _note(self, error: Exception) -> None:
        """Count a question without an answer, and show the cause of the first."""
        with self._lock:
            self.counts["failed"] += 1
            is_first = not self.first_failure
            self.first_failure = self.first_failure or _said(error)
        if is_first:
            print(f"the judge gave no answer to a question: {printable(self.first_failure)}", file=sys.stderr)


def first_failure(judge: Judge) -> str:
    """The cause of the first failure as a parenthesis for a sentence; "" if no question failed."""
    return f" (the first: {judge.first_failure})" if judge.first_failure else ""


def without_thoughts(text: str) -> str | None:
    """Take the thoughts out of an answer.

    Returns:
        What is left; None if that is no answer, since it is empty or the thoughts do not end.
    """
    text = _END_OF_THOUGHTS.sub("", _THOUGHTS.sub("", text))
    if _OPEN_THOUGHTS.search(text):
        return None
    return _MARKS.sub("", text).strip() or None


def _whole_text(body: str, max_tokens: int) -> str:
    """Read the text of a chat completion, with its thoughts.

    Raises:
        ValueError: it is no chat completion.
        _IncompleteError: it is no whole answer.
    """
    try:
        reply = json.loads(body)
        choice = reply["choices"][0]
        message, reason = choice["message"], choice.get("finish_reason")
        content = message.get("content")
        refusal = message.get("refusal")
        spent = (reply.get("usage") or {}).get("completion_tokens") or 0
    except (ValueError, LookupError, TypeError, AttributeError):
        raise ValueError(f"the answer is not a chat completion: {body[:80]!r}") from None
    if isinstance(content, list):  # parts: thoughts and texts
        content = "".join(str(part.get("text") or "") for part in content if part.get("type") in ("text", None))
    text, reason = str(content or ""), str(reason or "").lower()
    if reason in CUT or (not reason and spent >= max_tokens):
        raise _IncompleteError(
            f"the answer was cut at {max_tokens} tokens; give more by --judge-max-tokens: {text[-80:]!r}"
        )
    if reason not in WHOLE:
        raise _IncompleteError(f"the answer ended with finish_reason {reason!r}: {text[-80:]!r}")
    if refusal and not text:
        raise _IncompleteError(f"the model refuses: {str(refusal)[:200]!r}")
    if without_thoughts(text) is None:
        raise _IncompleteError(f"the answer is empty, or thoughts without an end: {text[-80:]!r}")
    return text


def _said(error: Exception) -> str:
    if isinstance(error, UnicodeEncodeError):
        return "the question holds a lone surrogate, which cannot be sent"
    return str(error)[:500]


def in_parallel(function: Callable[[Item], Result], items: Iterable[Item], threads: int) -> Iterator[Result]:
    """Apply a function to items in several threads, and yield the results in the order of the items. If a call raises,
    or the caller stops, no further calls are begun."""
    pool = ThreadPoolExecutor(threads)
    try:
        for future in [pool.submit(function, item) for item in items]:
            yield future.result()
    finally:
        pool.shutdown(cancel_futures=True)
