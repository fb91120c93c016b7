"""A language model behind an OpenAI-style endpoint that answers questions; every answer is kept on disk.

Nothing that was answered is asked again, so a run that ends early, however it does, goes on where it was.
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
Answer = TypeVar("Answer")

PATIENCE = 3
"""Failures in a row, each after all its retries, after which the endpoint is taken for dead."""
HOPELESS = (openai.AuthenticationError, openai.PermissionDeniedError, openai.NotFoundError)


class JudgeError(UsageError):
    """The endpoint cannot be used; the message says why. What was answered before is kept."""


class Judge:
    """Asks a chat endpoint, greedily (temperature 0). Safe to use from several threads.

    Args:
        url: base URL, as ``http://localhost:8000/v1``.
        model: name that the endpoint knows the model by.
        cache: SQLite file of the answers, made where it is missing. Several judges may share it: an answer belongs to
            the model's name and the question, not to the URL.
        api_key: for the endpoint; None is the environment's OPENAI_API_KEY. Endpoints of one's own need none.
        timeout_s: for one attempt.
        retries: further attempts after one that failed, with growing pauses or the ones that the endpoint asks for.

    Attributes:
        counts: ``asked``, ``from_cache``, ``retried``, ``failed`` so far.
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
            self._cache = sqlite3.connect(cache, check_same_thread=False, isolation_level=None, timeout=60)
            self._cache.execute(
                "CREATE TABLE IF NOT EXISTS answers (key TEXT PRIMARY KEY, model TEXT, question TEXT, answer TEXT)"
            )
        except sqlite3.DatabaseError as error:
            raise JudgeError(f"{os.fspath(cache)} is no cache of answers: {error}") from error

    def ask(self, question: str, max_tokens: int, examples: Sequence[tuple[str, str]] = ()) -> str | None:
        """The answer, from the cache or the endpoint; None where the endpoint failed for this question, after all
        retries. That is counted, and the next run asks again.

        Args:
            max_tokens: of the answer.
            examples: questions with the answers that they should have; the endpoint is shown them as earlier turns.

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
        except (openai.OpenAIError, ValueError) as error:  # ValueError: a body that is no JSON
            return self._failed(error)
        with self._lock:
            self._failed_in_a_row = 0
            self.counts["retried"] += retried
            self._cache.execute(
                "INSERT OR REPLACE INTO answers VALUES (?, ?, ?, ?)", (key, self.model, question, answer)
            )
        return answer

    def close(self) -> None:
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
            raise ValueError(f"no chat completion but {raw.text[:80]!r}")
        return choices[0].message.content or "", raw.retries_taken

    def _failed(self, error: Exception) -> None:
        with self._lock:
            self.counts["failed"] += 1
            if not isinstance(error, openai.BadRequestError):  # it answers, but not to this question: too long, say
                self._failed_in_a_row += 1
            if isinstance(error, openai.APIConnectionError | openai.InternalServerError | openai.RateLimitError):
                self.counts["retried"] += self._retries
            dead = self._failed_in_a_row >= PATIENCE
        if dead:
            cause = f" ({error.__cause__})" if error.__cause__ else ""
            raise JudgeError(
                f"the judge at {self.url} failed {PATIENCE} times in a row, after up to {self._retries} retries each: "
                f"{error}{cause}. The answers so far are kept: the same command goes on from there"
            ) from error


def in_parallel(function: Callable[[Item], Answer], items: Iterable[Item], threads: int) -> Iterator[Answer]:
    """The function's answers in the order of the items. Where one raises, or the caller stops, nothing new is begun."""
    pool = ThreadPoolExecutor(threads)
    try:
        for future in [pool.submit(function, item) for item in items]:
            yield future.result()
    finally:
        pool.shutdown(cancel_futures=True)
