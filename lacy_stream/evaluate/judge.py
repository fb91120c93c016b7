"""A language model at an OpenAI-style endpoint that answers questions. Every answer is kept on disk.

An answered question is not asked again, so an interrupted run can be resumed, no matter how it ended.
"""

from __future__ import annotations

import hashlib
import json
import os
import sqlite3
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import openai

from lacy_stream.errors import UsageError
from lacy_stream.evaluate.settings import JudgeOptions
from lacy_stream.files import file_errors

Item = TypeVar("Item")
Result = TypeVar("Result")

PATIENCE = 3
"""Number of failures in a row, each after all its retries, after which the endpoint counts as dead."""
HOPELESS = (openai.AuthenticationError, openai.PermissionDeniedError, openai.NotFoundError)


class JudgeError(UsageError):
    """The endpoint cannot be used; the message says why. Earlier answers are kept."""


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

    Attributes:
        counts: numbers of questions ``asked`` and ``from_cache``, of attempts ``retried``, of questions ``failed``.

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
    ) -> None:
        key = api_key or os.environ.get("OPENAI_API_KEY") or "none"
        self.url, self.model = url, model
        self.counts = {"asked": 0, "from_cache": 0, "retried": 0, "failed": 0}
        self._retries = retries
        self._client = openai.OpenAI(base_url=url, api_key=key, timeout=timeout_s, max_retries=retries)
        self._lock, self._failed_in_a_row = threading.Lock(), 0
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
            max_tokens: maximum length of the answer.
            examples: questions with good answers, which the endpoint is shown as earlier turns of the chat.

        Returns:
            The answer. None if the endpoint failed on this question after all retries; the next run asks it again.

        Raises:
            JudgeError: the endpoint refuses the key or the model, or failed PATIENCE times in a row.
        """
        key = hashlib.sha256(json.dumps([self.model, question, max_tokens, *examples]).encode()).hexdigest()
        with self._lock:
            row = self._cache.execute("SELECT answer FROM answers WHERE key = ?", (key,)).fetchone()
            self.counts["asked" if row is None else "from_cache"] += 1
        if row is not None:
            return row[0]
        try:
            answer, retried = self._request([*examples, (question, "")], max_tokens)
        except HOPELESS as error:
            raise JudgeError(f"the judge at {self.url} refuses the model {self.model!r} or the key: {error}") from error
        except (openai.OpenAIError, ValueError) as error:  # ValueError: the body is not JSON
            return self._failed(error)
        with self._lock:
            self._failed_in_a_row = 0
            self.counts["retried"] += retried
            self._cache.execute(
                "INSERT OR REPLACE INTO answers VALUES (?, ?, ?, ?)", (key, self.model, question, answer)
            )
        return answer

    def close(self) -> None:
        """Close the cache and the connection."""
        self._cache.close()
        self._client.close()

    def _request(self, turns: Sequence[tuple[str, str]], max_tokens: int) -> tuple[str, int]:
        messages: list[Any] = []
        for question, answer in turns:
            messages += [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
        raw = self._client.chat.completions.with_raw_response.create(
            model=self.model, messages=messages[:-1], max_tokens=max_tokens, temperature=0.0
        )
        choices = getattr(raw.parse(), "choices", None)
        if not choices:
            raise ValueError(f"the answer is not a chat completion: {raw.text[:80]!r}")
        return choices[0].message.content or "", raw.retries_taken

    def _failed(self, error: Exception) -> None:
        with self._lock:
            self.counts["failed"] += 1
            if not isinstance(error, openai.BadRequestError):  # it refuses this question only
                self._failed_in_a_row += 1
            if isinstance(error, openai.APIConnectionError | openai.InternalServerError | openai.RateLimitError):
                self.counts["retried"] += self._retries
            dead = self._failed_in_a_row >= PATIENCE
        if dead:
            cause = f" ({error.__cause__})" if error.__cause__ else ""
            raise JudgeError(
                f"the judge at {self.url} failed {PATIENCE} times in a row, after up to {self._retries} retries each: "
                f"{error}{cause}. The answers so far are kept: run the same command again to continue"
            ) from error


def in_parallel(function: Callable[[Item], Result], items: Iterable[Item], threads: int) -> Iterator[Result]:
    """Apply a function to items in several threads, and yield the results in the order of the items. If a call raises,
    or the caller stops, no further calls are begun."""
    pool = ThreadPoolExecutor(threads)
    try:
        for future in [pool.submit(function, item) for item in items]:
            yield future.result()
    finally:
        pool.shutdown(cancel_futures=True)
