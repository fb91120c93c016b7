"""The requests of OpenAI's completions and chat completions, as far as they mean something here.

A field that is not known is refused by name. Some fields that clients send have no effect here and are accepted. Fields
that would change the answer, and cannot be honoured, are accepted with the value that changes nothing.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, StrictInt, model_validator

MAX_STOPS, MAX_STOP_CHARACTERS, MAX_CHOICES, MAX_TOP = 16, 1000, 128, 20


def _one_stop_is_a_list(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


def _only(*neutral: Any, what: str) -> Any:
    """A validator that accepts only values that change nothing."""

    def check(value: Any) -> Any:
        if value not in neutral:
            raise ValueError(f"{what} is not supported: leave it out")
        return value

    return BeforeValidator(check)


Stop = Annotated[
    list[Annotated[str, Field(min_length=1, max_length=MAX_STOP_CHARACTERS)]],
    Field(max_length=MAX_STOPS),
    BeforeValidator(_one_stop_is_a_list),
]


class StreamOptions(BaseModel):
    """Options of a streamed answer."""

    model_config = ConfigDict(extra="forbid")
    include_usage: bool = False
    include_obfuscation: bool = False


class TextRequest(BaseModel):
    """What both kinds of requests have."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    model: str
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, gt=0, le=1)
    seed: StrictInt | None = Field(None, ge=-(1 << 63), lt=1 << 63)
    stop: Stop | None = None
    n: int | None = Field(None, ge=1, le=MAX_CHOICES)
    stream: bool | None = None
    stream_options: StreamOptions | None = None

    # Nothing but 0 and nothing would be honoured.
    frequency_penalty: Annotated[float | None, _only(None, 0, what="a penalty other than the server's")] = None
    presence_penalty: Annotated[float | None, _only(None, 0, what="a penalty other than the server's")] = None
    logit_bias: Annotated[dict | None, _only(None, {}, what="a bias")] = None

    # These have no effect here.
    user: str | None = None
    store: bool | None = None
    metadata: dict[str, str] | None = None
    service_tier: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None

    @model_validator(mode="after")
    def _stream_options_need_a_stream(self) -> TextRequest:
        if self.stream_options is not None and not self.stream:
            raise ValueError("stream_options need stream: true")
        return self


class CompletionRequest(TextRequest):
    """A request to ``/v1/completions``."""

    prompt: str | list[StrictInt] | list[str] | list[list[StrictInt]]
    max_tokens: int | None = Field(None, ge=0)
    echo: bool | None = None
    logprobs: int | None = Field(None, ge=0, le=MAX_TOP)
    best_of: Annotated[int | None, _only(None, 1, what="choosing the best of several texts")] = None
    suffix: Annotated[str | None, _only(None, "", what="a suffix")] = None

    @model_validator(mode="after")
    def _no_tokens_need_an_echo(self) -> CompletionRequest:
        if self.max_tokens == 0 and not self.echo:
            raise ValueError("max_tokens: 0 writes nothing: give echo: true to score the prompt, or at least 1")
        if self.echo and self.stream:
            raise ValueError("echo and stream cannot be combined: leave one of them out")
        return self

    def prompts(self) -> list[str] | list[list[int]]:
        """All prompts, as texts or as ids."""
        prompt: Any = self.prompt
        return [prompt] if isinstance(prompt, str) or (prompt and isinstance(prompt[0], int)) else prompt


class TextPart(BaseModel):
    """A part of a message."""

    model_config = ConfigDict(extra="forbid")
    type: Literal["text"]
    text: str


class Message(BaseModel):
    """A message of a chat."""

    model_config = ConfigDict(extra="forbid")
    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[TextPart]
    name: str | None = None

    def as_template_input(self) -> dict[str, str]:
        """The message as chat templates expect it."""
        parts = self.content
        text = parts if isinstance(parts, str) else "".join(part.text for part in parts)
        return {"role": "system" if self.role == "developer" else self.role, "content": text}


class ResponseFormat(BaseModel):
    """The form of the answer, which is always text."""

    type: Literal["text"]


class ChatRequest(TextRequest):
    """A request to ``/v1/chat/completions``."""

    messages: list[Message] = Field(min_length=1)
    max_tokens: int | None = Field(None, ge=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=MAX_TOP)
    response_format: ResponseFormat | None = None

    @model_validator(mode="after")
    def _top_needs_logprobs(self) -> ChatRequest:
        if self.top_logprobs is not None and not self.logprobs:
            raise ValueError("top_logprobs need logprobs: true")
        return self
