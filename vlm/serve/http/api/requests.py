"""Bodies of requests.

Fields that this server does not know, and those of OpenAI's API that change no answer (``user``, ``store``,
``metadata``, ``service_tier``, ...), are ignored; those that would change one but cannot be honoured, such as
``tools``, are refused (see ``UNSUPPORTED``). Values are not converted: ``"2"`` is not a number.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from vlm.serve.http.errors import ApiError

SEED = 2**63
MESSAGES = 4096
"""Most messages of a conversation."""

Texts = Annotated[list[str], Field(fail_fast=True)]  # at the first fault: a long list could have millions
Ids = Annotated[list[int], Field(fail_fast=True)]
Things = Annotated[list[Any], Field(fail_fast=True)]


class Body(BaseModel):
    """What all have in common."""

    model_config = ConfigDict(strict=True, extra="ignore", allow_inf_nan=False)


class TextPart(Body):
    """Words."""

    type: Literal["text"]
    text: str


class Address(Body):
    """Where an image or video is: a ``data:`` URL, or an ``https`` address of a host that the server allows."""

    url: str
    detail: Literal["auto", "low", "high"] | None = Field(None, description="accepted, without effect")


class ImagePart(Body):
    """An image."""

    type: Literal["image_url"]
    image_url: Address


class VideoPart(Body):
    """A video."""

    type: Literal["video_url"]
    video_url: Address


Part = Annotated[TextPart | ImagePart | VideoPart, Field(discriminator="type")]


class ChatMessage(Body):
    """One message; ``developer`` is another name for ``system``. Images and videos belong to the user's messages."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str | Annotated[list[Part], Field(fail_fast=True)] | None = None


Messages = Annotated[list[ChatMessage], Field(fail_fast=True, min_length=1, max_length=MESSAGES)]


class StreamOptions(Body):
    """Of a streamed answer."""

    include_usage: bool | None = None


class JsonSchema(Body):
    """A schema that the answer follows, always strictly."""

    name: str = "answer"
    description: str | None = None
    schema_: dict[str, Any] | None = Field(None, alias="schema")
    strict: bool | None = None


class ResponseFormat(Body):
    """Form of the answer."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None


class Sampling(Body):
    """How an answer is written. What is not given is as the model's own defaults say.

    ``temperature: 0`` is greedy; above 0 the answer is sampled, also by a model that is greedy by default. Choice i of
    ``n`` uses ``seed + i``. ``top_k``, ``repetition_penalty`` and ``min_tokens`` are extensions.
    """

    model: str | None = Field(None, description="one of GET /v1/models; without it the first of them")
    max_tokens: int | None = Field(None, ge=1)
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, gt=0, le=1)
    n: int | None = Field(None, ge=1)
    seed: int | None = Field(None, ge=-SEED, lt=SEED)
    stop: str | Texts | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    presence_penalty: float | None = Field(None, ge=-2, le=2, description="0 only")
    frequency_penalty: float | None = Field(None, ge=-2, le=2, description="0 only")
    logit_bias: dict[str, Any] | None = Field(None, description="empty only")
    user: str | None = Field(None, description="accepted, without effect")
    top_k: int | None = Field(None, ge=-1, description="0 and -1: off")
    repetition_penalty: float | None = Field(None, gt=0, le=10)
    min_tokens: int | None = Field(None, ge=0)
    response_format: ResponseFormat | None = None

    @property
    def longest(self) -> int | None:
        """The limit that the request sets to the tokens of an answer."""
        return self.max_tokens


class ChatRequest(Sampling):
    """A conversation that ends with a question."""

    messages: Messages
    max_completion_tokens: int | None = Field(None, ge=1, description="goes before max_tokens")
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=20)
    truncation: Literal["auto", "disabled"] | None = Field(
        None, description="auto: a conversation longer than the context loses its oldest turns; else it is refused"
    )
    tools: Things | None = Field(None, description="empty only")
    tool_choice: Any = Field(None, description="none only")
    functions: Things | None = Field(None, description="empty only")
    function_call: Any = Field(None, description="none only")
    modalities: Texts | None = Field(None, description="text only")
    audio: Any = Field(None, description="null only")
    prediction: Any = Field(None, description="null only")
    web_search_options: Any = Field(None, description="null only")

    @property
    def longest(self) -> int | None:
        """The limit that the request sets to the tokens of an answer."""
        return self.max_completion_tokens or self.max_tokens


class CompletionRequest(Sampling):
    """Texts to go on with, unchanged: no template is around them and no text of one ends the answer."""

    prompt: str | Texts | Ids | Annotated[list[Ids], Field(fail_fast=True)]
    logprobs: int | None = Field(None, ge=0, le=20)
    echo: bool | None = Field(None, description="false only")
    suffix: str | None = Field(None, description="empty only")
    best_of: int | None = Field(None, ge=1, description="as many as n only")


class TokenizeRequest(Body):
    """A conversation, or a raw prompt as of ``/v1/completions``."""

    model: str | None = None
    messages: Messages | None = None
    prompt: str | None = None


class DetokenizeRequest(Body):
    """Token ids."""

    model: str | None = None
    tokens: Annotated[Ids, Field(max_length=1_000_000)]


UNSUPPORTED: dict[str, tuple[Any, ...]] = {
    "tools": (None, []),
    "tool_choice": (None, "none", "auto"),
    "functions": (None, []),
    "function_call": (None, "none", "auto"),
    "audio": (None,),
    "prediction": (None,),
    "web_search_options": (None,),
    "modalities": (None, [], ["text"]),
    "logit_bias": (None, {}),
    "presence_penalty": (None, 0.0),
    "frequency_penalty": (None, 0.0),
    "echo": (None, False),
    "suffix": (None, ""),
}
"""Fields that are refused, apart from these values."""


def check(request: ChatRequest | CompletionRequest) -> None:
    """Raises ApiError: a field that would change the answer and is not supported, or fields that do not go together."""
    given = vars(request)
    for name, allowed in UNSUPPORTED.items():
        if name in given and given[name] not in allowed:
            raise ApiError(f"{name} is not supported by this server; leave it out", param=name, code="unsupported")
    if request.stream_options is not None and not request.stream:
        raise ApiError("stream_options is for stream: true only", param="stream_options")
    stop = [request.stop] if isinstance(request.stop, str) else request.stop or []
    if len(stop) > 4 or not all(stop):
        raise ApiError("stop takes up to 4 texts, none of them empty", param="stop")
    if isinstance(request, ChatRequest) and request.top_logprobs and not request.logprobs:
        raise ApiError("top_logprobs is for logprobs: true only", param="top_logprobs")
    if isinstance(request, CompletionRequest) and request.best_of not in (None, request.n or 1):
        raise ApiError("best_of must be n: answers are not ranked", param="best_of", code="unsupported")
    form = request.response_format
    if (
        form is not None
        and form.type == "json_schema"
        and (form.json_schema is None or form.json_schema.schema_ is None)
    ):
        raise ApiError("response_format has no json_schema.schema", param="response_format.json_schema.schema")
    if form is not None and form.type != "text" and request.min_tokens:
        raise ApiError("min_tokens does not go with an answer in JSON", param="min_tokens")
