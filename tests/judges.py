"""Judges for tests: OpenAI-style endpoints on 127.0.0.1, scripted or by a real model in a process of its own."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import NamedTuple


class Reply(NamedTuple):
    """What an endpoint does with one question."""

    text: str = ""
    status: int = 200
    """Any other: that status, with the text as the error."""
    delay_s: float = 0.0
    raw: bytes | None = None
    """This body, in place of a chat completion."""
    finish: str | None = "stop"
    """The finish reason."""
    content: object = ()
    """The content of the message, in place of the text."""


class ScriptedJudge:
    """An endpoint that answers each question by a function of it; keeps what it was asked.

    ``script(question, how often this question was asked before) -> Reply``; it may be changed at any time.
    """

    def __init__(self, script: Callable[[str, int], Reply]) -> None:
        self.script, self.questions, self.requests = script, list[str](), list[dict]()
        self._lock, self._end = threading.Lock(), threading.Event()
        judge = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with contextlib.suppress(OSError):  # whoever asked has gone
                    judge._answer(self, request)

            def log_message(self, *_: object) -> None: ...

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads, self._server.block_on_close = True, False
        self.url = f"http://127.0.0.1:{self._server.server_port}/v1"
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    def close(self) -> None:
        self._end.set()
        self._server.shutdown()
        self._server.server_close()

    def _answer(self, handler: BaseHTTPRequestHandler, request: dict) -> None:
        if handler.path != "/v1/chat/completions":
            return _send(handler, 404, b'{"detail": "Not Found"}')
        assert request["temperature"] == 0
        question = request["messages"][-1]["content"]
        with self._lock:
            before = self.questions.count(question)
            self.questions.append(question)
            self.requests.append(request)
        reply = self.script(question, before)
        self._end.wait(reply.delay_s)
        if reply.raw is not None:
            body = reply.raw
        elif reply.status != 200:
            body = json.dumps({"error": {"message": reply.text}}).encode()
        else:
            body = completion(request["model"], reply.text if reply.content == () else reply.content, reply.finish)
        _send(handler, reply.status, body)


def _send(handler: BaseHTTPRequestHandler, status: int, body: bytes) -> None:
    handler.send_response(status)
    handler.send_header("Content-Type", "application/json")
    handler.send_header("Content-Length", str(len(body)))
    handler.end_headers()
    handler.wfile.write(body)


def completion(model: str, content: object, finish: str | None = "stop") -> bytes:
    """The body of a chat completion."""
    choice = {"index": 0, "finish_reason": finish, "message": {"role": "assistant", "content": content}}
    return json.dumps(
        {"id": "1", "object": "chat.completion", "created": 0, "model": model, "choices": [choice]}
    ).encode()


@contextlib.contextmanager
def scripted_judge(script: Callable[[str, int], Reply]) -> Iterator[ScriptedJudge]:
    judge = ScriptedJudge(script)
    try:
        yield judge
    finally:
        judge.close()


@contextlib.contextmanager
def model_judge(folder: Path) -> Iterator[str]:
    """A real model in a process of its own; yields the endpoint's URL."""
    command = [sys.executable, str(Path(__file__).with_name("chat_server.py")), str(folder)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as server:
        assert server.stdout is not None and server.stderr is not None
        port = server.stdout.readline()
        assert port, server.stderr.read().decode()
        try:
            yield f"http://127.0.0.1:{int(port)}/v1"
        finally:
            server.kill()
