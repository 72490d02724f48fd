"""What the server answers: completions, chunks of a stream, the list of models."""

import asyncio
import dataclasses
import json
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

from starlette.responses import JSONResponse, Response
from starlette.types import Receive, Scope, Send

from vlm_jax.serving.errors import APIError

Finish = str | None

_SEND_GRACE = 10.0
"""Seconds for the end of a stream to reach a client that reads slowly."""


@dataclasses.dataclass
class Answer:
    """One of the n answers of a request, as far as it has come."""

    text: str = ""
    finish: Finish = None
    tokens: int = 0


@dataclasses.dataclass(frozen=True)
class Completion:
    """What all chunks and the whole answer of one request have in common."""

    model: str
    prompt_tokens: int
    id: str = dataclasses.field(default_factory=lambda: f"chatcmpl-{secrets.token_hex(16)}")
    created: int = dataclasses.field(default_factory=lambda: int(time.time()))

    def whole(self, answers: list[Answer]) -> dict[str, Any]:
        """The response of a request that does not stream."""
        choices = [
            {
                "index": index,
                "message": {"role": "assistant", "content": answer.text, "refusal": None},
                "logprobs": None,
                "finish_reason": answer.finish,
            }
            for index, answer in enumerate(answers)
        ]
        return self._body("chat.completion", choices) | {"usage": self.usage(answers)}

    def chunk(self, index: int, delta: dict[str, str], finish: Finish = None) -> dict[str, Any]:
        """One event of a stream."""
        choice = {"index": index, "delta": delta, "logprobs": None, "finish_reason": finish}
        return self._body("chat.completion.chunk", [choice])

    def usage_chunk(self, answers: list[Answer]) -> dict[str, Any]:
        """The last event of a stream that asked for usage."""
        return self._body("chat.completion.chunk", []) | {"usage": self.usage(answers)}

    def usage(self, answers: list[Answer]) -> dict[str, int]:
        """Token counts; the prompt counts once, however many answers it got."""
        written = sum(answer.tokens for answer in answers)
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": written,
            "total_tokens": self.prompt_tokens + written,
        }

    def _body(self, kind: str, choices: list[dict[str, Any]]) -> dict[str, Any]:
        return {"id": self.id, "object": kind, "created": self.created, "model": self.model, "choices": choices}


def model_card(name: str, created: int) -> dict[str, Any]:
    """An entry of /v1/models."""
    return {"id": name, "object": "model", "created": created, "owned_by": "vlm-jax"}


def error_response(error: APIError) -> Response:
    """An error as a response."""
    return JSONResponse(error.body(), status_code=error.status, headers=error.headers)


def event(data: dict[str, Any] | str) -> bytes:
    """A server-sent event."""
    text = data if isinstance(data, str) else json.dumps(data, ensure_ascii=False, separators=(",", ":"))
    return f"data: {text}\n\n".encode()


async def disconnected(receive: Receive) -> None:
    """Returns when the client has hung up; for after the body was read."""
    while (await receive())["type"] != "http.disconnect":
        pass


async def unless_disconnected(work: Awaitable[Any], receive: Receive) -> Any:
    """The result of `work`; None, and `work` cancelled, if the client hangs up before."""
    doing, watching = asyncio.ensure_future(work), asyncio.ensure_future(disconnected(receive))
    try:
        await asyncio.wait({doing, watching}, return_when=asyncio.FIRST_COMPLETED)
        return doing.result() if doing.done() else None
    finally:
        for task in (doing, watching):
            task.cancel()
        await asyncio.gather(doing, watching, return_exceptions=True)


class EventStream(Response):
    """A stream of server-sent events that ends with its source, with the client, or with the time."""

    media_type = "text/event-stream"

    def __init__(self, events: AsyncIterator[bytes], seconds: float, close: Callable[[], None]) -> None:
        """`seconds` bounds the whole; `close` is called when nobody reads any more."""
        super().__init__(headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"})
        del self.headers["content-length"]
        self._events, self._seconds, self._close = events, seconds, close

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Sends the events."""
        try:
            async with asyncio.timeout(self._seconds + _SEND_GRACE):
                await unless_disconnected(self._send(send), receive)
        except TimeoutError:
            pass  # nobody reads: closing the connection is all that is left
        finally:
            self._close()

    async def _send(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        async for data in self._events:
            await send({"type": "http.response.body", "body": data, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})
