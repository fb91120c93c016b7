"""The command `lacy-stream serve`: loads both models, listens, and ends cleanly."""

from __future__ import annotations

import errno
import signal
import socket

import uvicorn
from fastapi import FastAPI

from lacy_stream.cascade.engine import Engine
from lacy_stream.cascade.open import open_partner
from lacy_stream.cascade.partner import Partner
from lacy_stream.compute import choose_device
from lacy_stream.endpoints import is_endpoint
from lacy_stream.errors import UsageError
from lacy_stream.serve.app import Service, make_app
from lacy_stream.serve.chat import ChatTemplate
from lacy_stream.serve.metrics import Metrics
from lacy_stream.serve.partner_watch import PartnerWatch
from lacy_stream.serve.runner import Runner
from lacy_stream.serve.settings import ServeOptions
from lacy_stream.train.checkpoint import load_model

CHUNK = 256
"""Longest part of a prompt that is read in one step, in ids."""
ADVICE = "The server tries again by itself"


def run(options: ServeOptions) -> int:
    """Serve until a signal comes. Requests that are under way are finished then.

    Raises:
        LacyStreamError: the options, the model or the partner cannot be used, or the port is in use.
    """
    with _bind(options.host, options.port) as listener:
        app = open_app(options, listener.getsockname()[0])
        host, port = listener.getsockname()[:2]
        print(f"serving at http://{f'[{host}]' if ':' in host else host}:{port}/v1", flush=True)
        server = uvicorn.Server(uvicorn.Config(app, log_level="warning", access_log=False, timeout_keep_alive=30))
        # uvicorn raises a signal once more when it has ended for it. The end that was asked for is no error.
        for kind in (signal.SIGINT, signal.SIGTERM):
            signal.signal(kind, lambda *_: None)
        server.run(sockets=[listener])
    return 0


def _bind(host: str, port: int) -> socket.socket:
    """Take the port before the models are loaded. Clients that connect wait until the server is ready."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind, protocol)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen()  # a port that is only bound could be taken by another process, too
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise UsageError(f"port {port} of {host} is in use: give another --port, or 0 for a free one") from None
        raise UsageError(f"{host} port {port} cannot be listened at: {error.strerror or error}") from None
    return listener


def open_app(options: ServeOptions, address: str) -> FastAPI:
    """Load the models and make the application.

    Args:
        options: the options.
        address: the address that the server listens at.

    Raises:
        LacyStreamError: the model or the partner cannot be used.
    """
    device = options.compute.set_up()
    model = load_model(options.model)
    model.model.to(device)  # type: ignore[arg-type]
    metrics = Metrics(options.delegation.call_rate if options.partner else 0.0)

    def make_engine() -> Engine:
        return Engine(
            model,
            options.delegation,
            calls=options.partner is not None,
            penalty=options.repetition_penalty,
            many=options.max_batch > 1,
            partner_failure=options.partner_failure,
            chunk=CHUNK,
        )

    make_engine()  # refuses a model that cannot delegate before the partner is loaded
    watch = None if options.partner is None else PartnerWatch(_opener(options, device))
    runner = Runner(make_engine, metrics, max_batch=options.max_batch, max_queue=options.max_queue, watch=watch)
    name = options.name or model.name
    service = Service(model, name, runner, watch, metrics, ChatTemplate(model, runner.vocabulary), options)
    return make_app(service, {"127.0.0.1", "::1", "localhost", address, options.host})


def _opener(options: ServeOptions, device: str):
    """A function that opens the partner. One that is loaded here is loaded now: if it cannot be, it never will."""
    spec = options.partner
    assert spec is not None
    if is_endpoint(spec):

        def open_endpoint() -> Partner:
            return open_partner(
                spec,
                tokenizer=options.partner_tokenizer,
                timeout_s=options.partner_timeout_s,
                deadline_s=options.partner_timeout_s,
                retries=1,
                concurrency=options.partner_concurrency,
                advice=ADVICE,
            )

        return open_endpoint
    partner = open_partner(
        spec,
        repetition_penalty=options.repetition_penalty,
        device=choose_device(options.partner_device or device),
        tokenizer=options.partner_tokenizer,
    )
    return lambda: partner
