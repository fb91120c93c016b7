"""The server as clients see it: OpenAI's own client, streaming, log-probabilities, errors."""

from __future__ import annotations

import contextlib
import json
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from serving import served, wait_until

from lacy_stream.cascade import Decoding, Delegation, generate, open_partner
from lacy_stream.cascade.engine import Engine, Progress
from lacy_stream.cascade.texts import Generation, LogProbabilities, Prompt, TextSettings, Token
from lacy_stream.cascade.vocabulary import open_vocabulary
from lacy_stream.errors import UsageError
from lacy_stream.serve.answers import GrowingAnswer, TokenNames, completion_log_probabilities
from lacy_stream.serve.metrics import Metrics
from lacy_stream.serve.runner import ClosingError, EngineError, Event, Job, Runner
from lacy_stream.serve.settings import ServeOptions
from lacy_stream.train.checkpoint import load_model

pytestmark = [pytest.mark.model, pytest.mark.process]

PROMPT = "Marie Curie was born in"


@pytest.fixture(scope="module")
def client(wordy_model: Path, tiny_partner: Path) -> Iterator[openai.OpenAI]:
    """A server of the wordy model and a partner with another vocabulary, for two texts at a time and two that wait."""
    delegation = Delegation(call_rate=0.3, threshold_per="text")
    options: dict[str, Any] = {"partner": str(tiny_partner), "name": "wordy", "delegation": delegation}
    with served(wordy_model, **options, max_batch=2, max_queue=2, max_request_bytes=100_000) as client:
        yield client


def plain(client: openai.OpenAI) -> httpx.Client:
    """The same server for requests that OpenAI's client would not send."""
    return httpx.Client(base_url=str(client.base_url).removesuffix("/v1/"), timeout=60)


def health(client: openai.OpenAI) -> dict[str, Any]:
    with plain(client) as http:
        return http.get("/health").json()


def test_a_completion(client: openai.OpenAI, wordy_model: Path, tiny_partner: Path) -> None:
    """The text is what `generate` writes with the same settings; `lacy` says who wrote each token."""
    answer = client.completions.create(model="wordy", prompt=PROMPT, max_tokens=24)
    delegation = Delegation(call_rate=0.3, threshold_per="text")
    [expected] = generate(
        load_model(wordy_model),
        [PROMPT],
        partner=open_partner(str(tiny_partner)),
        delegation=delegation,
        decoding=Decoding(24),
    )
    [choice] = answer.choices
    assert choice.text == expected.text and choice.finish_reason == "length"
    about: Any = choice.model_extra
    assert about["lacy"]["tokens"] == [[token.text, token.writer] for token in expected.tokens]
    assert about["lacy"]["call_rate"] == pytest.approx(expected.call_rate, abs=1e-6) and expected.call_rate > 0
    assert answer.model_extra is not None and 0 < answer.model_extra["lacy"]["server_call_rate"] < 1
    assert answer.usage is not None and answer.usage.completion_tokens == len(expected.tokens)
    assert about["lacy"]["partner_failed"] is False


def test_a_stream(client: openai.OpenAI) -> None:
    """The chunks add up to the answer, and the last one says why it ends and what was counted."""
    request: dict[str, Any] = {"model": "wordy", "prompt": PROMPT, "max_tokens": 16}
    whole = client.completions.create(**request).choices[0]
    chunks = list(client.completions.create(**request, stream=True, stream_options={"include_usage": True}))
    assert chunks[-1].usage is not None and chunks[-1].usage.completion_tokens >= 16
    texts = [choice.text for chunk in chunks for choice in chunk.choices]
    assert "".join(texts) == whole.text and len(texts) > 8
    assert [c.finish_reason for chunk in chunks for c in chunk.choices][-1] == "length"
    tokens = [token for chunk in chunks for c in chunk.choices for token in c.model_extra["lacy"]["tokens"]]  # type: ignore[index]
    assert tokens == whole.model_extra["lacy"]["tokens"]  # type: ignore[index]


def test_stop_strings_are_never_sent(client: openai.OpenAI) -> None:
    """What may be the beginning of a stop string is held back until that is certain."""
    request: dict[str, Any] = {"model": "wordy", "prompt": PROMPT, "max_tokens": 24}
    whole = client.completions.create(**request).choices[0].text
    stop = whole[9:13]
    cut = client.completions.create(**request, stop=stop).choices[0]
    chunks = list(client.completions.create(**request, stop=[stop, "never"], stream=True))
    streamed = "".join(choice.text for chunk in chunks for choice in chunk.choices)
    assert cut.text == streamed == whole[: whole.index(stop)] and cut.finish_reason == "stop"
    assert "".join(text for text, _ in cut.model_extra["lacy"]["tokens"]) == cut.text  # type: ignore[index]


def test_held_back_text_by_hand() -> None:
    """Tokens come out when no stop string can begin in them any more."""
    growing = GrowingAnswer(["END"])
    tokens = [Token(text, "model") for text in ("a", " E", "N", "x", " EN", "D", "rest")]
    sent = [growing.add([token], None)[0] for token in tokens[:5]]
    assert sent == ["a", "", "", " ENx", ""]
    text, last = growing.add(tokens[5:], Generation("", "a ENx ", tokens, "stop"))
    assert text == " " and [token.text for token in last] == [" "]


def test_several_prompts_and_choices(client: openai.OpenAI) -> None:
    """Lists of texts and of ids, and several choices of each, in order. Choices are drawn from seeds of their own."""
    prompts = [PROMPT, "In 1987, the"]
    alone = [client.completions.create(model="wordy", prompt=one, max_tokens=8).choices[0].text for one in prompts]
    together = client.completions.create(model="wordy", prompt=prompts, max_tokens=8)
    assert [choice.text for choice in together.choices] == alone
    drawn = client.completions.create(model="wordy", prompt=prompts, n=2, max_tokens=8, temperature=1, seed=3)
    texts = [choice.text for choice in drawn.choices]
    assert len(set(texts)) == 4 and [choice.index for choice in drawn.choices] == [0, 1, 2, 3]
    again = client.completions.create(model="wordy", prompt=PROMPT, max_tokens=8, temperature=1, seed=4)
    assert again.choices[0].text == texts[1]
    ids = client.completions.create(model="wordy", prompt=[[5, 6, 7], [8, 9]], max_tokens=2, echo=True)
    assert len(ids.choices) == 2 and ids.usage is not None and ids.usage.prompt_tokens == 5


def test_log_probabilities(client: openai.OpenAI) -> None:
    """As lm-eval reads them: the prompt's tokens first, the first one without a value, the token itself among the best
    ones; a token of the partner has none."""
    answer = client.completions.create(model="wordy", prompt=[2, 500, 600], max_tokens=12, logprobs=1, echo=True)
    logprobs: Any = answer.choices[0].logprobs
    values, top = logprobs.token_logprobs, logprobs.top_logprobs
    assert values[0] is None and top[0] is None and all(value < 0 for value in values[1:3])
    writers = [writer for _, writer in answer.choices[0].model_extra["lacy"]["tokens"]]  # type: ignore[index]
    assert [value is None for value in values[3:]] == [writer == "partner" for writer in writers]
    assert all(value in best.values() for value, best in zip(values, top) if value is not None)
    assert len(logprobs.tokens) == len(values) == len(logprobs.text_offset) == 3 + len(writers)
    scored = client.completions.create(model="wordy", prompt=[2, 500, 600], max_tokens=0, logprobs=1, echo=True)
    assert scored.choices[0].logprobs.token_logprobs == pytest.approx(values[:3])  # type: ignore[union-attr]


def test_log_probabilities_of_an_end_by_hand(wordy_model: Path) -> None:
    """The end-of-text token is the last token of a completion's log-probabilities, and adds no text."""
    names = TokenNames(open_vocabulary(load_model(wordy_model)))
    ada, end = (
        Token(text, "model", id=id, log_probabilities=LogProbabilities(-1.0, ())) for text, id in (("Ada", 0), ("", 2))
    )
    text = Generation("", "Ada", [ada], "end", end=end)
    found = completion_log_probabilities(names, text, text.tokens, 0, echo=False)
    assert found["tokens"][1:] == ["</s>"] and found["token_logprobs"] == [-1, -1]
    assert completion_log_probabilities(names, None, text.tokens, 0, echo=False)["token_logprobs"] == [-1]


def test_models_and_metrics(client: openai.OpenAI) -> None:
    """The model is listed, the server is healthy, and what it did is counted."""
    assert [model.id for model in client.models.list()] == ["wordy"]
    about = health(client)
    assert about["status"] == "ok" and about["partner"]["status"] == "ok" and about["running"] == 0
    with plain(client) as http:
        lines = dict(line.rsplit(" ", 1) for line in http.get("/metrics").text.splitlines() if line[0] != "#")
    assert float(lines['lacy_tokens_total{writer="partner"}']) > 0 and float(lines["lacy_partner_up"]) == 1
    assert float(lines['lacy_requests_total{endpoint="/v1/models",status="200"}']) >= 1
    assert float(lines["lacy_call_rate_target"]) == 0.3


FIELDS: dict[str, Any] = {"model": "wordy", "prompt": "Ada", "max_tokens": 4}
BAD: list[tuple[Any, int, str]] = [
    ({"prompt": "Ada " * 600}, 400, "context of 512"),
    ({"prompt": ""}, 400, "the prompt is empty"),
    ({"prompt": []}, 400, "the prompt is empty"),
    ({"prompt": [1, 40_000]}, 400, "40000 is no token of wordy, whose ids are 0 to 31999"),
    ({"prompt": [32_000]}, 400, "32000 is no token"),
    ({"prompt": ["Ada"] * 5}, 400, "asks for 5 texts, and the server holds 4"),
    ({"temprature": 1}, 400, "temprature is no field of this request"),
    ({"temperature": 3}, 400, "temperature: Input should be less than or equal to 2"),
    ({"presence_penalty": 0.5}, 400, "presence_penalty: a penalty other than the server's is not supported"),
    ({"max_tokens": 0}, 400, "writes nothing"),
    ({"max_tokens": "many"}, 400, "max_tokens"),
    ({"stop": [""]}, 400, "stop"),
    ({"stream_options": {}}, 400, "stream_options need stream: true"),
    ({"model": "gpt-4"}, 404, "'gpt-4' does not exist here: use 'wordy'"),
    (b"{", 400, "the body is no JSON"),
    (b"[" * 50_000, 400, ""),
    (b'{"model": "wordy", "prompt": "\\ud800"}', 400, "prompt"),
    (b"\xff", 400, ""),
    (b" " * (10 << 20), 413, "larger than 100,000 bytes"),
]


@pytest.mark.parametrize(("change", "status", "message"), BAD, ids=[str(case[0])[:24] for case in BAD])
def test_bad_requests(client: openai.OpenAI, change: Any, status: int, message: str) -> None:
    """Each is refused with an error in OpenAI's form that says what is wrong."""
    body = change if isinstance(change, bytes) else json.dumps(FIELDS | change).encode()
    with plain(client) as http:
        answer = http.post("/v1/completions", content=body, headers={"Content-Type": "application/json"})
    assert answer.status_code == status
    error = answer.json()["error"]
    assert message in error["message"] and error["type"] == "invalid_request_error"
    if isinstance(change, dict):
        assert error["param"] == next(iter(change)) or error["param"] in (None, "prompt")


def test_requests_that_miss_the_server(client: openai.OpenAI) -> None:
    """A body without its type, a path that does not exist, and a path with another method are told what is right."""
    with plain(client) as http:
        for answer, status, message in (
            (http.post("/v1/completions", content=json.dumps(FIELDS)), 400, "header Content-Type: application/json"),
            (http.post("/v1/completions", json=["Ada"]), 400, "the body is no JSON object"),
            (http.post("/completions", json=FIELDS), 404, "nothing at /completions: the paths are /v1/completions"),
            (http.get("/v1/completions"), 405, "/v1/completions does not take GET"),
        ):
            assert answer.status_code == status and message in answer.json()["error"]["message"]


def test_a_long_body_that_does_not_say_so(client: openai.OpenAI) -> None:
    """A body without a length is read up to the limit."""
    with plain(client) as http:
        answer = http.post("/v1/completions", content=iter([b" " * 60_000] * 4))
    assert answer.status_code == 413


def test_no_chat_template(client: openai.OpenAI) -> None:
    """A tokenizer without a template says what to use instead."""
    with pytest.raises(openai.BadRequestError, match="no chat template: use /v1/completions"):
        client.chat.completions.create(model="wordy", messages=[{"role": "user", "content": "Hi"}])


def test_a_foreign_host(client: openai.OpenAI) -> None:
    """A web page under another name cannot use a server without a key."""
    with plain(client) as http:
        answer = http.get("/v1/models", headers={"Host": "attacker.example"})
        assert answer.status_code == 403 and "attacker.example" in answer.json()["error"]["message"]
        assert http.get("/v1/models", headers={"Host": "[::1"}).status_code == 403
        for host in ("localhost:1", "[::1]:80"):
            assert http.get("/health", headers={"Host": host}).status_code == 200


def test_a_full_queue_and_clients_that_go_away(client: openai.OpenAI) -> None:
    """Two texts are written, two wait, and the next is told to come back. Clients that go away free their places."""
    endless: dict[str, Any] = {"model": "wordy", "prompt": "He", "max_tokens": 500}
    with client.completions.create(**endless, stream=True) as stream, contextlib.ExitStack() as leaving:
        next(iter(stream))
        for _ in range(3):
            leaving.enter_context(asked(client, endless))
        wait_until(lambda: (health(client)["running"], health(client)["queued"]) == (2, 2))
        with pytest.raises(openai.RateLimitError, match="texts wait already") as refused:
            client.completions.create(**endless)
        assert int(refused.value.response.headers["Retry-After"]) >= 1
    wait_until(lambda: (health(client)["running"], health(client)["queued"]) == (0, 0))


def asked(client: openai.OpenAI, request: dict[str, Any]) -> socket.socket:
    """A connection on which a request was sent whose answer nobody reads."""
    body = json.dumps(request)
    connection = socket.create_connection((client.base_url.host, client.base_url.port))
    head = f"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n"
    connection.sendall(f"{head}Content-Type: application/json\r\n\r\n{body}".encode())
    return connection


def test_a_key(wordy_model: Path) -> None:
    """Requests without the key are refused, but for /health; a server without a partner writes alone. A request that
    takes too long ends with an error that says so."""
    with served(wordy_model, api_key="s\u00e9cret", name="m", time_limit_s=2, max_batch=1) as client:
        with plain(client) as http:
            for headers in ({}, {"Authorization": "Bearer wrong"}):
                refused = http.get("/v1/models", headers=headers)
                assert refused.status_code == 401 and refused.json()["error"]["code"] == "invalid_api_key"
            assert http.get("/metrics").status_code == 401 and http.get("/health").json()["partner"]["status"] == "none"
            key = {"Authorization": "Bearer s\u00e9cret".encode()}
            answer = http.post("/v1/completions", json=FIELDS | {"model": "m"}, headers=key)  # type: ignore[arg-type]
            assert answer.json()["lacy"]["call_rate"] == 0
            late = http.post("/v1/completions", json=FIELDS | {"model": "m", "max_tokens": 505, "n": 8}, headers=key)  # type: ignore[arg-type]
            assert late.status_code == 504 and "longer than 2 s" in late.json()["error"]["message"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"host": "0.0.0.0"}, "0.0.0.0, which others can reach: give --api-key"),
        ({"host": "::"}, "others can reach"),
        ({"api_key": " "}, "the API key is empty"),
        ({"max_batch": 0}, "max_batch is 0"),
        ({"port": 70_000}, "port is 70000"),
        ({"time_limit_s": 0}, "time_limit_s is 0"),
        ({"delegation": {"call_rate": 2}}, "call_rate is 2"),
    ],
)
def test_options_that_mean_nothing(options: dict[str, Any], message: str) -> None:
    """Each is an error that names the value."""
    with pytest.raises(UsageError, match=message):
        if "delegation" in options:
            options["delegation"] = Delegation(**options["delegation"])
        ServeOptions("model", **options)


def test_an_engine_that_fails(tiny_partner: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A bug or too little memory ends the texts that are being written with an error. The next ones are written."""
    model = load_model(tiny_partner)
    events: list[Event] = []

    def make_engine() -> Engine:
        return Engine(model, calls=False, penalty=1.0, many=True)

    def job() -> Job:
        return Job(Prompt("Ada"), TextSettings(3), events.append)

    runner = Runner(make_engine, Metrics(0), max_batch=2, max_queue=1, watch=None)
    step = Engine.step
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Engine, "step", lambda self: (step(self), 1 / 0))
            runner.submit([job(), job(), job()])
            wait_until(lambda: len(events) == 3)
        assert all(isinstance(event, EngineError) for event in events)
        assert "ZeroDivisionError" in str(events[0]) and "the engine failed" in caplog.text
        runner.submit([job()])
        wait_until(lambda: isinstance(events[-1], Progress) and events[-1].generation is not None)
    finally:
        runner.close()
    with pytest.raises(ClosingError):
        runner.submit([job()])
