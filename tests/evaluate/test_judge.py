"""The judge: what it asks, what it keeps, and what it does when the endpoint fails."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest
from judges import Reply, scripted_judge

from lacy_stream.evaluate.judge import PATIENCE, REFUSALS, Judge, JudgeError, in_parallel, without_thoughts


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


NO_ANSWERS = {
    "no content": Reply(content=None),
    "empty": Reply("  "),
    "cut": Reply("- A fact.\n- Another fa", finish="length"),
    "filtered": Reply("Tr", finish="content_filter"),
    "called a tool": Reply(content=None, finish="tool_calls"),
    "open thoughts": Reply("<think>It is true that"),
    "cut thoughts": Reply("<think>It is true that", finish="length"),
    "parts without text": Reply(content=[{"type": "thinking", "thinking": []}]),
}


@pytest.mark.parametrize("reply", NO_ANSWERS.values(), ids=NO_ANSWERS)
def test_what_is_no_whole_answer_is_not_kept(reply: Reply, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """It counts as a failed question, its cause is shown, and a mended endpoint is asked again."""
    replies = [reply, Reply("True")]
    with scripted_judge(lambda _, before: replies[before]) as server:
        judge = Judge(server.url, "m", tmp_path / "cache.db", retries=0)
        assert judge.ask("q", 5) is None and judge.counts["failed"] == 1
        assert judge.first_failure in capsys.readouterr().err
        again = Judge(server.url, "m", tmp_path / "cache.db", retries=0)
        assert [again.ask("q", 5), again.ask("q", 5)] == ["True", "True"] and again.counts["asked"] == 1


def test_a_server_without_finish_reasons_is_taken_at_its_count(tmp_path: Path):
    """Where no reason is given, an answer is whole unless it has as many tokens as were allowed."""
    body = '{"choices": [{"message": {"content": "yes"}}], "usage": {"completion_tokens": %d}}'
    replies = [Reply(raw=(body % 5).encode()), Reply(raw=(body % 4).encode())]
    with scripted_judge(lambda _, before: replies[before]) as server:
        judge = Judge(server.url, "m", tmp_path / "cache.db")
        assert [judge.ask("q", 5), judge.ask("q", 5)] == [None, "yes"]


@pytest.mark.parametrize("kept", ["", " ", "<think>It is true"])
def test_what_an_earlier_version_has_kept_is_asked_again(kept: str, tmp_path: Path):
    """A cache may hold empty answers and open thoughts."""
    with scripted_judge(lambda *_: Reply("True")) as server:
        judge = Judge(server.url, "m", tmp_path / "cache.db")
        judge.ask("q", 5)
        judge._cache.execute("UPDATE answers SET answer = ?", (kept,))
        assert judge.ask("q", 5) == "True" and len(server.questions) == 2


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("<think>It may be false.</think>\n\nTrue", "True"),
        ("It may be false.\n</think>\nTrue", "True"),
        ("<thinking>a</thinking><thinking>b</thinking> True ", "True"),
        ("[THINK]false[/THINK]True", "True"),
        ("\u25c1think\u25b7false\u25c1/think\u25b7True", "True"),
        (
            "<|channel|>analysis<|message|>false<|end|><|start|>assistant<|channel|>final<|message|>True<|return|>",
            "True",
        ),
        ("<|channel|>analysis<|message|>It is false", None),
        ("<think>a</think>", None),
        ("<THINK>never ends. True", None),
        ("no thoughts: 1 < 2", "no thoughts: 1 < 2"),
    ],
)
def test_thoughts_are_no_part_of_an_answer(text: str, left: str | None):
    """They are taken out in the forms in which servers leave them in the text; without an end there is no answer."""
    assert without_thoughts(text) == left


def test_parts_of_a_message(tmp_path: Path):
    """A message in parts is its texts, without its thoughts."""
    parts = [{"type": "thinking", "thinking": [{"text": "false"}]}, {"type": "text", "text": "True"}]
    with scripted_judge(lambda *_: Reply(content=parts)) as server:
        assert Judge(server.url, "m", tmp_path / "cache.db").ask("q", 5) == "True"


def test_an_endpoint_that_wants_the_newer_name_of_the_limit(tmp_path: Path):
    """Where max_tokens is refused in favour of max_completion_tokens, this is sent from then on."""

    def script(*_: object) -> Reply:
        message = "Unsupported parameter: 'max_tokens'. Use 'max_completion_tokens' instead."
        return Reply(message, status=400) if "max_tokens" in server.requests[-1] else Reply("fine")

    with scripted_judge(script) as server:
        judge = Judge(server.url, "m", tmp_path / "cache.db", retries=0)
        assert [judge.ask("q", 5), judge.ask("r", 6)] == ["fine", "fine"]
        assert [request.get("max_completion_tokens") for request in server.requests] == [None, 5, 6]
        assert judge.counts["failed"] == 0


def test_limit_and_further_fields(tmp_path: Path):
    """A judge's own limit replaces that of the questions, and keeps their answers; other fields are other questions."""
    with scripted_judge(lambda *_: Reply("fine")) as server:
        Judge(server.url, "m", tmp_path / "cache.db").ask("q", 5)
        assert Judge(server.url, "m", tmp_path / "cache.db", max_tokens=999).ask("q", 5) == "fine"
        assert len(server.requests) == 1
        Judge(server.url, "m", tmp_path / "cache.db", max_tokens=999).ask("r", 5)
        Judge(server.url, "m", tmp_path / "cache.db", extra_body={"top_k": 1, "max_completion_tokens": 7}).ask("q", 5)
    assert server.requests[1]["max_tokens"] == 999
    assert server.requests[2]["top_k"] == 1 and server.requests[2]["max_completion_tokens"] == 7
    assert "max_tokens" not in server.requests[2]


def test_a_refusal_of_every_question_ends_the_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """The first message is shown at once, and after some questions in a row the run ends with it."""
    with scripted_judge(lambda *_: Reply("Unknown field 'max_tokens'", status=400)) as server:
        judge = Judge(server.url, "m", tmp_path / "cache.db")
        assert [judge.ask(str(i), 5) for i in range(REFUSALS - 1)] == [None] * (REFUSALS - 1)
        assert capsys.readouterr().err.count("Unknown field 'max_tokens'") == 1
        with pytest.raises(JudgeError, match=f"no answer to {REFUSALS} questions in a row.*Unknown field.*-extra-body"):
            judge.ask("one more", 5)
        assert len(server.questions) == REFUSALS


@pytest.mark.parametrize("works", [True, False])
def test_long_questions_end_a_run_only_where_nothing_is_answered(works: bool, tmp_path: Path):
    """A text that is too long is a matter of this text, unless no question fits."""

    def script(question: str, _: int) -> Reply:
        too_long = Reply("This model's maximum context length is 128 tokens.", status=400)
        return Reply("fine") if question == "short" and works else too_long

    with scripted_judge(script) as server:
        judge = Judge(server.url, "m", tmp_path / "cache.db")
        assert judge.ask("short", 5) == ("fine" if works else None)
        if works:
            assert {judge.ask(str(i), 5) for i in range(3 * REFUSALS)} == {None}
        else:
            with pytest.raises(JudgeError, match="maximum context length"):
                [judge.ask(str(i), 5) for i in range(3 * REFUSALS)]


def test_a_question_that_cannot_be_sent_ends_nothing(tmp_path: Path):
    """A lone surrogate concerns its question only."""
    with scripted_judge(lambda *_: Reply("fine")) as server:
        judge = Judge(server.url, "m", tmp_path / "cache.db")
        assert [judge.ask("a\ud800", 5) for _ in range(PATIENCE + 1)] == [None] * (PATIENCE + 1)
        assert judge.ask("a", 5) == "fine" and server.questions == ["a"]
        assert "lone surrogate" in judge.first_failure


def test_an_empty_key_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """An endpoint without keys works where OPENAI_API_KEY is set and empty, or ends in a line break."""
    for key in ("", "  ", "secret\n"):
        monkeypatch.setenv("OPENAI_API_KEY", key)
        with scripted_judge(lambda *_: Reply("fine")) as server:
            assert Judge(server.url, "m", tmp_path / f"cache{len(key)}.db", retries=0).ask("q", 5) == "fine"


def test_a_base_url_without_version_is_hinted_at(tmp_path: Path):
    """Where the endpoint knows no such path, the message says what most base URLs end in."""
    with scripted_judge(lambda *_: Reply("fine")) as server:
        short = server.url.removesuffix("/v1")
        with pytest.raises(JudgeError, match=f"try {server.url}"):
            Judge(short, "m", tmp_path / "cache.db", retries=0).ask("q", 5)
        for url in (f"{server.url}/chat/completions", f"{server.url}/", server.url.removeprefix("http://")):
            assert Judge(url, "m", tmp_path / "cache.db", retries=0).ask("q", 5) == "fine"


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
