"""The server in use: lm-eval, many clients with a partner that dies, a chat, and a process of its own."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from servers import completions_server, free_port
from serving import served, wait_until
from transformers import AutoTokenizer

from lacy_stream.cascade import Delegation
from lacy_stream.cascade.local import TransformersPartner
from lacy_stream.cascade.open import open_partner
from lacy_stream.cascade.vocabulary import open_vocabulary
from lacy_stream.cli.main import main
from lacy_stream.serve.chat import ChatTemplate
from lacy_stream.train.checkpoint import load_model

pytestmark = [pytest.mark.model, pytest.mark.process]

ITEMS = 6
HALF = Delegation(call_rate=0.5)


def test_lm_eval_through_the_server(wordy_model: Path, shared: Path, tmp_path: Path) -> None:
    """PIQA by lm-eval's `local-completions` gives the log-likelihoods and the accuracy of lm-eval on a model with
    <CALL>, which is banned."""
    assert_same_scores(wordy_model, shared, tmp_path)


def test_lm_eval_of_a_real_model(smollm: Path, shared: Path, tmp_path: Path) -> None:
    """The same with SmolLM2, whose tokenizer puts a token before a text, and which ends some texts after the prompt."""
    assert_same_scores(smollm, shared, tmp_path, ",add_bos_token=True")


def assert_same_scores(model: Path, shared: Path, folder: Path, more: str = "") -> None:
    from lm_eval.evaluator import simple_evaluate

    from lacy_stream.evaluate.harness import LacyLM
    from lacy_stream.evaluate.nlu import local_tasks

    options: dict[str, Any] = {"tasks": ["piqa"], "limit": ITEMS, "bootstrap_iters": 0}
    manager = local_tasks(shared, folder)
    here: Any = simple_evaluate(model=LacyLM(str(model)), task_manager=manager, **options)  # type: ignore[call-arg]
    with served(model, name="model") as client:
        about = f"model=model,base_url={client.base_url}completions,tokenizer={model},max_length=512{more}"
        there: Any = simple_evaluate(
            model="local-completions", model_args=f"{about},num_concurrent=4", task_manager=manager, **options
        )
    found, expected = (
        [[answer for (answer, *_) in item["filtered_resps"]] for item in results["samples"]["piqa"]]
        for results in (there, here)
    )
    assert len(found) == ITEMS
    for one, other in zip(found, expected, strict=True):
        assert one == pytest.approx(other, abs=1e-2, rel=1e-5)
    accuracies = [results["results"]["piqa"]["acc,none"] for results in (there, here)]
    assert accuracies[0] == accuracies[1]


def test_a_partner_that_hangs(wordy_model: Path) -> None:
    """Calls to an endpoint that hangs end at the time limit, and the texts are continued alone. When it answers again,
    calls are made again."""
    with (
        completions_server("vllm") as (url, process),
        served(wordy_model, partner=f"{url}#stub", delegation=HALF, name="wordy", partner_timeout_s=2) as client,
        ThreadPoolExecutor(8) as pool,
    ):
        process.send_signal(signal.SIGSTOP)
        choices = list(pool.map(lambda number: ask(client, number), range(8)))
        assert all(len(choice.model_extra["lacy"]["tokens"]) >= 16 for choice in choices)
        assert any(choice.model_extra["lacy"]["partner_failed"] for choice in choices)
        assert "does not answer within 2 s" in health_of_partner(client)["reason"]
        process.send_signal(signal.SIGCONT)
        wait_until(lambda: partner_status(client) == "ok")
        assert ask(client, 0).model_extra["lacy"]["call_rate"] > 0


def ask(client: openai.OpenAI, number: int, **more: Any) -> Any:
    return client.completions.create(model="wordy", prompt=f"{number}, or", max_tokens=16, **more).choices[0]


@pytest.mark.parametrize("failure", ["continue", "error"])
def test_many_clients_and_a_partner_that_dies(wordy_model: Path, failure: Any) -> None:
    """32 clients at once; the partner's endpoint dies and comes back. Every request is answered: with `continue` by a
    whole text that says whether the partner failed, with `error` by a text or an error that says so. With the partner
    back, calls are made again."""
    port, answers, errors = free_port(), [], []
    ended = threading.Event()

    def client_of(client: openai.OpenAI, number: int) -> None:
        while not ended.is_set():
            try:
                answers.append(ask(client, number))
            except openai.InternalServerError as error:
                assert error.code == "partner_unavailable"
                errors.append(error)

    def calls(choice: Any) -> bool:
        return choice.model_extra["lacy"]["call_rate"] > 0.2

    options: dict[str, Any] = {"partner": f"http://127.0.0.1:{port}/v1#stub", "delegation": HALF, "name": "wordy"}
    with (
        served(wordy_model, **options, partner_failure=failure, max_queue=32) as client,
        ThreadPoolExecutor(32) as pool,
    ):
        assert partner_status(client) == "unavailable"
        asked = [pool.submit(client_of, client, number) for number in range(32)]
        try:
            for _ in range(2):
                with completions_server("vllm", "", f"port={port}"):
                    wait_until(lambda: partner_status(client) == "ok")
                    wait_for_more(answers, calls)
                wait_until(lambda: partner_status(client) == "unavailable")
                wait_for_more(answers if failure == "continue" else errors)
        finally:
            ended.set()
        for one in asked:
            one.result()
        assert partner_status(client) == "unavailable"
    assert all(len(choice.model_extra["lacy"]["tokens"]) >= 16 for choice in answers)
    alone = [choice for choice in answers if choice.model_extra["lacy"]["partner_failed"]]
    assert bool(alone) == (failure == "continue") and bool(errors) == (failure == "error")


def wait_for_more(found: list[Any], wanted: Callable[[Any], bool] = lambda _: True) -> None:
    """Wait until something is added that is wanted."""
    before = len(found)
    wait_until(lambda: any(map(wanted, found[before:])))


def partner_status(client: openai.OpenAI) -> str:
    partner = health_of_partner(client)
    assert partner["status"] == "ok" or "does not answer" in partner["reason"]
    return partner["status"]


def health_of_partner(client: openai.OpenAI) -> dict[str, Any]:
    return httpx.get(str(client.base_url).replace("/v1/", "/health")).json()["partner"]


def test_a_chat(tiny_partner: Path, tmp_path: Path) -> None:
    """Where the tokenizer has a chat template, the answer continues what it makes of the messages, plain and streamed;
    messages that it refuses are an error of the request."""
    model = chatty(tiny_partner, tmp_path / "chatty")
    messages: list[Any] = [{"role": "system", "content": "Be short."}, {"role": "user", "content": "Hi"}]
    with served(model) as client:
        request: dict[str, Any] = {"model": "chatty", "messages": messages, "max_tokens": 8}
        whole = client.chat.completions.create(**request, logprobs=True, top_logprobs=2)
        prompt = "<system>Be short.<user>Hi<assistant>"
        same = client.completions.create(model="chatty", prompt=list(prompt.encode()), max_tokens=8)
        chunks = list(client.chat.completions.create(**request, stream=True))
        parts: list[Any] = [{"role": "user", "content": [{"type": "text", "text": "Hi"}]}]
        client.chat.completions.create(model="chatty", messages=parts, max_completion_tokens=1)
        with pytest.raises(openai.BadRequestError, match="does not accept the messages: no assistants"):
            client.chat.completions.create(model="chatty", messages=[{"role": "assistant", "content": "x"}])
        with pytest.raises(openai.BadRequestError, match="tools is no field"):
            client.chat.completions.create(**request, tools=[])
    assert whole.choices[0].message.content == same.choices[0].text
    assert whole.choices[0].logprobs is not None and whole.choices[0].logprobs.content is not None
    assert [len(token.top_logprobs) for token in whole.choices[0].logprobs.content] == [2] * 8
    assert chunks[0].choices[0].delta.role == "assistant"
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == same.choices[0].text


def chatty(model: Path, folder: Path) -> Path:
    """A copy of a model whose tokenizer has a chat template."""
    shutil.copytree(model, folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template = (
        "{% for message in messages %}{% if message.role == 'assistant' %}{{ raise_exception('no assistants') }}"
        "{% endif %}<{{ message.role }}>{{ message.content }}{% endfor %}<assistant>"
    )
    tokenizer.save_pretrained(folder)
    return folder


def test_what_the_partner_reads_of_a_chat(tiny_partner: Path, wordy_model: Path, tmp_path: Path) -> None:
    """A partner with a template reads the messages by its own; one without, or at an endpoint, by the small model's;
    one with the same vocabulary reads the small model's ids."""
    chat = ChatTemplate(model := load_model(chatty(tiny_partner, tmp_path / "m")), open_vocabulary(model))
    messages = [{"role": "user", "content": "Hi"}]
    ids = tuple(b"<user>Hi<assistant>")
    other, same = open_partner(str(wordy_model)), open_partner(str(tiny_partner))
    assert isinstance(other, TransformersPartner)
    assert chat.prompt(messages, same)[:2] == ("<user>Hi<assistant>", "")
    assert chat.prompt(messages, other) == ("", "<user>Hi<assistant>", "", ids)
    other.vocabulary.tokenizer.chat_template = "[{{ messages[0].content }}]"
    assert chat.prompt(messages, other) == ("", "[Hi]", "", ids)


def test_a_process_of_its_own(wordy_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`lacy-stream serve` says where it listens, refuses a port in use, and after SIGTERM finishes the answers that
    are under way."""
    command = [
        sys.executable,
        "-m",
        "lacy_stream.cli.main",
        "serve",
        str(wordy_model),
        "--port",
        "0",
        "--name",
        "wordy",
    ]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            url = process.stdout.readline().split()[-1]
            port = url.split(":")[2].split("/")[0]
            assert main(["serve", str(wordy_model), "--port", port]) == 2
            assert f"port {port} of 127.0.0.1 is in use" in capsys.readouterr().err
            with openai.OpenAI(base_url=url, api_key="none", max_retries=0, timeout=60) as client:
                wait_until(lambda: answers(client))
                stream = client.completions.create(model="wordy", prompt="He", max_tokens=300, stream=True)
                chunks = iter(stream)
                next(chunks)
                process.send_signal(signal.SIGTERM)
                tokens = sum(len(chunk.choices[0].model_extra["lacy"]["tokens"]) for chunk in chunks)  # type: ignore[index]
            assert tokens == 299 and process.wait(60) == 0
        finally:
            process.kill()


def answers(client: openai.OpenAI) -> bool:
    try:
        return bool(client.models.list().data)
    except openai.APIConnectionError:
        return False


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--partner", "MODEL"], "has no <CALL>: use --delegate"),
        (["--partner", "none.gguf", "--delegate", "random"], "no file 'none.gguf'"),
        (["--host", "0.0.0.0"], "give --api-key"),
        (["--host", "192.0.2.1", "--api-key", "k"], "cannot be listened at"),
    ],
)
def test_commands_that_cannot_serve(
    tiny_partner: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    """Each mistake is one line that names it."""
    arguments = [str(tiny_partner) if argument == "MODEL" else argument for argument in arguments]
    assert main(["serve", str(tiny_partner), "--port", "0", *arguments]) == 2
    assert message in capsys.readouterr().err
