"""The judge: what it asks, what it keeps, and what it does when the endpoint fails."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest
from judges import Reply, scripted_judge

from lacy_stream.evaluate.judge import PATIENCE, Judge, JudgeError, in_parallel


def test_answers_are_kept_on_disk(tmp_path: Path):
    """A question is asked once, whatever becomes of the process; another model or length is another question."""
    with scripted_judge(lambda question, _: Reply(question.upper())) as server:
        judge = Judge(server.url, "m", tmp_path / "a" / "cache.db")
        assert [judge.ask("why", 5), judge.ask("why", 5), judge.ask("how", 5)] == ["WHY", "WHY", "HOW"]
        assert judge.counts == {"asked": 2, "from_cache": 1, "retried": 0, "failed": 0}
        again = Judge(server.url, "m", tmp_path / "a" / "cache.db")
        assert again.ask("how", 5) == "HOW" and again.counts["asked"] == 0
        Judge(server.url, "other", tmp_path / "a" / "cache.db").ask("how", 5)
        again.ask("how", 6)
        again.ask("how", 5, [("who", "me")])
        assert server.questions == ["why", "how", "how", "how", "how"]


def test_examples_are_earlier_turns(tmp_path: Path):
    """The endpoint is shown examples as turns before the question."""
    with scripted_judge(lambda *_: Reply("fine")) as server:
        Judge(server.url, "m", tmp_path / "cache.db").ask("q", 7, [("e1", "a1"), ("e2", "a2")])
    (request,) = server.requests
    assert [(turn["role"], turn["content"]) for turn in request["messages"]] == [
        ("user", "e1"), ("assistant", "a1"), ("user", "e2"), ("assistant", "a2"), ("user", "q"),
    ]  # fmt: skip
    assert (request["max_tokens"], request["model"], request["temperature"]) == (7, "m", 0)


def test_failures_are_retried_and_counted(tmp_path: Path):
    """An endpoint that fails twice and a busy one are asked again; the retries are counted."""

    def script(question: str, before: int) -> Reply:
        return Reply("fine") if before == 2 else Reply("no", status=(500, 429)[before])

    with scripted_judge(script) as server:
        judge = Judge(server.url, "m", tmp_path / "cache.db", retries=2)
        assert judge.ask("q", 5) == "fine"
        assert judge.counts == {"asked": 1, "from_cache": 0, "retried": 2, "failed": 0}


def test_a_question_that_fails_is_not_kept(tmp_path: Path):
    """A question that is too long, or answered by what is no completion, has no answer, and is asked again later."""
    replies = [Reply("too long", status=400), Reply(raw=b"<html>"), Reply(raw=b'{"object": "error"}'), Reply("ok")]
    with scripted_judge(lambda _, before: replies[before]) as server:
        judge = Judge(server.url, "m", tmp_path / "cache.db", retries=0)
        assert [judge.ask("q", 5) for _ in replies] == [None, None, None, "ok"]
        assert judge.counts == {"asked": 4, "from_cache": 0, "retried": 0, "failed": 3}


def test_a_dead_endpoint_ends_the_run_and_loses_nothing(tmp_path: Path):
    """After several failures in a row the error names the URL; what was answered is there when it lives again."""
    alive = True
    with scripted_judge(lambda *_: Reply("yes") if alive else Reply("", status=503)) as server:
        judge = Judge(server.url, "m", tmp_path / "cache.db", retries=0)
        assert judge.ask("first", 5) == "yes"
        alive = False
        assert [judge.ask(f"q{i}", 5) for i in range(PATIENCE - 1)] == [None] * (PATIENCE - 1)
        with pytest.raises(JudgeError, match=f"{server.url} failed {PATIENCE} times in a row.*answers so far are kept"):
            judge.ask("one more", 5)
        assert judge.ask("first", 5) == "yes"
    judge = Judge(server.url, "m", tmp_path / "cache.db", retries=0)  # nobody listens there any more
    for _ in range(PATIENCE - 1):
        assert judge.ask("q", 5) is None
    with pytest.raises(JudgeError, match="Connection"):
        judge.ask("q", 5)


def test_single_failures_end_nothing(tmp_path: Path):
    """Only failures in a row make an endpoint dead, however many there are."""
    with scripted_judge(lambda asked, _: Reply("yes") if asked.endswith("0") else Reply("", status=500)) as server:
        judge = Judge(server.url, "m", tmp_path / "cache.db", retries=0)
        assert [judge.ask(str(i), 5) for i in (0, 1, 2, 10, 11, 12, 20)] == [
            "yes",
            None,
            None,
            "yes",
            None,
            None,
            "yes",
        ]
        assert judge.counts["failed"] == 4


def test_a_slow_endpoint_is_a_failure(tmp_path: Path):
    """An answer that takes longer than the timeout is not waited for."""
    with scripted_judge(lambda *_: Reply("late", delay_s=30)) as server:
        start = time.monotonic()
        assert Judge(server.url, "m", tmp_path / "cache.db", timeout_s=0.2, retries=0).ask("q", 5) is None
        assert time.monotonic() - start < 20


def test_a_wrong_model_or_key_is_an_error_at_once(tmp_path: Path):
    """An error that no retry can help is reported at the first question."""
    for status in (401, 404):
        with scripted_judge(lambda *_, status=status: Reply("unknown", status=status)) as server:
            with pytest.raises(JudgeError, match="refuses the model 'm' or the key.*unknown"):
                Judge(server.url, "m", tmp_path / "cache.db").ask("q", 5)
            assert len(server.questions) == 1


def test_a_cache_that_is_none_is_an_error(tmp_path: Path):
    """Another file under the cache's name is left alone and named."""
    (tmp_path / "cache.db").write_text("not a database, but long enough to be read as one" * 20)
    with pytest.raises(JudgeError, match="cache.db is not a cache of answers"):
        Judge("http://127.0.0.1:9/v1", "m", tmp_path / "cache.db")


def test_parallel_answers_are_in_order_and_stop_at_an_error():
    """Several run at once, order is kept, and after an error nothing new is begun."""
    begun, together = [], threading.Barrier(2, timeout=60)

    def square(number: int) -> int:
        begun.append(number)
        if number < 2:
            together.wait()
        if number == 3:
            raise JudgeError("dead")
        time.sleep(0.01)
        return number * number

    answers = in_parallel(square, range(100), 2)
    assert [next(answers), next(answers), next(answers)] == [0, 1, 4]
    with pytest.raises(JudgeError):
        next(answers)
    assert len(begun) < 20
