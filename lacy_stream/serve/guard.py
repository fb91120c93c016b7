"""What a request must bring before anything else looks at it: the key, a host of this machine, and a bounded body; and
the count of requests."""

from __future__ import annotations

import secrets
import time
from collections.abc import Collection
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from lacy_stream.serve.metrics import Metrics

OPEN = ("/health",)
"""Paths that need no key, for probes."""
PATHS = ("/v1/completions", "/v1/chat/completions", "/v1/models", "/health", "/metrics")
DRAINED_PIECES = 1024
"""Pieces of a refused body that are read, of about 64 kB each."""


def error_body(message: str, kind: str, *, param: str | None = None, code: str | None = None) -> dict:
    """An error as OpenAI's clients expect it."""
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


class Guard:
    """Refuses requests: 401 without the key, 403 for a foreign host, 413 for a body that is too large.

    A web page in a browser of this machine can send requests to a loopback address, under a host name of its own. So
    without a key, only hosts of this machine are accepted.

    Args:
        app: the application.
        key: the key; None for none.
        hosts: names of this machine, for a server without a key.
        max_bytes: largest body.
    """

    def __init__(self, app: ASGIApp, *, key: str | None, hosts: Collection[str], max_bytes: int) -> None:
        self._app, self._hosts, self._max_bytes = app, hosts, max_bytes
        self._key = None if key is None else key.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        headers = Headers(scope=scope)
        if (refusal := self._refusal(scope["path"], headers)) is not None:
            await _drain(receive)
            return await refusal(scope, receive, send)
        received = 0

        async def bounded() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > self._max_bytes:
                raise BodyTooLargeError(self._max_bytes)
            return message

        await self._app(scope, bounded, send)

    def _refusal(self, path: str, headers: Headers) -> JSONResponse | None:
        if self._key is None:
            if _host_name(headers.get("host", "")) not in self._hosts:
                message = f"the host {headers.get('host', '')!r} is not this server: use 127.0.0.1 or localhost"
                return JSONResponse(error_body(message, "permission_error"), 403)
        elif path not in OPEN:
            given = headers.get("authorization", "").removeprefix("Bearer ").strip()
            if not secrets.compare_digest(given.encode("latin-1"), self._key):
                message = "the API key is missing or wrong: send it as `Authorization: Bearer KEY`"
                body = error_body(message, "invalid_request_error", code="invalid_api_key")
                return JSONResponse(body, 401, {"WWW-Authenticate": "Bearer"})
        length = headers.get("content-length", "")
        if length.isascii() and length.isdigit() and int(length) > self._max_bytes:
            error = BodyTooLargeError(self._max_bytes)
            return JSONResponse(error_body(error.detail, "invalid_request_error"), error.status_code)
        return None


def _host_name(header: str) -> str | None:
    """The name in a Host header, without the port; None if there is none."""
    try:
        return urlsplit(f"//{header}").hostname
    except ValueError:
        return None


async def _drain(receive: Receive) -> None:
    """Read the rest of a body up to a bound. A client that is still sending would not see the answer."""
    for _ in range(DRAINED_PIECES):
        message = await receive()
        if message["type"] != "http.request" or not message.get("more_body"):
            return


class BodyTooLargeError(HTTPException):
    """A body is longer than it may be, and did not say so before."""

    def __init__(self, max_bytes: int) -> None:
        super().__init__(413, f"the request is larger than {max_bytes:,} bytes: send fewer prompts at a time")


class RequestCounter:
    """Counts requests by their path and status.

    Args:
        app: the application.
        metrics: the counters.
    """

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app, self._metrics = app, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        start, status = time.monotonic(), 500

        async def watched(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, watched)
        finally:
            path = scope["path"] if scope["path"] in PATHS else "other"
            self._metrics.requests.labels(path, str(status)).inc()
            if status == 200:
                self._metrics.request_seconds.labels(path).observe(time.monotonic() - start)
