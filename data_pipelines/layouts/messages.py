"""Layouts of dialogues: LLaVA's conversations, Hugging Face's messages, preference pairs."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from data_pipelines.examples import Image
from data_pipelines.layouts.values import Native, pictures, present, text_in
from data_pipelines.quarantine import BadRecord

PLACEHOLDER = "<image>"
"""Where a picture stands in a text."""

_ROLES: Mapping[str, str] = {"human": "user", "gpt": "assistant"}


def from_llava(native: Native) -> dict[str, Any]:
    """{'image', 'conversations': [{'from', 'value'}]} -> {'messages'}, with a picture in the place of each '<image>'.

    Raises:
        BadRecord: if there are not as many '<image>' as pictures.
    """
    return {"messages": _messages(native.get("conversations"), native, _Pictures(native.pictures(), marked=True))}


def from_messages(native: Native) -> dict[str, Any]:
    """{'messages': [{'role', 'content'}], 'images'} -> {'messages'}, or {'images', 'messages'}.

    Content is a text or a list of {'type': 'text', 'text'} and {'type': 'image'}, of which one without a picture of its
    own takes the next of 'images'; so does '<image>' in a text. If neither is there, 'images' stay before the dialogue.

    Raises:
        BadRecord: if there are fewer or more places than pictures.
    """
    return _dialogue(native.get("messages"), native)


def from_preference(native: Native) -> dict[str, Any]:
    """{'prompt', 'chosen', 'rejected', 'image'} -> {'images', 'messages', 'chosen', 'rejected'}.

    Prompt and answers are texts or lists of messages. Lists of answers that begin with the same turns, up to one of the
    user, are whole dialogues: what they share is the prompt.

    Raises:
        BadRecord: if there is no prompt, or there are fewer or more places than pictures.
    """
    prompt, answers = native.get("prompt"), [native.get("chosen"), native.get("rejected")]
    if all(isinstance(answer, (list, tuple)) for answer in answers) and (shared := _shared(*answers)):
        prompt, answers = answers[0][:shared], [answer[shared:] for answer in answers]
    if not present(prompt) or prompt == []:
        raise BadRecord("no prompt, neither as a field nor as what both answers begin with")
    messages = prompt if isinstance(prompt, (list, tuple)) else [{"role": "user", "content": prompt}]
    chosen, rejected = (
        _messages(answer, native, _Pictures([])) if isinstance(answer, (list, tuple)) else text_in(answer)
        for answer in answers
    )
    return {**_dialogue(messages, native), "chosen": chosen, "rejected": rejected}


class _Pictures:
    """Pictures that wait for their places. `marked` says that '<image>' in a text is one."""

    def __init__(self, images: list[Image], marked: bool = False) -> None:
        self.left, self.given, self.marked = list(images), len(images), marked

    def next(self) -> Image:
        """The next one.

        Raises:
            BadRecord: if there is none left.
        """
        if not self.left:
            raise BadRecord(f"more places of pictures ('{PLACEHOLDER}') than pictures, of which there are {self.given}")
        return self.left.pop(0)

    def check(self) -> None:
        """Raises BadRecord unless all of them have found a place."""
        if self.left:
            places = self.given - len(self.left)
            raise BadRecord(f"{places} places of pictures ('{PLACEHOLDER}') for {self.given} pictures")


def _dialogue(messages: Any, native: Native) -> dict[str, Any]:
    waiting = native.pictures()
    if waiting and not _has_places(messages):
        return {"images": waiting, "messages": _messages(messages, native, _Pictures([]))}
    return {"messages": _messages(messages, native, _Pictures(waiting, marked=bool(waiting)))}


def _messages(messages: Any, native: Native, waiting: _Pictures) -> list[dict[str, Any]]:
    if not isinstance(messages, (list, tuple)):
        raise BadRecord(f"messages are of type {type(messages).__name__}; they must be a list")
    made = []
    for message in messages:
        if not isinstance(message, Mapping):
            raise BadRecord(f"a message is of type {type(message).__name__}")
        made.append({"role": _role(message), "content": _content(_said(message), native, waiting)})
    waiting.check()
    return made


def _role(message: Mapping[str, Any]) -> Any:
    role = message.get("role", message.get("from"))
    return _ROLES.get(str(role), role)


def _said(message: Mapping[str, Any]) -> Any:
    return message.get("content", message.get("value"))


def _content(content: Any, native: Native, waiting: _Pictures) -> Any:
    """A message's content as records have it: a text, or {'text'} and {'image'} in order."""
    if isinstance(content, (list, tuple)):
        return [part for given in content for part in _part(given, native, waiting)]
    text = text_in(content)
    # Where it marks no picture the word is only a word: texts on these very formats have it.
    if PLACEHOLDER not in text or not waiting.marked:
        return text
    parts: list[dict[str, Any]] = []
    for number, piece in enumerate(text.split(PLACEHOLDER)):
        if number:
            parts.append({"image": waiting.next()})
        if piece.strip():
            parts.append({"text": piece.strip("\n")})
    return parts


def _part(part: Any, native: Native, waiting: _Pictures) -> Iterator[dict[str, Any]]:
    if isinstance(part, str):
        yield {"text": part}
        return
    if not isinstance(part, Mapping):
        raise BadRecord(f"a part of a message is of type {type(part).__name__}")
    # Tables give every part all the fields, with null where they do not belong.
    kind = part.get("type") or ("image" if present(part.get("image")) else "text")
    if kind == "image":
        own = next((part[name] for name in ("image", "path", "bytes") if present(part.get(name))), None)
        for picture in [waiting.next()] if own is None else pictures(own, native.image):
            yield {"image": picture}
    elif kind == "text":
        yield {"text": text_in(part.get("text"))}
    else:
        raise BadRecord(f"a part of a message of type '{kind}'; it must be 'text' or 'image'")


def _has_places(messages: Any) -> bool:
    for message in messages if isinstance(messages, (list, tuple)) else ():
        content = _said(message) if isinstance(message, Mapping) else None
        if isinstance(content, str) and PLACEHOLDER in content:
            return True
        if isinstance(content, (list, tuple)):
            for part in content:
                if isinstance(part, Mapping) and (part.get("type") == "image" or present(part.get("image"))):
                    return True
    return False


def _shared(chosen: Sequence[Any], rejected: Sequence[Any]) -> int:
    """How many messages both begin with, up to the user's last among them."""
    count = 0
    for a, b in zip(chosen, rejected, strict=False):
        if a != b:
            break
        count += 1
    while count and not (isinstance(chosen[count - 1], Mapping) and _role(chosen[count - 1]) == "user"):
        count -= 1
    return count
