"""A server of `lacy-stream serve` in a thread of the test's process."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import uvicorn

from lacy_stream.serve.run import open_app
from lacy_stream.serve.settings import ServeOptions


@contextlib.contextmanager
def served(model: Path | str, **options: Any) -> Iterator[openai.OpenAI]:
    """A client of a server with these options. It does not try again by itself."""
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    given = ServeOptions(str(model), **options)
    server = uvicorn.Server(uvicorn.Config(open_app(given, "127.0.0.1"), log_level="warning", access_log=False))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    url = f"http://127.0.0.1:{listener.getsockname()[1]}/v1"
    try:
        with openai.OpenAI(base_url=url, api_key=given.api_key or "none", max_retries=0, timeout=120) as client:
            wait_until(lambda: server.started)
            yield client
    finally:
        server.should_exit = True
        thread.join(60)
        listener.close()
    assert not thread.is_alive(), "the server does not end"


def wait_until(condition: Any, seconds: float = 60.0) -> None:
    """Wait for a condition; fail if it does not come true."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "the condition did not come true"
        time.sleep(0.01)
