"""From the messages of a request to the prompt that an engine answers."""

from collections.abc import Callable

from data_pipelines.examples import Example, Image, Role, Segment, Text
from vlm_jax.serving.config import ServingConfig
from vlm_jax.serving.errors import invalid
from vlm_jax.serving.protocol import ChatRequest, ImagePart, TextPart

_ROLES: dict[str, Role] = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}
"""OpenAI's roles -> those of a turn."""


def prompt_of(request: ChatRequest, config: ServingConfig, picture: Callable[[str, str], Image]) -> Example:
    """A dialogue as an Example: of each turn the pictures, in order, then its texts, joined by line breaks.

    Args:
        request: what the client asked.
        config: limits of text and of pictures, which are checked before the first picture is read.
        picture: (URL, name of the field) -> the picture.

    Raises:
        APIError: 400 if a limit is passed, and what `picture` raises.
    """
    parts = [part for message in request.messages for part in message.content]
    size = sum(len(part.text.encode()) for part in parts if isinstance(part, TextPart))
    if size > config.text_bytes:
        raise invalid(f"messages: {size} bytes of text, at most {config.text_bytes} are read", "messages")
    pictures = sum(isinstance(part, ImagePart) for part in parts)
    if pictures > config.pictures:
        raise invalid(f"messages: {pictures} pictures, at most {config.pictures} are read", "messages")
    trunk: list[Segment] = []
    for turn, message in enumerate(request.messages):
        texts = []
        for number, part in enumerate(message.content):
            if isinstance(part, TextPart):
                texts.append(part.text)
            else:
                trunk.append(picture(part.image_url.url, f"messages[{turn}].content[{number}].image_url.url"))
        trunk.append(Text("\n".join(texts), role=_ROLES[message.role]))
    return Example(trunk=tuple(trunk))
