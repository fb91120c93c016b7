"""docs/serving.md: its example runs, its commands have options that exist, its compose file is one."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from serving import served

from lacy_stream.cli.main import _parser
from lacy_stream.cli.options import parse_options
from lacy_stream.serve.settings import ServeOptions

pytestmark = [pytest.mark.model, pytest.mark.process]

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "serving.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    """The code blocks in a language."""
    return re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)


def test_the_example(wordy_model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The client of OpenAI prints the text, who wrote it, and a stream. The bodies for curl are answered."""
    (code,) = blocks("python")
    with served(wordy_model, name="lacy", partner=str(wordy_model)) as client:
        for body in re.findall(r"-d '(.*?)'", "".join(blocks("bash"))):
            answer = client.post("/completions", cast_to=httpx.Response, body=json.loads(body))
            assert answer.status_code == 200 and "lacy" in answer.text
        exec(compile(code.replace("http://127.0.0.1:8000/v1", str(client.base_url)), "docs/serving.md", "exec"), {})
    printed = capsys.readouterr().out
    assert len(re.findall(r" (?:model|partner)$", printed, re.MULTILINE)) >= 32 and "partner" in printed


def test_commands_have_options_that_exist(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each command of the page, and that of the compose file, is understood."""
    (compose,) = (yaml.safe_load(block) for block in blocks("yaml"))
    pair: dict[str, Any] = compose["services"]["pair"]
    assert set(compose["services"]) == {"partner", *pair["depends_on"], "pair"}
    commands = [pair["command"], *re.findall(r"^lacy-stream serve.*$", "\n".join(blocks("bash")), re.MULTILINE)]
    assert len(commands) == 3
    for command in commands:
        arguments = shlex.split(command.removesuffix("&"))[1:]
        args = _parser().parse_args(arguments)
        options = parse_options(ServeOptions, args, **({"api_key": "k"} if "0.0.0.0" in command else {}))
        assert options.model.endswith("lacy")
    assert parse_options(ServeOptions, _parser().parse_args(shlex.split(commands[0])[1:]), api_key="k").max_batch == 16


def test_every_option_of_the_page_exists() -> None:
    """Options that the text names are those of the command."""
    named = set(re.findall(r"`(--[a-z-]+)", PAGE))
    assert len(named) > 12
    parser = next(iter(_parser()._subparsers._group_actions)).choices["serve"]  # type: ignore[union-attr, index]
    parser._fill(parser)
    assert named <= set(parser._option_string_actions)
