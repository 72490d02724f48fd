"""What a client may ask: the request of /v1/chat/completions, read strictly."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from vlm_jax.serving.errors import APIError, invalid

_IGNORED = {
    *("metadata", "parallel_tool_calls", "prompt_cache_key", "prompt_cache_retention", "safety_identifier"),
    *("service_tier", "store", "user"),
}
"""Fields of OpenAI's that change nothing about an answer."""

_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "audio": (),
    "frequency_penalty": (0,),
    "function_call": ("none", "auto"),
    "functions": ([],),
    "logit_bias": ({},),
    "logprobs": (False,),
    "modalities": (["text"],),
    "prediction": (),
    "presence_penalty": (0,),
    "reasoning_effort": ("none",),
    "response_format": ({"type": "text"},),
    "tool_choice": ("none", "auto"),
    "tools": ([],),
    "top_logprobs": (0,),
    "verbosity": ("medium",),
    "web_search_options": (),
}
"""Fields of OpenAI's that this server cannot follow, with the values that ask for nothing."""

_LONGEST_MESSAGE = 300


class _Strict(BaseModel):
    """Wrong types and unknown fields are errors; null is the same as leaving a field out."""

    model_config = ConfigDict(extra="forbid", strict=True)

    @model_validator(mode="before")
    @classmethod
    def _without_nulls(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        return {name: value for name, value in data.items() if value is not None}


class TextPart(_Strict):
    """A stretch of text."""

    type: Literal["text"]
    text: str


class ImageURL(_Strict):
    """Where a picture is; `detail` is ignored, since the model decides the resolution."""

    url: str
    detail: Literal["auto", "low", "high", "original"] = "auto"


class ImagePart(_Strict):
    """A picture."""

    type: Literal["image_url"]
    image_url: ImageURL


Part = TextPart | ImagePart


def _as_parts(content: Any) -> Any:
    return [{"type": "text", "text": content}] if isinstance(content, str) else content


def _as_list(stop: Any) -> Any:
    return [stop] if isinstance(stop, str) else stop


Texts = Annotated[list[TextPart], BeforeValidator(_as_parts), Field(min_length=1)]
Parts = Annotated[list[Annotated[Part, Field(discriminator="type")]], BeforeValidator(_as_parts), Field(min_length=1)]


class SystemMessage(_Strict):
    """What the model is told beforehand; 'developer' is OpenAI's newer word for it."""

    role: Literal["system", "developer"]
    content: Texts
    name: str = ""


class UserMessage(_Strict):
    """The user's turn, with text, pictures or both."""

    role: Literal["user"]
    content: Parts
    name: str = ""


class AssistantMessage(_Strict):
    """An earlier answer. The fields that answers of OpenAI carry besides are accepted where they are empty."""

    role: Literal["assistant"]
    content: Texts
    name: str = ""
    annotations: list[Any] = Field(default=[], max_length=0)
    tool_calls: list[Any] = Field(default=[], max_length=0)


Message = Annotated[SystemMessage | UserMessage | AssistantMessage, Field(discriminator="role")]


class StreamOptions(_Strict):
    """Options of a stream. Obfuscation (padding against traffic analysis) is not done."""

    include_usage: bool = False
    include_obfuscation: bool = False


class ChatRequest(_Strict):
    """A request, with OpenAI's names; `top_k` is an addition."""

    model: str
    messages: list[Message] = Field(min_length=1)
    max_tokens: int | None = Field(default=None, ge=1)
    max_completion_tokens: int | None = Field(default=None, ge=1)
    temperature: float | None = Field(default=None, ge=0, le=2, allow_inf_nan=False)
    top_p: float = Field(default=1.0, ge=0, le=1, allow_inf_nan=False)
    top_k: int = Field(default=0, ge=0, lt=1 << 31)
    n: int = Field(default=1, ge=1)
    seed: int | None = Field(default=None, ge=-(1 << 63), lt=1 << 63)
    stop: Annotated[list[Annotated[str, Field(min_length=1)]], BeforeValidator(_as_list), Field(max_length=4)] = []
    stream: bool = False
    stream_options: StreamOptions | None = None

    @model_validator(mode="before")
    @classmethod
    def _known_fields(cls, data: Any) -> Any:
        """Drops what may be ignored, and names what cannot be followed."""
        if not isinstance(data, dict):
            return data
        kept = {}
        for name, value in data.items():
            if name in _NEUTRAL and value is not None and not _is_neutral(name, value):
                raise invalid(f"{name} is not supported by this server; leave it out", name, "unsupported_parameter")
            if name not in _IGNORED and name not in _NEUTRAL:
                kept[name] = value
        return kept

    @property
    def wanted_tokens(self) -> int | None:
        """The longest answer that is asked for, in tokens; None = not said."""
        return self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens


def parse_request(body: bytes) -> ChatRequest:
    """A body -> the request in it.

    Raises:
        APIError: 400 that names the field, if it is not JSON or not a request that this server can follow.
    """
    try:
        request = ChatRequest.model_validate_json(body)
    except ValidationError as error:
        raise _explained(error) from None
    if request.stream_options is not None and not request.stream:
        raise invalid("stream_options is for stream = true only", "stream_options")
    if request.messages[-1].role != "user":
        raise invalid("the last message must be the user's", "messages")
    return request


def _is_neutral(name: str, value: Any) -> bool:
    # 0 == False in Python, not in JSON: a penalty of false is as wrong as a penalty of "0".
    return any(value == neutral and isinstance(value, bool) == isinstance(neutral, bool) for neutral in _NEUTRAL[name])


def _explained(error: ValidationError) -> APIError:
    first = error.errors(include_url=False, include_context=False, include_input=False)[0]
    message = first["msg"][:_LONGEST_MESSAGE]
    if first["type"] == "json_invalid":
        return invalid(
            f"the body cannot be read as JSON: {message.removeprefix('Invalid JSON: ')}", code="invalid_json"
        )
    field = _path(first["loc"])
    if not field:
        return invalid(f"the body: {message}")
    if first["type"] == "extra_forbidden":
        return invalid(f"unrecognised field {field}", field, "unknown_parameter")
    if first["type"] == "missing":
        return invalid(f"{field} is missing", field, "missing_required_parameter")
    return invalid(f"{field}: {message}", field)


def _path(location: tuple[int | str, ...]) -> str:
    """('messages', 0, 'user', 'content') -> 'messages[0].content'; what follows a number names a union's member."""
    path, after_number = "", False
    for step in location:
        if isinstance(step, int):
            path += f"[{step}]"
        elif not after_number:
            path += f".{step}" if path else step
        after_number = isinstance(step, int)
    return path[:_LONGEST_MESSAGE]
