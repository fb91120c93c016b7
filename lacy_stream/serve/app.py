"""The routes of the server."""

from __future__ import annotations

import asyncio
import json
import time
import uuid
from collections.abc import AsyncIterator, Collection, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, Response, StreamingResponse

from lacy_stream.cascade.partner import PromptError
from lacy_stream.cascade.texts import Generation, Prompt, TextSettings, Token
from lacy_stream.errors import LacyStreamError
from lacy_stream.serve.answers import (
    FINISH,
    GrowingAnswer,
    TokenNames,
    call_rate,
    chat_log_probabilities,
    completion_log_probabilities,
    cut_tokens,
    lacy_field,
    usage,
)
from lacy_stream.serve.chat import ChatTemplate
from lacy_stream.serve.guard import PATHS, Guard, RequestCounter, error_body
from lacy_stream.serve.metrics import Metrics
from lacy_stream.serve.partner_watch import PartnerWatch
from lacy_stream.serve.protocol import ChatRequest, CompletionRequest, TextRequest
from lacy_stream.serve.requests import PartnerFailedError, RunningRequest, TimeLimitError
from lacy_stream.serve.runner import ClosingError, EngineError, QueueFullError, Runner
from lacy_stream.serve.settings import ServeOptions
from lacy_stream.train.checkpoint import CallingModel

DEFAULT_MAX_TOKENS = 16
"""Of a completion whose request names none, as OpenAI has it."""


@dataclass(frozen=True)
class Service:
    """What the routes work with."""

    model: CallingModel
    name: str
    runner: Runner
    watch: PartnerWatch | None
    metrics: Metrics
    chat: ChatTemplate
    options: ServeOptions


@dataclass(frozen=True)
class Asked:
    """A request, understood."""

    request: TextRequest
    texts: list[tuple[Prompt, TextSettings]]
    prompts: int
    """Number of prompts; the texts of a prompt stand together."""
    kind: str
    """"completion" or "chat"."""
    top: int = 0
    """Number of most likely tokens of each token."""
    echo: bool = False


def make_app(service: Service, hosts: Collection[str]) -> FastAPI:
    """Make the application.

    Args:
        service: what the routes work with. It is closed when the application shuts down.
        hosts: names of this machine, for a server without a key.
    """

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        await asyncio.to_thread(service.runner.close)
        if service.watch is not None:
            service.watch.close()

    app = FastAPI(title="lacy-stream", lifespan=lifespan, docs_url=None, redoc_url=None)
    options = service.options
    app.add_middleware(Guard, key=options.api_key, hosts=hosts, max_bytes=options.max_request_bytes)
    app.add_middleware(RequestCounter, metrics=service.metrics)
    _add_errors(app)
    _add_routes(app, service)
    return app


def _add_routes(app: FastAPI, service: Service) -> None:
    started = int(time.time())

    @app.get("/health")
    async def health() -> JSONResponse:
        return _health(service)

    @app.get("/metrics")
    async def metrics() -> Response:
        return Response(service.metrics.text(), media_type="text/plain; version=0.0.4")

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        model = {"id": service.name, "object": "model", "created": started, "owned_by": "lacy-stream"}
        return {"object": "list", "data": [model | {"max_model_len": service.model.max_seq_len}]}

    @app.post("/v1/completions")
    async def completions(body: CompletionRequest, request: Request) -> Response:
        return await _answer(service, request, _completion(service, body))

    @app.post("/v1/chat/completions")
    async def chat_completions(body: ChatRequest, request: Request) -> Response:
        return await _answer(service, request, _chat(service, body))


def _health(service: Service) -> JSONResponse:
    running, queued = service.runner.load()
    partner: dict[str, Any] = {"name": service.options.partner, "status": "none"}
    if service.watch is not None:
        partner["status"] = "ok" if service.runner.has_partner else "unavailable"
        partner["reason"] = service.watch.reason or None
    answers = service.runner.is_alive
    if partner["status"] == "unavailable" and service.options.partner_failure == "error":
        answers = False
    status = {"status": "ok" if answers else "unavailable", "model": service.name, "partner": partner}
    load = {"running": running, "queued": queued, "call_rate": round(service.runner.call_rate, 6)}
    return JSONResponse(status | load, 200 if answers else 503)


# ---------------------------------------------------------------- understanding requests


class _UnknownModelError(LacyStreamError):
    """The server has another model."""


class _BadRequestError(LacyStreamError):
    """The request cannot be answered. The first argument is the field."""


def _settings(body: TextRequest, **more: Any) -> list[TextSettings]:
    """The settings of each choice of a prompt. Each draws from a seed of its own."""
    return [
        TextSettings(
            temperature=body.temperature or 0.0,
            top_p=1.0 if body.top_p is None else body.top_p,
            seed=None if body.seed is None else (body.seed + choice) % (1 << 63),
            stop=tuple(body.stop or ()),
            **more,
        )
        for choice in range(body.n or 1)
    ]


def _completion(service: Service, body: CompletionRequest) -> Asked:
    _check_model(service, body)
    echo = bool(body.echo)
    settings = _settings(
        body,
        max_new_tokens=DEFAULT_MAX_TOKENS if body.max_tokens is None else body.max_tokens,
        log_probabilities=body.logprobs,
        score_prompt=echo and body.logprobs is not None,
    )
    prompts = body.prompts()
    if not prompts:
        raise _BadRequestError("prompt", "the prompt is empty")
    texts = [(_prompt(service, prompt), one) for prompt in prompts for one in settings]
    return _bounded(service, Asked(body, texts, len(prompts), "completion", body.logprobs or 0, echo))


def _chat(service: Service, body: ChatRequest) -> Asked:
    _check_model(service, body)
    if not service.chat.exists:
        raise _BadRequestError(
            "messages", f"the tokenizer of {service.name} has no chat template: use /v1/completions with a prompt"
        )
    partner = None if service.watch is None else service.watch.partner
    prompt = service.chat.prompt([message.as_template_input() for message in body.messages], partner)
    longest = body.max_completion_tokens or body.max_tokens or service.options.max_tokens
    top = (body.top_logprobs or 0) if body.logprobs else None
    settings = _settings(body, max_new_tokens=longest, log_probabilities=top)
    return _bounded(service, Asked(body, [(prompt, one) for one in settings], 1, "chat", top or 0))


def _check_model(service: Service, body: TextRequest) -> None:
    if body.model != service.name:
        raise _UnknownModelError(f"the model {body.model!r} does not exist here: use {service.name!r}")


def _bounded(service: Service, asked: Asked) -> Asked:
    most = service.runner.capacity
    if len(asked.texts) > most:
        field = "prompt" if asked.prompts > 1 else "n"
        raise _BadRequestError(field, f"the request asks for {len(asked.texts)} texts, and the server holds {most}")
    return asked


def _prompt(service: Service, prompt: str | list[int]) -> Prompt:
    if isinstance(prompt, str):
        return Prompt(prompt)
    vocabulary = service.runner.vocabulary
    known = service.model.call_token_id or len(vocabulary.spellings)
    for id in prompt:
        if not 0 <= id < known:
            raise _BadRequestError("prompt", f"{id} is no token of {service.name}, whose ids are 0 to {known - 1}")
    return Prompt(vocabulary.spell(prompt).decode(errors="replace"), ids=tuple(prompt))


# ---------------------------------------------------------------- answering


async def _answer(service: Service, request: Request, asked: Asked) -> Response:
    running = RunningRequest(service.runner, asked.texts, service.options.time_limit_s)
    if asked.request.stream:
        headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}  # proxies pass each chunk on at once
        return StreamingResponse(_stream(service, asked, running), headers=headers, media_type="text/event-stream")
    with running:
        answer = asyncio.ensure_future(running.generations())
        gone = asyncio.ensure_future(_disconnected(request))
        await asyncio.wait([answer, gone], return_when=asyncio.FIRST_COMPLETED)
        gone.cancel()
        if not answer.done():
            answer.cancel()
            return Response(status_code=499)  # nobody reads it
        generations = answer.result()
    return JSONResponse(_whole(service, asked, generations))


async def _disconnected(request: Request) -> None:
    """Wait until the client goes away. The body was read before."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _head(service: Service, asked: Asked, chunk: bool = False) -> dict[str, Any]:
    """The fields that all chunks of an answer share."""
    if asked.kind == "completion":
        id, object = "cmpl", "text_completion"
    else:
        id, object = "chatcmpl", "chat.completion.chunk" if chunk else "chat.completion"
    return {"id": f"{id}-{uuid.uuid4().hex}", "object": object, "created": int(time.time()), "model": service.name}


def _whole(service: Service, asked: Asked, generations: Sequence[Generation]) -> dict[str, Any]:
    names = TokenNames(service.runner.vocabulary)
    choices = []
    for index, generation in enumerate(generations):
        tokens = cut_tokens(generation.tokens, len(generation.text))
        text = (generation.prompt if asked.echo else "") + generation.text
        about = {"index": index, "finish_reason": FINISH[generation.finish], "lacy": lacy_field(tokens, generation)}
        logprobs = _log_probabilities(names, asked, tokens, generation, 0)
        if asked.kind == "completion":
            choices.append(about | {"text": text, "logprobs": logprobs})
        else:
            choices.append(about | {"message": {"role": "assistant", "content": text}, "logprobs": logprobs})
    rates = {"call_rate": call_rate(generations), "server_call_rate": round(service.runner.call_rate, 6)}
    counted = usage(generations, asked.prompts)
    return _head(service, asked) | {"choices": choices, "usage": counted, "lacy": rates}


def _log_probabilities(
    names: TokenNames, asked: Asked, tokens: Sequence[Token], generation: Generation | None, start: int
) -> dict[str, Any] | None:
    if asked.texts[0][1].log_probabilities is None:
        return None
    if asked.kind == "completion":
        return completion_log_probabilities(names, generation, tokens, asked.top, asked.echo, start)
    return chat_log_probabilities(names, tokens, asked.top)


async def _stream(service: Service, asked: Asked, running: RunningRequest) -> AsyncIterator[str]:
    """The events of a streamed answer."""
    head, names = _head(service, asked, chunk=True), TokenNames(service.runner.vocabulary)
    growing = [GrowingAnswer(settings.stop) for _, settings in asked.texts]
    lengths = [0] * len(growing)
    finished: list[Generation] = []
    with running:
        if asked.kind == "chat":
            for index in range(len(growing)):
                role = {"index": index, "delta": {"role": "assistant", "content": ""}, "finish_reason": None}
                yield _event(head | {"choices": [role]})
        try:
            async for index, progress in running.progress():
                generation = progress.generation
                text, tokens = growing[index].add(progress.tokens, generation)
                if not tokens and not text and generation is None:
                    continue
                choice: dict[str, Any] = {
                    "index": index,
                    "finish_reason": None if generation is None else FINISH[generation.finish],
                    "logprobs": _log_probabilities(names, asked, tokens, generation, lengths[index]),
                    "lacy": lacy_field(tokens, generation),
                }
                lengths[index] += len(text)
                choice |= {"text": text} if asked.kind == "completion" else {"delta": {"content": text}}
                yield _event(head | {"choices": [choice]})
                if generation is not None:
                    finished.append(generation)
        except LacyStreamError as error:
            yield _event(_refusal(error)[1])
            return
    options = asked.request.stream_options
    last: dict[str, Any] = {"choices": []}
    if options is not None and options.include_usage:
        last["usage"] = usage(finished, asked.prompts)
        rates = {"call_rate": call_rate(finished), "server_call_rate": round(service.runner.call_rate, 6)}
        yield _event(head | last | {"lacy": rates})
    yield "data: [DONE]\n\n"


def _event(value: dict[str, Any]) -> str:
    return f"data: {json.dumps(value, ensure_ascii=False)}\n\n"


# ---------------------------------------------------------------- errors


def _refusal(error: LacyStreamError) -> tuple[int, dict[str, Any], dict[str, str]]:
    """Status, body and headers for an error."""
    if isinstance(error, _BadRequestError):
        field, message = error.args
        return 400, error_body(message, "invalid_request_error", param=field), {}
    if isinstance(error, PromptError):
        code = "context_length_exceeded" if "context of" in str(error) else None
        return 400, error_body(str(error), "invalid_request_error", param="prompt", code=code), {}
    if isinstance(error, _UnknownModelError):
        return 404, error_body(str(error), "invalid_request_error", param="model", code="model_not_found"), {}
    if isinstance(error, QueueFullError):
        wait = {"Retry-After": str(error.retry_after_s)}
        return 429, error_body(str(error), "rate_limit_error", code="queue_full"), wait
    if isinstance(error, TimeLimitError):
        return 504, error_body(str(error), "timeout_error", code="time_limit"), {}
    if isinstance(error, PartnerFailedError):
        return 503, error_body(str(error), "server_error", code="partner_unavailable"), {"Retry-After": "5"}
    if isinstance(error, ClosingError):
        return 503, error_body(str(error), "server_error", code="shutting_down"), {"Retry-After": "5"}
    return 500, error_body(str(error), "server_error"), {}


def _add_errors(app: FastAPI) -> None:
    """Answer errors as OpenAI's clients expect them."""

    async def refuse(_: Request, error: Exception) -> Response:
        assert isinstance(error, LacyStreamError)
        status, body, headers = _refusal(error)
        return JSONResponse(body, status, headers)

    kinds = (
        _BadRequestError, PromptError, _UnknownModelError, QueueFullError, TimeLimitError, PartnerFailedError,
        ClosingError, EngineError,
    )  # fmt: skip
    for kind in kinds:
        app.add_exception_handler(kind, refuse)

    @app.exception_handler(RequestValidationError)
    async def invalid(_: Request, error: RequestValidationError) -> JSONResponse:
        message, field = _first_mistake(error.errors())
        return JSONResponse(error_body(message, "invalid_request_error", param=field), 400)

    @app.exception_handler(HTTPException)
    async def http(request: Request, error: HTTPException) -> JSONResponse:
        message, path = str(error.detail), request.url.path
        if error.status_code == 404:
            message = f"there is nothing at {path}: the paths are {', '.join(PATHS)}"
        elif error.status_code == 405:
            message = f"{path} does not take {request.method}"
        return JSONResponse(error_body(message, "invalid_request_error"), error.status_code, error.headers)


def _first_mistake(errors: Sequence[Any]) -> tuple[str, str | None]:
    """The message about the first mistake of a request, and its field."""
    first = errors[0]
    place = [str(part) for part in first["loc"][1:]]
    if first["type"] == "json_invalid":
        return f"the body is no JSON: {first.get('ctx', {}).get('error', first['msg'])}", None
    if first["type"] == "model_attributes_type" and not place:
        return "the body is no JSON object, or comes without the header Content-Type: application/json", None
    field = place[0] if place else None
    if first["type"] == "extra_forbidden":
        return f"{'.'.join(place)} is no field of this request, or is not supported: leave it out", field
    message = first["msg"].removeprefix("Value error, ")
    return (f"{'.'.join(place)}: {message}" if place else message), field
